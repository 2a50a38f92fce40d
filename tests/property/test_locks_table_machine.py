"""Random steps on one lock table; after each, everything it keeps must agree with itself and with the
promises: nobody excluded holds, who could hold does not wait, lines are first come first served."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from locks.entries import Late, Queued
from locks.messages import (
    Acquire,
    ForceRelease,
    Granted,
    LockMode,
    Owner,
    Refresh,
    Refused,
    Release,
    resource_set,
)
from locks.table import LockTable

_NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(
    lambda names: resource_set(f"object:{name}" for name in names)
)
_NODES = st.sampled_from(["n1", "n2", "n3"])
_MODES = st.sampled_from(list(LockMode))
_MAX_WAITERS = 4
_MAX_ENTRIES = 20


class TableMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.table = LockTable(0.0, 1, max_waiters=_MAX_WAITERS, max_entries=_MAX_ENTRIES)
        self.table.all_fresh()
        self.incarnations = {"n1": 1, "n2": 1, "n3": 1}
        self.attempts: list[Acquire] = []
        self.in_line: dict[int, Acquire] = {}
        self.deadlines: dict[int, float] = {}

    def _late(self, late: list[Late]) -> None:
        granted: dict[str, int] = {}
        for result in late:
            asked = self.in_line.pop(result.ticket)  # a KeyError here: answered twice
            assert (asked.owner, asked.resources) == (result.owner, result.resources)
            if isinstance(result.reply, Granted):
                assert self.deadlines[result.ticket] > self.now_s
                for resource in result.resources:
                    assert granted.get(resource, 0) < result.ticket
                    granted[resource] = result.ticket
                    before = [t for t, a in self.in_line.items() if resource in a.resources]
                    assert all(ticket > result.ticket for ticket in before)

    @rule(names=_NAMES, node=_NODES, mode=_MODES, wait=st.booleans(), nested=st.booleans())
    def acquire(
        self, names: tuple[str, ...], node: str, mode: LockMode, wait: bool, nested: bool
    ) -> None:
        owner = Owner(node, self.incarnations[node], len(self.attempts))
        if nested and self.attempts and self.attempts[-1].owner.node == node:
            owner = self.attempts[-1].owner
        message = Acquire(names, mode, owner, 2.0, wait)
        self.attempts.append(message)
        reply = self.table.acquire(message, self.now_s)
        if isinstance(reply, Queued) and reply.ticket not in self.in_line:
            assert wait
            self.in_line[reply.ticket] = message
            self.deadlines[reply.ticket] = self.now_s + 2.0
        self._late(self.table.tick(self.now_s))

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        if self.attempts:
            message = data.draw(st.sampled_from(self.attempts[-8:]))
            reply = self.table.acquire(message, self.now_s)
            if isinstance(reply, Queued) and reply.ticket not in self.in_line:
                self.in_line[reply.ticket] = message
                self.deadlines[reply.ticket] = self.now_s + 2.0
            self._late(self.table.tick(self.now_s))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.attempts:
            message = data.draw(st.sampled_from(self.attempts[-8:]))
            self._late(self.table.release(Release(message.resources, message.owner), self.now_s))
            assert not any(
                e.owner == message.owner and e.resource in message.resources
                for e in self.table.snapshot(self.now_s)
                if not any(
                    other.owner == message.owner and other.resources != message.resources
                    for other in self.attempts
                )
            )

    @rule(data=st.data())
    def refresh(self, data: st.DataObject) -> None:
        if self.attempts:
            message = data.draw(st.sampled_from(self.attempts[-8:]))
            held = {e.resource for e in self.table.snapshot(self.now_s) if e.owner == message.owner}
            reply = self.table.refresh(Refresh(message.resources, message.owner), self.now_s)
            assert set(reply.lost) == set(message.resources) - held
            assert reply.ok is (not reply.lost)

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0, 5.0]))
    def time(self, seconds: float) -> None:
        self.now_s += seconds
        wake_s = self.table.wake_at_s()
        busy = self.table.size > 0
        self._late(self.table.tick(self.now_s))
        assert wake_s is not None or not busy

    @rule(node=_NODES)
    def restart(self, node: str) -> None:
        self.incarnations[node] += 1
        incarnation = self.incarnations[node]
        self._late(self.table.node_incarnation(node, incarnation, self.now_s))
        assert not any(
            e.owner.node == node and e.owner.incarnation < incarnation
            for e in self.table.snapshot(self.now_s)
        )

    @rule(node=_NODES, suspected=st.booleans())
    def suspicion(self, node: str, suspected: bool) -> None:
        self._late_in_any_order(self.table.suspected(node, suspected, self.now_s))

    def _late_in_any_order(self, late: list[Late]) -> None:
        for result in late:
            self.in_line.pop(result.ticket)

    @rule(name=st.sampled_from("abc"))
    def force(self, name: str) -> None:
        self._late(self.table.force_release(ForceRelease(f"object:{name}"), self.now_s))

    @invariant()
    def nobody_excluded_holds(self) -> None:
        for entry in self.table._entries.values():
            owners = {grant.owner for grant in entry.holders}
            writes = any(grant.mode is LockMode.WRITE for grant in entry.holders)
            assert len(owners) <= 1 or not writes

    @invariant()
    def who_could_hold_does_not_wait(self) -> None:
        for entry in self.table._entries.values():
            if entry.line:
                assert not self.table._grantable(next(iter(entry.line)))

    @invariant()
    def books_agree(self) -> None:
        table = self.table
        entries = table._entries
        held = sum(len(e.holders) for e in entries.values())
        lined = sum(len(e.line or ()) for e in entries.values())
        assert table.size == held + lined <= _MAX_ENTRIES
        assert all(e.holders or e.line for e in entries.values())
        assert all(len(e.line or ()) <= _MAX_WAITERS for e in entries.values())
        grants = {id(g) for leases in table._leases.values() for g in leases.values()}
        assert grants == {id(g) for e in entries.values() for g in e.holders}
        for leases in table._leases.values():
            ends = [grant.expires_s for grant in leases.values()]
            assert ends == sorted(ends)
            assert all(end > self.now_s for end in ends)
        assert {w.ticket for w in table._waiters.values()} == set(self.in_line)
        assert all(self.deadlines[ticket] > self.now_s for ticket in self.in_line)
        marked: dict[Owner, int] = {}
        for leases in table._leases.values():
            for grant in leases.values():
                if grant.waited_for:
                    marked[grant.owner] = marked.get(grant.owner, 0) + 1
        assert marked == table._graph._waited_for

    def teardown(self) -> None:
        """Time heals all: whoever is left in line gets its answer, and every lease ends."""
        for _ in range(3):
            self.now_s += 10.0
            self._late(self.table.tick(self.now_s))
        assert not self.in_line
        assert self.table.size == 0
        assert not self.table._entries


TableMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTableMachine = TableMachine.TestCase


def test_a_refusal_names_a_holder_that_holds() -> None:
    table = LockTable(0.0, 1)
    table.all_fresh()
    table.acquire(Acquire(("object:a",), LockMode.WRITE, Owner("n1", 1, 1), 1.0), 0.0)
    reply = table.acquire(Acquire(("object:a",), LockMode.READ, Owner("n2", 1, 1), 1.0), 2.0)
    assert isinstance(reply, Refused)
    assert (reply.holder, reply.age_s) == (Owner("n1", 1, 1), 2.0)
