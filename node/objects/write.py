"""The coordinator's side of the commit protocol: lock and read tops, commit, acknowledge, finish.

Theory of operation. One round takes the key's lock and reads the tops (PREPARE), one commits (COMMIT); then
the client is answered, and one message that nobody waits for says "decided" and releases the lock
(FINISH). W drives said yes: committed. More than n - W said no: this attempt is dead for ever, read
again and try anew. Anything else when the answers are in, or the deadline is up: the outcome is
unknown, 503, and no new attempt for this request. The lock only orders writers; safety comes from
the base check at the drives, so a lock that was lost in the middle harms nothing.

An acknowledgement prefers margin: with every node alive it waits, for a small bounded time, until one
node's worth of drives more than k have the write, so that any one node may go dark at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from locks.driver import HeldLock, LockService
from locks.errors import LockError, LockTimeout
from locks.messages import Acquire, LockMode, Owner, Release
from locks.messages import decode as decode_lock
from locks.messages import encode as encode_lock
from locks.round import LossCause, Round, RoundState
from node.errors import (
    LockContended,
    NoSuchBucket,
    OutcomeUnknown,
    QuorumLost,
)
from node.limits import (
    COMMIT_ATTEMPTS,
    FINISH_PATIENCE_S,
    LOCK_ATTEMPT_S,
    LOCK_LATE_S,
    STRAGGLER_BOUND_S,
    UNLOCK_PATIENCE_S,
)
from node.objects import messages
from node.objects.gathering import Gathering
from node.objects.lookup import Found, Lookup
from node.objects.sets import SYSTEM_BUCKET, Cluster, Members, SetView, prepared, replies
from node.protocol import epoch as ep
from node.protocol import record as records
from node.protocol import verbs
from node.protocol.record import Kind, Record

Make = Callable[[bytes, bytes], Record]  # (epoch, base) -> the record to commit
Condition = Callable[[Record | None], None]  # raises ClientError; None: absent or deleted


class WriteObserver(Protocol):
    """What is counted about writes."""

    def stripe_margin(self, set_index: int, margin: int) -> None: ...

    def straggler(self, cls: str) -> None:
        """A write was acknowledged while some of its drives had not answered yet."""
        ...

    def lock_timeout(self, operation: str) -> None:
        """No quorum for a key's lock; `operation` is a class of lock_class."""
        ...


@dataclass(slots=True)
class _Locked:
    """A key whose lock is held and whose tops were read."""

    resource: str
    release: (
        bytes  # encoded Release, b"" when `held` is released instead, or nothing is held any more
    )
    held: HeldLock | None = None
    states: dict[int, verbs.State] = field(default_factory=dict)

    @property
    def is_held(self) -> bool:
        return bool(self.release) or self.held is not None

    @property
    def top(self) -> bytes:
        return max((state.top for state in self.states.values()), default=ep.ZERO)


@dataclass(slots=True)
class _Votes:
    """The answers to one commit, by slot."""

    yes: set[int] = field(default_factory=set)
    no: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)  # refused by the bucket's generation
    faults: dict[int, str] = field(default_factory=dict)

    def take(self, slots: Collection[int], answer: tuple[bytes, ...]) -> None:
        for slot, data in zip(slots, answer, strict=False):
            reply = verbs.decode_reply(data)
            if isinstance(reply, verbs.Committed):
                chosen = self.yes if reply.accepted else self.gone if reply.bucket_gone else self.no
                chosen.add(slot)
            elif isinstance(reply, verbs.Failed):
                self.faults[slot] = f"{reply.fault} {reply.detail}"


class Writer:
    """Commits records."""

    def __init__(
        self,
        cluster: Cluster,
        lookup: Lookup,
        locks: LockService,
        attempts: ep.Attempts,
        incarnation: int,
        observer: WriteObserver,
    ) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._lookup = lookup
        self._locks = locks
        self._attempts = attempts
        self._incarnation = incarnation
        self._observer = observer
        self._owner_count = 0
        self._lingering: dict[str, _Locked] = {}  # acknowledged; the unlock waits for late votes

    async def write(
        self,
        view: SetView,
        name: tuple[str, str],
        make: Make,
        *,
        key: bytes = b"",
        shards: Mapping[int, bytes] | None = None,
        staged: Collection[int] | None = None,
        condition: Condition | None = None,
        skip_absent: bool = False,
        deadline: float,
    ) -> Record | None:
        """Commits one record for the key `name` (bucket, key); -> the record.

        `shards`: framed inline shards by slot; `staged`: the slots whose files are staged (None: all slots may
        commit). `skip_absent`: where nothing is held there is nothing to do (a delete) -> None.
        """
        key = key or records.catalog_key(*name)
        resource = f"object:{name[0]}/{name[1]}"
        locked = await self._lock(view, key, resource, lock_class(name), deadline)
        finished = False
        try:
            if skip_absent and not any(state.entries for state in locked.states.values()):
                return None
            for _attempt in range(COMMIT_ATTEMPTS):
                if condition is not None:
                    base = await self._judge_condition(view, key, condition, deadline)
                else:
                    base = locked.top
                epoch = ep.make(ep.number(base) + 1, self._attempts.next())
                record = make(epoch, base)
                committed = await self._commit(view, key, record, locked, shards, staged, deadline)
                if committed:
                    finished = True
                    return record
                locked.states = await self._read_tops(view, key, deadline)
            raise LockContended("the key is written by others too fast")
        finally:
            if not finished:
                self._finish(view, key, b"", (), locked, deadline)

    # ---- lock and tops --------------------------------------------------------------------------
    async def _lock(
        self, view: SetView, key: bytes, resource: str, named: str, deadline: float
    ) -> _Locked:
        if self._lingering and (before := self._lingering.get(resource)) is not None:
            self._unlock(before)  # it travels ahead of what follows
        self._owner_count += 1
        owner = Owner(self._cluster.me, self._incarnation, self._owner_count)
        now = self._clock.monotonic()
        bound = min(LOCK_ATTEMPT_S, deadline - now)
        request = encode_lock(Acquire((resource,), LockMode.WRITE, owner, bound))
        release = encode_lock(Release((resource,), owner))
        round_ = Round(self._cluster.nodes, LockMode.WRITE)
        gathering: Gathering[str, messages.Prepared | bytes] = Gathering()
        states: dict[int, verbs.State] = {}
        members = self._lock_members(view, round_)
        for member in members:
            gathering.add(
                member.node,
                self._cluster.prepare(member, key, request, deadline=now + bound),
            )

        def enough() -> bool:
            self._take_prepared(view, gathering, round_, states)
            return round_.state is RoundState.LOST or (
                round_.state is RoundState.WON and len(states) >= view.read_quorum
            )

        try:
            won = await gathering.until(lambda: enough() or round_.contended, bound)
            if won and round_.state is RoundState.PENDING:
                # Others want it, too. Who is well says at once what it thinks of that; to wait for
                # one that is dark would cost both of us the whole attempt.
                won = await gathering.until(enough, min(bound, LOCK_LATE_S))
        except asyncio.CancelledError:
            self._release(round_.close(), release, deadline)
            raise
        if won and round_.state is RoundState.WON:
            return _Locked(resource, release, None, states)
        cause = round_.cause
        lost_to_others = round_.state is RoundState.LOST and cause in (
            LossCause.TAKEN,
            LossCause.DEADLOCK,
        )
        self._release(round_.close(), release, deadline)
        drives = sum(len(member.drives) for member in members)
        reachable = len(members) >= round_.quorum and drives >= view.read_quorum
        if not lost_to_others and not reachable:
            self._observer.lock_timeout(named)
            raise QuorumLost(
                f"no quorum for the lock and the drives of this key: "
                f"{len(round_.granted)} lock servers and {len(states)} drives answered"
            )
        return await self._lock_queued(view, key, resource, named, deadline)

    async def _lock_queued(
        self, view: SetView, key: bytes, resource: str, named: str, deadline: float
    ) -> _Locked:
        """Somebody else holds the lock, or the attempt timed out: in line, with the retries of the policy."""
        try:
            held = await self._locks.acquire((resource,), LockMode.WRITE, deadline, named)
        except LockTimeout as error:
            raise QuorumLost("no quorum of lock servers answered in time") from error
        except LockError as error:
            raise LockContended("the key is locked by other writers") from error
        try:
            return _Locked(resource, b"", held, await self._read_tops(view, key, deadline))
        except BaseException:
            held.release()
            raise

    def _lock_members(self, view: SetView, round_: Round) -> list[Members]:
        """Every reachable lock server, with its drives of the set; the dead ones are counted as failed."""
        asked = set(round_.to_ask())
        reachable = {self._cluster.me, *self._cluster.membership.alive()}
        found = []
        for node in self._cluster.nodes:
            if node in reachable and node in asked:
                found.append(view.by_node.get(node) or Members(node, (), ()))
            else:
                round_.on_error(node)
        return found

    def _take_prepared(
        self,
        view: SetView,
        gathering: Gathering[str, messages.Prepared | bytes],
        round_: Round,
        states: dict[int, verbs.State],
    ) -> None:
        while gathering.results:
            node = next(iter(gathering.results))
            answer = prepared(gathering.results.pop(node))
            if answer.lock:
                round_.on_reply(node, decode_lock(answer.lock))  # type: ignore[arg-type]
            member = view.by_node.get(node)
            if member is not None:
                _take_states(states, member, answer.states)
        for node in gathering.errors:
            round_.on_error(node)

    def _release(self, servers: tuple[str, ...], release: bytes, deadline: float) -> None:
        members = [Members(node, (), ()) for node in servers]
        self._cluster.finish(members, b"", b"", (), release, deadline=deadline)

    async def _read_tops(
        self, view: SetView, key: bytes, deadline: float
    ) -> dict[int, verbs.State]:
        gathering: Gathering[str, messages.Prepared | bytes] = Gathering()
        states: dict[int, verbs.State] = {}
        for member in self._cluster.reachable(view):
            gathering.add(member.node, self._cluster.prepare(member, key, b"", deadline=deadline))

        def enough() -> bool:
            while gathering.results:
                node = next(iter(gathering.results))
                answer = prepared(gathering.results.pop(node))
                _take_states(states, view.by_node[node], answer.states)
            return len(states) >= view.read_quorum

        if not await gathering.until(enough, deadline - self._clock.monotonic()):
            raise QuorumLost("too few drives answered to write")
        return states

    async def _judge_condition(
        self, view: SetView, key: bytes, condition: Condition, deadline: float
    ) -> bytes:
        """Judges on a settled version; -> the base. Fences first where the base is above that version."""
        fence = b""
        for _attempt in range(COMMIT_ATTEMPTS):
            found: Found = await self._lookup.find(view, key, fence=fence, deadline=deadline)
            record = found.record
            condition(record if record is not None and record.kind == Kind.OBJECT else None)
            judged = record.epoch if record is not None else ep.ZERO
            base = found.top
            agreeing = sum(state.top >= base for state in found.answers.values())
            if base == judged or agreeing >= view.read_quorum:
                return base
            fence = base
        raise LockContended("the key is written by others too fast")

    # ---- commit and after -----------------------------------------------------------------------
    async def _commit(
        self,
        view: SetView,
        key: bytes,
        record: Record,
        locked: _Locked,
        shards: Mapping[int, bytes] | None,
        staged: Collection[int] | None,
        deadline: float,
    ) -> bool:
        """True: acknowledged. False: dead for ever, try anew. Raises when the outcome is unknown."""
        quorum = max(record.k, view.n // 2 + 1)
        encoded = records.encode(record)
        targets: dict[str, tuple[int, ...]] = {}
        gathering: Gathering[str, tuple[bytes, ...] | bytes] = Gathering()
        reachable = self._cluster.reachable(view)
        for member in reachable:
            slots = tuple(s for s in member.slots if staged is None or s in staged)
            if slots:
                targets[member.node] = slots
        asked = sum(map(len, targets.values()))
        if asked < quorum:
            raise QuorumLost(f"{asked} drives can take the write, {quorum} are needed")
        for member in reachable:
            slots = targets.get(member.node, ())
            if slots:
                drives = tuple(
                    (view.drive_of[s], shards[s] if shards is not None else b"") for s in slots
                )
                gathering.add(
                    member.node,
                    self._cluster.commit(member, key, encoded, drives, deadline=deadline),
                )
        votes = _Votes()

        def take() -> None:
            while gathering.results:
                node = next(iter(gathering.results))
                votes.take(targets[node], replies(gathering.results.pop(node)))

        def judged() -> bool:
            take()
            refused = len(votes.no) + len(votes.gone)
            return len(votes.yes) >= quorum or refused > view.n - quorum

        await gathering.until(judged, deadline - self._clock.monotonic())
        if len(votes.yes) >= quorum:
            wanted = min(record.k + view.drives_per_node, asked)
            full = len(reachable) == len(view.members)
            waited_for = [n for n in targets if not self._cluster.is_quiet(n)]

            def comfortable() -> bool:
                take()
                return full and len(votes.yes) >= wanted

            def enough() -> bool:
                return comfortable() or not any(map(gathering.is_pending, waited_for))

            await gathering.until(enough, STRAGGLER_BOUND_S)
            if gathering.pending and not comfortable():
                # Somebody keeps silent: the client's next write of this key must not wait for that.
                self._unlock(locked)
            self._observer.stripe_margin(view.index, len(votes.yes) - record.k)
            if gathering.pending:
                self._observer.straggler("commit")
                self._cluster.spawn(
                    self._finish_later(view, key, record.epoch, gathering, take, votes, locked)
                )
            else:
                missed = tuple(s for s in range(view.n) if s not in votes.yes)
                self._finish(view, key, record.epoch, missed, locked, deadline)
            return True
        if len(votes.gone) > view.n - quorum:
            raise NoSuchBucket()
        if len(votes.no) + len(votes.gone) > view.n - quorum:
            return False
        raise OutcomeUnknown(
            f"{len(votes.yes)} of {quorum} drives confirmed the write; it may be visible or not "
            f"({_first_fault(votes, gathering)})"
        )

    async def _finish_later(
        self,
        view: SetView,
        key: bytes,
        epoch: bytes,
        gathering: Gathering[str, tuple[bytes, ...] | bytes],
        take: Callable[[], None],
        votes: _Votes,
        locked: _Locked,
    ) -> None:
        """A node that keeps silent holds up the word "decided", which names who missed the write, not the lock."""

        def all_in() -> bool:
            take()
            return gathering.pending == 0

        if locked.is_held:
            self._lingering[locked.resource] = locked
            if not await gathering.until(all_in, UNLOCK_PATIENCE_S):
                self._unlock(locked)
        await gathering.until(all_in, FINISH_PATIENCE_S)
        missed = tuple(s for s in range(view.n) if s not in votes.yes)
        deadline = self._clock.monotonic() + FINISH_PATIENCE_S
        self._finish(view, key, epoch, missed, locked, deadline)

    def _finish(
        self,
        view: SetView,
        key: bytes,
        epoch: bytes,
        missed: tuple[int, ...],
        locked: _Locked,
        deadline: float,
    ) -> None:
        deadline = max(deadline, self._clock.monotonic() + FINISH_PATIENCE_S)
        release = locked.release
        if epoch or release:
            members = [view.by_node.get(n) or Members(n, (), ()) for n in self._not_dead()]
            self._cluster.finish(members, key, epoch, missed, release, deadline=deadline)
        self._let_go(locked)

    def _unlock(self, locked: _Locked) -> None:
        """The lock alone goes; `_finish` has more to say later."""
        if locked.release:
            deadline = self._clock.monotonic() + FINISH_PATIENCE_S
            self._release(self._not_dead(), locked.release, deadline)
        self._let_go(locked)

    def _let_go(self, locked: _Locked) -> None:
        locked.release = b""
        if locked.held is not None:
            locked.held.release()
            locked.held = None
        if self._lingering.get(locked.resource) is locked:
            del self._lingering[locked.resource]

    def _not_dead(self) -> tuple[str, ...]:
        membership, me = self._cluster.membership, self._cluster.me
        return tuple(n for n in self._cluster.nodes if n == me or not membership.is_dead(n))


def lock_class(name: tuple[str, str]) -> str:
    """The class that metrics count a key's lock under: object, bucket, iam or config; never the key itself."""
    bucket, key = name
    if bucket != SYSTEM_BUCKET or key.startswith(("multipart/", "part/")):
        return "object"
    if key.startswith("config/iam/"):
        return "iam"
    return "bucket" if key.startswith("buckets/") else "config"


def _take_states(
    states: dict[int, verbs.State], member: Members, answers: tuple[bytes, ...]
) -> None:
    for slot, data in zip(member.slots, answers, strict=False):
        reply = verbs.decode_reply(data)
        if isinstance(reply, verbs.State):
            states[slot] = reply


def _first_fault(votes: _Votes, gathering: Gathering[str, tuple[bytes, ...] | bytes]) -> str:
    for fault in votes.faults.values():
        return fault
    for node, error in gathering.errors.items():
        return f"{node}: {error}"
    return "answers did not come in time"
