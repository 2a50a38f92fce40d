"""A local cluster for the benchmarks: `holdfast dev` in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench import machine

ROOT = Path(__file__).resolve().parents[1]
READY_S = 120.0
ROOM = 6 << 30  # bytes a tmpfs must have free to be used
NODES = 4
DEV = [sys.executable, "-m", "node.cli", "dev"]


def scratch_dir() -> Path:
    """Memory where there is room, so that no disk is measured; else the temporary folder."""
    shm = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if shutil.disk_usage(shm).free >= ROOM:
            return Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir=shm))
    return Path(tempfile.mkdtemp(prefix="holdfast-bench-"))


def free_base_port() -> int:
    """A base port whose block (S3, console, peers of each node) is free now."""
    for base in range(19000, 29000, 100):
        ports = [base + 10 * node + kind for node in range(NODES) for kind in range(3)]
        try:
            for port in ports:
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return base
    raise ClusterFailed("no free block of ports between 19000 and 29000")


class ClusterFailed(RuntimeError):
    """The cluster could not be started; carries what it said."""


class DevCluster:
    """Four nodes of four drives on this machine."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder, self.settings = folder, settings
        self.access_key, self.secret_key = "bench-root", secrets.token_hex(16)
        self.base_port = free_base_port()
        self.process: subprocess.Popen[str] | None = None
        self.ready = threading.Event()

    @property
    def endpoints(self) -> list[str]:
        return [f"http://127.0.0.1:{self.base_port + 10 * n}" for n in range(NODES)]

    def start(self) -> float:
        """Seconds until the cluster took writes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
        env = {
            **inherited,
            "HOLDFAST_ROOT_USER": self.access_key,
            "HOLDFAST_ROOT_PASSWORD": self.secret_key,
            **self.settings,
        }
        options = ["--nodes", str(NODES), "--drives", "4", "--dir", str(self.folder / "data")]
        begun = time.monotonic()
        self.process = subprocess.Popen(
            [*DEV, *options, "--base-port", str(self.base_port)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._drain, daemon=True).start()
        while not self.ready.wait(0.1):
            if self.process.poll() is not None or time.monotonic() - begun > READY_S:
                self.stop()
                said = self.log_path.read_text()[-3000:] if self.log_path.exists() else ""
                raise ClusterFailed(f"the cluster did not start; it said:\n{said}")
        return time.monotonic() - begun

    @property
    def log_path(self) -> Path:
        return self.folder / "dev.log"

    def _drain(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        with open(self.log_path, "w") as log:
            for line in self.process.stdout:
                log.write(line)
                log.flush()
                if line.strip() == "ready":
                    self.ready.set()

    def stop(self) -> None:
        if self.process is None:
            return
        pids = machine.with_descendants([self.process.pid])
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def node_pids(self) -> list[list[int]]:
        """Processes by node: each child of `dev` with its drive processes, in order of start."""
        assert self.process is not None
        roots = machine.children(self.process.pid)
        return [machine.with_descendants([pid]) for pid in roots]

    def pids(self) -> list[int]:
        return [pid for node in self.node_pids() for pid in node]

    @contextlib.contextmanager
    def frozen(self, node: int | None) -> Iterator[None]:
        """Stop a node's processes (dark to its peers) for the length of the block."""
        pids = self.node_pids()[node - 1] if node else []
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        if pids:
            time.sleep(5)  # the peers have found out
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
