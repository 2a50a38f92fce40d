"""What a coordinator knows of the tops of keys without asking: the base of a write in one round.

Theory of operation. A drive accepts a commit only if its top is not above the base that the commit names. So any
top that was read once is a safe base, however long ago: if somebody wrote since, the drives refuse, the
attempt is dead, and the write goes on as one that asked first (docs/decisions/0011). What is guessed here
decides how long a write takes, never what it does.

    a key this node wrote      the epoch it wrote last
    any other key              none was ever written: the highest floor that was heard of in the set

A drive without a record answers its floor, which other keys' tombstones raise in small steps; the
guess lies above all epochs with that number. Each guess is compared with what turned out to be true,
also where it was not used. Where it was wrong too often lately, as where many nodes overwrite the same keys,
writes ask first until it would have been right again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from node.limits import TOPS_GUESS_SHARE, TOPS_KEPT
from node.protocol import epoch as ep

_WEIGHT = 1 / 16  # of one write in the share of right guesses
_SHARES = 1024


@dataclass(frozen=True, slots=True)
class Guess:
    """A base to try. `kind` is counted by itself: (bucket, whether this node wrote the key before)."""

    base: bytes
    kind: tuple[str, bool]
    likely: bool


class Tops:
    """The memory of one coordinator."""

    def __init__(self) -> None:
        self._written: OrderedDict[bytes, tuple[bytes, bool]] = OrderedDict()
        self._floors: dict[int, bytes] = {}
        self._shares: dict[tuple[str, bool], float] = {}

    def guess(self, set_index: int, bucket: str, key: bytes) -> Guess:
        written = self._written.get(key)
        kind = (bucket, written is not None)
        if written is not None:
            base = written[0]
        else:
            base = self._floors.get(set_index, ep.ZERO)
            if base != ep.ZERO:
                base = ep.make(ep.number(base) + 1, bytes(ep.ATTEMPT_BYTES))
        return Guess(base, kind, self._shares.get(kind, 1.0) >= TOPS_GUESS_SHARE)

    def wrote_object(self, key: bytes) -> bool:
        """Whether the last thing this node wrote there is an object."""
        written = self._written.get(key)
        return written is not None and written[1]

    def judged(self, guess: Guess, right: bool) -> None:
        """What became, or would have become, of a guess."""
        share = self._shares.get(guess.kind)
        if share is None:
            if right:
                return  # as it is taken for without an entry
            if len(self._shares) >= _SHARES:
                self._shares.clear()
            share = 1.0
        self._shares[guess.kind] = share + ((1.0 if right else 0.0) - share) * _WEIGHT

    def floor(self, set_index: int, floor: bytes) -> None:
        """A drive of the set told its floor."""
        if floor > self._floors.get(set_index, ep.ZERO):
            self._floors[set_index] = floor

    def wrote(self, key: bytes, epoch: bytes, *, is_object: bool) -> None:
        self._written[key] = (epoch, is_object)
        self._written.move_to_end(key)
        if len(self._written) > TOPS_KEPT:
            self._written.popitem(last=False)

    def forget(self, key: bytes) -> None:
        """A write of the key ended otherwise than by being acknowledged."""
        self._written.pop(key, None)
