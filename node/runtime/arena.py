"""The node's stripe-buffer memory: one shared file in memory, cut into page-aligned slabs.

Theory of operation. Every stripe buffer of the node lies in one memfd that the drive processes map
too, so bulk bytes reach a drive without being copied through a socket. First fit from the lowest
offset keeps the touched pages few; neighbours that are free melt together. Who finds no room waits in
line, first come first served, until its deadline; the line is bounded.

A slab is free once it was released and nobody has it pinned. A drive verb that names a slab pins it
until the drive has answered or its process is gone: a hung drive may still read or write the memory
long after the caller has given up, and then it must not be somebody else's.
"""

from __future__ import annotations

import asyncio
import bisect
import mmap
import os
from collections import deque

from node.errors import DeadlineExceeded, Shed
from node.limits import ARENA_BYTES, ARENA_WAITERS

PAGE_BYTES = mmap.PAGESIZE


class Slab:
    """A run of the arena. `view` has the length asked for; `offset` is a multiple of the page size."""

    __slots__ = ("_arena", "_pins", "_released", "_span_bytes", "offset", "view")

    def __init__(self, arena: Arena, offset: int, nbytes: int, span_bytes: int) -> None:
        self._arena = arena
        self._pins = 0
        self._released = False
        self._span_bytes = span_bytes
        self.offset = offset
        self.view = arena.memory[offset : offset + nbytes]

    def pin(self) -> None:
        assert not self._released, "a released slab is nobody's to send"
        self._pins += 1

    def unpin(self) -> None:
        assert self._pins > 0
        self._pins -= 1
        if self._released and not self._pins:
            self._arena._free(self.offset, self._span_bytes)

    def release(self) -> None:
        """The owner is done with it. Again is harmless."""
        if not self._released:
            self._released = True
            if not self._pins:
                self._arena._free(self.offset, self._span_bytes)


class Arena:
    """Shared memory of `size_bytes`, a multiple of the page size. For one event loop."""

    def __init__(self, size_bytes: int = ARENA_BYTES) -> None:
        assert size_bytes > 0 and size_bytes % PAGE_BYTES == 0
        self.size_bytes = size_bytes
        self.descriptor = os.memfd_create("holdfast-arena", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, size_bytes)
        self._map = mmap.mmap(self.descriptor, size_bytes)
        self.memory = memoryview(self._map)
        self.free_bytes = size_bytes
        self._offsets = [0]  # of the free runs, ascending
        self._sizes = {0: size_bytes}
        self._waiters: deque[tuple[int, asyncio.Future[Slab]]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for room."""
        return len(self._waiters)

    def try_alloc(self, nbytes: int) -> Slab | None:
        """A slab now, or None when there is no room or others wait already."""
        if self._waiters:
            return None
        return self._take(nbytes)

    async def alloc(self, nbytes: int, *, deadline: float) -> Slab:
        """A slab of `nbytes`. Shed when it can never fit or the line is full; DeadlineExceeded."""
        span = _span(nbytes)
        if span > self.size_bytes:
            raise Shed(f"{nbytes} bytes of stripe buffer are more than there are")
        slab = self.try_alloc(nbytes)
        if slab is not None:
            return slab
        if len(self._waiters) >= ARENA_WAITERS:
            raise Shed("too many wait for stripe buffers")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Slab] = loop.create_future()
        place = (nbytes, future)
        self._waiters.append(place)
        timer = loop.call_at(deadline, _expire, future)
        try:
            return await future
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()  # it came in the very moment the caller was cancelled
            elif place in self._waiters:
                self._waiters.remove(place)
                self._serve()  # whoever stood behind a large one may fit
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """Gives the descriptor up; the memory stays mapped for as long as a slab is held."""
        os.close(self.descriptor)

    # ---- runs ------------------------------------------------------------------------------------
    def _take(self, nbytes: int) -> Slab | None:
        span = _span(nbytes)
        for index, offset in enumerate(self._offsets):
            size = self._sizes[offset]
            if size < span:
                continue
            del self._sizes[offset]
            if size == span:
                del self._offsets[index]
            else:
                self._offsets[index] = offset + span
                self._sizes[offset + span] = size - span
            self.free_bytes -= span
            return Slab(self, offset, nbytes, span)
        return None

    def _free(self, offset: int, span: int) -> None:
        self.free_bytes += span
        index = bisect.bisect_left(self._offsets, offset)
        if index < len(self._offsets) and self._offsets[index] == offset + span:
            span += self._sizes.pop(self._offsets.pop(index))
        if index > 0:
            before = self._offsets[index - 1]
            if before + self._sizes[before] == offset:
                self._sizes[before] += span
                self._serve()
                return
        self._offsets.insert(index, offset)
        self._sizes[offset] = span
        self._serve()

    def _serve(self) -> None:
        while self._waiters:
            nbytes, future = self._waiters[0]
            if not future.done():
                slab = self._take(nbytes)
                if slab is None:
                    return
                future.set_result(slab)
            self._waiters.popleft()


def _span(nbytes: int) -> int:
    assert nbytes > 0
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


def _expire(future: asyncio.Future[Slab]) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("no stripe buffer became free in time"))
