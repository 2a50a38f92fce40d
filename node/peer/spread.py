"""Telling the peers of a change of the identities, and hearing that they have applied it."""

from __future__ import annotations

from node.cluster.membership import Membership
from node.errors import HoldfastError
from node.identity.replica import announcement, applied
from node.rpc.client import Peers
from node.rpc.methods import Method


class PeerSpread:
    """node.identity.ports.Spread over Method.IDENTITY."""

    def __init__(self, peers: Peers, membership: Membership) -> None:
        self._peers = peers
        self._membership = membership

    async def spread(self, version: int, *, deadline: float) -> int:
        payload = announcement(version)
        calls = [
            self._peers.call(peer, Method.IDENTITY, payload, deadline=deadline)
            for peer in self._membership.alive()
        ]
        count = 0
        for call in calls:
            try:
                count += applied(await call, version)
            except HoldfastError:
                continue
        return count
