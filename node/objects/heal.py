"""Repair of one key: bring its settled version, shard and all, to the slots that miss it.

Also forwards an undecided version for node.objects.lookup: its own commit, same epoch and base, to drives
that can still accept it, after its shards were brought there where the writer had not staged them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from erasure.stripe import StripeLayout
from node.errors import QuorumLost
from node.limits import BUFFER_WAIT_S, SYNC_BUDGET_S, TRANSFER_LIMIT_S
from node.objects import stripes
from node.objects.gathering import Gathering
from node.objects.get import StripeReader
from node.objects.lookup import Found, Lookup
from node.objects.sets import Cluster, SetView, replies
from node.objects.shards import ShardSources
from node.objects.stage import Row, ShardWriters, Stripe
from node.protocol import epoch as ep
from node.protocol import verbs
from node.protocol.record import Kind, Part, Record
from node.protocol.register import Repaired
from node.runtime.arena import Arena, Share
from node.store.drive_gate import DriveGate


@dataclass(frozen=True, slots=True)
class Healed:
    """Slots that have the version now, and those that still lack it."""

    whole: frozenset[int]
    lacking: frozenset[int]
    below_floor: frozenset[int] = frozenset()
    unreachable: frozenset[int] = frozenset()  # of `lacking`: their nodes are dead


class Healer:
    """Rebuilds shards."""

    def __init__(
        self,
        cluster: Cluster,
        lookup: Lookup,
        sources: ShardSources,
        gate: DriveGate,
        arena: Arena,
    ) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._lookup = lookup
        self._sources = sources
        self._gate = gate
        self._arena = arena

    # ---- what the lookup needs ------------------------------------------------------------------
    async def forward(self, found: Found, slots: frozenset[int], *, deadline: float) -> None:
        """Sends an undecided version's own commit to `slots`; drives judge it as ever."""
        record = found.record
        assert record is not None
        shards = self.inline_shards(found, slots)
        number = self._cluster.views[found.view.index].number
        commits = {
            slot: verbs.Commit(found.key, found.encoded, shards.get(slot, b""), number)
            for slot in slots
        }
        answers = await self.ask(found.view, commits, deadline)
        unstaged = {
            slot
            for slot, reply in answers.items()
            if isinstance(reply, verbs.Failed) and reply.fault == verbs.DriveFault.NOT_FOUND
        }
        if unstaged and record.parts and not record.inline:
            staged = await self._bring(found, unstaged, set(found.holders))
            await self.ask(found.view, {slot: commits[slot] for slot in staged}, deadline)

    # ---- repair ---------------------------------------------------------------------------------
    async def repair(
        self,
        view: SetView,
        key: bytes,
        missed: Collection[int],
        *,
        adopted: Collection[int] | None = None,
        deadline: float,
    ) -> Healed:
        """Brings the settled version of `key` to the slots of `missed` that lack it or its data.

        A version that nobody holds any more needs nothing. `adopted`: the drives at `missed` have lost their
        registers, so they get the promises of these slots, too, W of which must have answered (the rules
        for a replaced drive, node.objects.fill). QuorumLost, Undecided when it cannot be done now.
        """
        found = await self._lookup.find(view, key, inline=True, everywhere=True, deadline=deadline)
        record = found.record
        self._decide(found)
        top = _promised(found, set(missed), adopted)
        if record is None:
            if adopted is not None and top > ep.ZERO:
                promise = verbs.Promise(key, top)
                answers = await self.ask(view, dict.fromkeys(missed, promise), deadline)
                kept = frozenset(s for s, a in answers.items() if isinstance(a, verbs.Done))
                return Healed(kept, frozenset(missed) - kept)
            return Healed(frozenset(missed), frozenset())
        # A replaced drive does not answer for what it lacks, so its answer is no condition.
        there = {slot for m in self._cluster.reachable(view) for slot in m.slots}
        wanted = frozenset(missed) & there
        unreachable = frozenset(missed) - wanted
        shards = self.inline_shards(found, wanted)
        if record.kind == Kind.OBJECT and not record.inline and record.parts:
            staged = await self._bring(found, wanted, set(found.holders) - wanted)
        else:
            staged = set(wanted)
        repairs = {
            slot: verbs.Repair(
                key, found.encoded, shards.get(slot, b""), top, refill=adopted is not None
            )
            for slot in staged
        }
        answers = await self.ask(view, repairs, deadline)
        whole: set[int] = set()
        below: set[int] = set()
        for slot, reply in answers.items():
            if isinstance(reply, verbs.RepairDone):
                refused = reply.verdict == Repaired.BELOW_FLOOR and not self._gone(found, slot)
                (below if refused else whole).add(slot)
        lacking = (wanted - whole - below) | unreachable
        return Healed(frozenset(whole), frozenset(lacking), frozenset(below), unreachable)

    @staticmethod
    def _gone(found: Found, slot: int) -> bool:
        """A tombstone at or below the floor of a drive that holds nothing is as good as collected there."""
        assert found.record is not None
        state = found.answers.get(slot)
        return (
            found.record.kind == Kind.TOMBSTONE
            and state is not None
            and not state.entries
            and state.floor >= found.record.epoch
        )

    def _decide(self, found: Found) -> None:
        """Tells the holders what was judged: older versions may go, dead ones must."""
        record = found.record
        if record is not None:
            missing = tuple(slot for slot in range(found.view.n) if slot not in found.holders)
            flag = verbs.Decided(found.key, record.epoch, missing)
            self._cluster.tell_slots(
                found.view,
                dict.fromkeys(found.holders, flag),
                deadline=self._clock.monotonic() + BUFFER_WAIT_S,
            )
        for dead in found.dead:
            holders = [
                slot
                for slot, state in found.answers.items()
                if any(entry.epoch == dead for entry in state.entries)
            ]
            self._cluster.tell_slots(
                found.view,
                dict.fromkeys(holders, verbs.Discard(found.key, dead)),
                deadline=self._clock.monotonic() + BUFFER_WAIT_S,
            )

    async def look(self, view: SetView, key: bytes, *, deadline: float) -> Found:
        """The settled version as all reachable members have it, with its inline shards."""
        return await self._lookup.find(view, key, inline=True, everywhere=True, deadline=deadline)

    async def settle(self, view: SetView, key: bytes, *, deadline: float) -> Found:
        """Looks the key up everywhere, settling what is undecided, and spreads the verdict."""
        found = await self._lookup.find(view, key, everywhere=True, deadline=deadline)
        self._decide(found)
        return found

    @staticmethod
    def inline_shards(found: Found, slots: Iterable[int]) -> dict[int, bytes]:
        """The framed shards that belong at `slots`; {} where the version has no inline data. QuorumLost."""
        record = found.record
        assert record is not None
        if record.kind != Kind.OBJECT or not record.inline or not record.size:
            return {}
        view, part = found.view, record.parts[0]
        good = {
            view.shard_at(slot, record.rotation): shard
            for slot in found.holders
            if (shard := found.shard(slot))
        }
        try:
            data = stripes.inline_data(good, part.data_id, record.size, record.k, record.n)
        except stripes.NotEnoughShards as error:
            raise QuorumLost(f"too few shards are whole: {error}") from error
        frames = stripes.inline_frames(data, part.data_id, record.k, record.n)
        return {slot: frames[view.shard_at(slot, record.rotation)] for slot in slots}

    # ---- shard files ----------------------------------------------------------------------------
    async def _bring(self, found: Found, slots: Iterable[int], holders: set[int]) -> set[int]:
        """Rebuilds every part's shard files at `slots`; -> the slots that have them all now."""
        record, whole = found.record, set(slots)
        assert record is not None
        for part in record.parts:
            if part.size and whole:
                whole &= await self._bring_part(found.view, record, part, whole, holders)
        return whole

    async def _bring_part(
        self, view: SetView, record: Record, part: Part, slots: set[int], holders: set[int]
    ) -> set[int]:
        layout = StripeLayout(part.size, record.k, part.stripe_bytes)
        check = verbs.ShardCheck(part.data_id, layout.shard_file_bytes, deep=True)
        deadline = self._clock.monotonic() + SYNC_BUDGET_S
        checked = await self.ask(view, dict.fromkeys(slots, check), deadline)
        present = {slot for slot, reply in checked.items() if isinstance(reply, verbs.Count)}
        lacking = sorted(slots - present, key=lambda slot: view.shard_at(slot, record.rotation))
        if not lacking:
            return present
        rows = [
            Row(row, view.shard_at(slot, record.rotation), slot) for row, slot in enumerate(lacking)
        ]
        staged = await self._stage(view, record, part, layout, rows, holders | present)
        return present | staged

    async def _stage(
        self,
        view: SetView,
        record: Record,
        part: Part,
        layout: StripeLayout,
        rows: list[Row],
        holders: set[int],
    ) -> set[int]:
        writers = ShardWriters(
            self._cluster,
            self._gate,
            view,
            layout,
            part.data_id,
            rows,
            needed=1,
            deadline=self._clock.monotonic() + TRANSFER_LIMIT_S,
        )
        reader = StripeReader(
            self._sources,
            view,
            record,
            part,
            holders,
            0,
            layout.stripes,
            lambda slot, reason: None,
            exclude=[row.slot for row in rows],
        )
        writers.start()
        shards = [row.shard for row in rows]
        try:
            for stripe in range(layout.stripes):
                size = layout.frame_bytes(stripe)
                slab = await self._arena.alloc(
                    size * len(rows),
                    deadline=self._clock.monotonic() + BUFFER_WAIT_S,
                    share=Share.CLIENT,
                )
                try:
                    payloads, held = await reader.next(shards)
                    try:
                        for row in rows:
                            begin = row.row * size
                            frame = slab.view[begin : begin + size]
                            stripes.fill(
                                frame, payloads[row.shard], part.data_id, row.shard, stripe
                            )
                    finally:
                        for frames in held:
                            frames.release()
                except BaseException:
                    slab.release()
                    raise
                await writers.write(Stripe(stripe, slab, size))
            return set(await writers.sync(self._clock.monotonic() + SYNC_BUDGET_S))
        finally:
            reader.close()
            writers.close()

    # ---- asking slots ---------------------------------------------------------------------------
    async def ask(
        self, view: SetView, wanted: Mapping[int, verbs.Verb], deadline: float
    ) -> dict[int, verbs.Reply]:
        """Each slot its verb; the answers that came."""
        gathering: Gathering[str, tuple[bytes, ...] | bytes] = Gathering()
        asked: dict[str, tuple[int, ...]] = {}
        for member in self._cluster.reachable(view):
            slots = tuple(slot for slot in member.slots if slot in wanted)
            if slots:
                asked[member.node] = slots
                items = tuple((view.drive_of[s], verbs.encode(wanted[s])) for s in slots)
                gathering.add(member.node, self._cluster.verbs_at(member, items, deadline=deadline))
        await gathering.until(lambda: False, deadline - self._clock.monotonic())
        found: dict[int, verbs.Reply] = {}
        for node, answer in gathering.results.items():
            for slot, data in zip(asked[node], replies(answer), strict=False):
                found[slot] = verbs.decode_reply(data)
        return found


def _promised(found: Found, missed: set[int], adopted: Collection[int] | None) -> bytes:
    """The highest top of the others, for a drive that has lost its own. So few answers: b"", or QuorumLost."""
    view = found.view
    others = set(range(view.n) if adopted is None else adopted) - missed
    tops = [state.top for slot, state in found.answers.items() if slot in others]
    if len(tops) >= promises_needed(view):
        return max(tops)
    if adopted is not None:
        raise QuorumLost("too few drives answer to rebuild the promises of a replaced one")
    return b""


def promises_needed(view: SetView) -> int:
    """How many others must answer for what a lost drive may have promised: W, or all there are."""
    return min(max(view.geometry.write_quorum, view.system_geometry.write_quorum), view.n - 1)
