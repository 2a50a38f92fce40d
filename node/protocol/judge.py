"""What a set of drives' answers says about a key: the checked rules 0 to 3.

Theory of operation. n drives hold the key's set, W is the write quorum, an answer set has at least R =
n - n//2 answers. Candidates are judged newest first; u = n - answers.

    0. X at or below the floor of an answer that holds nothing so old: the holders are asked again, after
       that answer; if a fresh answer still holds something there, the floor was another key's: judge on.
       That clears this very answer: one that comes later and names a floor raises the question anew
    1. an answer flags X decided, or W answers hold X                          -> X is the version
    2. holders + acceptors (top <= base of X) + u < W                          -> X is dead; next older
    3. otherwise nobody knows yet: never serve the older version
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Outcome(enum.Enum):
    VERSION = "version"  # `epoch` is the version (it may be a tombstone)
    ABSENT = "absent"
    UNKNOWN = "unknown"  # settle `epoch`: forward, fence or refuse
    STALE = "stale"  # rule 0: ask the holders of anything at or below `epoch` again


@dataclass(frozen=True, slots=True)
class Held:
    """One entry of one drive's answer."""

    epoch: bytes
    base: bytes
    decided: bool
    write_quorum: int  # of the record's own geometry, so that geometries may change under a key


@dataclass(frozen=True, slots=True)
class Answer:
    """One drive's answer, `held` ascending by epoch. `floor` counts for what is older than all it holds."""

    top: bytes
    floor: bytes
    held: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    epoch: bytes = b""
    holders: frozenset[int] = frozenset()  # slots that hold `epoch`
    acceptors: int = 0  # answers that could still accept it
    unanswered: int = 0
    dead: tuple[bytes, ...] = field(default=())
    decided: bool = False  # some answer flags it (else it is decided by count)


def judge(
    answers: Mapping[int, Answer],
    *,
    n: int,
    cleared: Mapping[int, bytes] | None = None,
) -> Verdict:
    """Judge answers by slot. `cleared`: by slot, up to which epoch its answer's floor is another key's (rule 0)."""
    unanswered = n - len(answers)
    clear = cleared or {}
    entries = {h.epoch: h for a in answers.values() for h in a.held}
    dead: list[bytes] = []
    for epoch in sorted(entries, reverse=True):
        write_quorum = entries[epoch].write_quorum
        base = entries[epoch].base
        # A drive's floor is of all its keys: where something as old is held, it is not of this one.
        floor = max(
            (
                a.floor
                for slot, a in answers.items()
                if (not a.held or a.held[0].epoch > epoch) and clear.get(slot, b"") < epoch
            ),
            default=b"",
        )
        if epoch <= floor:
            return Verdict(Outcome.STALE, epoch, unanswered=unanswered, dead=tuple(dead))
        holders = frozenset(
            slot for slot, a in answers.items() if any(h.epoch == epoch for h in a.held)
        )
        flagged = any(h.decided for a in answers.values() for h in a.held if h.epoch == epoch)
        if flagged or len(holders) >= write_quorum:
            return Verdict(
                Outcome.VERSION, epoch, holders, 0, unanswered, tuple(dead), decided=flagged
            )
        acceptors = sum(1 for slot, a in answers.items() if slot not in holders and a.top <= base)
        if len(holders) + acceptors + unanswered < write_quorum:
            dead.append(epoch)
            continue
        return Verdict(Outcome.UNKNOWN, epoch, holders, acceptors, unanswered, tuple(dead))
    return Verdict(Outcome.ABSENT, unanswered=unanswered, dead=tuple(dead))
