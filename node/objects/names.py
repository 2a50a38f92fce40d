"""Which names buckets and keys may have, whichever face they come through."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from node import limits
from node.errors import CodedError

# Path names of our own on the S3 port: no bucket may take them.
RESERVED_BUCKETS = frozenset({"metrics", "health", "admin", "minio", "docs", "openapi.json"})

_BUCKET_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{1,61})[a-z0-9]")
_FORBIDDEN_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_FORBIDDEN_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


@lru_cache(maxsize=4096)
def is_bucket_name(name: str) -> bool:
    """S3's naming rules and our reserved names. Names of internal buckets never pass."""
    if not _BUCKET_NAME.fullmatch(name) or name in RESERVED_BUCKETS:
        return False
    if ".." in name or name.startswith(_FORBIDDEN_PREFIXES) or name.endswith(_FORBIDDEN_SUFFIXES):
        return False
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return True
    return False


def check_bucket_name(name: str) -> None:
    if not is_bucket_name(name):
        raise CodedError(
            "InvalidBucketName", "The specified bucket is not valid.", BucketName=name[:100]
        )


def check_key(key: str) -> None:
    """Anything is a key but NUL (the catalog's separator) and more than 1,024 bytes."""
    if "\0" in key:
        raise CodedError("InvalidURI", "A key may not hold a NUL character.")
    size = len(key) if key.isascii() else len(key.encode())
    if size > limits.MAX_KEY_BYTES:
        raise CodedError(
            "KeyTooLongError",
            "Your key is too long",
            Size=str(size),
            MaxSizeAllowed=str(limits.MAX_KEY_BYTES),
        )
