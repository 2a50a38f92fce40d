"""Filling a replaced drive: everything its set holds is brought back to it, then its silence counts again.

Theory of operation. A drive that joined a formed cluster empty may have held any key before. Until it is
filled it answers FILLING for keys it does not have, which counts as no answer, so it never helps to call a key
absent. The walk goes over the catalogs of the other drives of its set, R of them at the least, in the order
of keys, and repairs each key at this drive; what is written meanwhile is in the repair queue. It works in
turns and keeps its place between them; a node that restarts begins anew, and what is there already costs a
look. Only a walk without a single failure ends with the word that the drive is filled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from node.errors import HoldfastError, QuorumLost
from node.limits import CENSUS_PAGE, FILL_AT_ONCE, FILL_TURN_S, REPAIR_DEADLINE_S
from node.objects.heal import Healer
from node.objects.pace import Pace
from node.objects.pause import PauseSwitch
from node.objects.sets import Cluster, SetView
from node.protocol import verbs
from node.store.drive_gate import DriveGate, DriveState


class Log(Protocol):
    def info(self, event: str, **fields: object) -> object: ...

    def warning(self, event: str, **fields: object) -> object: ...


@dataclass(slots=True)
class Walk:
    """How far the filling of one drive is."""

    drive: str
    began: float  # monotonic
    expected: int  # keys, at the most, as far as this node's other drives know
    after: bytes = b""
    keys: int = 0
    failed: int = 0


class Filler:
    """Fills this node's replaced drives, one after the other."""

    def __init__(
        self,
        cluster: Cluster,
        gate: DriveGate,
        healer: Healer,
        log: Log,
        pause: PauseSwitch,
        pace: Pace,
    ) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._gate = gate
        self._healer = healer
        self._log = log
        self._pause = pause
        self._pace = pace
        self.walks: dict[bytes, Walk] = {}
        self._filled: set[bytes] = set()  # what the next drive check will say, too

    async def turn(self) -> None:
        """Works on every drive that is being filled, FILL_TURN_S in all at the most."""
        until = self._clock.monotonic() + FILL_TURN_S
        for drive in self._gate.local_drives():
            view = self._cluster.view_of_drive(drive.drive_id)
            if (
                drive.state is not DriveState.ONLINE
                or view is None
                or drive.usage is None
                or not drive.usage.filling
                or drive.drive_id in self._filled
            ):
                self.walks.pop(drive.drive_id, None)
                continue
            walk = self.walks.get(drive.drive_id)
            if walk is None:
                now = self._clock.monotonic()
                walk = self.walks[drive.drive_id] = Walk(drive.path, now, self._expected(view))
                self._log.info("filling a replaced drive", drive=drive.path)
            slot = view.drive_of.index(drive.drive_id)
            if await self._walk(view, slot, walk, until):
                await self._end(drive.drive_id, walk)

    async def _walk(self, view: SetView, slot: int, walk: Walk, until: float) -> bool:
        """-> whether the walk has come to its end."""
        while self._clock.monotonic() < until and not self._pause.paused:
            keys, horizon = await self._page(view, slot, walk.after)
            keys = [key for key in keys if key > walk.after]

            async def bring(key: bytes) -> tuple[bytes, bool]:
                return key, await self._bring(view, slot, key)

            done = await self._pace.each(keys, bring, at_once=FILL_AT_ONCE, until=until)
            walk.keys += len(done)
            walk.failed += sum(not brought for _, brought in done)
            if len(done) < len(keys):
                # Begun in their order: the next turn goes on behind the last one.
                walk.after = max((key for key, _ in done), default=walk.after)
                return False
            if horizon is None:
                return True
            walk.after = horizon
        return False

    async def _page(
        self, view: SetView, slot: int, after: bytes
    ) -> tuple[list[bytes], bytes | None]:
        """Keys that other drives of the set hold behind `after`, and up to where that is all of them."""
        others = [other for other in range(view.n) if other != slot]
        answers = await self._healer.ask(
            view,
            dict.fromkeys(others, verbs.Entries(after, CENSUS_PAGE)),
            self._clock.monotonic() + REPAIR_DEADLINE_S,
        )
        pages = [page for page in answers.values() if isinstance(page, verbs.RawPage)]
        if len(pages) < min(view.read_quorum, len(others)):
            raise QuorumLost("too few drives answer to fill a replaced one")
        horizon = min((p.entries[-1].key for p in pages if p.more and p.entries), default=None)
        keys = {
            entry.key
            for page in pages
            for entry in page.entries
            if horizon is None or entry.key <= horizon
        }
        return sorted(keys), horizon

    def _expected(self, view: SetView) -> int:
        drives = (d for d in self._gate.local_drives() if d.drive_id in view.drive_of and d.usage)
        return max((drive.usage.keys_estimate for drive in drives if drive.usage), default=0)

    async def _bring(self, view: SetView, slot: int, key: bytes) -> bool:
        try:
            healed = await self._healer.repair(
                view, key, (slot,), deadline=self._clock.monotonic() + REPAIR_DEADLINE_S
            )
        except HoldfastError as error:
            self._log.warning("a key could not be brought to a replaced drive", error=str(error))
            return False
        return not healed.lacking

    async def _end(self, drive_id: bytes, walk: Walk) -> None:
        del self.walks[drive_id]
        if walk.failed:
            self._log.warning(
                "a replaced drive lacks keys: it is filled anew",
                drive=walk.drive,
                lacking=walk.failed,
            )
            return
        await self._gate.ask(
            drive_id, verbs.Filled(), deadline=self._clock.monotonic() + REPAIR_DEADLINE_S
        )
        self._filled.add(drive_id)
        self._log.info("a replaced drive is filled", drive=walk.drive, keys=walk.keys)
