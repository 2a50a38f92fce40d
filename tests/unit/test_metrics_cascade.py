"""The correlator of failures: windows, counting once, clearing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.observe.cascade import PATTERNS, Correlator, Event, Pattern


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_an_effect_counts_within_its_window_and_not_after(pattern: Pattern) -> None:
    inside, outside, reversed_order = Correlator(), Correlator(), Correlator()
    inside.note(pattern.cause, 0.0)
    assert pattern.name in inside.note(pattern.effect, pattern.window_s)
    outside.note(pattern.cause, 0.0)
    assert pattern.name not in outside.note(pattern.effect, pattern.window_s + 0.001)
    reversed_order.note(pattern.effect, 0.0)
    assert reversed_order.note(pattern.cause, 1.0) == ()


def test_windows_are_those_of_the_design() -> None:
    peer, lock = Event.PEER_UNREACHABLE, Event.LOCK_TIMEOUT
    assert {(p.cause, p.effect): p.window_s for p in PATTERNS} == {
        (peer, lock): 30,
        (peer, Event.IDENTITY_TIMEOUT): 30,
        (lock, Event.DRIVE_CHECK_TIMEOUT): 60,
        (lock, Event.UPLOAD_FAILED): 60,
        (peer, Event.DRIVE_CHECK_TIMEOUT): 45,
    }


def test_one_run_of_failures_is_counted_once_and_a_later_one_again() -> None:
    seen = Correlator()
    name = "peer_unreachable_to_lock_timeout"
    seen.note(Event.PEER_UNREACHABLE, 0.0)
    assert seen.note(Event.LOCK_TIMEOUT, 5.0) == (name,)
    assert seen.note(Event.LOCK_TIMEOUT, 20.0) == ()
    assert seen.active(50.0) == (name,)
    assert seen.active(50.1) == ()
    seen.note(Event.PEER_UNREACHABLE, 100.0)
    assert seen.note(Event.LOCK_TIMEOUT, 101.0) == (name,)


@given(st.lists(st.tuples(st.sampled_from(Event), st.floats(0.0, 20.0)), max_size=60))
def test_every_count_has_its_cause_and_everything_clears(steps: list[tuple[Event, float]]) -> None:
    seen, now, history = Correlator(), 0.0, list[tuple[Event, float]]()
    for event, pause_s in steps:
        now += pause_s
        for name in seen.note(event, now):
            pattern = next(p for p in PATTERNS if p.name == name)
            assert pattern.effect is event
            assert any(e is pattern.cause and now - at <= pattern.window_s for e, at in history)
        history.append((event, now))
    assert seen.active(now + 61.0) == ()
