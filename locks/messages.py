"""What lock servers and requesters say to each other.

A message is a MessagePack array whose first element is an integer tag. Tags and the order of fields
are a wire format: append fields with defaults, never reorder them.

A resource is `class:name`, for instance `object:bucket/key` or `iam:directory`. The class, the text
before the first colon, is all of it that may appear in metrics.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import TypeAlias

import msgspec

from locks.errors import LockMessageError


class LockMode(IntEnum):
    READ = 1
    WRITE = 2


class RefusalReason(IntEnum):
    """Why a server does not grant. All but HELD are answered at once, also to those who would wait."""

    HELD = 1  # others hold it; for a waiter: still, when its time was up
    RECOVERING = 2  # the server restarted and does not know yet what it granted before
    FULL = 3  # a bound of the table or of the queue is met
    STALE_INCARNATION = 4  # the caller's process was replaced by a newer one
    EXPIRED = 5  # the caller no longer waits
    RELEASED = 6  # the release of this very attempt came before it
    DEADLOCK = 7  # waiting would close a circle of waiters


class Owner(msgspec.Struct, array_like=True, frozen=True, order=True):
    """One attempt to take one set of resources; never used for a second attempt.

    An owner may hold several sets of resources (nested locks); the servers then find circles of waiters.
    """

    node: str
    incarnation: int
    attempt: int


class Acquire(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """All of `resources` (see `resource_set`) or none.

    `deadline_s`: for how many more seconds the caller waits for an answer; nothing is granted after that.
    `wait`: stand in line if taken, else be refused at once.
    """

    resources: tuple[str, ...]
    mode: LockMode
    owner: Owner
    deadline_s: float
    wait: bool = False


class Release(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Give back, or stop waiting for, what was asked for with the same resources and owner."""

    resources: tuple[str, ...]
    owner: Owner


class Refresh(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """The holder lives: begin a new lease. A recovering server takes the lock in from this message."""

    resources: tuple[str, ...]
    owner: Owner
    mode: LockMode = LockMode.WRITE


class ListLocks(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """At most `limit` entries, for people."""

    limit: int = 1000


class ForceRelease(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """Take the resource from whoever holds it; the holders learn it at their next refresh."""

    resource: str


class TellTable(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """A restarted server asks a peer for all that the peer has granted."""

    node: str
    incarnation: int


class Granted(msgspec.Struct, array_like=True, frozen=True, tag=16):
    lease_s: float


class Refused(msgspec.Struct, array_like=True, frozen=True, tag=17):
    """`holder` is one of the holders and `age_s` how long it has held; None if others only stand in line."""

    reason: RefusalReason
    holder: Owner | None = None
    age_s: float = 0.0


class Released(msgspec.Struct, array_like=True, frozen=True, tag=18):
    pass


class Refreshed(msgspec.Struct, array_like=True, frozen=True, tag=19):
    """`lost`: the resources that the owner no longer holds at this server; `ok` if there are none."""

    ok: bool
    lost: tuple[str, ...] = ()


class LockEntry(msgspec.Struct, array_like=True, frozen=True):
    """One holder of one resource at one server. `waiters` counts those in line for the resource."""

    resource: str
    mode: LockMode
    owner: Owner
    age_s: float
    waiters: int = 0


class Locks(msgspec.Struct, array_like=True, frozen=True, tag=20):
    """`complete`: these are all the locks the server granted; false if it recovers or cut the list short."""

    entries: tuple[LockEntry, ...]
    complete: bool = True


Request: TypeAlias = Acquire | Release | Refresh | ListLocks | ForceRelease | TellTable
Reply: TypeAlias = Granted | Refused | Released | Refreshed | Locks
Message: TypeAlias = Request | Reply

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(
    Acquire
    | Release
    | Refresh
    | ListLocks
    | ForceRelease
    | TellTable
    | Granted
    | Refused
    | Released
    | Refreshed
    | Locks
)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """Raises LockMessageError for anything that is not exactly one message."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise LockMessageError(str(error)) from error


def resource_set(names: Iterable[str]) -> tuple[str, ...]:
    """The one spelling of a set of resources: sorted, none twice."""
    return tuple(sorted(set(names)))


def resource_class(resource: str) -> str:
    return resource.partition(":")[0]
