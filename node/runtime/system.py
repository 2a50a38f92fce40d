"""The real clock, randomness and threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import gc
import os
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from node.limits import FREED_MEMORY_KEPT_BYTES, MIB, PEER_MAX_MESSAGE_BYTES

T = TypeVar("T")

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


class SystemClock:
    # Asked several times for every call: not worth a frame of their own.
    monotonic = staticmethod(time.monotonic)
    now = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SystemRng:
    def __init__(self) -> None:
        self._random = secrets.SystemRandom()

    def bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def choice(self, items: Sequence[T]) -> T:
        return self._random.choice(items)


def prepare_memory() -> None:
    """For the first moment of a process: buffers of a megabyte come from one heap and stay there.

    By default the C library maps and unmaps each of them, and gives every thread a heap of its own that
    grows and shrinks; each time the kernel clears the pages: a sixth of the work of an upload. What is kept
    is bounded. Where the C library has no mallopt, nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in (
            (_M_ARENA_MAX, 1),
            (_M_MMAP_THRESHOLD, PEER_MAX_MESSAGE_BYTES),
            (_M_TRIM_THRESHOLD, FREED_MEMORY_KEPT_BYTES),
            (_M_TOP_PAD, MIB),
        ):
            mallopt(option, value)


def settle_memory() -> None:
    """What was made so far stays for good: collections skip it from now on, and are rare.

    Without this a tenth of a small request is spent on walking through modules and tables.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


class ThreadCpu:
    """A few threads for coding and hashing: as many as cores, since their work holds a core each."""

    def __init__(self, threads: int | None = None) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(
            max_workers=threads or min(8, max(2, os.cpu_count() or 2)),
            thread_name_prefix="cpu",
        )

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def close(self) -> None:
        """Lets running work end by itself; nothing new is begun."""
        with contextlib.suppress(RuntimeError):
            self._pool.shutdown(wait=False, cancel_futures=True)
