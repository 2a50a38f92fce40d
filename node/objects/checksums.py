"""The checksum of a whole multipart object out of its parts' checksums, as S3 defines it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence

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
_HASH: dict[str, Callable[[bytes], bytes]] = {
    "CRC32": lambda data: crt.crc32(data).to_bytes(4, "big"),
    "CRC32C": lambda data: crt.crc32c(data).to_bytes(4, "big"),
    "CRC64NVME": lambda data: crt.crc64nvme(data).to_bytes(8, "big"),
    "SHA1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    "SHA256": lambda data: hashlib.sha256(data).digest(),
}


def combine(
    algorithm: str, kind: str, parts: Sequence[Part], claimed: dict[str, str]
) -> dict[str, str]:
    """-> {algorithm: base64}, with -N where it is composite; {} when the parts carry none.

    `claimed`: the whole object's checksum as the client states it; BadDigest when it is another one.
    """
    if algorithm not in _HASH or any(algorithm not in part.checksums for part in parts):
        return {}
    raw = [base64.b64decode(part.checksums[algorithm]) for part in parts]
    if kind == FULL_OBJECT and algorithm in _COMBINE:
        total = int.from_bytes(raw[0], "big")
        for digest, part in zip(raw[1:], parts[1:], strict=True):
            total = _COMBINE[algorithm](total, int.from_bytes(digest, "big"), part.size)
        value = base64.b64encode(total.to_bytes(_WIDTH[algorithm], "big")).decode()
    else:
        whole = _HASH[algorithm](b"".join(raw))
        value = f"{base64.b64encode(whole).decode()}-{len(parts)}"
    stated = claimed.get(algorithm)
    if stated is not None and stated not in (value, value.partition("-")[0]):
        raise CodedError("BadDigest", f"The {algorithm} you specified did not match the object.")
    return {algorithm: value}
