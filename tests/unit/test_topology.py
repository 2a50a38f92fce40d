"""The topology built from a format, where keys go, and what peers compare."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from node.cluster.drive_access import Acquaintance, AskWrite, NodeDrives
from node.cluster.topology import build_topology, compare, fingerprint, topology_hash
from node.errors import ClientError, DriveFailed, HoldfastError, TargetFailed
from node.protocol import verbs
from node.rpc.methods import Method
from node.store.format import Format, State, decode_format, encode_format
from tests.unit.forming_world import World


async def test_four_nodes_make_one_set_in_node_order() -> None:
    world = World()
    cluster = await world.form()
    topology = build_topology(world.settings("node2:9002"), cluster)
    (erasure_set,) = topology.sets
    assert [slot.node for slot in erasure_set.slots] == [n for n in world.nodes for _ in range(4)]
    assert [slot.drive for slot in erasure_set.slots] == [0, 1, 2, 3] * 4
    assert erasure_set.slots[5].path == "/data/disk2"
    assert erasure_set.slots[5].drive_id.hex() == world.format("node2:9002", 1).drive_id
    assert (erasure_set.geometry.k, erasure_set.geometry.n) == (8, 16)
    assert topology.drives_per_node_in_set == 4
    assert topology.others == ("node1:9002", "node3:9002", "node4:9002")
    assert [position for _, position in topology.local_slots] == [4, 5, 6, 7]
    assert topology.slot_of(erasure_set.slots[5].drive_id) is erasure_set.slots[5]
    assert topology.slot_of(bytes(16)) is None


async def test_parity_applies_to_objects_and_not_to_system_objects() -> None:
    world = World()
    formings = [world.node(name, parity=4)[0] for name in world.nodes]
    clusters = await asyncio.gather(*(forming.run() for forming in formings))
    (erasure_set,) = build_topology(world.settings("node1:9002"), clusters[0]).sets
    assert erasure_set.geometry.k == 12
    assert erasure_set.system_geometry.k == 8


async def test_many_drives_make_sets_and_keys_spread_over_them() -> None:
    world = World("node{1...4}:9002/data/disk{1...8}")
    topology = build_topology(world.settings("node1:9002"), await world.form())
    assert len(topology.sets) == 2
    placed = [topology.place("bucket", f"key{number}") for number in range(200)]
    assert {erasure_set.index for erasure_set, _ in placed} == {0, 1}
    assert {rotation for _, rotation in placed} == {0, 1, 2, 3}
    assert placed == [topology.place("bucket", f"key{number}") for number in range(200)]
    assert [s.slots[p].drive for s, p in topology.local_slots] == list(range(8))


async def test_a_single_node_has_one_place_to_rotate_to() -> None:
    world = World("/data/disk{1...4}")
    topology = build_topology(world.settings("local:9002"), await world.form())
    assert topology.sets[0].geometry.k == 2
    assert topology.place("b", "k")[1] == 0
    assert topology.others == ()


async def test_equal_fingerprints_have_no_difference() -> None:
    cluster = await World().form()
    replaced = cluster.with_drive("node1:9002", 0, "ab" * 16)
    assert compare(fingerprint(cluster, "node1:9002"), fingerprint(replaced, "node2:9002")) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": 9}, "node2:9002 speaks protocol 9"),
        ({"cluster_id": "00"}, "node2:9002 belongs to cluster 00"),
        (
            {"topology": "x", "nodes": ("a:1",), "drives_per_node": 2},
            "knows the nodes a:1 with 2 drives",
        ),
        ({"parity": 4}, "node2:9002 has parity 4 and this node 8"),
        ({"durability": "relaxed"}, "node2:9002 has durability relaxed and this node strict"),
    ],
)
async def test_each_difference_is_named(change: dict[str, object], message: str) -> None:
    cluster = await World().form()
    mine = fingerprint(cluster, "node1:9002")
    theirs = msgspec.structs.replace(fingerprint(cluster, "node2:9002"), **change)
    (difference,) = compare(mine, theirs)
    assert message in difference


async def test_the_hash_is_of_nodes_and_their_order() -> None:
    one, two = await World().form(), await World("node{1...4}:9002/data/disk{1...8}").form()
    assert topology_hash(one) != topology_hash(two)


# ---- over the wire -----------------------------------------------------------------------------------
class OneGate:
    """The gate of one node of a world."""

    def __init__(self, world: World, node: str) -> None:
        self.world, self.node = world, node

    async def ask_at(
        self, index: int, verb: verbs.FormatRead | verbs.FormatWrite, *, deadline: float
    ) -> verbs.Reply:
        if isinstance(verb, verbs.FormatWrite):
            await self.world.write(self.node, index, verb.data, deadline=deadline)
            return verbs.Done()
        return verbs.Blob(await self.world.read(self.node, index, deadline=deadline))


class Mesh:
    """Nodes that answer each other's FORMING calls by their real handlers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.desks: dict[str, Acquaintance] = {}
        self.formings = {}
        for name in world.nodes:
            forming, _, _ = world.node(name)
            forming._access = NodeDrives(name, OneGate(world, name), _Calls(self, name))
            self.formings[name] = forming
            self.desks[name] = Acquaintance(name, OneGate(world, name), forming)


class _Calls:
    def __init__(self, mesh: Mesh, me: str) -> None:
        self.mesh, self.me = mesh, me

    def call(
        self, peer: str, method: Method, payload: bytes, *, deadline: float
    ) -> asyncio.Future[bytes]:
        assert method is Method.FORMING
        answer = self.mesh.desks[peer].handle(self.me, payload, deadline=deadline)
        return asyncio.ensure_future(answer)


async def test_a_cluster_forms_over_the_handlers() -> None:
    mesh = Mesh(World())
    clusters = await asyncio.gather(*(forming.run() for forming in mesh.formings.values()))
    assert len({cluster.cluster_id for cluster in clusters}) == 1
    assert all(decode_format(d).state is State.FORMED for d in mesh.world.content.values())


async def test_peers_greet_and_learn_replaced_drives() -> None:
    mesh = Mesh(World())
    await asyncio.gather(*(forming.run() for forming in mesh.formings.values()))
    mesh.world.content["node2:9002", 0] = b""
    await mesh.formings["node2:9002"].review()
    await mesh.formings["node2:9002"].accept(0)
    calls = _Calls(mesh, "node1:9002")
    found = await mesh.desks["node1:9002"].greet("node2:9002", calls, deadline=1e9)
    assert found == ()
    learnt = mesh.formings["node1:9002"].cluster
    assert learnt is not None
    assert learnt.generation_at("node2:9002", 0) == 1


async def test_a_greeting_of_another_cluster_is_a_difference_on_both_sides() -> None:
    mesh, other = Mesh(World()), World()
    other.seed = 50
    await asyncio.gather(*(forming.run() for forming in mesh.formings.values()))
    await other.form()
    stranger, _, _ = other.node("node2:9002")
    await stranger.run()
    mesh.desks["node2:9002"] = Acquaintance("node2:9002", OneGate(other, "node2:9002"), stranger)
    calls = _Calls(mesh, "node1:9002")
    found = await mesh.desks["node1:9002"].greet("node2:9002", calls, deadline=1e9)
    assert "node2:9002 belongs to cluster" in found[0]
    assert mesh.desks["node1:9002"].differences() == {"node2:9002": found}
    assert (
        "node1:9002 belongs to cluster" in mesh.desks["node2:9002"].differences()["node1:9002"][0]
    )


async def _write(mesh: Mesh, drive: int, value: Format) -> None:
    access = NodeDrives("node1:9002", OneGate(mesh.world, "node1:9002"), _Calls(mesh, "node1:9002"))
    await access.write("node2:9002", drive, encode_format(value), deadline=1e9)


async def test_a_peer_cannot_write_what_does_harm() -> None:
    mesh, other = Mesh(World()), World()
    other.seed = 50
    alien = await other.form()
    await asyncio.gather(*(forming.run() for forming in mesh.formings.values()))
    cluster = mesh.formings["node2:9002"].cluster
    assert cluster is not None
    before = dict(mesh.world.content)
    with pytest.raises(DriveFailed, match="belongs to cluster"):
        await _write(mesh, 0, alien.seen_from("node2:9002", 0))
    with pytest.raises(DriveFailed, match="it is for drive 2 of node2"):
        await _write(mesh, 0, cluster.seen_from("node2:9002", 1))
    replaced = cluster.with_drive("node2:9002", 0, "ab" * 16)
    with pytest.raises(DriveFailed, match="another id"):
        await _write(mesh, 0, replaced.seen_from("node2:9002", 0))
    assert mesh.world.content == before
    mesh.world.content["node2:9002", 0] = b""
    await mesh.formings["node2:9002"].review()
    with pytest.raises(DriveFailed, match="takes in its empty drives itself"):
        await _write(mesh, 0, cluster.seen_from("node2:9002", 0))
    assert mesh.world.content["node2:9002", 0] == b""


async def test_nonsense_is_refused() -> None:
    mesh = Mesh(World())
    desk = mesh.desks["node2:9002"]
    with pytest.raises(ClientError):
        await desk.handle("node1:9002", b"\xff", deadline=1e9)
    payload = msgspec.msgpack.encode(AskWrite(0, b"{}"))
    reply = verbs.decode_reply(await desk.handle("node1:9002", payload, deadline=1e9))
    assert isinstance(reply, verbs.Failed)
    access = NodeDrives("node1:9002", OneGate(mesh.world, "node1:9002"), _Calls(mesh, "node1:9002"))
    with pytest.raises(DriveFailed, match="fewer drives"):
        await access.read("node2:9002", 9, deadline=1e9)


async def test_a_drive_that_fails_is_told_as_such_over_the_wire() -> None:
    mesh = Mesh(World())
    mesh.world.broken["node2:9002", 1] = DriveFailed("foreign", "there is photos")
    access = NodeDrives("node1:9002", OneGate(mesh.world, "node1:9002"), _Calls(mesh, "node1:9002"))
    with pytest.raises(DriveFailed) as caught:
        await access.read("node2:9002", 1, deadline=1e9)
    assert (caught.value.fault, caught.value.detail) == ("foreign", "there is photos")
    mesh.world.broken["node2:9002", 1] = TargetFailed("process gone")
    with pytest.raises(HoldfastError, match="process gone"):
        await access.read("node2:9002", 1, deadline=1e9)
