"""Filling a replaced drive: everything its set holds is brought back to it, then its silence counts again.

Theory of operation (checked in tests/model, operation "rebuild"). A drive that joined a formed cluster empty
may have held, accepted or promised anything before. Until it is filled it answers FILLING for keys it does
not have, which counts as no answer. What the lost drive had answered still counts in the heads of coordinators,
so it is rebuilt under these rules:

    view       the number of replacements in its set. Commits carry it; every drive that takes part in the
               rebuilding first adopts the new one, durably, and refuses older commits from then on. Else a write
               that the lost drive had accepted could still be completed by others, and count the lost vote.
    promises   each key is rebuilt from the answers of W drives that adopted the view, and gets the highest top
               among them: whatever the lost drive helped to prove dead, one of them helped to prove as well.
               Keys that have nothing but a promise are walked, too. Floors and bucket generations likewise.

Nothing is adopted before every living node knows the new view, so no client's commit is refused for it. The walk
goes over the catalogs of the others in the order of keys and repairs each key at this drive; what is written
meanwhile is in the repair queue. It works in turns and keeps its place between them. Keys that cannot be brought
(undecided, or unreadable) are tried again after the walk, each by itself, and the drive is filled when
none is left. A node that restarts begins anew, and what is there already costs a look.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from node.errors import HoldfastError, QuorumLost
from node.limits import (
    CENSUS_PAGE,
    FILL_AT_ONCE,
    FILL_LACKING,
    FILL_TURN_S,
    REPAIR_DEADLINE_S,
)
from node.objects.asking import ask_slots
from node.objects.heal import Healer, promises_needed
from node.objects.pace import Pace
from node.objects.pause import PauseSwitch
from node.objects.sets import Cluster, SetView
from node.protocol import epoch as ep
from node.protocol import verbs
from node.store.drive_gate import DriveGate, DriveState, LocalDrive


class Log(Protocol):
    def info(self, event: str, **fields: object) -> object: ...

    def warning(self, event: str, **fields: object) -> object: ...


@dataclass(slots=True)
class Walk:
    """How far the filling of one drive is. `problem`: why it does not get on."""

    drive: str
    began: float  # monotonic
    expected: int  # keys, at the most, as far as this node's other drives know
    after: bytes = b""
    keys: int = 0
    ended: bool = False
    lacking: dict[bytes, str] = field(default_factory=dict)  # keys to try again, and why
    problem: str = ""


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
            if view is None or not self._lacks(drive):
                self.walks.pop(drive.drive_id, None)
                continue
            walk = self.walks.get(drive.drive_id)
            if walk is None:
                now = self._clock.monotonic()
                walk = self.walks[drive.drive_id] = Walk(drive.path, now, self._expected(view))
                self._log.info("filling a replaced drive", drive=drive.path)
            try:
                await self._fill(view, drive.drive_id, walk, until)
            except HoldfastError as error:
                if str(error) != walk.problem:
                    self._log.warning(
                        "the filling of a replaced drive waits", drive=walk.drive, error=str(error)
                    )
                walk.problem = str(error)  # the next turn goes on from here

    def _lacks(self, drive: LocalDrive) -> bool:
        return (
            drive.state is DriveState.ONLINE
            and drive.usage is not None
            and drive.usage.filling
            and drive.drive_id not in self._filled
        )

    def _expected(self, view: SetView) -> int:
        drives = (d for d in self._gate.local_drives() if d.drive_id in view.drive_of)
        return max((d.usage.keys_estimate for d in drives if d.usage is not None), default=0)

    async def _fill(self, view: SetView, drive_id: bytes, walk: Walk, until: float) -> None:
        """Goes on with one drive up to `until`; QuorumLost when too few others take part."""
        slot = view.drive_of.index(drive_id)
        adopted = await self._adopt(view, slot)
        walk.problem = ""
        if not walk.ended:
            walk.ended = await self._walk(view, slot, adopted.keys(), walk, until)
        if walk.ended:
            await self._try_again(view, slot, adopted.keys(), walk, until)
        if walk.ended and not walk.lacking:
            # Asked once more: what was fenced or collected during the walk counts, too.
            await self._end(drive_id, walk, await self._adopt(view, slot))

    # ---- the view, and what is promised beyond single keys ------------------------------------------
    async def _adopt(self, view: SetView, slot: int) -> dict[int, verbs.Promised]:
        """The others that refuse older commits now, with their promises; the bucket fences are passed on."""
        if not self._cluster.views_agree():
            raise QuorumLost("a living node has not heard of the replaced drive yet")
        others = [other for other in range(view.n) if other != slot]
        answers = await self._healer.ask(
            view, dict.fromkeys(others, verbs.Adopt(view.number)), self._deadline()
        )
        adopted = {s: a for s, a in answers.items() if isinstance(a, verbs.Promised)}
        if len(adopted) < promises_needed(view):
            raise QuorumLost("too few drives answer to fill a replaced one")
        fences: dict[str, int] = {}
        for promised in adopted.values():
            for bucket, generation in promised.generations:
                fences[bucket] = max(generation, fences.get(bucket, generation))
        wanted = [verbs.BucketFence(bucket, number) for bucket, number in sorted(fences.items())]
        for begin in range(0, len(wanted), CENSUS_PAGE):
            page = wanted[begin : begin + CENSUS_PAGE]
            told = await ask_slots(self._cluster, view, {slot: page}, deadline=self._deadline())
            if [type(reply) for reply in told.get(slot, [])] != [verbs.Done] * len(page):
                raise QuorumLost("the replaced drive does not take the bucket fences")
        return adopted

    # ---- keys ---------------------------------------------------------------------------------------
    async def _walk(
        self, view: SetView, slot: int, adopted: Collection[int], walk: Walk, until: float
    ) -> bool:
        """-> whether the walk has come to its end."""
        while self._clock.monotonic() < until and not self._pause.paused:
            keys, horizon = await self._page(view, adopted, walk.after)
            brought = await self._bring_all(view, slot, adopted, keys, walk, until)
            walk.keys += brought
            if brought < len(keys):
                # Begun in their order: the next turn goes on behind the last one.
                walk.after = keys[brought - 1] if brought else walk.after
                return False
            if horizon is None:
                return True
            walk.after = horizon
        return False

    async def _page(
        self, view: SetView, adopted: Collection[int], after: bytes
    ) -> tuple[list[bytes], bytes | None]:
        """Keys that the others hold or have promised for behind `after`, and up to where that is all of them."""
        answers = await self._healer.ask(
            view,
            dict.fromkeys(adopted, verbs.Entries(after, CENSUS_PAGE, tops=True)),
            self._deadline(),
        )
        pages = [page for page in answers.values() if isinstance(page, verbs.RawPage)]
        if len(pages) < promises_needed(view):
            raise QuorumLost("too few drives answer to fill a replaced one")
        horizon = min((p.entries[-1].key for p in pages if p.more and p.entries), default=None)
        keys = {
            entry.key
            for page in pages
            for entry in page.entries
            if horizon is None or entry.key <= horizon
        }
        return sorted(keys), horizon

    async def _bring_all(
        self,
        view: SetView,
        slot: int,
        adopted: Collection[int],
        keys: Sequence[bytes],
        walk: Walk,
        until: float,
    ) -> int:
        """-> how many were tried, from the first on; what failed is in `walk.lacking`."""

        async def bring(key: bytes) -> None:
            reason = await self._bring(view, slot, adopted, key)
            if not reason:
                walk.lacking.pop(key, None)
            elif key in walk.lacking or len(walk.lacking) < FILL_LACKING:
                walk.lacking[key] = reason
            else:
                raise QuorumLost(f"{len(walk.lacking)} keys cannot be brought: {reason}")

        return len(await self._pace.each(keys, bring, at_once=FILL_AT_ONCE, until=until))

    async def _bring(self, view: SetView, slot: int, adopted: Collection[int], key: bytes) -> str:
        """-> why not; "" when the key is there."""
        try:
            healed = await self._healer.repair(
                view, key, (slot,), adopted=adopted, deadline=self._deadline()
            )
        except HoldfastError as error:
            return f"{type(error).__name__}: {error}"
        return "the drive did not take it" if healed.lacking else ""

    async def _try_again(
        self, view: SetView, slot: int, adopted: Collection[int], walk: Walk, until: float
    ) -> None:
        if not walk.lacking or self._pause.paused:
            return
        await self._bring_all(view, slot, adopted, sorted(walk.lacking), walk, until)
        if walk.lacking:
            key, reason = next(iter(walk.lacking.items()))
            name = key.decode(errors="replace").replace("\0", "/")
            raise QuorumLost(f"{len(walk.lacking)} keys cannot be brought, as {name}: {reason}")

    async def _end(
        self, drive_id: bytes, walk: Walk, adopted: Mapping[int, verbs.Promised]
    ) -> None:
        floor = max((promised.floor for promised in adopted.values()), default=ep.ZERO)
        await self._gate.ask(drive_id, verbs.Filled(floor), deadline=self._deadline())
        del self.walks[drive_id]
        self._filled.add(drive_id)
        self._log.info("a replaced drive is filled", drive=walk.drive, keys=walk.keys)

    def _deadline(self) -> float:
        return self._clock.monotonic() + REPAIR_DEADLINE_S
