"""Rules of the protocol switched off, each alone, to see that the simulation notices.

A switch replaces one function for the time of a test; the product has no option for any of this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

from locks.driver import HeldLock
from node.objects import lookup
from node.protocol import judge as judging
from node.protocol import register as registers
from node.protocol import verbs
from node.protocol.judge import Answer, Outcome, Verdict
from node.protocol.register import Entry, Register
from node.runtime.drive.keys import Keys
from node.runtime.drive.syncer import Encoded
from tests.sim.drive import SimSyncer


def _commit_unchecked(
    register: Register, _floor: bytes, _base: bytes, entry: Entry
) -> tuple[Register, bool]:
    """Takes a version whatever was accepted or promised since its base."""
    if register.find(entry.epoch) is not None:
        return register, True
    entries = tuple(sorted((*register.entries, entry), key=lambda e: e.epoch))
    return Register(max(register.top, entry.epoch), entries), True


def _commit_alone(
    register: Register, floor: bytes, base: bytes, entry: Entry
) -> tuple[Register, bool]:
    """Takes a version and lets every older one go at once."""
    after, accepted = _rules_commit(register, floor, base, entry)
    if accepted and register.find(entry.epoch) is None:
        kept = tuple(e for e in after.entries if e.epoch >= entry.epoch)
        after = replace(after, entries=kept)
    return after, accepted


_rules_commit = registers.commit


def _fence_in_words(self: Keys, verb: verbs.Fence) -> Any:
    """Answers as if it had promised, and forgets it."""
    register, bases = self._known(verb.key)
    promised = registers.fence(register, verb.epoch)
    state = self._state(verb.key, promised, bases, inline=False)
    return state, self._waits(verb.key, register)


def _collect_without_floor(
    register: Register, floor: bytes, epoch: bytes
) -> tuple[Register | None, bytes]:
    after, _ = _rules_collect(register, floor, epoch)
    return after, floor


_rules_collect = registers.collect


def _answer_unsynced(self: SimSyncer, answers: Sequence[Encoded]) -> None:
    """Says yes at once, and syncs some time later."""
    self._send(answers)
    self.touch()


def _newest_is_the_version(answers: Mapping[int, Answer], **options: Any) -> Verdict:
    """Serves what nobody knows to be decided."""
    verdict = judging.judge(answers, **options)
    if verdict.outcome is Outcome.UNKNOWN:
        return replace(verdict, outcome=Outcome.VERSION)
    return verdict


def _older_will_do(answers: Mapping[int, Answer], **options: Any) -> Verdict:
    """Serves the version before the one that nobody knows about."""
    left = dict(answers)
    while True:
        verdict = judging.judge(left, **options)
        if verdict.outcome is not Outcome.UNKNOWN:
            return verdict
        left = {
            slot: replace(a, held=tuple(h for h in a.held if h.epoch < verdict.epoch))
            for slot, a in left.items()
        }


def _valid_for_ever(self: HeldLock) -> bool:
    """Believes in a lock until it gives it back."""
    return not self._released


_TARGETS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "base check": (registers, "commit", _commit_unchecked),
    "fence": (Keys, "fence", _fence_in_words),
    "sync before ack": (SimSyncer, "answer", _answer_unsynced),
    "decided check": (lookup, "judge", _newest_is_the_version),
    "refusal": (lookup, "judge", _older_will_do),
    "predecessors": (registers, "commit", _commit_alone),
    "tombstone floor": (registers, "collect", _collect_without_floor),
    "lease check": (HeldLock, "valid", _valid_for_ever),
}
SWITCHES = tuple(_TARGETS)


@contextlib.contextmanager
def off(name: str) -> Iterator[None]:
    """The rule does not hold inside."""
    where, attribute, instead = _TARGETS[name]
    with mock.patch.object(where, attribute, instead):
        yield
