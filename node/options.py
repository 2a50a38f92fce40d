"""The settings one by one: name, parser, default, and what each is for."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from node.limits import (
    GIB,
    KIB,
    MIB,
    MIN_CLUSTER_SECRET_CHARACTERS,
    MIN_MEMORY_BYTES,
    MIN_PASSWORD_CHARACTERS,
    MIN_USER_CHARACTERS,
)
from node.volumes import parse_volumes

PREFIX = "HOLDFAST_"

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that never shows in a repr, a log line or `holdfast config`."""

    value: str = field(repr=False)

    def __str__(self) -> str:
        return "********"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting. `parse` raises ValueError or ConfigError with what is wrong."""

    name: str
    parse: Callable[[str], Any]
    help: str
    default: str | None = None
    secret: bool = False
    from_file: bool = False  # NAME_FILE names a file that holds the value

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


# ---- parsers ---------------------------------------------------------------------------------------
def parse_listen(text: str) -> Address:
    """'host:port', ':port' for every address; IPv6 in brackets."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]\s]*)):(\d{1,5})", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise ValueError(f"{text!r} is no listen address; write host:port, as in 0.0.0.0:9000")
    return (match[1] or match[2] or "0.0.0.0", int(match[3]))


_SIZE_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}


def parse_size(text: str) -> int:
    """Bytes: '4GiB', '512M', '1073741824'. Units are powers of 1024."""
    match = re.fullmatch(r"(\d{1,15})\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is no size; write bytes or a unit, as in 4GiB")
    return int(match[1]) * _SIZE_UNITS[match[2].upper()]


def _parse_memory(text: str) -> int:
    size = parse_size(text)
    if size < MIN_MEMORY_BYTES:
        raise ValueError(
            f"{text!r} is too little; give a node at least {MIN_MEMORY_BYTES // MIB}MiB"
        )
    return size


def _parse_user(text: str) -> str:
    if len(text) < MIN_USER_CHARACTERS:
        raise ValueError(f"the root user needs at least {MIN_USER_CHARACTERS} characters")
    if not re.fullmatch(r"[A-Za-z0-9._@+-]{1,128}", text):
        raise ValueError("the root user may have letters, digits and . _ @ + - (128 at the most)")
    return text


def _secret_of(minimum: int, what: str) -> Callable[[str], Secret]:
    def parse(text: str) -> Secret:
        if len(text) < minimum:
            raise ValueError(f"{what} needs at least {minimum} characters; it has {len(text)}")
        return Secret(text)

    return parse


def _parse_parity(text: str) -> int:
    if not re.fullmatch(r"\d{1,2}", text):
        raise ValueError(f"{text!r} is no number of parity shards, as in 4")
    return int(text)


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text.lower()

    return parse


def _parse_region(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", text):
        raise ValueError(f"{text!r} is no region name; use lower-case letters, digits and -")
    return text


def _parse_domain(text: str) -> str:
    label = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    if not re.fullmatch(rf"{label}(\.{label})*", text.lower()) or len(text) > 253:
        raise ValueError(f"{text!r} is no domain name, as in s3.example.com")
    return text.lower()


def _parse_endpoint(text: str) -> str:
    if not re.fullmatch(r"https?://[^/\s?#]+/?", text):
        raise ValueError(f"{text!r} is no endpoint; write http://host:port")
    return text.rstrip("/")


def _parse_proxies(text: str) -> tuple[str, ...]:
    return tuple(
        str(ipaddress.ip_network(part)) for part in re.split(r"[\s,]+", text.strip()) if part
    )


_password = _secret_of(MIN_PASSWORD_CHARACTERS, "the root password")
_cluster_secret = _secret_of(MIN_CLUSTER_SECRET_CHARACTERS, "a cluster secret")
# It may have been the root password, which took the place of a cluster secret.
_previous_secret = _secret_of(MIN_PASSWORD_CHARACTERS, "the previous cluster secret")

OPTIONS: tuple[Option, ...] = (
    Option(name="volumes", parse=parse_volumes, help="drives of all nodes, node{1...4}:9002/data/disk{1...4}"),
    Option(name="node", parse=str.lower, help="which host:port of the volumes is this node"),
    Option(name="root_user", parse=_parse_user, help="name of the root access key", from_file=True),
    Option(name="root_password", parse=_password, help="its secret", secret=True, from_file=True),
    Option(name="cluster_secret", parse=_cluster_secret, help="authenticates nodes to each other and "
           "encrypts identities; derived from the root password when absent", secret=True, from_file=True),
    Option(name="cluster_secret_previous", parse=_previous_secret,
           help="the one before, while it is rotated", secret=True, from_file=True),
    Option(name="s3_listen", parse=parse_listen, help="address of the S3 API", default="0.0.0.0:9000"),
    Option(name="console_listen", parse=parse_listen, help="address of the console", default="0.0.0.0:9001"),
    Option(name="peer_listen", parse=parse_listen, help="address for peers; its port is that of the node"),
    Option(name="parity", parse=_parse_parity, help="parity shards of a stripe"),
    Option(name="durability", parse=_one_of("strict", "relaxed"), help="relaxed: no sync, for benchmarks only"),
    Option(name="region", parse=_parse_region, help="region that clients sign for", default="us-east-1"),
    Option(name="domain", parse=_parse_domain, help="domain for virtual-hosted buckets"),
    Option(name="endpoint", parse=_parse_endpoint, help="S3 endpoint that the commands talk to"),
    Option(name="memory_limit", parse=_parse_memory, default="1GiB",
           help="half of it, 256 MiB at the most, is for stripe buffers"),
    Option(name="log_level", parse=_one_of("debug", "info", "warning", "error"), default="info",
           help="debug, info, warning or error"),
    Option(name="guard", parse=_one_of("on", "off"), default="on",
           help="off: no breakers, bounds and retries, only to measure what they cost"),
    Option(name="trusted_proxies", parse=_parse_proxies, help="networks whose X-Forwarded-For counts", default=""),
)  # fmt: skip
BY_NAME = {option.name: option for option in OPTIONS}
VARIABLES = frozenset(
    [f"{PREFIX}CONFIG"]
    + [option.variable for option in OPTIONS]
    + [f"{option.variable}_FILE" for option in OPTIONS if option.from_file]
)
