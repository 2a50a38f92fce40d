"""One lock server: a table of leases with lines of waiters, as a pure state machine.

Theory of operation. A lock is held by a requester that has grants for it from a quorum of servers; a
server only looks after its own grants. Per resource it keeps the holders (one writer or many readers)
and a line of waiters, first come first served: nobody passes a line, so nobody starves. A request for
several resources is granted whole or not at all, and waits in the lines of all of them; it gets them
when it is at the head of every line, and since lines are in order of arrival this cannot block for ever.

    (none) --acquire--> GRANTED --release, lease over, newer incarnation, suspicion, force--> (none)
       |                   ^
       +--acquire, taken-> QUEUED --deadline, release, newer incarnation--> (none), refused late

A grant ends by itself after a lease without a refresh. A waiter whose deadline has passed is refused,
never granted: its caller has stopped listening. A holder whose node came back with a newer incarnation
is gone and loses its grants at once. A holder whose node this server suspects is passed by whoever wants
the resource; each server decides that for itself, and since a requester needs a quorum of grants, a
holder is only passed when a quorum suspects it.

A restarted server refuses all until it is sure about what it granted before (`locks.recovery`). In the
meantime it takes in what peers tell, and the refreshes of living holders; these may contradict each
other (a holder that is over at some servers), so an entry may then have several holders.

An Acquire that arrives after its own Release (they may travel on different channels) would stay for a
lease with nobody to want it, so releases of unknown attempts are remembered for a while.

Cost: a step does not depend on how many locks there are. Leases of one node are kept in order of their
end (the lease is the same for all), so that expiry looks at the first of each node only; the deadlines
of waiters are in a heap. Time is the server's monotonic clock, handed in with each step.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable

from locks.circles import WaitGraph
from locks.entries import AttemptKey, Entry, Grant, Late, Queued, Waiter
from locks.messages import (
    Acquire,
    ForceRelease,
    Granted,
    LockEntry,
    LockMode,
    Locks,
    Owner,
    Refresh,
    Refreshed,
    RefusalReason,
    Refused,
    Release,
)
from locks.recovery import Recovery

__all__ = ["Late", "LockTable", "Queued"]

_MAX_RESOURCES = 1024  # of one request; DeleteObjects names 1,000 keys
_MAX_REMEMBERED = 10_000  # releases that may have overtaken their request


class LockTable:
    """See the module's theory of operation. Times are seconds of one monotonic clock.

    `writes_only`: nobody takes READ locks here, which lets a restarted server open sooner.
    `peers`: the other lock servers. `settle_s`: see `locks.recovery`. `max_entries` bounds resources held
    plus resources waited for; `max_waiters` the line of one resource.
    """

    def __init__(
        self,
        now_s: float,
        incarnation: int,
        lease_s: float = 9.0,
        *,
        peers: Iterable[str] = (),
        settle_s: float = 2.0,
        writes_only: bool = False,
        max_entries: int = 200_000,
        max_waiters: int = 256,
    ) -> None:
        self.incarnation = incarnation
        self.lease_s = lease_s
        self._max_entries = max_entries
        self._max_waiters = max_waiters
        self._recovery: Recovery | None = Recovery(
            now_s,
            lease_s=lease_s,
            settle_s=settle_s,
            peers=frozenset(peers),
            writes_only=writes_only,
        )
        self._writes_only = writes_only
        self._entries: dict[str, Entry] = {}
        self._leases: dict[str, OrderedDict[AttemptKey, Grant]] = {}  # by node, in order of end
        self._waiters: dict[AttemptKey, Waiter] = {}
        self._graph = WaitGraph(self._entries)
        self._deadlines: list[tuple[float, int, Waiter]] = []  # heap; who left early stays in it
        self._released_early: OrderedDict[AttemptKey, float] = OrderedDict()  # until when
        self._incarnations: dict[str, int] = {}
        self._suspected: set[str] = set()
        self._late: list[Late] = []
        self._next_ticket = 1
        self._size = 0
        self._granted = Granted(lease_s)

    # ---- what requesters ask ---------------------------------------------------------------------

    def acquire(self, msg: Acquire, now_s: float) -> Granted | Refused | Queued:
        """Grant, refuse or queue. What it means for others comes with the next step that returns results."""
        owner = msg.owner
        if self._incarnations.get(owner.node) != owner.incarnation and not self._meet(owner, now_s):
            return _STALE
        if self._recovery is not None and not self._try_open(now_s):
            return _RECOVERING
        assert not (self._writes_only and msg.mode is LockMode.READ), "this table has no read locks"
        if msg.deadline_s <= 0.0:
            return _EXPIRED
        resources = msg.resources
        key = (owner, resources)
        if self._released_early and key in self._released_early:
            return _RELEASED
        if len(resources) == 1 and resources[0] not in self._entries:
            if self._size >= self._max_entries:
                return _FULL
            self._grant(key, msg.mode, now_s)
            return self._granted
        return self._acquire_contended(key, msg, now_s)

    def release(self, msg: Release, now_s: float) -> list[Late]:
        """Give back, or stop waiting. Returns what became of waiters."""
        owner, resources = key = (msg.owner, msg.resources)
        leases = self._leases.get(owner.node)
        grant = leases.get(key) if leases is not None else None
        if grant is not None:
            self._drop(grant, now_s)
        elif (waiter := self._waiters.get(key)) is not None:
            self._refuse_waiter(waiter, now_s, _RELEASED)
            self._promote(resources, now_s)
        elif not self._release_one_by_one(owner, resources, now_s):
            self._released_early[key] = now_s + self.lease_s
            if len(self._released_early) > _MAX_REMEMBERED:
                self._released_early.popitem(last=False)
        return self._take_late()

    def refresh(self, msg: Refresh, now_s: float) -> Refreshed:
        """Begin a new lease for what the owner holds here; says what it does not hold (any more)."""
        owner = msg.owner
        if self._incarnations.get(owner.node) != owner.incarnation and not self._meet(owner, now_s):
            return Refreshed(False, msg.resources)
        lost: list[str] = []
        for resource in msg.resources:
            entry = self._entries.get(resource)
            grant = entry.held_by(owner) if entry is not None else None
            if grant is None or grant.expires_s <= now_s:
                lost.append(resource)
            elif grant.expires_s < now_s + self.lease_s:
                self._extend(grant, now_s)
        if lost and self._recovery is not None and not self._try_open(now_s):
            lost = self._take_in(owner, msg.mode, tuple(lost), now_s)
        return Refreshed(False, tuple(lost)) if lost else _REFRESHED

    def force_release(self, msg: ForceRelease, now_s: float) -> list[Late]:
        """Take one resource from its holders; what else they hold stays theirs."""
        entry = self._entries.get(msg.resource)
        if entry is not None:
            for grant in list(entry.holders):
                self._unhold(grant, msg.resource)
            self._promote((msg.resource,), now_s)
        return self._take_late()

    # ---- what time and membership tell -----------------------------------------------------------

    def tick(self, now_s: float) -> list[Late]:
        """End what is over. Returns what became of waiters since results were last returned."""
        if self._recovery is not None:
            self._try_open(now_s)
        while self._deadlines and self._deadlines[0][0] <= now_s:
            waiter = heapq.heappop(self._deadlines)[2]
            if self._waiters.get(waiter.key) is waiter:
                self._refuse_waiter(waiter, now_s)
                self._promote(waiter.resources, now_s)
        for node, leases in list(self._leases.items()):
            while leases:
                grant = next(iter(leases.values()))
                if grant.expires_s > now_s:
                    break
                self._drop(grant, now_s)
            if not leases:
                del self._leases[node]
        early = self._released_early
        while early and next(iter(early.values())) <= now_s:
            early.popitem(last=False)
        return self._take_late()

    def wake_at_s(self) -> float | None:
        """When `tick` has something to do (maybe in the past); None: not before another step."""
        if self._late:
            return float("-inf")
        times = [next(iter(held.values())).expires_s for held in self._leases.values() if held]
        if self._deadlines:
            times.append(self._deadlines[0][0])
        if self._recovery is not None:
            times.append(self._recovery.opens_s)
        if self._released_early:
            times.append(next(iter(self._released_early.values())))
        return min(times, default=None)

    @property
    def has_results(self) -> bool:
        """Whether the next `tick` has something to tell, whatever the time."""
        return bool(self._late)

    def node_incarnation(self, node: str, incarnation: int, now_s: float) -> list[Late]:
        """A node is known to run as this incarnation: older ones hold nothing and wait for nothing."""
        if incarnation > self._incarnations.get(node, -1):
            self._incarnations[node] = incarnation
            self._forget_older(node, incarnation, now_s)
        return self._take_late()

    def suspected(self, node: str, is_suspected: bool, now_s: float) -> list[Late]:
        """Whether this server suspects the node. Waiters pass a suspected holder at once."""
        if is_suspected:
            self._suspected.add(node)
            for grant in list(self._leases.get(node, {}).values()):
                if self._wanted(grant):
                    self._drop(grant, now_s)
        else:
            self._suspected.discard(node)
        return self._take_late()

    # ---- restart ---------------------------------------------------------------------------------

    def learn(
        self,
        peer: str,
        entries: Iterable[LockEntry],
        now_s: float,
        *,
        asked_s: float | None = None,
        complete: bool = True,
    ) -> None:
        """A peer told what it granted. `complete`: its list was whole and it does not recover itself.

        `asked_s`: when it was asked, by default `now_s`; the table may be as old as that.
        """
        if self._recovery is None:
            return
        told: dict[tuple[Owner, LockMode], list[str]] = {}
        for entry in entries:
            told.setdefault((entry.owner, entry.mode), []).append(entry.resource)
        for (owner, mode), resources in told.items():
            if self._incarnations.get(owner.node) == owner.incarnation or self._meet(owner, now_s):
                self._take_in(owner, mode, tuple(sorted(set(resources))), now_s)
        if complete:
            self._recovery.told(peer, now_s if asked_s is None else asked_s)
        self._try_open(now_s)

    def all_fresh(self) -> None:
        """All lock servers have new incarnations: no lock from before has a quorum."""
        self._recovery = None

    def open_now(self) -> None:
        """Grant from now on, whatever is unknown (a person's decision)."""
        self._recovery = None

    @property
    def recovering(self) -> bool:
        """Whether requests were still refused because of the restart, as of the last step."""
        return self._recovery is not None

    def tell(self, now_s: float, *, max_entries: int = 50_000) -> Locks:
        """The answer to a peer that restarted."""
        whole = self._size <= max_entries and self._recovery is None
        return Locks(tuple(self.snapshot(now_s, limit=max_entries)), whole)

    # ---- for people ------------------------------------------------------------------------------

    def snapshot(self, now_s: float, *, limit: int = 1000) -> list[LockEntry]:
        """What is held, one entry for each holder of each resource, oldest resources first."""
        shown: list[LockEntry] = []
        for resource, entry in self._entries.items():
            waiters = len(entry.line) if entry.line else 0
            for grant in entry.holders:
                if len(shown) >= limit:
                    return shown
                age_s = now_s - grant.granted_s
                shown.append(LockEntry(resource, grant.mode, grant.owner, age_s, waiters))
        return shown

    @property
    def size(self) -> int:
        """Resources held (counted for each holder) plus resources waited for."""
        return self._size

    @property
    def waiters(self) -> int:
        return len(self._waiters)

    # ---- inside: requests ------------------------------------------------------------------------

    def _acquire_contended(
        self, key: AttemptKey, msg: Acquire, now_s: float
    ) -> Granted | Refused | Queued:
        owner, resources = key
        leases = self._leases.get(owner.node)
        mine = leases.get(key) if leases is not None else None
        if mine is not None:
            if mine.mode is msg.mode and mine.expires_s > now_s and self._whole(mine):
                self._extend(mine, now_s)  # the same request once more
                return self._granted
            self._drop(mine, now_s)
        if (waiter := self._waiters.get(key)) is not None:
            return Queued(waiter.ticket)
        if not resources or len(resources) > _MAX_RESOURCES:
            return _FULL
        self._pass_dead_holders(owner, msg.mode, resources, now_s)
        if self._size + len(resources) > self._max_entries:
            return _FULL
        blocker = self._blocker(owner, msg.mode, resources)
        longest = self._longest_line(resources)
        if blocker is None and not longest:
            self._grant(key, msg.mode, now_s)
            return self._granted
        if not msg.wait:
            return _held_by(blocker, now_s)
        if longest >= self._max_waiters:
            return _FULL
        if self._graph.closes_circle(owner, msg.mode, resources):
            return _DEADLOCK
        return self._enqueue(key, msg.mode, now_s + msg.deadline_s)

    def _blocker(self, owner: Owner, mode: LockMode, resources: tuple[str, ...]) -> Grant | None:
        for resource in resources:
            entry = self._entries.get(resource)
            if entry is not None and (blockers := entry.blockers(owner, mode)):
                return blockers[0]
        return None

    def _longest_line(self, resources: tuple[str, ...]) -> int:
        entries = self._entries
        lines = (entries[r].line for r in resources if r in entries)
        return max((len(line) for line in lines if line), default=0)

    def _pass_dead_holders(
        self, owner: Owner, mode: LockMode, resources: tuple[str, ...], now_s: float
    ) -> None:
        """Drop the holders in the way whose lease is over or whose node is suspected."""
        for resource in resources:
            entry = self._entries.get(resource)
            for grant in entry.blockers(owner, mode) if entry is not None else ():
                if grant.expires_s <= now_s or grant.owner.node in self._suspected:
                    self._drop(grant, now_s)

    def _release_one_by_one(self, owner: Owner, resources: tuple[str, ...], now_s: float) -> bool:
        """For a grant that was taken in from peers in other portions than it was asked for."""
        found = False
        for resource in resources:
            entry = self._entries.get(resource)
            grant = entry.held_by(owner) if entry is not None else None
            if grant is not None:
                found = True
                self._unhold(grant, resource)
        if found:
            self._promote(resources, now_s)
        return found

    def _take_in(
        self, owner: Owner, mode: LockMode, resources: tuple[str, ...], now_s: float
    ) -> list[str]:
        """While recovering: a lock that is said to be held. Returns what was not taken in."""
        if (owner, resources) in self._released_early:
            return list(resources)
        unknown = tuple(r for r in resources if not self._held(r, owner))
        if not unknown:
            return []
        key = (owner, unknown)
        if self._size + len(unknown) > self._max_entries or key in self._leases.get(owner.node, ()):
            return list(unknown)
        self._grant(key, mode, now_s)
        return []

    # ---- inside: holders -------------------------------------------------------------------------

    def _grant(self, key: AttemptKey, mode: LockMode, now_s: float) -> None:
        owner, resources = key
        grant = Grant(key, mode, now_s, now_s + self.lease_s)
        leases = self._leases.get(owner.node)
        if leases is None:
            leases = self._leases[owner.node] = OrderedDict()
        leases[key] = grant
        entries = self._entries
        for resource in resources:
            entry = entries.get(resource)
            if entry is None:
                entry = entries[resource] = Entry()
            entry.holders[grant] = None
        self._size += len(resources)

    def _extend(self, grant: Grant, now_s: float) -> None:
        grant.expires_s = now_s + self.lease_s
        self._leases[grant.owner.node].move_to_end(grant.key)

    def _held(self, resource: str, owner: Owner) -> bool:
        entry = self._entries.get(resource)
        return entry is not None and entry.held_by(owner) is not None

    def _whole(self, grant: Grant) -> bool:
        """Whether nothing of it was taken by force."""
        entries = self._entries
        return all(r in entries and grant in entries[r].holders for r in grant.key[1])

    def _drop(self, grant: Grant, now_s: float) -> None:
        """End a grant and let others have what it held."""
        owner, resources = grant.key
        del self._leases[owner.node][grant.key]
        if grant.waited_for:
            self._graph.unmark(grant)
        contended = False
        entries = self._entries
        for resource in resources:
            entry = entries.get(resource)
            if entry is not None and grant in entry.holders:
                del entry.holders[grant]
                self._size -= 1
                if entry.line:
                    contended = True
                elif not entry.holders:
                    del entries[resource]
        if contended:
            self._promote(resources, now_s)

    def _unhold(self, grant: Grant, resource: str) -> None:
        """Take one resource from a grant; the caller promotes who waits for it."""
        entries = self._entries
        del entries[resource].holders[grant]
        self._size -= 1
        if not any(r in entries and grant in entries[r].holders for r in grant.key[1]):
            del self._leases[grant.owner.node][grant.key]
            if grant.waited_for:
                self._graph.unmark(grant)

    def _wanted(self, grant: Grant) -> bool:
        """Whether somebody stands in line for something of this grant."""
        for resource in grant.key[1]:
            entry = self._entries.get(resource)
            if entry is not None and entry.line and grant in entry.holders:
                return True
        return False

    # ---- inside: the line ------------------------------------------------------------------------

    def _enqueue(self, key: AttemptKey, mode: LockMode, deadline_s: float) -> Queued:
        waiter = Waiter(self._next_ticket, key, mode, deadline_s)
        self._next_ticket += 1
        self._waiters[key] = waiter
        for resource in waiter.resources:
            entry = self._entries.get(resource)
            if entry is None:
                entry = self._entries[resource] = Entry()
            if entry.line is None:
                entry.line = {}
            entry.line[waiter] = None
        self._graph.add(waiter)
        self._size += len(waiter.resources)
        heapq.heappush(self._deadlines, (deadline_s, waiter.ticket, waiter))
        if len(self._deadlines) > 64 + 2 * len(self._waiters):
            self._deadlines = [d for d in self._deadlines if self._waiters.get(d[2].key) is d[2]]
            heapq.heapify(self._deadlines)
        return Queued(waiter.ticket)

    def _dequeue(self, waiter: Waiter) -> None:
        """Take a waiter out of all its lines; the caller promotes who stood behind it."""
        del self._waiters[waiter.key]
        self._graph.remove(waiter)
        for resource in waiter.resources:
            line = self._entries[resource].line
            assert line is not None, "a waiter stands in the lines of all its resources"
            del line[waiter]
        self._size -= len(waiter.resources)

    def _refuse_waiter(self, waiter: Waiter, now_s: float, reply: Refused | None = None) -> None:
        if reply is None:
            reply = _held_by(self._blocker(waiter.owner, waiter.mode, waiter.resources), now_s)
        self._dequeue(waiter)
        self._late.append(Late(waiter.ticket, waiter.owner, waiter.resources, reply))

    def _promote(self, resources: Iterable[str], now_s: float) -> None:
        """Grant to the heads of lines as far as they go, and remove entries that nobody needs."""
        unsettled = list(resources)
        while unsettled:
            resource = unsettled.pop()
            entry = self._entries.get(resource)
            if entry is None:
                continue
            while entry.line:
                head = next(iter(entry.line))
                silent = head.owner.node in self._suspected and len(entry.line) > 1
                if head.deadline_s <= now_s or silent:
                    self._refuse_waiter(head, now_s)
                elif self._grantable(head):
                    self._admit(head, now_s)
                else:
                    break
                unsettled.extend(other for other in head.resources if other != resource)
            if not entry.line:
                entry.line = None
                if not entry.holders:
                    del self._entries[resource]

    def _admit(self, waiter: Waiter, now_s: float) -> None:
        self._dequeue(waiter)
        self._grant(waiter.key, waiter.mode, now_s)
        for resource in waiter.resources:
            self._graph.mark(self._entries[resource])
        self._late.append(Late(waiter.ticket, waiter.owner, waiter.resources, self._granted))

    def _grantable(self, waiter: Waiter) -> bool:
        for resource in waiter.resources:
            entry = self._entries[resource]
            assert entry.line, "a waiter stands in the lines of all its resources"
            if next(iter(entry.line)) is not waiter or entry.blockers(waiter.owner, waiter.mode):
                return False
        return True

    # ---- inside: incarnations, opening, results --------------------------------------------------

    def _meet(self, owner: Owner, now_s: float) -> bool:
        """An owner of an incarnation that is not the known one; false if a newer one has replaced it."""
        if owner.incarnation < self._incarnations.get(owner.node, -1):
            return False
        self._incarnations[owner.node] = owner.incarnation
        self._forget_older(owner.node, owner.incarnation, now_s)
        return True

    def _forget_older(self, node: str, incarnation: int, now_s: float) -> None:
        gone = [
            waiter
            for waiter in self._waiters.values()
            if waiter.owner.node == node and waiter.owner.incarnation < incarnation
        ]
        for waiter in gone:
            self._refuse_waiter(waiter, now_s, _STALE)
        for grant in list(self._leases.get(node, {}).values()):
            if grant.owner.incarnation < incarnation:
                self._drop(grant, now_s)
        for waiter in gone:
            self._promote(waiter.resources, now_s)

    def _try_open(self, now_s: float) -> bool:
        if self._recovery is not None and self._recovery.over(now_s):
            self._recovery = None
        return self._recovery is None

    def _take_late(self) -> list[Late]:
        if not self._late:
            return []
        late = self._late
        self._late = []
        return late


def _held_by(blocker: Grant | None, now_s: float) -> Refused:
    if blocker is None:
        return _IN_LINE
    return Refused(RefusalReason.HELD, blocker.owner, now_s - blocker.granted_s)


_IN_LINE = Refused(RefusalReason.HELD)
_FULL = Refused(RefusalReason.FULL)
_STALE = Refused(RefusalReason.STALE_INCARNATION)
_RECOVERING = Refused(RefusalReason.RECOVERING)
_EXPIRED = Refused(RefusalReason.EXPIRED)
_RELEASED = Refused(RefusalReason.RELEASED)
_DEADLOCK = Refused(RefusalReason.DEADLOCK)
_REFRESHED = Refreshed(True)
