"""What one node may ask of another, and the lane each question travels on."""

from __future__ import annotations

import enum


class Lane(enum.StrEnum):
    """Classes of traffic; each has a connection of its own to each peer, so none starves another."""

    HEARTBEAT = "heartbeat"
    FAST = "fast"
    LOCK = "lock"
    BULK = "bulk"
    CONTROL = "control"


class Method(enum.IntEnum):
    """Numbers are on the wire: never reused, never renumbered."""

    HELLO = 1
    HEARTBEAT = 2
    PREPARE = 3
    COMMIT = 4
    FINISH = 5
    VERBS = 6
    LOCK = 7
    IDENTITY = 8
    INFO = 9
    FORMING = 10
    ADMIN = 11


LANES: dict[Method, Lane] = {
    Method.HELLO: Lane.CONTROL,
    Method.HEARTBEAT: Lane.HEARTBEAT,
    Method.PREPARE: Lane.FAST,
    Method.COMMIT: Lane.FAST,
    Method.FINISH: Lane.FAST,
    Method.VERBS: Lane.FAST,
    Method.LOCK: Lane.LOCK,
    Method.IDENTITY: Lane.CONTROL,
    Method.INFO: Lane.CONTROL,
    Method.FORMING: Lane.CONTROL,
    Method.ADMIN: Lane.CONTROL,
}
assert LANES.keys() == set(Method)

# Lanes with a standing link; heartbeats are sent by the pulse instead.
LINK_LANES: tuple[Lane, ...] = (Lane.FAST, Lane.LOCK, Lane.BULK, Lane.CONTROL)
