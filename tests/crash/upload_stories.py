"""Stories of multipart uploads."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from node.errors import NoSuchUpload
from node.objects.api import CompletedPart, NewObject
from node.objects.bodies import BytesBody
from tests.crash.story import KEY, PART_BYTES, SMALL_OLD, Story, etag_of, object_seen, there
from tests.crash.world import COORDINATOR, CrashWorld, settled
from tests.unit.test_objects_everyday import content

PIECES = (content(PART_BYTES, 5), content(3_000, 6))


async def _begin_upload(world: CrashWorld) -> None:
    await there(SMALL_OLD)(world)
    info = await world.on(4, lambda o, d: o.create_upload("bucket", KEY, NewObject(), deadline=d))
    world.notes["upload"] = info.upload_id


async def _upload_parts(world: CrashWorld) -> None:
    await _begin_upload(world)
    await _upload_part(world, 1, at=4)
    await _upload_part(world, 2, at=3)


async def _upload_part(world: CrashWorld, number: int, at: int) -> None:
    upload, piece = world.notes["upload"], PIECES[number - 1]
    part = await world.on(
        at,
        lambda o, d: o.upload_part("bucket", KEY, upload, number, BytesBody(piece), deadline=d),
    )
    world.notes[f"etag{number}"] = part.etag


async def _upload_second_part(world: CrashWorld) -> None:
    await _upload_part(world, 2, at=COORDINATOR)


async def _complete(world: CrashWorld, at: int = COORDINATOR) -> None:
    chosen = tuple(
        CompletedPart(number=number, etag=world.notes[f"etag{number}"]) for number in (1, 2)
    )
    await world.on(
        at,
        lambda o, d: o.complete_upload(
            "bucket", KEY, world.notes["upload"], chosen, checksums={}, deadline=d
        ),
    )


async def _complete_again(world: CrashWorld) -> None:
    await settled(lambda: _complete(world, at=3))


async def _abort(world: CrashWorld, at: int = COORDINATOR) -> None:
    await world.on(
        at, lambda o, d: o.abort_upload("bucket", KEY, world.notes["upload"], deadline=d)
    )


async def _parts_seen(world: CrashWorld, at: int) -> Hashable:
    """The numbers and sizes of the parts, None when there is no such upload."""

    async def parts() -> Hashable:
        try:
            page = await world.on(
                at,
                lambda o, d: o.list_parts("bucket", KEY, world.notes["upload"], deadline=d),
            )
        except NoSuchUpload:
            return None
        return tuple((part.number, part.size) for part in page.parts)

    seen: Hashable = await settled(parts)
    uploads = await settled(lambda: world.on(at, lambda o, d: o.list_uploads("bucket", deadline=d)))
    assert bool(uploads.uploads) == (seen is not None), f"node {at}: lists of uploads and parts"
    return seen


async def _upload_works(world: CrashWorld) -> None:
    """The client sends the part again where it is not there, and completes."""
    if len(await _parts_seen(world, 1) or ()) < 2:  # type: ignore[arg-type]
        await settled(lambda: _upload_part(world, 2, at=3))
    world.notes.setdefault("etag2", etag_of(PIECES[1]))
    await _complete_again(world)
    assert await object_seen(world, 1) == b"".join(PIECES)
    await asyncio.sleep(1.0)  # the parts are cleared away behind the answer


async def _give_up(world: CrashWorld) -> None:
    """A client that got no answer and sees the old object aborts; who sees the new one has nothing to do."""
    if await object_seen(world, 1) == SMALL_OLD:
        await _abort_again(world)


async def _abort_again(world: CrashWorld) -> None:
    if await _parts_seen(world, 1) is not None:
        await settled(lambda: _abort(world, at=3))
        await asyncio.sleep(1.0)
    assert await _parts_seen(world, 4) is None


_ALL_PARTS = tuple((number + 1, len(piece)) for number, piece in enumerate(PIECES))


async def _prepared_part(world: CrashWorld) -> None:
    await _begin_upload(world)
    await _upload_part(world, 1, at=4)


UPLOAD_STORIES = [
    Story(
        name="upload-part",
        prepare=_prepared_part,
        act=_upload_second_part,
        look=_parts_seen,
        states={"old": _ALL_PARTS[:1], "new": _ALL_PARTS},
        last=_upload_works,
        has_upload=True,
    ),
    Story(
        name="complete",
        prepare=_upload_parts,
        act=_complete,
        look=object_seen,
        states={"old": SMALL_OLD, "new": b"".join(PIECES)},
        last=_give_up,
        has_upload=True,
    ),
    Story(
        name="complete-again",
        prepare=_upload_parts,
        act=_complete,
        look=object_seen,
        states={"old": SMALL_OLD, "new": b"".join(PIECES)},
        retry=_complete_again,
        has_upload=True,
    ),
    Story(
        name="abort",
        prepare=_upload_parts,
        act=_abort,
        look=_parts_seen,
        states={"old": _ALL_PARTS, "new": None},
        last=_abort_again,
        has_upload=True,
    ),
]
