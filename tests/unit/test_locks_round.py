from __future__ import annotations

import pytest

from locks.messages import Granted, LockMode, Owner, RefusalReason, Refused, Released
from locks.round import LossCause, Round, RoundState, read_quorum, write_quorum

_FOUR = ("a", "b", "c", "d")
_YES = Granted(9.0)
_OTHER = Owner("n2", 1, 1)
_TAKEN = Refused(RefusalReason.HELD, _OTHER, 0.1)
_RECOVERING = Refused(RefusalReason.RECOVERING)


def _direct(mode: LockMode = LockMode.WRITE, servers: tuple[str, ...] = _FOUR) -> Round:
    round_ = Round(servers, mode)
    assert round_.to_ask() == servers
    assert round_.to_ask() == ()
    return round_


def test_quorums_meet() -> None:
    for servers in range(1, 17):
        assert write_quorum(servers) * 2 > servers
        assert write_quorum(servers) + read_quorum(servers) > servers
    assert [write_quorum(n) for n in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]
    assert [read_quorum(n) for n in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]


def test_is_won_as_soon_as_the_quorum_is_there() -> None:
    round_ = _direct()
    assert round_.on_reply("c", _YES) is RoundState.PENDING
    assert round_.on_reply("a", Granted(6.0)) is RoundState.PENDING
    assert round_.on_reply("d", _YES) is RoundState.WON
    assert round_.granted == ["c", "a", "d"]
    assert round_.lease_s == 6.0
    assert _direct(LockMode.READ).on_reply("a", _YES) is RoundState.PENDING


def test_a_late_grant_after_the_win_is_held_and_given_back_with_the_others() -> None:
    round_ = _direct()
    for server in _FOUR:
        round_.on_reply(server, _YES)
    assert round_.take_releases() == ()
    assert sorted(round_.close()) == ["a", "b", "c", "d"]
    assert round_.close() == ()


def test_who_has_not_answered_is_released_too_and_again_if_it_grants_later() -> None:
    round_ = _direct()
    for server in "abc":
        round_.on_reply(server, _YES)
    assert sorted(round_.close()) == ["a", "b", "c", "d"]
    round_.on_reply("d", _YES)
    assert round_.take_releases() == ("d",)
    assert round_.take_releases() == ()


def test_is_lost_as_soon_as_no_quorum_is_left_and_late_grants_are_released() -> None:
    round_ = _direct()
    round_.on_reply("a", _YES)
    assert round_.on_reply("b", _TAKEN) is RoundState.PENDING
    assert round_.on_reply("c", _TAKEN) is RoundState.LOST
    assert round_.cause is LossCause.TAKEN
    assert round_.holder == _OTHER
    assert sorted(round_.take_releases()) == ["a", "d"]
    assert round_.on_reply("d", _YES) is RoundState.LOST
    assert round_.take_releases() == ("d",)


def test_an_error_may_hide_a_grant() -> None:
    round_ = _direct()
    round_.on_error("a")
    round_.on_error("a")
    assert round_.state is RoundState.PENDING
    assert round_.on_error("b") is RoundState.LOST
    assert round_.cause is LossCause.UNREACHABLE
    assert sorted(round_.take_releases()) == ["a", "b", "c", "d"]


def test_an_answer_after_an_error_counts() -> None:
    round_ = _direct()
    round_.on_error("a")
    for server in "ab":
        round_.on_reply(server, _YES)
    assert round_.on_error("c") is RoundState.PENDING
    assert round_.on_reply("d", _YES) is RoundState.WON


def test_the_time_is_up() -> None:
    round_ = _direct()
    round_.on_reply("a", _YES)
    assert round_.on_timeout() is RoundState.LOST
    assert sorted(round_.take_releases()) == ["a", "b", "c", "d"]
    won = _direct(servers=("a",))
    won.on_reply("a", _YES)
    assert won.on_timeout() is RoundState.WON


def test_a_server_counts_once() -> None:
    round_ = _direct()
    for _ in range(3):
        round_.on_reply("a", _YES)
        round_.on_reply("b", _TAKEN)
    assert round_.state is RoundState.PENDING
    assert round_.granted == ["a"]


def test_an_answer_of_the_wrong_kind_is_an_error() -> None:
    assert _direct(servers=("a",)).on_reply("a", Released()) is RoundState.LOST


@pytest.mark.parametrize(
    ("reasons", "cause"),
    [
        ("HELD RECOVERING", LossCause.TAKEN),
        ("RECOVERING RECOVERING", LossCause.UNREACHABLE),
        ("FULL HELD", LossCause.OVERLOADED),
        ("HELD STALE_INCARNATION", LossCause.STALE),
        ("DEADLOCK FULL", LossCause.DEADLOCK),
        ("RELEASED EXPIRED", LossCause.UNREACHABLE),
    ],
)
def test_the_cause_that_matters_most(reasons: str, cause: LossCause) -> None:
    round_ = _direct()
    for server, reason in zip("ab", reasons.split(), strict=True):
        round_.on_reply(server, Refused(RefusalReason[reason]))
    assert round_.state is RoundState.LOST
    assert round_.cause is cause


class TestQueued:
    def test_asks_the_gate_first_and_the_others_once_it_is_passed(self) -> None:
        round_ = Round(_FOUR, LockMode.WRITE, queued=True)
        assert round_.to_ask() == ("a",)
        assert round_.to_ask() == ()
        round_.on_reply("a", _YES)
        assert round_.to_ask() == ("b", "c", "d")
        round_.on_reply("b", _YES)
        assert round_.on_reply("d", _YES) is RoundState.WON

    def test_a_gate_that_fails_or_recovers_is_replaced(self) -> None:
        round_ = Round(_FOUR, LockMode.WRITE, queued=True)
        round_.to_ask()
        round_.on_error("a")
        assert round_.to_ask() == ("b",)
        round_.on_reply("b", _YES)
        assert round_.to_ask() == ("c", "d")
        other = Round(_FOUR, LockMode.WRITE, queued=True)
        other.to_ask()
        other.on_reply("a", _RECOVERING)
        assert other.to_ask() == ("b",)
        assert other.on_reply("b", _RECOVERING) is RoundState.LOST
        assert other.to_ask() == ()

    def test_a_gate_that_stays_taken_ends_the_round_and_nobody_else_is_released(self) -> None:
        round_ = Round(_FOUR, LockMode.WRITE, queued=True)
        round_.to_ask()
        assert round_.on_reply("a", _TAKEN) is RoundState.LOST
        assert round_.close() == ()

    def test_only_who_was_asked_is_released(self) -> None:
        round_ = Round(_FOUR, LockMode.WRITE, queued=True)
        round_.to_ask()
        round_.on_timeout()
        assert round_.close() == ("a",)

    def test_one_server_is_gate_and_quorum(self) -> None:
        round_ = Round(("a",), LockMode.WRITE, queued=True)
        round_.to_ask()
        assert round_.on_reply("a", _YES) is RoundState.WON
        assert round_.to_ask() == ()
