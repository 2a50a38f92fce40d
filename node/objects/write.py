"""The coordinator's side of the commit protocol: lock and read tops, commit, acknowledge, finish.

Theory of operation. One round takes the key's lock and reads the tops (PREPARE), one commits (COMMIT); then
the client is answered, and one message that nobody waits for says "decided" and releases the lock
(FINISH). W drives said yes: committed. More than n - W said no: this attempt is dead for ever, read
again and try anew. Anything else when the answers are in, or the deadline is up: the outcome is
unknown, 503, and no new attempt for this request. The lock only orders writers; safety comes from
the base check at the drives, so a lock that was lost in the middle harms nothing.

Where the base can be guessed (node.objects.tops) a write takes one round: COMMIT carries the lock request,
and a node asks its drives only when its lock server has granted. A wrong guess is refused by the
drives, and their answers name the tops that the next attempt needs. Where others hold the lock, the
write stands in line for it, then asks the drives that were left out: they have by then accepted the holder's
write, so the attempt ends one way or the other before a new one begins.

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
from node.objects.attempt import Attempt
from node.objects.gathering import Gathering
from node.objects.lookup import Found, Lookup
from node.objects.sets import SYSTEM_BUCKET, Cluster, Members, SetView, prepared
from node.objects.tops import Guess, Tops
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
    """A key whose lock is held, and what is known of its tops."""

    resource: str
    release: (
        bytes  # encoded Release, b"" when `held` is released instead, or nothing is held any more
    )
    held: HeldLock | None = None
    states: dict[int, verbs.State] = field(default_factory=dict)
    top: bytes = ep.ZERO

    @property
    def is_held(self) -> bool:
        return bool(self.release) or self.held is not None


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
        self._tops = Tops()
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
        attempt: Attempt | None = None
        guess = self._guess(view, name, key, condition, skip_absent)
        if guess is not None and guess.likely:
            attempt = self._attempt(view, key, make, guess.base, shards, staged)
            locked = await self._at_once(attempt, name, deadline)
            if locked is None:
                attempt = None
            else:
                self._tops.judged(guess, not attempt.refused)
        else:
            locked = None
        if locked is None:
            tops = condition is None or skip_absent
            locked = await self._lock(view, key, name, tops, deadline)
            if guess is not None:
                self._tops.judged(guess, locked.top <= guess.base)
        finished = False
        try:
            for _attempt in range(COMMIT_ATTEMPTS):
                if attempt is None:
                    if skip_absent and not any(state.entries for state in locked.states.values()):
                        return None
                    base = locked.top
                    if condition is not None:
                        base = await self._judge_condition(view, key, condition, deadline)
                    attempt = self._attempt(view, key, make, base, shards, staged)
                    self._send(attempt, deadline)
                if await self._concluded(attempt, locked, deadline):
                    finished = True
                    record = attempt.record
                    self._tops.wrote(key, record.epoch, is_object=record.kind == Kind.OBJECT)
                    return record
                if skip_absent or attempt.votes < view.read_quorum:
                    await self._read_tops(view, key, locked, deadline)
                else:
                    locked.top = max(locked.top, attempt.top)  # the refusals said what a read would
                attempt = None
            raise LockContended("the key is written by others too fast")
        finally:
            if not finished:
                self._tops.forget(key)
                self._finish(view, key, b"", (), locked, deadline)

    def _guess(
        self,
        view: SetView,
        name: tuple[str, str],
        key: bytes,
        condition: Condition | None,
        skip_absent: bool,
    ) -> Guess | None:
        """None for writes that must read in any case. Documents of the system number their versions by epoch."""
        if condition is not None or name[0] == SYSTEM_BUCKET:
            return None
        if skip_absent and not self._tops.wrote_object(key):
            return None
        return self._tops.guess(view.index, name[0], key)

    def _attempt(
        self,
        view: SetView,
        key: bytes,
        make: Make,
        base: bytes,
        shards: Mapping[int, bytes] | None,
        staged: Collection[int] | None,
    ) -> Attempt:
        epoch = ep.make(ep.number(base) + 1, self._attempts.next())
        return Attempt(self._cluster, view, key, make(epoch, base), shards, staged)

    # ---- lock and commit in one round ------------------------------------------------------------
    async def _at_once(
        self, attempt: Attempt, name: tuple[str, str], deadline: float
    ) -> _Locked | None:
        """Sends the attempt with the lock request. None: it reached no drive, the write begins anew.

        Else it was sent to all of its drives, or is dead, or ended unknown. OutcomeUnknown when the lock cannot
        be had where others hold it: what some drives have taken may still be completed by a reader.
        """
        view = attempt.view
        round_ = Round(self._cluster.nodes, LockMode.WRITE)
        members = self._lock_members(view, round_)
        able = sum(len(attempt.slots_of(member)) for member in members)
        if len(members) < round_.quorum or able < attempt.quorum:
            return None
        resource = _resource(name)
        acquire, release = self._lock_requests(resource, deadline)
        attempt.send_locking(members, acquire, round_, deadline=deadline)

        def enough() -> bool:
            if attempt.refused:  # the next attempt needs the lock
                return round_.state is not RoundState.PENDING
            return attempt.accepted or round_.state is RoundState.LOST

        try:
            left = deadline - self._clock.monotonic()
            await attempt.until(lambda: enough() or round_.contended, left)
            if not enough() and attempt.pending:
                await attempt.until(enough, min(left, LOCK_LATE_S))  # as in _lock
        except asyncio.CancelledError:
            self._release(round_.close(), release, deadline)
            raise
        if attempt.accepted or round_.state is RoundState.WON:
            if not attempt.refused:
                attempt.send_skipped(deadline=deadline)
            return _Locked(resource, release)
        self._release(round_.close(), release, deadline)
        if attempt.untouched:
            return None
        if attempt.refused and not attempt.bucket_gone:
            return await self._lock_queued(view, attempt.key, name, True, deadline)
        if not attempt.skipped or attempt.bucket_gone:
            return _Locked(resource, b"")
        try:
            held = await self._locks.acquire(
                (resource,), LockMode.WRITE, deadline, lock_class(name)
            )
        except LockError as error:
            raise OutcomeUnknown(
                "others hold the lock of this key, and some drives have this write"
            ) from error
        attempt.send_skipped(deadline=deadline)
        return _Locked(resource, b"", held)

    def _lock_requests(self, resource: str, deadline: float) -> tuple[bytes, bytes]:
        """(acquire, release), encoded, of an owner of its own."""
        if self._lingering and (before := self._lingering.get(resource)) is not None:
            self._unlock(before)  # it travels ahead of what follows
        self._owner_count += 1
        owner = Owner(self._cluster.me, self._incarnation, self._owner_count)
        resources = (resource,)
        bound_s = min(LOCK_ATTEMPT_S, deadline - self._clock.monotonic())
        acquire = Acquire(resources, LockMode.WRITE, owner, bound_s)
        return encode_lock(acquire), encode_lock(Release(resources, owner))

    # ---- lock and tops --------------------------------------------------------------------------
    async def _lock(
        self, view: SetView, key: bytes, name: tuple[str, str], tops: bool, deadline: float
    ) -> _Locked:
        """`tops`: read them as well; who judges a condition reads behind the lock."""
        bound = min(LOCK_ATTEMPT_S, deadline - self._clock.monotonic())
        resource = _resource(name)
        request, release = self._lock_requests(resource, deadline)
        round_ = Round(self._cluster.nodes, LockMode.WRITE)
        gathering: Gathering[str, messages.Prepared | bytes] = Gathering()
        states: dict[int, verbs.State] = {}
        members = self._lock_members(view, round_)
        wanted = view.read_quorum if tops else 0
        for member in members:
            gathering.add(
                member.node,
                self._cluster.prepare(
                    member, key, request, tops=tops, deadline=self._clock.monotonic() + bound
                ),
            )

        def enough() -> bool:
            self._take_prepared(view, gathering, round_, states)
            return round_.state is RoundState.LOST or (
                round_.state is RoundState.WON and len(states) >= wanted
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
            return self._with_tops(view, _Locked(resource, release), states)
        cause = round_.cause
        lost_to_others = round_.state is RoundState.LOST and cause in (
            LossCause.TAKEN,
            LossCause.DEADLOCK,
        )
        self._release(round_.close(), release, deadline)
        drives = sum(len(member.drives) for member in members)
        reachable = len(members) >= round_.quorum and drives >= view.read_quorum
        if not lost_to_others and not reachable:
            self._observer.lock_timeout(lock_class(name))
            raise QuorumLost(
                f"no quorum for the lock and the drives of this key: "
                f"{len(round_.granted)} lock servers and {len(states)} drives answered"
            )
        return await self._lock_queued(view, key, name, tops, deadline)

    async def _lock_queued(
        self, view: SetView, key: bytes, name: tuple[str, str], tops: bool, deadline: float
    ) -> _Locked:
        """Somebody else holds the lock, or the attempt timed out: in line, with the retries of the policy."""
        try:
            held = await self._locks.acquire(
                (_resource(name),), LockMode.WRITE, deadline, lock_class(name)
            )
        except LockTimeout as error:
            raise QuorumLost("no quorum of lock servers answered in time") from error
        except LockError as error:
            raise LockContended("the key is locked by other writers") from error
        locked = _Locked(_resource(name), b"", held)
        try:
            if tops:
                await self._read_tops(view, key, locked, deadline)
        except BaseException:
            held.release()
            raise
        return locked

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

    async def _read_tops(self, view: SetView, key: bytes, locked: _Locked, deadline: float) -> None:
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
        self._with_tops(view, locked, states)

    def _with_tops(self, view: SetView, locked: _Locked, states: dict[int, verbs.State]) -> _Locked:
        locked.states = states
        for state in states.values():
            locked.top = max(locked.top, state.top)
            self._tops.floor(view.index, state.floor)
        return locked

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
    def _send(self, attempt: Attempt, deadline: float) -> None:
        reachable = self._cluster.reachable(attempt.view)
        able = sum(len(attempt.slots_of(member)) for member in reachable)
        if able < attempt.quorum:
            raise QuorumLost(f"{able} drives can take the write, {attempt.quorum} are needed")
        attempt.send(reachable, deadline=deadline)

    async def _concluded(self, attempt: Attempt, locked: _Locked, deadline: float) -> bool:
        """True: acknowledged. False: dead for ever, try anew. Raises when the outcome is unknown."""
        view = attempt.view
        await attempt.decided(deadline - self._clock.monotonic())
        if attempt.accepted:
            wanted = min(attempt.record.k + view.drives_per_node, attempt.asked)
            full = len(self._cluster.reachable(view)) == len(view.members)

            def comfortable() -> bool:
                return full and len(attempt.yes) >= wanted

            await attempt.until(
                lambda: comfortable() or not attempt.waits_for_any(self._cluster.is_quiet),
                STRAGGLER_BOUND_S,
            )
            if attempt.pending and not comfortable():
                # Somebody keeps silent: the client's next write of this key must not wait for that.
                self._unlock(locked)
            self._observer.stripe_margin(view.index, len(attempt.yes) - attempt.record.k)
            if attempt.pending:
                self._observer.straggler("commit")
                self._cluster.spawn(self._finish_later(attempt, locked))
            else:
                epoch = attempt.record.epoch
                self._finish(view, attempt.key, epoch, attempt.missed, locked, deadline)
            return True
        if attempt.bucket_gone:
            raise NoSuchBucket()
        if attempt.refused:
            return False
        raise attempt.unknown()

    async def _finish_later(self, attempt: Attempt, locked: _Locked) -> None:
        """A node that keeps silent holds up the word "decided", which names who missed the write, not the lock."""
        if locked.is_held:
            self._lingering[locked.resource] = locked
            await attempt.until(lambda: not attempt.pending, UNLOCK_PATIENCE_S)
            if attempt.pending:
                self._unlock(locked)
        await attempt.until(lambda: not attempt.pending, FINISH_PATIENCE_S)
        deadline = self._clock.monotonic() + FINISH_PATIENCE_S
        epoch = attempt.record.epoch
        self._finish(attempt.view, attempt.key, epoch, attempt.missed, locked, deadline)

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


def _resource(name: tuple[str, str]) -> str:
    return f"object:{name[0]}/{name[1]}"


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
