"""The outbound chokepoint: every question to a peer goes through here, and through the guard.

The only user of the Wire port. A link per peer and lane stands from the start; calls ride on it in
batches (node.rpc.link), bytes ride beside it in streams of their own (node.rpc.transfer).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from node.errors import HoldfastError, TargetDown
from node.guard.guard import Guard, Target
from node.guard.policy import PEER_METHODS, assert_tables
from node.rpc.auth import Roster
from node.rpc.errors import PeerRefused
from node.rpc.link import Identity, Link, LinkState
from node.rpc.methods import LANES, LINK_LANES, Lane, Method
from node.rpc.transfer import Download, Streams, Upload
from node.runtime.ports import Clock, Rng, Wire

PATH = "peer"

_NAMES = {method: method.name for method in Method}
_POLICIES = {method: PEER_METHODS[method.name] for method in Method}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a link to a peer does not stand: the last reason, and how often links to it failed."""

    reason: str  # a REASON of node.rpc.errors, or "unreachable"
    message: str
    count: int
    # The incarnation of this node that the peer has heard of, if this process never had a link to it.
    current: int = 0


def no_request() -> str:
    return ""


def nobody(_peer: str) -> None:
    pass


class Peers:
    """Calls to the other nodes. `peers` are their names; calls to any other name are a mistake."""

    def __init__(
        self,
        *,
        me: Identity,
        peers: Sequence[str],
        wire: Wire,
        guard: Guard,
        clock: Clock,
        rng: Rng,
        roster: Roster,
        request_id: Callable[[], str] = no_request,
    ) -> None:
        assert me.node not in peers
        assert_tables(method.name for method in Method)
        self.peers = tuple(peers)
        self._guard = guard
        self._clock = clock
        self._request_id = request_id
        self._on_life: Callable[[str], None] = nobody
        self._troubles: dict[str, Trouble] = {}
        self._linked_once: set[str] = set()
        self._on_trouble: Callable[[str, Trouble], None] | None = None
        self._links: dict[tuple[str, Lane], Link] = {}
        self._routes: dict[tuple[str, Method], tuple[Link, Target]] = {}
        for peer in self.peers:
            for lane in LINK_LANES:
                self._links[(peer, lane)] = Link(
                    peer,
                    lane,
                    me=me,
                    wire=wire,
                    roster=roster,
                    clock=clock,
                    rng=rng,
                    on_ready=self._ready,
                    on_lost=self._lost,
                    on_life=self._alive,
                )
                guard.target("peer", peer, lane)
            for method in Method:
                lane = LANES[method] if LANES[method] is not Lane.HEARTBEAT else Lane.CONTROL
                target = guard.target("peer", peer, lane)
                self._routes[(peer, method)] = (self._links[(peer, lane)], target)
        self._streams = Streams(guard=guard, clock=clock, request_id=request_id)

    # ---- life ---------------------------------------------------------------------------------------
    def start(self) -> None:
        for link in self._links.values():
            link.start()

    async def stop(self) -> None:
        await asyncio.gather(*(link.stop() for link in self._links.values()))

    def on_life(self, heard: Callable[[str], None]) -> None:
        """`heard(peer)` is called for every batch that comes from a peer: it is evidence of life."""
        self._on_life = heard

    def on_trouble(self, notice: Callable[[str, Trouble], None]) -> None:
        """`notice(peer, trouble)` is called when the reason why a peer is not linked changes: log it."""
        self._on_trouble = notice

    def lost(self, peer: str) -> None:
        """Membership declared the peer dead: whoever waits for it fails now."""
        self._guard.fail_waiting(peer)
        for lane in LINK_LANES:
            # Bulk streams have a bound of their own, progress; they are not cut by a verdict.
            if lane is not Lane.BULK:
                self._links[(peer, lane)].cut()

    def returned(self, peer: str) -> None:
        """The peer's heartbeats are back: use it again at once."""
        self._guard.allow(peer)
        for lane in LINK_LANES:
            link = self._links[(peer, lane)]
            link.redial()
            if link.state is LinkState.READY:
                self._guard.probe_succeeded(self._guard.target("peer", peer, lane))

    def kick(self, peer: str) -> None:
        """A heartbeat came: links that pause dial at once."""
        for lane in LINK_LANES:
            self._links[(peer, lane)].kick()

    def linked(self, peer: str, lane: Lane = Lane.FAST) -> bool:
        return self._links[(peer, lane)].state is LinkState.READY

    def troubles(self) -> dict[str, Trouble]:
        """Peers that a link could not be opened to, and why; for the console and the readiness page."""
        return dict(self._troubles)

    # ---- calls --------------------------------------------------------------------------------------
    def call(
        self, peer: str, method: Method, payload: bytes, *, deadline: float
    ) -> asyncio.Future[bytes]:
        """Ask a peer; the future never fails to end by the deadline or the method's bound.

        Fails with what the peer's handler raised (`answered` set on it), TargetFailed (the effect is
        unknown), TargetDown or Shed (nothing was sent), DeadlineExceeded (the effect is unknown).
        """
        link, target = self._routes[(peer, method)]
        policy = _POLICIES[method]
        expires_at = min(deadline, self._clock.monotonic() + policy.attempt_s)
        request_id = self._request_id()
        return self._guard.start(
            PATH,
            _NAMES[method],
            policy,
            target,
            lambda: link.submit(method, payload, expires_at, request_id),
            deadline=deadline,
        )

    def tell(self, peer: str, method: Method, payload: bytes) -> None:
        """Say something that needs no answer; best effort, dropped while the peer is away."""
        link, target = self._routes[(peer, method)]
        now = self._clock.monotonic()
        if not target.breaker.would_refuse(now):
            link.tell(method, payload, now + _POLICIES[method].attempt_s, self._request_id())

    async def open_upload(self, peer: str, header: bytes, *, deadline: float) -> Upload:
        """A stream of bytes to a peer, which ends with its reply."""
        link = self._links[(peer, Lane.BULK)]
        target = self._guard.target("peer", peer, Lane.BULK)
        return await self._streams.upload(link, target, header, deadline)

    def open_download(self, peer: str, header: bytes, *, deadline: float) -> Download:
        """A stream of bytes from a peer; it is opened when the first one is asked for."""
        link = self._links[(peer, Lane.BULK)]
        target = self._guard.target("peer", peer, Lane.BULK)
        return self._streams.download(link, target, header, deadline)

    # ---- what links report -----------------------------------------------------------------------------
    def _alive(self, peer: str) -> None:
        self._on_life(peer)

    def _ready(self, link: Link) -> None:
        self._troubles.pop(link.peer, None)
        self._linked_once.add(link.peer)
        self._on_life(link.peer)
        self._guard.probe_succeeded(self._guard.target("peer", link.peer, link.lane))

    def _lost(self, link: Link, error: HoldfastError) -> None:
        if isinstance(error, TargetDown):
            return
        reason = error.reason if isinstance(error, PeerRefused) else "unreachable"
        before = self._troubles.get(link.peer)
        refused = isinstance(error, PeerRefused) and link.peer not in self._linked_once
        trouble = Trouble(
            reason=reason,
            message=str(error),
            count=1 if before is None else before.count + 1,
            current=error.current if refused else 0,  # type: ignore[attr-defined]
        )
        self._troubles[link.peer] = trouble
        if self._on_trouble is not None and (before is None or before.reason != reason):
            self._on_trouble(link.peer, trouble)
