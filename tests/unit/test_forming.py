"""Forming a cluster, joining it, waiting for it, and what must never be written to."""

from __future__ import annotations

import asyncio

import pytest

from node.errors import ClientError, DriveFailed, HoldfastError
from node.store.boot import Kind
from node.store.format import FormatError, State
from tests.unit.forming_world import PowerOff, World

DRIVES = [(f"node{node}:9002", drive) for node in range(1, 5) for drive in range(4)]


async def test_four_nodes_form_one_cluster() -> None:
    world = World()
    cluster = await world.form()
    formats = [world.format(*drive) for drive in DRIVES]
    assert {value.cluster_id for value in formats} == {cluster.cluster_id}
    assert len({value.drive_id for value in formats}) == 16
    assert all(value.state is State.FORMED for value in formats)
    assert [(value.node, value.drive) for value in formats] == DRIVES
    assert (cluster.parity, cluster.durability) == (8, "strict")


async def test_a_node_alone_forms_without_peers() -> None:
    world = World("/data/disk{1...4}")
    cluster = await world.form()
    assert cluster.parity == 2
    assert cluster.pool.nodes == ("local:9002",)


async def test_the_first_node_waits_until_every_drive_answers() -> None:
    world = World()
    world.dark = {"node3:9002"}
    forming, clock, log = world.node("node1:9002")
    task = asyncio.create_task(forming.run())
    await clock.slept(30)
    assert world.writes == 0
    assert not task.done()
    said = [fields["awaited"] for event, fields in log.lines if event == "waiting for the cluster"]
    assert 2 <= len(said) <= 5  # every 5 s of the 15 s, not at every try
    assert all("node3:9002/data/disk1: does not answer" in lines[0] for lines in said)
    world.dark.clear()
    await task
    assert all(world.content.values())


async def test_other_nodes_never_form() -> None:
    world = World()
    world.dark = {"node1:9002"}
    forming, clock, _ = world.node("node2:9002")
    task = asyncio.create_task(forming.run())
    await clock.slept(20)
    task.cancel()
    assert world.writes == 0
    assert "node1:9002 forms the cluster" in forming.waiting_for[-1]


@pytest.mark.parametrize("writes", range(32))
async def test_forming_is_resumed_after_a_power_off_at_every_write(writes: int) -> None:
    world = World()
    world.writes_left = writes
    with pytest.raises(PowerOff):
        await world.node("node1:9002")[0].run()
    world.writes_left = None
    before = {drive: world.format(*drive).drive_id for drive in DRIVES if world.content[drive]}
    cluster = await world.form()
    after = {drive: world.format(*drive).drive_id for drive in DRIVES}
    assert before.items() <= after.items()
    assert all(world.format(*drive).cluster_id == cluster.cluster_id for drive in DRIVES)
    assert all(world.format(*drive).state is State.FORMED for drive in DRIVES)
    assert all(cluster.generation_at(*drive) == 0 for drive in DRIVES)


async def test_a_half_formed_cluster_is_not_taken_for_a_formed_one() -> None:
    world = World()
    world.writes_left = 10
    with pytest.raises(PowerOff):
        await world.node("node1:9002")[0].run()
    world.writes_left = None
    forming, clock, _ = world.node("node2:9002")  # its drives are written, two of node3 are not
    task = asyncio.create_task(forming.run())
    await clock.slept(5)
    assert not task.done()
    task.cancel()


async def test_a_formatted_node_starts_without_any_peer() -> None:
    world = World()
    cluster = await world.form()
    world.dark = {"node1:9002", "node2:9002", "node3:9002"}
    forming, clock, _ = world.node("node4:9002")
    assert (await forming.run()).pools == cluster.pools
    assert clock.sleeps == 0


async def test_a_hung_drive_does_not_keep_its_node_from_starting() -> None:
    world = World()
    await world.form()
    world.broken["node2:9002", 1] = HoldfastError("deadline")
    forming, _, _ = world.node("node2:9002")
    await forming.run()
    kinds = [finding.kind for finding in forming.local]
    assert kinds == [Kind.OURS, Kind.SILENT, Kind.OURS, Kind.OURS]


async def test_a_directory_that_is_not_there_is_said_to_be_missing_and_what_to_do() -> None:
    world = World()
    world.broken["node1:9002", 1] = DriveFailed("not_found", "reading the directory: ENOENT")
    forming, clock, _ = world.node("node1:9002")
    task = asyncio.create_task(forming.run())
    await clock.slept(2)
    assert forming.waiting_for == (
        "node1:9002/data/disk2: there is no such directory: mount the drive there, or make the directory",
    )
    task.cancel()


async def test_an_empty_directory_of_a_formed_cluster_stays_out() -> None:
    world = World()
    await world.form()
    world.content["node2:9002", 1] = b""
    forming, _, _ = world.node("node2:9002")
    await forming.run()
    assert world.content["node2:9002", 1] == b""
    assert "`holdfast drive accept node2:9002:/data/disk2`" in forming.waiting_for[0]


async def test_an_empty_drive_that_is_a_mount_gets_a_new_id() -> None:
    world = World()
    old = await world.form()
    world.content["node2:9002", 1] = b""
    world.mounts = {"/data/disk2"}
    forming, _, _ = world.node("node2:9002")
    cluster = await forming.run()
    fresh = world.format("node2:9002", 1)
    assert fresh.drive_id != old.drive_at("node2:9002", 1)
    assert cluster.generation_at("node2:9002", 1) == 1
    assert forming.local[1].kind is Kind.OURS
    # Its neighbours know it too, and peers learn it.
    assert world.format("node2:9002", 0).drive_at("node2:9002", 1) == fresh.drive_id
    other, _, _ = world.node("node1:9002")
    await other.run()
    heard = []
    other.on_change(lambda found, _: heard.append(found.drive_at("node2:9002", 1)))
    other.learn(cluster)
    assert heard[-1] == fresh.drive_id
    await other.review()
    assert world.format("node1:9002", 3).drive_at("node2:9002", 1) == fresh.drive_id


async def test_a_drive_is_accepted_by_name() -> None:
    world = World()
    await world.form()
    world.content["node2:9002", 3] = b""
    forming, _, _ = world.node("node2:9002")
    await forming.run()
    heard = []
    forming.on_change(lambda _, local: heard.append(local[3].kind))
    finding = await forming.accept(3)
    assert finding.kind is Kind.OURS
    assert world.format("node2:9002", 3).state is State.FORMED
    assert heard == [Kind.EMPTY, Kind.OURS]
    assert forming.waiting_for == ()


async def test_a_foreign_drive_cannot_be_accepted() -> None:
    world = World()
    await world.form()
    world.broken["node2:9002", 3] = DriveFailed("foreign", "there is photos")
    forming, _, _ = world.node("node2:9002")
    await forming.run()
    with pytest.raises(ClientError, match="there is photos"):
        await forming.accept(3)
    with pytest.raises(ClientError, match="drives 1 to 4"):
        await forming.accept(4)


async def test_the_older_drive_of_a_slot_is_refused() -> None:
    world = World()
    await world.form()
    older = world.content["node2:9002", 1]
    world.content["node2:9002", 1] = b""
    world.mounts = {"/data/disk2"}
    await world.node("node2:9002")[0].run()
    world.content["node2:9002", 1] = older
    forming, _, _ = world.node("node2:9002")
    await forming.run()
    assert forming.local[1].kind is Kind.FOREIGN
    assert "was replaced by another drive" in forming.local[1].reason
    assert world.content["node2:9002", 1] == older


async def test_swapped_drives_are_never_written_to() -> None:
    world = World()
    await world.form()
    one, two = ("node3:9002", 0), ("node3:9002", 1)
    world.content[one], world.content[two] = world.content[two], world.content[one]
    before, writes = dict(world.content), world.writes
    forming, _, _ = world.node("node3:9002")
    await forming.run()
    assert [f.kind for f in forming.local] == [Kind.FOREIGN, Kind.FOREIGN, Kind.OURS, Kind.OURS]
    assert "is drive 2 of node3:9002 and stands in the place of drive 1" in forming.local[0].reason
    assert world.content == before
    assert world.writes == writes


async def test_a_drive_of_another_cluster_is_never_written_to() -> None:
    world, other = World(), World()
    other.seed = 77
    await world.form()
    await other.form()
    alien = other.content["node1:9002", 2]
    world.content["node1:9002", 2] = alien
    forming, _, _ = world.node("node1:9002")
    await forming.run()
    assert forming.local[2].kind is Kind.FOREIGN
    assert "belongs to cluster" in forming.local[2].reason
    assert world.content["node1:9002", 2] == alien


async def test_a_cluster_is_not_formed_over_foreign_content() -> None:
    world = World()
    world.broken["node4:9002", 0] = DriveFailed("foreign", "there is photos")
    forming, clock, _ = world.node("node1:9002")
    task = asyncio.create_task(forming.run())
    await clock.slept(5)
    task.cancel()
    assert world.writes == 0
    assert "node4:9002/data/disk1" in forming.waiting_for[0]
    assert "there is photos" in forming.waiting_for[0]


async def test_a_node_with_all_drives_replaced_learns_its_cluster_from_peers() -> None:
    world = World()
    old = await world.form()
    for drive in range(4):
        world.content["node1:9002", drive] = b""
    forming, _, _ = world.node("node1:9002")  # the first node, and it does not form anew
    cluster = await forming.run()
    assert cluster.cluster_id == old.cluster_id
    assert all(finding.kind is Kind.EMPTY for finding in forming.local)
    world.mounts = {f"/data/disk{number}" for number in range(1, 5)}
    await forming.review()
    assert all(finding.kind is Kind.OURS for finding in forming.local)


@pytest.mark.parametrize(
    ("volumes", "message"),
    [
        ("node{1...3}:9002/data/disk{1...4}", "it lacks node4:9002"),
        ("node{1...5}:9002/data/disk{1...4}", "it adds node5:9002"),
        ("node{1...4}:9002/data/disk{1...2}", "2 drives and the cluster was formed with 4"),
        ("node{2...4}:9002/data/disk{1...4} node1:9002/data/disk{1...4}", "the order was node1"),
    ],
)
async def test_a_volume_list_that_does_not_match_is_refused(volumes: str, message: str) -> None:
    world = World()
    await world.form()
    changed = World(volumes)
    changed.content.update(world.content)
    with pytest.raises(FormatError, match=message):
        await changed.node("node2:9002")[0].run()
    assert changed.writes == 0


async def test_another_parity_or_durability_is_refused() -> None:
    world = World()
    await world.form()
    with pytest.raises(
        FormatError, match="HOLDFAST_PARITY=4 and the cluster was formed with parity 8"
    ):
        await world.node("node1:9002", parity=4)[0].run()
    with pytest.raises(FormatError, match="HOLDFAST_DURABILITY=relaxed"):
        await world.node("node1:9002", durability="relaxed")[0].run()
    await world.node("node1:9002", parity=8, durability="strict")[0].run()


async def test_drives_of_two_clusters_in_equal_number_are_refused() -> None:
    world, other = World(), World()
    other.seed = 77
    await world.form()
    await other.form()
    for drive in (2, 3):
        world.content["node1:9002", drive] = other.content["node1:9002", drive]
    with pytest.raises(FormatError, match="as many drives belong to cluster"):
        await world.node("node1:9002")[0].run()


async def test_damaged_formats_are_foreign_and_say_so() -> None:
    world = World()
    await world.form()
    good = world.content["node1:9002", 0]
    for damaged in (
        b"{",
        b'{"version": 2}',
        good.replace(b'"parity": 8', b'"parity": 9'),
        good[:-40],
    ):
        world.content["node1:9002", 0] = damaged
        forming, _, _ = world.node("node1:9002")
        await forming.run()
        assert forming.local[0].kind is Kind.FOREIGN
        assert "format.json" in forming.local[0].reason
        assert world.content["node1:9002", 0] == damaged
