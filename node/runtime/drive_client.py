"""The node's end of a drive process: starts it, keeps it running, and talks to it.

Theory of operation. Frames that are submitted within a few turns of the event loop leave in one system
call, and one read takes every answer that has come; no task is made for a call. What a caller gets is
the bare future: it never times out here (the gate's guard sees to that), and cancelling it only drops
the answer. When the socket closes, everything outstanding fails with TargetFailed, and the process is
started again after a pause that grows from DRIVE_RESPAWN_MIN_S to DRIVE_RESPAWN_MAX_S while it keeps
dying. A process that hangs is left alone: it holds its own socket end, its own catalog and slabs that
stay pinned, nothing else; a second one could not open the drive anyway.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import node
from node.errors import HoldfastError, Shed, TargetFailed
from node.limits import (
    DRIVE_MESSAGE_BYTES,
    DRIVE_QUEUE_CALLS,
    DRIVE_RESERVE_BYTES,
    DRIVE_RESERVE_FRACTION,
    DRIVE_RESPAWN_MAX_S,
    DRIVE_RESPAWN_MIN_S,
    DRIVE_UNLINK_AFTER_S,
    GATHER_TURNS,
)
from node.runtime.arena import Arena

Answered = Callable[[bytes | HoldfastError], None]

_HEAD = struct.Struct(">II")
_RECEIVE_BYTES = 256 * 1024
_FAILED_TAG = 100  # node.protocol.verbs.Failed
_VECTOR = 512  # buffers per system call, below any IOV_MAX
_SOCKET_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveSettings:
    """How drive processes of this node run."""

    relaxed: bool = False
    reserve_fraction: float = DRIVE_RESERVE_FRACTION
    reserve_bytes: int = DRIVE_RESERVE_BYTES
    unlink_after_s: float = DRIVE_UNLINK_AFTER_S


class DriveProcess:
    """The Drive port of production. Use on one event loop; `start` before the first `submit`."""

    def __init__(self, path: str, arena: Arena, settings: DriveSettings) -> None:
        self.path = path
        self.on_change: Callable[[bool], None] | None = None  # True: it runs again
        self.on_failed: Callable[[bytes], None] | None = None  # an answer that is a Failed
        self.starts = 0
        self._arena = arena
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._calls: dict[int, Answered] = {}
        self._next_call = 0
        self._out: list[bytes] = []
        self._flush_planned = False
        self._writing = False  # the socket was full: waiting for room
        self._rest = b""
        self._pause_s = DRIVE_RESPAWN_MIN_S
        self._respawn: asyncio.TimerHandle | None = None
        self._stopped = False
        self._dead: list[subprocess.Popen[bytes]] = []  # not reaped yet

    # ---- life --------------------------------------------------------------------------------------
    def start(self) -> None:
        """Starts the process; it opens the drive by itself."""
        self._loop = asyncio.get_running_loop()
        self._stopped = False
        self._spawn()

    def stop(self) -> None:
        """Closes the socket, on which the process ends by itself. Nobody waits for it."""
        self._stopped = True
        if self._respawn is not None:
            self._respawn.cancel()
            self._respawn = None
        self._lost("the node is stopping", respawn=False)

    def restart(self) -> None:
        """Ends the process by force and starts another: the way back from CONDEMNED."""
        if self._process is not None and self._socket is not None:
            self._process.send_signal(signal.SIGKILL)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        return self._socket is not None

    @property
    def outstanding(self) -> int:
        return len(self._calls)

    # ---- calls -------------------------------------------------------------------------------------
    def submit(self, frame: bytes) -> asyncio.Future[bytes]:
        """Queue a frame (16-byte drive id and encoded verb); -> the encoded reply.

        TargetFailed when the process is gone, Shed when DRIVE_QUEUE_CALLS are outstanding.
        """
        assert self._loop is not None, "not started"
        future = self._loop.create_future()
        self.send(frame, partial(_settle, future))
        return future

    def send(self, frame: bytes, answered: Answered) -> None:
        """Queue a frame; `answered` gets what the future of `submit` would."""
        loop = self._loop
        assert loop is not None, "not started"
        if self._socket is None:
            answered(TargetFailed(f"the process of drive {self.path} is not running"))
            return
        if len(self._calls) >= DRIVE_QUEUE_CALLS:
            answered(Shed(f"drive {self.path} has too many calls outstanding"))
            return
        call = self._next_call = (self._next_call + 1) & 0xFFFFFFFF
        self._calls[call] = answered
        self._out.append(_HEAD.pack(len(frame) + 4, call))
        self._out.append(frame)
        if not self._flush_planned and not self._writing:
            self._flush_planned = True
            loop.call_soon(self._gather, GATHER_TURNS)

    def _gather(self, turns: int) -> None:
        """Stands back for some turns of the loop (node.runtime.turns), then sends what there is."""
        if turns and self._loop is not None:
            self._loop.call_soon(self._gather, turns - 1)
        else:
            self._flush()

    def _flush(self) -> None:
        self._flush_planned = False
        connection = self._socket
        while self._out and connection is not None:
            batch = self._out[:_VECTOR]
            try:
                sent = connection.sendmsg(batch)
            except BlockingIOError:
                self._await_room(connection)
                return
            except OSError as error:
                self._lost(f"drive process: {error.strerror}")
                return
            done = 0
            while done < len(batch) and sent >= len(batch[done]):
                sent -= len(batch[done])
                done += 1
            del self._out[:done]
            if sent:
                self._out[0] = self._out[0][sent:]
        if self._writing and connection is not None and self._loop is not None:
            self._writing = False
            self._loop.remove_writer(connection.fileno())

    def _await_room(self, connection: socket.socket) -> None:
        if not self._writing and self._loop is not None:
            self._writing = True
            self._loop.add_writer(connection.fileno(), self._flush)

    def _readable(self) -> None:
        connection = self._socket
        if connection is None:
            return
        try:
            received = connection.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(f"drive process: {error.strerror}")
            return
        if not received:
            self._lost("drive process ended")
            return
        self._pause_s = DRIVE_RESPAWN_MIN_S
        data = self._rest + received if self._rest else received
        at, end = 0, len(data)
        calls = self._calls
        ended: list[tuple[Answered, bytes]] = []
        while end - at >= 8:
            length, call = _HEAD.unpack_from(data, at)
            if not 6 <= length <= DRIVE_MESSAGE_BYTES:
                self.restart()
                self._lost(f"drive process: a message of {length} bytes")
                return
            if end - at < 4 + length:
                break
            # The tag behind the array's head: Failed answers concern whoever watches the drive, too.
            if data[at + 9] == _FAILED_TAG and self.on_failed is not None:
                self.on_failed(data[at + 8 : at + 4 + length])
            answered = calls.pop(call, None)
            if answered is not None:
                ended.append((answered, data[at + 8 : at + 4 + length]))
            at += 4 + length
        self._rest = data[at:]
        for answered, reply in ended:  # what they do may end or restart the process
            answered(reply)

    # ---- starting and losing it --------------------------------------------------------------------
    def _spawn(self) -> None:
        assert self._loop is not None
        self._respawn = None
        self._dead = [process for process in self._dead if process.poll() is None]
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        ours.setblocking(False)
        try:
            self._process = subprocess.Popen(
                self._arguments(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                close_fds=True,
                pass_fds=(theirs.fileno(), self._arena.descriptor),
                start_new_session=True,
                cwd="/",
                env=_environment(),
            )
        except OSError as error:
            ours.close()
            self._plan_respawn()
            print(f"drive {self.path}: {error}", file=sys.stderr, flush=True)
            return
        finally:
            theirs.close()
        self.starts += 1
        self._socket = ours
        self._loop.add_reader(ours.fileno(), self._readable)
        if self.on_change is not None:
            self.on_change(True)

    def _arguments(self, descriptor: int) -> list[str]:
        settings = self._settings
        return [
            sys.executable,
            "-m",
            "node.runtime.drive_process",
            os.path.abspath(self.path),
            f"socket={descriptor}",
            f"arena={self._arena.descriptor}",
            f"arena_bytes={self._arena.size_bytes}",
            f"relaxed={int(settings.relaxed)}",
            f"reserve_fraction={settings.reserve_fraction}",
            f"reserve_bytes={settings.reserve_bytes}",
            f"unlink_after_s={settings.unlink_after_s}",
        ]

    def _lost(self, why: str, *, respawn: bool = True) -> None:
        """The socket is closed: fail what is outstanding, start again later."""
        connection, self._socket = self._socket, None
        if connection is None:
            return
        assert self._loop is not None
        self._loop.remove_reader(connection.fileno())
        if self._writing:
            self._loop.remove_writer(connection.fileno())
        connection.close()
        self._writing = False
        self._out.clear()
        self._rest = b""
        if self._process is not None:
            self._dead.append(self._process)
            self._process = None
        calls, self._calls = self._calls, {}
        for answered in calls.values():
            answered(TargetFailed(f"{self.path}: {why}"))
        if self.on_change is not None:
            self.on_change(False)
        if respawn and not self._stopped:
            self._plan_respawn()

    def _plan_respawn(self) -> None:
        assert self._loop is not None
        self._respawn = self._loop.call_later(self._pause_s, self._spawn)
        self._pause_s = min(self._pause_s * 2, DRIVE_RESPAWN_MAX_S)


def _settle(future: asyncio.Future[bytes], answer: bytes | HoldfastError) -> None:
    if future.done():
        return
    if isinstance(answer, bytes):
        future.set_result(answer)
    else:
        future.set_exception(answer)


def _environment() -> dict[str, str]:
    """Only what Python needs: the node's secrets are none of a drive's business."""
    kept = {
        name: os.environ[name]
        for name in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "HOME")
        if name in os.environ
    }
    kept["PYTHONPATH"] = str(Path(node.__file__).parent.parent)
    kept["MALLOC_ARENA_MAX"] = (
        "2"  # several small threads: one heap each would cost more than it gives
    )
    return kept
