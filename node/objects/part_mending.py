"""Complete where parts missed different drives: what is missing is rebuilt first, then the record is committed.

Theory of operation. A part is acknowledged by W drives, another part by W others; a record that names both can be
accepted only where both lie, which may be fewer than W. The drives say so themselves: they answer NOT_FOUND. Then
each part is brought to the drives that lack it, by the repair of its own record, and the attempt that failed is
settled as any reader would settle it: completed under its own epoch, or proved dead. Only when it is proved dead is
the record written again, as a new attempt; otherwise the outcome stays unknown, 503, as the protocol has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from erasure.stripe import StripeLayout
from node.errors import HoldfastError, OutcomeUnknown
from node.limits import PARTS_MENDED_AT_ONCE, SYNC_BUDGET_S
from node.objects.attempt import ShardsMissing
from node.objects.heal import Healer
from node.objects.lookup import Lookup
from node.objects.sets import Cluster, SetView
from node.protocol import verbs
from node.protocol.record import Part, Record

StoredPart = tuple[bytes, Part]  # the catalog key of its record


class PartMender:
    """Commits what refers to parts that were stored apart."""

    def __init__(self, cluster: Cluster, lookup: Lookup, healer: Healer) -> None:
        self._clock = cluster.clock
        self._lookup = lookup
        self._healer = healer

    async def commit(
        self,
        view: SetView,
        key: bytes,
        k: int,
        parts: Sequence[StoredPart],
        write: Callable[[], Awaitable[Record]],
        *,
        deadline: float,
    ) -> Record:
        """`write` commits the record of `key`. OutcomeUnknown where the rest cannot be brought in time."""
        try:
            return await write()
        except ShardsMissing as failed:
            await self._bring(view, k, parts, failed, deadline)
            # Told apart from a write of somebody else by its epoch, which is never given out again.
            found = await self._lookup.find(view, key, everywhere=True, deadline=deadline)
            if found.record is not None and found.record.epoch == failed.epoch:
                return found.record
            if failed.epoch in found.dead or failed.nowhere:
                return await write()
            raise

    async def _bring(
        self,
        view: SetView,
        k: int,
        parts: Sequence[StoredPart],
        failed: ShardsMissing,
        deadline: float,
    ) -> None:
        """Every part to every drive that lacks it; as many as there is time for."""
        limit = asyncio.Semaphore(PARTS_MENDED_AT_ONCE)

        async def one(stored: StoredPart) -> None:
            key, part = stored
            async with limit:
                layout = StripeLayout(part.size, k, part.stripe_bytes)
                check = verbs.ShardCheck(part.data_id, layout.shard_file_bytes)
                until = min(deadline, self._clock.monotonic() + SYNC_BUDGET_S)
                there = await self._healer.ask(view, dict.fromkeys(failed.slots, check), until)
                lacking = [
                    slot for slot in failed.slots if not isinstance(there.get(slot), verbs.Count)
                ]
                if lacking:
                    await self._healer.repair(view, key, lacking, deadline=deadline)

        outcomes = await asyncio.gather(
            *(one(stored) for stored in parts if stored[1].size), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, HoldfastError):
                raise OutcomeUnknown(
                    f"parts are missing on too many drives and cannot be brought there now: {outcome}"
                ) from failed
            if outcome is not None:
                raise outcome
