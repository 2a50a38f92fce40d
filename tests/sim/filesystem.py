"""A disk that forgets: the file layer under the drive process, in memory.

Theory of operation. An inode has the bytes that are there and the bytes that are durable; what was
written since the last fsync is a list of writes. A directory operation (link, unlink, rename) is durable
once one of its directories was synced after it. When power fails, every unsynced write is by chance
kept, lost or torn (a prefix of it), each for itself; every unsynced directory operation is kept or
lost, but one that stands on a lost one is lost with it. That is weaker than any journal promises.

`FileSystem` holds the disks of all nodes under their paths; `SimOs` is what the drive process's modules
get in place of `os`, `SimOpen` in place of `open`.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import posixpath
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace, TracebackType
from typing import Any

_PAGE = 4096
_DIRECTORY, _FILE = stat.S_IFDIR | 0o700, stat.S_IFREG | 0o600


def _fail(number: int, path: str = "") -> OSError:
    return OSError(number, os.strerror(number), path)


@dataclass(eq=False, slots=True)
class Inode:
    """A file. `writes` since the last fsync: (offset, bytes), or (new length, None) for a truncation."""

    number: int
    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    writes: list[tuple[int, bytes | None]] = field(default_factory=list)
    mtime_s: float = 0.0


@dataclass(eq=False, slots=True)
class Directory:
    number: int
    names: dict[str, Inode | Directory] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Change:
    """One directory operation that is not durable yet, and how to take it back."""

    names: tuple[tuple[Directory, str], ...]
    undo: Callable[[], None]


class Disk:
    """One drive's disk. `rng` decides what a power-off leaves; the hooks make it fail."""

    def __init__(self, path: str, rng: random.Random, numbers: Iterator[int]) -> None:
        self.path = path
        self.rng = rng
        self.numbers = numbers
        self.root = Directory(next(numbers))
        self.size_bytes = 1 << 34
        self.used_bytes = 1 << 30
        self.full = False
        # Called before each operation that touches the disk; may raise OSError.
        self.before: Callable[[str, str], None] = lambda operation, path: None
        self.lost: dict[str, int] = {"kept": 0, "lost": 0, "torn": 0}
        self._changes: list[_Change] = []
        self._touched: dict[Inode, None] = {}

    # ---- names -----------------------------------------------------------------------------------
    def find(self, path: str) -> Inode | Directory:
        place: Inode | Directory = self.root
        for name in self._names(path):
            if not isinstance(place, Directory):
                raise _fail(errno.ENOTDIR, path)
            if name not in place.names:
                raise _fail(errno.ENOENT, path)
            place = place.names[name]
        return place

    def parent(self, path: str) -> tuple[Directory, str]:
        names = self._names(path)
        place = self.find(posixpath.join(self.path, *names[:-1]))
        if not isinstance(place, Directory):
            raise _fail(errno.ENOTDIR, path)
        return place, names[-1]

    def _names(self, path: str) -> list[str]:
        return [name for name in path[len(self.path) :].split("/") if name]

    def file(self, path: str) -> Inode:
        found = self.find(path)
        if not isinstance(found, Inode):
            raise _fail(errno.EISDIR, path)
        return found

    def directory(self, path: str) -> Directory:
        found = self.find(path)
        if not isinstance(found, Directory):
            raise _fail(errno.ENOTDIR, path)
        return found

    # ---- changes ---------------------------------------------------------------------------------
    def link(self, directory: Directory, name: str, what: Inode | Directory) -> None:
        directory.names[name] = what
        undo = lambda: directory.names.pop(name, None)  # noqa: E731
        self._changes.append(_Change(((directory, name),), undo))

    def unlink(self, directory: Directory, name: str) -> None:
        what = directory.names.pop(name)
        undo = lambda: directory.names.__setitem__(name, what)  # noqa: E731
        self._changes.append(_Change(((directory, name),), undo))

    def rename(self, source: tuple[Directory, str], target: tuple[Directory, str]) -> None:
        what = source[0].names.pop(source[1])
        before = target[0].names.get(target[1])
        target[0].names[target[1]] = what

        def undo() -> None:
            source[0].names[source[1]] = what
            if before is None:
                target[0].names.pop(target[1], None)
            else:
                target[0].names[target[1]] = before

        self._changes.append(_Change((source, target), undo))

    def write(self, inode: Inode, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if len(inode.data) < end:
            inode.data.extend(bytes(end - len(inode.data)))
        inode.data[offset:end] = data
        inode.writes.append((offset, data))
        self._touched[inode] = None

    def truncate(self, inode: Inode, length: int) -> None:
        if length == len(inode.data):
            return
        if length < len(inode.data):
            del inode.data[length:]
        else:
            inode.data.extend(bytes(length - len(inode.data)))
        inode.writes.append((length, None))
        self._touched[inode] = None

    def sync(self, inode: Inode) -> None:
        inode.durable = bytes(inode.data)
        inode.writes.clear()
        self._touched.pop(inode, None)

    def sync_directory(self, directory: Directory) -> None:
        """What happened in this directory is durable, and so is what it stands on."""
        kept: list[_Change] = []
        wanted: set[tuple[int, str]] = set()
        for change in reversed(self._changes):
            names = {(where.number, name) for where, name in change.names}
            if names & wanted or any(where is directory for where, _ in change.names):
                wanted |= names
            else:
                kept.append(change)
        self._changes = kept[::-1]

    # ---- power -----------------------------------------------------------------------------------
    def power_off(self) -> None:
        """What was not synced is kept, lost or torn."""
        broken: set[tuple[int, str]] = set()
        undone: list[_Change] = []
        for change in self._changes:
            names = {(where.number, name) for where, name in change.names}
            if names & broken or self.rng.random() < 0.5:
                broken |= names
                undone.append(change)
                self.lost["lost"] += 1
            else:
                self.lost["kept"] += 1
        for change in reversed(undone):
            change.undo()
        self._changes.clear()
        for inode in self._touched:
            self._tear(inode)
        self._touched.clear()

    def _tear(self, inode: Inode) -> None:
        data = bytearray(inode.durable)
        for offset, written in inode.writes:
            fate = self.rng.choice(("kept", "lost", "torn"))
            self.lost[fate] += 1
            if fate == "lost":
                continue
            if written is None:
                if offset < len(data):
                    del data[offset:]
                else:
                    data.extend(bytes(offset - len(data)))
                continue
            if fate == "torn":
                written = written[: self.rng.randrange(len(written) + 1)]
            end = offset + len(written)
            if len(data) < end:
                data.extend(bytes(end - len(data)))
            data[offset:end] = written
        inode.data, inode.durable = data, bytes(data)
        inode.writes.clear()

    def files(self) -> list[tuple[str, Inode]]:
        """Every file with its path below the disk, in order."""
        found: list[tuple[str, Inode]] = []

        def walk(prefix: str, directory: Directory) -> None:
            for name, what in sorted(directory.names.items(), key=lambda item: item[0]):
                if isinstance(what, Directory):
                    walk(f"{prefix}{name}/", what)
                else:
                    found.append((prefix + name, what))

        walk("", self.root)
        return found


@dataclass(eq=False, slots=True)
class _Open:
    disk: Disk
    path: str
    what: Inode | Directory


class FileSystem:
    """Disks by the path they are mounted at (/node/drive), and the descriptors that are open on them."""

    def __init__(self) -> None:
        self.disks: dict[str, Disk] = {}
        self.numbers = itertools.count(1)
        self.descriptors: dict[int, _Open] = {}
        self._next = itertools.count(10_000)

    def mount(self, path: str, rng: random.Random) -> Disk:
        disk = self.disks[path] = Disk(path, rng, self.numbers)
        return disk

    def disk_of(self, path: str) -> Disk:
        disk = self.disks.get("/".join(path.split("/", 3)[:3]))
        if disk is None:
            raise _fail(errno.ENOENT, path)
        return disk

    def opened(self, descriptor: int) -> _Open:
        try:
            return self.descriptors[descriptor]
        except KeyError:
            raise _fail(errno.EBADF) from None

    def open(self, disk: Disk, path: str, what: Inode | Directory) -> int:
        descriptor = next(self._next)
        self.descriptors[descriptor] = _Open(disk, path, what)
        return descriptor


class SimOs:
    """The functions of `os` that the drive process uses, on a FileSystem."""

    O_RDONLY, O_RDWR, O_CREAT = os.O_RDONLY, os.O_RDWR, os.O_CREAT
    O_DIRECTORY, O_CLOEXEC = os.O_DIRECTORY, os.O_CLOEXEC
    POSIX_FADV_DONTNEED = 4
    path = posixpath

    def __init__(self, files: FileSystem, urandom: Callable[[int], bytes]) -> None:
        self._files = files
        self.urandom = urandom

    def _at(self, operation: str, path: str) -> Disk:
        disk = self._files.disk_of(path)
        disk.before(operation, path)
        return disk

    def _on(self, operation: str, descriptor: int) -> _Open:
        opened = self._files.opened(descriptor)
        opened.disk.before(operation, opened.path)
        return opened

    # ---- descriptors -----------------------------------------------------------------------------
    def open(self, path: str, flags: int, _mode: int = 0) -> int:
        disk = self._at("open", path)
        try:
            found = disk.find(path)
        except OSError as error:
            if error.errno != errno.ENOENT or not flags & os.O_CREAT:
                raise
            found = Inode(next(disk.numbers))
            disk.link(*disk.parent(path), found)
        if flags & os.O_DIRECTORY and not isinstance(found, Directory):
            raise _fail(errno.ENOTDIR, path)
        return self._files.open(disk, path, found)

    def close(self, descriptor: int) -> None:
        self._files.opened(descriptor)
        del self._files.descriptors[descriptor]

    def fsync(self, descriptor: int) -> None:
        opened = self._on("fsync", descriptor)
        if isinstance(opened.what, Directory):
            opened.disk.sync_directory(opened.what)
        else:
            opened.disk.sync(opened.what)

    def fstat(self, descriptor: int) -> Any:
        return _stat(self._files.opened(descriptor).what)

    def _inode(self, operation: str, descriptor: int) -> tuple[Disk, Inode]:
        opened = self._on(operation, descriptor)
        if not isinstance(opened.what, Inode):
            raise _fail(errno.EISDIR)
        return opened.disk, opened.what

    def ftruncate(self, descriptor: int, length: int) -> None:
        disk, inode = self._inode("write", descriptor)
        disk.truncate(inode, length)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        return self.pwritev(descriptor, [data], offset)

    def pwritev(self, descriptor: int, buffers: list[Any], offset: int) -> int:
        disk, inode = self._inode("write", descriptor)
        if disk.full:
            raise _fail(errno.ENOSPC)
        data = b"".join(bytes(buffer) for buffer in buffers)
        disk.write(inode, data, offset)
        return len(data)

    def pread(self, descriptor: int, count: int, offset: int) -> bytes:
        _, inode = self._inode("read", descriptor)
        return bytes(inode.data[offset : offset + count])

    def preadv(self, descriptor: int, buffers: list[memoryview], offset: int) -> int:
        done = 0
        for buffer in buffers:
            data = self.pread(descriptor, len(buffer), offset + done)
            buffer[: len(data)] = data
            done += len(data)
        return done

    def posix_fadvise(self, *_: Any) -> None:
        """The cache is not what is simulated."""

    # ---- paths -----------------------------------------------------------------------------------
    def stat(self, path: str) -> Any:
        return _stat(self._at("stat", path).find(path))

    def statvfs(self, path: str) -> Any:
        disk = self._at("stat", path)
        free = 0 if disk.full else disk.size_bytes - disk.used_bytes
        blocks = disk.size_bytes // _PAGE
        return SimpleNamespace(f_blocks=blocks, f_frsize=_PAGE, f_bavail=free // _PAGE)

    def listdir(self, path: str) -> list[str]:
        return list(self._at("list", path).directory(path).names)

    def scandir(self, path: str) -> _Scan:
        disk = self._at("list", path)
        names = disk.directory(path).names
        return _Scan([_Entry(n, posixpath.join(path, n), w) for n, w in names.items()])

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        disk = self._at("write", path)
        at = disk.path
        for name in disk._names(path):
            directory, at = disk.directory(at), posixpath.join(at, name)
            if name not in directory.names:
                disk.link(directory, name, Directory(next(disk.numbers)))
            elif at == path and not exist_ok:
                raise _fail(errno.EEXIST, path)

    def unlink(self, path: str) -> None:
        disk = self._at("write", path)
        disk.file(path)
        disk.unlink(*disk.parent(path))

    def link(self, source: str, target: str) -> None:
        disk = self._at("write", source)
        inode = disk.file(source)
        directory, name = disk.parent(target)
        if name in directory.names:
            raise _fail(errno.EEXIST, target)
        disk.link(directory, name, inode)

    def rename(self, source: str, target: str) -> None:
        disk = self._at("write", source)
        disk.find(source)
        disk.rename(disk.parent(source), disk.parent(target))

    replace = rename

    def utime(self, path: str) -> None:
        self._at("write", path).file(path)


class SimOpen:
    """`open` of whole files, for reading and writing."""

    def __init__(self, system: SimOs, files: FileSystem) -> None:
        self._os = system
        self._files = files

    def __call__(self, path: str, mode: str = "r") -> _WholeFile:
        flags = os.O_RDWR | os.O_CREAT if "w" in mode else os.O_RDONLY
        descriptor = self._os.open(path, flags)
        if "w" in mode:
            self._os.ftruncate(descriptor, 0)
        return _WholeFile(self._os, self._files, descriptor)


class _WholeFile:
    def __init__(self, system: SimOs, files: FileSystem, descriptor: int) -> None:
        self._os, self._files, self._descriptor = system, files, descriptor
        self._buffer = io.BytesIO()

    def __enter__(self) -> _WholeFile:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.flush()
        self._os.close(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> bytes:
        return self._os.pread(self._descriptor, 1 << 40, 0)

    def write(self, data: bytes) -> None:
        self._buffer.write(data)

    def flush(self) -> None:
        data = self._buffer.getvalue()
        if data:
            self._os.pwrite(self._descriptor, data, 0)
            self._buffer = io.BytesIO()


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    path: str
    what: Inode | Directory

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        return _stat(self.what)


class _Scan:
    def __init__(self, entries: list[_Entry]) -> None:
        self._entries = entries

    def __enter__(self) -> _Scan:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[_Entry]:
        return iter(self._entries)


def _stat(what: Inode | Directory) -> Any:
    if isinstance(what, Directory):
        return SimpleNamespace(st_dev=1, st_ino=what.number, st_size=0, st_mode=_DIRECTORY)
    return SimpleNamespace(
        st_dev=1, st_ino=what.number, st_size=len(what.data), st_mode=_FILE, st_mtime=what.mtime_s
    )
