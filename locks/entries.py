"""What a lock table is made of: grants, waiters, and one entry for each resource that has any."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from locks.messages import Granted, LockMode, Owner, Refused

AttemptKey: TypeAlias = tuple[Owner, tuple[str, ...]]  # who, and for which resources


class Queued(NamedTuple):
    """The caller stands in line; a `Late` with the same ticket will follow."""

    ticket: int


class Late(NamedTuple):
    """What became of a caller that stood in line."""

    ticket: int
    owner: Owner
    resources: tuple[str, ...]
    reply: Granted | Refused


class Grant:
    """All that one request was granted. `waited_for`: somebody in line waits for this owner."""

    __slots__ = ("expires_s", "granted_s", "key", "mode", "owner", "waited_for")

    def __init__(self, key: AttemptKey, mode: LockMode, now_s: float, expires_s: float) -> None:
        self.key = key
        self.owner = key[0]
        self.mode = mode
        self.granted_s = now_s
        self.expires_s = expires_s
        self.waited_for = False


class Waiter:
    __slots__ = ("deadline_s", "key", "mode", "owner", "resources", "ticket")

    def __init__(self, ticket: int, key: AttemptKey, mode: LockMode, deadline_s: float) -> None:
        self.ticket = ticket
        self.key = key
        self.owner, self.resources = key
        self.mode = mode
        self.deadline_s = deadline_s


class Entry:
    """One resource. Dicts serve as ordered sets; `line` is made when somebody has to wait."""

    __slots__ = ("holders", "line")

    def __init__(self) -> None:
        self.holders: dict[Grant, None] = {}
        self.line: dict[Waiter, None] | None = None

    def blockers(self, owner: Owner, mode: LockMode) -> list[Grant]:
        """The holders that exclude this request. An owner does not exclude itself."""
        return [
            grant
            for grant in self.holders
            if (mode is LockMode.WRITE or grant.mode is LockMode.WRITE) and grant.owner != owner
        ]

    def held_by(self, owner: Owner) -> Grant | None:
        return next((grant for grant in self.holders if grant.owner == owner), None)
