from __future__ import annotations

import msgspec
import pytest

from locks.errors import LockMessageError
from locks.messages import (
    Acquire,
    ForceRelease,
    Granted,
    ListLocks,
    LockEntry,
    LockMode,
    Locks,
    Message,
    Owner,
    Refresh,
    Refreshed,
    RefusalReason,
    Refused,
    Release,
    Released,
    TellTable,
    decode,
    encode,
    resource_class,
    resource_set,
)

_OWNER = Owner("node1:9002", 3, 77)
_ALL: list[Message] = [
    Acquire(("object:b/k",), LockMode.WRITE, _OWNER, 0.75, True),
    Release(("object:b/k", "object:b/l"), _OWNER),
    Refresh(("iam:directory",), _OWNER, LockMode.READ),
    ListLocks(7),
    ForceRelease("config:x"),
    TellTable("node1:9002", 3),
    Granted(9.0),
    Refused(RefusalReason.HELD, _OWNER, 1.5),
    Refused(RefusalReason.FULL),
    Released(),
    Refreshed(False, ("object:b/k",)),
    Locks((LockEntry("object:b/k", LockMode.WRITE, _OWNER, 0.5, 2),), False),
]


@pytest.mark.parametrize("message", _ALL, ids=lambda m: type(m).__name__)
def test_round_trip(message: Message) -> None:
    decoded = decode(encode(message))
    assert decoded == message
    assert type(decoded) is type(message)


def test_wire_form_is_fixed() -> None:
    """Tags and field order are what nodes of other versions speak."""
    acquire = Acquire(("object:b/k",), LockMode.WRITE, Owner("n", 3, 77), 0.75, True)
    assert msgspec.msgpack.decode(encode(acquire)) == [
        1, ["object:b/k"], 2, ["n", 3, 77], 0.75, True,
    ]  # fmt: skip
    tags = [msgspec.msgpack.decode(encode(message))[0] for message in _ALL]
    assert tags == [1, 2, 3, 4, 5, 6, 16, 17, 17, 18, 19, 20]


def test_older_peer_may_leave_out_fields_with_defaults() -> None:
    short = msgspec.msgpack.encode([1, ["object:b/k"], 2, ["n", 3, 77], 0.75])
    assert decode(short) == Acquire(("object:b/k",), LockMode.WRITE, Owner("n", 3, 77), 0.75, False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        encode(Granted(9.0))[:-1],
        encode(Granted(9.0)) + b"\x00",
        msgspec.msgpack.encode([99]),
        msgspec.msgpack.encode([1, "object:b/k", 2, ["n", 3, 77], 0.75]),
        msgspec.msgpack.encode([1, ["object:b/k"], 3, ["n", 3, 77], 0.75]),
        msgspec.msgpack.encode({"tag": 1}),
        msgspec.msgpack.encode([2, [b"\xff"], ["n", 3, 77]]),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(LockMessageError):
        decode(data)


def test_resources_have_one_spelling_and_a_class() -> None:
    assert resource_set(["object:b/z", "object:b/a", "object:b/z"]) == ("object:b/a", "object:b/z")
    assert resource_class("object:b/with:colon") == "object"
