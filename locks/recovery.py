"""When a restarted lock server may grant again.

What a server granted is lost with its process. Were it to grant at once, it could give away a lock that
an earlier requester holds with its old grant. So it waits until nothing unknown can be left:

- one lease has passed, or
- all peers have told their tables. A lock has a quorum of grantors, so beside this server at least one
  peer knows it; this takes a read quorum of two, that is three servers. A table told within `settle_s`
  after the start does not count: a requester may then still be collecting the grants that go with one
  from the old process, and no round of a requester may last longer than `settle_s`. Or
- all lock servers have new incarnations, so that no lock from before has a quorum (`LockTable.all_fresh`).
"""

from __future__ import annotations

from locks.round import read_quorum


class Recovery:
    __slots__ = ("_peers", "_settled_s", "_told", "opens_s")

    def __init__(
        self, now_s: float, *, lease_s: float, settle_s: float, peers: frozenset[str]
    ) -> None:
        self.opens_s = now_s + lease_s
        self._settled_s = now_s + settle_s
        self._peers = peers
        self._told: set[str] = set()

    def told(self, peer: str, asked_s: float) -> None:
        """The peer has told all that it had granted when it was asked, or later."""
        if peer in self._peers and asked_s >= self._settled_s:
            self._told.add(peer)

    def over(self, now_s: float) -> bool:
        if now_s >= self.opens_s:
            return True
        return self._told >= self._peers and read_quorum(len(self._peers) + 1) >= 2
