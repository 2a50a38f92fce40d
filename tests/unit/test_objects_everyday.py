"""The object layer on four nodes of four drives in one process: what clients do every day."""

from __future__ import annotations

import hashlib

import pytest

from node.errors import (
    BucketAlreadyExists,
    BucketNotEmpty,
    CodedError,
    EntityTooSmall,
    InvalidPart,
    InvalidPartOrder,
    InvalidRange,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    NotModified,
    PreconditionFailed,
)
from node.limits import MIB, MIN_PART_BYTES
from node.objects.api import ByteRange, CompletedPart, Conditions, NewObject
from node.objects.bodies import BytesBody
from tests.fakes.cluster_world import ClusterWorld, simulate


def content(size: int, seed: int = 0) -> bytes:
    """Bytes without a period that a stripe could hide."""
    block = hashlib.sha256(seed.to_bytes(8, "big")).digest()
    return b"".join(
        hashlib.sha256(block + i.to_bytes(4, "big")).digest() for i in range(-(-size // 32))
    )[:size]


SIZES = (0, 1, 2, 1023, 64 * 1024, MIB - 1, MIB, MIB + 1, 3 * MIB + 17, 9 * MIB)


@pytest.mark.parametrize("parity", [None, 4])
def test_objects_of_every_size_come_back_whole_at_every_node(parity: int | None) -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for size in SIZES:
            data = content(size, size)
            etag = await world.put(f"size/{size}", data, at=1 + size % 4)
            assert etag == hashlib.md5(data).hexdigest()
            for node in (1, 2, 3, 4):
                assert await world.get(f"size/{size}", at=node) == data
        await world.repair()
        census = await world.census()
        assert not census.short and census.by_shards == {16: len(SIZES) + 1}

    simulate(story, parity=parity)


def test_other_geometries() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for size in (0, 5, 700_000, 2 * MIB + 1):
            await world.put(f"k{size}", content(size))
            for node in range(1, 1 + len(world.names)):
                assert await world.get(f"k{size}", at=node) == content(size)
        assert len(await world.keys()) == 4

    for nodes, drives in ((1, 1), (1, 4), (2, 2), (3, 4), (4, 1), (4, 8)):
        simulate(story, nodes=nodes, drives=drives)


def test_ranges_of_staged_and_inline_objects() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for size in (10_000, 2 * MIB + 5):
            data = content(size)
            await world.put("k", data)

            async def part(first: int | None, last: int | None) -> bytes:
                async def read(objects, deadline):  # type: ignore[no-untyped-def]
                    wanted = ByteRange(first=first, last=last)
                    reading = await objects.get("bucket", "k", byte_range=wanted, deadline=deadline)
                    return b"".join([bytes(c) async for c in reading.chunks()])

                return await world.on(3, read)

            assert await part(0, 0) == data[:1]
            assert await part(5, 9) == data[5:10]
            assert await part(size - 1, None) == data[-1:]
            assert (
                await part(size // 2 - 3, size // 2 + 70_000)
                == (data[size // 2 - 3 : size // 2 + 70_001])
            )
            assert await part(None, 7) == data[-7:]
            assert await part(None, size * 2) == data
            assert await part(3, size * 2) == data[3:]
            for first, last in ((size, None), (size + 5, size + 9), (None, 0)):
                with pytest.raises(InvalidRange):
                    await part(first, last)

    simulate(story)


def test_overwrite_and_delete_are_seen_everywhere_and_old_data_goes() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for round_, size in enumerate((3 * MIB, 10, 2 * MIB, 0, 5_000, MIB + 1)):
            await world.put("k", content(size, round_), at=1 + round_ % 4)
            for node in (1, 2, 3, 4):
                assert await world.get("k", at=node) == content(size, round_)
        await world.delete("k", at=2)
        for node in (1, 2, 3, 4):
            with pytest.raises(NoSuchKey):
                await world.get("k", at=node)
        await world.delete("k", at=3)
        await world.delete("never there", at=3)
        await world.put("k", b"again", at=4)
        assert await world.get("k", at=1) == b"again"
        await world.repair()
        assert not any(disk.files for disks in world.disks.values() for disk in disks)

    simulate(story)


def test_buckets() -> None:
    async def story(world: ClusterWorld) -> None:
        for name in ("zoo", "abc", "abc-1"):
            await world.bucket(name, at=2)
        with pytest.raises(BucketAlreadyExists):
            await world.bucket("zoo", at=1)

        async def names(at: int) -> list[str]:
            return [
                info.name for info in await world.on(at, lambda o, d: o.list_buckets(deadline=d))
            ]

        assert await names(3) == ["abc", "abc-1", "zoo"]
        await world.put("k", b"v", bucket="abc")
        with pytest.raises(BucketNotEmpty):
            await world.on(4, lambda o, d: o.delete_bucket("abc", deadline=d))
        assert await world.get("k", bucket="abc", at=3) == b"v"
        await world.put("k2", b"v", bucket="abc", at=2)
        await world.delete("k", bucket="abc", at=4)
        await world.delete("k2", bucket="abc", at=4)
        await world.on(4, lambda o, d: o.delete_bucket("abc", deadline=d))
        with pytest.raises(NoSuchBucket):
            await world.on(4, lambda o, d: o.delete_bucket("abc", deadline=d))
        assert await names(1) == ["abc-1", "zoo"]
        for at in (1, 2, 3, 4):
            with pytest.raises(NoSuchBucket):
                await world.put("k", b"v", bucket="abc", at=at)
            with pytest.raises(NoSuchBucket):
                await world.put("large", content(2 * MIB), bucket="abc", at=at)
            with pytest.raises(NoSuchBucket):
                await world.on(at, lambda o, d: o.head_bucket("abc", deadline=d))
        await world.bucket("abc", at=1)
        for at in (1, 2, 3, 4):
            await world.put(f"new{at}", b"v", bucket="abc", at=at)
        assert await world.keys(bucket="abc") == ["new1", "new2", "new3", "new4"]

    simulate(story)


def test_reading_what_is_not_there() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        with pytest.raises(NoSuchKey):
            await world.get("nothing")
        with pytest.raises(NoSuchBucket):
            await world.get("nothing", bucket="nowhere")
        with pytest.raises(NoSuchBucket):
            await world.keys(bucket="nowhere")
        with pytest.raises(NoSuchBucket):
            await world.put("k", b"", bucket="nowhere")

    simulate(story)


def test_conditional_writes_and_reads() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()

        async def put(data: bytes, conditions: Conditions, at: int = 1) -> str:
            record = await world.on(
                at,
                lambda o, d: o.put(
                    "bucket", "k", BytesBody(data), NewObject(), conditions=conditions, deadline=d
                ),
            )
            return record.etag

        create = Conditions(if_none_match=("*",))
        first = await put(b"1", create)
        for at in (1, 2, 3, 4):
            with pytest.raises(PreconditionFailed):
                await put(b"2", create, at)
        second = await put(b"2", Conditions(if_match=(first,)), 3)
        with pytest.raises(PreconditionFailed):
            await put(b"3", Conditions(if_match=(first,)), 4)
        assert await world.get("k", at=2) == b"2"
        with pytest.raises(PreconditionFailed):
            await world.on(
                1,
                lambda o, d: o.delete(
                    "bucket", "k", conditions=Conditions(if_match=(first,)), deadline=d
                ),
            )
        await world.on(
            1,
            lambda o, d: o.delete(
                "bucket", "k", conditions=Conditions(if_match=(second,)), deadline=d
            ),
        )
        with pytest.raises(NoSuchKey):
            await put(b"3", Conditions(if_match=("*",)), 4)
        third = await put(b"3", create, 4)
        for conditions, error in (
            (Conditions(if_match=("other",)), PreconditionFailed),
            (Conditions(if_none_match=(third,)), NotModified),
            (Conditions(if_none_match=("*",)), NotModified),
        ):
            with pytest.raises(error):
                await world.on(
                    2, lambda o, d, c=conditions: o.head("bucket", "k", conditions=c, deadline=d)
                )

    simulate(story)


def test_a_refused_conditional_write_leaves_nothing_behind() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", b"there")
        with pytest.raises(PreconditionFailed):
            await world.on(
                1,
                lambda o, d: o.put(
                    "bucket",
                    "k",
                    BytesBody(content(2 * MIB)),
                    NewObject(),
                    conditions=Conditions(if_none_match=("*",)),
                    deadline=d,
                ),
            )
        await world.repair()
        assert not any(disk.files for disks in world.disks.values() for disk in disks)

    simulate(story)


def test_copy_keeps_or_replaces_metadata() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.bucket("other")
        for size in (100, 2 * MIB + 3):
            new = NewObject(headers={"content-type": "a/b"}, metadata={"m": "1"}, tags={"t": "2"})
            await world.on(
                1,
                lambda o, d, n=new, s=size: o.put(
                    "bucket", "k", BytesBody(content(s)), n, deadline=d
                ),
            )
            same = await world.on(
                2, lambda o, d: o.copy("bucket", "k", "other", "c", None, deadline=d)
            )
            assert (same.headers, same.metadata, same.tags) == (new.headers, new.metadata, new.tags)
            assert await world.get("c", bucket="other", at=4) == content(size)
            fresh = NewObject(metadata={"m": "9"})
            await world.on(
                3, lambda o, d, f=fresh: o.copy("bucket", "k", "bucket", "k", f, deadline=d)
            )
            record = await world.on(4, lambda o, d: o.head("bucket", "k", deadline=d))
            assert record.metadata == {"m": "9"} and record.tags == {}
            assert await world.get("k", at=1) == content(size)
        with pytest.raises(NoSuchKey):
            await world.on(2, lambda o, d: o.copy("bucket", "no", "other", "c", None, deadline=d))
        with pytest.raises(NoSuchBucket):
            await world.on(2, lambda o, d: o.copy("bucket", "k", "nowhere", "c", None, deadline=d))
        with pytest.raises(PreconditionFailed):
            await world.on(
                2,
                lambda o, d: o.copy(
                    "bucket",
                    "k",
                    "other",
                    "c",
                    None,
                    source_conditions=Conditions(if_match=("x",)),
                    deadline=d,
                ),
            )

    simulate(story)


class Upload:
    """One multipart upload of a test."""

    def __init__(self, world: ClusterWorld, key: str = "big") -> None:
        self.world, self.key = world, key
        self.id = ""
        self.etags: dict[int, str] = {}

    async def start(self, at: int = 1) -> Upload:
        new = NewObject(headers={"content-type": "x/y"}, metadata={"a": "b"})
        info = await self.world.on(
            at, lambda o, d: o.create_upload("bucket", self.key, new, deadline=d)
        )
        self.id = info.upload_id
        return self

    async def part(self, number: int, data: bytes, at: int = 1) -> None:
        info = await self.world.on(
            at,
            lambda o, d: o.upload_part(
                "bucket", self.key, self.id, number, BytesBody(data), deadline=d
            ),
        )
        self.etags[number] = info.etag

    async def complete(self, *numbers: int, at: int = 1, conditions: Conditions | None = None):  # type: ignore[no-untyped-def]
        parts = tuple(
            CompletedPart(number=n, etag=self.etags[n]) for n in numbers or sorted(self.etags)
        )
        return await self.world.on(
            at,
            lambda o, d: o.complete_upload(
                "bucket",
                self.key,
                self.id,
                parts,
                checksums={},
                conditions=conditions or Conditions(),
                deadline=d,
            ),
        )

    async def abort(self, at: int = 1) -> None:
        await self.world.on(
            at, lambda o, d: o.abort_upload("bucket", self.key, self.id, deadline=d)
        )

    async def parts(self, at: int = 1, **options: int) -> list[int]:
        page = await self.world.on(
            at, lambda o, d: o.list_parts("bucket", self.key, self.id, deadline=d, **options)
        )
        return [part.number for part in page.parts]


def test_multipart() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        upload = await Upload(world).start()
        one, two, three = content(MIN_PART_BYTES, 1), content(MIN_PART_BYTES + 9, 2), b"tail"
        await upload.part(3, three, at=3)
        await upload.part(1, content(MIN_PART_BYTES, 99), at=1)
        await upload.part(1, one, at=2)
        await upload.part(2, two, at=4)
        assert await upload.parts(at=3) == [1, 2, 3]
        assert await upload.parts(at=3, after=1, limit=1) == [2]
        with pytest.raises(NoSuchKey):
            await world.get("big")
        uploads = await world.on(2, lambda o, d: o.list_uploads("bucket", deadline=d))
        assert [(u.key, u.upload_id) for u in uploads.uploads] == [("big", upload.id)]
        with pytest.raises(InvalidPartOrder):
            await upload.complete(2, 1)
        with pytest.raises(InvalidPart):
            upload.etags[7] = upload.etags[1]
            await upload.complete(1, 7)
        record = await upload.complete(1, 2, 3, at=2)
        digest = hashlib.md5(
            b"".join(hashlib.md5(part).digest() for part in (one, two, three))
        ).hexdigest()
        assert record.etag == f"{digest}-3"
        assert (record.headers, record.metadata) == ({"content-type": "x/y"}, {"a": "b"})
        for node in (1, 2, 3, 4):
            assert await world.get("big", at=node) == one + two + three
        # Said again, on any node, at once and after the clean-up: the same object.
        assert (await upload.complete(1, 2, 3, at=3)).epoch == record.epoch
        await world.repair()
        assert (await upload.complete(1, 2, 3, at=4)).epoch == record.epoch
        with pytest.raises(NoSuchUpload):
            await upload.parts()
        with pytest.raises(NoSuchUpload):
            await upload.part(4, b"late")
        uploads = await world.on(2, lambda o, d: o.list_uploads("bucket", deadline=d))
        assert uploads.uploads == ()

        async def numbered(number: int) -> bytes:
            async def read(objects, deadline):  # type: ignore[no-untyped-def]
                reading = await objects.get("bucket", "big", part_number=number, deadline=deadline)
                return b"".join([bytes(c) async for c in reading.chunks()])

            return await world.on(3, read)

        assert [await numbered(n) for n in (1, 2, 3)] == [one, two, three]
        await world.repair()
        kept = {data_id for disks in world.disks.values() for d in disks for data_id in d.files}
        assert len(kept) == 3, "the part that was uploaded again has gone"

    simulate(story)


def test_abort_forgets_everything() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        upload = await Upload(world).start()
        await upload.part(1, content(MIN_PART_BYTES))
        await upload.part(2, b"x")
        await upload.abort(at=3)
        for call in (upload.abort, upload.parts, upload.complete):
            with pytest.raises(NoSuchUpload):
                await call()
        await world.repair()
        assert not any(disk.files for disks in world.disks.values() for disk in disks)

    simulate(story)


def test_parts_that_are_too_small_and_conditions_on_complete() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        upload = await Upload(world).start()
        await upload.part(1, b"small")
        await upload.part(2, b"smaller")
        with pytest.raises(EntityTooSmall):
            await upload.complete()
        await world.put("big", b"there")
        with pytest.raises(PreconditionFailed):
            await upload.complete(2, conditions=Conditions(if_none_match=("*",)))
        assert await world.get("big") == b"there"
        await upload.complete(2)
        assert await world.get("big", at=4) == b"smaller"

    simulate(story)


def test_copied_parts() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        data = content(2 * MIN_PART_BYTES)
        await world.put("source", data)
        upload = await Upload(world).start()
        for number, wanted in (
            (1, ByteRange(first=0, last=MIN_PART_BYTES)),
            (2, ByteRange(first=MIN_PART_BYTES + 1, last=2 * MIN_PART_BYTES - 1)),
        ):
            info = await world.on(
                number,
                lambda o, d, n=number, w=wanted: o.copy_part(
                    "bucket", "source", w, "bucket", "big", upload.id, n, deadline=d
                ),
            )
            upload.etags[number] = info.etag
        with pytest.raises(CodedError):
            await world.on(
                1,
                lambda o, d: o.copy_part(
                    "bucket",
                    "source",
                    ByteRange(first=0, last=2 * MIN_PART_BYTES),
                    "bucket",
                    "big",
                    upload.id,
                    1,
                    deadline=d,
                ),
            )
        await upload.complete(at=3)
        assert await world.get("big", at=4) == data

    simulate(story)
