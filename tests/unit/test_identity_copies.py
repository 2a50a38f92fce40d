"""A node's own copy of the identities: what it is good for at a start without a quorum, and what it must not do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from iam.errors import AuthError, SealBroken
from iam.model import Directory, KeyStatus
from node import limits
from node.errors import Unavailable
from node.identity.vault import DOCUMENT, Keks, Vault
from node.objects.documents import Document
from tests.unit.identity_world import CLUSTER_ID, KEKS, SeededRng, World
from tests.unit.locks_world import run_virtual


def _in_world(story: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        await story(World())

    run_virtual(main())


async def _name(world: World, key: tuple[str, str], number: int = 1) -> str:
    parts = world.request(*key)
    found = await world.identity(number).authenticate(parts, deadline=world.by(5))
    return found.caller.name


async def _power_off(world: World) -> None:
    """Every node's process ends; what is on the drives stays."""
    await asyncio.sleep(limits.IDENTITY_REFRESH_S * 2)
    for name in world.names:
        await world.nodes[name].identity.close()
        world.restart(name)
    world.dark.update(world.names)


async def _with_users(world: World) -> tuple[str, str]:
    for number in (1, 2, 3, 4):
        world.identity(number).start()
    key = await world.new_key("ann")
    await _power_off(world)
    return key


def test_users_get_in_at_a_start_without_a_quorum() -> None:
    async def story(world: World) -> None:
        key = await _with_users(world)
        world.store.reachable = False
        for number in (1, 2, 3, 4):
            assert not world.identity(number).ready
            world.identity(number).start()
            await asyncio.sleep(0.5)
            assert await _name(world, key, number) == "ann"
            assert world.identity(number).ready and world.identity(number).version == 2
            assert world.node(number).seen.version == 2
        with pytest.raises(Unavailable):  # it may have been made elsewhere: nobody denies it now
            await _name(world, ("HFUNKNOWN", "x" * 20))

    _in_world(story)


def test_a_quorum_that_never_answers_holds_nobody_up_for_long() -> None:
    async def story(world: World) -> None:
        key = await _with_users(world)
        world.store.hanging = True
        world.identity().start()
        await asyncio.sleep(limits.IDENTITY_QUORUM_FIRST_S + 0.1)
        assert await _name(world, key) == "ann"

    _in_world(story)


def test_the_quorums_answer_goes_before_the_copy_from_the_first_request_on() -> None:
    async def story(world: World) -> None:
        key = await _with_users(world)
        other = world.identity(2)
        world.dark = {world.names[0]}
        await other.set_access_key_status("ann", key[0], KeyStatus.INACTIVE, deadline=world.by(5))
        world.store.delay_s = 1.0
        world.identity().start()
        with pytest.raises(AuthError, match="InvalidAccessKeyId"):
            await _name(world, key)

    _in_world(story)


def test_a_copy_that_a_peer_knows_to_be_old_counts_for_nothing() -> None:
    async def story(world: World) -> None:
        key = await _with_users(world)
        world.store.reachable = False
        world.dark.clear()
        world.node(3).published = 9
        world.identity().start()
        await asyncio.sleep(3)
        with pytest.raises(Unavailable):
            await _name(world, key)

    _in_world(story)


def test_an_older_answer_of_the_quorum_takes_the_place_of_a_newer_copy() -> None:
    """The cluster was put back to an earlier state, this node's drives were not."""

    async def story(world: World) -> None:
        await _with_users(world)
        world.store.reachable = False
        world.identity().start()
        await asyncio.sleep(3)
        assert world.identity().version == 2 and world.node(1).published == 2
        stored = world.store.documents[DOCUMENT]
        world.store.documents[DOCUMENT] = Document(stored.data, 1, 0)
        world.store.reachable = True
        await asyncio.sleep(3)
        assert world.identity().version == 1 and world.node(1).published == 1

    _in_world(story)


def test_drives_that_failed_get_the_copy_later() -> None:
    async def story(world: World) -> None:
        drives = world.node(1).drives
        drives.working = False
        world.identity().start()
        await world.new_key("ann")
        await asyncio.sleep(3)
        assert not drives.data
        drives.working = True
        await asyncio.sleep(3)
        assert drives.data

    _in_world(story)


def test_a_copy_that_rotted_or_is_another_clusters_is_not_used() -> None:
    async def story(world: World) -> None:
        key = await _with_users(world)
        world.store.reachable = False
        good = world.node(1).drives.data
        fields = msgspec.msgpack.decode(good)
        forged = msgspec.msgpack.encode(fields | {"version": 900})
        for bad in (forged, good[:-1], good[: len(good) // 2], b"\0", b"x" * 100):
            world.node(1).drives.data = bad
            node = world.restart(world.names[0])
            node.identity.start()
            await asyncio.sleep(3)
            assert not node.identity.ready
            with pytest.raises(Unavailable):
                await _name(world, key)
            await node.identity.close()
        world.node(1).drives.data = good
        stranger = world.restart(world.names[0], Keks(own=(b"z" * 32,)))
        stranger.identity.start()
        await asyncio.sleep(3)
        assert not stranger.identity.ready

    _in_world(story)


def test_the_copys_version_is_under_its_mac() -> None:
    vault = Vault(KEKS, CLUSTER_ID, SeededRng())
    key = vault.new_data_key()
    document = vault.seal(Directory(), key)
    copy = vault.seal_copy(document, 7, key)
    version, opened = vault.open_copy(copy)
    assert (version, opened.directory, opened.data_key) == (7, Directory(), key)
    fields = msgspec.msgpack.decode(copy)
    with pytest.raises(SealBroken):
        vault.open_copy(msgspec.msgpack.encode(fields | {"version": 8}))
