"""The cluster as this node shows it (node.console.ports.ClusterView): membership, own drives, peers' facts.

What peers say of their drives and of their repair work is asked in the background, 2 s a peer at most, and
shown with its age; so a page never waits for a machine without power. It is asked every PEER_FACTS_S
while somebody looks or anything is to be repaired; else only every PEER_FACTS_QUIET_S, since it is a sixth
of what an idle cluster does.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec

from locks.errors import LockError
from locks.messages import ForceRelease, ListLocks, Locks, Released
from node import repair_facts
from node.cluster.membership import Status
from node.console import models
from node.errors import ClientError, DriveFailed, HoldfastError, TargetFailed, Unavailable
from node.guard.breaker import BreakerState
from node.limits import FORMING_ASK_S, LOCK_ATTEMPT_S, PEER_FACTS_QUIET_S
from node.objects.gathering import Gathering
from node.observe.health import Health
from node.peer.inbound import PeerContext
from node.protocol import verbs
from node.repair_facts import DriveFacts, FillFacts, NodeFacts
from node.rpc.methods import Method
from node.store.drive_gate import LocalDrive

if TYPE_CHECKING:
    from node.compose import Node
    from node.engine import Engine

_BREAKERS: dict[BreakerState, models.BreakerName] = {
    BreakerState.CLOSED: "closed",
    BreakerState.HALF_OPEN: "half-open",
    BreakerState.OPEN: "open",
}
_STATES: dict[Status, models.NodeState] = {
    Status.UP: "up",
    Status.SUSPECT: "suspect",
    Status.DEAD: "dead",
    Status.UNKNOWN: "unknown",
}


class Pause(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """ADMIN: pause or resume repair; answered by NodeFacts."""

    paused: bool


class Accept(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """ADMIN: take in an empty drive, with `rebuild` a damaged one; answered by NodeFacts."""

    path: str
    rebuild: bool = False


_encode = msgspec.msgpack.encode
_facts = msgspec.msgpack.Decoder(NodeFacts)
_order = msgspec.msgpack.Decoder(Pause | Accept)


class ClusterView:
    """See the module."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._health: Health = node.health
        self._heard: dict[str, tuple[float, NodeFacts]] = {}
        self._repaired: list[tuple[float, int]] = []  # samples for the rate
        self._asked_at = self._looked_at = -PEER_FACTS_QUIET_S

    # ---- what peers say and ask -----------------------------------------------------------------
    async def poll(self, deadline: float) -> None:
        """A job: asks every living peer for its facts, if that is worth while."""
        node = self._node
        if not self._worth_asking(node.clock.monotonic()):
            return
        self._asked_at = node.clock.monotonic()
        gathering: Gathering[str, bytes] = Gathering()
        for peer in node.membership.alive():
            gathering.add(peer, node.peers.call(peer, Method.INFO, b"", deadline=deadline))
        await gathering.until(lambda: False, deadline - node.clock.monotonic())
        now = node.clock.monotonic()
        for peer, answer in gathering.results.items():
            self._heard[peer] = (now, _facts.decode(answer))
        self._repaired.append((now, sum(f.repaired for f in self._facts().values())))
        del self._repaired[:-30]

    def _worth_asking(self, now: float) -> bool:
        if now - self._looked_at < PEER_FACTS_QUIET_S or now - self._asked_at >= PEER_FACTS_QUIET_S:
            return True
        facts = self._facts()
        return len(facts) <= len(self._node.membership.alive()) or any(
            f.queue or f.undecided or f.fills for f in facts.values()
        )

    def on_info(self, _context: PeerContext, _payload: bytes) -> bytes:
        return _encode(self._own())

    async def on_admin(self, _context: PeerContext, payload: bytes) -> bytes:
        try:
            order = _order.decode(payload)
        except msgspec.MsgspecError as error:
            raise ClientError(f"no order that is known here: {error}") from error
        if isinstance(order, Pause):
            self._engine().pause.heard(order.paused)
        else:
            await self._accept_here(order.path, rebuild=order.rebuild)
        return _encode(self._own())

    def _own_drive(self, drive: LocalDrive) -> DriveFacts:
        usage = drive.usage
        if usage is None:
            return DriveFacts(
                drive.index, drive.path, drive.drive_id.hex(), drive.state.name.lower()
            )
        engine = self._node.engine
        # The scrubber's own word is newer than the last drive check.
        scrub = engine.scrubber.states.get(drive.drive_id, usage.scrub) if engine else usage.scrub
        return DriveFacts(
            drive.index,
            drive.path,
            drive.drive_id.hex(),
            drive.state.name.lower(),
            usage.total_bytes,
            usage.free_bytes,
            scrub.finished_s,
            scrub.started_s > 0,
            scrub.faults,
        )

    def _own(self) -> NodeFacts:
        node = self._node
        drives = tuple(self._own_drive(drive) for drive in node.gate.local_drives())
        engine = node.engine
        if engine is None:
            return NodeFacts(drives)
        status, settling = engine.repairs.status, engine.settler.status
        now = node.clock.monotonic()
        return NodeFacts(
            drives,
            status.queue,
            status.oldest_s,
            settling.undecided,
            status.repaired,
            engine.pause.paused,
            tuple(
                FillFacts(walk.drive, walk.keys, walk.expected, now - walk.began)
                for walk in engine.filler.walks.values()
            ),
            repair_facts.census_facts(engine.census, now),
            settling.oldest_s,
        )

    def filling(self) -> bool:
        """Whether a drive of this node, or of a living one, is being filled, as far as this node has heard."""
        return any(d.usage and d.usage.filling for d in self._node.gate.local_drives()) or any(
            facts.fills for _, facts in self._living()
        )

    def _engine(self) -> Engine:
        engine = self._node.engine
        if engine is None or not engine.started:
            raise Unavailable("the node is waiting for its cluster")
        return engine

    # ---- facts ----------------------------------------------------------------------------------
    def cluster(self) -> models.Cluster:
        node = self._node
        self._looked_at = node.clock.monotonic()
        engine = node.engine
        topology = engine.topology if engine is not None else None
        ready, details = self._health.ready()
        notices = list(details.get("reasons", ()))
        notices += self._link_notices()
        notices += node.forming.waiting_for
        durability: Any = topology.durability if topology else node.settings.durability or "strict"
        return models.Cluster(
            cluster_id=topology.cluster_id.hex() if topology else "",
            node=node.settings.node,
            version=version("holdfast"),
            parity=topology.parity if topology else 0,
            durability=durability,
            ready=ready,
            write_ready=self._health.ready_write()[0],
            notices=tuple(dict.fromkeys(notices)),
            nodes=tuple(self._node_facts(name) for name in node.settings.node_names),
            sets=self._sets(),
            repair=self.repair(),
        )

    def _link_notices(self) -> list[str]:
        """Why links do not stand, where the peer's state does not say it: a dark node is unreachable, of course."""
        node = self._node
        return [
            f"{peer}: {trouble.message}"
            for peer, trouble in node.peers.troubles().items()
            if trouble.reason != "unreachable" or node.membership.state(peer).status is Status.UP
        ]

    def _node_facts(self, name: str) -> models.Node:
        node = self._node
        if name == node.settings.node:
            return models.Node(
                name=name,
                state="up",
                self=True,
                incarnation=node.incarnation,
                rtt_ms=0.0,
                lag_ms=node.membership.lag_s * 1000,
                facts_age_s=0.0,
                drives=self._drives(name, self._own(), alive=True),
            )
        state = node.membership.state(name)
        heard = self._heard.get(name)
        return models.Node(
            name=name,
            state=_STATES[state.status],
            incarnation=state.incarnation,
            rtt_ms=state.rtt_s * 1000,
            lag_ms=state.lag_s * 1000,
            since_s=state.since_s,
            facts_age_s=node.clock.monotonic() - heard[0] if heard else None,
            breakers={
                target.klass: _BREAKERS[target.breaker.state]
                for target in node.guard.targets("peer")
                if target.name == name
            },
            drives=self._drives(
                name,
                heard[1] if heard else None,
                alive=state.status in (Status.UP, Status.SUSPECT),
            ),
        )

    def _drives(
        self, name: str, facts: NodeFacts | None, *, alive: bool
    ) -> tuple[models.Drive, ...]:
        sets = self._set_of_drives(name)
        said = {drive.index: drive for drive in facts.drives} if facts else {}
        paths = [v.path for v in self._node.settings.volumes if v.node == name]
        found = []
        now = self._node.clock.now()
        for index, path in enumerate(paths):
            drive = said.get(index)
            found.append(
                models.Drive(
                    index=index,
                    path=path,
                    drive_id=drive.drive_id if drive else "",
                    set=sets.get(index),
                    state=drive.state if drive and alive else "unknown",
                    total_bytes=drive.total_bytes if drive else None,
                    free_bytes=drive.free_bytes if drive else None,
                    scrub_age_s=max(now - drive.scrubbed_s, 0.0)
                    if drive and drive.scrubbed_s
                    else None,
                    scrubbing=bool(drive and drive.scrubbing),
                    scrub_faults=drive.scrub_faults if drive else 0,
                )
            )
        return tuple(found)

    def _set_of_drives(self, name: str) -> dict[int, int]:
        engine = self._node.engine
        if engine is None:
            return {}
        return {
            slot.drive: view.index
            for view in engine.cluster.views
            for slot in view.slots
            if slot.node == name
        }

    def _sets(self) -> tuple[models.Set, ...]:
        engine = self._node.engine
        if engine is None:
            return ()
        found = []
        for view in engine.cluster.views:
            online = len(engine.cluster.online(view))
            geometry = view.geometry
            found.append(
                models.Set(
                    index=view.index,
                    online=online,
                    n=view.n,
                    k=geometry.k,
                    write_quorum=geometry.write_quorum,
                    read_tolerance=online - max(geometry.k, view.read_quorum),
                    write_tolerance=online - geometry.write_quorum,
                    margin=online - geometry.k,
                    drives_per_node=view.drives_per_node,
                )
            )
        return tuple(found)

    def repair(self) -> models.Repair:
        """The deepest queue that any living node reports; what all of them have repaired."""
        self._looked_at = self._node.clock.monotonic()
        facts = self._facts()
        every = list(facts.values())
        queue = max(f.queue for f in every)
        repaired = sum(f.repaired for f in every)
        rate = self._rate(repaired)
        return models.Repair(
            queue=queue,
            oldest_s=max(f.oldest_s for f in every) if queue else 0.0,
            undecided=max(f.undecided for f in every),
            undecided_oldest_s=max(f.undecided_oldest_s for f in every),
            repaired=repaired,
            rate_per_s=rate,
            eta_s=queue / rate if queue and rate > 0 else None,
            paused=any(f.paused for f in every),
            fills=tuple(
                repair_facts.fill(name, fill) for name, f in facts.items() for fill in f.fills
            ),
            census=repair_facts.newest_census(facts),
        )

    def _facts(self) -> dict[str, NodeFacts]:
        """Of this node and of every living one that was heard."""
        alive = self._node.membership.alive()
        heard = {peer: facts for peer, (_, facts) in self._heard.items() if peer in alive}
        return {self._node.settings.node: self._own(), **heard}

    def _living(self) -> list[tuple[float, NodeFacts]]:
        alive = self._node.membership.alive()
        return [heard for peer, heard in self._heard.items() if peer in alive]

    def _rate(self, repaired: int) -> float:
        if not self._repaired:
            return 0.0
        began, before = self._repaired[0]
        seconds = self._node.clock.monotonic() - began
        return max(repaired - before, 0) / seconds if seconds > 0 else 0.0

    # ---- actions --------------------------------------------------------------------------------
    async def pause_repair(self, paused: bool, *, deadline: float) -> models.Repair:
        """Stored first, so that no restart forgets it; nodes that are not told now read it themselves."""
        node = self._node
        await self._engine().pause.store(paused, deadline=deadline)
        gathering: Gathering[str, bytes] = Gathering()
        order = _encode(Pause(paused))
        for peer in node.membership.alive():
            gathering.add(peer, node.peers.call(peer, Method.ADMIN, order, deadline=deadline))
        await gathering.until(lambda: False, deadline - node.clock.monotonic())
        now = node.clock.monotonic()
        for peer, answer in gathering.results.items():
            self._heard[peer] = (now, _facts.decode(answer))
        return self.repair()

    async def census(self, *, deadline: float) -> models.Census:
        """Taken now, while the caller waits."""
        engine = self._engine()
        await engine.census.take(deadline=deadline)
        facts = repair_facts.census_facts(engine.census, self._node.clock.monotonic())
        return repair_facts.census(self._node.settings.node, facts)

    def start_census(self) -> models.Census:
        """In the background of this node."""
        self._engine().census.request()
        return self.own_census()

    def own_census(self) -> models.Census:
        """The last one that this node took, and the progress of the one under way."""
        engine = self._engine()
        facts = repair_facts.census_facts(engine.census, self._node.clock.monotonic())
        return repair_facts.census(self._node.settings.node, facts)

    async def locks(self, *, deadline: float) -> tuple[models.Lock, ...]:
        del deadline
        found = await self._engine().locks.ask(ListLocks())
        if not isinstance(found, Locks):
            raise TargetFailed("the lock server gave no list")
        return tuple(
            models.Lock(
                resource=entry.resource,
                holder=entry.owner.node,
                age_s=entry.age_s,
                waiters=entry.waiters,
                mode=entry.mode.name.lower(),
            )
            for entry in found.entries
        )

    async def release_lock(self, resource: str, *, deadline: float) -> bool:
        engine = self._engine()
        held = any(lock.resource == resource for lock in await self.locks(deadline=deadline))
        released = 0
        for server in (self._node.settings.node, *self._node.membership.alive()):
            try:
                reply = await engine.locks.transport.call(
                    server, ForceRelease(resource), LOCK_ATTEMPT_S
                )
            except (HoldfastError, LockError, TimeoutError):
                continue
            released += isinstance(reply, Released)
        return held and released > 0

    async def accept_drive(
        self, node: str, path: str, *, rebuild: bool = False, deadline: float
    ) -> None:
        if node == self._node.settings.node:
            await self._accept_here(path, rebuild=rebuild)
            return
        if node not in self._node.settings.node_names:
            raise ClientError(f"there is no node {node}; they are {self._node.settings.node_names}")
        order = _encode(Accept(path, rebuild))
        await self._node.peers.call(node, Method.ADMIN, order, deadline=deadline)

    async def _accept_here(self, path: str, *, rebuild: bool) -> None:
        paths = self._node.settings.local_paths
        if path not in paths:
            raise ClientError(f"this node has no drive {path}; it has {', '.join(paths)}")
        index = paths.index(path)
        if rebuild:
            node = self._node
            deadline = node.clock.monotonic() + FORMING_ASK_S
            try:
                await node.gate.ask_at(index, verbs.Retire(), deadline=deadline)
            except DriveFailed as error:
                raise ClientError(f"{path} cannot be rebuilt: {error}") from error
        await self._node.forming.accept(index)

    def config(self) -> tuple[models.ConfigValue, ...]:
        return tuple(
            models.ConfigValue(name=name, value=value, origin=origin)
            for name, value, origin in self._node.settings.shown
        )
