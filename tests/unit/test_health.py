"""Live, ready and cluster health, decided from what a node knows anyway."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from node.node_health import snapshot
from node.observe import health
from node.observe.health import Health, SetShape, Snapshot, set_health
from node.s3 import ports

NODES = ("n1:9002", "n2:9002", "n3:9002", "n4:9002")
EIGHT = SetShape(index=0, k=8, drives=dict.fromkeys(NODES, 4))
TWELVE = SetShape(index=0, k=12, drives=dict.fromkeys(NODES, 4))


def snap(dark: int = 0, shape: SetShape = EIGHT, **changes: object) -> Snapshot:
    values: dict[str, object] = {
        "me": NODES[0],
        "nodes": NODES,
        "alive": frozenset(NODES[: len(NODES) - dark]),
        "sets": (shape,),
    }
    return Snapshot(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "dark", "reads", "writes", "spare_me"),
    [
        (EIGHT, 0, True, True, True),
        (EIGHT, 1, True, True, False),
        (EIGHT, 2, True, False, False),
        (EIGHT, 3, False, False, False),
        (TWELVE, 0, True, True, True),
        (TWELVE, 1, True, True, False),
        (TWELVE, 2, False, False, False),
    ],
)
def test_four_nodes(shape: SetShape, dark: int, reads: bool, writes: bool, spare_me: bool) -> None:
    seen = snap(dark, shape)
    assert health.ready(seen)[0] is reads
    assert health.cluster_read(seen)[0] is reads
    assert health.ready_write(seen)[0] is writes
    assert health.cluster(seen, False)[0] is writes
    assert health.cluster(seen, True)[0] is spare_me
    assert health.live(seen)[0] is True


def test_tolerances_are_counted_in_drives() -> None:
    found = set_health(snap(1))[0]
    assert (found.online, found.read_tolerance, found.write_tolerance) == (12, 4, 3)
    found = set_health(snap(2))[0]
    assert (found.online, found.read_tolerance, found.write_tolerance) == (8, 0, -1)
    assert EIGHT.margin_wanted == 4


def test_drives_that_do_not_work_count_like_absent_ones() -> None:
    seen = snap(1, offline={(NODES[0], 0): 2, (NODES[1], 0): 2})
    assert set_health(seen)[0].online == 8
    assert health.ready(seen)[0] and not health.ready_write(seen)[0]
    # A dark node's drives are not taken away twice, and no node can lose more than it has.
    assert set_health(snap(1, offline={(NODES[3], 0): 4}))[0].online == 12
    assert set_health(snap(0, offline={(NODES[3], 0): 9}))[0].online == 12


def test_one_bad_set_spoils_the_answer_and_is_named() -> None:
    other = SetShape(index=1, k=8, drives=dict.fromkeys(NODES, 4))
    offline = {(node, 1): 2 for node in NODES} | {(NODES[0], 1): 3}
    seen = snap(0, sets=(EIGHT, other), offline=offline)
    fine, details = health.cluster(seen, False)
    assert not fine
    assert details["reasons"] == ["set 1 misses 2 drives for writes"]
    assert [s["online"] for s in details["sets"]] == [16, 7]


def test_a_lost_lock_quorum_stops_writes_where_drives_alone_would_do() -> None:
    # Two nodes with many drives, three that hold none: the set is whole, the lock servers are not.
    nodes = ("a:1", "b:1", "c:1", "d:1", "e:1")
    shape = SetShape(index=0, k=2, drives={"a:1": 2, "b:1": 2})
    seen = Snapshot(me="a:1", nodes=nodes, alive=frozenset(nodes[:2]), sets=(shape,))
    assert set_health(seen)[0].write_tolerance == 1
    fine, details = health.ready_write(seen)
    assert not fine and details["reasons"] == ["1 lock servers are missing for a quorum"]
    assert health.ready(seen)[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"identity_ready": False}, "the identities are not known yet"),
        ({"hindrance": "parity differs from the cluster's"}, "parity differs from the cluster's"),
        ({"sets": ()}, "the cluster is not formed yet"),
        ({"sets": (), "hindrance": "waiting for n4"}, "waiting for n4"),
    ],
)
def test_what_makes_a_node_unready_is_said(changes: dict[str, object], reason: str) -> None:
    seen = snap(0, **changes)  # type: ignore[arg-type]
    for answer in (health.ready(seen), health.ready_write(seen)):
        assert not answer[0]
        assert answer[1]["reasons"] == [reason]
    assert health.live(seen)[0]


def test_a_node_that_is_unready_itself_may_still_find_the_cluster_healthy() -> None:
    seen = snap(0, hindrance="stopping")
    assert health.cluster(seen, False)[0] and health.cluster_read(seen)[0]
    assert not health.ready(seen)[0]


def test_single_node() -> None:
    shape = SetShape(index=0, k=2, drives={"n": 4})
    for offline, reads, writes in (
        (0, True, True),
        (1, True, True),
        (2, True, False),
        (3, False, False),
    ):
        seen = Snapshot(
            me="n",
            nodes=("n",),
            alive=frozenset({"n"}),
            sets=(shape,),
            offline={("n", 0): offline},
        )
        assert (health.ready(seen)[0], health.ready_write(seen)[0]) == (reads, writes), offline
        assert not health.cluster(seen, True)[0]


def test_losing_more_never_makes_healthier() -> None:
    for k, dark in itertools.product(range(8, 17), range(4)):
        shape = SetShape(index=0, k=k, drives=dict.fromkeys(NODES, 4))
        now, later = snap(dark, shape), snap(min(dark + 1, 3), shape)
        for judge in (health.ready, health.ready_write, health.cluster_read):
            assert judge(now)[0] >= judge(later)[0]
        # Whoever can write can read.
        assert health.ready(now)[0] >= health.ready_write(now)[0]


def test_a_snapshot_without_its_own_node_is_refused() -> None:
    with pytest.raises(AssertionError):
        snap(0, alive=frozenset(NODES[1:]))


def test_health_looks_anew_at_each_question() -> None:
    dark = [0]
    found: ports.Health = Health(lambda: snap(dark[0]))
    assert found.ready_write()[0] and found.cluster(True)[0]
    dark[0] = 2
    assert not found.ready_write()[0] and found.ready()[0] and found.cluster_read()[0]
    assert found.live()[0]


def test_a_peer_that_beats_but_is_not_linked_yet_serves_no_read() -> None:
    """Heartbeats have a lane of their own; a read sent to such a peer would fail at once."""
    names, linked = ("a", "b", "c", "d"), {"b": False, "c": False, "d": False}
    view = SimpleNamespace(
        index=0,
        geometry=SimpleNamespace(k=8),
        members=[
            SimpleNamespace(node=name, slots=range(4 * i, 4 * i + 4))
            for i, name in enumerate(names)
        ],
    )
    node: Any = SimpleNamespace(
        settings=SimpleNamespace(node="a", node_names=names),
        membership=SimpleNamespace(alive=lambda: ("b", "c", "d")),
        peers=SimpleNamespace(linked=linked.__getitem__),
        acquaintance=SimpleNamespace(differences=dict),
        engine=SimpleNamespace(
            started=True,
            cluster=SimpleNamespace(
                views=[view],
                online=lambda _view: frozenset(range(16)),
            ),
            lock_servers=lambda: 4,
            identity=SimpleNamespace(ready=True),
        ),
    )
    answers = Health(lambda: snapshot(node))
    assert not answers.ready()[0] and not answers.ready_write()[0]
    linked["b"] = True
    assert answers.ready()[0] and not answers.ready_write()[0]
    linked["c"] = True
    assert answers.ready_write()[0]
