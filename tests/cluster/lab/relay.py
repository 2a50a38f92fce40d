"""Slow wires: a user-space netem between two tap devices.

Kernels are often built without tc-netem.  A tap also makes the kernel finish checksums and
segmentation, so real frames of at most one MTU are delayed.

Run as a script (standard library only): python -I -S relay.py TAP_A TAP_B CONFIG.json
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import os
import random
import select
import signal
import struct
import sys
import time
from pathlib import Path


def relay_main(tap_a: str, tap_b: str, config: str) -> None:
    """Copy frames between two tap devices with delay, jitter, loss and a rate limit.
    (tc-netem is often not built into small kernels; a tap also makes the kernel finish
    checksums and segmentation, so real frames of at most one MTU are delayed.)"""
    taps = []
    for name in (tap_a, tap_b):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x0002 | 0x1000))
        taps.append(fd)
    link: dict = {}

    def reload(*_):
        link.clear()
        link.update(json.loads(Path(config).read_text()))

    reload()
    signal.signal(signal.SIGHUP, reload)
    print("ready", flush=True)
    other = {taps[0]: taps[1], taps[1]: taps[0]}
    free_at, last_due = dict.fromkeys(taps, 0.0), dict.fromkeys(taps, 0.0)
    queue: list = []
    serial = 0
    while True:
        pause = max(0.0, queue[0][0] - time.monotonic()) if queue else None
        for fd in select.select(taps, [], [], pause)[0]:
            with contextlib.suppress(BlockingIOError, OSError):
                while True:
                    frame = os.read(fd, 65536)
                    now = time.monotonic()
                    if random.random() * 100 < link["loss"] or len(queue) > 2000:
                        continue
                    if link["rate"]:  # Mbit/s
                        free_at[fd] = max(now, free_at[fd]) + len(frame) * 8 / (link["rate"] * 1e6)
                        now = free_at[fd]
                    due = (
                        now
                        + max(0.0, link["delay"] + random.uniform(-1, 1) * link["jitter"]) / 1000
                    )
                    last_due[fd] = due = max(due, last_due[fd])  # no reordering
                    serial += 1
                    heapq.heappush(queue, (due, serial, other[fd], frame))
        while queue and queue[0][0] <= time.monotonic():
            _, _, out, frame = heapq.heappop(queue)
            with contextlib.suppress(OSError):
                os.write(out, frame)


if __name__ == "__main__":
    relay_main(*sys.argv[1:4])
