"""Wrapping, sealing and the making of access keys."""

from __future__ import annotations

import re

import pytest

from iam import secrets
from iam.errors import SealBroken, WrongSecret

CLUSTER = bytes(range(16))
NONCE = bytes(range(12))
DATA_KEY = bytes(range(32))


@pytest.fixture(scope="module")
def kek() -> bytes:
    return secrets.derive_kek("correct horse", CLUSTER)


def test_the_kek_depends_on_secret_and_cluster(kek: bytes) -> None:
    assert len(kek) == 32
    assert secrets.derive_kek("correct horse", CLUSTER) == kek
    assert secrets.derive_kek("correct horsf", CLUSTER) != kek
    assert secrets.derive_kek("correct horse", CLUSTER[::-1]) != kek
    with pytest.raises(ValueError, match="empty"):
        secrets.derive_kek("", CLUSTER)
    with pytest.raises(ValueError, match="cluster id"):
        secrets.derive_kek("x", b"short")


def test_a_wrapped_key_opens_with_its_kek_only(kek: bytes) -> None:
    wrapped = secrets.wrap_key(kek, DATA_KEY, NONCE, cluster_id=CLUSTER)
    assert DATA_KEY not in wrapped
    assert secrets.unwrap_key(kek, wrapped, cluster_id=CLUSTER) == DATA_KEY
    with pytest.raises(WrongSecret, match="HOLDFAST_CLUSTER_SECRET_PREVIOUS"):
        secrets.unwrap_key(bytes(32), wrapped, cluster_id=CLUSTER)
    with pytest.raises(WrongSecret):
        secrets.unwrap_key(kek, wrapped, cluster_id=b"another")
    with pytest.raises(SealBroken):
        secrets.unwrap_key(kek, wrapped[:-1], cluster_id=CLUSTER)


def test_sealed_bytes_are_bound_to_key_place_and_purpose(kek: bytes) -> None:
    sealed = secrets.seal(DATA_KEY, b"the directory", NONCE, b"iam/directory")
    assert b"the directory" not in sealed
    assert secrets.open_sealed(DATA_KEY, sealed, b"iam/directory") == b"the directory"
    with pytest.raises(SealBroken):
        secrets.open_sealed(DATA_KEY, sealed, b"iam/other")
    with pytest.raises(SealBroken):
        secrets.open_sealed(kek, sealed, b"iam/directory")
    for index in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[index] ^= 1
        with pytest.raises(SealBroken):
            secrets.open_sealed(DATA_KEY, bytes(damaged), b"iam/directory")
    for length in range(len(sealed)):
        with pytest.raises(SealBroken):
            secrets.open_sealed(DATA_KEY, sealed[:length], b"iam/directory")
    # What was sealed is no wrapped key, even of the right length and under the same key.
    with pytest.raises(WrongSecret):
        secrets.unwrap_key(kek, secrets.seal(kek, DATA_KEY, NONCE, b""))


def test_lengths_are_checked() -> None:
    for call in (
        lambda: secrets.seal(b"short", b"", NONCE, b""),
        lambda: secrets.seal(DATA_KEY, b"", b"short", b""),
        lambda: secrets.open_sealed(b"short", b"", b""),
        lambda: secrets.wrap_key(DATA_KEY, b"short", NONCE),
        lambda: secrets.access_key_id(b"short"),
        lambda: secrets.secret_key(b"short"),
    ):
        with pytest.raises(ValueError, match=r"bytes"):
            call()


def test_access_keys_have_the_shape_of_aws() -> None:
    ids = {secrets.access_key_id(bytes([n]) * 12) for n in range(256)}
    assert len(ids) == 256
    assert all(re.fullmatch(r"HF[A-Z2-7]{18}", one) for one in ids)
    keys = {secrets.secret_key(bytes([n]) * 32) for n in range(256)}
    assert len(keys) == 256
    assert all(re.fullmatch(r"[0-9A-Za-z]{40}", one) for one in keys)
