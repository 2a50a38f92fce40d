"""What an object store does, said once: of the store in memory that the faces are tested over, and of the real one."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from node.errors import (
    BucketAlreadyExists,
    BucketNotEmpty,
    CodedError,
    EntityTooSmall,
    HoldfastError,
    InvalidPart,
    InvalidRange,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    NotModified,
    PreconditionFailed,
)
from node.limits import MIN_PART_BYTES
from node.objects.api import (
    BodyResult,
    ByteRange,
    CompletedPart,
    Conditions,
    NewObject,
    ObjectStore,
    Reading,
)
from node.objects.bodies import BytesBody
from tests.fakes.cluster_world import LoopClock, run_virtual, simulate
from tests.fakes.memory_store import MemoryStore, checksum

Story = Callable[["Caller"], Awaitable[None]]


class Summed(BytesBody):
    """A body that came with checksums."""

    def __init__(self, data: bytes, checksums: dict[str, str]) -> None:
        super().__init__(data)
        self.checksums = checksums

    async def finish(self) -> BodyResult:
        return replace(await super().finish(), checksums=self.checksums)


class Caller:
    """A store with the deadline filled in."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def call(*arguments: Any, **options: Any) -> Any:
            deadline = asyncio.get_running_loop().time() + 60.0
            return method(*arguments, deadline=deadline, **options)

        return call

    async def read(self, key: str, bucket: str = "b", **options: Any) -> bytes:
        reading: Reading = await self.get(bucket, key, **options)
        try:
            data = b"".join([bytes(chunk) async for chunk in reading.chunks()])
        finally:
            await reading.close()
        assert len(data) == reading.end - reading.start
        return data

    async def write(self, key: str, data: bytes = b"", **options: Any) -> Any:
        return await self.put("b", key, BytesBody(data), options.pop("new", NewObject()), **options)


@pytest.fixture(params=["fake", "real"])
def tell(request: pytest.FixtureRequest) -> Callable[[Story], None]:
    def run(story: Story) -> None:
        if request.param == "fake":

            async def main() -> None:
                await story(Caller(MemoryStore(LoopClock().now)))

            run_virtual(main())
        else:
            simulate(lambda world: world.on(2, lambda objects, _: story(Caller(objects))))

    return run


def test_buckets(tell: Callable[[Story], None]) -> None:
    async def story(store: Caller) -> None:
        assert await store.list_buckets() == ()
        for missing in (store.head_bucket, store.delete_bucket, store.list_objects):
            with pytest.raises(NoSuchBucket):
                await missing("b")
        created = await store.create_bucket("b", "me")
        assert (created.name, created.owner) == ("b", "me")
        assert (await store.head_bucket("b")).created_s == created.created_s
        with pytest.raises(BucketAlreadyExists):
            await store.create_bucket("b", "me")
        await store.create_bucket("a-1", "me")
        assert [info.name for info in await store.list_buckets()] == ["a-1", "b"]
        await store.write("k")
        with pytest.raises(BucketNotEmpty):
            await store.delete_bucket("b")
        await store.delete("b", "k")
        await store.delete_bucket("b")
        assert [info.name for info in await store.list_buckets()] == ["a-1"]
        with pytest.raises(NoSuchBucket):
            await store.write("k")

    tell(story)


def test_an_object_is_what_was_put(tell: Callable[[Story], None]) -> None:
    async def story(store: Caller) -> None:
        await store.create_bucket("b", "me")
        new = NewObject(
            headers={"content-type": "text/x"}, metadata={"a": "1"}, tags={"t": "v"}, owner="me"
        )
        for size in (0, 1, 70_000, 1_200_000):
            data = bytes(i % 251 for i in range(size))
            sums = {"SHA256": checksum("SHA256", data)}
            put = await store.put("b", "k", Summed(data, sums), new)
            for record in (put, await store.head("b", "k"), (await store.get("b", "k")).record):
                assert record.etag == hashlib.md5(data).hexdigest()
                assert record.size == size
                assert (record.headers, record.metadata, record.tags) == (
                    new.headers,
                    new.metadata,
                    new.tags,
                )
                assert record.checksums == sums
                assert record.owner == "me"
            assert await store.read("k") == data

    tell(story)


def test_ranges(tell: Callable[[Story], None]) -> None:
    async def story(store: Caller) -> None:
        await store.create_bucket("b", "me")
        data = bytes(range(200))
        await store.write("k", data)
        await store.write("empty")
        for first, last, want in (
            (0, 0, data[:1]),
            (5, 9, data[5:10]),
            (190, None, data[190:]),
            (190, 1000, data[190:]),
            (None, 3, data[-3:]),
            (None, 1000, data),
        ):
            assert await store.read("k", byte_range=ByteRange(first=first, last=last)) == want
        for first, last in ((200, None), (500, 600), (None, 0)):
            with pytest.raises(InvalidRange):
                await store.read("k", byte_range=ByteRange(first=first, last=last))
        for first, last in ((0, None), (0, 0), (None, 5)):
            with pytest.raises(InvalidRange):
                await store.read("empty", byte_range=ByteRange(first=first, last=last))
        assert await store.read("k", part_number=1) == data
        with pytest.raises(InvalidRange):
            await store.read("k", part_number=2)

    tell(story)


def test_missing_keys_and_deletes(tell: Callable[[Story], None]) -> None:
    async def story(store: Caller) -> None:
        await store.create_bucket("b", "me")
        for missing in (store.head, store.get):
            with pytest.raises(NoSuchKey):
                await missing("b", "k")
            with pytest.raises(NoSuchBucket):
                await missing("c", "k")
        await store.delete("b", "k")
        with pytest.raises(NoSuchBucket):
            await store.delete("c", "k")
        await store.write("k", b"1")
        await store.delete("b", "k")
        with pytest.raises(NoSuchKey):
            await store.read("k")
        await store.write("k", b"2")
        assert await store.read("k") == b"2"

    tell(story)


def test_conditions(tell: Callable[[Story], None]) -> None:
    async def story(store: Caller) -> None:
        await store.create_bucket("b", "me")
        create, other = Conditions(if_none_match=("*",)), Conditions(if_match=("other",))
        with pytest.raises(NoSuchKey):
            await store.write("k", b"0", conditions=Conditions(if_match=("*",)))
        etag = (await store.write("k", b"1", conditions=create)).etag
        same = Conditions(if_match=("x", etag))
        for bad in (create, other, Conditions(if_none_match=(etag,))):
            with pytest.raises(PreconditionFailed):
                await store.write("k", b"2", conditions=bad)
        assert await store.read("k") == b"1"
        mtime_s = (await store.head("b", "k")).mtime_ns // 1_000_000_000
        for good in (
            same,
            Conditions(if_none_match=("y",)),
            Conditions(if_modified_since_s=mtime_s - 1),
            Conditions(if_unmodified_since_s=mtime_s),
            Conditions(if_match=(etag,), if_unmodified_since_s=mtime_s - 9),
            Conditions(if_none_match=("y",), if_modified_since_s=mtime_s + 9),
        ):
            await store.head("b", "k", conditions=good)
            assert await store.read("k", conditions=good) == b"1"
        for bad, error in (
            (other, PreconditionFailed),
            (Conditions(if_unmodified_since_s=mtime_s - 1), PreconditionFailed),
            (Conditions(if_none_match=(etag,)), NotModified),
            (Conditions(if_modified_since_s=mtime_s), NotModified),
        ):
            with pytest.raises(error):
                await store.head("b", "k", conditions=bad)
            with pytest.raises(PreconditionFailed):
                await store.copy("b", "k", "b", "c", None, source_conditions=bad)
        with pytest.raises(PreconditionFailed):
            await store.delete("b", "k", conditions=other)
        await store.delete("b", "k", conditions=same)
        with pytest.raises(NoSuchKey):
            await store.head("b", "k")

    tell(story)


def test_copies(tell: Callable[[Story], None]) -> None:
    async def story(store: Caller) -> None:
        await store.create_bucket("b", "me")
        await store.create_bucket("c", "me")
        data = b"x" * 90_000
        new = NewObject(headers={"content-type": "a/b"}, metadata={"m": "1"}, tags={"t": "1"})
        sums = {"CRC32C": checksum("CRC32C", data)}
        await store.put("b", "k", Summed(data, sums), new)
        copy = await store.copy("b", "k", "c", "k2", None)
        assert (copy.headers, copy.metadata, copy.tags) == (new.headers, new.metadata, new.tags)
        assert copy.checksums == sums and copy.etag == hashlib.md5(data).hexdigest()
        assert await store.read("k2", bucket="c") == data
        changed = await store.copy("b", "k", "b", "k", NewObject(metadata={"m": "2"}))
        assert changed.metadata == {"m": "2"} and changed.tags == {}
        for bucket, key, error in (("b", "no", NoSuchKey), ("no", "k", NoSuchBucket)):
            with pytest.raises(error):
                await store.copy(bucket, key, "c", "k3", None)
        with pytest.raises(NoSuchBucket):
            await store.copy("b", "k", "no", "k3", None)
        with pytest.raises(PreconditionFailed):
            await store.copy("b", "k", "c", "k2", None, conditions=Conditions(if_none_match=("*",)))

    tell(story)


KEYS = ["a", "a-b", "a/", "a/1", "a/2/x", "a/2/y", "b/1", "b/2", "c", "é/1", "\U0001f600"]


def test_lists(tell: Callable[[Story], None]) -> None:
    async def story(store: Caller) -> None:
        await store.create_bucket("b", "me")
        for key in KEYS:
            await store.write(key, key.encode())
        await store.write("a/gone")
        await store.delete("b", "a/gone")

        async def page(**options: Any) -> tuple[list[str], list[str], str | None]:
            found = await store.list_objects("b", **options)
            return [o.key for o in found.objects], list(found.common_prefixes), found.next_after

        assert await page() == (KEYS, [], None)
        assert await page(limit=0) == ([], [], None)
        assert await page(limit=3) == (KEYS[:3], [], "a/")
        assert await page(after="a/", limit=3) == (["a/1", "a/2/x", "a/2/y"], [], "a/2/y")
        assert await page(limit=len(KEYS)) == (KEYS, [], None)
        assert await page(after="c") == (["é/1", "\U0001f600"], [], None)
        assert await page(prefix="a/2") == (["a/2/x", "a/2/y"], [], None)
        assert await page(prefix="nothing") == ([], [], None)
        assert await page(delimiter="/") == (
            ["a", "a-b", "c", "\U0001f600"],
            ["a/", "b/", "é/"],
            None,
        )
        assert await page(delimiter="/", limit=3) == (["a", "a-b"], ["a/"], "a/")
        assert await page(delimiter="/", after="a/") == (["c", "\U0001f600"], ["b/", "é/"], None)
        assert await page(delimiter="/", after="a/1", limit=1) == ([], ["a/"], "a/")
        assert await page(delimiter="/", prefix="a/") == (["a/", "a/1"], ["a/2/"], None)
        assert await page(delimiter="2") == (
            [k for k in KEYS if "2" not in k],
            ["a/2", "b/2"],
            None,
        )
        listed = (await store.list_objects("b", prefix="a/2/x")).objects[0]
        record = await store.head("b", "a/2/x")
        assert (listed.size, listed.etag, listed.mtime_ns) == (
            record.size,
            record.etag,
            record.mtime_ns,
        )

    tell(story)


async def upload(store: Caller, key: str, *parts: bytes, **new: Any) -> tuple[str, list[Any]]:
    info = await store.create_upload("b", key, NewObject(**new))
    assert info.key == key
    infos = [
        await store.upload_part("b", key, info.upload_id, number, BytesBody(data))
        for number, data in enumerate(parts, 1)
    ]
    return info.upload_id, infos


def chosen(infos: list[Any]) -> tuple[CompletedPart, ...]:
    return tuple(CompletedPart(number=info.number, etag=info.etag) for info in infos)


def test_multipart(tell: Callable[[Story], None]) -> None:
    async def story(store: Caller) -> None:
        await store.create_bucket("b", "me")
        big, tail = b"1" * MIN_PART_BYTES, b"tail"
        upload_id, infos = await upload(
            store, "k", big, tail, metadata={"m": "1"}, headers={"content-type": "x/y"}
        )
        assert [info.etag for info in infos] == [
            hashlib.md5(data).hexdigest() for data in (big, tail)
        ]
        listed = await store.list_parts("b", "k", upload_id)
        assert [(p.number, p.size, p.etag) for p in listed.parts] == [
            (1, MIN_PART_BYTES, infos[0].etag),
            (2, 4, infos[1].etag),
        ]
        assert (await store.list_parts("b", "k", upload_id, limit=1)).next_number == 1
        assert [p.number for p in (await store.list_parts("b", "k", upload_id, after=1)).parts] == [
            2
        ]
        for key, wrong_id in (("k", "nonsense"), ("other", upload_id)):
            with pytest.raises(NoSuchUpload):
                await store.list_parts("b", key, wrong_id)
            with pytest.raises(NoSuchUpload):
                await store.upload_part("b", key, wrong_id, 1, BytesBody(b""))
            with pytest.raises(NoSuchUpload):
                await store.complete_upload("b", key, wrong_id, chosen(infos), checksums={})
            with pytest.raises(NoSuchUpload):
                await store.abort_upload("b", key, wrong_id)
        with pytest.raises(NoSuchKey):
            await store.head("b", "k")
        for wrong in (
            (CompletedPart(number=9, etag=infos[0].etag),),
            (CompletedPart(number=1, etag="0" * 32),),
        ):
            with pytest.raises(InvalidPart):
                await store.complete_upload("b", "k", upload_id, wrong, checksums={})
        done = await store.complete_upload("b", "k", upload_id, chosen(infos), checksums={})
        digest = hashlib.md5(b"".join(bytes.fromhex(i.etag) for i in infos)).hexdigest()
        assert done.etag == f"{digest}-2"
        record = await store.head("b", "k")
        assert (record.size, record.metadata) == (MIN_PART_BYTES + 4, {"m": "1"})
        assert await store.read("k") == big + tail
        assert await store.read("k", part_number=2) == tail
        with pytest.raises(InvalidRange):
            await store.read("k", part_number=3)
        seam = ByteRange(first=MIN_PART_BYTES - 2, last=MIN_PART_BYTES + 1)
        assert await store.read("k", byte_range=seam) == b"11ta"

    tell(story)


def test_part_numbers_with_gaps(tell: Callable[[Story], None]) -> None:
    async def story(store: Caller) -> None:
        await store.create_bucket("b", "me")
        info = await store.create_upload("b", "k", NewObject())
        big = b"5" * MIN_PART_BYTES
        infos = [
            await store.upload_part("b", "k", info.upload_id, number, BytesBody(data))
            for number, data in ((5, big), (9, b"nine"))
        ]
        await store.complete_upload("b", "k", info.upload_id, chosen(infos), checksums={})
        assert await store.read("k", part_number=9) == b"nine"
        with pytest.raises(InvalidRange):
            await store.read("k", part_number=2)

    tell(story)


def test_small_parts_aborts_and_conditions_of_uploads(tell: Callable[[Story], None]) -> None:
    async def story(store: Caller) -> None:
        await store.create_bucket("b", "me")
        upload_id, infos = await upload(store, "k", b"small", b"parts")
        with pytest.raises(EntityTooSmall):
            await store.complete_upload("b", "k", upload_id, chosen(infos), checksums={})
        await store.write("k", b"there")
        with pytest.raises(PreconditionFailed):
            await store.complete_upload(
                "b",
                "k",
                upload_id,
                chosen(infos[1:]),
                checksums={},
                conditions=Conditions(if_none_match=("*",)),
            )
        await store.abort_upload("b", "k", upload_id)
        with pytest.raises(NoSuchUpload):
            await store.abort_upload("b", "k", upload_id)
        assert (await store.list_uploads("b")).uploads == ()
        assert await store.read("k") == b"there"

    tell(story)


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        ("CRC32", "FULL_OBJECT"),
        ("CRC32C", "FULL_OBJECT"),
        ("CRC64NVME", "FULL_OBJECT"),
        ("CRC32", "COMPOSITE"),
        ("SHA1", "COMPOSITE"),
        ("SHA256", "COMPOSITE"),
    ],
)
def test_checksums_of_uploads(tell: Callable[[Story], None], algorithm: str, kind: str) -> None:
    async def story(store: Caller) -> None:
        await store.create_bucket("b", "me")
        info = await store.create_upload(
            "b", "k", NewObject(checksum_algorithm=algorithm, checksum_type=kind)
        )
        data = [b"1" * MIN_PART_BYTES, b"2" * 77]
        parts = []
        for number, piece in enumerate(data, 1):
            sums = {algorithm: checksum(algorithm, piece)}
            part = await store.upload_part("b", "k", info.upload_id, number, Summed(piece, sums))
            assert part.checksums == sums
            parts.append(CompletedPart(number=number, etag=part.etag, checksums=sums))
        if kind == "FULL_OBJECT":
            want = checksum(algorithm, b"".join(data))
        else:
            raw = b"".join(base64.b64decode(p.checksums[algorithm]) for p in parts)
            want = f"{checksum(algorithm, raw)}-2"
        wrong = {algorithm: checksum(algorithm, b"wrong")}
        with pytest.raises(CodedError) as refused:
            await store.complete_upload("b", "k", info.upload_id, tuple(parts), checksums=wrong)
        assert refused.value.code == "BadDigest"
        done = await store.complete_upload(
            "b", "k", info.upload_id, tuple(parts), checksums={algorithm: want}
        )
        assert done.checksums == {algorithm: want}

    tell(story)


def test_lists_of_uploads(tell: Callable[[Story], None]) -> None:
    async def story(store: Caller) -> None:
        await store.create_bucket("b", "me")
        ids: dict[str, list[str]] = {}
        for key in ("a/1", "a/2", "b", "b", "c"):
            info = await store.create_upload("b", key, NewObject())
            ids.setdefault(key, []).append(info.upload_id)
        everything = [(key, one) for key in sorted(ids) for one in sorted(ids[key])]

        async def page(**options: Any) -> tuple[list[tuple[str, str]], list[str], Any]:
            found = await store.list_uploads("b", **options)
            return (
                [(u.key, u.upload_id) for u in found.uploads],
                list(found.common_prefixes),
                found.next_key,
            )

        assert await page() == (everything, [], None)
        assert await page(prefix="a/") == (everything[:2], [], None)
        assert await page(delimiter="/") == (everything[2:], ["a/"], None)
        assert await page(after_key="b") == (everything[4:], [], None)
        assert (await page(after_key="b", after_upload_id=everything[2][1]))[0] == everything[3:]
        for delimiter in ("", "/"):
            for limit in (1, 2, 3):
                seen: list[tuple[str, str]] = []
                groups: list[str] = []
                after: dict[str, str] = {}
                for _ in range(10):
                    found = await store.list_uploads("b", limit=limit, delimiter=delimiter, **after)
                    seen += [(u.key, u.upload_id) for u in found.uploads]
                    groups += found.common_prefixes
                    if found.next_key is None:
                        break
                    after = {
                        "after_key": found.next_key,
                        "after_upload_id": found.next_upload_id or "",
                    }
                assert seen == (everything[2:] if delimiter else everything), (limit, delimiter)
                assert groups == (["a/"] if delimiter else [])
        with pytest.raises(NoSuchBucket):
            await store.list_uploads("nowhere")

    tell(story)


def test_copied_parts(tell: Callable[[Story], None]) -> None:
    async def story(store: Caller) -> None:
        await store.create_bucket("b", "me")
        data = bytes(range(256)) * 300
        await store.write("source", data)
        info = await store.create_upload("b", "k", NewObject())
        part = await store.copy_part(
            "b", "source", ByteRange(first=100, last=70_000), "b", "k", info.upload_id, 1
        )
        assert (part.size, part.etag) == (69_901, hashlib.md5(data[100:70_001]).hexdigest())
        with pytest.raises(HoldfastError):
            await store.copy_part(
                "b", "source", ByteRange(first=0, last=len(data)), "b", "k", info.upload_id, 2
            )
        with pytest.raises(NoSuchKey):
            await store.copy_part("b", "no", None, "b", "k", info.upload_id, 2)
        with pytest.raises(NoSuchUpload):
            await store.copy_part("b", "source", None, "b", "k", "nonsense", 2)
        await store.complete_upload("b", "k", info.upload_id, chosen([part]), checksums={})
        assert await store.read("k") == data[100:70_001]

    tell(story)


def test_a_body_that_fails_leaves_what_was_there(tell: Callable[[Story], None]) -> None:
    class Broken(BytesBody):
        async def finish(self) -> BodyResult:
            raise CodedError("BadDigest", "not what was announced")

    async def story(store: Caller) -> None:
        await store.create_bucket("b", "me")
        await store.write("k", b"there")
        for size in (10, 1_300_000):
            with pytest.raises(CodedError):
                await store.put("b", "k", Broken(bytes(size)), NewObject())
        assert await store.read("k") == b"there"

    tell(story)
