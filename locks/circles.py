"""Who waits for whom at one server, to find circles of waiters that would wait for ever.

Only an owner that holds one set of resources while it asks for another (nested locks) can be part of a
circle. So the search runs only for an owner whose grants somebody waits for; that is looked up in
constant time, and nothing of this costs a request that meets no line anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from locks.entries import Entry, Grant, Waiter
from locks.messages import LockMode, Owner


class WaitGraph:
    """The edges are read from the table's entries; this keeps only where to begin."""

    __slots__ = ("_entries", "_waited_for", "_waiting")

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        self._waiting: dict[Owner, dict[Waiter, None]] = {}
        self._waited_for: dict[Owner, int] = {}  # how many of its grants somebody waits for

    def add(self, waiter: Waiter) -> None:
        """The waiter has joined its lines."""
        self._waiting.setdefault(waiter.owner, {})[waiter] = None
        for resource in waiter.resources:
            self.mark(self._entries[resource])

    def remove(self, waiter: Waiter) -> None:
        mine = self._waiting[waiter.owner]
        del mine[waiter]
        if not mine:
            del self._waiting[waiter.owner]

    def mark(self, entry: Entry) -> None:
        """Somebody may stand in line behind the holders of this entry."""
        if not entry.line:
            return
        for grant in entry.holders:
            if not grant.waited_for:
                grant.waited_for = True
                self._waited_for[grant.owner] = self._waited_for.get(grant.owner, 0) + 1

    def unmark(self, grant: Grant) -> None:
        """The grant is over."""
        grant.waited_for = False
        left = self._waited_for[grant.owner] - 1
        if left:
            self._waited_for[grant.owner] = left
        else:
            del self._waited_for[grant.owner]

    def closes_circle(self, owner: Owner, mode: LockMode, resources: tuple[str, ...]) -> bool:
        """Whether somebody this request would wait for waits, in the end, for `owner`.

        A circle is closed by the last to wait, so to refuse the newcomer is to refuse the youngest.
        """
        if owner not in self._waited_for:
            return False
        seen: set[Owner] = set()
        unseen = [other for r in resources for other in self._ahead(r, owner, mode, None)]
        while unseen:
            other = unseen.pop()
            if other == owner:
                return True
            if other in seen:
                continue
            seen.add(other)
            for waiter in self._waiting.get(other, ()):
                for resource in waiter.resources:
                    unseen.extend(self._ahead(resource, other, waiter.mode, waiter))
        return False

    def _ahead(
        self, resource: str, owner: Owner, mode: LockMode, until: Waiter | None
    ) -> list[Owner]:
        """Whom a request waits for at one resource: holders in the way, and those before it in line."""
        entry = self._entries.get(resource)
        if entry is None:
            return []
        ahead = [grant.owner for grant in entry.blockers(owner, mode)]
        for waiter in entry.line or ():
            if waiter is until:
                break
            ahead.append(waiter.owner)
        return ahead
