"""The collector: tombstones that every drive of their set has, decided and alone, are let go.

Theory of operation. The checked rule: T may go when every drive of the set has T flagged decided, synced, with
nothing older left, or holds nothing and has a floor at or above T (which is what a drive is that let T go before,
whoever told it). Both stay true whatever comes later, so the drives need not be asked at one moment, an answer may
be old, two nodes may do the same, and a turn that stops anywhere is simply gone on with. Each drive that drops T
raises its floor to what it had promised for the key, in the same synced batch.

A floor is of all keys of its drive, which costs something elsewhere: a write of a new key whose tops were read just
before is refused and tried again, and a repair below it becomes a write of its own. So tombstones go in bursts,
COLLECT_INTERVAL_S apart, only when all drives serve, and after the repair queue where that does not take too long.
And they go COLLECT_SETTLE_S after they were seen everywhere, longer than any listing takes: no listing meets one drive
before it had the tombstone and another one after it let it go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from node.errors import QuorumLost
from node.limits import (
    COLLECT_AFTER_S,
    COLLECT_PAGE,
    COLLECT_PATIENCE_S,
    COLLECT_SETTLE_S,
    COLLECT_STRAY_S,
    COLLECT_WAITING,
    REPAIR_DEADLINE_S,
)
from node.objects.heal import Healer
from node.objects.pending import turn_of
from node.objects.sets import Cluster, SetView
from node.protocol import verbs
from node.protocol.verbs import StandingKind
from node.store.drive_gate import DriveGate, DriveState

Tombstone = tuple[bytes, bytes]  # key, epoch


class CollectObserver(Protocol):
    def tombstones(self, n: int) -> None:
        """The most tombstones that one of this node's drives has."""
        ...

    def collected(self, n: int) -> None: ...

    def collect_lacking(self, n: int) -> None:
        """Tombstones that could not go since a drive lacks them; repair brings them there."""
        ...


@dataclass(slots=True)
class _Turn:
    """Where the walk over one set is, and what was seen everywhere, by when it may go.

    Each walk goes over another drive of ours: a turn that broke off leaves tombstones on some drives alone.
    """

    after: bytes = b""
    walks: int = 0
    ripe: dict[Tombstone, float] = field(default_factory=dict)


class Collector:
    """Collects the tombstones whose turn falls to this node."""

    def __init__(
        self,
        cluster: Cluster,
        gate: DriveGate,
        healer: Healer,
        observer: CollectObserver,
        busy: Callable[[], bool],
    ) -> None:
        """`busy`: repairs are waiting."""
        self._cluster = cluster
        self._clock = cluster.clock
        self._gate = gate
        self._healer = healer
        self._observer = observer
        self._busy = busy
        self._busy_since: float | None = None
        self._turns: dict[int, _Turn] = {}
        self.collected = 0

    async def turn(self) -> None:
        """One burst for each set at the most."""
        now = self._clock.monotonic()
        if not self._busy():
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = now
        waits = self._busy_since is not None and now < self._busy_since + COLLECT_PATIENCE_S
        depth = 0
        for view in self._cluster.views:
            depth = max(depth, await self._set(view, waits=waits))
        self._observer.tombstones(depth)

    async def _set(self, view: SetView, *, waits: bool) -> int:
        turn = self._turns.setdefault(view.index, _Turn())
        page = await self._candidates(view, turn)
        if page is None:
            return 0
        if waits or len(self._cluster.online(view)) < view.n:
            return page.depth
        turn.after = page.next_after
        turn.walks += not page.next_after
        await self._let_go(view, turn)
        mine = self._mine(view, turn, page)
        if mine:
            ripe_at = self._clock.monotonic() + COLLECT_SETTLE_S
            turn.ripe.update(dict.fromkeys(await self._whole(view, mine), ripe_at))
        return page.depth

    def _mine(self, view: SetView, turn: _Turn, page: verbs.TombstonePage) -> list[Tombstone]:
        names = [member.node for member in view.members]
        stray_s = self._clock.now() - COLLECT_STRAY_S
        mine = [
            (key, epoch)
            for key, epoch, since_s in page.entries
            if (key, epoch) not in turn.ripe
            and (since_s < stray_s or turn_of(key, self._cluster.me, names) == 0)
        ]
        return mine[: max(COLLECT_WAITING - len(turn.ripe), 0)]

    async def _candidates(self, view: SetView, turn: _Turn) -> verbs.TombstonePage | None:
        """From one drive of our own: what may go is on all of them, or nearly all."""
        drives = [
            drive.drive_id
            for drive in self._gate.local_drives()
            if drive.state is DriveState.ONLINE and drive.drive_id in view.drive_of
        ]
        if not drives:
            return None
        reply = await self._gate.ask(
            drives[turn.walks % len(drives)],
            verbs.Tombstones(turn.after, COLLECT_PAGE, self._clock.now() - COLLECT_AFTER_S),
            deadline=self._clock.monotonic() + REPAIR_DEADLINE_S,
        )
        return reply if isinstance(reply, verbs.TombstonePage) else None

    async def _whole(self, view: SetView, tombstones: list[Tombstone]) -> list[Tombstone]:
        """Those that every drive has, decided and alone, or let go before. QuorumLost unless all answer."""
        ask = verbs.Standing(tuple(tombstones))
        deadline = self._clock.monotonic() + REPAIR_DEADLINE_S
        answers = await self._healer.ask(view, dict.fromkeys(range(view.n), ask), deadline)
        kinds = [reply.kinds for reply in answers.values() if isinstance(reply, verbs.Standings)]
        if len(kinds) < view.n:
            raise QuorumLost(f"{len(kinds)} of {view.n} drives told what they have of tombstones")
        whole, lacking = [], 0
        for index, tombstone in enumerate(tombstones):
            seen = {kind[index] for kind in kinds}
            if seen <= {StandingKind.ALONE, StandingKind.GONE}:
                whole.append(tombstone)
            elif StandingKind.LACKING in seen:
                lacking += 1
                slots = [slot for slot, reply in answers.items() if _lacks(reply, index)]
                self._queue_repair(view, tombstone, tuple(slots))
        if lacking:
            self._observer.collect_lacking(lacking)
        return whole

    def _queue_repair(self, view: SetView, tombstone: Tombstone, slots: tuple[int, ...]) -> None:
        """The word "decided" and the queue went lost on the way; the repair job does the rest."""
        key, epoch = tombstone
        mine = view.by_node[self._cluster.me].slots
        self._cluster.tell_slots(
            view,
            dict.fromkeys(mine, verbs.Enqueue(key, epoch, slots)),
            deadline=self._clock.monotonic() + REPAIR_DEADLINE_S,
        )

    async def _let_go(self, view: SetView, turn: _Turn) -> None:
        now = self._clock.monotonic()
        due = [tombstone for tombstone, ripe_at in turn.ripe.items() if ripe_at <= now][
            :COLLECT_PAGE
        ]
        if not due:
            return
        for tombstone in due:
            del turn.ripe[tombstone]  # one that a drive keeps is a candidate again
        verb = verbs.Collect(*due[0], tuple(due[1:]))
        answers = await self._healer.ask(
            view, dict.fromkeys(range(view.n), verb), now + REPAIR_DEADLINE_S
        )
        done = sum(isinstance(reply, verbs.Done) for reply in answers.values())
        if done < view.n:
            raise QuorumLost(f"{done} of {view.n} drives let {len(due)} tombstones go")
        self.collected += len(due)
        self._observer.collected(len(due))


def _lacks(reply: verbs.Reply, index: int) -> bool:
    return isinstance(reply, verbs.Standings) and reply.kinds[index] == StandingKind.LACKING
