"""The loop of a drive process: one read takes all frames that wait, one batch takes all they change.

    frame  := length (u32, big endian, of what follows) call (u32) drive id (16 bytes) verb
    answer := length (u32, big endian, of what follows) call (u32) reply

A frame is addressed to a drive id, so that a message meant for the drive that was here before is
refused. The zero id is good enough for FormatRead, FormatWrite and Check: whoever asks does not know
the id yet. The process ends when its socket does.
"""

from __future__ import annotations

import mmap
import socket
import struct
import threading
from collections.abc import Sequence

import msgspec

from node import limits
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from node.runtime.drive import layout
from node.runtime.drive.faults import DriveError
from node.runtime.drive.store import DriveOptions, Outlet, Store
from node.runtime.drive.syncer import Encoded

HEAD = struct.Struct(">II")
DRIVE_ID_BYTES = 16
NO_DRIVE = bytes(DRIVE_ID_BYTES)
_RECEIVE_BYTES = 256 * 1024
_CLOSE_S = 2.0


class Server:
    """Serves one drive over one socket."""

    def __init__(self, options: DriveOptions, connection: socket.socket, arena: mmap.mmap) -> None:
        self._options = options
        self._socket = connection
        self._arena = arena
        self._sending = threading.Lock()
        self._outlet = Outlet(self._send, self._condemn)
        self._store: Store | None = None
        self._closed: DriveError = DriveError(DriveFault.UNFORMATTED)  # why there is no store
        self._condemned: DriveError | None = None
        self._now: list[Encoded] = []
        self._waiting: list[Encoded] = []

    def run(self) -> None:
        """Until the other end is closed."""
        self._try_open()
        rest = b""
        while True:
            try:
                received = self._socket.recv(_RECEIVE_BYTES)
            except ConnectionError:
                break
            if not received:
                break
            rest = self._take(rest + received if rest else received)
        if self._store is not None and self._condemned is None:
            self._store.close(_CLOSE_S)

    # ---- frames ------------------------------------------------------------------------------------
    def _take(self, data: bytes) -> bytes:
        """Handles all whole frames in `data`; -> what is left over."""
        view = memoryview(data)
        at, end = 0, len(data)
        while end - at >= 8:
            length, call = HEAD.unpack_from(data, at)
            if not 4 + DRIVE_ID_BYTES <= length <= limits.DRIVE_MESSAGE_BYTES:
                raise SystemExit(f"a frame of {length} bytes")
            if end - at < 4 + length:
                break
            verb_at = at + 8 + DRIVE_ID_BYTES
            self._one(call, data[at + 8 : verb_at], view[verb_at : at + 4 + length])
            at += 4 + length
        self._end_batch()
        return data[at:]

    def _one(self, call: int, drive_id: bytes, payload: memoryview) -> None:
        try:
            verb = verbs.decode_verb(payload)
            if self._condemned is not None:
                raise DriveError(DriveFault.CONDEMNED, self._condemned.detail)
            store = self._store
            if store is not None and drive_id == store.drive_id:
                answer = store.small(verb)
                if answer is not None:
                    reply, waits = answer
                    (self._waiting if waits else self._now).append((call, verbs.encode(reply)))
                    return
            if store is None and isinstance(verb, verbs.Check | verbs.FormatRead):
                self._try_open()
                store = self._store
            if store is None or isinstance(
                verb, verbs.FormatRead | verbs.FormatWrite | verbs.Retire
            ):
                self._now.append((call, verbs.encode(self._without_store(drive_id, verb))))
                return
            if drive_id != store.drive_id and not (
                drive_id == NO_DRIVE and isinstance(verb, verbs.Check)
            ):
                raise DriveError(
                    DriveFault.WRONG_DRIVE, f"this is {store.drive_id.hex()}, not {drive_id.hex()}"
                )
            store.large(call, verb)
        except DriveError as error:
            if error.condemns:
                self._condemn(error)
            self._now.append((call, verbs.encode(error.reply())))
        except msgspec.MsgspecError as error:
            failed = verbs.Failed(DriveFault.BAD_REQUEST, str(error))
            self._now.append((call, verbs.encode(failed)))

    def _end_batch(self) -> None:
        now, self._now = self._now, []
        waiting, self._waiting = self._waiting, []
        if self._store is not None and self._condemned is None:
            try:
                self._store.end_batch(waiting, now)
            except DriveError as error:
                self._condemn(error)
        if self._condemned is not None:
            # Nothing of a batch that may not have been written is acknowledged.
            failed = verbs.encode(verbs.Failed(DriveFault.CONDEMNED, self._condemned.detail))
            now = [(call, failed) for call, _ in (*now, *waiting)]
        self._send(now)

    def _send(self, answers: Sequence[Encoded]) -> None:
        if not answers:
            return
        parts: list[bytes] = []
        for call, reply in answers:
            parts.append(HEAD.pack(len(reply) + 4, call))
            parts.append(reply)
        data = b"".join(parts)
        try:
            with self._sending:
                self._socket.sendall(data)
        except OSError:
            return  # the node is gone; the serving thread sees that, too

    def _condemn(self, error: DriveError) -> None:
        if self._condemned is None:
            self._condemned = error

    # ---- before there is a store -------------------------------------------------------------------
    def _try_open(self, *, fresh: bool = False) -> None:
        """Opens the drive if it is formatted; else notes why not. Tried again by the verbs below."""
        try:
            data = layout.read_format(self._options.path)
            if not data:
                raise DriveError(DriveFault.UNFORMATTED)
            drive_id = layout.drive_id_of(data)
            layout.check_version(data)
            self._store = Store(
                self._options,
                drive_id,
                self._arena,
                self._outlet,
                new_cluster=not layout.is_formed(data),
                fresh=fresh or not layout.is_formed(data),
            )
        except DriveError as error:
            self._closed = error

    def _without_store(self, drive_id: bytes, verb: object) -> verbs.Reply:
        match verb:
            case verbs.FormatRead():
                return verbs.Blob(layout.read_format(self._options.path))
            case verbs.FormatWrite():
                return self._format(drive_id, verb.data)
            case verbs.Retire():
                if self._store is not None or self._closed.fault is not DriveFault.CORRUPT:
                    why = "it can be opened" if self._store is not None else str(self._closed)
                    raise DriveError(DriveFault.BAD_REQUEST, f"not a damaged drive: {why}")
                layout.retire(self._options.path)
                self._closed = DriveError(DriveFault.UNFORMATTED)
                return verbs.Done()
            case verbs.Check() if drive_id == NO_DRIVE and self._unformatted():
                # Nothing is written where a cluster has not been formed.
                space = layout.Space(self._options.path, 0.0, 0, 0)
                return verbs.Usage(*space.refresh(), 0, 0, 0, 0.0)
        raise self._closed

    def _unformatted(self) -> bool:
        return self._closed.fault is DriveFault.UNFORMATTED

    def _format(self, drive_id: bytes, data: bytes) -> verbs.Reply:
        path = self._options.path
        wanted = layout.drive_id_of(data)
        if drive_id not in (NO_DRIVE, wanted):
            raise DriveError(DriveFault.WRONG_DRIVE, "format.json is for another drive id")
        there = layout.read_format(path)
        if there and layout.drive_id_of(there) != wanted:
            raise DriveError(
                DriveFault.WRONG_DRIVE, f"this is {layout.drive_id_of(there).hex()} already"
            )
        if there != data:
            layout.write_format(path, data)
        if self._store is None:
            self._try_open(fresh=not there)
        if self._store is None:
            raise self._closed
        return verbs.Done()
