"""format.json: what a drive says about itself and about its cluster.

Every drive holds the whole matrix, pools of sets of drive ids in slot order, so a node knows its
cluster from its own drives alone. A replaced drive gets a new id; each slot has a generation that
counts its drives, and of two matrices the higher generation of a slot is the newer one. So matrices
merge whichever way they meet, and an older drive that comes back is told from the one in its place.

`state` is `forming` until every drive of the cluster has its format, then `formed`: one formed drive
proves that all were written, and a half-formed cluster is never mistaken for one with empty drives.
"""

from __future__ import annotations

import enum
from functools import cached_property
from typing import TypeVar

import msgspec

from erasure.errors import GeometryError
from erasure.geometry import Geometry, layout
from node.errors import ConfigError
from node.limits import MAX_FORMAT_BYTES

T = TypeVar("T")

VERSION = 1
ID_BYTES = 16


class FormatError(ConfigError):
    """A format.json that cannot be used, or that contradicts the configuration; says what to do."""


class State(enum.StrEnum):
    FORMING = "forming"
    FORMED = "formed"


class Pool(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Sets of drives, by node. `sets` and `generations` are in the order of `erasure.geometry.layout`."""

    nodes: tuple[str, ...]
    drives_per_node: int
    sets: tuple[tuple[str, ...], ...]
    generations: tuple[tuple[int, ...], ...]

    @cached_property
    def slots(self) -> dict[tuple[str, int], tuple[int, int]]:
        """(node, drive index) -> (set, position in it)."""
        return {
            (self.nodes[node], drive): (number, position)
            for number, members in enumerate(layout([self.drives_per_node] * len(self.nodes)))
            for position, (node, drive) in enumerate(members)
        }


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """One format.json. All but `drive_id`, `node`, `drive` is about the cluster."""

    version: int
    cluster_id: str
    drive_id: str
    node: str
    drive: int
    state: State
    created: str
    parity: int
    durability: str
    pools: tuple[Pool, ...]

    @property
    def pool(self) -> Pool:
        return self.pools[0]

    def has(self, node: str, drive: int) -> bool:
        return (node, drive) in self.pool.slots

    def drive_at(self, node: str, drive: int) -> str:
        """The id (hex) of the drive in this slot."""
        number, position = self.pool.slots[node, drive]
        return self.pool.sets[number][position]

    def generation_at(self, node: str, drive: int) -> int:
        number, position = self.pool.slots[node, drive]
        return self.pool.generations[number][position]

    def seen_from(self, node: str, drive: int, state: State | None = None) -> Format:
        """The format.json of another drive of the same cluster."""
        return msgspec.structs.replace(
            self,
            drive_id=self.drive_at(node, drive),
            node=node,
            drive=drive,
            state=self.state if state is None else state,
        )

    def with_drive(self, node: str, drive: int, drive_id: str) -> Format:
        """A new drive in this slot: its generation grows."""
        return self._put(node, drive, drive_id, self.generation_at(node, drive) + 1)

    def merged(self, other: Format) -> Format:
        """Newer slots of `other` taken over; formed if either is. Both are of one cluster and shape."""
        result = self
        for node, drive in self.pool.slots:
            mine = (self.generation_at(node, drive), self.drive_at(node, drive))
            theirs = (other.generation_at(node, drive), other.drive_at(node, drive))
            if theirs > mine:
                result = result._put(node, drive, theirs[1], theirs[0])
        if other.state is State.FORMED and result.state is not State.FORMED:
            result = msgspec.structs.replace(result, state=State.FORMED)
        return result

    def same_cluster_shape(self, other: Format) -> bool:
        return (
            self.cluster_id == other.cluster_id
            and self.pool.nodes == other.pool.nodes
            and self.pool.drives_per_node == other.pool.drives_per_node
        )

    def _put(self, node: str, drive: int, drive_id: str, generation: int) -> Format:
        number, position = self.pool.slots[node, drive]
        pool = msgspec.structs.replace(
            self.pool,
            sets=_changed(self.pool.sets, number, position, drive_id),
            generations=_changed(self.pool.generations, number, position, generation),
        )
        mine = drive_id if (node, drive) == (self.node, self.drive) else self.drive_id
        return msgspec.structs.replace(self, pools=(pool,), drive_id=mine)


def _changed(
    rows: tuple[tuple[T, ...], ...], number: int, position: int, value: T
) -> tuple[tuple[T, ...], ...]:
    row = (*rows[number][:position], value, *rows[number][position + 1 :])
    return (*rows[:number], row, *rows[number + 1 :])


def new_format(
    *,
    cluster_id: bytes,
    drive_ids: tuple[bytes, ...],
    nodes: tuple[str, ...],
    drives_per_node: int,
    parity: int,
    durability: str,
    created: str,
) -> Format:
    """The plan of a new cluster, as seen from the first drive. `drive_ids` go set by set."""
    sets = layout([drives_per_node] * len(nodes))
    size = len(sets[0])
    rows = [drive_ids[start : start + size] for start in range(0, len(drive_ids), size)]
    pool = Pool(
        nodes=nodes,
        drives_per_node=drives_per_node,
        sets=tuple(tuple(drive_id.hex() for drive_id in row) for row in rows),
        generations=tuple((0,) * size for _ in rows),
    )
    return Format(
        version=VERSION,
        cluster_id=cluster_id.hex(),
        drive_id=pool.sets[0][0],
        node=nodes[0],
        drive=0,
        state=State.FORMING,
        created=created,
        parity=parity,
        durability=durability,
        pools=(pool,),
    )


def encode_format(value: Format) -> bytes:
    """Readable JSON; the same value gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


class _Version(msgspec.Struct):
    version: int


def decode_format(data: bytes) -> Format:
    """A format.json that holds together; FormatError says what is wrong with it."""
    if len(data) > MAX_FORMAT_BYTES:
        raise FormatError("format.json is too large to be Holdfast's")
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version != VERSION:
            raise FormatError(
                f"format.json has version {version} and this Holdfast knows version {VERSION}: "
                "run the Holdfast that wrote it, or a newer one"
            )
        value = msgspec.json.decode(data, type=Format)
        _check(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, GeometryError) as error:
        raise FormatError(
            f"format.json is damaged ({error}): put it back, or take the drive as a new one with "
            "`holdfast drive rebuild`"
        ) from error
    return value


def _check(value: Format) -> None:
    _require(len(value.pools) == 1, "it has more than one pool, which needs a newer Holdfast")
    pool = value.pool
    shape = layout([pool.drives_per_node] * len(pool.nodes))
    _require(len(set(pool.nodes)) == len(pool.nodes), "a node is listed twice")
    for rows in (pool.sets, pool.generations):
        _require([len(row) for row in rows] == [len(row) for row in shape], "sets of another shape")
    ids = [drive_id for row in pool.sets for drive_id in row]
    _require(len(set(ids)) == len(ids), "a drive id is listed twice")
    _require(all(_is_id(text) for text in (value.cluster_id, value.drive_id, *ids)), "a wrong id")
    _require(value.has(value.node, value.drive), "it names a slot that its matrix lacks")
    _require(value.drive_at(value.node, value.drive) == value.drive_id, "its id is not in its slot")
    _require(value.durability in ("strict", "relaxed"), "an unknown durability")
    Geometry(k=len(shape[0]) - value.parity, n=len(shape[0]))


def _is_id(text: str) -> bool:
    return len(text) == 2 * ID_BYTES and all(character in "0123456789abcdef" for character in text)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise msgspec.ValidationError(what)
