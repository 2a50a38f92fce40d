"""A link's life over a wire in the hand, in virtual time: dialling, pausing, hurrying, overflowing."""

from __future__ import annotations

import asyncio

import pytest

from node import limits
from node.errors import HoldfastError, Shed, TargetFailed
from node.rpc.auth import ClusterKeys, Roster
from node.rpc.link import Identity, Link, LinkState
from node.rpc.methods import Lane, Method
from tests.unit.guard_world import LoopClock, StillRng
from tests.unit.locks_world import run_virtual

CLOCK = LoopClock()


class HandStream:
    """Takes what is sent, answers nothing; breaks when told, or when aborted."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def send(self, message: bytes) -> None:
        if self.broken.done():
            raise TargetFailed("broken")
        self.sent.append(message)

    async def receive(self) -> bytes | None:
        await asyncio.shield(self.broken)
        raise TargetFailed("broken")

    async def end(self) -> None:
        pass

    def abort(self) -> None:
        if not self.broken.done():
            self.broken.set_result(None)


class HandWire:
    """Notes when it was dialled. `refuses`: connections break at once, as with a closed port."""

    def __init__(self, *, refuses: bool) -> None:
        self.refuses = refuses
        self.dialled: list[float] = []
        self.streams: list[HandStream] = []
        self.closed = 0
        self._began = CLOCK.monotonic()

    def dial(self, peer: str, lane: str) -> HandWire:
        self.dialled.append(round(CLOCK.monotonic() - self._began, 3))
        return self

    def open(self, kind: str) -> HandStream:
        stream = HandStream()
        self.streams.append(stream)
        if self.refuses:
            stream.abort()
        return stream

    def close(self) -> None:
        self.closed += 1


def make_link(wire: HandWire, lost: list[str] | None = None) -> Link:
    def on_lost(_link: Link, error: HoldfastError) -> None:
        if lost is not None:
            lost.append(str(error))

    return Link(
        "n2:9002",
        Lane.FAST,
        me=Identity(node="n1:9002", incarnation=1, keys=ClusterKeys(b"secret")),
        wire=wire,
        roster=Roster(),
        clock=CLOCK,
        rng=StillRng(),
        on_ready=lambda _link: None,
        on_lost=on_lost,
        on_life=lambda _peer: None,
    )


def test_pauses_between_attempts_grow_to_a_second() -> None:
    async def story() -> None:
        wire = HandWire(refuses=True)
        lost: list[str] = []
        link = make_link(wire, lost)
        link.start()
        await asyncio.sleep(5.0)
        gaps = [round(b - a, 3) for a, b in zip(wire.dialled, wire.dialled[1:], strict=False)]
        # StillRng takes the short end of the jitter: four fifths of 0.1, 0.2, 0.4, 0.8, 1, 1 ...
        assert gaps[:6] == [0.08, 0.16, 0.32, 0.64, 0.8, 0.8]
        assert len(lost) == len(wire.dialled) == wire.closed
        await link.stop()

    run_virtual(story())


def test_a_call_in_a_pause_fails_at_once_and_a_kick_ends_the_pause() -> None:
    async def story() -> None:
        wire = HandWire(refuses=True)
        link = make_link(wire)
        link.start()
        await asyncio.sleep(3.0)
        assert link.state is LinkState.PAUSING
        attempts = len(wire.dialled)
        began = CLOCK.monotonic()
        with pytest.raises(TargetFailed):
            await link.submit(Method.VERBS, b"", began + 5, "")
        link.kick()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(wire.dialled) == attempts + 1 and CLOCK.monotonic() == began
        await link.stop()

    run_virtual(story())


def test_an_attempt_that_gets_no_answer_is_bounded_and_what_waited_fails_with_it() -> None:
    async def story() -> None:
        wire = HandWire(refuses=False)
        lost: list[str] = []
        link = make_link(wire, lost)
        link.start()
        began = CLOCK.monotonic()
        call = link.submit(Method.VERBS, b"", began + 60, "")
        ready = link.ready()
        with pytest.raises(TargetFailed, match="no answer to the handshake"):
            await call
        assert CLOCK.monotonic() - began == pytest.approx(2.0)
        with pytest.raises(TargetFailed):
            await ready
        assert "handshake" in lost[0]
        await link.stop()

    run_virtual(story())


def test_a_return_replaces_an_attempt_that_was_begun_in_the_dark() -> None:
    async def story() -> None:
        wire = HandWire(refuses=False)
        link = make_link(wire)
        link.start()
        await asyncio.sleep(0.5)
        assert wire.dialled == [0.0]
        link.redial()
        await asyncio.sleep(0.001)
        assert wire.dialled == [0.0, 0.5]
        assert link.state is LinkState.DIALLING
        await link.stop()

    run_virtual(story())


def test_calls_that_wait_for_a_dial_outlive_its_repetition() -> None:
    """A node that has just heard its peers is ready: its first calls must not meet the redial's abort."""

    async def story() -> None:
        wire = HandWire(refuses=False)
        link = make_link(wire)
        link.start()
        await asyncio.sleep(0.5)
        call = link.submit(Method.VERBS, b"", CLOCK.monotonic() + 60, "")
        session = link.ready()
        link.redial()
        await asyncio.sleep(0.001)
        assert wire.dialled == [0.0, 0.5]
        assert not call.done()
        assert not session.done()
        await link.stop()
        with pytest.raises(TargetFailed):
            await call
        with pytest.raises(TargetFailed):
            await session

    run_virtual(story())


def test_calls_beyond_the_queue_are_shed_and_those_given_up_make_room() -> None:
    async def story() -> None:
        wire = HandWire(refuses=False)
        link = make_link(wire)
        link.start()
        deadline = CLOCK.monotonic() + 60
        calls = [
            link.submit(Method.VERBS, b"", deadline, "") for _ in range(limits.PEER_QUEUE_FRAMES)
        ]
        with pytest.raises(Shed):
            await link.submit(Method.VERBS, b"", deadline, "")
        for call in calls[:10]:
            call.cancel()
        kept = link.submit(Method.VERBS, b"", deadline, "")
        assert not kept.done()
        link.tell(Method.FINISH, b"", deadline, "")  # dropped: the peer is away
        await link.stop()
        results = await asyncio.gather(*calls, kept, return_exceptions=True)
        assert all(isinstance(each, TargetFailed | asyncio.CancelledError) for each in results)

    run_virtual(story())


def test_junk_in_place_of_a_handshake_ends_the_attempt_not_the_link() -> None:
    class Junk(HandStream):
        async def receive(self) -> bytes | None:
            return b"\xff\xff\xff\xff"

    class JunkWire(HandWire):
        def open(self, kind: str) -> HandStream:
            return Junk()

    async def story() -> None:
        wire = JunkWire(refuses=False)
        lost: list[str] = []
        link = make_link(wire, lost)
        link.start()
        await asyncio.sleep(3.0)
        assert len(wire.dialled) > 3 and len(lost) >= 3
        await link.stop()

    run_virtual(story())
