"""What a story is, and what the stories share: their sizes, and one object as a node shows it."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from node.errors import NoSuchKey
from node.limits import KIB
from tests.crash.world import CrashWorld, settled
from tests.unit.test_objects_everyday import content

# Sizes of the stories: the rules are the same for small stripes, and a run takes half the time.
STRIPE_BYTES, INLINE_SHARD_BYTES, PART_BYTES = 64 * KIB, 2 * KIB, 20_000
SMALL_BYTES, LARGE_BYTES = 2_000, STRIPE_BYTES + 30_000  # inline; two stripes in shard files
KEY = "k"

SMALL_OLD, SMALL_NEW = content(SMALL_BYTES, 1), content(SMALL_BYTES, 2)
LARGE_OLD, LARGE_NEW = content(LARGE_BYTES, 3), content(LARGE_BYTES, 4)

Step = Callable[[CrashWorld], Awaitable[Any]]
Look = Callable[[CrashWorld, int], Awaitable[Hashable]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One request. `act` is what a client asks of the coordinator; it may return the name of the state it promised."""

    name: str
    prepare: Step
    act: Step
    look: Look
    states: Mapping[str, Hashable]  # what may be seen, by name; "old" and "new" may be the same
    retry: Step | None = None  # what the client does where it got no answer
    last: Step | None = None  # what must work in the end
    has_upload: bool = False  # which has ended when the story has, one way or the other
    options: Mapping[str, Any] = field(default_factory=dict)  # of the world


def there(data: bytes | None, key: str = KEY) -> Step:
    async def prepare(world: CrashWorld) -> None:
        await world.bucket()
        if data is not None:
            await world.put(key, data, at=4)

    return prepare


def etag_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


async def object_seen(world: CrashWorld, at: int, key: str = KEY) -> bytes | None:
    """A key as a node shows it: GET and the listing, which must agree."""

    async def get() -> bytes | None:
        try:
            return await world.get(key, at=at)
        except NoSuchKey:
            return None

    data: bytes | None = await settled(get)
    size = None if data is None else len(data)
    page = await settled(
        lambda: world.on(at, lambda o, d: o.list_objects("bucket", prefix=key, deadline=d))
    )
    listed = {o.key: o.size for o in page.objects}
    assert listed.get(key) == size, f"node {at}: the listing ({listed}) and GET ({size}) disagree"
    return data
