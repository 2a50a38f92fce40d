"""Power-off of the coordinator at every message: what was acknowledged stays, nothing is seen and then gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from node.errors import NoSuchBucket, NoSuchKey, NoSuchUpload, OutcomeUnknown, Unavailable
from node.limits import MIB
from node.objects.api import CompletedPart, NewObject
from node.objects.bodies import BytesBody
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from tests.fakes.cluster_world import ClusterWorld, Dark, simulate
from tests.unit.test_objects_everyday import content

COORDINATOR = 2
SMALL, LARGE = 2_000, MIB + 300_000
FIRST_PART = 20_000
OLD, NEW = b"old", b"new"

Prepare = Callable[[ClusterWorld], Awaitable[None]]
Act = Callable[[ClusterWorld], Awaitable[object]]


async def value(world: ClusterWorld, at: int) -> bytes | None:
    """The key's value as a node answers it, settled: 503 is asked again for a while."""
    for _ in range(30):
        try:
            return await world.get("k", at=at)
        except NoSuchKey:
            return None
        except Unavailable:
            await asyncio.sleep(1)
    raise AssertionError("the key cannot be settled")


async def crash(
    world: ClusterWorld, step: int, prepare: Prepare, act: Act, old: bytes | None, new: bytes | None
) -> bool:
    """One run with the power-off before message `step`; False when the request sends fewer."""
    await world.bucket()
    await prepare(world)
    await asyncio.sleep(5)
    sent = 0

    def count(sender: str, target: str, what: str) -> None:
        nonlocal sent
        if sender == world.names[COORDINATOR - 1]:
            sent += 1
            if sent == step:
                world.power_off(COORDINATOR)

    world.on_send = count
    acknowledged = False
    try:
        await act(world)
        acknowledged = True
    except Dark:
        pass
    await asyncio.sleep(1)
    world.on_send = lambda sender, target, what: None
    crashed = not world.node(COORDINATOR).life.alive
    others = [1, 3, 4]
    seen = await value(world, others[step % 3])
    assert seen in ((new,) if acknowledged else (old, new)), (step, seen and seen[:20])
    for node in others:
        assert await value(world, node) == seen, "first seen and then gone"
    if crashed:
        if step % 2:
            await world.notice()
        await world.power_on(COORDINATOR)
    for node in (1, 2, 3, 4):
        assert await value(world, node) == seen
    await world.repair()
    for node in (1, 2, 3, 4):
        assert await value(world, node) == seen
    census = await world.census()
    assert not census.short and set(census.by_shards) == {16}, census
    for node in world.up():
        assert node.arena.free_bytes == node.arena.size_bytes
    return crashed


def sweep(prepare: Prepare, act: Act, old: bytes | None, new: bytes | None, every: int = 1) -> None:
    """Every step of the request; `every`: of longer ones only each so-manieth."""
    for step in range(1, 2_000, every):
        crashed = True

        async def run(world: ClusterWorld, step: int = step) -> None:
            nonlocal crashed
            crashed = await crash(world, step, prepare, act, old, new)

        try:
            simulate(run, seed=step)
        except BaseException as error:
            error.add_note(f"power-off before message {step} of the coordinator")
            raise
        if not crashed:
            assert step > 20
            return
    raise AssertionError("a request without end")


async def nothing(world: ClusterWorld) -> None:
    return None


def putting(data: bytes, at: int = 1) -> Prepare:
    async def prepare(world: ClusterWorld) -> None:
        await world.put("k", data, at=at)

    return prepare


def test_put_of_a_new_small_object() -> None:
    sweep(nothing, putting(content(SMALL), COORDINATOR), None, content(SMALL))


def test_overwrite_of_a_small_object() -> None:
    sweep(
        putting(content(SMALL)),
        putting(content(SMALL, 2), COORDINATOR),
        content(SMALL),
        content(SMALL, 2),
    )


def test_overwrite_of_a_large_object() -> None:
    sweep(
        putting(content(LARGE)),
        putting(content(LARGE, 2), COORDINATOR),
        content(LARGE),
        content(LARGE, 2),
        every=3,
    )


def test_delete() -> None:
    async def delete(world: ClusterWorld) -> None:
        await world.delete("k", at=COORDINATOR)

    sweep(putting(content(SMALL)), delete, content(SMALL), None)


def test_complete_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.objects.multipart.MIN_PART_BYTES", FIRST_PART)
    data = content(FIRST_PART, 5) + b"tail"
    state: dict[str, object] = {}

    async def prepare(world: ClusterWorld) -> None:
        await world.put("k", OLD)
        info = await world.on(
            1, lambda o, d: o.create_upload("bucket", "k", NewObject(), deadline=d)
        )
        state["id"], state["parts"] = info.upload_id, ()
        for number, piece in ((1, data[:FIRST_PART]), (2, data[FIRST_PART:])):
            part = await world.on(
                3,
                lambda o, d, n=number, p=piece: o.upload_part(
                    "bucket", "k", info.upload_id, n, BytesBody(p), deadline=d
                ),
            )
            state["parts"] = (*state["parts"], CompletedPart(number=number, etag=part.etag))  # type: ignore[misc]

    async def complete(world: ClusterWorld) -> None:
        await complete_at(world, COORDINATOR)

    async def complete_at(world: ClusterWorld, at: int) -> None:
        await world.on(
            at,
            lambda o, d: o.complete_upload(
                "bucket",
                "k",
                state["id"],
                state["parts"],
                checksums={},
                deadline=d,  # type: ignore[arg-type]
            ),
        )

    sweep(prepare, complete, OLD, data, every=2)

    # After any of it, the client says Complete again on another node: it is done, or done now.
    for step in range(1, 120, 9):

        async def again(world: ClusterWorld, step: int = step) -> None:
            await crash(world, step, prepare, complete, OLD, data)
            for _ in range(10):
                try:
                    await complete_at(world, 4)
                    break
                except Unavailable:
                    await asyncio.sleep(2)
            assert await value(world, 1) == data
            await asyncio.sleep(30)
            with pytest.raises(NoSuchUpload):
                await world.on(
                    1,
                    lambda o, d: o.list_parts("bucket", "k", state["id"], deadline=d),  # type: ignore[arg-type]
                )

        simulate(again, seed=step)


def test_delete_bucket() -> None:
    """Whenever its coordinator dies: the bucket is there and takes writes, or it is gone."""
    for step in range(1, 2_000):
        crashed = False

        async def run(world: ClusterWorld, step: int = step) -> None:
            nonlocal crashed
            await world.bucket()
            await asyncio.sleep(1)
            sent = 0

            def count(sender: str, target: str, what: str) -> None:
                nonlocal sent
                if sender == world.names[COORDINATOR - 1]:
                    sent += 1
                    if sent == step:
                        world.power_off(COORDINATOR)

            world.on_send = count
            acknowledged = False
            try:
                await world.on(COORDINATOR, lambda o, d: o.delete_bucket("bucket", deadline=d))
                acknowledged = True
            except Dark:
                pass
            await asyncio.sleep(1)
            world.on_send = lambda sender, target, what: None
            crashed = not world.node(COORDINATOR).life.alive
            if crashed:
                await world.power_on(COORDINATOR)
            await world.repair()
            try:
                await world.on(3, lambda o, d: o.head_bucket("bucket", deadline=d))
            except NoSuchBucket:
                for node in (1, 2, 3, 4):
                    with pytest.raises(NoSuchBucket):
                        await world.put("k", NEW, at=node)
                return
            assert not acknowledged
            for node in (1, 2, 3, 4):
                await world.put("k", b"%d" % node, at=node)
            assert await value(world, 1) == b"4"

        try:
            simulate(run, seed=step)
        except BaseException as error:
            error.add_note(f"power-off before message {step} of the coordinator")
            raise
        if not crashed:
            assert step > 20
            return


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("reached", range(17))
def test_a_commit_that_reached_some_drives_is_settled_by_whoever_reads(
    reached: int, dark: bool
) -> None:
    """And every answer is lost: nobody but the drives knows."""

    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", OLD, at=COORDINATOR)
        await asyncio.sleep(5)
        disks = [disk for disks in world.disks.values() for disk in disks]
        chosen = sorted(disks, key=lambda disk: disk.drive_id)[:reached]
        for disk in disks:
            disk.refuse = lambda verb, refuses=disk not in chosen: (
                DriveFault.IO if isinstance(verb, verbs.Commit) and refuses else None
            )
        world.lose = lambda sender, target, what: what == "COMMIT answer"
        with pytest.raises(OutcomeUnknown):
            await world.put("k", NEW, at=COORDINATOR)
        world.lose = lambda sender, target, what: False
        for disk in disks:
            disk.refuse = lambda verb: None
        wanted = (NEW,) if reached >= 8 else (OLD,)
        if dark:
            world.power_off(COORDINATOR)
            await world.notice()
            wanted = (OLD, NEW)  # as the eight or more that are left can tell
        first: bytes | None = None
        for node in (1, 3, 4):
            for head_first in (True, False):
                try:
                    if head_first:
                        await world.on(node, lambda o, d: o.head("bucket", "k", deadline=d))
                        await world.keys(at=node)
                    seen = await world.get("k", at=node)
                except Unavailable:
                    assert dark and first is None, "settled by all, or by none yet"
                    continue
                assert seen in wanted
                assert first in (None, seen), "first seen and then gone"
                first = seen
        if dark:
            await world.power_on(COORDINATOR)
        for node in (1, 2, 3, 4):
            seen = await world.get("k", at=node)
            assert first in (None, seen)
            first = seen
        await world.repair()
        assert await world.get("k", at=4) == first
        assert not (await world.census()).short

    simulate(story)


@pytest.mark.parametrize("reached", range(17))
def test_the_repair_job_settles_what_nobody_reads(reached: int) -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for key in ("small", "large", "gone"):
            await world.put(key, OLD)
        await asyncio.sleep(5)
        disks = [disk for disks in world.disks.values() for disk in disks]
        for disk in disks[reached:]:
            disk.refuse = lambda verb: DriveFault.IO if isinstance(verb, verbs.Commit) else None
        world.lose = lambda sender, target, what: what == "COMMIT answer"
        for work in (
            world.put("small", content(SMALL)),
            world.put("large", content(LARGE)),
            world.delete("gone"),
        ):
            with pytest.raises(OutcomeUnknown):
                await work
        world.lose = lambda sender, target, what: False
        for disk in disks:
            disk.refuse = lambda verb: None
        await world.repair()
        if reached >= 8:
            assert await world.get("small", at=3) == content(SMALL)
            assert await world.get("large", at=3) == content(LARGE)
        else:
            assert await world.get("small", at=3) == OLD
            assert await world.get("large", at=3) == OLD
        # A tombstone needs no shards, so one drive that holds it can be forwarded.
        assert await world.keys(at=2) == sorted(["small", "large"] + ([] if reached else ["gone"]))

    simulate(story)
