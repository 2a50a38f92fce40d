"""The five checksums of S3: running ones, and a multipart object's out of those of its parts."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from awscrt import checksums as crt

from node.errors import CodedError
from node.protocol.record import Part

COMPOSITE = "COMPOSITE"
FULL_OBJECT = "FULL_OBJECT"

_WIDTH = {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8}
_COMBINE: dict[str, Callable[[int, int, int], int]] = {
    "CRC32": crt.combine_crc32,
    "CRC32C": crt.combine_crc32c,
    "CRC64NVME": crt.combine_crc64nvme,
}


class Digest(Protocol):
    """A running digest, as of hashlib."""

    def update(self, data: memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


class _Crc:
    """A running CRC with hashlib's face."""

    __slots__ = ("_function", "_length", "_value")

    def __init__(self, function: Callable[[Any, int], int], length: int) -> None:
        self._function = function
        self._length = length
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._length, "big")


_NEW: dict[str, Callable[[], Digest]] = {
    "CRC32": lambda: _Crc(zlib.crc32, 4),  # faster here than awscrt's
    "CRC32C": lambda: _Crc(crt.crc32c, 4),
    "CRC64NVME": lambda: _Crc(crt.crc64nvme, 8),
    "SHA1": lambda: hashlib.sha1(usedforsecurity=False),
    "SHA256": hashlib.sha256,
}


def new_digest(algorithm: str) -> Digest:
    """A running checksum; KeyError for an algorithm that is none of the five."""
    return _NEW[algorithm]()


def combine(
    algorithm: str, kind: str, parts: Sequence[Part], claimed: dict[str, str]
) -> dict[str, str]:
    """-> {algorithm: base64}, with -N where it is composite; {} when the parts carry none.

    `claimed`: the whole object's checksum as the client states it; BadDigest when it is another one.
    """
    if algorithm not in _NEW or any(algorithm not in part.checksums for part in parts):
        return {}
    raw = [base64.b64decode(part.checksums[algorithm]) for part in parts]
    if kind == FULL_OBJECT and algorithm in _COMBINE:
        total = int.from_bytes(raw[0], "big")
        for digest, part in zip(raw[1:], parts[1:], strict=True):
            total = _COMBINE[algorithm](total, int.from_bytes(digest, "big"), part.size)
        value = base64.b64encode(total.to_bytes(_WIDTH[algorithm], "big")).decode()
    else:
        whole = new_digest(algorithm)
        whole.update(memoryview(b"".join(raw)))
        value = f"{base64.b64encode(whole.digest()).decode()}-{len(parts)}"
    stated = claimed.get(algorithm)
    if stated is not None and stated not in (value, value.partition("-")[0]):
        raise CodedError("BadDigest", f"The {algorithm} you specified did not match the object.")
    return {algorithm: value}
