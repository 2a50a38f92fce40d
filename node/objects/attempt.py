"""One commit on its way to the drives of a key, and the votes on it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from locks.messages import decode as decode_lock
from locks.round import Round
from node.errors import OutcomeUnknown
from node.objects import messages
from node.objects.gathering import Gathering
from node.objects.sets import Cluster, Members, SetView, voted
from node.protocol import epoch as ep
from node.protocol import record as records
from node.protocol import verbs
from node.protocol.record import Record


class ShardsMissing(OutcomeUnknown):
    """Too few drives could take a record since `slots` lack shard files that it names.

    `nowhere`: every drive that was asked has answered and none took it, so nobody can ever complete it.
    """

    def __init__(self, message: str, epoch: bytes, slots: tuple[int, ...], nowhere: bool) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.slots = slots
        self.nowhere = nowhere


class Attempt:
    """W drives said yes: accepted. More than n - W said no: refused, dead for ever. Else its fate is open."""

    def __init__(
        self,
        cluster: Cluster,
        view: SetView,
        key: bytes,
        record: Record,
        shards: Mapping[int, bytes] | None,
        staged: Collection[int] | None,
    ) -> None:
        """`shards`, `staged`: as in Writer.write."""
        self.view = view
        self.key = key
        self.record = record
        self.quorum = max(record.k, view.n // 2 + 1)
        self.yes: set[int] = set()
        self.no: set[int] = set()
        self.gone: set[int] = set()  # refused by the bucket's generation
        self.unstaged: set[int] = set()  # they lack shard files that the record names
        self.top = ep.ZERO  # the highest that a vote named
        self.skipped: list[Members] = []  # refused the lock, so their drives were not asked
        self._faults: dict[int, str] = {}
        self._cluster = cluster
        self._encoded = records.encode(record)
        # It stays that of the first message: votes of two views make no quorum together.
        self._view_number = cluster.views[view.index].number
        self._shards = shards
        self._staged = staged
        self._round: Round | None = None
        self._regardless_until: float | None = None  # the lock does not matter any more
        self._asked: dict[str, tuple[Members, tuple[int, ...]]] = {}
        self._gathering: Gathering[str, messages.Replies | bytes] = Gathering()

    def slots_of(self, member: Members) -> tuple[int, ...]:
        """Those of a member's slots that can take the commit."""
        if self._staged is None:
            return member.slots
        return tuple(slot for slot in member.slots if slot in self._staged)

    def send(self, members: Iterable[Members], *, deadline: float) -> None:
        for member in members:
            slots = self.slots_of(member)
            if slots:
                self._send(member, slots, b"", deadline)

    def send_locking(
        self, members: Iterable[Members], lock: bytes, round_: Round, *, deadline: float
    ) -> None:
        """The drives of a node are asked only where its lock server grants `lock`; `round_` hears of it."""
        self._round = round_
        for member in members:
            self._send(member, self.slots_of(member), lock, deadline)

    def send_skipped(self, *, deadline: float) -> None:
        """Asks the drives that were left out because the lock was not granted there, also those of late answers."""
        self._regardless_until = deadline
        skipped, self.skipped = self.skipped, []
        self.send(skipped, deadline=deadline)

    def _send(self, member: Members, slots: tuple[int, ...], lock: bytes, deadline: float) -> None:
        drive_of, shards = self.view.drive_of, self._shards
        drives = tuple((drive_of[s], b"" if shards is None else shards[s]) for s in slots)
        self._asked[member.node] = (member, slots)
        self._gathering.add(
            member.node,
            self._cluster.commit(
                member,
                self.key,
                self._encoded,
                drives,
                lock,
                view_number=self._view_number,
                deadline=deadline,
            ),
        )

    # ---- votes ---------------------------------------------------------------------------------------
    @property
    def asked(self) -> int:
        return sum(len(slots) for _, slots in self._asked.values())

    @property
    def pending(self) -> bool:
        return self._gathering.pending > 0

    def waits_for_any(self, quiet: Callable[[str], bool]) -> bool:
        """Whether a node that is not `quiet` has yet to answer."""
        return any(self._gathering.is_pending(node) and not quiet(node) for node in self._asked)

    @property
    def accepted(self) -> bool:
        return len(self.yes) >= self.quorum

    @property
    def refused(self) -> bool:
        return len(self.no) + len(self.gone) > self.view.n - self.quorum

    @property
    def bucket_gone(self) -> bool:
        return len(self.gone) > self.view.n - self.quorum

    @property
    def untouched(self) -> bool:
        """Every lock server refused, so no drive has heard of it."""
        return len(self.skipped) == sum(bool(slots) for _, slots in self._asked.values())

    @property
    def votes(self) -> int:
        return len(self.yes) + len(self.no) + len(self.gone)

    @property
    def missed(self) -> tuple[int, ...]:
        """Slots that did not say yes."""
        return tuple(slot for slot in range(self.view.n) if slot not in self.yes)

    async def until(self, enough: Callable[[], bool], timeout_s: float) -> None:
        """Waits until `enough()`, asked after each answer, or the time is up, or nothing is to come."""

        def judged() -> bool:
            self._take()
            return enough()

        await self._gathering.until(judged, timeout_s)

    async def decided(self, timeout_s: float) -> None:
        """Waits until it is accepted or refused."""
        await self.until(lambda: self.accepted or self.refused, timeout_s)

    def _take(self) -> None:
        results = self._gathering.results
        while results:
            node = next(iter(results))
            answer = voted(results.pop(node))
            member, slots = self._asked[node]
            if answer.lock and self._round is not None:
                self._round.on_reply(node, decode_lock(answer.lock))  # type: ignore[arg-type]
                if slots and not answer.replies:
                    if self._regardless_until is None:
                        self.skipped.append(member)
                    else:
                        self._send(member, slots, b"", self._regardless_until)
            self._count(slots, answer.replies)
        if self._round is not None:
            for node in self._gathering.errors:
                self._round.on_error(node)

    def _count(self, slots: tuple[int, ...], replies: tuple[bytes, ...]) -> None:
        for slot, data in zip(slots, replies, strict=False):
            reply = verbs.decode_reply(data)
            if isinstance(reply, verbs.Committed):
                chosen = self.yes if reply.accepted else self.gone if reply.bucket_gone else self.no
                chosen.add(slot)
                self.top = max(self.top, reply.top)
            elif isinstance(reply, verbs.Failed):
                if reply.fault == verbs.DriveFault.NOT_FOUND:
                    self.unstaged.add(slot)
                self._faults[slot] = f"{reply.fault} {reply.detail}"

    def unknown(self) -> OutcomeUnknown:
        """What there is to say when it is neither accepted nor refused."""
        message = (
            f"{len(self.yes)} of {self.quorum} drives confirmed the write; it may be visible or not "
            f"({self.first_fault()})"
        )
        if len(self.yes) + len(self.unstaged) < self.quorum:
            return OutcomeUnknown(message)
        answered = len(self.unstaged) + len(self.no) + len(self.gone)
        slots = tuple(sorted(self.unstaged))
        return ShardsMissing(message, self.record.epoch, slots, answered == self.asked)

    def first_fault(self) -> str:
        for fault in self._faults.values():
            return fault
        for node, error in self._gathering.errors.items():
            return f"{node}: {error}"
        return "answers did not come in time"
