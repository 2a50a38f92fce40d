"""When a restarted lock server may grant again.

What a server granted is lost with its process. Were it to grant at once, it could give away a lock that
an earlier requester holds with its old grant. So it waits until nothing unknown can be left:

- one lease has passed, or
- enough peers have told their tables. A lock has a quorum q of grantors, so beside this server q - 1 peers
  know it: when at most q - 2 peers have not told, one of those who have knows it. q is the smallest quorum
  of any lock in use: of reads (then, up to four servers, all peers must tell), or of writes where nobody
  takes read locks (then, of four servers, two peers are enough, and two that restart together do not
  wait for each other). A table told within `settle_s`
  after the start does not count: a requester may then still be collecting the grants that go with one
  from the old process, and no round of a requester may last longer than `settle_s`. Or
- all lock servers have new incarnations, so that no lock from before has a quorum (`LockTable.all_fresh`).
"""

from __future__ import annotations

from locks.round import read_quorum, write_quorum


class Recovery:
    __slots__ = ("_needed", "_peers", "_settled_s", "_told", "opens_s")

    def __init__(
        self,
        now_s: float,
        *,
        lease_s: float,
        settle_s: float,
        peers: frozenset[str],
        writes_only: bool = False,
    ) -> None:
        servers = len(peers) + 1
        quorum = write_quorum(servers) if writes_only else read_quorum(servers)
        # With a quorum of one a lock may be known to nobody else.
        self._needed = len(peers) - (quorum - 2) if quorum >= 2 else len(peers) + 1
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
        return len(self._told) >= self._needed
