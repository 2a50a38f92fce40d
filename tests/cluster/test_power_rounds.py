"""Power fails at random moments, round after round: what was acknowledged is there, bit-exact, and every shard too.

The moments come from a seed that is printed and kept with the figures; POWER_SEED repeats a run's choices
(not its timing: the machine's own is part of it).
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pytest

from .observer import OPEN, wait_for
from .power_world import REPAIR_S, START_S, Cluster, finish
from .report import REPORT
from .world import NODES

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

LOAD = ["--seconds", "120", "--rate", "120", "--conns", "16", "--timeout", "10"]


def seed() -> str:
    return os.environ.get("POWER_SEED") or str(random.SystemRandom().randrange(1 << 32))


def one_round(cluster: Cluster, rng: random.Random, journal: str, count: int) -> dict[str, Any]:
    """`count` nodes lose power at once, under load on all nodes, and return in any order."""
    world = cluster.world
    victims = rng.sample(list(NODES), count)
    load = [*LOAD, "--seed", journal]
    writer = cluster.start_ledger("write", list(NODES), journal, *load)
    time.sleep(rng.uniform(1.5, 4.0))
    cut = world.poweroff(*victims)
    time.sleep(rng.uniform(0.2, 4.0))
    returned = time.monotonic()
    for node in rng.sample(victims, count):
        world.poweron(node)
    ready_s = wait_for("all nodes take writes", cluster.ready, START_S, since=returned)
    time.sleep(1.0)  # the load goes on into the healthy time
    figures = finish(writer, say="stop")
    acknowledged = sum(figures["ok"].get(kind, 0) for kind in ("put", "delete"))
    assert acknowledged > 0 and figures["wrong"] == [], figures["wrong"]
    ends = [end for _, end, _, ok in figures["operations"] if ok]
    assert min(ends) < cut and max(ends) > returned, "it took writes before and again after"
    cluster.verify(list(NODES), journal)
    whole_s = wait_for("every object has its 16 shards", cluster.census_is_whole, REPAIR_S, 0.5)
    return {
        "victims": victims,
        "acknowledged": acknowledged,
        "failed": figures["failed"],
        "off_s": round(returned - cut, 2),
        "ready_s": round(ready_s, 2),
        "whole_s": round(whole_s, 2),
    }


@pytest.mark.parametrize(
    "rounds", [3, pytest.param(20, marks=[pytest.mark.full, pytest.mark.timeout(3600)])]
)
def test_rounds_of_power_failures_lose_nothing_acknowledged(whole: Cluster, rounds: int) -> None:
    chosen = seed()
    print(f"\nPOWER_SEED={chosen}")
    rng = random.Random(chosen)
    done: list[dict[str, Any]] = []
    REPORT.details[f"rounds {rounds}"] = {"seed": chosen, "rounds": done}
    for number in range(rounds):
        done.append(one_round(whole, rng, f"r{rounds}-{number}", (1, 2, 4)[number % 3]))
        print(number, done[-1])
    for number in range(rounds):  # and nothing of an earlier round went with a later one
        whole.verify(list(NODES), f"r{rounds}-{number}")
    name = f"6 rounds {rounds}"
    total = sum(each["acknowledged"] for each in done)
    REPORT.figure(name, f"acknowledged writes lost (of {total})", 0, unit="", limit=0)
    REPORT.figure(name, "slowest return to writes", max(each["ready_s"] for each in done))
    REPORT.figure(name, "slowest way to 16 shards each", max(each["whole_s"] for each in done))


def test_two_nodes_at_the_same_moment_under_load(whole: Cluster) -> None:
    """Reads of what is settled go on at once; writes are refused, none hangs, and resume by themselves."""
    world, survivors = whole.world, [1, 2]
    before = ["--seconds", "3", "--rate", "60", "--conns", "4"]
    assert whole.ledger("write", [1, 2, 3, 4], "settled", *before)["failed"] == 0
    wait_for("every object has its 16 shards", whole.census_is_whole, REPAIR_S, 0.5)
    writer = whole.start_ledger("write", survivors, "pair", *LOAD)
    time.sleep(3.0)
    cut = world.poweroff(3, 4)
    whole.verify(survivors, "settled")  # begins in the very moment
    REPORT.figure("6 pair", "all settled keys read, begun at the cut", time.monotonic() - cut)
    for peer in (3, 4):
        opened = lambda peer=peer: whole.breakers_everywhere(peer, OPEN)  # noqa: E731
        wait_for(f"breakers of node {peer} are open", opened, 8, since=cut)
    begun = time.monotonic()
    assert whole.put(1, "refused-by-two", 1) == 503
    assert time.monotonic() - begun < 2
    whole.verify(survivors, "settled")
    returned = time.monotonic()
    world.poweron(3)
    world.poweron(4)
    wait_for("all nodes take writes", whole.ready, START_S, since=returned)
    time.sleep(1.0)
    figures = finish(writer, say="stop")
    stall_s = max(end - start for start, end, _, _ in figures["operations"])
    REPORT.figure("6 pair", "longest request at the survivors", stall_s, limit=15)
    refused = [op for op in figures["failures"] if not op["why"].startswith("503")]
    assert figures["wrong"] == [] and not refused, refused
    assert stall_s <= 15
    whole.verify(list(NODES), "pair")
    wait_for("every object has its 16 shards", whole.census_is_whole, REPAIR_S, 0.5)
