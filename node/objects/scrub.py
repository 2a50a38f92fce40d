"""The scrub: everything that a drive holds is read and verified, at a bounded rate, again and again.

Theory of operation. Each node scrubs its own drives, beside each other: row by row through the catalog (rows and
inline shards are verified by the drive itself), and block by block through the shard files that the rows name. A
pass begins SCRUB_EVERY_S after the last one ended, or after the drive was taken in. Its place is kept on the drive,
so a restart goes on where it was; what was kept last may be some seconds old, and is verified again. What fails is
queued for repair on the drives of the set, as a reader would do it, and repair puts the rotten file into quarantine
when it swaps in the rebuilt one: nothing is deleted here. It reads SCRUB_BYTES_PER_S of a drive at the most, and
yields to clients as repair does (node.objects.pace).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import msgspec

from node.errors import DriveFailed, HoldfastError
from node.limits import (
    REPAIR_DEADLINE_S,
    SCRUB_BYTES_PER_S,
    SCRUB_CHUNK_BYTES,
    SCRUB_EVERY_S,
    SCRUB_MARK_S,
    SCRUB_PAGE_KEYS,
    SCRUB_PAGE_PAUSE_S,
    SCRUB_TURN_S,
)
from node.objects.pace import Pace
from node.objects.sets import Cluster, SetView
from node.protocol import verbs
from node.protocol.verbs import DriveFault, ScrubState
from node.store.drive_gate import DriveGate, DriveState, LocalDrive

_set = msgspec.structs.replace


class ScrubObserver(Protocol):
    def scrubbed(self, drive: str, timestamp_s: float) -> None: ...

    def scrub_read(self, drive: str, size_bytes: int) -> None: ...

    def scrub_fault(self, reason: str) -> None: ...

    def rotten_block(self, drive: str) -> None: ...


class Log(Protocol):
    def info(self, event: str, **fields: object) -> object: ...

    def warning(self, event: str, **fields: object) -> object: ...


@dataclass(slots=True)
class _Pass:
    """A drive that is being scrubbed in this turn."""

    drive: LocalDrive
    view: SetView
    slot: int
    state: ScrubState
    until: float
    marked_at: float

    @property
    def place(self) -> str:
        return f"{self.view.node_of[self.slot]}{self.drive.path}"


class Scrubber:
    """Scrubs this node's drives."""

    def __init__(
        self, cluster: Cluster, gate: DriveGate, pace: Pace, observer: ScrubObserver, log: Log
    ) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._gate = gate
        self._pace = pace
        self._observer = observer
        self._log = log
        self.states: dict[bytes, ScrubState] = {}  # by drive id, newer than what drive checks say
        self._left: dict[
            bytes, tuple[bytes, int]
        ] = {}  # by drive id: the file and block of a turn's end

    async def turn(self) -> None:
        """Works on every drive whose pass is due or under way, SCRUB_TURN_S at the most."""
        now = self._clock.monotonic()
        passes = []
        for drive in self._gate.local_drives():
            view = self._cluster.view_of_drive(drive.drive_id)
            usage = drive.usage
            if drive.state is not DriveState.ONLINE or view is None or usage is None:
                continue
            if usage.filling:
                self.states.pop(drive.drive_id, None)
                continue
            state = self.states.setdefault(drive.drive_id, usage.scrub)
            slot = view.drive_of.index(drive.drive_id)
            each = _Pass(drive, view, slot, state, now + SCRUB_TURN_S, now)
            if state.started_s or await self._begins(each):
                passes.append(each)
            self._observer.scrubbed(drive.path, each.state.finished_s)
        outcomes = await asyncio.gather(*map(self._walk, passes), return_exceptions=True)
        for each, outcome in zip(passes, outcomes, strict=True):
            if isinstance(outcome, HoldfastError):
                # The others go on; this one is tried again from where it was.
                self._log.warning("a scrub was cut short", drive=each.place, error=str(outcome))
            elif outcome is not None:
                raise outcome

    async def _begins(self, each: _Pass) -> bool:
        """Whether a pass is due. A drive that was never scrubbed counts as verified when it was taken in."""
        now, state = self._clock.now(), each.state
        if not state.finished_s:
            await self._keep(each, _set(state, finished_s=now))
        # A clock that was set back may not put the next pass off for ever.
        if 0 <= now - each.state.finished_s < SCRUB_EVERY_S:
            return False
        fresh = ScrubState(started_s=now, finished_s=each.state.finished_s)
        await self._keep(each, fresh)
        self._log.info("a scrub begins", drive=each.place)
        return True

    async def _keep(self, each: _Pass, state: ScrubState) -> None:
        each.state = self.states[each.drive.drive_id] = state
        each.marked_at = self._clock.monotonic()
        await self._gate.ask(
            each.drive.drive_id,
            verbs.ScrubMark(state),
            deadline=each.marked_at + REPAIR_DEADLINE_S,
        )

    async def _walk(self, each: _Pass) -> None:
        while self._clock.monotonic() < each.until:
            ask = verbs.Scrub(
                each.state.after,
                each.slot,
                each.view.drives_per_node,
                SCRUB_PAGE_KEYS,
                SCRUB_CHUNK_BYTES // 4,
            )
            began = self._clock.monotonic()
            page = await self._ask(each, ask)
            assert isinstance(page, verbs.ScrubPage)
            await self._paced(each, page.size_bytes, began)
            await self._clock.sleep(SCRUB_PAGE_PAUSE_S)
            done = await self._files(each, page)
            if done is None:
                break
            state_faults, read = done
            state = _set(
                each.state,
                after=page.next_after,
                keys=each.state.keys + page.keys,
                size_bytes=each.state.size_bytes + page.size_bytes + read,
                faults=each.state.faults + state_faults,
            )
            if not page.next_after:
                await self._end(each, state)
                return
            each.state = self.states[each.drive.drive_id] = state
            if self._clock.monotonic() > each.marked_at + SCRUB_MARK_S:
                await self._keep(each, state)
        await self._keep(each, each.state)

    async def _end(self, each: _Pass, state: ScrubState) -> None:
        now = self._clock.now()
        await self._keep(each, _set(state, started_s=0.0, finished_s=now))
        self._observer.scrubbed(each.drive.path, now)
        self._log.info("a scrub is over", drive=each.place, keys=state.keys, faults=state.faults)

    async def _files(self, each: _Pass, page: verbs.ScrubPage) -> tuple[int, int] | None:
        """-> (faults of the page, bytes read of its files); None when the turn is over in the middle of them."""
        drive_id = each.drive.drive_id
        left = self._left.pop(drive_id, None)
        files = list(page.files)
        block = 0
        names = [data_id for _, _, data_id, _ in files]
        if left is not None and left[0] in names:
            files, block = files[names.index(left[0]) :], left[1]
        else:
            for fault in page.faults:
                self._report(each, *fault)
        faults, total = len(page.faults), 0
        for key, epoch, data_id, size in files:
            if self._clock.monotonic() >= each.until:
                self._left[drive_id] = (data_id, block)
                return None
            reason, read, block = await self._file(each, data_id, size, block)
            total += read
            if block:
                self._left[drive_id] = (data_id, block)
                return None
            if reason and await self._held(each, key, epoch):
                self._report(each, key, epoch, reason)
                faults += 1
        return faults, total

    async def _file(
        self, each: _Pass, data_id: bytes, size: int, block: int
    ) -> tuple[str, int, int]:
        """-> (what is wrong with a shard file, "" when nothing is; bytes read; the block to go on at, or 0)."""
        read = 0
        while True:
            began = self._clock.monotonic()
            try:
                answer = await self._ask(
                    each, verbs.ShardScan(data_id, size, block, SCRUB_CHUNK_BYTES)
                )
            except DriveFailed as error:
                if error.fault == DriveFault.NOT_FOUND:
                    return "missing", read, 0
                if error.fault in (DriveFault.CORRUPT, DriveFault.IO):
                    return "rotten", read, 0  # a sector that cannot be read is as good as rotten
                raise
            assert isinstance(answer, verbs.ShardScanned)
            read += answer.size_bytes
            await self._paced(each, answer.size_bytes, began)
            block = answer.next_block
            if not block or self._clock.monotonic() >= each.until:
                return "", read, block

    async def _held(self, each: _Pass, key: bytes, epoch: bytes) -> bool:
        """Whether the version is there still: its file may have gone with it while it was looked for."""
        state = await self._ask(each, verbs.Read(key))
        return isinstance(state, verbs.State) and any(e.epoch == epoch for e in state.entries)

    async def _ask(self, each: _Pass, verb: verbs.Verb) -> verbs.Reply:
        deadline = self._clock.monotonic() + REPAIR_DEADLINE_S
        return await self._gate.ask(each.drive.drive_id, verb, deadline=deadline)

    async def _paced(self, each: _Pass, size_bytes: int, began: float) -> None:
        self._observer.scrub_read(each.drive.path, size_bytes)
        took_s = self._clock.monotonic() - began
        await self._pace.rest(took_s)
        left_s = began + size_bytes / SCRUB_BYTES_PER_S - self._clock.monotonic()
        if left_s > 0:
            await self._clock.sleep(left_s)

    def _report(self, each: _Pass, key: bytes, epoch: bytes, reason: str) -> None:
        """Counted, and queued for repair on the drives of the set, so that no single one's loss forgets it."""
        self._observer.scrub_fault(reason)
        if reason != "missing":
            self._observer.rotten_block(each.place)
        self._log.warning("the scrub found a fault", drive=each.place, reason=reason)
        entry = verbs.Enqueue(key, epoch, (each.slot,))
        self._cluster.tell_slots(
            each.view,
            dict.fromkeys(range(each.view.n), entry),
            deadline=self._clock.monotonic() + REPAIR_DEADLINE_S,
        )
