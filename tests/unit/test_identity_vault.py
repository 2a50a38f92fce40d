"""The sealed document: who opens it, and what is refused."""

from __future__ import annotations

import pytest

from iam import directory as directories
from iam.errors import CorruptDirectory, SealBroken, WrongSecret
from iam.model import Directory
from node.identity.vault import Keks, Vault, derive_keks
from tests.unit.identity_world import CLUSTER_ID, SeededRng

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32
DATA_KEY = b"d" * 32
DIRECTORY = directories.add_user(Directory(), "ann", now_s=1.0)


def _vault(*own: bytes, fallback: tuple[bytes, ...] = (), cluster: bytes = CLUSTER_ID) -> Vault:
    return Vault(Keks(own=own, fallback=fallback), cluster, SeededRng())


def test_opens_by_any_of_its_secrets() -> None:
    sealed = _vault(OLD).seal(DIRECTORY, DATA_KEY)
    for vault, rewrap in (
        (_vault(OLD), False),
        (_vault(NEW, OLD), True),
        (_vault(NEW, fallback=(OLD,)), True),
    ):
        opened = vault.open(sealed, None)
        assert (opened.directory, opened.data_key, opened.rewrap) == (DIRECTORY, DATA_KEY, rewrap)
    for reader in (_vault(OLD), _vault(NEW)):
        both = _vault(NEW, OLD).seal(DIRECTORY, DATA_KEY)
        assert not reader.open(both, None).rewrap


def test_the_remembered_data_key_opens_but_never_wraps_anew() -> None:
    sealed = _vault(OLD).seal(DIRECTORY, DATA_KEY)
    with pytest.raises(WrongSecret):
        _vault(NEW).open(sealed, None)
    opened = _vault(NEW).open(sealed, DATA_KEY)
    assert opened.directory == DIRECTORY and not opened.rewrap


def test_altered_cut_and_moved_documents_are_refused() -> None:
    sealed = _vault(OLD).seal(DIRECTORY, DATA_KEY)
    altered = sealed[:-1] + bytes([sealed[-1] ^ 1])
    with pytest.raises(SealBroken):
        _vault(OLD).open(altered, None)
    with pytest.raises(CorruptDirectory):
        _vault(OLD).open(sealed[:20], None)
    with pytest.raises(CorruptDirectory, match="format 2"):
        _vault(OLD).open(sealed.replace(b"\xa6format\x01", b"\xa6format\x02"), None)
    with pytest.raises((WrongSecret, SealBroken)):
        _vault(OLD, cluster=b"another-cluster").open(sealed, None)


class _InlineCpu:
    def __init__(self) -> None:
        self.calls = 0

    async def run(self, work, *arguments):  # type: ignore[no-untyped-def]
        self.calls += 1
        return work(*arguments)


async def test_the_root_password_stands_in_for_a_secret() -> None:
    cpu = _InlineCpu()
    without = await derive_keks(None, None, "root-password", CLUSTER_ID, cpu)
    given = await derive_keks("cluster-secret", "the-one-before", "root-password", CLUSTER_ID, cpu)
    assert len(without.own) == 1 and without.fallback == ()
    assert len(given.own) == 2 and given.fallback == without.own
    assert len({*given.own, *given.fallback}) == 3
    assert cpu.calls == 4
