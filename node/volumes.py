"""HOLDFAST_VOLUMES: which directories of which nodes are the cluster's drives.

    node{1...4}:9002/data/disk{1...4}       host, peer port, path; every node lists the same text
    10.0.0.1:9002/a [fd00::2]:9002/a        a list separated by spaces, IPv6 in brackets
    /data/disk{1...4}                       plain paths: a cluster of this node alone

`{1...4}` counts (`{01...12}` with leading zeros); of several ranges the left one varies slowest. The
order of the list is part of the cluster's identity: it says which drive is which slot.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from node.errors import ConfigError
from node.limits import MAX_VOLUMES

LOCAL_HOST = "local"
LOCAL_PORT = 9002  # only a name: a node alone listens where its listen addresses say

_RANGE = re.compile(r"\{(\d{1,9})\.\.\.(\d{1,9})\}")
_ENTRY = re.compile(
    r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<host>[^:/\[\]]*)):(?P<port>[^:/]*)(?P<path>/.*)?"
)
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One drive: a directory of a node. `host` without brackets, `path` absolute and normal."""

    host: str
    port: int
    path: str

    @property
    def node(self) -> str:
        return join_address(self.host, self.port)

    def __str__(self) -> str:
        return f"{self.node}{self.path}"


def join_address(host: str, port: int) -> str:
    """'host:port', IPv6 hosts in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_volumes(text: str) -> tuple[Volume, ...]:
    """The volumes of a list, in order. ConfigError says which entry is wrong and how to write it."""
    volumes: list[Volume] = []
    for entry in text.split():
        volumes.extend(_parse_entry(name) for name in _expand(entry))
        if len(volumes) > MAX_VOLUMES:
            raise ConfigError(f"more than {MAX_VOLUMES} drives: {entry!r} is probably a slip")
    if not volumes:
        raise ConfigError("the list is empty")
    plain = [volume.host == LOCAL_HOST for volume in volumes]
    if any(plain) and not all(plain):
        raise ConfigError(
            f"{volumes[plain.index(True)].path!r} has no host: write host:port/path for every entry, "
            "or plain paths for every entry (a node alone)"
        )
    _refuse_overlaps(volumes)
    return tuple(volumes)


def node_names(volumes: Iterable[Volume]) -> tuple[str, ...]:
    """The nodes, each once, in listed order."""
    return tuple(dict.fromkeys(volume.node for volume in volumes))


def _expand(entry: str) -> Iterator[str]:
    parts = _RANGE.split(entry)  # text, first, last, text, first, last, ..., text
    literals, bounds = parts[0::3], list(zip(parts[1::3], parts[2::3], strict=True))
    if any("{" in literal or "}" in literal for literal in literals):
        raise ConfigError(f"{entry!r}: a range is written {{1...4}}, with three dots and numbers")
    ranges, count = [], 1
    for first, last in bounds:
        if int(first) > int(last):
            raise ConfigError(
                f"{entry!r}: the range {{{first}...{last}}} counts down; swap its ends"
            )
        count *= int(last) - int(first) + 1
        if count > MAX_VOLUMES:
            raise ConfigError(f"{entry!r} names more than {MAX_VOLUMES} drives")
        padded = any(end.startswith("0") and len(end) > 1 for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        ranges.append([f"{number:0{width}d}" for number in range(int(first), int(last) + 1)])
    for numbers in itertools.product(*ranges):
        tail = (f"{number}{literal}" for number, literal in zip(numbers, literals[1:], strict=True))
        yield literals[0] + "".join(tail)


def _parse_entry(entry: str) -> Volume:
    if "://" in entry:
        raise ConfigError(f"{entry!r}: leave the scheme out, as in node1:9002/data/disk1")
    if "," in entry:
        raise ConfigError(f"{entry!r}: separate entries by spaces, not by commas")
    if entry.startswith("/"):
        return Volume(host=LOCAL_HOST, port=LOCAL_PORT, path=_path(entry, entry))
    address, slash, path = entry.partition("/")
    match = _ENTRY.fullmatch(address.lower() + slash + path)
    if match is None:
        raise ConfigError(f"{entry!r}: write host:port/path, as in node1:9002/data/disk1")
    host = match["v6"] or match["host"]
    if match["v6"] is None and not _HOST.fullmatch(host):
        raise ConfigError(f"{entry!r}: {host!r} is no host name")
    if host == LOCAL_HOST:
        raise ConfigError(f"{entry!r}: 'local' stands for a node alone; use another host name")
    if (
        not match["port"].isascii()
        or not match["port"].isdigit()
        or not 0 < int(match["port"]) < 65536
    ):
        raise ConfigError(f"{entry!r}: the port after the host is a number from 1 to 65535")
    if match["path"] is None:
        raise ConfigError(f"{entry!r}: the path of the drive is missing, as in {entry}/data/disk1")
    return Volume(host=host, port=int(match["port"]), path=_path(match["path"], entry))


def _path(path: str, entry: str) -> str:
    if ".." in path.split("/"):
        raise ConfigError(f"{entry!r}: write the path without '..'")
    normal = "/" + posixpath.normpath(path).lstrip("/")
    if normal == "/":
        raise ConfigError(
            f"{entry!r}: the root directory cannot be a drive; name a directory in it"
        )
    return normal


def _refuse_overlaps(volumes: list[Volume]) -> None:
    """Two drives in one directory, or one inside another, would count one failure as two."""
    seen: set[tuple[str, str]] = set()
    for volume in volumes:
        if (volume.node, volume.path) in seen:
            raise ConfigError(f"{volume} is listed twice")
        seen.add((volume.node, volume.path))
    for volume in volumes:
        parent = posixpath.dirname(volume.path)
        while parent != "/":
            if (volume.node, parent) in seen:
                raise ConfigError(f"{volume} lies inside another drive, {volume.node}{parent}")
            parent = posixpath.dirname(parent)
