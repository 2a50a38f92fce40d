"""Uploads that ended in a power-off leave nothing for ever, and those under way are left alone."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from node.errors import NoSuchUpload
from node.objects.api import CompletedPart, NewObject
from node.objects.bodies import BytesBody
from node.objects.multipart import Multipart
from tests.fakes.cluster_world import TICKET_S, ClusterWorld, Dark, simulate
from tests.unit.test_objects_everyday import content

DATA = content(40_000, 7)


async def begin(world: ClusterWorld, key: str, bucket: str = "bucket") -> tuple[str, str]:
    """-> (upload id, etag of its one part)."""
    info = await world.on(1, lambda o, d: o.create_upload(bucket, key, NewObject(), deadline=d))
    part = await world.on(
        3,
        lambda o, d: o.upload_part(bucket, key, info.upload_id, 1, BytesBody(DATA), deadline=d),
    )
    return info.upload_id, part.etag


async def complete(world: ClusterWorld, key: str, upload: str, etag: str, at: int) -> None:
    chosen = (CompletedPart(number=1, etag=etag),)
    await world.on(
        at,
        lambda o, d: o.complete_upload("bucket", key, upload, chosen, checksums={}, deadline=d),
    )


async def sweep(world: ClusterWorld) -> list[int]:
    """What each node cleared away."""
    deadline = world.clock.monotonic() + TICKET_S
    return [
        await world.spawn(node.life, node.engine.upload_sweep.round(deadline=deadline))
        for node in world.up()
    ]


async def uploads(world: ClusterWorld) -> list[str]:
    page = await world.on(4, lambda o, d: o.list_uploads("bucket", deadline=d))
    return [upload.key for upload in page.uploads]


def files(world: ClusterWorld) -> int:
    return sum(len(disk.files) for disks in world.disks.values() for disk in disks)


def test_a_completed_upload_whose_node_died_before_it_cleared_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        upload, etag = await begin(world, "k")
        with monkeypatch.context() as patched:
            patched.setattr(Multipart, "clean_up", _die)
            await complete(world, "k", upload, etag, at=2)
        world.power_off(2)
        assert await uploads(world) == ["k"], "what the power-off left"
        await world.power_on(2)
        assert await sweep(world) == [1, 0, 0, 0]
        assert await uploads(world) == []
        assert await world.get("k", at=3) == DATA
        assert await sweep(world) == [0, 0, 0, 0]
        await world.delete("k")
        await world.repair()
        assert files(world) == 0, "no part keeps the data of a deleted object"

    simulate(story)


async def _die(*_: object) -> None:
    """The node has no power any more when it would clear up."""


@pytest.mark.parametrize("message", range(15, 60, 5))
def test_an_abort_that_a_power_off_cuts_short(message: int) -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        upload, _ = await begin(world, "k")
        await asyncio.sleep(5)
        sent = 0

        def count(sender: str, target: str, what: str) -> None:
            nonlocal sent
            sent += sender == world.names[1]
            if sent == message and world.node(2).life.alive:
                world.power_off(2)

        world.on_send = count
        with contextlib.suppress(Dark):
            await world.on(2, lambda o, d: o.abort_upload("bucket", "k", upload, deadline=d))
        await asyncio.sleep(1)
        world.on_send = lambda sender, target, what: None
        if not world.node(2).life.alive:
            await world.power_on(2)
        await world.repair()
        if await uploads(world):
            await world.on(1, lambda o, d: o.abort_upload("bucket", "k", upload, deadline=d))
        await sweep(world)
        await world.repair()
        assert files(world) == 0

    simulate(story)


def test_an_upload_under_way_is_left_alone() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", b"there before")
        upload, etag = await begin(world, "k")
        await begin(world, "other")
        assert await sweep(world) == [0, 0, 0, 0]
        world.power_off(1)
        await world.notice()
        assert await sweep(world) == [0, 0, 0], "the next node does it now"
        await complete(world, "k", upload, etag, at=2)
        assert await world.get("k", at=2) == DATA
        assert await uploads(world) == ["other"]

    simulate(story)


def test_uploads_of_a_bucket_that_is_gone() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket("gone")
        upload, _ = await begin(world, "k", "gone")
        await world.on(2, lambda o, d: o.delete_bucket("gone", deadline=d))
        world.power_off(2)  # before it swept the bucket's uploads
        await world.notice()
        await asyncio.sleep(10)  # no node remembers the bucket
        assert sum(await sweep(world)) == 1
        await world.bucket("gone", at=3)
        with pytest.raises(NoSuchUpload):
            await world.on(4, lambda o, d: o.list_parts("gone", "k", upload, deadline=d))

    simulate(story)
