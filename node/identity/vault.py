"""The stored directory: sealed with a data key, which the cluster's secrets wrap.

The document holds the data key once for every secret its writer knows (the current one and, while
it is rotated, the one before), each under the id of its key-encryption key (KEK). A node reads it
with any of its secrets, or with the data key it remembers: so nodes that still have the former secret
go on while others have the new one already, and the document need not be sealed anew.

A node's own copy of the document has the version beside it, under a MAC of the data key: a copy whose
version rotted would else pass for a newer one than there is.

Without a cluster secret the root password takes its place; a cluster that is given a secret later is
still opened by the root password, and wrapped with the secret from then on.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import msgspec

from iam import directory as directories
from iam.errors import CorruptDirectory, SealBroken, WrongSecret
from iam.model import Directory
from iam.secrets import KEY_BYTES, NONCE_BYTES, derive_kek, open_sealed, seal, unwrap_key, wrap_key
from node.runtime.ports import Cpu, Rng

DOCUMENT = "config/iam/directory"
FORMAT = 1
_MAX_WRAPS = 8


class _Wrap(msgspec.Struct, frozen=True, array_like=True):
    kek_id: bytes
    wrapped: bytes


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    wraps: tuple[_Wrap, ...]
    sealed: bytes


class _Copy(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    version: int
    document: bytes
    mac: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Keks:
    """Key-encryption keys, 32 bytes each. `own` wrap what is written, the current one first;
    `fallback` only open what was written before the cluster had a secret."""

    own: tuple[bytes, ...]
    fallback: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Opened:
    """`rewrap`: a secret of this node opened it, but the current one would not: write it again."""

    directory: Directory
    data_key: bytes
    rewrap: bool

    def __repr__(self) -> str:
        return f"Opened(version={self.directory.version}, rewrap={self.rewrap})"


async def derive_keks(
    cluster_secret: str | None,
    previous_secret: str | None,
    root_password: str,
    cluster_id: bytes,
    cpu: Cpu,
) -> Keks:
    """Stretches the secrets of a node; a fifth of a second for each, beside the loop."""

    async def derive(secret: str) -> bytes:
        return await cpu.run(derive_kek, secret, cluster_id)

    own = [await derive(cluster_secret or root_password)]
    if previous_secret:
        own.append(await derive(previous_secret))
    fallback = [await derive(root_password)] if cluster_secret else []
    return Keks(own=tuple(own), fallback=tuple(fallback))


def kek_id(kek: bytes) -> bytes:
    """Names a KEK without telling anything about it (8 bytes)."""
    return hmac.digest(kek, b"holdfast kek id 1", "sha256")[:8]


class Vault:
    """Opens and seals the directory of one cluster."""

    def __init__(self, keks: Keks, cluster_id: bytes, rng: Rng) -> None:
        self._own = {kek_id(kek): kek for kek in keks.own}
        self._all = {kek_id(kek): kek for kek in keks.fallback} | self._own
        self._current = kek_id(keks.own[0])
        self._cluster_id = cluster_id
        self._rng = rng
        self._place = DOCUMENT.encode() + b"\0" + cluster_id

    def open(self, data: bytes, remembered: bytes | None) -> Opened:
        """Raises iam.errors.WrongSecret, SealBroken or CorruptDirectory."""
        stored = _decode(data)
        data_key = self._unwrap(stored)
        mine = data_key is not None
        if data_key is None:
            data_key = remembered
        if data_key is None:
            raise WrongSecret
        plain = open_sealed(data_key, stored.sealed, self._place)
        current = any(wrap.kek_id == self._current for wrap in stored.wraps)
        return Opened(directories.decode(plain), data_key, mine and not current)

    def _unwrap(self, stored: _Stored) -> bytes | None:
        for wrap in stored.wraps:
            kek = self._all.get(wrap.kek_id)
            if kek is not None:
                return unwrap_key(kek, wrap.wrapped, cluster_id=self._cluster_id)
        return None

    def seal(self, directory: Directory, data_key: bytes) -> bytes:
        nonce = self._rng.bytes
        wraps = tuple(
            _Wrap(
                name,
                wrap_key(kek, data_key, nonce(NONCE_BYTES), cluster_id=self._cluster_id),
            )
            for name, kek in self._own.items()
        )
        plain = directories.encode(directory)
        sealed = seal(data_key, plain, nonce(NONCE_BYTES), self._place)
        return msgspec.msgpack.encode(_Stored(format=FORMAT, wraps=wraps, sealed=sealed))

    def seal_copy(self, document: bytes, version: int, data_key: bytes) -> bytes:
        """A sealed document with its version, as a node keeps it for itself."""
        mac = self._copy_mac(document, version, data_key)
        return msgspec.msgpack.encode(
            _Copy(format=FORMAT, version=version, document=document, mac=mac)
        )

    def open_copy(self, data: bytes) -> tuple[int, Opened]:
        """(version, what is in it). Raises iam.errors.WrongSecret, SealBroken or CorruptDirectory."""
        try:
            copy = msgspec.msgpack.decode(data, type=_Copy)
        except (msgspec.DecodeError, RecursionError) as error:
            raise CorruptDirectory(f"the copy of the identities cannot be read: {error}") from None
        if copy.format != FORMAT:
            raise CorruptDirectory(
                f"the copy of the identities has format {copy.format}; this version reads {FORMAT}"
            )
        opened = self.open(copy.document, None)
        wanted = self._copy_mac(copy.document, copy.version, opened.data_key)
        if not hmac.compare_digest(wanted, copy.mac):
            raise SealBroken
        return copy.version, opened

    def _copy_mac(self, document: bytes, version: int, data_key: bytes) -> bytes:
        digest = hashlib.sha256(document).digest()
        place = b"holdfast identity copy 1" + version.to_bytes(8, "big") + self._cluster_id
        return hmac.digest(data_key, place + digest, "sha256")

    def new_data_key(self) -> bytes:
        return self._rng.bytes(KEY_BYTES)


def _decode(data: bytes) -> _Stored:
    try:
        stored = msgspec.msgpack.decode(data, type=_Stored)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CorruptDirectory(f"the identity document cannot be read: {error}") from None
    if stored.format != FORMAT:
        raise CorruptDirectory(
            f"the identity document has format {stored.format}; this version reads {FORMAT}"
        )
    if not 0 < len(stored.wraps) <= _MAX_WRAPS:
        raise CorruptDirectory(f"the identity document has {len(stored.wraps)} wrapped keys")
    return stored
