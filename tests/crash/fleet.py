"""Many runs on all the processors there are. Each is a world of its own, so nothing is shared."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.crash.points import Point
from tests.crash.run import failures, failures_of_pairs
from tests.crash.stories import STORIES

_CHUNK = 8


@functools.cache
def _workers() -> ProcessPoolExecutor:
    # Not forked from here: other tests may have left threads behind.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.crash.run"])
    pool = ProcessPoolExecutor(os.cpu_count() or 1, mp_context=context)
    atexit.register(pool.shutdown)
    return pool


def _chunk(name: str, points: Sequence[Point]) -> list[str]:
    return failures(STORIES[name], points)


def _chunk_of_pairs(name: str, pairs: Sequence[tuple[Point, Point]]) -> list[str]:
    return failures_of_pairs(STORIES[name], pairs)


def crash_all_twice(name: str, pairs: Sequence[tuple[Point, Point]]) -> list[str]:
    """The same with two power-offs each."""
    chunks = [pairs[at : at + _CHUNK] for at in range(0, len(pairs), _CHUNK)]
    found = _workers().map(_chunk_of_pairs, [name] * len(chunks), chunks)
    return [failure for part in found for failure in part]


def crash_all(name: str, points: Sequence[Point]) -> list[str]:
    """Plays the story with each of the points; -> what was wrong."""
    chunks = [points[at : at + _CHUNK] for at in range(0, len(points), _CHUNK)]
    found = _workers().map(_chunk, [name] * len(chunks), chunks)
    return [failure for part in found for failure in part]
