"""Thin wrappers over the kernel's tools: commands, namespaces, processes, mounts."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


class LabError(RuntimeError):
    """The laboratory was asked for something it cannot do; the text says what."""


def sh(*argv: str, check: bool = True, stdin: str | None = None) -> str:
    """Run a command and return its output; with `check`, a failure raises LabError."""
    done = subprocess.run(argv, input=stdin, text=True, capture_output=True)
    if check and done.returncode:
        raise LabError(f"{' '.join(argv)}: rc={done.returncode}: {done.stderr.strip()}")
    return done.stdout


def ip_batch(netns: str, lines: list[str]) -> None:
    sh("ip", "-n", netns, "-batch", "-", stdin="\n".join(lines) + "\n")


def start_time(pid: int) -> str | None:
    """Field 22 of /proc/PID/stat: with it a recycled pid is never mistaken for ours."""
    try:
        rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if rest[0] == "Z" else rest[19]


def wait_until(test: Callable[[], T], timeout_s: float, what: str, step_s: float = 0.005) -> T:
    """The first true value of `test`; LabError once `timeout_s` seconds have passed."""
    end = time.monotonic() + timeout_s
    while not (value := test()):
        if time.monotonic() > end:
            raise LabError(f"timed out after {timeout_s:g} s: {what}")
        time.sleep(step_s)
    return value


def pids_in_netns(netns: str) -> list[int]:
    """Processes in the named namespace (by construction all started by the lab)."""

    def key(path: str) -> tuple[int, int]:
        info = os.stat(path)
        return info.st_dev, info.st_ino

    try:
        wanted = key(f"/run/netns/{netns}")
    except OSError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in (1, os.getpid()):
            with contextlib.suppress(OSError):
                if key(f"/proc/{entry}/ns/net") == wanted:
                    found.append(int(entry))
    return found


def signal_pids(pids: list[int], sig: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)


def mounts_below(folder: Path) -> list[str]:
    """Mount points at and below a folder, innermost last mounted first."""
    prefix = str(folder) + "/"
    rows = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [m for m in rows if m == str(folder) or m.startswith(prefix)][::-1]


@contextlib.contextmanager
def in_netns(netns: str) -> Iterator[None]:
    """Put the CALLING THREAD into a namespace: sockets it creates belong there.

    Threads of C libraries such as gRPC do not follow; start those with Lab.popen.
    """

    def enter(path: str) -> None:
        with open(path) as handle:
            if libc.setns(handle.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {path}")

    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    enter(f"/run/netns/{netns}")
    try:
        yield
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)
