"""Standing back for a moment, so that what has already arrived is worked on first."""

from __future__ import annotations

import asyncio

from node.limits import GATHER_TURNS


async def after_what_waits() -> None:
    """Returns some turns of the loop later: at once when it is idle, else when waiting input was taken.

    A writer that stands back before it takes its batch sends fewer and larger ones under load, and
    every batch costs its receiver a wake-up; when little is to do, turns cost microseconds.
    """
    for _ in range(GATHER_TURNS):
        await asyncio.sleep(0)
