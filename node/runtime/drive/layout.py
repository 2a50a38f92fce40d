"""The drive's directory: format.json, the copy of identities, what is foreign in it, and the state check's file."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import msgspec

from node.limits import DRIVE_MESSAGE_BYTES, DRIVE_TIGHT_FRACTION
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from node.runtime.drive.faults import DriveError, of_os_error

FORMAT_NAME = "format.json"
FORMAT_TEMPORARY = "format.json.new"
IDENTITY_NAME = "identity"
CHECK_NAME = "check"
CATALOG, SHARDS, QUARANTINE = "catalog", "shards", "quarantine"
RETIRED = "retired"  # what lay here before the drive was made a new one; the operator deletes it
FORMAT_VERSION = 1  # node.store.format.VERSION; a drive process knows nothing of that module
_OWN_FILES = frozenset({FORMAT_TEMPORARY, CHECK_NAME, RETIRED})
_OWN_DIRECTORIES = frozenset({CATALOG, SHARDS, QUARANTINE})
_CHECK_BYTES = 4096


class _Format(msgspec.Struct):
    drive_id: str
    state: str = ""
    version: int = FORMAT_VERSION


def drive_id_of(data: bytes) -> bytes:
    """The 16-byte id inside format.json; DriveError(CORRUPT)."""
    try:
        drive_id = bytes.fromhex(msgspec.json.decode(data, type=_Format).drive_id)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DriveError(DriveFault.CORRUPT, f"{FORMAT_NAME}: {error}") from error
    if len(drive_id) != 16 or not any(drive_id):
        raise DriveError(DriveFault.CORRUPT, f"{FORMAT_NAME}: drive_id is not 16 bytes")
    return drive_id


def check_version(data: bytes) -> None:
    """DriveError(FOREIGN) for a format.json of a newer program: its catalog is not even opened then."""
    version = msgspec.json.decode(data, type=_Format).version
    if version != FORMAT_VERSION:
        raise DriveError(
            DriveFault.FOREIGN,
            f"{FORMAT_NAME} has version {version} and this program knows version {FORMAT_VERSION}: "
            "run the Holdfast that wrote it, or a newer one",
        )


def retire(path: str) -> None:
    """Moves everything of ours aside into RETIRED, so that the drive is empty. May be repeated after a crash."""
    aside = os.path.join(path, RETIRED)
    try:
        if os.path.exists(os.path.join(aside, FORMAT_NAME)):
            raise DriveError(
                DriveFault.BAD_REQUEST,
                f"{aside} holds what lay here before the last time: delete it first",
            )
        os.makedirs(aside, exist_ok=True)
        # format.json goes last: until then the drive is still the damaged one, never an empty one.
        for name in (CATALOG, SHARDS, QUARANTINE, IDENTITY_NAME, FORMAT_NAME):
            with contextlib.suppress(FileNotFoundError):
                os.rename(os.path.join(path, name), os.path.join(aside, name))
            if name in (IDENTITY_NAME, FORMAT_NAME):
                sync_directory(path)
        sync_directory(aside)
    except OSError as error:
        raise of_os_error(error, "moving the old content aside", writing=True) from error


def is_formed(data: bytes) -> bool:
    """Whether format.json says that its cluster was formed before: then an empty drive has missed something."""
    try:
        return msgspec.json.decode(data, type=_Format).state == "formed"
    except msgspec.MsgspecError:
        return False


def read_format(path: str) -> bytes:
    """format.json as it is, b"" on an empty drive; DriveError FOREIGN or IO."""
    try:
        try:
            with open(os.path.join(path, FORMAT_NAME), "rb") as file:
                return file.read()
        except FileNotFoundError:
            for name in os.listdir(path):
                if name in _OWN_FILES or name == "lost+found":
                    continue
                if name in _OWN_DIRECTORIES and not os.listdir(os.path.join(path, name)):
                    continue
                # A catalog or shards without format.json were some cluster's: never mixed with ours.
                raise DriveError(
                    DriveFault.FOREIGN, f"no {FORMAT_NAME}, but there is {name}"
                ) from None
            return b""
    except OSError as error:
        raise of_os_error(error, "reading the directory", writing=False) from error


def write_format(path: str, data: bytes) -> None:
    """format.json, whole or not at all, durable on return."""
    _write_whole(path, FORMAT_NAME, data)


def _write_whole(path: str, name: str, data: bytes) -> None:
    temporary = os.path.join(path, f"{name}.new")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, os.path.join(path, name))
        sync_directory(path)
    except OSError as error:
        raise of_os_error(error, f"writing {name}", writing=True) from error


class IdentityCopy:
    """The drive's copy of its node's identities, sealed by the node. Methods run on any thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._version = 0  # the highest one written in this life of the process

    def read(self) -> verbs.Blob:
        try:
            with open(os.path.join(self._path, IDENTITY_NAME), "rb") as file:
                return verbs.Blob(file.read(DRIVE_MESSAGE_BYTES // 2))
        except FileNotFoundError:
            return verbs.Blob(b"")
        except OSError as error:
            raise of_os_error(error, f"reading {IDENTITY_NAME}", writing=False) from error

    def write(self, verb: verbs.IdentityWrite, space: Space) -> verbs.Done:
        """Whole or not at all, durable on return."""
        with self._lock:
            if verb.version >= self._version:
                space.need(len(verb.data))
                _write_whole(self._path, IDENTITY_NAME, verb.data)
                self._version = verb.version
        return verbs.Done()


def make_directories(path: str) -> None:
    """shards/00…ff, quarantine and the directory itself, durable on return."""
    try:
        shards = os.path.join(path, SHARDS)
        os.makedirs(os.path.join(path, QUARANTINE), exist_ok=True)
        os.makedirs(shards, exist_ok=True)
        if len(os.listdir(shards)) < 256:
            for number in range(256):
                os.makedirs(os.path.join(shards, f"{number:02x}"), exist_ok=True)
            sync_directory(shards)
        sync_directory(path)
    except OSError as error:
        raise of_os_error(error, "making directories", writing=True) from error


def sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def probe(path: str) -> float:
    """Writes, syncs and reads back the check file; -> seconds the sync took. DriveError when it fails."""
    name = os.path.join(path, CHECK_NAME)
    content = os.urandom(16) * (_CHECK_BYTES // 16)
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, content, 0)
            started = time.monotonic()
            os.fsync(descriptor)
            took_s = time.monotonic() - started
            with contextlib.suppress(OSError):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            back = os.pread(descriptor, _CHECK_BYTES, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise of_os_error(error, "drive state check", writing=True) from error
    if back != content:
        raise DriveError(
            DriveFault.IO,
            "drive state check: read back other bytes than were written",
            condemns=True,
        )
    return took_s


class Space:
    """How much is left. Asks the file system at most every quarter second, and counts in between."""

    _EVERY_S = 0.25

    def __init__(self, path: str, reserve_fraction: float, reserve_bytes: int, small: int) -> None:
        self._path = path
        self._fraction = reserve_fraction
        self._bytes = reserve_bytes
        self._small = small
        self._next = 0.0
        self._free = 0
        self._reserve = 0
        self.total_bytes = 0

    def refresh(self) -> tuple[int, int]:
        """(total, free) bytes now."""
        try:
            stat = os.statvfs(self._path)
        except OSError as error:
            raise of_os_error(error, "statvfs", writing=False) from error
        self.total_bytes = stat.f_blocks * stat.f_frsize
        self._free = stat.f_bavail * stat.f_frsize
        self._reserve = int(self.total_bytes * self._fraction)
        if self.total_bytes >= self._small:
            self._reserve = max(self._reserve, self._bytes)
        self._next = time.monotonic() + self._EVERY_S
        return self.total_bytes, self._free

    def tight(self) -> bool:
        """Whether room is getting short: what may go had better go now."""
        if time.monotonic() >= self._next:
            self.refresh()
        return self._free - self._reserve < self.total_bytes * DRIVE_TIGHT_FRACTION

    def need(self, count: int) -> None:
        """DriveError(NO_SPACE) when `count` more bytes would go into the reserve."""
        if time.monotonic() >= self._next:
            self.refresh()
        if self._free - count < self._reserve:
            raise DriveError(
                DriveFault.NO_SPACE, f"{self._free} bytes free, {self._reserve} are kept in reserve"
            )
        self._free -= count
