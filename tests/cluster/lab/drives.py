"""The virtual drives: real ext4 on a loop device over a file that vdisk.py serves."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .book import Book, operation
from .system import LabError, sh, wait_until

EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
SHUTDOWN_NO_LOG_FLUSH = 2  # lose the page cache AND the uncommitted journal
FIBMAP, FIGETBSZ = 1, 2


class Drives:
    """Drives of one lab, numbered from 1 per node; faults are injected below the file system."""

    def __init__(self, book: Book) -> None:
        self.book = book

    def path(self, node: int, drive: int) -> Path:
        """Where the node finds that drive."""
        return self.book.dir / "disks" / f"node{node}" / f"disk{drive}"

    def _key(self, node: int, drive: int) -> str:
        return f"{node}.{drive}"

    def _ask(self, node: int, **ask: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.book.dir / "run" / f"vdisk{node}"))
            sock.sendall(json.dumps(ask).encode() + b"\n")
            answer: dict[str, Any] = json.loads(sock.makefile().readline())
        if "error" in answer:
            raise LabError(f"drive server of node {node}: {answer['error']}")
        return answer

    def _fuse_dir(self, node: int, drive: int) -> Path:
        generation = self.book.state.generation.get(self._key(node, drive), 0)
        return self.book.dir / "fuse" / f"node{node}-disk{drive}-{generation}"

    def _image(self, node: int, drive: int) -> Path:
        return self.book.dir / "images" / (self._fuse_dir(node, drive).name + ".img")

    # -- life of a drive

    def make_all(self, node: int) -> None:
        if not self.book.state.drives:
            return
        address = self.book.dir / "run" / f"vdisk{node}"
        self.book.helper(f"vdisk{node}", "vdisk.py", [str(address)])
        wait_until(address.exists, 10, "the drive server to start")
        for drive in self.book.drives:
            self._make(node, drive)

    def _make(self, node: int, drive: int) -> None:
        blank = self.book.dir / "images" / "blank.img"
        if not blank.exists():
            with open(blank, "wb") as image:
                image.truncate(self.book.state.drive_mb << 20)
            options = ["-m", "0", "-J", "size=4", "-E", "nodiscard,lazy_itable_init=1"]
            sh("mkfs.ext4", "-q", "-F", *options, str(blank))
        image_path = str(self._image(node, drive))
        sh("cp", "--sparse=always", str(blank), image_path)
        self.path(node, drive).mkdir(parents=True, exist_ok=True)
        fuse = self._fuse_dir(node, drive)
        fuse.mkdir()
        self._ask(node, do="attach", mountpoint=str(fuse), image=image_path)

    def mount(self, node: int, drive: int) -> None:
        """Attach and mount (the journal is replayed); a dead drive leaves a read-only stub."""
        path, key = str(self.path(node, drive)), self._key(node, drive)
        self._send_faults(node, drive)
        loop = ""
        try:
            backing = str(self._fuse_dir(node, drive) / "disk")
            loop = sh("losetup", "--direct-io=on", "-f", "--show", backing).strip()
            try:
                sh("mount", "-o", "noatime,errors=remount-ro", loop, path)
            except LabError:
                sh("e2fsck", "-p", loop, check=False)
                sh("mount", "-o", "noatime,errors=remount-ro", loop, path)
            self.book.state.loops[key] = loop
        except LabError:  # the bare mount point must not become part of another drive
            if loop:
                sh("losetup", "-d", loop, check=False)
            sh("mount", "-t", "tmpfs", "-o", "ro,size=4k", "lab-dead-drive", path)
            self.book.mark(node, f"drive {drive} could not be mounted")

    def lose_page_cache(self, node: int, drive: int) -> None:
        """Nothing more reaches the drive, and what only the page cache holds is gone.

        The device goes first: a hung drive would block the ioctl (it writes a superblock).
        """
        self.book.state.faults.get(self._key(node, drive), {}).pop("hang", None)
        fuse = str(self._fuse_dir(node, drive))
        self._ask(node, do="faults", mountpoint=fuse, faults={"fail": "all"})
        with contextlib.suppress(OSError):
            fd = os.open(self.path(node, drive), os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_NO_LOG_FLUSH))
            finally:
                os.close(fd)

    def unmount(self, node: int, drive: int) -> None:
        sh("umount", "-l", str(self.path(node, drive)))
        loop = self.book.state.loops.pop(self._key(node, drive), None)
        if loop:
            sh("losetup", "-d", loop, check=False)
            backing = Path("/sys/block") / Path(loop).name / "loop" / "backing_file"
            wait_until(lambda: not backing.exists(), 10, f"{loop} to be released")

    # -- faults

    def _send_faults(self, node: int, drive: int) -> None:
        fuse = str(self._fuse_dir(node, drive))
        faults = self.book.state.faults.get(self._key(node, drive), {})
        self._ask(node, do="faults", mountpoint=fuse, faults=faults)

    def _fault(self, node: int, drive: int, **faults: Any) -> None:
        if node not in self.book.nodes or drive not in self.book.drives:
            raise LabError(f"there is no drive {drive} on node {node}")
        known = self.book.state.faults.setdefault(self._key(node, drive), {})
        known.update(faults)
        self._send_faults(node, drive)
        self.book.mark(node, f"drive {drive} faults {known}")

    def _files(self, node: int, drive: int) -> Iterator[str]:
        for folder, _, names in os.walk(self.path(node, drive)):
            yield from (os.path.join(folder, n) for n in names)

    def drop_caches(self, node: int, drive: int) -> None:
        """Write back and forget clean pages, so that the next read reaches the device."""
        for path in self._files(node, drive):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(fd)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(fd)

    @operation
    def fail(self, node: int, drive: int, what: str = "all", probability: float = 1.0) -> None:
        """EIO below the file system; cached file data is forgotten first."""
        self.drop_caches(node, drive)
        self._fault(node, drive, fail=what, probability=probability)

    @operation
    def slow(self, node: int, drive: int, ms: float = 0, mb_per_s: float = 0) -> None:
        """Each block request takes `ms` longer (one at a time per drive), or a throughput cap."""
        rate = {"bytes_per_s": mb_per_s * 1e6} if mb_per_s else {}
        self._fault(node, drive, slow_ms=ms, **rate)

    @operation
    def hang(self, node: int, drive: int, what: str = "all") -> None:
        """Block requests wait, their processes in D state, until ok() or a power-off."""
        self.drop_caches(node, drive)
        self._fault(node, drive, hang=what)

    @operation
    def lie(self, node: int, drive: int) -> None:
        """Writes are acknowledged and thrown away."""
        self._fault(node, drive, lie=True)

    @operation
    def ok(self, node: int, drive: int) -> None:
        """Clear all faults; a file system that has shut itself down is mounted anew."""
        had = self.book.state.faults.pop(self._key(node, drive), {})
        self._send_faults(node, drive)
        self.book.mark(node, f"drive {drive} ok")
        if self.book.powered(node) and had.get("fail"):
            self.unmount(node, drive)
            self.mount(node, drive)
        elif self.book.powered(node):
            sh("mount", "-o", "remount,rw", str(self.path(node, drive)), check=False)

    @operation
    def readonly(self, node: int, drive: int) -> None:
        """EROFS; while writers exist by the way ext4 itself takes after an error."""
        path = self.path(node, drive)
        sh("mount", "-o", "remount,ro", str(path), check=False)
        if os.statvfs(path).f_flag & os.ST_RDONLY == 0:  # busy: writers exist
            with contextlib.suppress(OSError):
                loop = Path(self.book.state.loops[self._key(node, drive)]).name
                Path(f"/sys/fs/ext4/{loop}/trigger_fs_error").write_text("lab")
        self.book.mark(node, f"drive {drive} read-only")

    @operation
    def full(self, node: int, drive: int, leave: int = 0) -> int:
        """Fill the drive but for `leave` bytes; returns the bytes taken."""
        filler = self.path(node, drive) / ".lab-filler"
        with open(filler, "ab") as handle:
            step = 1 << 24
            while step >= 1024:
                usage = os.statvfs(filler)
                if usage.f_bavail * usage.f_frsize - leave < step:
                    step >>= 1
                    continue
                try:
                    os.posix_fallocate(handle.fileno(), os.fstat(handle.fileno()).st_size, step)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    step >>= 1
            os.fsync(handle.fileno())
        self.book.mark(node, f"drive {drive} full")
        return filler.stat().st_size

    @operation
    def free(self, node: int, drive: int) -> None:
        """Undo full()."""
        (self.path(node, drive) / ".lab-filler").unlink(missing_ok=True)
        self.book.mark(node, f"drive {drive} free")

    @operation
    def wipe(self, node: int, drive: int) -> None:
        """Delete every file; running processes keep what they have open."""
        for entry in os.scandir(self.path(node, drive)):
            if entry.name == "lost+found":
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        self.book.mark(node, f"drive {drive} wiped")

    @operation
    def replace(self, node: int, drive: int) -> None:
        """Hot swap: files open on the old drive fail, the path shows a new empty drive."""
        key = self._key(node, drive)
        if self.book.powered(node):
            self.lose_page_cache(node, drive)
            sh("umount", "-l", str(self.path(node, drive)))
            sh("losetup", "-d", self.book.state.loops.pop(key, ""), check=False)
        self.book.state.faults.pop(key, None)
        self.book.state.generation[key] = self.book.state.generation.get(key, 0) + 1
        self._make(node, drive)
        if self.book.powered(node):
            self.mount(node, drive)
        self.book.mark(node, f"drive {drive} replaced")

    def _file(self, node: int, drive: int, name: str) -> Path:
        root = self.path(node, drive).resolve()
        path = (root / name).resolve()
        if root not in path.parents:
            raise LabError(f"{name} is not on drive {drive} of node {node}")
        return path

    @operation
    def flip(self, node: int, drive: int, name: str, offset: int = -1, bit: int = 0) -> int:
        """Flip one bit of a file (by default in its middle byte), leaving its times as they are."""
        path = self._file(node, drive, name)
        was = path.stat()
        offset = was.st_size // 2 if offset < 0 else offset
        with open(path, "r+b") as handle:
            handle.seek(offset)
            byte = handle.read(1)
            handle.seek(offset)
            handle.write(bytes([byte[0] ^ 1 << bit]))
            handle.flush()
            os.fsync(handle.fileno())
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        return offset

    @operation
    def badsector(self, node: int, drive: int, name: str) -> None:
        """Make exactly this file's blocks unreadable until they are written again."""
        with open(self._file(node, drive, name), "rb") as handle:
            fd = handle.fileno()
            os.fsync(fd)
            block = struct.unpack("i", fcntl.ioctl(fd, FIGETBSZ, b"\0" * 4))[0]
            count = -(-os.fstat(fd).st_size // block)
            places = [
                struct.unpack("i", fcntl.ioctl(fd, FIBMAP, struct.pack("i", n)))[0]
                for n in range(count)
            ]
            bad = [[p * block, (p + 1) * block] for p in places if p]
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        known = self.book.state.faults.get(self._key(node, drive), {}).get("bad", [])
        self._fault(node, drive, bad=known + bad)

    def stats(self, node: int, drive: int) -> dict[str, int]:
        """Counters of block requests: read, write, fsync, errors."""
        counters: dict[str, int] = self._ask(node, do="stats")["stats"][
            str(self._fuse_dir(node, drive))
        ]
        return counters
