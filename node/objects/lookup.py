"""Finding the version of a key: quorum reads, judging, and settling what nobody has decided yet.

Theory of operation. Ask this node's drives and enough others for R answers; ask more nodes when an
answer is late (hedge) or when the judgement needs them. node.protocol.judge says what the answers mean.
An UNKNOWN version is settled here, whoever met it: completed forward under its own epoch and base when
k shards of it were seen, otherwise fenced at R drives or more and judged again, otherwise refused
with 503. Fencing is tried only when the plain answers leave the version short of its quorum, since
a vain fence costs availability. The older version is never served meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from node.errors import DeadlineExceeded, QuorumLost, Undecided
from node.limits import HEDGE_CEILING_S
from node.objects.gathering import Gathering
from node.objects.sets import Cluster, Members, SetView, replies
from node.protocol import epoch as ep
from node.protocol import record as records
from node.protocol import verbs
from node.protocol.judge import Answer, Held, Outcome, Verdict, judge
from node.protocol.record import Kind, Record

_SETTLE_ROUNDS = 6
_ROUNDS_BEFORE_WAITING = 2  # judgements without the late ones before these are waited for again


@dataclass(slots=True)
class Found:
    """What a lookup found. `record` None: absent. Tombstones are given as they are."""

    view: SetView
    key: bytes
    record: Record | None
    encoded: bytes
    answers: dict[int, verbs.State]
    holders: frozenset[int] = frozenset()
    decided: bool = False
    dead: tuple[bytes, ...] = ()

    @property
    def top(self) -> bytes:
        """The highest top of all answers: the base of a write on what was found."""
        return max((state.top for state in self.answers.values()), default=ep.ZERO)

    def shard(self, slot: int) -> bytes:
        """The framed inline shard that a holder sent (b"" when it was not asked for)."""
        assert self.record is not None
        for entry in self.answers[slot].entries:
            if entry.epoch == self.record.epoch:
                return entry.shard
        return b""


class Rebuilder(Protocol):
    """Brings a version's shards to drives that lack them (node.objects.heal)."""

    async def forward(self, found: Found, slots: frozenset[int], *, deadline: float) -> None:
        """Stage or rebuild the shards of an undecided version at `slots` and send its own commit."""
        ...


@dataclass(slots=True)
class _Asked:
    """The answers of one lookup so far."""

    view: SetView
    key: bytes
    states: dict[int, verbs.State] = field(default_factory=dict)
    quorums: dict[bytes, int] = field(default_factory=dict)
    encoded: dict[bytes, bytes] = field(default_factory=dict)
    cleared: dict[int, bytes] = field(default_factory=dict)  # rule 0, see `judge`

    def take(self, member: Members, answer: tuple[bytes, ...]) -> None:
        for slot, data in zip(member.slots, answer, strict=False):
            reply = verbs.decode_reply(data)
            if isinstance(reply, verbs.State):
                self.take_state(slot, reply)

    def take_state(self, slot: int, state: verbs.State) -> None:
        self.states[slot] = state
        self.cleared.pop(slot, None)
        for entry in state.entries:
            if entry.epoch not in self.quorums:
                record = records.decode(entry.record)
                self.quorums[entry.epoch] = max(record.k, self.view.n // 2 + 1)
                self.encoded[entry.epoch] = entry.record

    def clear(self, epoch: bytes) -> list[int]:
        """Rule 0: -> the slots to ask again; what the others said of their floors is answered up to `epoch`."""
        again = [
            slot
            for slot, state in self.states.items()
            if any(entry.epoch <= epoch for entry in state.entries)
        ]
        for slot in self.states.keys() - set(again):
            self.cleared[slot] = max(self.cleared.get(slot, b""), epoch)
        for slot in again:
            del self.states[slot]
        return again

    def judge(self) -> Verdict:
        quorums = self.quorums
        answers = {
            slot: Answer(
                state.top,
                state.floor,
                tuple(Held(e.epoch, e.base, e.decided, quorums[e.epoch]) for e in state.entries),
            )
            for slot, state in self.states.items()
        }
        return judge(answers, n=self.view.n, cleared=self.cleared)


class Lookup:
    """Finds versions."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self.rebuilder: Rebuilder | None = None  # set by compose: heal needs lookup as well
        self.hedged: Callable[[str], None] = lambda cls: None  # counts them; set by compose

    async def find(
        self,
        view: SetView,
        key: bytes,
        *,
        inline: bool = False,
        everywhere: bool = False,
        fence: bytes = b"",
        settle: bool = True,
        deadline: float,
    ) -> Found:
        """The settled version of a key; QuorumLost or Undecided (503) when it cannot be known now.

        `inline`: collect k inline shards with it. `everywhere`: wait for all reachable members.
        `fence`: raise every answering drive's top to this epoch first (a conditional writer's fence).
        """
        asked = _Asked(view, key)
        gathering: Gathering[str, tuple[bytes, ...] | bytes] = Gathering()
        queue = self._cluster.reachable(view)
        if sum(len(m.slots) for m in queue) < view.read_quorum:
            raise QuorumLost("too few drives are reachable to read")
        verb = verbs.encode(verbs.Fence(key, fence) if fence else verbs.Read(key, inline))
        wanted = view.n if everywhere else view.read_quorum
        settled_rounds = late_rounds = 0
        forwarded: set[bytes] = set()
        while True:
            await self._ask(asked, gathering, queue, verb, wanted, deadline)
            if len(asked.states) < view.read_quorum:
                raise QuorumLost(
                    f"{len(asked.states)} of {view.n} drives answered, "
                    f"{view.read_quorum} are needed to read"
                )
            verdict = asked.judge()
            if verdict.outcome is Outcome.VERSION:
                found = self._found(asked, verdict)
                if inline and not self._readable(found):
                    if self._more(queue, gathering) and self._clock.monotonic() < deadline:
                        wanted = view.n
                        continue
                    if not any(found.shard(slot) for slot in found.holders):
                        # They answered a fence, which brings no shards along.
                        await self._ask_slots(
                            asked, sorted(found.holders), verbs.Read(key, True), deadline
                        )
                return found
            if verdict.outcome is Outcome.ABSENT:
                return Found(view, key, None, b"", asked.states, dead=verdict.dead)
            if verdict.outcome is Outcome.STALE:
                again = asked.clear(verdict.epoch)
                await self._ask_slots(asked, again, verbs.Read(key, True), deadline)
                continue
            if self._clock.monotonic() >= deadline:
                raise DeadlineExceeded("the newest write of this key could not be settled in time")
            if queue:
                wanted = view.n
                continue
            if gathering.pending:
                # The late ones may be dark, and then nothing comes from them until their death is known.
                late_rounds += 1
                await self._try_without_the_late(
                    asked, verdict, forwarded, settle and late_rounds > 1, deadline
                )
                wanted = view.read_quorum if late_rounds <= _ROUNDS_BEFORE_WAITING else view.n
                continue
            settled_rounds += 1
            if not settle or settled_rounds > _SETTLE_ROUNDS:
                raise Undecided("the newest write of this key is not decided")
            await self._settle(asked, verdict, forwarded, deadline)

    @staticmethod
    def _more(queue: list[Members], gathering: Gathering[str, tuple[bytes, ...] | bytes]) -> bool:
        return bool(queue) or gathering.pending > 0

    async def _ask(
        self,
        asked: _Asked,
        gathering: Gathering[str, tuple[bytes, ...] | bytes],
        queue: list[Members],
        verb: bytes,
        wanted: int,
        deadline: float,
    ) -> None:
        """Until `wanted` drives answered or nobody is left; a late answer makes it ask the others."""
        view = asked.view

        def promised() -> int:
            waiting = sum(len(m.slots) for m in view.members if gathering.is_pending(m.node))
            return len(asked.states) + waiting

        def enough() -> bool:
            while gathering.results:
                node = next(iter(gathering.results))
                asked.take(view.by_node[node], replies(gathering.results.pop(node)))
            return len(asked.states) >= wanted

        while not enough():
            while queue and promised() < wanted:
                self._send(gathering, view, queue.pop(0), verb, deadline)
            if not gathering.pending:
                return
            left = deadline - self._clock.monotonic()
            bound = min(left, HEDGE_CEILING_S) if queue else left
            # The quorum is enough to judge; the rest of `wanted` gets the adaptive bound only.
            if len(asked.states) >= view.read_quorum:
                bound = min(left, HEDGE_CEILING_S)
            if await gathering.until(enough, bound):
                return
            if queue and gathering.pending:
                self.hedged("lookup")
                self._send(gathering, view, queue.pop(0), verb, deadline)
            elif left <= bound or len(asked.states) >= view.read_quorum:
                return

    def _send(
        self,
        gathering: Gathering[str, tuple[bytes, ...] | bytes],
        view: SetView,
        member: Members,
        verb: bytes,
        deadline: float,
    ) -> None:
        items = tuple((drive, verb) for drive in member.drives)
        gathering.add(member.node, self._cluster.verbs_at(member, items, deadline=deadline))

    def _found(self, asked: _Asked, verdict: Verdict) -> Found:
        encoded = asked.encoded[verdict.epoch]
        return Found(
            asked.view,
            asked.key,
            records.decode(encoded),
            encoded,
            asked.states,
            verdict.holders,
            verdict.decided,
            verdict.dead,
        )

    @staticmethod
    def _readable(found: Found) -> bool:
        record = found.record
        if record is None or record.kind != Kind.OBJECT or not record.inline or not record.size:
            return True
        return sum(1 for slot in found.holders if found.shard(slot)) >= record.k

    async def _ask_slots(
        self, asked: _Asked, slots: list[int], verb: verbs.Verb, deadline: float
    ) -> None:
        view, encoded = asked.view, verbs.encode(verb)
        gathering: Gathering[str, tuple[bytes, ...] | bytes] = Gathering()
        chosen: dict[str, tuple[int, ...]] = {}
        for member in self._cluster.reachable(view):
            mine = tuple(slot for slot in member.slots if slot in slots)
            if mine:
                chosen[member.node] = mine
                items = tuple((view.drive_of[slot], encoded) for slot in mine)
                gathering.add(member.node, self._cluster.verbs_at(member, items, deadline=deadline))
        await gathering.until(lambda: gathering.pending == 0, deadline - self._clock.monotonic())
        for node, answer in gathering.results.items():
            for slot, data in zip(chosen[node], replies(answer), strict=False):
                reply = verbs.decode_reply(data)
                if isinstance(reply, verbs.State):
                    asked.take_state(slot, reply)

    async def _try_without_the_late(
        self,
        asked: _Asked,
        verdict: Verdict,
        forwarded: set[bytes],
        settle: bool,
        deadline: float,
    ) -> None:
        """Who answered is asked once more, since a writer may have been half-way; then a step of settling."""
        if settle:
            with contextlib.suppress(Undecided):  # the late ones may still make the difference
                await self._settle(asked, verdict, forwarded, deadline)
                return
        await self._ask_slots(asked, sorted(asked.states), verbs.Read(asked.key, True), deadline)

    async def _settle(
        self, asked: _Asked, verdict: Verdict, forwarded: set[bytes], deadline: float
    ) -> None:
        """One step towards a decision on `verdict.epoch`; the caller judges again. Undecided if none is possible.

        `forwarded`: epochs that were sent on already. Drives that refused one for another reason than its
        base (a bucket that is gone, no space) would refuse it again; then only a fence settles it.
        """
        record = records.decode(asked.encoded[verdict.epoch])
        quorum = asked.quorums[verdict.epoch]
        needed = record.k if record.kind == Kind.OBJECT and record.size else 1
        held = len(verdict.holders)
        if (
            held >= needed
            and held + verdict.acceptors >= quorum
            and self.rebuilder is not None
            and verdict.epoch not in forwarded
        ):
            forwarded.add(verdict.epoch)
            if record.inline and record.size and not self._readable(self._found(asked, verdict)):
                holders = sorted(verdict.holders)
                await self._ask_slots(asked, holders, verbs.Read(asked.key, True), deadline)
            acceptors = frozenset(
                slot
                for slot, state in asked.states.items()
                if slot not in verdict.holders and state.top <= record.base
            )
            found = self._found(asked, verdict)
            with contextlib.suppress(QuorumLost):  # too few of its shards are whole: fence it next
                await self.rebuilder.forward(found, acceptors, deadline=deadline)
            await self._ask_slots(
                asked, sorted(asked.states), verbs.Read(asked.key, True), deadline
            )
            return
        if held + verdict.unanswered < quorum and len(asked.states) >= asked.view.read_quorum:
            slots = sorted(asked.states)
            asked.states.clear()
            await self._ask_slots(asked, slots, verbs.Fence(asked.key, verdict.epoch), deadline)
            return
        raise Undecided("the newest write of this key is not decided")
