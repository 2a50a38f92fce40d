"""Virtual drives: a minimal FUSE server with faults below the file system.

One process per node serves one file, `disk`, per mount point.  A loop device with direct I/O sits
on that file, so every block request of ext4 passes through VDisk.serve().  The image outlives a
power-off: what ext4 had written here before the cut is what the drive held.

Run as a script with the path of a unix socket (standard library only: python -I -S vdisk.py PATH).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import random
import socket
import stat
import struct
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)


class VDisk(threading.Thread):
    MAX = 1 << 20

    def __init__(self, mountpoint: str, image: str):
        super().__init__(daemon=True)
        self.mountpoint, self.image = mountpoint, os.open(image, os.O_RDWR)
        self.size = os.fstat(self.image).st_size
        self.faults: dict = {}
        self.bad: list[tuple[int, int]] = []  # unreadable byte ranges
        self.stats = {"read": 0, "write": 0, "fsync": 0, "errors": 0}
        self.wake = threading.Condition()
        self.dev = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.dev},rootmode=40000,user_id=0,group_id=0,allow_other"
        if libc.mount(b"netlab-disk", mountpoint.encode(), b"fuse", 6, options.encode()):
            raise OSError(ctypes.get_errno(), f"mount fuse on {mountpoint}")

    def set_faults(self, faults: dict) -> None:
        with self.wake:
            self.faults = {k: v for k, v in faults.items() if k != "bad"}
            self.bad = [tuple(r) for r in faults.get("bad", [])]
            self.wake.notify_all()

    def run(self) -> None:
        head, data = bytearray(80), bytearray(self.MAX + 4096)
        while True:
            try:
                size = os.readv(self.dev, [head, data])
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return  # ENODEV: unmounted
            _, op, unique, node = struct.unpack_from("<IIQQ", head)
            if op in (2, 42, 36):  # FORGET, BATCH_FORGET, INTERRUPT
                continue
            try:
                reply = self.serve(op, node, head, memoryview(data), size)
                code = 0
            except OSError as error:
                reply, code = b"", -error.errno
            with contextlib.suppress(OSError):  # the request may have been aborted
                os.writev(self.dev, [struct.pack("<IiQ", 16 + len(reply), code, unique), reply])

    def attr(self, node: int) -> bytes:
        mode, size = (stat.S_IFDIR | 0o755, 0) if node == 1 else (stat.S_IFREG | 0o600, self.size)
        return struct.pack(
            "<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
        )

    def serve(self, op: int, node: int, head: bytearray, data: memoryview, size: int) -> bytes:
        if op == 26:  # INIT
            _, _, readahead = struct.unpack_from("<III", head, 40)
            flags = 1 | 1 << 5 | 1 << 15 | 1 << 22  # async read, big writes, async dio, max_pages
            return struct.pack(
                "<IIIIHHIIHH8I",
                7,
                31,
                readahead,
                flags,
                64,
                48,
                self.MAX,
                1,
                self.MAX // 4096,
                0,
                *[0] * 8,
            )
        if op == 1:  # LOOKUP
            name = (bytes(head[40:]) + bytes(data[: max(0, size - 80)])).split(b"\0")[0]
            if name != b"disk":
                raise OSError(errno.ENOENT, "")
            return struct.pack("<QQQQII", 2, 0, 3600, 3600, 0, 0) + self.attr(2)
        if op == 3:  # GETATTR
            return struct.pack("<QII", 3600, 0, 0) + self.attr(node)
        if op == 14:  # OPEN
            return struct.pack("<QIi", 0, 0, 0)
        if op == 17:  # STATFS
            return struct.pack("<5Q4I6I", 0, 0, 0, 0, 0, 4096, 255, 4096, 0, *[0] * 6)
        if op in (15, 16):  # READ, WRITE
            offset, count = struct.unpack_from("<QI", head, 48)
            self.inject("read" if op == 15 else "write", offset, count)
            if op == 15:
                return os.pread(self.image, count, offset)
            if not self.faults.get("lie"):
                os.pwrite(self.image, data[:count], offset)
            return struct.pack("<II", count, 0)
        if op == 20:  # FSYNC: the image outlives a "power-off"
            self.inject("fsync", 0, 0)
            return b""
        if op in (18, 25, 34, 38):  # RELEASE, FLUSH, ACCESS, DESTROY
            return b""
        raise OSError(errno.ENOSYS, "")

    def inject(self, kind: str, offset: int, count: int) -> None:
        self.stats[kind] += 1
        group = "read" if kind == "read" else "write"
        with self.wake:
            self.wake.wait_for(lambda: self.faults.get("hang") not in (group, "all"))
            faults = self.faults
        delay = faults.get("slow_ms", 0) / 1000 + count / faults.get("bytes_per_s", float("inf"))
        if delay:
            time.sleep(delay)
        broken = faults.get("fail") in (group, "all") and random.random() < faults.get(
            "probability", 1
        )
        hit = [r for r in self.bad if r[0] < offset + count and offset < r[1]]
        if kind == "write" and hit:  # a drive remaps a bad sector on writing
            self.bad = [r for r in self.bad if r not in hit]
        if broken or (kind == "read" and hit):
            self.stats["errors"] += 1
            raise OSError(errno.EIO, "injected")


def vdisk_main(sock_path: str) -> None:
    """Serve disks as told over a unix socket: one JSON request per connection."""
    libc.prctl(57, 1, 0, 0, 0)  # PR_SET_IO_FLUSHER: never wait for our own writeback
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sock_path)
    listener.listen(8)
    disks: dict[str, VDisk] = {}
    while True:
        peer, _ = listener.accept()
        with peer:
            try:
                ask = json.loads(peer.makefile().readline())
                if ask["do"] == "attach":
                    disks[ask["mountpoint"]] = VDisk(ask["mountpoint"], ask["image"])
                    disks[ask["mountpoint"]].start()
                elif ask["do"] == "faults":
                    disks[ask["mountpoint"]].set_faults(ask["faults"])
                elif ask["do"] == "detach":
                    disks.pop(ask["mountpoint"], None)
                answer = {"stats": {k: v.stats for k, v in disks.items()}}
            except Exception as error:  # reported to the caller
                answer = {"error": repr(error)}
            with contextlib.suppress(OSError):
                peer.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    vdisk_main(sys.argv[1])
