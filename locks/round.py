"""One requester's quorum round: whom to ask, when it is won, whom to release afterwards.

Theory of operation. There are two kinds of round.

A *direct* round asks all servers at once and none of them lets it wait. It is won as soon as a quorum
has granted and lost as soon as a quorum cannot be had any more. Two direct rounds that meet may both
lose, never wait for each other: each gives back what it got.

A *queued* round is for a lock that was found taken. If requesters stood in line at all servers at once,
two of them could each get half of the servers and wait for the other's half. So they stand in line at
one server first, the gate: the first in an order all requesters share. Only who has passed the gate asks
the others, also willing to wait, and meets there at most direct rounds, which leave by themselves, and
holders, which release. A gate that fails is replaced by the next server in order. Two requesters that
disagree about which server is the gate can still meet halfway; their time limit then parts them.

            ask                   quorum granted
    PENDING ----------> PENDING ----------------> WON
       |  refusals or errors leave no quorum,
       |  or the time is up
       +-----------------------------------> LOST

After WON a late grant counts as held, too. After LOST or `close`, every server that granted, or may
still grant (asked, not answered), is to be released: a grant that nobody wants would block others for a
lease.
"""

from __future__ import annotations

import math
from enum import StrEnum

from locks.messages import Granted, LockMode, Owner, RefusalReason, Refused, Reply


def write_quorum(servers: int) -> int:
    return servers // 2 + 1


def read_quorum(servers: int) -> int:
    """Meets every write quorum in at least one server."""
    return servers - servers // 2


def quorum_of(mode: LockMode, servers: int) -> int:
    return write_quorum(servers) if mode is LockMode.WRITE else read_quorum(servers)


class RoundState(StrEnum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"


class LossCause(StrEnum):
    TAKEN = "taken"  # enough servers said that others have it
    OVERLOADED = "overloaded"  # a bound of the lock servers is met
    STALE = "stale"  # a newer process has taken this node's place
    DEADLOCK = "deadlock"
    UNREACHABLE = "unreachable"  # too few servers answered, or too few know their tables


_CAUSES = {
    RefusalReason.HELD: LossCause.TAKEN,
    RefusalReason.FULL: LossCause.OVERLOADED,
    RefusalReason.STALE_INCARNATION: LossCause.STALE,
    RefusalReason.DEADLOCK: LossCause.DEADLOCK,
    RefusalReason.RECOVERING: LossCause.UNREACHABLE,
    RefusalReason.EXPIRED: LossCause.UNREACHABLE,
    RefusalReason.RELEASED: LossCause.UNREACHABLE,
}
# The cause that decides what the requester does next, strongest first.
_STRENGTH = (
    LossCause.STALE,
    LossCause.DEADLOCK,
    LossCause.OVERLOADED,
    LossCause.TAKEN,
    LossCause.UNREACHABLE,
)


class Round:
    """One round for one owner. Feed it what happens; read `state`; ask whom `to_ask` names.

    `servers`: all lock servers, in an order that all requesters share. `queued`: see the module's theory.
    """

    __slots__ = (
        "_asked",
        "_closed",
        "_failed",
        "_queued",
        "_refusals",
        "_to_ask",
        "_to_release",
        "granted",
        "lease_s",
        "mode",
        "quorum",
        "servers",
        "state",
    )

    def __init__(self, servers: tuple[str, ...], mode: LockMode, *, queued: bool = False) -> None:
        assert servers, "a round needs a server"
        self.servers = servers
        self.mode = mode
        self.quorum = quorum_of(mode, len(servers))
        self.state = RoundState.PENDING
        self.granted: list[str] = []  # in order of arrival
        self.lease_s = math.inf  # the shortest of the leases granted
        self._refusals: dict[str, Refused] = {}
        self._failed: set[str] = set()
        self._queued = queued
        self._closed = False
        self._to_ask = servers[:1] if queued else servers
        self._asked = 0
        self._to_release: list[str] = []

    def to_ask(self) -> tuple[str, ...]:
        """The servers to send the request to now. Each is named once."""
        asking = self._to_ask
        if asking:
            self._to_ask = ()
            self._asked += len(asking)
        return asking

    def on_reply(self, server: str, reply: Reply) -> RoundState:
        """A server's answer to Acquire. A second answer of one server changes nothing."""
        if server in self._refusals or server in self.granted:
            return self.state
        if type(reply) is Granted:
            return self._on_granted(server, reply.lease_s)
        if type(reply) is not Refused:
            return self.on_error(server)
        self._failed.discard(server)
        self._refusals[server] = reply
        return self._on_failure(server, passable=reply.reason is RefusalReason.RECOVERING)

    def on_error(self, server: str) -> RoundState:
        """The server could not be asked, or its answer did not come; it may have granted all the same."""
        if server in self._failed or server in self._refusals or server in self.granted:
            return self.state
        self._failed.add(server)
        return self._on_failure(server, passable=True)

    def on_timeout(self) -> RoundState:
        """The time for this round is up."""
        if self.state is RoundState.PENDING:
            self._lose()
        return self.state

    def close(self) -> tuple[str, ...]:
        """The lock is not wanted any more. Returns the servers to release, those of `take_releases` among
        them; grants that arrive from now on go to `take_releases`."""
        if self.state is RoundState.PENDING:
            self._lose()
        elif self.state is RoundState.WON and not self._closed:
            self._closed = True
            self._to_release.extend(self._holding())
        return self.take_releases()

    def take_releases(self) -> tuple[str, ...]:
        """Servers that granted, or may have granted, something that is not wanted. Each is named once, and
        once more if its grant arrives afterwards (the release may have overtaken the request)."""
        releases = tuple(self._to_release)
        self._to_release.clear()
        return releases

    @property
    def contended(self) -> bool:
        """Whether some server said that others have it."""
        return any(
            _CAUSES[refusal.reason] is LossCause.TAKEN for refusal in self._refusals.values()
        )

    @property
    def cause(self) -> LossCause:
        """Why the round is lost; of several reasons the one that matters most to the requester."""
        causes = {_CAUSES[refusal.reason] for refusal in self._refusals.values()}
        return next((cause for cause in _STRENGTH if cause in causes), LossCause.UNREACHABLE)

    @property
    def holder(self) -> Owner | None:
        """One of those who hold what was asked for, if a server named one."""
        return next((r.holder for r in self._refusals.values() if r.holder is not None), None)

    def _on_granted(self, server: str, lease_s: float) -> RoundState:
        self._failed.discard(server)
        if self.state is RoundState.LOST or self._closed:
            self._to_release.append(server)
            return self.state
        self.granted.append(server)
        self.lease_s = min(self.lease_s, lease_s)
        if self.state is RoundState.PENDING:
            if len(self.granted) >= self.quorum:
                self.state = RoundState.WON
                self._to_ask = ()
            elif self._queued and len(self.granted) == 1:
                self._to_ask = self.servers[self._asked :]
        return self.state

    def _on_failure(self, server: str, *, passable: bool) -> RoundState:
        if self.state is not RoundState.PENDING:
            return self.state
        at_gate = self._queued and not self.granted
        if (at_gate and not passable) or (
            len(self._failed) + len(self._refusals) > len(self.servers) - self.quorum
        ):
            self._lose()
        elif at_gate:
            self._to_ask = self.servers[self._asked : self._asked + 1]
        return self.state

    def _lose(self) -> None:
        self.state = RoundState.LOST
        self._to_ask = ()
        self._to_release.extend(self._holding())

    def _holding(self) -> list[str]:
        """Asked and not refused: granted, or may still grant."""
        return [server for server in self.servers[: self._asked] if server not in self._refusals]
