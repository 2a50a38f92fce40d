"""A drive's register for one key: the checked state machine of the commit protocol.

Theory of operation. A drive keeps, per key, its `top` (the highest epoch it accepted or promised; it
never falls) and its accepted entries, from the newest known decided one upward, oldest first. A drive
without an entry for a key has its `floor` as top. Each transition below is a pure function from state
and message to the new state and the answer; the drive process applies one inside an atomic, synced
catalog batch before it answers.

    commit(X, base)  X present: yes. top <= base: add X, top := X, yes. Otherwise: no.
    fence(E)         top := max(top, E)
    decided(X)       X present: flag it, drop every older entry
    discard(X)       drop X; top stays
    repair(X)        X at or below the floor, or a newer decided entry: refuse. Otherwise add X, decided
    collect(T)       T decided and the only entry: drop T, the drive's floor := max(floor, T)
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from node.protocol import epoch as ep


@dataclass(frozen=True, slots=True)
class Entry:
    """One accepted version. `payload` is the drive's own (record bytes and inline shard)."""

    epoch: bytes
    decided: bool
    payload: tuple[bytes, bytes]  # encoded record, inline shard or b""


@dataclass(frozen=True, slots=True)
class Register:
    """State of one key on one drive. `entries` ascend by epoch."""

    top: bytes = ep.ZERO
    entries: tuple[Entry, ...] = ()

    def find(self, epoch: bytes) -> Entry | None:
        for entry in self.entries:
            if entry.epoch == epoch:
                return entry
        return None


class Repaired(enum.IntEnum):
    ADDED = 1
    PRESENT = 2
    BELOW_FLOOR = 3
    SUPERSEDED = 4


def effective_top(register: Register, floor: bytes) -> bytes:
    """The top that a drive answers: never below its floor while it holds nothing."""
    return register.top if register.entries else max(register.top, floor)


def commit(register: Register, floor: bytes, base: bytes, entry: Entry) -> tuple[Register, bool]:
    """Accept `entry` if nothing newer than its base was accepted or promised here."""
    assert entry.epoch > base and not entry.decided
    if register.find(entry.epoch) is not None:
        return register, True
    if effective_top(register, floor) > base:
        return register, False
    # Above the base, so above the top and every entry: the order stays.
    return Register(entry.epoch, (*register.entries, entry)), True


def fence(register: Register, epoch: bytes) -> Register:
    """Promise not to accept a commit whose base is below `epoch`."""
    return register if register.top >= epoch else Register(epoch, register.entries)


def decided(register: Register, epoch: bytes) -> tuple[Register, tuple[Entry, ...]]:
    """Flag an epoch decided; -> the new state and the older entries that go."""
    if register.find(epoch) is None:
        return register, ()
    gone = tuple(e for e in register.entries if e.epoch < epoch)
    kept = tuple(
        Entry(epoch, True, e.payload) if e.epoch == epoch else e
        for e in register.entries
        if e.epoch >= epoch
    )
    return Register(register.top, kept), gone


def discard(register: Register, epoch: bytes) -> tuple[Register, tuple[Entry, ...]]:
    """Drop an epoch that was proved dead; the top stays."""
    gone = tuple(e for e in register.entries if e.epoch == epoch)
    return Register(register.top, tuple(e for e in register.entries if e.epoch != epoch)), gone


def repair(
    register: Register, floor: bytes, entry: Entry
) -> tuple[Register, tuple[Entry, ...], Repaired]:
    """Take in a decided version that this drive missed; -> state, entries that go, verdict."""
    assert entry.decided
    if entry.epoch <= floor and register.find(entry.epoch) is None:
        return register, (), Repaired.BELOW_FLOOR
    if any(e.decided and e.epoch > entry.epoch for e in register.entries):
        return register, (), Repaired.SUPERSEDED
    if register.find(entry.epoch) is not None:
        # The drive knows the version: only the flag (and perhaps its lost data) is new.
        others = tuple(e for e in register.entries if e.epoch != entry.epoch)
        state = Register(register.top, tuple(sorted((*others, entry), key=lambda e: e.epoch)))
        state, gone = decided(state, entry.epoch)
        return state, gone, Repaired.PRESENT
    entries = tuple(sorted((*register.entries, entry), key=lambda e: e.epoch))
    state, gone = decided(Register(max(register.top, entry.epoch), entries), entry.epoch)
    return state, gone, Repaired.ADDED


def collect(register: Register, floor: bytes, epoch: bytes) -> tuple[Register | None, bytes]:
    """Let a decided tombstone that stands alone go; -> (None when the key is gone, new floor)."""
    if len(register.entries) == 1:
        only = register.entries[0]
        if only.epoch == epoch and only.decided:
            # A promise above the tombstone must outlive it: the floor takes the whole top.
            return None, max(floor, register.top)
    return register, floor
