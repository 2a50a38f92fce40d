"""What a node is made of once it knows its cluster: locks, objects, identity, jobs.

Built by node.compose when forming is done; nothing in here listens or reads the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from locks.driver import LockService
from locks.messages import Owner
from node.cluster.lock_server import LOCKS_RECOVERING, LockServer
from node.cluster.topology import Topology
from node.identity.copies import DriveCopies
from node.identity.service import Identity, create_identity
from node.jobs.runner import Job, Runner
from node.limits import (
    CENSUS_PAUSE_S,
    CENSUS_TURN_S,
    COLLECT_INTERVAL_S,
    FILL_PAUSE_S,
    FORMING_REPORT_S,
    PAUSE_READ_S,
    PAUSE_REFRESH_S,
    PEER_FACTS_S,
    REPAIR_INTERVAL_S,
    SCRUB_INTERVAL_S,
    SETTLE_INTERVAL_S,
    UPLOAD_SWEEP_S,
)
from node.objects.buckets import Buckets
from node.objects.census import CensusTaker
from node.objects.collect import Collector
from node.objects.documents import Documents
from node.objects.fill import Filler
from node.objects.heal import Healer
from node.objects.listing import Lister
from node.objects.lookup import Lookup
from node.objects.member import Member
from node.objects.multipart import Multipart
from node.objects.pace import Clients, Pace
from node.objects.part_mending import PartMender
from node.objects.pause import PauseSwitch
from node.objects.proof import Proof
from node.objects.put import Intake
from node.objects.repair import Repairs
from node.objects.scrub import Scrubber
from node.objects.service import Objects, Parts
from node.objects.sets import CLIENTS, DRIVES_FILLING, DRIVES_ONLINE, VIEW, Cluster
from node.objects.settle import Settler
from node.objects.shards import ShardSources
from node.objects.upload_sweep import UploadSweep
from node.objects.write import Writer
from node.observe.log import get_logger
from node.peer.spread import PeerSpread
from node.peer.storage import StorageHandlers
from node.protocol.epoch import Attempts
from node.rpc.methods import Method
from node.store.boot import Finding, Kind
from node.store.drive_gate import DriveState

if TYPE_CHECKING:
    from node.compose import Node

_IDENTITY = "identity"


class Engine:
    """The use cases of one node and what keeps them going."""

    identity: Identity
    started = False

    def __init__(self, node: Node, topology: Topology) -> None:
        self._node = node
        self.topology = topology
        clock, gate, arena = node.clock, node.gate, node.arena
        self.locks = LockServer(
            topology.me, topology.nodes, node.incarnation, clock, node.membership, node.peers
        )
        attempts = iter(range(1, 1 << 62))
        member = Member(gate, self.locks)
        self.cluster = Cluster(topology, member, node.peers, node.membership, clock)
        self.cluster.own_drives = self._own_drives
        self.cluster.own_filling = self._own_filling
        self.lock_service = LockService(
            self.locks.transport,
            clock,
            node.rng,
            topology.nodes,
            # Far from the numbers of the writer's own rounds: an owner is never used twice.
            lambda: Owner(topology.me, node.incarnation, (1 << 62) + next(attempts)),
            node.metrics,
            doubtful=self.cluster.is_quiet,
        )
        self.lookup = Lookup(self.cluster)
        self.writer = Writer(
            self.cluster,
            self.lookup,
            self.lock_service,
            # Unique by chance, not by the clock: an incarnation may repeat when a clock is set back.
            Attempts(topology.me, int.from_bytes(node.rng.bytes(6), "big")),
            node.incarnation,
            node.metrics,
        )
        sources = ShardSources(self.cluster, gate, arena)
        self.healer = Healer(self.cluster, self.lookup, sources, gate, arena)
        self.lookup.rebuilder = self.healer
        self.lookup.hedged = node.metrics.hedge
        intake = Intake(self.cluster, gate, arena, node.cpu, node.rng)
        lister = Lister(self.cluster, self.lookup)
        self.documents = Documents(self.cluster, self.lookup, self.writer, node.rng)
        buckets = Buckets(
            self.cluster, self.documents, node.settings.region, node.guard, node.metrics
        )
        multipart = Multipart(
            self.cluster,
            self.lookup,
            self.writer,
            intake,
            lister,
            node.rng,
            PartMender(self.cluster, self.lookup, self.healer),
        )
        self.objects = Objects(
            Parts(
                cluster=self.cluster,
                lookup=self.lookup,
                writer=self.writer,
                intake=intake,
                sources=sources,
                lister=lister,
                buckets=buckets,
                multipart=multipart,
                observer=node.metrics,
            )
        )
        self.upload_sweep = UploadSweep(self.cluster, self.lookup, lister, buckets, multipart)
        self.clients = Clients(lambda: node.guard.activity("s3"), self._clients_elsewhere)
        self.pace = Pace(clock, self.clients.count)
        self.pause = PauseSwitch(self.documents)
        self.repairs = Repairs(
            self.cluster,
            gate,
            self.healer,
            self.writer,
            buckets,
            node.metrics,
            get_logger("holdfast.repair"),
            self.pause,
            self.pace,
        )
        self.filler = Filler(
            self.cluster, gate, self.healer, get_logger("holdfast.fill"), self.pause, self.pace
        )
        self.census = CensusTaker(self.cluster, gate, self.pace)
        self.proof = Proof(
            self.cluster,
            self.census,
            self.repairs,
            node.view.filling,
            node.metrics,
            get_logger("holdfast.repair"),
        )
        self.settler = Settler(self.cluster, gate, self.healer, node.metrics)
        self.collector = Collector(
            self.cluster, gate, self.healer, node.metrics, lambda: self.repairs.status.queue > 0
        )
        self.scrubber = Scrubber(
            self.cluster, gate, self.pace, node.metrics, get_logger("holdfast.scrub")
        )
        self.storage = StorageHandlers(member, self.locks, gate, arena, clock)
        self.handlers: dict[Method, Any] = {
            Method.PREPARE: self.storage.prepare,
            Method.COMMIT: self.storage.commit,
            Method.FINISH: self.storage.finish,
            Method.VERBS: self.storage.verbs,
            Method.LOCK: self.storage.lock,
            Method.IDENTITY: self._on_identity,
            Method.INFO: node.view.on_info,
            Method.ADMIN: node.view.on_admin,
        }
        self.runner = Runner(node.guard, clock, node.rng, get_logger("holdfast.jobs"))
        node.metrics.margin_wanted(
            {view.index: view.drives_per_node for view in self.cluster.views}
        )

    async def start(self) -> None:
        """Drives are bound, the lock server recovers, identity is read, jobs run."""
        node = self._node
        self._bind(self.topology)
        self.locks.start()
        self.identity = await create_identity(
            node.settings,
            self.topology.cluster_id,
            documents=self.documents,
            copies=DriveCopies(node.gate, node.clock),
            spread=PeerSpread(node.peers, node.membership),
            guard=node.guard,
            clock=node.clock,
            rng=node.rng,
            cpu=node.cpu,
            metrics=node.metrics,
            publish=node.membership.publish,
            highest_seen=lambda: max(
                (s.versions.get(_IDENTITY, 0) for s in node.membership.states()), default=0
            ),
        )
        self.identity.start()

        async def repair(_deadline: float) -> None:
            if not self.pause.known:
                await pause(node.clock.monotonic() + PAUSE_READ_S)
            await self.repairs.round()

        async def settle(_deadline: float) -> None:
            await self.settler.round()

        async def collect(_deadline: float) -> None:
            await self.collector.turn()

        async def scrub(_deadline: float) -> None:
            await self.scrubber.turn()

        async def pause(deadline: float) -> None:
            await self.pause.refresh(deadline=deadline)

        async def review(_deadline: float) -> None:
            await node.forming.review()

        async def gauge(_deadline: float) -> None:
            self._gauge()

        async def fill(_deadline: float) -> None:
            if self.pause.known:
                await self.filler.turn()

        async def census(_deadline: float) -> None:
            await self.proof.turn(node.clock.monotonic() + CENSUS_TURN_S)

        async def sweep_uploads(deadline: float) -> None:
            await self.upload_sweep.round(deadline=deadline)

        self.runner.start(Job(name="upload_sweep", pause_s=UPLOAD_SWEEP_S, work=sweep_uploads))
        self.runner.start(Job(name="pause", pause_s=PAUSE_REFRESH_S, work=pause))
        self.runner.start(Job(name="census", pause_s=CENSUS_PAUSE_S, work=census))
        self.runner.start(Job(name="fill", pause_s=FILL_PAUSE_S, work=fill))
        self.runner.start(Job(name="heal", pause_s=REPAIR_INTERVAL_S, work=repair))
        self.runner.start(Job(name="settle", pause_s=SETTLE_INTERVAL_S, work=settle))
        self.runner.start(Job(name="collect", pause_s=COLLECT_INTERVAL_S, work=collect))
        self.runner.start(Job(name="scrub", pause_s=SCRUB_INTERVAL_S, work=scrub))
        self.runner.start(Job(name="drive_review", pause_s=FORMING_REPORT_S, work=review))
        self.runner.start(Job(name="peer_facts", pause_s=PEER_FACTS_S, work=node.view.poll))
        self.runner.start(Job(name="gauges", pause_s=0.5, work=gauge))
        self.started = True

    def lock_servers(self) -> int:
        """Lock servers that grant: those that are not recovering any more."""
        membership = self._node.membership
        serving = int(not self.locks.table.recovering)
        serving += sum(
            membership.state(peer).versions.get(LOCKS_RECOVERING) == 0
            for peer in membership.alive()
        )
        return serving

    async def stop(self) -> None:
        await self.runner.stop()
        if hasattr(self, "identity"):
            await self.identity.close()
        await self.lock_service.aclose()
        await self.locks.stop()

    def adopt(self, topology: Topology, drives: tuple[Finding, ...]) -> None:
        """A drive was taken in or replaced: from now on its slot has another id."""
        self.topology = topology
        self.cluster.update(topology)
        self._bind(topology)
        for finding in drives:
            if finding.kind is not Kind.OURS:
                self._node.gate.bind(finding.drive, b"")

    def _bind(self, topology: Topology) -> None:
        for erasure_set, position in topology.local_slots:
            slot = erasure_set.slots[position]
            self._node.gate.bind(slot.drive, slot.drive_id, f"{erasure_set.index}-{position}")

    async def _on_identity(self, _context: object, payload: bytes) -> bytes:
        return await self.identity.handle_spread(payload)

    def _own_drives(self) -> int:
        drives = self._node.gate.local_drives()
        return sum(1 << d.index for d in drives if d.state is DriveState.ONLINE)

    def _own_filling(self) -> int:
        drives = self._node.gate.local_drives()
        return sum(1 << d.index for d in drives if d.usage is not None and d.usage.filling)

    def _clients_elsewhere(self) -> list[int]:
        membership = self._node.membership
        return [membership.state(peer).versions.get(CLIENTS, 0) for peer in membership.alive()]

    def _gauge(self) -> None:
        metrics = self._node.metrics
        self._node.membership.publish(DRIVES_FILLING, self._own_filling())
        self._node.membership.publish(VIEW, self.cluster.view_number)
        self._node.membership.publish(CLIENTS, self.clients.tick())
        self._node.membership.publish(DRIVES_ONLINE, self._own_drives())
        metrics.locks_held(self.locks.table.size)
        for view in self.cluster.views:
            online = len(self.cluster.online(view))
            geometry = view.geometry
            metrics.set_health(
                view.index, online, online - geometry.k, online - geometry.write_quorum
            )
