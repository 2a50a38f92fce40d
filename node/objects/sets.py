"""An erasure set as a coordinator sees it, and the messages to its members.

A slot is a position in the set; slots of one node follow each other. Every request to a node names
the drives it means by id, so a replaced drive never answers for the one that was there before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from erasure.geometry import Geometry
from erasure.placement import rotation, set_of, shard_of_slot
from node.cluster.membership import Membership
from node.cluster.topology import ErasureSet, Topology
from node.objects import messages
from node.objects.member import Member
from node.protocol import verbs
from node.rpc.client import Peers
from node.rpc.methods import Method
from node.runtime.ports import Clock

SYSTEM_BUCKET = ".holdfast.sys"
DRIVES_ONLINE = "drives_online"  # in heartbeats: a mask of the node's drives, by index
DRIVES_FILLING = (
    "drives_filling"  # in heartbeats: likewise, those that were replaced and are being filled
)
VIEW = "view"  # in heartbeats: how often drives of the cluster were replaced, as the node knows
CLIENTS = "clients"  # in heartbeats: client requests of the node in the last half second
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Members:
    """One node of a set: its slots and their drives, in order."""

    node: str
    slots: tuple[int, ...]
    drives: tuple[bytes, ...]
    set_index: int = 0


class SetView:
    """One erasure set, indexed the ways a coordinator needs it."""

    def __init__(self, erasure_set: ErasureSet) -> None:
        self.index = erasure_set.index
        self.number = erasure_set.view
        self.geometry: Geometry = erasure_set.geometry
        self.system_geometry: Geometry = erasure_set.system_geometry
        self.slots = erasure_set.slots
        self.n = len(erasure_set.slots)
        self.drive_of = tuple(slot.drive_id for slot in erasure_set.slots)
        self.node_of = tuple(slot.node for slot in erasure_set.slots)
        names = list(dict.fromkeys(self.node_of))
        self.members = tuple(
            Members(
                name,
                tuple(i for i, node in enumerate(self.node_of) if node == name),
                tuple(slot.drive_id for slot in erasure_set.slots if slot.node == name),
                erasure_set.index,
            )
            for name in names
        )
        self.by_node = {member.node: member for member in self.members}
        self.drives_per_node = len(self.members[0].slots)
        self.read_quorum = self.n - self.n // 2

    def geometry_for(self, bucket: str) -> Geometry:
        return self.system_geometry if bucket == SYSTEM_BUCKET else self.geometry

    def shard_at(self, slot: int, turned: int) -> int:
        """The shard that a record with rotation `turned` has at `slot`."""
        return shard_of_slot(slot, turned, self.drives_per_node, self.n)


class Cluster:
    """The sets of the cluster and how to reach their members."""

    def __init__(
        self,
        topology: Topology,
        member: Member,
        peers: Peers,
        membership: Membership,
        clock: Clock,
    ) -> None:
        self.me = topology.me
        self.cluster_id = topology.cluster_id
        self.nodes = topology.nodes
        self.update(topology)
        self.member = member
        self.peers = peers
        self.membership = membership
        self.clock = clock
        self.own_drives: Callable[[], int] = lambda: 0  # mask of this node's drives that serve
        self.own_filling: Callable[[], int] = lambda: 0  # of those that are being filled
        self._tasks: set[asyncio.Future[Any]] = set()

    def update(self, topology: Topology) -> None:
        """Drives were replaced: requests that begin from now on mean the new ones."""
        self.views = tuple(SetView(s) for s in topology.sets)

    def view(self, bucket: str, key: str) -> SetView:
        if len(self.views) == 1:
            return self.views[0]
        return self.views[set_of(self.cluster_id, bucket, key, len(self.views))]

    def rotation(self, view: SetView, bucket: str, key: str) -> int:
        return rotation(self.cluster_id, bucket, key, len(view.members))

    def view_of_drive(self, drive_id: bytes) -> SetView | None:
        for view in self.views:
            if drive_id in view.drive_of:
                return view
        return None

    def reachable(self, view: SetView) -> list[Members]:
        """Members not known dead: this node first, the others in the set's order, quiet ones last."""
        alive = set(self.membership.alive())
        alive.add(self.me)
        found = [m for m in view.members if m.node in alive]
        found.sort(key=lambda m: (m.node != self.me, self.is_quiet(m.node)))
        return found

    def is_quiet(self, node: str) -> bool:
        """Whether a node has kept silent for so long that others are preferred to it."""
        return node != self.me and self.membership.is_quiet(node)

    def reachable_slots(self, view: SetView) -> int:
        return sum(len(m.slots) for m in self.reachable(view))

    def online(self, view: SetView) -> frozenset[int]:
        """Slots whose drive serves, as its node's heartbeats say."""
        return self._masked(view, DRIVES_ONLINE, self.own_drives)

    def filling(self, view: SetView) -> frozenset[int]:
        """Slots whose drive was replaced and is being filled, as its node's heartbeats say."""
        return self._masked(view, DRIVES_FILLING, self.own_filling)

    @property
    def view_number(self) -> int:
        """How often drives were replaced, as this node knows it."""
        return sum(view.number for view in self.views)

    def views_agree(self) -> bool:
        """Whether every living node has heard of every replacement that this one knows."""
        states = map(self.membership.state, self.membership.alive())
        return all(state.versions.get(VIEW, 0) >= self.view_number for state in states)

    def _masked(self, view: SetView, name: str, own: Callable[[], int]) -> frozenset[int]:
        found: set[int] = set()
        for member in self.reachable(view):
            if member.node == self.me:
                mask = own()
            else:
                mask = self.membership.state(member.node).versions.get(name, 0)
            for slot in member.slots:
                if mask >> view.slots[slot].drive & 1:
                    found.add(slot)
        return frozenset(found)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Runs on; its error is consumed by whoever gathers it."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    # ---- requests to one member, as futures -----------------------------------------------------
    def prepare(
        self, member: Members, key: bytes, lock: bytes, *, tops: bool = True, deadline: float
    ) -> asyncio.Future[messages.Prepared | bytes]:
        """`tops`: read them, too. A result of type bytes is an encoded Prepared (see `prepared`)."""
        ask = messages.Prepare(lock, key, member.drives if tops else ())
        if member.node == self.me:
            return self.member.prepare(ask, _same, deadline=deadline)
        return self.peers.call(  # type: ignore[return-value]
            member.node, Method.PREPARE, messages.encode(ask), deadline=deadline
        )

    def commit(
        self,
        member: Members,
        key: bytes,
        record: bytes,
        drives: tuple[tuple[bytes, bytes], ...],
        lock: bytes = b"",
        *,
        view_number: int,
        deadline: float,
    ) -> asyncio.Future[messages.Replies | bytes]:
        """`view_number`: of the view that the write began with. A result of type bytes is an encoded Replies."""
        ask = messages.CommitAt(key, record, drives, view_number, lock)
        if member.node == self.me:
            return self.member.commit(ask, _same, deadline=deadline)
        return self.peers.call(  # type: ignore[return-value]
            member.node, Method.COMMIT, messages.encode(ask), deadline=deadline
        )

    def verbs_at(
        self, member: Members, items: tuple[tuple[bytes, bytes], ...], *, deadline: float
    ) -> asyncio.Future[tuple[bytes, ...] | bytes]:
        if member.node == self.me:
            return self.member.verbs(items, _same, deadline=deadline)
        return self.peers.call(  # type: ignore[return-value]
            member.node,
            Method.VERBS,
            messages.encode(messages.VerbsAt(items)),
            deadline=deadline,
        )

    def finish(
        self,
        members: Iterable[Members],
        key: bytes,
        epoch: bytes,
        missed: Sequence[int],
        release: bytes,
        *,
        deadline: float,
    ) -> None:
        """One way to each: the epoch is decided, the lock may go."""
        for member in members:
            ask = messages.Finish(key, epoch, tuple(missed), member.drives, release)
            if member.node == self.me:
                self.member.finish(ask, deadline=deadline)
            else:
                self.peers.tell(member.node, Method.FINISH, messages.encode(ask))

    def tell_slots(
        self, view: SetView, wanted: Mapping[int, verbs.Verb], *, deadline: float
    ) -> None:
        """Verbs whose answers nobody needs: what they would have changed is found again by the jobs."""
        for member in self.reachable(view):
            items = tuple(
                (view.drive_of[slot], verbs.encode(wanted[slot]))
                for slot in member.slots
                if slot in wanted
            )
            if items:
                self.verbs_at(member, items, deadline=deadline).add_done_callback(_consume)


def prepared(answer: messages.Prepared | bytes) -> messages.Prepared:
    return messages.decode_prepared(answer) if isinstance(answer, bytes) else answer


def voted(answer: messages.Replies | bytes) -> messages.Replies:
    return messages.decode_replies(answer) if isinstance(answer, bytes) else answer


def replies(answer: tuple[bytes, ...] | bytes) -> tuple[bytes, ...]:
    return messages.decode_replies(answer).replies if isinstance(answer, bytes) else answer


def _same(answer: T) -> T:
    return answer


def _consume(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
