"""Read plans on the 4 x 4 cluster: node j has shards 4j to 4j+3, node 0 asks unless it says so."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from erasure.errors import NotEnoughShards
from erasure.plan import ReadPlan, ShardSource, plan_read, replace


def sources(
    *, me: int = 0, dark: Sequence[int] = (), lost: Sequence[int] = (), slow: Sequence[int] = ()
) -> list[ShardSource]:
    return [
        ShardSource(
            shard=shard,
            node=shard // 4,
            local=shard // 4 == me,
            cost=50.0 if shard // 4 in slow else 1.0,
        )
        for shard in range(16)
        if shard // 4 not in dark and shard not in lost
    ]


def asked(plan: ReadPlan) -> dict[object, tuple[int, ...]]:
    return dict(plan.by_node())


def test_local_data_and_one_peer() -> None:
    plan = plan_read(sources(), 8)
    assert asked(plan) == {0: (0, 1, 2, 3), 1: (4, 5, 6, 7)}
    assert plan.missing_data == ()


def test_data_peers_are_preferred_over_parity_peers() -> None:
    assert asked(plan_read(sources(me=1), 8)) == {1: (4, 5, 6, 7), 0: (0, 1, 2, 3)}
    assert asked(plan_read(sources(), 12)).keys() == {0, 1, 2}


def test_local_parity_saves_a_peer() -> None:
    plan = plan_read(sources(me=3), 8)
    assert asked(plan) == {3: (12, 13, 14, 15), 0: (0, 1, 2, 3)}
    assert plan.missing_data == (4, 5, 6, 7)


def test_a_whole_parity_peer_beats_two_peers() -> None:
    assert asked(plan_read(sources(lost=[5]), 8)) == {0: (0, 1, 2, 3), 2: (8, 9, 10, 11)}


def test_a_lost_local_shard_costs_one_shard_of_a_second_peer() -> None:
    plan = plan_read(sources(lost=[2]), 8)
    assert asked(plan) == {0: (0, 1, 3), 1: (4, 5, 6, 7), 2: (8,)}
    assert plan.missing_data == (2,)


def test_slow_peers_come_last_even_if_they_have_the_data() -> None:
    assert asked(plan_read(sources(slow=[1]), 8)) == {0: (0, 1, 2, 3), 2: (8, 9, 10, 11)}
    assert asked(plan_read(sources(slow=[1], dark=[2, 3]), 8)).keys() == {0, 1}


def test_a_slow_local_drive_is_passed_over() -> None:
    held = [
        ShardSource(shard=s.shard, node=s.node, local=s.local, cost=90.0 if s.shard == 1 else 1.0)
        for s in sources()
    ]
    assert 1 not in plan_read(held, 8).shards


def test_two_dark_nodes_leave_enough_and_three_do_not() -> None:
    assert asked(plan_read(sources(dark=[1, 2]), 8)) == {0: (0, 1, 2, 3), 3: (12, 13, 14, 15)}
    with pytest.raises(NotEnoughShards) as caught:
        plan_read(sources(dark=[1, 2, 3]), 8)
    assert (caught.value.have, caught.value.need) == (4, 8)


def test_two_sources_of_one_shard_count_once() -> None:
    held = sources(dark=[1, 2, 3])
    copies = [ShardSource(shard=s.shard, node=1, local=False, cost=0.1) for s in held]
    with pytest.raises(NotEnoughShards):
        plan_read([*held, *copies], 8)
    assert asked(plan_read([*copies, *held], 4)) == {0: (0, 1, 2, 3)}


def test_replacing_a_dark_peer() -> None:
    available = sources()
    plan = plan_read(available, 8)
    spare = replace(plan, [4, 5, 6, 7], available)
    assert [s.shard for s in spare] == [8, 9, 10, 11]


def test_replacing_one_shard_prefers_a_peer_that_answers() -> None:
    available = [s for s in sources() if s.shard not in (8, 9, 10)]
    plan = plan_read(available, 10)
    assert asked(plan) == {0: (0, 1, 2, 3), 1: (4, 5, 6, 7), 3: (12, 13)}
    spare = replace(plan, [2], available)
    assert [s.shard for s in spare] == [14], "a local drive failed; node 3 answers already"


def test_peers_that_failed_are_asked_last() -> None:
    available = sources()
    plan = plan_read(available, 9)
    assert asked(plan)[2] == (8,)
    assert [s.shard for s in replace(plan, [8], available)] == [12]
    assert [s.shard for s in replace(plan, [8], sources(dark=[3]))] == [9]


def test_replacements_run_out() -> None:
    available = sources(dark=[2, 3])
    plan = plan_read(available, 8)
    assert replace(plan, [4, 5], available) == ()
    assert replace(plan, [], sources()) == ()
    assert replace(plan, [9], sources()) == (), "nothing that was asked has failed"
