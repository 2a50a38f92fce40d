"""What the operator reads first."""

from __future__ import annotations

import pytest

from node.console import models
from node.console.verdict import Level, duration, judge, size
from tests.fakes.console_world import drive, healthy, node, one_dark


def test_a_healthy_cluster_says_so_and_how_much_may_go() -> None:
    verdict = judge(healthy())
    assert (verdict.level, verdict.problems) == (Level.GOOD, ())
    assert verdict.margin == (
        "reads survive 2 more nodes (8 drives); writes survive 1 more node (7 drives)"
    )


def test_a_dark_node_a_hung_drive_and_the_repair_are_named() -> None:
    verdict = judge(one_dark())
    assert verdict.level is Level.DEGRADED
    assert verdict.problems == (
        "node4:9002 is dark since 3 min",
        "node2:9002/data/disk2 is hung",
        "1,234 objects being repaired, done in about 31 s",
    )
    assert verdict.margin == "reads survive 3 more drives; writes survive 2 more drives"


def test_refused_writes_and_missing_reads_are_bad() -> None:
    lost = (
        healthy()
        .sets[0]
        .model_copy(update={"online": 8, "read_tolerance": 0, "write_tolerance": -1})
    )
    facts = healthy().model_copy(update={"write_ready": False, "sets": (lost,)})
    verdict = judge(facts)
    assert (verdict.level, verdict.headline) == (Level.BAD, "Reads work, writes are refused")
    assert verdict.margin == "reads survive no further loss; writes lack 1 drive"
    waiting = healthy().model_copy(
        update={"ready": False, "write_ready": False, "sets": (), "notices": ("waits for node2",)}
    )
    verdict = judge(waiting)
    assert verdict.headline.startswith("Not ready") and verdict.problems == ("waits for node2",)
    assert "nothing is known" in verdict.margin


def test_relaxed_durability_is_never_healthy() -> None:
    verdict = judge(healthy().model_copy(update={"durability": "relaxed"}))
    assert verdict.level is Level.DEGRADED and "relaxed" in verdict.problems[0]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ((node(2, state="suspect", since_s=2.2),), "node2:9002 is silent since 2 s"),
        ((node(2, state="unknown", since_s=None),), "node2:9002 has not been heard of yet"),
        (
            (node(2, breakers={"fast": "open", "bulk": "half-open", "lock": "closed"}),),
            "breakers to node2:9002 are not closed: bulk, fast",
        ),
        ((node(1, drives=(drive(0, state="corrupt"),)),), "node1:9002/data/disk1 is corrupt"),
    ],
)
def test_each_trouble_has_its_line(nodes: tuple[models.Node, ...], said: str) -> None:
    assert said in judge(healthy().model_copy(update={"nodes": nodes})).problems


@pytest.mark.parametrize(
    ("repair", "said"),
    [
        (models.Repair(queue=1), "1 object being repaired"),
        (models.Repair(queue=2, paused=True), "2 objects wait for repair, which is paused"),
        (models.Repair(paused=True), "repair is paused"),
        (models.Repair(undecided=3, undecided_oldest_s=60), "3 writes undecided"),
    ],
)
def test_repair_has_its_line(repair: models.Repair, said: str) -> None:
    assert judge(healthy().model_copy(update={"repair": repair})).problems == (said,)


def test_figures_as_people_say_them() -> None:
    assert [duration(s) for s in (0, 8.4, 119, 120, 7200, 200_000)] == [
        "0 s", "8 s", "119 s", "2 min", "2 h", "2 d",
    ]  # fmt: skip
    assert [size(b) for b in (0, 1023, 1024, 3 << 30, 1023 << 20, 5 << 50)] == [
        "0 B", "1023 B", "1 KiB", "3 GiB", "1023 MiB", "5 PiB",
    ]  # fmt: skip


def test_writes_of_this_moment_are_no_news() -> None:
    repair = models.Repair(undecided=3, undecided_oldest_s=0.2)
    assert judge(healthy().model_copy(update={"repair": repair})).level is Level.GOOD


def test_a_hung_drive_is_said_once() -> None:
    said = "node2:9002/data/disk2: does not answer (drive /data/disk2 is hung)"
    other = "node3:9002/data/disk1: does not answer (deadline)"
    facts = one_dark().model_copy(update={"notices": (said, other)})
    problems = judge(facts).problems
    assert said not in problems and other in problems
    assert "node2:9002/data/disk2 is hung" in problems
