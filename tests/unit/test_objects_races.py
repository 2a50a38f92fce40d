"""Requests that meet: two coordinators on a key, the end of a bucket, the end of an upload, readers of what changes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from node.errors import (
    BucketNotEmpty,
    ClientError,
    CodedError,
    HoldfastError,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    PreconditionFailed,
    Unavailable,
)
from node.limits import MIB
from node.objects.api import CompletedPart, Conditions, NewObject
from node.objects.bodies import BytesBody
from tests.fakes.cluster_world import ClusterWorld, Dark, simulate
from tests.unit.test_objects_everyday import content


async def outcome(work: Coroutine[Any, Any, Any]) -> Any:
    """What a request gave: its result, or the error it ended with."""
    try:
        return await work
    except HoldfastError as error:
        return error


async def put(
    world: ClusterWorld, at: int, data: bytes, conditions: Conditions | None = None
) -> str:
    record = await world.on(
        at,
        lambda o, d: o.put(
            "bucket",
            "k",
            BytesBody(data),
            NewObject(),
            conditions=conditions or Conditions(),
            deadline=d,
        ),
    )
    return record.etag


@pytest.mark.parametrize("seed", range(8))
def test_writers_on_one_key_end_with_one_of_their_values_everywhere(seed: int) -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        rng = random.Random(seed)

        async def late(at: int, number: int) -> Any:
            await asyncio.sleep(rng.uniform(0, 0.02))
            size = rng.choice((10, 3_000, MIB + 5))
            return await outcome(put(world, at, bytes((number,)) * size))

        results = await asyncio.gather(*(late(1 + n % 4, n) for n in range(8)))
        assert sum(isinstance(r, str) for r in results) >= 1
        assert all(isinstance(r, str | Unavailable) for r in results), results
        seen = {await world.get("k", at=node) for node in (1, 2, 3, 4)}
        assert len(seen) == 1
        await world.repair()
        assert {await world.get("k", at=node) for node in (1, 2, 3, 4)} == seen
        assert not (await world.census()).short

    simulate(story, seed=seed)


@pytest.mark.parametrize("seed", range(8))
def test_only_one_creates(seed: int) -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        rng = random.Random(seed)
        create = Conditions(if_none_match=("*",))

        async def late(at: int, number: int) -> Any:
            await asyncio.sleep(rng.uniform(0, 0.01))
            return await outcome(put(world, at, b"%d" % number, create))

        results = await asyncio.gather(*(late(1 + n % 4, n) for n in range(8)))
        winners = [n for n, r in enumerate(results) if isinstance(r, str)]
        assert len(winners) == 1, results
        assert all(isinstance(r, str | PreconditionFailed | Unavailable) for r in results)
        assert await world.get("k", at=3) == b"%d" % winners[0]

    simulate(story, seed=seed)


def test_counting_by_compare_and_swap_loses_no_step() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await put(world, 1, b"0")
        done = 0

        async def count(at: int) -> None:
            nonlocal done
            for _ in range(6):
                value = await world.get("k", at=at)
                import hashlib

                etag = hashlib.md5(value).hexdigest()
                result = await outcome(
                    put(world, at, b"%d" % (int(value) + 1), Conditions(if_match=(etag,)))
                )
                done += isinstance(result, str)
                assert isinstance(result, str | PreconditionFailed | Unavailable), result

        await asyncio.gather(*(count(at) for at in (1, 2, 3, 4)))
        assert done >= 6
        assert int(await world.get("k", at=2)) == done

    simulate(story)


@pytest.mark.parametrize("delay_ms", range(0, 40, 2))
def test_delete_bucket_against_put(delay_ms: int) -> None:
    """Never is a write acknowledged into a bucket whose deletion was acknowledged."""

    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("warm", b"up", at=1)
        await world.delete("warm", at=1)

        async def write() -> Any:
            await asyncio.sleep(delay_ms / 1000)
            return await outcome(put(world, 1, content(5_000)))

        async def delete() -> Any:
            return await outcome(world.on(3, lambda o, d: o.delete_bucket("bucket", deadline=d)))

        written, deleted = await asyncio.gather(write(), delete())
        if isinstance(written, str):
            assert isinstance(deleted, BucketNotEmpty | CodedError | Unavailable), deleted
            for node in (1, 2, 3, 4):
                assert await world.get("k", at=node) == content(5_000)
        elif deleted is None:
            assert isinstance(written, NoSuchBucket | Unavailable), written
            with pytest.raises(NoSuchBucket):
                await world.on(2, lambda o, d: o.head_bucket("bucket", deadline=d))
        else:
            assert isinstance(written, ClientError | Unavailable)
        # Whatever came of it: the key is not stuck, and the name can be used.
        await asyncio.sleep(15)
        if deleted is None:
            await world.bucket(at=2)
            assert await world.keys(at=4) == []
        await world.keys(at=2)
        await put(world, 4, b"after")
        assert await world.get("k", at=1) == b"after"
        await world.repair()
        await world.delete("k", at=2)
        await world.on(1, lambda o, d: o.delete_bucket("bucket", deadline=d))

    simulate(story)


def test_half_of_the_drives_closed_the_bucket_before_the_write_came() -> None:
    """The write has k shards but can never have W: it is settled as dead, and its key answers again."""

    async def story(world: ClusterWorld) -> None:
        from node.protocol import verbs

        await world.bucket()
        await world.put("k", b"old")
        info = await world.on(1, lambda o, d: o.head_bucket("bucket", deadline=d))
        disks = [disk for disks in world.disks.values() for disk in disks]
        for node in world.up():
            for drive in node.drives:
                if drive.disk in disks[8:]:
                    drive._answer(
                        drive.disk.drive_id
                        + verbs.encode(verbs.BucketFence("bucket", info.generation))
                    )
        # What came before the bucket was opened again can never have W; then the write gets through.
        await world.put("k", content(3_000))
        for node in (1, 2, 3, 4):
            assert await world.get("k", at=node) == content(3_000)
        assert await world.keys(at=3) == ["k"]

    simulate(story)


def test_a_write_that_half_of_the_drives_closed_out_is_settled_as_dead() -> None:
    """It has k shards and will never have W: not even by sending it on."""

    async def story(world: ClusterWorld) -> None:
        from node.protocol import verbs

        await world.bucket()
        await world.put("k", b"old")
        info = await world.on(1, lambda o, d: o.head_bucket("bucket", deadline=d))
        closing = [drive for node in world.up() for drive in node.drives][8:]
        for drive in closing:
            fence = verbs.BucketFence("bucket", info.generation)
            drive._answer(drive.disk.drive_id + verbs.encode(fence))
        commits = 0

        def cut(sender: str, target: str, what: str) -> None:
            nonlocal commits
            if what == "COMMIT answer":
                commits += 1
                if commits == 3:
                    world.power_off(2)

        world.on_send = cut
        with pytest.raises(Dark):
            await world.put("k", content(3_000), at=2)
        await asyncio.sleep(1)
        await world.power_on(2)
        for node in (1, 2, 3, 4):
            assert await world.get("k", at=node) == b"old"
        assert await world.keys(at=3) == ["k"]

    simulate(story)


@pytest.mark.parametrize("delay_ms", range(0, 60, 4))
def test_abort_against_complete(delay_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either the object is whole and stays, or it never was; nothing is left of the upload."""
    monkeypatch.setattr("node.objects.multipart.MIN_PART_BYTES", 1000)

    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        info = await world.on(
            1, lambda o, d: o.create_upload("bucket", "k", NewObject(), deadline=d)
        )
        parts = []
        for number in (1, 2, 3):
            part = await world.on(
                number,
                lambda o, d, n=number: o.upload_part(
                    "bucket", "k", info.upload_id, n, BytesBody(content(30_000, n)), deadline=d
                ),
            )
            parts.append(CompletedPart(number=number, etag=part.etag))

        async def complete() -> Any:
            await asyncio.sleep(0.02)
            return await outcome(
                world.on(
                    1,
                    lambda o, d: o.complete_upload(
                        "bucket", "k", info.upload_id, tuple(parts), checksums={}, deadline=d
                    ),
                )
            )

        async def abort() -> Any:
            await asyncio.sleep(delay_ms / 1000)
            return await outcome(
                world.on(2, lambda o, d: o.abort_upload("bucket", "k", info.upload_id, deadline=d))
            )

        completed, aborted = await asyncio.gather(complete(), abort())
        assert aborted is None or isinstance(aborted, NoSuchUpload | Unavailable), aborted
        whole = b"".join(content(30_000, n) for n in (1, 2, 3))
        await asyncio.sleep(40)
        await world.repair()
        if isinstance(completed, HoldfastError):
            assert isinstance(completed, ClientError | Unavailable)
            seen = await outcome(world.get("k", at=3))
            assert isinstance(seen, NoSuchKey) or seen == whole
        else:
            for node in (1, 2, 3, 4):
                assert await world.get("k", at=node) == whole
        uploads = await world.on(4, lambda o, d: o.list_uploads("bucket", deadline=d))
        assert uploads.uploads == ()
        if isinstance(await outcome(world.get("k", at=3)), NoSuchKey):
            assert not any(disk.files for disks in world.disks.values() for disk in disks)
        assert not (await world.census()).short

    simulate(story)


@pytest.mark.parametrize("seed", range(6))
def test_readers_of_a_key_that_changes_see_whole_values_in_order(seed: int) -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await put(world, 1, b"\0" * 2_000)
        newest = 0
        ended = False

        async def write() -> None:
            nonlocal newest, ended
            for number in range(1, 12):
                await put(world, 1 + number % 4, bytes((number,)) * 2_000)
                newest = number
            ended = True

        async def read(at: int) -> None:
            last = 0
            while not ended:
                floor = newest
                data = await world.get("k", at=at)
                assert len(set(data)) == 1 and len(data) == 2_000
                assert data[0] >= floor, "an acknowledged write must be seen"
                assert data[0] >= last, "never back"
                last = data[0]

        await asyncio.gather(write(), *(read(at) for at in (1, 2, 3, 4)))

    simulate(story, seed=seed)


def test_a_lock_holder_that_fell_silent_is_passed() -> None:
    """It holds the lock when it freezes; by the time its commit comes, others have written."""

    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await put(world, 2, b"first")
        frozen, silent = world.names[1], False

        def lose(sender: str, target: str, what: str) -> bool:
            nonlocal silent
            silent = silent or (sender == frozen and what == "COMMIT")
            return silent and sender == frozen

        world.lose = lose
        slow = asyncio.ensure_future(outcome(put(world, 2, b"frozen")))
        await asyncio.sleep(0.05)
        assert silent and not slow.done()
        for _ in range(10):  # its locks end with their lease
            written = await outcome(put(world, 3, b"others"))
            if isinstance(written, str):
                break
            assert isinstance(written, Unavailable)
        world.lose = lambda sender, target, what: False
        assert isinstance(written, str)
        await slow
        assert isinstance(slow.result(), Unavailable)
        for node in (1, 2, 3, 4):
            assert await world.get("k", at=node) == b"others"

    simulate(story)


def test_a_reader_finishes_what_is_overwritten_under_it() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        data = content(12 * MIB)
        await world.put("k", data)
        await world.repair()

        async def read(objects: Any, deadline: float) -> bytes:
            reading = await objects.get("bucket", "k", deadline=deadline)
            found = []
            async for chunk in reading.chunks():
                found.append(bytes(chunk))
                if len(found) == 5:
                    await world.put("k", b"new", at=3)
                    await world.delete("k", at=1)
                await asyncio.sleep(0.2)
            return b"".join(found)

        assert await world.on(2, read) == data
        await world.repair()
        assert not any(disk.files for disks in world.disks.values() for disk in disks)

    simulate(story)
