"""Calls between two peer layers over real gRPC: answers, errors, batches, and every way to lose a peer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator

import pytest

from node.errors import (
    DeadlineExceeded,
    DriveFailed,
    LockContended,
    NoSuchKey,
    Shed,
    TargetDown,
    TargetFailed,
)
from node.guard.breaker import BreakerState
from node.guard.guard import Guard
from node.peer.inbound import Handler, PeerContext
from node.rpc.errors import STALE_INCARNATION, UNKNOWN_NODE, WRONG_SECRET, WRONG_TARGET
from node.rpc.link import LinkState
from node.rpc.methods import Lane, Method
from node.runtime.grpc_wire import GrpcConnection, GrpcStream, GrpcWire
from tests.contract.wire_world import (
    CLOCK,
    RNG,
    Callee,
    caller,
    echo,
    listening,
    until,
    within,
)


async def test_a_call_brings_the_handlers_answer_whatever_kind_it_is() -> None:
    loop = asyncio.get_running_loop()

    def soon(_context: PeerContext, payload: bytes) -> asyncio.Future[bytes]:
        future: asyncio.Future[bytes] = loop.create_future()
        loop.call_soon(future.set_result, b"soon " + payload)
        return future

    async def later(_context: PeerContext, payload: bytes) -> bytes:
        await asyncio.sleep(0)
        return b"later " + payload

    handlers: dict[Method, Handler] = {Method.VERBS: echo, Method.LOCK: soon, Method.INFO: later}
    async with listening(Callee(handlers=handlers)) as callee, caller(callee.name) as peers:
        assert await peers.call(callee.name, Method.VERBS, b"x", deadline=within(5)) == b"x"
        assert await peers.call(callee.name, Method.VERBS, b"", deadline=within(5)) == b""
        assert await peers.call(callee.name, Method.LOCK, b"x", deadline=within(5)) == b"soon x"
        assert await peers.call(callee.name, Method.INFO, b"x", deadline=within(5)) == b"later x"


async def test_the_context_says_who_asks_and_how_long_it_will_wait() -> None:
    seen: list[PeerContext] = []

    def note(context: PeerContext, _payload: bytes) -> bytes:
        seen.append(context)
        return b""

    ids = iter(["request-1"])
    async with (
        listening(Callee(handlers={Method.COMMIT: note})) as callee,
        caller(callee.name) as peers,
    ):
        peers._request_id = lambda: next(ids)
        deadline = within(2)
        await peers.call(callee.name, Method.COMMIT, b"", deadline=deadline)
    (context,) = seen
    assert (context.peer, context.incarnation, context.request_id) == ("caller:1", 7, "request-1")
    assert CLOCK.monotonic() < context.deadline < deadline


@pytest.mark.parametrize(
    ("raised", "cls", "text"),
    [
        (NoSuchKey(), NoSuchKey, "key does not exist"),
        (LockContended("taken"), LockContended, "taken"),
        (Shed("full"), Shed, "full"),
        (TargetDown("a third one"), TargetDown, "a third one"),
        (DriveFailed("no_space", "disk1"), DriveFailed, "no_space: disk1"),
        (ValueError("secret detail"), TargetFailed, "internal error (ValueError)"),
        (NoSuchKey("odd \udcff path"), NoSuchKey, "odd \\udcff path"),
    ],
)
async def test_a_handlers_error_keeps_its_class_and_breaks_nothing(
    raised: Exception, cls: type[Exception], text: str
) -> None:
    def fail(_context: PeerContext, _payload: bytes) -> bytes:
        raise raised

    async with (
        listening(Callee(handlers={Method.VERBS: fail, Method.FINISH: echo})) as callee,
        caller(callee.name) as peers,
    ):
        for _ in range(5):  # more than a breaker would bear if it were the peer's sickness
            with pytest.raises(cls) as caught:
                await peers.call(callee.name, Method.VERBS, b"", deadline=within(5))
            assert type(caught.value) is cls and text in str(caught.value)
            assert "secret" not in str(caught.value)
        assert await peers.call(callee.name, Method.FINISH, b"y", deadline=within(5)) == b"y"


async def test_an_unknown_method_is_an_answer() -> None:
    async with listening(Callee()) as callee, caller(callee.name) as peers:
        with pytest.raises(TargetFailed, match="no handler"):
            await peers.call(callee.name, Method.ADMIN, b"", deadline=within(5))
        assert peers.linked(callee.name)


class CountingWire(GrpcWire):
    def __init__(self) -> None:
        self.frames = 0

    def dial(self, peer: str, lane: str) -> GrpcConnection:
        wire = self

        class Stream(GrpcStream):
            async def send(self, message: bytes) -> None:
                wire.frames += 1
                await super().send(message)

        class Connection(GrpcConnection):
            def open(self, kind: str) -> GrpcStream:
                return Stream(super().open(kind)._call)

        return Connection(peer, lane)


async def test_calls_that_wait_travel_together() -> None:
    wire = CountingWire()
    async with (
        listening(Callee(handlers={Method.VERBS: echo})) as callee,
        caller(callee.name, wire=wire) as peers,
    ):
        wire.frames = 0
        calls = [
            peers.call(callee.name, Method.VERBS, b"%d" % n, deadline=within(10))
            for n in range(500)
        ]
        assert await asyncio.gather(*calls) == [b"%d" % n for n in range(500)]
        assert wire.frames <= 3


async def test_a_tell_arrives_and_wants_nothing_back() -> None:
    told: list[bytes] = []

    def hear(_context: PeerContext, payload: bytes) -> bytes:
        told.append(payload)
        return b"nobody hears this"

    async with (
        listening(Callee(handlers={Method.FINISH: hear})) as callee,
        caller(callee.name) as peers,
    ):
        peers.tell(callee.name, Method.FINISH, b"news")
        await until(lambda: told == [b"news"])


async def test_large_payloads_pass_both_ways() -> None:
    big = RNG.bytes(3 << 20)
    async with (
        listening(Callee(handlers={Method.PREPARE: echo})) as callee,
        caller(callee.name) as peers,
    ):
        calls = [
            peers.call(callee.name, Method.PREPARE, big, deadline=within(20)) for _ in range(3)
        ]
        assert await asyncio.gather(*calls) == [big] * 3


# ---- losing a peer ---------------------------------------------------------------------------------------
async def test_a_handler_that_never_answers_costs_its_bound_and_not_the_link() -> None:
    async def never(_context: PeerContext, _payload: bytes) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    async with (
        listening(Callee(handlers={Method.LOCK: never, Method.VERBS: echo})) as callee,
        caller(callee.name) as peers,
    ):
        began = CLOCK.monotonic()
        with pytest.raises(DeadlineExceeded):
            await peers.call(callee.name, Method.LOCK, b"", deadline=within(0.2))
        assert CLOCK.monotonic() - began < 10
        assert await peers.call(callee.name, Method.VERBS, b"x", deadline=within(5)) == b"x"


@contextlib.asynccontextmanager
async def silent_listener() -> AsyncIterator[str]:
    """Accepts connections and says nothing, for ever."""
    kept: list[asyncio.StreamWriter] = []

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in kept:
            writer.close()
        server.close()


async def test_a_peer_that_accepts_and_never_answers_is_bounded_then_refused() -> None:
    guard = Guard(CLOCK, RNG)
    async with silent_listener() as name, caller(name, linked=False, guard=guard) as peers:
        target = guard.target("peer", name, Lane.LOCK)
        async with asyncio.timeout(60):
            while target.breaker.state is not BreakerState.OPEN:
                with pytest.raises((DeadlineExceeded, TargetFailed)):
                    await peers.call(name, Method.LOCK, b"", deadline=within(5))
        with pytest.raises(TargetDown):
            await peers.call(name, Method.LOCK, b"", deadline=within(5))


async def test_names_that_do_not_resolve_and_ports_that_refuse_only_fail_calls() -> None:
    names = ("no-such-host.invalid:1", "127.0.0.1:1")
    async with caller(*names, linked=False) as peers:
        for name in names:
            with pytest.raises((TargetFailed, DeadlineExceeded, TargetDown)):
                await peers.call(name, Method.VERBS, b"", deadline=within(4))
            await until(lambda name=name: name in peers.troubles())  # type: ignore[misc]
            assert peers.troubles()[name].reason == "unreachable"


PEER_PROCESS = """
import asyncio, sys
from node.rpc.methods import Method
from tests.contract.wire_world import Callee, echo

async def never(_context, _payload):
    await asyncio.Event().wait()

async def main():
    callee = Callee(handlers={Method.VERBS: echo, Method.COMMIT: never})
    await callee.start(int(sys.argv[1]))
    print(callee.port, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def peer_process(port: int = 0) -> tuple[asyncio.subprocess.Process, int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PEER_PROCESS, str(port), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    return process, int(await asyncio.wait_for(process.stdout.readline(), 30))


async def test_a_killed_peer_fails_what_waits_at_once_and_is_used_again_when_it_returns() -> None:
    process, port = await peer_process()
    name = f"127.0.0.1:{port}"
    try:
        async with caller(name) as peers:
            waiting = peers.call(name, Method.COMMIT, b"", deadline=within(30))
            assert await peers.call(name, Method.VERBS, b"x", deadline=within(5)) == b"x"
            began = CLOCK.monotonic()
            os.kill(process.pid, signal.SIGKILL)
            with pytest.raises(TargetFailed):
                await waiting
            assert CLOCK.monotonic() - began < 2.5, "before the bound of the call"
            await process.wait()
            process, _ = await peer_process(port)
            await until(lambda: peers.linked(name))
            assert await peers.call(name, Method.VERBS, b"y", deadline=within(5)) == b"y"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_frozen_peer_is_bounded_and_works_on_when_it_thaws() -> None:
    process, port = await peer_process()
    name = f"127.0.0.1:{port}"
    try:
        async with caller(name) as peers:
            os.kill(process.pid, signal.SIGSTOP)
            with pytest.raises((DeadlineExceeded, TargetFailed)):
                await peers.call(name, Method.VERBS, b"", deadline=within(0.5))
            os.kill(process.pid, signal.SIGCONT)
            await until(lambda: peers.linked(name))
            assert await peers.call(name, Method.VERBS, b"y", deadline=within(10)) == b"y"
    finally:
        process.kill()
        await process.wait()


async def test_a_dead_verdict_fails_what_waits_and_a_return_is_used_at_once() -> None:
    async def never(_context: PeerContext, _payload: bytes) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    guard = Guard(CLOCK, RNG)
    async with (
        listening(Callee(handlers={Method.COMMIT: never, Method.VERBS: echo})) as callee,
        caller(callee.name, guard=guard) as peers,
    ):
        waiting = [
            peers.call(callee.name, Method.COMMIT, b"", deadline=within(30)) for _ in range(4)
        ]
        peers.lost(callee.name)
        for each in waiting:
            with pytest.raises(TargetDown):
                await each
        with pytest.raises(TargetDown):
            await peers.call(callee.name, Method.VERBS, b"", deadline=within(5))
        # The links stand again soon (the process is alive), but only membership lifts its verdict.
        await until(lambda: peers.linked(callee.name))
        with pytest.raises(TargetDown):
            await peers.call(callee.name, Method.VERBS, b"", deadline=within(5))
        peers.returned(callee.name)
        assert await peers.call(callee.name, Method.VERBS, b"x", deadline=within(5)) == b"x"
        fast = guard.target("peer", callee.name, Lane.FAST)
        assert fast.breaker.state is BreakerState.CLOSED


# ---- who may call -------------------------------------------------------------------------------------------
async def test_a_wrong_secret_is_a_clear_error_on_both_sides_and_counted() -> None:
    async with (
        listening(Callee(secret=b"another cluster's")) as callee,
        caller(callee.name, linked=False) as peers,
    ):
        await until(lambda: callee.name in peers.troubles())
        trouble = peers.troubles()[callee.name]
        assert trouble.reason == WRONG_SECRET
        assert trouble.message == (
            f"peer {callee.name} does not share this cluster's secret (HOLDFAST_CLUSTER_SECRET)"
        )
        await until(lambda: peers.troubles()[callee.name].count >= 8)
        assert callee.inbound is not None
        assert callee.inbound.refused[WRONG_SECRET] >= 4
        with pytest.raises((TargetFailed, TargetDown)):
            await peers.call(callee.name, Method.VERBS, b"", deadline=within(5))


async def test_callers_that_are_not_in_the_volume_list_are_refused() -> None:
    async with (
        listening(Callee(callers=("somebody:1",))) as callee,
        caller(callee.name, linked=False) as peers,
    ):
        await until(lambda: callee.name in peers.troubles())
        assert peers.troubles()[callee.name].reason == UNKNOWN_NODE


async def test_a_callee_that_is_somebody_else_is_refused() -> None:
    async with listening(Callee()) as callee:
        alias = f"localhost:{callee.port}"
        async with caller(alias, linked=False) as peers:
            await until(lambda: alias in peers.troubles())
            assert peers.troubles()[alias].reason == WRONG_TARGET


async def test_a_stale_incarnation_is_refused_and_cut_off() -> None:
    async with (
        listening(Callee(handlers={Method.VERBS: echo})) as callee,
        caller(callee.name, incarnation=5) as old,
    ):
        assert await old.call(callee.name, Method.VERBS, b"x", deadline=within(5)) == b"x"
        async with caller(callee.name, incarnation=6) as new:
            assert await new.call(callee.name, Method.VERBS, b"y", deadline=within(5)) == b"y"
            await until(lambda: not old.linked(callee.name))
            with pytest.raises((TargetFailed, TargetDown)):
                await old.call(callee.name, Method.VERBS, b"x", deadline=within(5))
            await until(
                lambda: (
                    callee.name in old.troubles()
                    and old.troubles()[callee.name].reason == STALE_INCARNATION
                )
            )
            assert await new.call(callee.name, Method.VERBS, b"y", deadline=within(5)) == b"y"


async def test_a_stopped_client_refuses_calls() -> None:
    async with listening(Callee(handlers={Method.VERBS: echo})) as callee:
        async with caller(callee.name) as peers:
            assert await peers.call(callee.name, Method.VERBS, b"x", deadline=within(5)) == b"x"
        assert all(link.state is LinkState.STOPPED for link in peers._links.values())
        with pytest.raises(TargetFailed):
            await peers.call(callee.name, Method.VERBS, b"", deadline=within(5))


def test_a_server_that_stops_tells_its_peers_and_leaves_nothing_to_the_end_of_the_loop(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The end of a loop cancels what is left; grpc's tasks print a traceback then."""

    async def story() -> None:
        callee = Callee(handlers={Method.VERBS: echo})
        await callee.start()
        async with caller(callee.name) as peers:
            assert await peers.call(callee.name, Method.VERBS, b"x", deadline=within(5)) == b"x"
            assert callee.server is not None
            began = CLOCK.monotonic()
            await callee.server.stop(5.0)
            assert CLOCK.monotonic() - began < 4.0, "a link is no call to wait for"
            await until(lambda: not peers.linked(callee.name))
            left = [repr(task.get_coro()) for task in asyncio.all_tasks()]
            assert not any("_schedule_rpc_coro" in name for name in left), left

    asyncio.run(story())
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
