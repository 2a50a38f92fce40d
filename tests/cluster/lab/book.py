"""What is known of one laboratory: its state on disk, its lock, its logs, its helper processes.

Every handle on a lab (the owner's, a second process's, the command line's) works on the same
`state.json`; public operations take the lock, re-read the state, act and save it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from .system import LabError, start_time, wait_until

P = ParamSpec("P")
R = TypeVar("R")

HERE = Path(__file__).resolve().parent
SUBNET = "10.231.0"


def base_dir() -> Path:
    """Where images and logs live; POWER_LAB_DIR overrides."""
    return Path(os.environ.get("POWER_LAB_DIR") or Path(tempfile.gettempdir()) / "holdfast-lab")


@dataclasses.dataclass(slots=True, kw_only=True)
class State:
    """Everything a second handle needs; keys of nodes are strings as JSON wants them."""

    nodes: int = 4
    drives: int = 4
    drive_mb: int = 256
    command: list[str] = dataclasses.field(default_factory=list)
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    cwd: str | None = None
    power: dict[str, bool] = dataclasses.field(default_factory=dict)
    hung: dict[str, str] = dataclasses.field(default_factory=dict)
    unplugged: list[int] = dataclasses.field(default_factory=list)
    partitions: list[list[str]] = dataclasses.field(default_factory=list)
    slow: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    helpers: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    loops: dict[str, str] = dataclasses.field(default_factory=dict)
    faults: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    generation: dict[str, int] = dataclasses.field(default_factory=dict)


class HasBook(Protocol):
    @property
    def book(self) -> Book: ...


S = TypeVar("S", bound=HasBook)


def operation(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Public operations exclude each other, also between processes, and are saved."""

    @functools.wraps(method)
    def wrapper(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.book.locked():
            try:
                return method(self, *args, **kwargs)
            finally:
                self.book.save()

    return wrapper


class Book:
    """One lab's folder and state, shared by the fabric, the drives and the power switch."""

    def __init__(self, name: str, state: State) -> None:
        self.name, self.dir, self.state = name, base_dir() / name, state
        self.children: list[subprocess.Popen[Any]] = []
        self._depth = 0
        self._file = -1
        self._mutex = threading.RLock()

    # -- names

    @property
    def nodes(self) -> range:
        return range(1, self.state.nodes + 1)

    @property
    def drives(self) -> range:
        return range(1, self.state.drives + 1)

    @staticmethod
    def ip(host: int | str) -> str:
        return f"{SUBNET}.100" if host == "client" else f"{SUBNET}.{10 + int(host)}"

    @staticmethod
    def host(host: int | str) -> str:
        if host in ("client", "fabric"):
            return str(host)
        return f"node{int(str(host).removeprefix('node'))}"

    def ns(self, host: int | str) -> str:
        return f"hflab-{self.name}-{self.host(host)}"

    def all_ns(self) -> list[str]:
        """This lab's namespaces that exist, whoever made them."""
        there = os.listdir("/run/netns") if os.path.isdir("/run/netns") else []
        found = []
        for name in there:
            host = name.removeprefix(f"hflab-{self.name}-")
            known = host in ("client", "fabric") or host.removeprefix("node").isdigit()
            if host != name and known:
                found.append(name)
        return sorted(found)

    def log_path(self, host: int | str) -> Path:
        return self.dir / "logs" / f"{self.host(host)}.log"

    def need(self, node: int, power: bool = True) -> None:
        if node not in self.nodes:
            raise LabError(f"there is no node {node}")
        if self.powered(node) != power:
            raise LabError(f"node {node} is powered {'off' if power else 'on'}")

    def powered(self, node: int) -> bool:
        return bool(self.state.power.get(str(node)))

    # -- state and lock

    def load(self) -> bool:
        """Take over the saved state; False when there is none."""
        try:
            self.state = State(**json.loads((self.dir / "state.json").read_text()))
        except (OSError, ValueError):
            return False
        return True

    def save(self) -> None:
        if (self.dir / "run").is_dir():  # absent once the lab is down
            tmp = self.dir / "state.tmp"
            tmp.write_text(json.dumps(dataclasses.asdict(self.state), indent=1))
            tmp.rename(self.dir / "state.json")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with self._mutex:
            if self._depth == 0:
                self.dir.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.dir / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
                fcntl.flock(self._file, fcntl.LOCK_EX)
                self.load()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    os.close(self._file)

    def mark(self, host: int | str, text: str) -> None:
        """A line in that host's log, so that faults and the host's own lines are in order."""
        with open(self.log_path(host), "a") as log:
            log.write(f"=== lab {time.time():.3f} {self.host(host)}: {text}\n")

    # -- helper processes (drive servers, relays), recorded with pid and start time

    def reap(self) -> None:
        self.children = [child for child in self.children if child.poll() is None]

    def helper(
        self, key: str, script: str, argv: list[str], netns: str | None = None, **kwargs: Any
    ) -> subprocess.Popen[Any]:
        prefix = ["ip", "netns", "exec", netns] if netns else []
        program = [sys.executable, "-I", "-S", str(HERE / script), *argv]
        with open(self.dir / "logs" / "helpers.log", "a") as log:
            child = subprocess.Popen(
                [*prefix, *program], start_new_session=True, stderr=log, **kwargs
            )
        self.children.append(child)
        self.state.helpers[key] = {"pid": child.pid, "start": start_time(child.pid)}
        self.save()
        return child

    def end_helper(self, key: str) -> None:
        helper = self.state.helpers.pop(key, None)
        if helper and start_time(helper["pid"]) == helper["start"]:
            os.kill(helper["pid"], signal.SIGKILL)

            def gone() -> bool:
                self.reap()
                return start_time(helper["pid"]) is None

            wait_until(gone, 5, f"{key} to end")
