from __future__ import annotations

import pytest

from locks.lease import LeaseKeeper


def _keeper(start_s: float = 100.0) -> LeaseKeeper:
    return LeaseKeeper(servers=4, quorum=3, start_s=start_s, clock_rate_error=0.01, margin_s=0.09)


def test_stops_before_the_lease_can_be_over_at_any_server() -> None:
    """9 s at a server whose clock is 1 % fast are 8.91 s here, less what the holder needs to stop."""
    keeper = _keeper()
    assert keeper.valid_until_s == pytest.approx(108.82)
    assert keeper.valid(108.8)
    assert not keeper.valid(108.83)


def test_counts_from_the_start_of_the_last_refresh_that_reached_a_quorum() -> None:
    keeper = _keeper()
    assert keeper.next_refresh(101.0) == 103.0
    number = keeper.begin_refresh(103.5)
    keeper.on_answer(number, "a", True, 103.6)
    keeper.on_answer(number, "a", True, 103.6)
    keeper.on_answer(number, "b", True, 103.6)
    assert keeper.valid_until_s == pytest.approx(108.82)
    keeper.on_answer(number, "c", True, 105.0)
    assert keeper.valid_until_s == pytest.approx(112.32)
    assert keeper.next_refresh(106.0) == 106.5
    assert keeper.next_refresh(107.0) == 107.0


def test_answers_to_different_refreshes_do_not_add_up() -> None:
    keeper = _keeper()
    first = keeper.begin_refresh(103.0)
    second = keeper.begin_refresh(106.0)
    for number, server in ((first, "a"), (first, "b"), (second, "b"), (second, "c")):
        keeper.on_answer(number, server, True, 106.1)
    assert not keeper.valid(108.9)


def test_a_slow_early_refresh_does_not_shorten_a_later_one() -> None:
    keeper = _keeper()
    first = keeper.begin_refresh(103.0)
    second = keeper.begin_refresh(106.0)
    for number in (second, first):
        for server in "abc":
            keeper.on_answer(number, server, True, 106.5)
    assert keeper.valid_until_s == pytest.approx(114.82)


def test_once_over_it_stays_over() -> None:
    keeper = _keeper()
    number = keeper.begin_refresh(108.0)
    for server in "abc":
        keeper.on_answer(number, server, True, 108.9)
    assert not keeper.valid(108.9)
    assert not keeper.valid(108.0)


def test_lost_when_so_many_servers_say_no_that_no_quorum_is_left() -> None:
    keeper = _keeper()
    number = keeper.begin_refresh(103.0)
    keeper.on_answer(number, "a", False, 103.1)
    assert keeper.valid(103.1)
    keeper.on_answer(number, "b", False, 103.1)
    assert not keeper.valid(103.1)


def test_answers_to_a_refresh_long_over_are_dropped() -> None:
    keeper = _keeper()
    first = keeper.begin_refresh(103.0)
    for start_s in (106.0, 109.0, 112.0):
        keeper.begin_refresh(start_s)
    keeper.on_answer(first, "a", True, 104.0)
    assert len(keeper._rounds) <= 3


def test_relations_are_asserted() -> None:
    with pytest.raises(AssertionError):
        LeaseKeeper(servers=4, quorum=3, start_s=0.0, lease_s=8.0, refresh_s=3.0)
