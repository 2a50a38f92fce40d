"""node.protocol.register and judge against the checked model: the same state, answers and verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from node.protocol import epoch as ep
from node.protocol import register as reg
from node.protocol.judge import Answer, Held, Outcome, judge
from node.protocol.register import Entry, Register, Repaired
from tests.model.commit_model import INIT, YES, Model

ATTEMPTS = 6


def ours(epoch: int) -> bytes:
    """The model's epoch (number * 16 + attempt) as the product's bytes."""
    return ep.make(epoch >> 4, (epoch & 15).to_bytes(16, "big")) if epoch else ep.ZERO


@dataclass
class Pair:
    """One drive, twice."""

    model: Model
    top: int = 0
    floor: int = 0
    recs: tuple[int, ...] = ()  # epoch * 2 + decided
    register: Register = field(default_factory=Register)
    our_floor: bytes = ep.ZERO

    def commit(self, epoch: int, base: int) -> None:
        self.top, self.recs, answer = self.model.accept(self.top, self.recs, epoch, base)
        entry = Entry(ours(epoch), False, (b"", b""))
        self.register, yes = reg.commit(self.register, self.our_floor, ours(base), entry)
        assert yes == (answer == YES)

    def fence(self, epoch: int) -> None:
        self.top = max(self.top, epoch)
        self.register = reg.fence(self.register, ours(epoch))

    def decided(self, epoch: int) -> None:
        if any(x >> 1 == epoch for x in self.recs):
            self.recs = self.model.decide(self.recs, epoch)
        before = self.register
        self.register, gone = reg.decided(self.register, ours(epoch))
        assert {e.epoch for e in before.entries} == {
            *(e.epoch for e in self.register.entries),
            *(e.epoch for e in gone),
        }

    def discard(self, epoch: int) -> None:
        if epoch * 2 in self.recs:
            self.top, self.recs = self.model.discard(self.top, self.recs, epoch)
            if not self.recs:
                self.top = max(self.top, self.floor)
            self.register, gone = reg.discard(self.register, ours(epoch))
            assert [e.epoch for e in gone] == [ours(epoch)]

    def repair(self, epoch: int) -> None:
        refused = epoch <= self.floor and not any(x >> 1 == epoch for x in self.recs)
        newer = any(x & 1 and x >> 1 > epoch for x in self.recs)
        if not refused and not newer:
            if any(x >> 1 == epoch for x in self.recs):
                self.recs = self.model.decide(self.recs, epoch)
            else:
                self.top = max(self.top, epoch)
                recs = sorted((*self.recs, epoch * 2 + 1))
                self.recs = tuple(x for x in recs if x >> 1 >= epoch)
        entry = Entry(ours(epoch), True, (b"", b""))
        self.register, _, verdict = reg.repair(self.register, self.our_floor, entry)
        assert (verdict is Repaired.BELOW_FLOOR) == refused
        assert (verdict is Repaired.SUPERSEDED) == (newer and not refused)

    def collect(self, epoch: int) -> None:
        alone = self.recs == (epoch * 2 + 1,)
        if alone:
            # The promise goes into the floor.
            self.floor = max(self.floor, self.top)
            self.recs, self.top = (), self.floor
        after, self.our_floor = reg.collect(self.register, self.our_floor, ours(epoch))
        assert (after is None) == alone
        self.register = Register() if after is None else after

    def raise_floor(self, epoch: int) -> None:
        """Another key's tombstone goes."""
        self.floor = max(self.floor, epoch)
        self.our_floor = max(self.our_floor, ours(epoch))
        if not self.recs:
            self.top = max(self.top, self.floor)

    def check(self) -> None:
        assert reg.effective_top(self.register, self.our_floor) == ours(self.top)
        assert [(e.epoch, e.decided) for e in self.register.entries] == [
            (ours(x >> 1), bool(x & 1)) for x in self.recs
        ]
        assert self.our_floor == ours(self.floor)


class Cluster:
    """n drives and the attempts that were ever made: epoch, base and value as the model keeps them."""

    def __init__(self, n: int, k: int) -> None:
        self.model = Model(n=n, k=k, w=n // 2 + 1, ops=("put",) * ATTEMPTS)
        self.n = n
        self.drives = [Pair(self.model) for _ in range(n)]
        self.attempts = [(INIT, 0, 1)]

    def attempt(self, of: int, deletes: bool) -> None:
        if len(self.attempts) <= ATTEMPTS:
            base = self.attempts[of % len(self.attempts)][0]
            number = len(self.attempts)
            epoch = ((base >> 4) + 1) * 16 + number
            self.attempts.append((epoch, base, 0 if deletes else 1 + number))

    def compare(self, chosen: list[int], cleared: dict[int, int]) -> None:
        """What a set of answers says, by both. `cleared`: by drive, up to where its floor is another key's."""
        snaps = [
            (d.top, d.recs, d.floor, cleared.get(i, 0))
            for i, d in ((i, self.drives[i]) for i in chosen)
        ]
        attempts = tuple(self.attempts) + ((0, 0, 0),) * (16 - len(self.attempts))
        want = self.model.resolve(snaps, attempts)
        bases = {epoch: base for epoch, base, _ in self.attempts}
        answers = {
            i: Answer(
                ours(d.top),
                ours(d.floor),
                tuple(
                    Held(ours(x >> 1), ours(bases[x >> 1]), bool(x & 1), self.model.w)
                    for x in d.recs
                ),
            )
            for i, d in ((i, self.drives[i]) for i in chosen)
        }
        got = judge(answers, n=self.n, cleared={i: ours(e) for i, e in cleared.items()})
        what, epoch, held, last = want
        if what == "serve":
            outcome = Outcome.VERSION if epoch else Outcome.ABSENT
            assert (got.outcome, got.epoch) == (outcome, ours(epoch) if epoch else b"")
            assert got.dead == tuple(map(ours, last))
            if epoch:
                assert len(got.holders) == held
                flagged = any(epoch * 2 + 1 in recs for _, recs, *_ in snaps)
                assert got.decided == flagged
        else:
            outcome = Outcome.UNKNOWN if what == "need" else Outcome.STALE
            assert (got.outcome, got.epoch) == (outcome, ours(epoch))
            if what == "need":
                assert (len(got.holders), got.acceptors) == (held, last)
                assert got.unanswered == self.n - len(chosen)


_message = st.tuples(
    st.sampled_from(
        (
            "commit",
            "commit",
            "commit",
            "fence",
            "decided",
            "discard",
            "repair",
            "collect",
            "bury",
            "raise_floor",
        )
    ),
    st.integers(0, 9),
    st.integers(0, ATTEMPTS),
)
_step = st.one_of(
    st.tuples(st.just("attempt"), st.integers(0, ATTEMPTS), st.booleans()), _message, _message
)


def _cleared(n: int, cluster: Cluster) -> st.SearchStrategy[dict[int, int]]:
    epochs = [epoch for epoch, _, _ in cluster.attempts]
    return st.dictionaries(st.integers(0, n - 1), st.sampled_from(epochs), max_size=2)


@settings(max_examples=300, deadline=None)
@given(
    n=st.integers(3, 6),
    k=st.integers(1, 3),
    steps=st.lists(_step, max_size=60),
    data=st.data(),
)
def test_drives_and_verdicts_agree_with_the_model(
    n: int, k: int, steps: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    cluster = Cluster(n, min(k, n // 2 + 1))
    for what, first, second in steps:
        if what == "attempt":
            cluster.attempt(first, bool(second))
            continue
        drive = cluster.drives[first % n]
        epoch, base, value = cluster.attempts[second % len(cluster.attempts)]
        if what == "commit":
            drive.commit(epoch, base)
        elif what == "bury":
            if value == 0:
                drive.repair(epoch)
                drive.collect(epoch)
        elif what != "collect":
            getattr(drive, what)(epoch)
        elif value == 0:
            drive.collect(epoch)
        drive.check()
        size = data.draw(st.integers(n - n // 2, n))
        chosen = sorted(data.draw(st.permutations(range(n)))[:size])
        cluster.compare(chosen, data.draw(_cleared(n, cluster)))


@settings(max_examples=700, deadline=None)
@given(n=st.integers(2, 6), data=st.data())
def test_verdicts_agree_on_any_answers(n: int, data: st.DataObject) -> None:
    """Not only on states that a few steps reach: any answers that a drive could give one by one."""
    cluster = Cluster(n, 1)
    for _ in range(data.draw(st.integers(1, ATTEMPTS))):
        cluster.attempt(data.draw(st.integers(0, ATTEMPTS)), data.draw(st.booleans()))
    epochs = sorted(epoch for epoch, _, _ in cluster.attempts)
    for drive in cluster.drives:
        drive.floor = data.draw(st.sampled_from([0, 0, *epochs]))
        above = [epoch for epoch in epochs if epoch > drive.floor]
        held = sorted(data.draw(st.sets(st.sampled_from(above), max_size=3))) if above else []
        decided = data.draw(st.booleans())  # of the oldest; a newer decided one would have ended it
        drive.recs = tuple(epoch * 2 + (decided and not i) for i, epoch in enumerate(held))
        drive.top = max(drive.floor, *held, data.draw(st.sampled_from([0, 0, *epochs])))
    for size in range(n - n // 2, n + 1):
        cluster.compare(list(range(size)), data.draw(_cleared(n, cluster)))
