"""Listing over four nodes against an oracle: tombstones, undecided writes, drives that missed writes, pages, groups."""

from __future__ import annotations

import asyncio
import random

import pytest

from node.errors import OutcomeUnknown
from node.objects.api import Conditions, NewObject
from node.objects.bodies import BytesBody
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from tests.fakes.cluster_world import ClusterWorld, simulate

NAMES = [
    "a",
    "a/",
    "a/1",
    "a/2",
    "a/b/1",
    "a/b/2",
    "a//",
    "b",
    "b-1",
    "b/",
    "b/c",
    "é",
    "é/x",
    "z/q/1",
]
DELIMITERS = ["", "/", "b", "/b"]


def oracle(keys: set[str], prefix: str, delimiter: str) -> list[str]:
    """All entries of a listing in order; groups end with the delimiter, twice said is once."""
    found = []
    for key in sorted(keys, key=str.encode):
        if not key.startswith(prefix):
            continue
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        name = "group " + key[: cut + len(delimiter)] if cut >= 0 else key
        if name not in found:
            found.append(name)
    return found


async def listed(
    world: ClusterWorld, at: int, prefix: str, delimiter: str, limit: int
) -> list[str]:
    """The whole listing, page by page, each page at the next node."""
    after, found = "", []
    for page_number in range(200):
        nodes = [n for n in range(1, 5) if world.node(n).life.alive]
        page = await world.on(
            nodes[(at + page_number) % len(nodes)],
            lambda o, d, a=after: o.list_objects(
                "bucket", prefix=prefix, delimiter=delimiter, after=a, limit=limit, deadline=d
            ),
        )
        assert len(page.objects) + len(page.common_prefixes) <= limit
        merged = [o.key for o in page.objects] + ["group " + p for p in page.common_prefixes]
        found += sorted(merged, key=lambda name: name.removeprefix("group ").encode())
        if page.next_after is None:
            return found
        assert merged, "a page that goes on is not empty"
        after = page.next_after
    raise AssertionError("a listing without end")


async def check(world: ClusterWorld, keys: set[str], rng: random.Random) -> None:
    for _ in range(12):
        prefix = rng.choice(["", "", "a", "a/", "b", "é", "nothing"])
        delimiter = rng.choice(DELIMITERS)
        limit = rng.choice([1, 2, 3, 5, 1000])
        want = oracle(keys, prefix, delimiter)
        got = await listed(world, rng.randrange(4), prefix, delimiter, limit)
        assert got == want, (prefix, delimiter, limit)


async def put_judged(world: ClusterWorld, key: str, there: bool) -> None:
    """A write that reads first, so that no drive refuses it for its base."""
    conditions = Conditions(if_match=("*",)) if there else Conditions(if_none_match=("*",))
    body = BytesBody(b"unknown")
    await world.on(
        1,
        lambda o, d: o.put("bucket", key, body, NewObject(), conditions=conditions, deadline=d),
    )


@pytest.mark.parametrize("seed", range(12))
def test_listings_agree_with_what_is_there(seed: int) -> None:
    async def story(world: ClusterWorld) -> None:
        rng = random.Random(seed)
        await world.bucket()
        keys: set[str] = set()

        async def change(count: int) -> None:
            for _ in range(count):
                key = rng.choice(NAMES)
                at = rng.choice([n for n in range(1, 5) if world.node(n).life.alive])
                if rng.random() < 0.6:
                    await world.put(key, b"v", at=at)
                    keys.add(key)
                else:
                    await world.delete(key, at=at)
                    keys.discard(key)

        await change(15)
        await check(world, keys, rng)
        dark = rng.randrange(1, 5)
        world.power_off(dark)
        await world.notice()
        await change(10)
        await check(world, keys, rng)
        await world.power_on(dark)  # with what it missed
        await check(world, keys, rng)
        await change(5)
        # Writes that reached some drives, and whose answers nobody heard.
        disks = [disk for disks in world.disks.values() for disk in disks]
        for _ in range(3):
            key, reached = rng.choice(NAMES), rng.choice([1, 4, 7, 8, 9, 12])
            chosen = rng.sample(disks, reached)
            for disk in disks:
                disk.refuse = lambda verb, refuses=disk not in chosen: (
                    DriveFault.IO if isinstance(verb, verbs.Commit) and refuses else None
                )
            world.lose = lambda sender, target, what: what == "COMMIT answer"
            with pytest.raises(OutcomeUnknown):
                await put_judged(world, key, key in keys)
            world.lose = lambda sender, target, what: False
            for disk in disks:
                disk.refuse = lambda verb: None
            # Fewer than eight shards: it can only be taken back; with eight or more it goes forward.
            if reached >= 8:
                keys.add(key)
            await check(world, keys, rng)
        await world.repair()
        await check(world, keys, rng)
        await asyncio.sleep(1)

    simulate(story, seed=seed)


def test_a_group_whose_living_keys_lie_behind_a_thousand_deleted_ones() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for start in range(0, 60, 20):
            await asyncio.gather(
                *(world.put(f"g/{n:04}", b"", at=1 + n % 4) for n in range(start, start + 20))
            )
        await world.put("g/last", b"")
        await world.put("h", b"")
        for start in range(0, 60, 20):
            await asyncio.gather(
                *(world.delete(f"g/{n:04}", at=1 + n % 4) for n in range(start, start + 20))
            )
        for limit in (1, 2, 1000):
            assert await listed(world, 0, "", "/", limit) == ["group g/", "h"]
        await world.delete("g/last")
        for limit in (1, 2, 1000):
            assert await listed(world, 0, "", "/", limit) == ["h"]

    simulate(story)
