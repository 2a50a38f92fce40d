"""The detector and the membership with a clock in the hand: no loop, no threads, no network."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest

from node.cluster.detector import Detector, DetectorRules, Status
from node.cluster.membership import TICK_S, Membership
from node.guard.breaker import BreakerState
from node.guard.guard import Guard
from node.rpc.auth import ClusterKeys, Roster
from node.rpc.errors import (
    BAD_MESSAGE,
    STALE_INCARNATION,
    UNKNOWN_NODE,
    WRONG_SECRET,
    WRONG_TARGET,
    PeerRefused,
)
from node.rpc.link import Identity
from node.rpc.wire.holdfast import peer_pb2 as pb
from tests.unit.guard_world import Notes, StillRng

RULES = DetectorRules()


# ---- the detector -------------------------------------------------------------------------------------------
def beating(until_s: float, gaps: Callable[[], float] = lambda: 0.5) -> tuple[Detector, float]:
    detector = Detector(RULES, 0.0)
    now = 0.0
    while now < until_s:
        now += gaps()
        detector.beat(now, 0.0, 0.0)
    return detector, now


def silence(detector: Detector, since: float) -> dict[Status, float]:
    """When each status began, in seconds of silence, judged every 100 ms."""
    began: dict[Status, float] = {}
    for tick in range(60):
        status = detector.verdict(since + tick * TICK_S)
        began.setdefault(status, round(tick * TICK_S, 3))
    return began


def test_silence_is_suspect_within_two_seconds_and_death_within_three() -> None:
    detector, last = beating(30.0)
    assert silence(detector, last) == {Status.UP: 0.0, Status.SUSPECT: 1.5, Status.DEAD: 2.5}


def test_ragged_heartbeats_buy_patience_but_the_promise_holds() -> None:
    rng = random.Random(1)
    detector, last = beating(120.0, lambda: rng.choice((0.1, 0.2, 1.6)))
    began = silence(detector, last)
    assert 1.5 < began[Status.SUSPECT] <= 2.0
    assert 2.5 < began[Status.DEAD] <= 3.0


@pytest.mark.parametrize("seed", range(5))
def test_a_starved_machine_gives_no_false_verdict(seed: int) -> None:
    rng = random.Random(seed)
    detector = Detector(RULES, 0.0)
    now = next_beat = 0.0
    for _ in range(36_000):  # an hour of ticks
        now += TICK_S
        if now >= next_beat:
            detector.beat(now, rng.uniform(0.0, 0.5), 0.3)
            next_beat = now + 0.5 + min(1.7, rng.expovariate(3.0))
        assert detector.verdict(now) is not Status.DEAD


def test_our_own_standstill_is_forgiven() -> None:
    detector, last = beating(10.0)
    back = last + 30.0
    detector.forgive(30.0, back)
    assert detector.verdict(back) is Status.UP
    assert detector.verdict(back + 2.6) is Status.DEAD, "from now on silence counts again"


def test_the_lag_of_its_loop_tells_a_starved_peer_from_a_dead_one() -> None:
    detector, now = beating(10.0)
    for lag_s, status in ((0.4, Status.UP), (1.6, Status.SUSPECT), (3.0, Status.DEAD)):
        detector.beat(now, lag_s, 0.1)
        assert detector.verdict(now) is status
    assert detector.beat(now + 0.5, 3.5, 0.1) is Status.DEAD
    assert detector.beat(now + 1.0, 0.0, 0.1) is Status.UP


def test_a_peer_that_does_not_hear_us_is_as_good_as_dead() -> None:
    detector, now = beating(10.0)
    detector.beat(now, 0.0, 2.6)
    assert detector.verdict(now) is Status.DEAD
    detector.beat(now + 1, 0.0, 0.2)
    assert detector.verdict(now + 1) is Status.UP


def test_who_has_just_begun_to_talk_is_not_offended_to_be_unheard() -> None:
    fresh = Detector(RULES, 100.0)
    assert fresh.beat(100.2, 0.0, 3600.0) is Status.UP
    thawed, now = beating(10.0)
    thawed.forgive(60.0, now + 60.0)
    thawed.beat(now + 60.1, 0.0, 60.0)
    assert thawed.verdict(now + 60.1) is Status.UP


def test_other_messages_are_signs_of_life_but_raise_nobody_from_the_dead() -> None:
    detector, now = beating(10.0)
    for _ in range(10):
        now += 1.0
        detector.life(now)
        assert detector.verdict(now) is Status.UP
    assert detector.verdict(now + 3.0) is Status.DEAD
    detector.life(now + 3.1)
    assert detector.verdict(now + 3.1) is Status.DEAD
    assert detector.beat(now + 3.2, 0.0, 0.0) is Status.UP


def test_suspicion_grows_from_nothing_to_certainty() -> None:
    detector, now = beating(10.0)
    steps = [detector.suspicion(now + s) for s in (0.0, 0.5, 1.5, 2.4)]
    assert steps == sorted(steps) and steps[0] == 0.0 and steps[-1] < 1.0
    assert detector.suspicion(now + 100) == 1.0
    assert Detector(RULES, 0.0).suspicion(0.0) == 1.0


# ---- the membership -----------------------------------------------------------------------------------------
class Hand:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def now(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        raise AssertionError


class NoPulse:
    def start(
        self,
        peers: Sequence[str],
        interval_s: float,
        make: Callable[[str], bytes],
        answered: Callable[[str, bytes, float], None],
    ) -> None: ...

    def kick(self, peer: str) -> None: ...

    def stop(self) -> None: ...


class Links:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.kicks = 0

    def lost(self, peer: str) -> None:
        self.log.append(f"lost {peer}")

    def returned(self, peer: str) -> None:
        self.log.append(f"returned {peer}")

    def kick(self, peer: str) -> None:
        self.kicks += 1

    def on_life(self, heard: Callable[[str], None]) -> None:
        self.heard = heard


NAMES = ("n1:9002", "n2:9002", "n3:9002", "n4:9002")


class Node:
    def __init__(
        self, name: str, hand: Hand, incarnation: int = 1, secret: bytes = b"secret"
    ) -> None:
        self.links = Links()
        self.notes = Notes()
        self.changes: list[tuple[str, Status, Status]] = []
        self.membership = Membership(
            me=Identity(node=name, incarnation=incarnation, keys=ClusterKeys(secret)),
            peers=tuple(each for each in NAMES if each != name),
            pulse=NoPulse(),
            links=self.links,
            clock=hand,
            observer=self.notes,
            roster=Roster(),
        )
        self.membership.on_change(lambda *change: self.changes.append(change))

    def status(self, peer: str) -> Status:
        return self.membership.state(peer).status


def talk(hand: Hand, seconds: float, *nodes: Node) -> None:
    """Ticks, and every half second a heartbeat each way between all of these nodes."""
    for tick in range(round(seconds / TICK_S)):
        hand.now_s += TICK_S
        for node in nodes:
            node.membership.tick()
        if tick % 5 == 0:
            for sender in nodes:
                for receiver in nodes:
                    if sender is not receiver:
                        beat(sender, receiver)


def beat(sender: Node, receiver: Node) -> None:
    to = receiver.membership._me.node
    answer = receiver.membership.receive(sender.membership.make_beat(to))
    sender.membership.answered(to, answer, 0.001)


def pair(hand: Hand) -> tuple[Node, Node]:
    return Node(NAMES[0], hand), Node(NAMES[1], hand)


def test_nodes_that_talk_are_up_and_one_never_heard_of_is_unknown_and_not_alive() -> None:
    hand = Hand()
    a, b = pair(hand)
    assert a.membership.alive() == ()
    talk(hand, 10.0, a, b)
    assert a.membership.alive() == ("n2:9002",)
    assert a.status("n3:9002") is Status.UNKNOWN
    assert not a.membership.is_dead("n3:9002")
    assert a.changes == [("n2:9002", Status.UNKNOWN, Status.UP)]
    assert a.links.log == ["returned n2:9002"] and a.links.kicks > 10
    assert ("n2:9002", True) in a.notes.peers
    assert a.membership.state("n2:9002").since_s == pytest.approx(9.9, abs=0.3)


def test_a_dark_node_is_dead_within_three_seconds_and_back_with_its_first_heartbeat() -> None:
    hand = Hand()
    a, b = pair(hand)
    talk(hand, 10.0, a, b)
    cut = hand.now_s
    talk(hand, 3.0, a)
    assert a.changes[1:] == [
        ("n2:9002", Status.UP, Status.SUSPECT),
        ("n2:9002", Status.SUSPECT, Status.DEAD),
    ]
    assert a.membership.state("n2:9002").since_s <= hand.now_s - cut
    assert a.membership.is_dead("n2:9002") and a.membership.alive() == ()
    assert a.links.log == ["returned n2:9002", "lost n2:9002"]
    again = Node(NAMES[1], hand, incarnation=2)
    beat(again, a)
    assert a.status("n2:9002") is Status.UP
    assert a.links.log[-1] == "returned n2:9002"
    assert a.membership.state("n2:9002").incarnation == 2


def test_a_fast_restart_is_a_death_and_a_return() -> None:
    hand = Hand()
    a, b = pair(hand)
    talk(hand, 10.0, a, b)
    again = Node(NAMES[1], hand, incarnation=2)
    beat(again, a)
    assert a.changes[1:] == [
        ("n2:9002", Status.UP, Status.DEAD),
        ("n2:9002", Status.DEAD, Status.UP),
    ]
    with pytest.raises(PeerRefused) as refused:
        beat(b, a)
    assert refused.value.reason == STALE_INCARNATION


def test_versions_travel_with_heartbeats() -> None:
    hand = Hand()
    a, b = pair(hand)
    b.membership.publish("identity", 7)
    b.membership.publish("config", 2)
    talk(hand, 1.0, a, b)
    assert a.membership.state("n2:9002").versions == {"identity": 7, "config": 2}
    b.membership.publish("identity", 8)
    talk(hand, 1.0, a, b)
    assert a.membership.state("n2:9002").versions == {"identity": 8, "config": 2}


def test_our_own_frozen_loop_condemns_nobody_and_tells_its_lag() -> None:
    hand = Hand()
    a, b = pair(hand)
    talk(hand, 10.0, a, b)
    hand.now_s += 20.0  # a's loop stands still; its pulse's thread does not
    sealed = a.membership.make_beat("n2:9002")
    assert a.membership.lag_s == pytest.approx(20.0, abs=0.2)
    b.membership.tick()
    b.membership.receive(sealed)
    b.membership.tick()
    assert b.membership.is_dead("n1:9002")
    a.membership.tick()
    assert a.status("n2:9002") is Status.UP
    talk(hand, 1.0, a, b)
    assert b.status("n1:9002") is Status.UP and a.status("n2:9002") is Status.UP


def test_a_one_way_cut_is_a_death_on_both_sides() -> None:
    hand = Hand()
    a, b = pair(hand)
    talk(hand, 10.0, a, b)
    for tick in range(35):  # a's heartbeats and answers are lost; b's arrive
        hand.now_s += TICK_S
        a.membership.tick()
        b.membership.tick()
        if tick % 5 == 0:
            a.membership.receive(b.membership.make_beat("n1:9002"))
    assert b.membership.is_dead("n1:9002")
    assert a.membership.is_dead("n2:9002")
    talk(hand, 1.5, a, b)
    assert a.status("n2:9002") is Status.UP and b.status("n1:9002") is Status.UP


def test_traffic_counts_as_life() -> None:
    hand = Hand()
    a, b = pair(hand)
    talk(hand, 10.0, a, b)
    for _ in range(10):
        talk(hand, 1.0, a)
        a.links.heard("n2:9002")
    assert a.status("n2:9002") is Status.UP
    a.links.heard("somebody else")


def test_old_heartbeats_are_not_taken_for_new_ones() -> None:
    hand = Hand()
    a, b = pair(hand)
    recorded = b.membership.make_beat("n1:9002")
    a.membership.receive(recorded)
    talk(hand, 1.0, a, b)
    for _ in range(10):
        talk(hand, 0.5, a)
        a.membership.receive(recorded)
    assert a.membership.is_dead("n2:9002")


@pytest.mark.parametrize(
    ("sender", "to", "secret", "reason"),
    [
        ("n2:9002", "n1:9002", b"another", WRONG_SECRET),
        ("n2:9002", "n3:9002", b"secret", WRONG_TARGET),
        ("n5:9002", "n1:9002", b"secret", UNKNOWN_NODE),
    ],
)
def test_heartbeats_that_are_not_for_us_are_refused_and_counted(
    sender: str, to: str, secret: bytes, reason: str
) -> None:
    hand = Hand()
    a = Node(NAMES[0], hand)
    other = Node(sender, hand, secret=secret)
    with pytest.raises(PeerRefused) as refused:
        a.membership.receive(other.membership.make_beat(to))
    assert refused.value.reason == reason
    assert a.membership.refused == {reason: 1}
    assert a.membership.alive() == ()


@pytest.mark.parametrize("junk", [b"", b"\xff\xff\xff", b"\x0a\x02\xff\xff", bytes(100)])
def test_junk_is_refused(junk: bytes) -> None:
    a = Node(NAMES[0], Hand())
    with pytest.raises(PeerRefused) as refused:
        a.membership.receive(junk)
    assert refused.value.reason in (BAD_MESSAGE, WRONG_SECRET)
    a.membership.answered("n2:9002", junk, 0.001)
    assert a.membership.alive() == ()


def test_a_node_with_the_new_secret_and_one_with_the_former_hear_each_other() -> None:
    hand = Hand()
    a, b = pair(hand)
    a.membership._me = Identity(
        node=NAMES[0], incarnation=1, keys=ClusterKeys(b"new", previous=b"secret")
    )
    a.membership.receive(b.membership.make_beat("n1:9002"))
    b.membership.receive(a.membership.make_beat("n2:9002"))
    assert (a.status("n2:9002"), b.status("n1:9002")) == (Status.UP, Status.UP)


def test_after_the_rotation_the_former_secret_is_refused() -> None:
    hand = Hand()
    a, b = pair(hand)
    a.membership._me = Identity(node=NAMES[0], incarnation=1, keys=ClusterKeys(b"new"))
    for sender, receiver, name in ((a, b, "n2:9002"), (b, a, "n1:9002")):
        with pytest.raises(PeerRefused) as refused:
            receiver.membership.receive(sender.membership.make_beat(name))
        assert refused.value.reason == WRONG_SECRET


def test_a_heartbeat_may_not_try_many_secrets() -> None:
    hand = Hand()
    a, b = pair(hand)
    sealed = pb.Sealed()
    sealed.ParseFromString(b.membership.make_beat("n1:9002"))
    sealed.macs[:] = [*(bytes(32) for _ in range(5)), *sealed.macs]
    with pytest.raises(PeerRefused):
        a.membership.receive(sealed.SerializeToString())


def test_errors_open_breakers_only_as_far_as_a_quorum_can_spare() -> None:
    hand = Hand()
    nodes = [Node(name, hand) for name in NAMES]
    talk(hand, 2.0, *nodes)
    a = nodes[0]
    guard = Guard(hand, StillRng())
    guard.ask_before_opening(lambda target: a.membership.may_open(target, guard))
    targets = [guard.target("peer", name, "fast") for name in NAMES[1:]]
    for target in targets:
        for _ in range(5):
            target.breaker.failed(0, hand.now_s, 0.0)
    assert [t.breaker.state for t in targets] == [
        BreakerState.OPEN,
        BreakerState.CLOSED,
        BreakerState.CLOSED,
    ], "one of four may go, a second would cost the quorum"
    drive = guard.target("drive", "disk1", "drive")
    for _ in range(3):
        drive.breaker.failed(0, hand.now_s, 0.0)
    assert drive.breaker.state is BreakerState.OPEN
    talk(hand, 4.0, *[n for n in nodes if n is not nodes[2]])
    assert a.membership.is_dead(NAMES[2])
    targets[1].breaker.failed(0, hand.now_s, 0.0)
    assert targets[1].breaker.state is BreakerState.OPEN, "a dead peer's breaker is not held closed"
    assert math.isfinite(targets[1].breaker.reopens_in(hand.now_s))
