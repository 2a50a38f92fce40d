"""The Wire over grpc.aio: the only module that imports grpc.

Raw bytes both ways (identity serialisers); what they mean is node.rpc's business. Every stream kind is
one bidirectional method of `holdfast.v1.Peer`. Each lane to each peer has a connection of its own, and
a broken connection is replaced by a fresh channel, never waited for: a fresh channel resolves the name
again and has no backoff of its own to sit out.

The keepalive values are measured, not guessed: gRPC's defaults never notice a peer without power, its
ping timeout of 60 s hides a frozen one, and a server with default settings answers frequent pings with
GOAWAY. On the bulk lane only missing data counts (keepalive is reset by any arriving byte), and the
ping timeout stays long: a late ping must not cut a busy stream.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

# Its INFO lines (a GOAWAY for each peer that goes) would drown our own log; read once, at import.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc
from grpc import aio

from node import limits
from node.errors import HoldfastError, TargetFailed

SERVICE = "/holdfast.v1.Peer/"
BEAT = SERVICE + "beat"
STREAM_KINDS = ("frames", "upload", "download")

# grpc is partly untyped; these are the functions of it that are.
_unary_handler: Callable[[Any], Any] = grpc.unary_unary_rpc_method_handler
_streams_handler: Callable[[Any], Any] = grpc.stream_stream_rpc_method_handler
_blocking_channel: Callable[..., Any] = grpc.insecure_channel

STOP_S = 1.0
RENEW_AFTER_S = 1.0  # a heartbeat channel that fails is given this long to connect

Options = list[tuple[str, int]]

_MESSAGE_OPTIONS: Options = [
    ("grpc.max_send_message_length", limits.PEER_MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", limits.PEER_MAX_MESSAGE_BYTES),
]

_CLIENT_OPTIONS: Options = [
    *_MESSAGE_OPTIONS,
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # else channels to one target share a connection
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),  # only one layer retries, and it is not this one
]

_FAST_KEEPALIVE: Options = [
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
]

_BULK_KEEPALIVE: Options = [
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.ping_timeout_ms", 60_000),
]

_SERVER_OPTIONS: Options = [
    *_MESSAGE_OPTIONS,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
    # The server's own pings find callers without power; data resets them, see above.
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.max_pings_without_data", 0),
]


def client_options(lane: str) -> Options:
    """Channel arguments of a lane."""
    return _CLIENT_OPTIONS + (_BULK_KEEPALIVE if lane == "bulk" else _FAST_KEEPALIVE)


def _broken(error: BaseException) -> TargetFailed:
    if isinstance(error, grpc.RpcError) and isinstance(error, aio.AioRpcError):
        return TargetFailed(f"{error.code().name}: {error.details()}")
    return TargetFailed(str(error) or type(error).__name__)


def _cancelled_by_us(task: asyncio.Task[object] | None) -> bool:
    return task is not None and task.cancelling() > 0


# ---- the dialling side ------------------------------------------------------------------------------
class GrpcStream:
    """node.runtime.ports.WireStream of a call that this side opened."""

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        self._call = call

    async def send(self, message: bytes) -> None:
        try:
            await self._call.write(message)
        except asyncio.CancelledError:
            if _cancelled_by_us(asyncio.current_task()):
                raise
            raise TargetFailed("stream aborted") from None
        except (grpc.RpcError, asyncio.InvalidStateError, aio.UsageError) as error:
            raise _broken(error) from error

    async def receive(self) -> bytes | None:
        try:
            message = await self._call.read()
            if message is not aio.EOF:
                return bytes(message)
            code = await self._call.code()
            if code is grpc.StatusCode.OK:
                return None
            raise TargetFailed(f"{code.name}: {await self._call.details()}")
        except asyncio.CancelledError:
            if _cancelled_by_us(asyncio.current_task()):
                raise
            raise TargetFailed("stream aborted") from None
        except (grpc.RpcError, asyncio.InvalidStateError, aio.UsageError) as error:
            raise _broken(error) from error

    async def end(self) -> None:
        try:
            await self._call.done_writing()
        except asyncio.CancelledError:
            if _cancelled_by_us(asyncio.current_task()):
                raise
            raise TargetFailed("stream aborted") from None
        except (grpc.RpcError, asyncio.InvalidStateError, aio.UsageError) as error:
            raise _broken(error) from error

    def abort(self) -> None:
        self._call.cancel()


class GrpcConnection:
    """node.runtime.ports.WireConnection: one channel."""

    _closing: ClassVar[set[asyncio.Task[None]]] = set()  # a task that nobody holds may be collected

    def __init__(self, peer: str, lane: str) -> None:
        self._channel = aio.insecure_channel(peer, options=client_options(lane))
        self._calls: dict[str, Any] = {}
        self._open = True

    def open(self, kind: str) -> GrpcStream:
        method = self._calls.get(kind)
        if method is None:
            method = self._calls[kind] = self._channel.stream_stream(SERVICE + kind)
        return GrpcStream(method())

    def close(self) -> None:
        if self._open:
            self._open = False
            task = asyncio.get_running_loop().create_task(self._channel.close(None))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


class GrpcWire:
    """node.runtime.ports.Wire."""

    def dial(self, peer: str, lane: str) -> GrpcConnection:
        return GrpcConnection(peer, lane)


# ---- the listening side -----------------------------------------------------------------------------
class GrpcServerStream:
    """node.runtime.ports.WireStream of a call that the other side opened."""

    __slots__ = ("_aborted", "_context", "_task")

    def __init__(self, context: Any) -> None:
        self._context = context
        self._task = asyncio.current_task()
        self._aborted = False

    @property
    def aborted(self) -> bool:
        return self._aborted

    async def send(self, message: bytes) -> None:
        try:
            await self._context.write(message)
        except (
            grpc.RpcError,
            asyncio.InvalidStateError,
            aio.UsageError,
            aio.InternalError,
        ) as error:
            raise _broken(error) from error

    async def receive(self) -> bytes | None:
        try:
            message = await self._context.read()
        except (
            grpc.RpcError,
            asyncio.InvalidStateError,
            aio.UsageError,
            aio.InternalError,
        ) as error:
            raise _broken(error) from error
        return None if message is aio.EOF else bytes(message)

    async def end(self) -> None:
        """The stream ends when its handler returns."""

    def abort(self) -> None:
        self._aborted = True
        if self._task is not None and not self._task.done():
            self._task.cancel()


Accept = Callable[[str, GrpcServerStream], Awaitable[None]]


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, accept: Accept, beat: Callable[[bytes], bytes]) -> None:
        self.streams: set[GrpcServerStream] = set()  # those under way

        async def on_beat(request: bytes, context: Any) -> bytes:
            try:
                return beat(request)
            except HoldfastError as error:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
                raise AssertionError("abort returns never") from error

        self._methods = {BEAT: _unary_handler(on_beat)}
        for kind in STREAM_KINDS:
            self._methods[SERVICE + kind] = _streams_handler(
                _stream_handler(kind, accept, self.streams)
            )

    def service(self, handler_call_details: Any) -> Any:
        return self._methods.get(handler_call_details.method)


def _stream_handler(
    kind: str, accept: Accept, streams: set[GrpcServerStream]
) -> Callable[[Any, Any], Awaitable[None]]:
    async def handle(_requests: Any, context: Any) -> None:
        stream = GrpcServerStream(context)
        streams.add(stream)
        try:
            await accept(kind, stream)
        except HoldfastError as error:
            await context.abort(grpc.StatusCode.ABORTED, f"{type(error).__name__}: {error}")
        except asyncio.CancelledError:
            if not stream.aborted:
                raise
            await context.abort(grpc.StatusCode.ABORTED, "closed by the other side")
        finally:
            streams.discard(stream)

    return handle


class GrpcServer:
    """Listens for peers. `accept(kind, stream)` runs for each stream, `beat(bytes)` answers heartbeats."""

    def __init__(self, accept: Accept, beat: Callable[[bytes], bytes]) -> None:
        self._handlers = _Handlers(accept, beat)
        self._server: Any = None

    async def start(self, host: str, port: int) -> int:
        """The bound port (for port 0); RuntimeError when the address cannot be had."""
        self._server = aio.server(options=_SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers((self._handlers,))
        name = f"[{host}]" if ":" in host else host
        bound = int(self._server.add_insecure_port(f"{name}:{port}"))
        await self._server.start()
        return bound

    async def stop(self, grace_s: float = 0.0) -> None:
        """Links of peers stand for ever, so they are told at once; other calls get `grace_s`.

        Waits for grpc's own tasks as well: the end of the loop would cancel them, and each would
        print a traceback.
        """
        if self._server is None:
            return
        stopping = asyncio.ensure_future(self._server.stop(grace_s))
        await asyncio.sleep(0)  # from here on it accepts nothing more
        for stream in list(self._handlers.streams):
            stream.abort()
        await stopping
        if calls := [task for task in asyncio.all_tasks() if _is_call(task)]:
            await asyncio.wait(calls, timeout=STOP_S)


def _is_call(task: asyncio.Task[Any]) -> bool:
    """One of grpc's own tasks, around a handler."""
    return getattr(task.get_coro(), "__name__", "") == "_schedule_rpc_coro"


# ---- heartbeats -----------------------------------------------------------------------------------------
class _PulseLane:
    """One peer's channel of the pulse; used by the pulse's thread, its callbacks come from gRPC's."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.channel: Any = None
        self.opened_at = 0.0
        self.sick = False
        self._under_way = 0
        self._lock = threading.Lock()

    def enter(self, limit: int) -> bool:
        """Whether another heartbeat may be under way; the caller leaves when it ended."""
        with self._lock:
            if self._under_way >= limit:
                return False
            self._under_way += 1
            return True

    def leave(self) -> None:
        with self._lock:
            self._under_way -= 1

    def send(self, beat: bytes, bound_s: float, done: Callable[[Any], None]) -> None:
        now = time.monotonic()
        # A channel that failed may sit in a backoff or hold an old address: a fresh one does not.
        if self.channel is not None and self.sick and now - self.opened_at > RENEW_AFTER_S:
            self.close()
        if self.channel is None:
            self.channel = _blocking_channel(self.peer, options=client_options("heartbeat"))
            self.opened_at = now
            self.sick = False
        self.channel.unary_unary(BEAT).future(beat, timeout=bound_s).add_done_callback(done)

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None


class GrpcPulse:
    """node.runtime.ports.Pulse: a thread of its own with blocking gRPC, so a busy loop delays no heartbeat."""

    def __init__(self, *, bound_s: float = 1.0, max_under_way: int = 3) -> None:
        self._bound_s = bound_s
        self._max_under_way = max_under_way
        self._wake = threading.Event()
        self._stopping = False
        self._kicked: set[str] = set()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(
        self,
        peers: Sequence[str],
        interval_s: float,
        make: Callable[[str], bytes],
        answered: Callable[[str, bytes, float], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        lanes = [_PulseLane(peer) for peer in peers]
        self._thread = threading.Thread(
            target=self._run, args=(lanes, interval_s, make, answered), name="pulse", daemon=True
        )
        self._thread.start()

    def kick(self, peer: str) -> None:
        self._kicked.add(peer)
        self._wake.set()

    def stop(self) -> None:
        """The thread is woken and ends within moments."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _run(
        self,
        lanes: list[_PulseLane],
        interval_s: float,
        make: Callable[[str], bytes],
        answered: Callable[[str, bytes, float], None],
    ) -> None:
        due = time.monotonic()
        while not self._stopping:
            now = time.monotonic()
            everyone = now >= due
            if everyone:
                due = max(due + interval_s, now + interval_s / 2)
            for lane in lanes:
                kicked = lane.peer in self._kicked
                self._kicked.discard(lane.peer)
                if (everyone or kicked) and lane.enter(self._max_under_way):
                    self._beat(lane, make, answered)
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
        for lane in lanes:
            lane.close()

    def _beat(
        self,
        lane: _PulseLane,
        make: Callable[[str], bytes],
        answered: Callable[[str, bytes, float], None],
    ) -> None:
        sent_at = time.monotonic()

        def done(future: Any) -> None:
            lane.leave()
            try:
                answer = future.result()
            except (grpc.RpcError, grpc.FutureCancelledError):
                lane.sick = True
                return
            lane.sick = False
            loop = self._loop
            if loop is not None and not self._stopping and not loop.is_closed():
                try:
                    loop.call_soon_threadsafe(
                        answered, lane.peer, answer, time.monotonic() - sent_at
                    )
                except RuntimeError:
                    self._stopping = True  # the loop was closed in this very moment

        lane.send(make(lane.peer), self._bound_s, done)
