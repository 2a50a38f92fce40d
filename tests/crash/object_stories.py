"""Stories of objects and buckets: what a client does all day."""

from __future__ import annotations

from node.errors import NoSuchBucket
from node.objects.api import Conditions, NewObject
from node.objects.bodies import BytesBody
from tests.crash.story import (
    KEY,
    LARGE_NEW,
    LARGE_OLD,
    SMALL_NEW,
    SMALL_OLD,
    Step,
    Story,
    etag_of,
    object_seen,
    there,
)
from tests.crash.world import COORDINATOR, CrashWorld, settled


def _put(data: bytes, conditions: Conditions | None = None) -> Step:
    async def act(world: CrashWorld) -> None:
        await world.on(
            COORDINATOR,
            lambda o, d: o.put(
                "bucket",
                KEY,
                BytesBody(data),
                NewObject(),
                conditions=conditions or Conditions(),
                deadline=d,
            ),
        )

    return act


async def _delete(world: CrashWorld) -> None:
    await world.delete(KEY, at=COORDINATOR)


async def _copy(world: CrashWorld) -> None:
    await world.on(
        COORDINATOR,
        lambda o, d: o.copy("bucket", "source", "bucket", KEY, None, deadline=d),
    )


def _object_story(name: str, old: bytes | None, new: bytes | None, act: Step) -> Story:
    return Story(
        name=name,
        prepare=there(old),
        act=act,
        look=object_seen,
        states={"old": old, "new": new},
    )


# ---- buckets ---------------------------------------------------------------------------------------
async def _bucket_seen(world: CrashWorld, at: int) -> bool:
    async def head() -> bool:
        try:
            await world.on(at, lambda o, d: o.head_bucket("bucket", deadline=d))
        except NoSuchBucket:
            return False
        return True

    there: bool = await settled(head)
    listed = await settled(lambda: world.on(at, lambda o, d: o.list_buckets(deadline=d)))
    assert ("bucket" in {b.name for b in listed}) == there, f"node {at}: list and HEAD disagree"
    return there


async def _bucket_works(world: CrashWorld) -> None:
    """A bucket that is there takes writes on every node, one that is not takes none."""
    there = await _bucket_seen(world, 1)
    for at in world.lit():

        async def put(at: int = at) -> bool:
            try:
                await world.put(KEY, b"%d" % at, at=at)
            except NoSuchBucket:
                return False
            return True

        assert await settled(put) == there, f"node {at}: the bucket is there ({there}), a PUT not"
    if there:
        assert await object_seen(world, 1) == b"%d" % world.lit()[-1]


async def _create_bucket(world: CrashWorld) -> None:
    await world.bucket(at=COORDINATOR)


async def _delete_bucket(world: CrashWorld) -> None:
    await world.on(COORDINATOR, lambda o, d: o.delete_bucket("bucket", deadline=d))


async def _nothing(world: CrashWorld) -> None:
    return None


# ---- all of them -----------------------------------------------------------------------------------
_ABSENT = Conditions(if_none_match=("*",))
_MATCH = Conditions(if_match=(etag_of(SMALL_OLD),))
OBJECT_STORIES = [
    _object_story("put-inline", None, SMALL_NEW, _put(SMALL_NEW)),
    _object_story("put-large", None, LARGE_NEW, _put(LARGE_NEW)),
    _object_story("overwrite-inline", SMALL_OLD, SMALL_NEW, _put(SMALL_NEW)),
    _object_story("overwrite-inline-by-large", SMALL_OLD, LARGE_NEW, _put(LARGE_NEW)),
    _object_story("overwrite-large", LARGE_OLD, LARGE_NEW, _put(LARGE_NEW)),
    _object_story("overwrite-large-by-inline", LARGE_OLD, SMALL_NEW, _put(SMALL_NEW)),
    _object_story("delete", SMALL_OLD, None, _delete),
    _object_story("delete-large", LARGE_OLD, None, _delete),
    _object_story("delete-absent", None, None, _delete),
    _object_story("create-if-absent", None, SMALL_NEW, _put(SMALL_NEW, _ABSENT)),
    _object_story("put-if-match", SMALL_OLD, SMALL_NEW, _put(SMALL_NEW, _MATCH)),
    Story(
        name="copy",
        prepare=there(LARGE_NEW, "source"),
        act=_copy,
        look=object_seen,
        states={"old": None, "new": LARGE_NEW},
    ),
]
BUCKET_STORIES = [
    Story(
        name="create-bucket",
        prepare=_nothing,
        act=_create_bucket,
        look=_bucket_seen,
        states={"old": False, "new": True},
        last=_bucket_works,
    ),
    Story(
        name="delete-bucket",
        prepare=there(None),
        act=_delete_bucket,
        look=_bucket_seen,
        states={"old": True, "new": False},
        last=_bucket_works,
    ),
]
