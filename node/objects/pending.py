"""What lies in the queues of this node's drives, and whose turn it is to work on it.

Every node looks at the entries of its own drives. Of the nodes that hold an entry's key the first alive one, in
an order hashed from the key, works on it; the others only when it has had its time. Two that work on the same
key harm nothing: each step is one that the drives judge for themselves.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import blake2b

from node.errors import HoldfastError
from node.limits import REPAIR_DEADLINE_S, REPAIR_PAGE, SETTLE_TURN_S
from node.objects.sets import Cluster, SetView
from node.protocol import verbs
from node.store.drive_gate import DriveGate, DriveState


@dataclass(frozen=True, slots=True)
class Page:
    """One drive's entries; `cursor` b"": there are no more behind them."""

    drive_id: bytes
    view: SetView
    entries: tuple[verbs.PendingEntry, ...]
    depth: int
    cursor: bytes


class Pending:
    """Reads the queues: undecided writes (`writes`) or repair entries."""

    def __init__(self, cluster: Cluster, gate: DriveGate, *, writes: bool) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._gate = gate
        self._writes = writes
        self.last_error = ""

    async def first(self) -> list[Page]:
        """The first page of each drive that serves, asked for at the same moment."""
        deadline = self._clock.monotonic() + REPAIR_DEADLINE_S
        verb = self._verb(b"")
        asked = [
            (drive.drive_id, view, self._gate.call(drive.drive_id, verb, deadline=deadline))
            for drive in self._gate.local_drives()
            if drive.state is DriveState.ONLINE
            and (view := self._cluster.view_of_drive(drive.drive_id)) is not None
        ]
        pages = []
        for drive_id, view, answer in asked:
            try:
                reply = verbs.decode_reply(await answer)
            except HoldfastError as error:
                self.last_error = str(error)
                continue
            if isinstance(reply, verbs.PendingPage):
                pages.append(self._page(drive_id, view, reply))
            elif isinstance(reply, verbs.Failed):
                self.last_error = f"{reply.fault} {reply.detail}"
        return pages

    async def after(self, page: Page) -> Page | None:
        """The page behind one; None at the end, or when the drive fails."""
        if not page.cursor:
            return None
        deadline = self._clock.monotonic() + REPAIR_DEADLINE_S
        try:
            reply = await self._gate.ask(page.drive_id, self._verb(page.cursor), deadline=deadline)
        except HoldfastError as error:
            self.last_error = str(error)
            return None
        if not isinstance(reply, verbs.PendingPage):
            return None
        return self._page(page.drive_id, page.view, reply)

    def _verb(self, after: bytes) -> verbs.Pending:
        return verbs.Pending(after, REPAIR_PAGE, writes=self._writes, repairs=not self._writes)

    def _page(self, drive_id: bytes, view: SetView, page: verbs.PendingPage) -> Page:
        depth = page.depth_undecided if self._writes else page.depth_repair
        cursor = page.entries[-1].key if page.more and page.entries else b""
        return Page(drive_id, view, page.entries, depth, cursor)

    def age_s(self, entry: verbs.PendingEntry) -> float:
        """By the wall clock. An entry of the future is as old as can be: the clock was set back since."""
        age_s = self._clock.now() - entry.since_s
        return age_s if age_s >= 0 else REPAIR_DEADLINE_S

    def wait_s(self, view: SetView, entry: verbs.PendingEntry) -> float | None:
        """How long this node leaves an entry to those before it in line; None: there is nothing to be done now."""
        alive = {member.node for member in self._cluster.reachable(view)}
        # A drive that is being filled gets all it lacks by that; what it misses meanwhile waits for the end.
        missed = set(entry.missed) - self._cluster.filling(view)
        if entry.decided and not any(view.node_of[slot] in alive for slot in missed):
            return None  # nobody is there to be repaired
        able = [
            member.node
            for member in view.members
            if member.node in alive and not missed.issuperset(member.slots)
        ]
        return SETTLE_TURN_S * turn_of(entry.key, self._cluster.me, able)


def turn_of(key: bytes, me: str, nodes: Collection[str]) -> int:
    """My place among `nodes` for this key; behind them all where I am none of them."""
    order = sorted(nodes, key=lambda node: _rank(key, node))
    return order.index(me) if me in order else len(order)


def _rank(key: bytes, node: str) -> bytes:
    return blake2b(key + b"\0" + node.encode(), digest_size=8).digest()
