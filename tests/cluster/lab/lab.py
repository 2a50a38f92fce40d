"""The laboratory as a whole: building it, its hosts' power and processes, clearing it away."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .book import HERE, Book, State, operation
from .drives import Drives
from .fabric import Fabric
from .system import (
    LabError,
    in_netns,
    mounts_below,
    pids_in_netns,
    sh,
    signal_pids,
    start_time,
    wait_until,
)

TOOLS = {
    "ip": "iproute2",
    "nft": "nftables",
    "losetup": "util-linux",
    "mount": "util-linux",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
}
ROOT = HERE.parents[2]  # the repository: the reaper is started as a module of it


def missing() -> str | None:
    """Why the laboratory cannot run here, in one sentence; None when it can."""
    if sys.platform != "linux":
        return "the laboratory needs Linux"
    if os.geteuid():
        return "the laboratory needs root"
    packages = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if packages:
        return f"missing packages: {', '.join(packages)} (tests/cluster/apt-packages.txt)"
    for device in ("/dev/fuse", "/dev/loop-control", "/dev/net/tun"):
        if not os.path.exists(device):
            return f"{device} is missing"
    probe = f"hflab-probe-{os.getpid()}"
    try:
        sh("ip", "netns", "add", probe)
    except LabError as error:
        return f"no network namespaces: {error}"
    sh("ip", "netns", "del", probe, check=False)
    return None


class Lab:
    """A lab of nodes numbered from 1; `fabric` has the wires, `drives` the drives.

    Leaving the `with` block, down(), or the death of the process that owns the Lab (a small
    reaper process watches it) removes processes, mounts, loop devices and namespaces; whatever a
    crash still left is removed by the next up() of that name.  Only processes found inside the
    lab's own namespaces, and helpers recorded with pid and start time, are ever signalled.
    """

    def __init__(
        self,
        command: list[str] | None = None,
        *,
        nodes: int = 4,
        drives: int = 4,
        drive_mb: int = 256,
        name: str = "lab",
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        autostart: bool = True,
        keep: bool = False,
    ) -> None:
        state = State(
            nodes=nodes,
            drives=drives,
            drive_mb=drive_mb,
            command=command or [],
            env=env or {},
            cwd=cwd,
        )
        self.book = Book(name, state)
        self.fabric, self.drives = Fabric(self.book), Drives(self.book)
        self.keep, self.autostart = keep, autostart
        self._reaper: subprocess.Popen[bytes] | None = None

    @classmethod
    def attach(cls, name: str = "lab") -> Lab:
        """A handle on a lab that is already up (what every command of the CLI uses)."""
        lab = cls(name=name, keep=True)
        if not lab.book.load():
            raise LabError(f"no lab named {name!r} is up")
        return lab

    def __enter__(self) -> Lab:
        return self.up()

    def __exit__(self, *_exc: object) -> None:
        if not self.keep:
            self.down()

    # -- life cycle

    def up(self) -> Lab:
        if reason := missing():
            raise LabError(reason)
        wanted = self.book.state
        with self.book.locked():
            self._destroy()
            self.book.state = wanted
            try:
                self._build()
                self.book.save()
            except BaseException:
                self._destroy()
                raise
        return self

    def _build(self) -> None:
        for sub in ("disks", "fuse", "images", "logs", "run", "home"):
            (self.book.dir / sub).mkdir(parents=True, exist_ok=True)
        for log in (self.book.dir / "logs").glob("*.log"):
            log.unlink()
        if not self.keep:  # the reaper outlives us only long enough to clean up
            argv = [sys.executable, "-m", "tests.cluster.lab", "_reaper", self.book.name]
            self._reaper = subprocess.Popen(
                argv, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True
            )
        # Shared propagation: mounts made and removed later must also reach the private
        # mount namespaces that `ip netns exec` creates.
        disks = str(self.book.dir / "disks")
        sh("mount", "--bind", disks, disks)
        sh("mount", "--make-shared", disks)
        self.fabric.build()
        for node in self.book.nodes:
            self.drives.make_all(node)
        self.book.save()
        for node in self.book.nodes:
            self._power_up(node, run=self.autostart)

    @operation
    def down(self) -> None:
        self._destroy()

    def _destroy(self) -> None:
        """Remove everything of this name, whether or not this object created it."""
        book = self.book
        book.load()
        if self._reaper and self._reaper.stdin:
            self._reaper.stdin.write(b"done\n")
            self._reaper.stdin.close()
            self._reaper.wait()
            self._reaper = None
        names = book.all_ns()
        self._end_all_processes(names)
        for mount in mounts_below(book.dir / "disks"):
            sh("umount", "-l", mount, check=False)
        for row in sh("losetup", "-n", "-O", "NAME,BACK-FILE", "-l", check=False).splitlines():
            device, _, backing = row.strip().partition(" ")
            if backing.strip().startswith(f"{book.dir}/"):
                sh("losetup", "-d", device, check=False)
        for mount in mounts_below(book.dir):  # the drive servers' FUSE mounts
            sh("umount", "-l", mount, check=False)
        for name in names:
            sh("ip", "netns", "del", name, check=False)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir("/etc/netns")
        for sub in ("disks", "fuse", "images", "run", "home"):
            shutil.rmtree(book.dir / sub, ignore_errors=True)
        (book.dir / "state.json").unlink(missing_ok=True)
        book.state = State(nodes=book.state.nodes, drives=book.state.drives)

    def _end_all_processes(self, names: list[str]) -> None:
        for _ in range(100):
            pids = [pid for name in names for pid in pids_in_netns(name)]
            signal_pids(pids, signal.SIGKILL)
            for helper in self.book.state.helpers.values():  # ends hung drive requests as well
                if start_time(helper["pid"]) == helper["start"]:
                    signal_pids([helper["pid"]], signal.SIGKILL)
                    pids.append(helper["pid"])
            self.book.reap()
            if not pids:
                return
            time.sleep(0.02)

    # -- reaching the hosts

    @property
    def nodes(self) -> range:
        return self.book.nodes

    def ip(self, host: int | str) -> str:
        return self.book.ip(host)

    def log_path(self, host: int | str) -> Path:
        return self.book.log_path(host)

    def netns(self, host: int | str) -> contextlib.AbstractContextManager[None]:
        """The calling thread's new sockets belong to that host."""
        return in_netns(self.book.ns(host))

    def popen(self, host: int | str, argv: list[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a program on a host (it dies with that host's power)."""
        if host != "client":
            host = int(str(host).removeprefix("node"))
            self.book.need(host)
        child = subprocess.Popen(["ip", "netns", "exec", self.book.ns(host), *argv], **kwargs)
        self.book.children.append(child)
        return child

    def run(
        self,
        host: int | str,
        argv: list[str],
        check: bool = False,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> subprocess.CompletedProcess[Any]:
        kwargs.setdefault("capture_output", True)
        kwargs.setdefault("text", True)
        full = ["ip", "netns", "exec", self.book.ns(host), *argv]
        return subprocess.run(full, check=check, timeout=timeout, **kwargs)

    def pids(self, node: int | str) -> list[int]:
        return pids_in_netns(self.book.ns(node))

    def wait_port(
        self, node: int, port: int, timeout: float = 20, source: int | str = "client"
    ) -> float:
        """Seconds until a TCP connection from `source` to node:port is accepted."""
        begun = time.monotonic()

        def attempt() -> bool:
            with self.netns(source), contextlib.suppress(OSError):
                socket.create_connection((self.ip(node), port), timeout=0.5).close()
                return True
            return False

        wait_until(attempt, timeout, f"node{node}:{port} to accept", step_s=0.02)
        return time.monotonic() - begun

    def status(self) -> dict[str, Any]:
        state = self.book.state
        nodes = {}
        for n in self.nodes:
            nodes[n] = {
                "ip": self.ip(n),
                "power": self.book.powered(n),
                "pids": self.pids(n),
                "hung": state.hung.get(str(n)),
                "unplugged": n in state.unplugged,
                "slow": state.slow.get(str(n)),
                "faults": {k: v for k, v in state.faults.items() if v and k.startswith(f"{n}.")},
            }
        return {
            "name": self.book.name,
            "dir": str(self.book.dir),
            "client": self.ip("client"),
            "partitions": state.partitions,
            "nodes": nodes,
        }

    # -- power and processes

    def _environment(self, node: int) -> tuple[dict[str, str], dict[str, str]]:
        home = self.book.dir / "home" / f"node{node}"
        home.mkdir(parents=True, exist_ok=True)
        values = {
            "node": str(node),
            "name": f"node{node}",
            "ip": self.ip(node),
            "dir": str(home),
            "disks": ":".join(str(self.drives.path(node, d)) for d in self.book.drives),
            "nodes": ",".join(f"node{n}={self.ip(n)}" for n in self.nodes),
        }
        # A server's own settings come from this lab alone, never from the caller's shell.
        env = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
        env.update({k: _fill(v, values) for k, v in self.book.state.env.items()})
        return env, values

    def _start(self, node: int) -> None:
        if not self.book.state.command:
            return
        env, values = self._environment(node)
        command = [_fill(part, values) for part in self.book.state.command]
        self.book.mark(node, "start " + " ".join(command))
        with open(self.log_path(node), "a") as log:
            child = subprocess.Popen(
                ["ip", "netns", "exec", self.book.ns(node), *command],
                env=env,
                cwd=self.book.state.cwd or values["dir"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.book.children.append(child)

    def _power_up(self, node: int, run: bool) -> None:
        self.book.mark(node, "power on")
        self.fabric.add_host(node)
        for drive in self.book.drives:
            self.drives.mount(node, drive)
        self.book.state.power[str(node)] = True
        self.fabric.restore_slow(node)
        if run:
            self._start(node)

    @operation
    def poweron(self, node: int) -> None:
        """New network stack, drives mounted (journal replay), command run."""
        self.book.need(node, power=False)
        self._power_up(node, run=True)

    @operation
    def start(self, node: int) -> None:
        """Run the command again on a node that has power."""
        self.book.need(node)
        self._start(node)

    @operation
    def poweroff(self, *nodes: int) -> float:
        """Cut the power of these nodes at once; returns the monotonic time right after the wires were cut.

        The wires first, then the page cache, then the processes, then the network stack: peers
        receive no FIN, no RST, no ARP, and their sockets stay ESTABLISHED.
        """
        for node in nodes:
            self.book.need(node)
        for node in nodes:
            self.fabric.wire(node, False)  # from here on no frame escapes
        cut = time.monotonic()
        for _ in range(3):  # nobody runs to see the others die
            for node in nodes:
                signal_pids(self.pids(node), signal.SIGSTOP)
        for node in nodes:
            self._end_of_power(node)
        return cut

    def _end_of_power(self, node: int) -> None:
        for drive in self.book.drives:
            self.drives.lose_page_cache(node, drive)  # what was not synced is gone
        self._kill(node, signal.SIGKILL)
        for drive in self.book.drives:
            self.drives.unmount(node, drive)
        self.fabric.end_relay(node)
        self.fabric.remove_host(node)
        self.book.state.power[str(node)] = False
        self.book.state.hung.pop(str(node), None)
        self.book.mark(node, "power off")

    def _kill(self, node: int, sig: int, timeout_s: float = 10) -> None:
        def gone() -> bool:
            pids = self.pids(node)
            if sig == signal.SIGKILL:
                signal_pids(pids, sig)  # again: it may just have forked
            self.book.reap()
            return not pids

        signal_pids(self.pids(node), sig)
        wait_until(gone, timeout_s, f"processes of node {node} to end")

    @operation
    def kill(self, node: int) -> None:
        """SIGKILL with the link up: FIN and RST do reach the peers, the page cache stays."""
        self.book.need(node)
        self._kill(node, signal.SIGKILL)
        self.book.mark(node, "killed")

    @operation
    def term(self, node: int, timeout: float = 30) -> None:
        self.book.need(node)
        self._kill(node, signal.SIGTERM, timeout)
        self.book.mark(node, "terminated")

    @operation
    def hang(self, node: int, host: bool = False) -> None:
        """Stop all processes; with host=True the kernel falls silent as well."""
        self.book.need(node)
        if host:
            self.fabric.wire(node, False)
        for _ in range(3):
            signal_pids(self.pids(node), signal.SIGSTOP)
        self.book.state.hung[str(node)] = "host" if host else "processes"
        self.book.mark(node, f"hang ({self.book.state.hung[str(node)]})")

    @operation
    def resume(self, node: int) -> None:
        self.book.need(node)
        hung = self.book.state.hung.pop(str(node), None)
        if hung == "host" and node not in self.book.state.unplugged:
            self.fabric.wire(node, True)
        signal_pids(self.pids(node), signal.SIGCONT)
        self.book.mark(node, "resume")


def _fill(text: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        text = text.replace("{" + key + "}", value)
    return text
