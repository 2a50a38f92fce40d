"""The arena: slabs, waiters, pins."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import DeadlineExceeded, Shed
from node.runtime import arena as arena_module
from node.runtime.arena import PAGE_BYTES, Arena, Share, Slab


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


@given(st.lists(st.tuples(st.integers(1, 5 * PAGE_BYTES), st.integers(0, 20)), max_size=60))
def test_slabs_never_overlap_and_everything_comes_back(
    script: list[tuple[int, int]],
) -> None:
    arena = Arena(32 * PAGE_BYTES)
    held: list[Slab] = []
    for nbytes, victim in script:
        slab = arena.try_alloc(nbytes)
        if slab is None:
            if held:
                held.pop(victim % len(held)).release()
        else:
            assert slab.offset % PAGE_BYTES == 0 and len(slab.view) == nbytes
            held.append(slab)
        spans = sorted((s.offset, s.offset + len(s.view)) for s in held)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    for slab in held:
        slab.release()
    whole = arena.try_alloc(32 * PAGE_BYTES)
    assert whole is not None and whole.offset == 0, "free runs must melt together again"
    arena.close()


def test_a_pinned_slab_is_not_reused_before_its_last_pin_goes() -> None:
    arena = Arena(2 * PAGE_BYTES)
    slab = arena.try_alloc(2 * PAGE_BYTES)
    assert slab is not None
    slab.pin()
    slab.pin()
    slab.release()
    slab.release()
    assert arena.try_alloc(1) is None
    slab.unpin()
    assert arena.try_alloc(1) is None
    slab.unpin()
    assert arena.try_alloc(1) is not None
    arena.close()


async def test_waiters_are_served_in_order_and_a_small_one_does_not_overtake() -> None:
    arena = Arena(4 * PAGE_BYTES)
    first, second = arena.try_alloc(2 * PAGE_BYTES), arena.try_alloc(2 * PAGE_BYTES)
    assert first is not None and second is not None
    order: list[str] = []

    async def want(name: str, pages: int) -> Slab:
        slab = await arena.alloc(pages * PAGE_BYTES, deadline=soon())
        order.append(name)
        return slab

    large = asyncio.create_task(want("large", 4))
    await asyncio.sleep(0)
    small = asyncio.create_task(want("small", 1))
    await asyncio.sleep(0)
    first.release()
    assert arena.try_alloc(1) is None, "who comes now must not overtake those who wait"
    second.release()
    (await large).release()
    (await small).release()
    assert order == ["large", "small"]
    assert arena.free_bytes == arena.size_bytes
    arena.close()


async def test_waiting_is_bounded_in_time_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(PAGE_BYTES)
    slab = arena.try_alloc(1)
    assert slab is not None
    with pytest.raises(Shed):
        await arena.alloc(2 * PAGE_BYTES, deadline=soon())
    with pytest.raises(DeadlineExceeded):
        await arena.alloc(1, deadline=soon(0.01))
    assert arena.waiting == 0
    monkeypatch.setattr(arena_module, "ARENA_WAITERS", 1)
    waiting = asyncio.create_task(arena.alloc(1, deadline=soon()))
    await asyncio.sleep(0)
    with pytest.raises(Shed):
        await arena.alloc(1, deadline=soon())
    slab.release()
    (await waiting).release()
    arena.close()


async def test_a_cancelled_waiter_leaks_nothing() -> None:
    arena = Arena(PAGE_BYTES)
    slab = arena.try_alloc(1)
    assert slab is not None
    early = asyncio.create_task(arena.alloc(1, deadline=soon()))
    late = asyncio.create_task(arena.alloc(1, deadline=soon()))
    await asyncio.sleep(0)
    early.cancel()
    slab.release()  # given to `early` or not: `late` gets it in the end
    late_slab = await late
    late_slab.release()
    again = asyncio.create_task(arena.alloc(1, deadline=soon()))
    await again
    served_then_cancelled = asyncio.create_task(arena.alloc(1, deadline=soon()))
    await asyncio.sleep(0)
    again.result().release()
    served_then_cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await served_then_cancelled
    assert arena.free_bytes == arena.size_bytes
    arena.close()


async def test_peers_find_room_while_clients_have_used_up_theirs() -> None:
    arena = Arena(16 * PAGE_BYTES)
    mine = [arena.try_alloc(PAGE_BYTES, Share.CLIENT) for _ in range(10)]
    assert (
        all(mine) and arena.try_alloc(PAGE_BYTES, Share.CLIENT) is None
    )  # ten of sixteen are the clients'
    waiting = asyncio.ensure_future(arena.alloc(PAGE_BYTES, deadline=soon(), share=Share.CLIENT))
    await asyncio.sleep(0)
    theirs = await arena.alloc(6 * PAGE_BYTES, deadline=soon())
    assert not waiting.done()
    theirs.release()
    await asyncio.sleep(0)
    assert not waiting.done()  # a peer's room is not a client's
    assert mine[0] is not None
    mine[0].release()
    assert (await waiting).view.nbytes == PAGE_BYTES
