"""How a cluster comes to be, and how a node finds that it belongs to one.

Theory of operation. A node looks at its own drives until it knows a formed cluster:

    a drive of mine is formed         the cluster is known; no peer is needed
    else a peer's drive is formed     the cluster is known; mine are empty, half-formed, or gone
    else I am the first listed node   form it, once every listed drive answers and is empty or half-formed
    else                              wait; the first listed node writes to my drives through me

Forming writes a format of state `forming` to every drive, and only when all have it, `formed` to all.
So after a crash half-way nobody takes the cluster for formed: the first node goes on with the ids that
were written already. After a crash in the second round one formed drive is proof that every drive has
its format, so each node turns its own to formed.

An empty drive in a formed cluster gets a new id, but only if it is a mount of its own or was accepted
by name: a drive that is not mounted looks like an empty directory of the system disk. All other drives
are left out, with a reason, and looked at again now and then.

Nothing here gives up: what is missing is awaited and named. Only a contradiction between this node's
own drives and its configuration ends it (FormatError).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

from node.cluster.topology import parity_for
from node.config import Settings
from node.errors import ClientError, HoldfastError
from node.limits import FORMING_ASK_S, FORMING_REPORT_S, FORMING_RETRY_S
from node.runtime.ports import Clock, Rng
from node.store.boot import Answer, Finding, Kind, Place, View, judge, places
from node.store.format import ID_BYTES, Format, FormatError, State, encode_format, new_format


class DriveAccess(Protocol):
    """Reads and writes format.json of any listed drive, each bounded by its deadline.

    Failures are HoldfastErrors, DriveFailed where the drive itself said no.
    """

    async def read(self, node: str, drive: int, *, deadline: float) -> bytes: ...

    async def write(self, node: str, drive: int, data: bytes, *, deadline: float) -> None: ...


class Log(Protocol):
    def info(self, event: str, **fields: Any) -> Any: ...

    def warning(self, event: str, **fields: Any) -> Any: ...


OnChange = Callable[[Format, tuple[Finding, ...]], None]


class Forming:
    """One node's part. `run` first; then `review` now and then, and `learn` from what peers tell."""

    def __init__(
        self,
        *,
        settings: Settings,
        access: DriveAccess,
        clock: Clock,
        rng: Rng,
        own_mount: Callable[[str], Awaitable[bool]],
        log: Log,
    ) -> None:
        """`own_mount(path)`: whether the path is a mount of its own (node.runtime.mounts)."""
        self._settings = settings
        self._access = access
        self._clock = clock
        self._rng = rng
        self._own_mount = own_mount
        self._log = log
        self._mine = [place for place in places(settings) if place.node == settings.node]
        self._others = [place for place in places(settings) if place.node != settings.node]
        self._accepted: set[int] = set()
        self._said: tuple[tuple[str, ...], float] = ((), 0.0)
        self._listeners: list[OnChange] = []
        self._told: object = None
        self._turn = asyncio.Lock()  # one look at the drives at a time
        self.cluster: Format | None = None  # formed, as far as this node knows
        self.half_formed: Format | None = None  # what a forming drive of mine says
        self.local: tuple[Finding, ...] = ()
        self.waiting_for: tuple[str, ...] = ()

    @property
    def drive_count(self) -> int:
        """Drives this node lists."""
        return len(self._mine)

    def is_empty(self, drive: int) -> bool:
        """When this node looked last."""
        return any(f.drive == drive and f.kind is Kind.EMPTY for f in self.local)

    # ---- start -------------------------------------------------------------------------------------
    async def run(self) -> Format:
        """Returns when this node knows its formed cluster. Never fails for want of a peer; FormatError."""
        while True:
            async with self._turn:
                cluster = await self._find()
                if cluster is not None:
                    await self._settle(cluster)
                    assert self.cluster is not None
                    return self.cluster
            self._report("waiting for the cluster")
            await self._clock.sleep(FORMING_RETRY_S)

    async def _find(self) -> Format | None:
        view = judge(self._settings, self._mine, await self._ask(self._mine))
        self.local = view.findings
        self.half_formed = view.cluster
        if view.formed:
            return view.cluster
        answers = await self._ask(self._others)
        try:
            others = judge(self._settings, self._others, answers, view.cluster)
        except FormatError as error:
            self.waiting_for = (f"drives of other nodes do not fit: {error}",)
            return None
        if others.formed:
            # They are formed, so mine were written too, perhaps since I looked.
            again = judge(self._settings, self._mine, await self._ask(self._mine), others.cluster)
            self.local = again.findings
            return again.cluster
        if self._settings.node != self._settings.node_names[0]:
            first = (
                f"{self._settings.node_names[0]} forms the cluster when every listed drive answers"
            )
            self.waiting_for = (*self._obstacles(view), first)
            return None
        return await self._form(view, others)

    def _obstacles(self, *views: View) -> tuple[str, ...]:
        kinds = (Kind.SILENT, Kind.FOREIGN)
        return tuple(str(f) for view in views for f in view.findings if f.kind in kinds)

    async def _form(self, mine: View, others: View) -> Format | None:
        self.waiting_for = self._obstacles(mine, others)
        if self.waiting_for:
            return None
        plan = others.cluster or self._new_plan()  # `others` was judged together with mine
        empty = [f for view in (mine, others) for f in view.findings if f.kind is Kind.EMPTY]
        self._log.info("forming the cluster", cluster_id=plan.cluster_id, drives_left=len(empty))
        failed = await self._write(plan, empty, State.FORMING)
        if failed:
            self.waiting_for = failed
            return None
        every = mine.findings + others.findings
        failed = await self._write(plan, every, State.FORMED)
        if len(failed) == len(every):
            self.waiting_for = failed
            return None
        # Whoever missed the second round turns his own drives to formed when he sees one that is.
        self._log.info("the cluster is formed", cluster_id=plan.cluster_id, drives=len(every))
        view = judge(self._settings, self._mine, await self._ask(self._mine), plan)
        self.local = view.findings
        return plan.merged(plan.seen_from(plan.node, plan.drive, State.FORMED))

    def _new_plan(self) -> Format:
        count = sum(self._settings.drives_per_node)
        created = datetime.fromtimestamp(int(self._clock.now()), UTC)
        return new_format(
            cluster_id=self._rng.bytes(ID_BYTES),
            drive_ids=tuple(self._rng.bytes(ID_BYTES) for _ in range(count)),
            nodes=self._settings.node_names,
            drives_per_node=self._settings.drives_per_node[0],
            parity=parity_for(self._settings),
            durability=self._settings.durability or "strict",
            created=created.isoformat().replace("+00:00", "Z"),
        )

    # ---- in a formed cluster -----------------------------------------------------------------------
    async def review(self) -> None:
        """Looks at this node's drives again: takes in what may be, writes down what was learnt."""
        async with self._turn:
            assert self.cluster is not None, "review comes after run"
            view = judge(self._settings, self._mine, await self._ask(self._mine), self.cluster)
            self.local = view.findings
            assert view.cluster is not None
            await self._settle(view.cluster)
        if self.waiting_for:
            self._report("drives are left out")

    async def accept(self, drive: int) -> Finding:
        """Takes in an empty drive of this node that is no mount of its own; ClientError when it cannot be."""
        if not 0 <= drive < len(self._mine):
            raise ClientError(f"this node has drives 1 to {len(self._mine)}")
        if self.cluster is None:
            raise ClientError("the cluster is not formed yet; its drives need no acceptance")
        self._accepted.add(drive)
        try:
            await self.review()
        finally:
            self._accepted.discard(drive)
        finding = self.local[drive]
        if finding.kind is not Kind.OURS:
            raise ClientError(f"the drive cannot be taken in: {finding}")
        return finding

    def learn(self, other: Format) -> None:
        """What a peer's matrix says of drives that were replaced. Written to the drives at the next review."""
        if self.cluster is None or not self.cluster.same_cluster_shape(other):
            return
        merged = self.cluster.merged(other)
        if merged.pools != self.cluster.pools:
            self._adopt(merged)

    def on_change(self, listener: OnChange) -> None:
        """`listener(cluster, drives of this node)` at each change of either; at once if it is known."""
        self._listeners.append(listener)
        if self.cluster is not None:
            listener(self.cluster, self.local)

    async def _settle(self, cluster: Format) -> None:
        """Brings this node's drives in line with a formed cluster."""
        before = self.local
        if self.cluster is not None:
            cluster = cluster.merged(self.cluster)
        for finding in before:
            if finding.kind is Kind.EMPTY and await self._may_take(finding):
                cluster = await self._take_in(finding, cluster)
        stale = [f for f in self.local if f.format is not None and _outdated(f.format, cluster)]
        if stale:
            await self._write(cluster, stale, State.FORMED)
        self.waiting_for = tuple(_left_out(f) for f in self.local if f.kind is not Kind.OURS)
        self._adopt(cluster)

    async def _may_take(self, finding: Finding) -> bool:
        if finding.drive in self._accepted:
            return True
        try:
            async with asyncio.timeout(FORMING_ASK_S):
                return await self._own_mount(finding.path)
        except TimeoutError:
            return False

    async def _take_in(self, finding: Finding, cluster: Format) -> Format:
        """Gives an empty drive a new id; -> the matrix with it, or unchanged where the drive refused."""
        drive_id = self._rng.bytes(ID_BYTES).hex()
        fresh = cluster.with_drive(finding.node, finding.drive, drive_id)
        failed = await self._write(fresh, [finding], State.FORMED)
        if failed:
            self._log.warning("could not take in an empty drive", reason=failed[0])
            return cluster
        self._log.info("took in an empty drive", path=finding.path, drive_id=drive_id)
        stored = fresh.seen_from(finding.node, finding.drive, State.FORMED)
        ours = replace(finding, kind=Kind.OURS, reason="", format=stored)
        self.local = tuple(ours if f is finding else f for f in self.local)
        return fresh

    def _adopt(self, cluster: Format) -> None:
        self.cluster = cluster
        seen = (cluster.pools, tuple((f.kind, f.reason) for f in self.local))
        if seen != self._told:
            self._told = seen
            for listener in self._listeners:
                listener(cluster, self.local)

    # ---- asking ------------------------------------------------------------------------------------
    async def _ask(self, asked: Sequence[Place]) -> list[Answer]:
        deadline = self._clock.monotonic() + FORMING_ASK_S

        async def one(place: Place) -> Answer:
            try:
                return await self._access.read(place.node, place.drive, deadline=deadline)
            except HoldfastError as error:
                return error

        return await asyncio.gather(*(one(place) for place in asked))

    async def _write(
        self, plan: Format, targets: Iterable[Finding], state: State
    ) -> tuple[str, ...]:
        """Writes to each drive its own format; -> what failed, in words."""
        deadline = self._clock.monotonic() + FORMING_ASK_S

        async def one(target: Finding) -> str:
            data = encode_format(plan.seen_from(target.node, target.drive, state))
            try:
                await self._access.write(target.node, target.drive, data, deadline=deadline)
            except HoldfastError as error:
                return f"{target.node}{target.path}: its format could not be written ({error})"
            return ""

        return tuple(text for text in await asyncio.gather(*(one(t) for t in targets)) if text)

    def _report(self, event: str) -> None:
        """At once when it changes, and every few seconds as long as it lasts."""
        now = self._clock.monotonic()
        said, at = self._said
        if self.waiting_for != said or now - at >= FORMING_REPORT_S:
            self._said = (self.waiting_for, now)
            self._log.warning(event, awaited=_shortened(self.waiting_for))


def _left_out(finding: Finding) -> str:
    if finding.kind is not Kind.EMPTY:
        return str(finding)
    return (
        f"{finding} in a formed cluster and not a mount of its own: mount the drive, or run "
        f"`holdfast drive accept {finding.node}:{finding.path}`"
    )


def _outdated(stored: Format, cluster: Format) -> bool:
    return stored.state is not State.FORMED or stored.pools != cluster.pools


def _shortened(reasons: tuple[str, ...], most: int = 8) -> list[str]:
    more = [f"and {len(reasons) - most} more"] if len(reasons) > most else []
    return [*reasons[:most], *more]
