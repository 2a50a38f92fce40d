"""What the transcripts do not tell: bounds, bookkeeping, and that no step looks at everything."""

from __future__ import annotations

import pytest

from locks.entries import Queued
from locks.messages import (
    Acquire,
    Granted,
    LockEntry,
    LockMode,
    Owner,
    Refresh,
    RefusalReason,
    Refused,
    Release,
    resource_set,
)
from locks.server import LockServer
from locks.table import LockTable

_W = LockMode.WRITE
_R = LockMode.READ


def _open(**bounds: int) -> LockTable:
    table = LockTable(0.0, 1, **bounds)
    table.all_fresh()
    return table


def _owner(attempt: int, node: str = "n1") -> Owner:
    return Owner(node, 1, attempt)


def _ask(
    attempt: int, *names: str, mode: LockMode = _W, wait_s: float = 0.0, node: str = "n1"
) -> Acquire:
    return Acquire(resource_set(names), mode, _owner(attempt, node), wait_s or 1.0, wait_s > 0)


def test_a_step_does_not_touch_the_other_locks() -> None:
    """Counted, not timed: entries looked at while one lock expires among many."""
    table = _open()
    for number in range(5000):
        assert isinstance(table.acquire(_ask(number, f"object:b/{number}"), 0.0), Granted)
    for number in range(1, 5000):
        assert table.refresh(Refresh((f"object:b/{number}",), _owner(number)), 5.0).ok

    class Counting(dict):  # type: ignore[type-arg]
        looked = 0

        def get(self, *key: object) -> object:
            self.looked += 1
            return super().get(*key)

    entries = Counting(table._entries)
    table._entries = entries
    table.tick(9.0)
    assert table.size == 4999
    assert entries.looked < 10


def test_leases_of_one_node_end_in_order_of_their_refresh() -> None:
    table = _open()
    for number in range(4):
        table.acquire(_ask(number, f"object:b/{number}"), float(number))
    table.refresh(Refresh(("object:b/0",), _owner(0)), 4.0)
    assert table.wake_at_s() == 10.0
    table.tick(10.0)
    assert [e.resource for e in table.snapshot(10.0)] == ["object:b/0", "object:b/2", "object:b/3"]
    table.tick(12.0)
    assert [e.resource for e in table.snapshot(12.0)] == ["object:b/0"]
    table.tick(13.0)
    assert table.size == 0
    assert table.wake_at_s() is None


def test_nothing_is_left_behind() -> None:
    """Memory follows what is held and waited for."""
    table = _open()
    for number in range(300):
        table.acquire(_ask(number, "object:b/a", "object:b/b"), 1.0)
        table.acquire(_ask(number, "object:b/b", wait_s=5.0, node="n2"), 1.0)
        table.release(Release(("object:b/a", "object:b/b"), _owner(number)), 1.0)
        table.release(Release(("object:b/b",), _owner(number, "n2")), 1.0)
    table.tick(1.0)
    assert table.size == table.waiters == 0
    assert not table._entries
    assert not any(table._leases.values())
    assert len(table._deadlines) < 100
    assert not table._graph._waiting
    assert not table._graph._waited_for


def test_releases_that_overtook_their_request_are_remembered_in_bounds() -> None:
    table = _open()
    for number in range(12_000):
        table.release(Release(("object:b/a",), _owner(number)), 1.0)
    assert len(table._released_early) == 10_000
    table.tick(10.0)
    assert not table._released_early


def test_bounds() -> None:
    table = _open(max_entries=3, max_waiters=1)
    full = Refused(RefusalReason.FULL)
    assert isinstance(table.acquire(_ask(1, "object:b/a"), 0.0), Granted)
    assert isinstance(table.acquire(_ask(2, "object:b/a", wait_s=1.0), 0.0), Queued)
    assert table.acquire(_ask(3, "object:b/a", wait_s=1.0), 0.0) == full
    assert table.acquire(_ask(4, "object:b/b", "object:b/c"), 0.0) == full
    assert isinstance(table.acquire(_ask(5, "object:b/b"), 0.0), Granted)
    assert table.acquire(_ask(6, "object:b/c"), 0.0) == full
    assert table.acquire(_ask(7), 0.0) == full
    big = _open()
    assert big.acquire(_ask(1, *(f"object:b/{n}" for n in range(1025))), 0.0) == full


def test_a_mode_is_not_upgraded_past_other_readers() -> None:
    table = _open()
    assert isinstance(table.acquire(_ask(1, "object:b/a", mode=_R), 0.0), Granted)
    assert isinstance(table.acquire(_ask(2, "object:b/a", mode=_R), 0.0), Granted)
    assert isinstance(table.acquire(_ask(1, "object:b/a", mode=_W), 0.0), Refused)
    assert table.size == 1  # and who asked for the other mode has given up the first


def test_locks_taken_in_from_peers_can_be_refreshed_and_released_in_their_own_portions() -> None:
    table = LockTable(0.0, 1, peers=("n2", "n3"))
    owner = _owner(7, "n4")
    entries = [LockEntry(f"object:b/{k}", _W, owner, 1.0) for k in "ab"]
    table.learn("n2", entries, 3.0)
    table.learn("n3", entries, 3.0)
    assert not table.recovering
    assert table.refresh(Refresh(("object:b/a",), owner), 4.0).ok
    table.release(Release(("object:b/a",), owner), 5.0)
    assert [e.resource for e in table.snapshot(5.0)] == ["object:b/b"]
    table.release(Release(("object:b/b",), owner), 5.0)
    assert table.size == 0


def test_tables_told_before_the_server_settled_do_not_open_it() -> None:
    table = LockTable(0.0, 1, peers=("n2", "n3"), settle_s=2.0)
    for peer in ("n2", "n3"):
        table.learn(peer, (), 2.5, asked_s=1.5)
    assert table.recovering
    for peer in ("n2", "n3", "stranger"):
        table.learn(peer, (), 3.5, asked_s=2.5)
    assert not table.recovering


def test_without_read_locks_two_peers_of_three_are_enough() -> None:
    peers = ("n2", "n3", "n4")
    for writes_only in (False, True):
        table = LockTable(0.0, 1, peers=peers, writes_only=writes_only)
        table.learn("n2", (), 3.0)
        assert table.recovering  # n3 and n4 may have granted with the old table
        table.learn("n3", (), 3.0)
        assert table.recovering is not writes_only
        table.learn("n4", (), 3.0)
        assert not table.recovering


def test_a_table_too_large_to_tell_is_not_complete() -> None:
    table = _open()
    for number in range(5):
        table.acquire(_ask(number, f"object:b/{number}"), 0.0)
    assert table.tell(0.0).complete
    cut = table.tell(0.0, max_entries=4)
    assert len(cut.entries) == 4
    assert not cut.complete
    assert not LockTable(0.0, 1).tell(0.0).complete


def test_a_longer_circle_is_found() -> None:
    table = _open()
    for number, name in enumerate("abc"):
        table.acquire(_ask(number, f"object:b/{name}"), 0.0)
    assert isinstance(table.acquire(_ask(0, "object:b/b", wait_s=5.0), 0.0), Queued)
    assert isinstance(table.acquire(_ask(1, "object:b/c", wait_s=5.0), 0.0), Queued)
    closing = table.acquire(_ask(2, "object:b/a", wait_s=5.0), 0.0)
    assert closing == Refused(RefusalReason.DEADLOCK)
    assert isinstance(table.acquire(_ask(9, "object:b/a", wait_s=5.0), 0.0), Queued)


@pytest.mark.parametrize("end", ["close", "release", "tick"])
def test_everyone_in_line_at_a_server_is_answered_once(end: str) -> None:
    server = LockServer(_open())
    answers: list[object] = []
    server.handle(_ask(1, "object:b/a"), answers.append, 0.0)
    waiting = _ask(2, "object:b/a", wait_s=2.0)
    server.handle(waiting, answers.append, 0.0)
    server.handle(waiting, answers.append, 0.0)
    assert len(answers) == 1
    if end == "close":
        server.close()
    elif end == "release":
        server.handle(Release(waiting.resources, waiting.owner), lambda reply: None, 1.0)
    else:
        server.tick(2.0)
    assert len(answers) == 3
    server.tick(20.0)
    assert len(answers) == 3
