"""The worlds a cluster test runs in: the laboratory, or loopback where there is no root.

Both start the same four node processes with four drives each, cut their power and bring it back.
What the loopback world cannot do is said in its `claims`, which every report prints.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any, Protocol

from .lab import Lab, LabError, missing, wait_until
from .lab.system import start_time
from .proxy import Proxy
from .wire import S3, Connection, Credentials, Network

ROOT = Path(__file__).resolve().parents[2]
SERVE = [sys.executable, "-m", "node.cli", "serve"]
NODES = range(1, 5)
DRIVES = range(1, 5)
S3_PORT, CONSOLE_PORT, PEER_PORT = 9000, 9001, 9002
DRIVE_MB = 2048  # sparse
# One lab a checkout: a lab clears away what is left of its name, so two test runs must differ.
LAB_NAME = f"spec{zlib.crc32(bytes(ROOT)) & 0xFFFF:x}"
ROOT_USER = Credentials(access_key="lab-root", secret_key="laboratory-secret")
SETTINGS = {
    "HOLDFAST_ROOT_USER": ROOT_USER.access_key,
    "HOLDFAST_ROOT_PASSWORD": ROOT_USER.secret_key,
    "HOLDFAST_DURABILITY": "strict",
}


class World(Protocol):
    """A cluster whose nodes, numbered from 1, can lose power."""

    claims: str
    network: Network

    def up(self) -> None: ...

    def down(self) -> None: ...

    def s3(self, node: int) -> tuple[str, int]:
        """Address of the S3 port as the client sees it."""
        ...

    def console(self, node: int) -> tuple[str, int]: ...

    def peer(self, node: int) -> str:
        """The node's name in HOLDFAST_VOLUMES and in metrics."""
        ...

    def powered(self, node: int) -> bool: ...

    def poweroff(self, *nodes: int) -> float:
        """Cut the power of all these at the same moment; the monotonic time of the cut."""
        ...

    def poweron(self, node: int) -> None: ...

    def client(self, argv: list[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a program where the clients live."""
        ...

    def running(self, node: int) -> bool:
        """Whether the node's server has a process at all."""
        ...

    def log_path(self, node: int) -> Path: ...


class LabWorld:
    """Network namespaces, real ext4 drives, silent cuts, lost page caches."""

    claims = "laboratory: silent cut, page cache and uncommitted journal lost"

    def __init__(self, name: str = LAB_NAME, extra_env: dict[str, str] | None = None) -> None:
        self.lab = Lab(SERVE, drive_mb=DRIVE_MB, name=name, cwd=str(ROOT), autostart=True)
        path = self.lab.drives.path
        volumes = [f"node{n}:{PEER_PORT}{path(n, d)}" for n in NODES for d in DRIVES]
        self.lab.book.state.env = {
            **SETTINGS,
            "HOLDFAST_VOLUMES": " ".join(volumes),
            "HOLDFAST_NODE": f"{{name}}:{PEER_PORT}",
            "HOLDFAST_S3_LISTEN": f"0.0.0.0:{S3_PORT}",
            "HOLDFAST_CONSOLE_LISTEN": f"0.0.0.0:{CONSOLE_PORT}",
            "HOLDFAST_PEER_LISTEN": f"0.0.0.0:{PEER_PORT}",
            **(extra_env or {}),
        }

    def up(self) -> None:
        self.lab.up()

    def down(self) -> None:
        self.lab.down()

    def network(self) -> contextlib.AbstractContextManager[None]:
        return self.lab.netns("client")

    def s3(self, node: int) -> tuple[str, int]:
        return self.lab.ip(node), S3_PORT

    def console(self, node: int) -> tuple[str, int]:
        return self.lab.ip(node), CONSOLE_PORT

    def peer(self, node: int) -> str:
        return f"node{node}:{PEER_PORT}"

    def powered(self, node: int) -> bool:
        return self.lab.book.powered(node)

    def poweroff(self, *nodes: int) -> float:
        return self.lab.poweroff(*nodes)

    def poweron(self, node: int) -> None:
        self.lab.poweron(node)

    def client(self, argv: list[str], **kwargs: Any) -> subprocess.Popen[Any]:
        return self.lab.popen("client", argv, **kwargs)

    def running(self, node: int) -> bool:
        return bool(self.lab.pids(node))

    def log_path(self, node: int) -> Path:
        return self.lab.log_path(node)


def descendants(pid: int) -> list[int]:
    """A process and all its children's children, by /proc."""
    parents: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            rest = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            parents.setdefault(int(rest[1]), []).append(int(entry))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


def tcp_ports(pids: list[int]) -> set[int]:
    """Local TCP ports of these processes' sockets."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(fd.path)
                    if target.startswith("socket:["):
                        inodes.add(target[8:-1])
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for row in Path(table).read_text().splitlines()[1:]:
                fields = row.split()
                if fields[9] in inodes:
                    ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


_PORTS = itertools.count(12_000 + os.getpid() % 800 * 10)


def free_port() -> int:
    """A port that is free now, and below those that outgoing connections are given: it stays free."""
    for port in itertools.islice(_PORTS, 1000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no free ports")


class LoopbackWorld:
    """A fault proxy in front of every port and plain directories: no root needed.

    HOLDFAST_VOLUMES names each node by its peer port's proxy, so peers meet the proxy too.
    """

    claims = "loopback proxy: silent cut, but no page cache is lost and no host is rebooted"

    def __init__(
        self, command: list[str] | None = None, extra_env: dict[str, str] | None = None
    ) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="holdfast-loopback-"))
        self.command, self.extra_env = command or SERVE, extra_env or {}
        self.proxy = Proxy()
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.clients: list[subprocess.Popen[Any]] = []
        self.real: dict[int, dict[int, int]] = {}
        self.front: dict[int, dict[int, int]] = {}
        for node in NODES:
            ports = {port: free_port() for port in (S3_PORT, CONSOLE_PORT, PEER_PORT)}
            self.real[node] = ports
            self.front[node] = {
                port: self.proxy.route(node, ("127.0.0.1", real)) for port, real in ports.items()
            }
            for drive in DRIVES:
                self.drive(node, drive).mkdir(parents=True)

    def drive(self, node: int, drive: int) -> Path:
        return self.dir / f"node{node}" / f"disk{drive}"

    def network(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def _address(self, node: int, port: int) -> tuple[str, int]:
        return "127.0.0.1", self.front[node][port]

    def s3(self, node: int) -> tuple[str, int]:
        return self._address(node, S3_PORT)

    def console(self, node: int) -> tuple[str, int]:
        return self._address(node, CONSOLE_PORT)

    def peer(self, node: int) -> str:
        return f"127.0.0.1:{self.front[node][PEER_PORT]}"

    def running(self, node: int) -> bool:
        return node in self.processes and self.processes[node].poll() is None

    def log_path(self, node: int) -> Path:
        return self.dir / f"node{node}.log"

    def up(self) -> None:
        for node in NODES:
            self._start(node)

    def down(self) -> None:
        for node in list(self.processes):
            self._kill(node)
        for client in self.clients:
            if client.poll() is None:
                client.kill()
                client.wait()
        self.proxy.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def _start(self, node: int) -> None:
        volumes = [f"{self.peer(n)}{self.drive(n, d)}" for n in NODES for d in DRIVES]
        listen = {port: f"127.0.0.1:{real}" for port, real in self.real[node].items()}
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
        env = {
            **inherited,
            **SETTINGS,
            "HOLDFAST_VOLUMES": " ".join(volumes),
            "HOLDFAST_NODE": self.peer(node),
            "HOLDFAST_S3_LISTEN": listen[S3_PORT],
            "HOLDFAST_CONSOLE_LISTEN": listen[CONSOLE_PORT],
            "HOLDFAST_PEER_LISTEN": listen[PEER_PORT],
            **self.extra_env,
        }
        with open(self.log_path(node), "ab") as log:
            self.processes[node] = subprocess.Popen(
                self.command,
                env=env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def powered(self, node: int) -> bool:
        return node in self.processes

    def poweroff(self, *nodes: int) -> float:
        if off := [node for node in nodes if node not in self.processes]:
            raise LabError(f"nodes {off} are powered off")
        # Stopped processes send nothing, so their sockets can be listed before the wire is cut.
        stopped = {node: descendants(self.processes[node].pid) for node in nodes}
        for pid in itertools.chain.from_iterable(stopped.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        for node, pids in stopped.items():
            self.proxy.cut(node, tcp_ports(pids))
        cut = time.monotonic()
        for node in nodes:
            self._kill(node)
        return cut

    def _kill(self, node: int) -> None:
        process = self.processes.pop(node)
        pids = descendants(process.pid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        wait_until(lambda: not any(start_time(p) for p in pids), 10, f"node {node} to end")

    def poweron(self, node: int) -> None:
        if node in self.processes:
            raise LabError(f"node {node} is powered on")
        self.proxy.restore(node)
        self._start(node)

    def client(self, argv: list[str], **kwargs: Any) -> subprocess.Popen[Any]:
        child = subprocess.Popen(argv, **kwargs)
        self.clients.append(child)
        return child


def choose(name: str = LAB_NAME) -> tuple[World, str]:
    """The best world this machine allows, and why; TEST_WORLD=loopback asks for the lesser."""
    reason = "asked for" if os.environ.get("TEST_WORLD") == "loopback" else missing()
    if reason is None:
        return LabWorld(name), LabWorld.claims
    if os.environ.get("TEST_WORLD") == "lab":
        raise LabError(f"TEST_WORLD=lab, but {reason}")
    return LoopbackWorld(), f"{LoopbackWorld.claims} ({reason})"


def connect(world: World, address: tuple[str, int], timeout_s: float) -> Connection:
    return Connection(*address, timeout_s=timeout_s, network=world.network)


def root_s3(world: World, node: int, timeout_s: float = 15.0) -> S3:
    """An S3 client with the root's credentials on one node."""
    return S3(world.s3(node), ROOT_USER, timeout_s=timeout_s, network=world.network)
