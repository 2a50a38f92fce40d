"""Who is there: heartbeats out and in, a detector for each peer, and what follows from its verdicts.

Theory of operation. The pulse (a thread of its own) sends every peer a heartbeat each half second. It
carries our incarnation, how late our event loop is, when we last heard that peer, and the versions we
published. The peer answers with a heartbeat of its own, so each direction is seen by both ends.
Heartbeats are signed with a key of the cluster and numbered: an old one is never taken for a new one.

A tick on the loop, ten times a second, asks the detectors for their verdicts and measures the loop
itself: a late tick is our own standstill, which is forgiven to everybody. Verdicts act: DEAD fails
what waits for the peer and opens its breakers; the first heartbeat after it lets the peer be used
again at once. A new incarnation of a peer is its death and its return in one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from node.cluster.detector import Detector, DetectorRules, Status
from node.guard.breaker import BreakerState
from node.guard.guard import Guard, Target
from node.guard.observer import Observer
from node.limits import QUIET_AFTER_S
from node.rpc.auth import Roster, wrong_secret
from node.rpc.errors import BAD_MESSAGE, STALE_INCARNATION, UNKNOWN_NODE, WRONG_TARGET, PeerRefused
from node.rpc.link import Identity
from node.rpc.wire.holdfast import peer_pb2 as pb
from node.runtime.ports import Clock, Pulse

__all__ = ["Membership", "PeerState", "Status"]

TICK_S = 0.1
REPORT_EVERY_TICKS = 10
# A tick this late is a standstill of ours, not scheduling noise.
STANDSTILL_S = 0.25

OnChange = Callable[[str, Status, Status], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerState:
    """What is known of a peer now. `since_s`: how long it has had this status. `rtt_s`: of heartbeats."""

    name: str
    status: Status
    incarnation: int
    rtt_s: float
    lag_s: float
    since_s: float
    suspicion: float
    versions: Mapping[str, int]


class PeerLinks(Protocol):
    """What membership tells the peers' layer; node.rpc.client.Peers."""

    def lost(self, peer: str) -> None: ...

    def returned(self, peer: str) -> None: ...

    def kick(self, peer: str) -> None: ...

    def on_life(self, heard: Callable[[str], None]) -> None: ...


class _Peer:
    __slots__ = (
        "changed_at",
        "detector",
        "heard_at",
        "incarnation",
        "name",
        "rtt_s",
        "sequence",
        "sequences",
        "versions",
    )

    def __init__(self, name: str, detector: Detector, now: float) -> None:
        self.name = name
        self.detector = detector
        self.changed_at = now
        self.heard_at: float | None = None  # read by the pulse's thread
        self.incarnation = 0
        self.sequence = 0
        self.sequences = itertools.count(1)  # next() is atomic: the pulse's thread counts too
        self.rtt_s = 0.0
        self.versions: dict[str, int] = {}


class Membership:
    def __init__(
        self,
        *,
        me: Identity,
        peers: Sequence[str],
        pulse: Pulse,
        links: PeerLinks,
        clock: Clock,
        observer: Observer,
        roster: Roster,
        rules: DetectorRules | None = None,
    ) -> None:
        now = clock.monotonic()
        self._me = me
        self._pulse = pulse
        self._links = links
        self._clock = clock
        self._observer = observer
        self._roster = roster
        self._rules = rules or DetectorRules()
        self._peers = {name: _Peer(name, Detector(self._rules, now), now) for name in peers}
        self._callbacks: list[OnChange] = []
        self._versions: dict[str, int] = {}
        self._tick_at = now  # read by the pulse's thread
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None
        self.refused: dict[str, int] = {}  # reason -> heartbeats refused for it
        links.on_life(self.heard)

    # ---- life ---------------------------------------------------------------------------------------
    def start(self) -> None:
        self._tick_at = self._clock.monotonic()
        self._pulse.start(tuple(self._peers), self._rules.interval_s, self.make_beat, self.answered)
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._run)

    def stop(self) -> None:
        self._pulse.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._run)
        self.tick()

    def tick(self) -> None:
        """Judge everybody now."""
        now = self._clock.monotonic()
        late_s = now - self._tick_at - TICK_S
        self._tick_at = now
        self._ticks += 1
        for peer in self._peers.values():
            detector = peer.detector
            if late_s > STANDSTILL_S:
                detector.forgive(late_s, now)
            before = detector.status
            after = detector.verdict(now)
            if after is not before:
                self._changed(peer, before, after)
            elif self._ticks % REPORT_EVERY_TICKS == 0:
                self._report(peer)

    # ---- what others ask ---------------------------------------------------------------------------------
    def state(self, peer: str) -> PeerState:
        """KeyError for a name that is not a peer."""
        known = self._peers[peer]
        now = self._clock.monotonic()
        return PeerState(
            name=peer,
            status=known.detector.status,
            incarnation=known.incarnation,
            rtt_s=known.rtt_s,
            lag_s=known.detector.lag_s,
            since_s=now - known.changed_at,
            suspicion=known.detector.suspicion(now),
            versions=dict(known.versions),
        )

    def states(self) -> tuple[PeerState, ...]:
        """Every other node, in listed order."""
        return tuple(self.state(name) for name in self._peers)

    def alive(self) -> tuple[str, ...]:
        """The others that are UP or SUSPECT, in listed order."""
        return tuple(
            name
            for name, peer in self._peers.items()
            if peer.detector.status in (Status.UP, Status.SUSPECT)
        )

    def is_dead(self, peer: str) -> bool:
        return self._peers[peer].detector.status is Status.DEAD

    def is_quiet(self, peer: str) -> bool:
        """Nothing came from it for QUIET_AFTER_S: no verdict, only a reason to prefer others."""
        return self._peers[peer].detector.silence_s(self._clock.monotonic()) >= QUIET_AFTER_S

    @property
    def incarnation(self) -> int:
        """Mine."""
        return self._me.incarnation

    @property
    def lag_s(self) -> float:
        """How late this node's own event loop is."""
        return max(0.0, self._clock.monotonic() - self._tick_at - TICK_S)

    def on_change(self, callback: OnChange) -> None:
        """`callback(peer, old, new)` on the loop, after the peers' layer was told."""
        self._callbacks.append(callback)

    def publish(self, name: str, version: int) -> None:
        """Put a version into my heartbeats; peers find it in `state(me).versions`."""
        # Replaced, not changed: the pulse's thread may be reading the old one.
        self._versions = {**self._versions, name: version}

    def may_open(self, target: Target, guard: Guard) -> bool:
        """For Guard.ask_before_opening: errors alone never take a quorum away.

        A breaker of a peer that membership says is UP stays closed when opening it would leave more
        than the minority of nodes that a quorum can spare without a closed breaker in this lane.
        """
        known = self._peers.get(target.name)
        if target.kind != "peer" or known is None or known.detector.status is not Status.UP:
            return True
        others_open = sum(
            1
            for other in guard.targets("peer")
            if other.klass == target.klass
            and other.name != target.name
            and other.breaker.state is not BreakerState.CLOSED
        )
        spare = len(self._peers) // 2  # of n = peers + me: (n - 1) // 2
        return others_open + 1 <= spare

    # ---- heartbeats ------------------------------------------------------------------------------------------
    def make_beat(self, peer: str) -> bytes:
        """A sealed heartbeat for this peer. Called from the pulse's thread as well."""
        known = self._peers[peer]
        now = self._clock.monotonic()
        heard_at = known.heard_at
        beat = pb.Beat(
            node=self._me.node,
            target=peer,
            incarnation=self._me.incarnation,
            sequence=next(known.sequences),
            lag_ms=int(1000 * max(0.0, now - self._tick_at - TICK_S)),
            heard_ms=-1 if heard_at is None else int(1000 * max(0.0, now - heard_at)),
            versions=self._versions,
        )
        body = beat.SerializeToString()
        sealed = pb.Sealed(body=body, macs=self._me.keys.seal_beat(body))
        data: bytes = sealed.SerializeToString()
        return data

    def receive(self, data: bytes) -> bytes:
        """A peer's heartbeat came in: note it and answer with our own. PeerRefused when it is not one."""
        beat = self._open(data, None)
        self._note(beat)
        return self.make_beat(beat.node)

    def answered(self, peer: str, data: bytes, rtt_s: float) -> None:
        """A peer answered our heartbeat."""
        try:
            beat = self._open(data, peer)
        except PeerRefused:
            return  # counted; silence will tell the rest
        known = self._peers[peer]
        known.rtt_s = rtt_s
        self._observer.heartbeat_rtt(peer, rtt_s)
        self._note(beat)

    def heard(self, peer: str) -> None:
        """A batch or a piece of a transfer came from the peer."""
        known = self._peers.get(peer)
        if known is not None:
            now = self._clock.monotonic()
            known.heard_at = now
            known.detector.life(now)

    def _open(self, data: bytes, sender: str | None) -> pb.Beat:
        sealed = pb.Sealed()
        beat = pb.Beat()
        try:
            sealed.ParseFromString(data)
            beat.ParseFromString(sealed.body)
        except DecodeError:
            raise self._refuse(PeerRefused(BAD_MESSAGE, "not a heartbeat of ours")) from None
        if not self._me.keys.beat_is_ours(sealed.body, sealed.macs):
            raise self._refuse(wrong_secret(sender or beat.node))
        if beat.target != self._me.node:
            raise self._refuse(
                PeerRefused(WRONG_TARGET, f"this is {self._me.node}, not {beat.target}")
            )
        if beat.node not in self._peers or (sender is not None and beat.node != sender):
            raise self._refuse(PeerRefused(UNKNOWN_NODE, f"{beat.node} is not in the volume list"))
        if not self._roster.heard(beat.node, beat.incarnation):
            raise self._refuse(
                PeerRefused(STALE_INCARNATION, f"{beat.node}: a stale incarnation's heartbeat")
            )
        return beat

    def _refuse(self, error: PeerRefused) -> PeerRefused:
        self.refused[error.reason] = self.refused.get(error.reason, 0) + 1
        return error

    def _note(self, beat: pb.Beat) -> None:
        peer = self._peers[beat.node]
        now = self._clock.monotonic()
        if beat.incarnation != peer.incarnation:
            self._reborn(peer, beat.incarnation, now)
        elif beat.sequence <= peer.sequence:
            return  # overtaken by a later one, or replayed
        peer.sequence = beat.sequence
        peer.heard_at = now
        peer.versions = dict(beat.versions)
        before = peer.detector.status
        unheard_s = None if beat.heard_ms < 0 else beat.heard_ms / 1000
        after = peer.detector.beat(now, beat.lag_ms / 1000, unheard_s)
        if after is not before:
            self._changed(peer, before, after)
        elif after is not Status.DEAD:
            self._links.kick(peer.name)

    def _reborn(self, peer: _Peer, incarnation: int, now: float) -> None:
        """Another process answers under this name: the one before it is dead, whatever the clock says."""
        before = peer.detector.status
        if before in (Status.UP, Status.SUSPECT):
            peer.detector.status = Status.DEAD
            self._changed(peer, before, Status.DEAD)
        was_dead = peer.detector.status is Status.DEAD
        peer.detector = Detector(self._rules, now)
        if was_dead:
            peer.detector.status = Status.DEAD
        peer.incarnation = incarnation
        peer.sequence = 0

    # ---- what follows ------------------------------------------------------------------------------------------
    def _changed(self, peer: _Peer, old: Status, new: Status) -> None:
        peer.changed_at = self._clock.monotonic()
        if new is Status.DEAD:
            self._links.lost(peer.name)
        elif old in (Status.DEAD, Status.UNKNOWN):
            self._links.returned(peer.name)
        self._report(peer)
        for callback in self._callbacks:
            callback(peer.name, old, new)

    def _report(self, peer: _Peer) -> None:
        self._observer.peer_state(
            peer.name,
            peer.detector.status in (Status.UP, Status.SUSPECT),
            peer.detector.suspicion(self._clock.monotonic()),
            peer.incarnation,
        )
