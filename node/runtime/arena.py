"""The node's stripe-buffer memory: one shared file in memory, cut into page-aligned slabs.

Theory of operation. Every stripe buffer of the node lies in one memfd that the drive processes map
too, so bulk bytes reach a drive without being copied through a socket. First fit from the lowest
offset keeps the touched pages few; neighbours that are free melt together. Who finds no room waits in
line, first come first served, until its deadline; the line is bounded.

A slab is free once it was released and nobody has it pinned. A drive verb that names a slab pins it
until the drive has answered or its process is gone: a hung drive may still read or write the memory
long after the caller has given up, and then it must not be somebody else's.

Clients' transfers wait for peers, and a peer's answer needs a slab of the peer's arena. So clients get
CLIENT_SHARE of the arena at the most and stand in a line of their own: what a peer asks for never waits
behind a client that itself waits for a peer, and nodes cannot lock each other up.
"""

from __future__ import annotations

import asyncio
import bisect
import enum
import mmap
import os
from collections import deque

from node.errors import DeadlineExceeded, Shed
from node.limits import ARENA_BYTES, ARENA_WAITERS

PAGE_BYTES = mmap.PAGESIZE
CLIENT_SHARE = 0.625


class Share(enum.IntEnum):
    """For whom a slab is."""

    CLIENT = 0
    PEER = 1


class Slab:
    """A run of the arena. `view` has the length asked for; `offset` is a multiple of the page size."""

    __slots__ = ("_arena", "_pins", "_released", "_share", "_span_bytes", "offset", "view")

    def __init__(
        self, arena: Arena, offset: int, nbytes: int, span_bytes: int, share: Share
    ) -> None:
        self._arena = arena
        self._share = share
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
            self._arena._free(self.offset, self._span_bytes, self._share)

    def release(self) -> None:
        """The owner is done with it. Again is harmless."""
        if not self._released:
            self._released = True
            if not self._pins:
                self._arena._free(self.offset, self._span_bytes, self._share)


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
        self._used = [0, 0]  # by share
        self._limits = [int(size_bytes * CLIENT_SHARE), size_bytes]
        self._lines: tuple[deque[_Place], deque[_Place]] = (deque(), deque())

    @property
    def waiting(self) -> int:
        """How many wait for room."""
        return sum(map(len, self._lines))

    def try_alloc(self, nbytes: int, share: Share = Share.PEER) -> Slab | None:
        """A slab now, or None when there is no room or others of the share wait already."""
        if self._lines[share]:
            return None
        return self._take(nbytes, share)

    async def alloc(self, nbytes: int, *, deadline: float, share: Share = Share.PEER) -> Slab:
        """A slab of `nbytes`. Shed when it can never fit or the line is full; DeadlineExceeded."""
        span = _span(nbytes)
        if span > self._limits[share]:
            raise Shed(f"{nbytes} bytes of stripe buffer are more than there are")
        slab = self.try_alloc(nbytes, share)
        if slab is not None:
            return slab
        line = self._lines[share]
        if len(line) >= ARENA_WAITERS:
            raise Shed("too many wait for stripe buffers")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Slab] = loop.create_future()
        place = (nbytes, future)
        line.append(place)
        timer = loop.call_at(deadline, _expire, future)
        try:
            return await future
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()  # it came in the very moment the caller was cancelled
            elif place in line:
                line.remove(place)
                self._serve()  # whoever stood behind a large one may fit
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """Gives the descriptor up; the memory stays mapped for as long as a slab is held."""
        os.close(self.descriptor)

    # ---- runs ------------------------------------------------------------------------------------
    def _take(self, nbytes: int, share: Share) -> Slab | None:
        span = _span(nbytes)
        if self._used[share] + span > self._limits[share]:
            return None
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
            self._used[share] += span
            return Slab(self, offset, nbytes, span, share)
        return None

    def _free(self, offset: int, span: int, share: Share) -> None:
        self.free_bytes += span
        self._used[share] -= span
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
        for share in (Share.PEER, Share.CLIENT):
            line = self._lines[share]
            while line:
                nbytes, future = line[0]
                if not future.done():
                    slab = self._take(nbytes, share)
                    if slab is None:
                        break
                    future.set_result(slab)
                line.popleft()


_Place = tuple[int, asyncio.Future[Slab]]


def _span(nbytes: int) -> int:
    assert nbytes > 0
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


def _expire(future: asyncio.Future[Slab]) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("no stripe buffer became free in time"))
