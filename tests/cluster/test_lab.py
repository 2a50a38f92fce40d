"""The laboratory proves its own claims: without these the power-off tests would prove nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .lab import Lab, LabError, missing, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

SERVER = r"""
import os, signal, socket, sys, threading
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[1], 9000))
listener.listen(64)
if os.fork() == 0:                       # a helper in another session must die as well
    os.setsid()
    signal.pause()
def echo(peer):
    while data := peer.recv(65536):
        peer.sendall(data)
while True:
    threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
"""
NAME = "selftest"


@pytest.fixture(scope="module")
def built() -> Iterator[Lab]:
    if reason := missing():
        pytest.skip(reason)
    command = [sys.executable, "-I", "-S", "-c", SERVER, "{ip}"]
    with Lab(command, nodes=3, drives=2, drive_mb=64, name=NAME) as lab:
        yield lab
    assert not [n for n in os.listdir("/run/netns") if n.startswith(f"hflab-{NAME}-")]
    assert f"{lab.book.dir}/" not in Path("/proc/self/mounts").read_text()


@pytest.fixture
def lab(built: Lab) -> Lab:
    """The lab with every node powered, running and reachable."""
    built.fabric.heal()
    for node in built.nodes:
        if not built.book.powered(node):
            built.poweron(node)
        built.resume(node)
        if not built.pids(node):
            built.start(node)
        built.wait_port(node, 9000)
    return built


def connect(lab: Lab, node: int, source: int | str = "client") -> socket.socket:
    with lab.netns(source):
        return socket.create_connection((lab.ip(node), 9000), timeout=2.0)


def echo(sock: socket.socket, timeout_s: float = 2.0) -> None:
    sock.settimeout(timeout_s)
    sock.sendall(b"ping")
    assert sock.recv(100) == b"ping"


def established(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x01"


class Sniffer:
    """Frames a host receives from one node, as TCP flags (None for a frame that is not TCP)."""

    def __init__(self, lab: Lab, host: int | str, node: int) -> None:
        self.mac = bytes([2, 0, 0, 0, 0, 10 + node])
        with lab.netns(host):
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self.sock.bind(("eth0", 0))
        self.sock.setblocking(False)

    def flags(self, ports: set[int] | None = None) -> list[int | None]:
        """TCP flags by frame; with `ports` only of frames to these ports of ours."""
        out: list[int | None] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self.sock.recv(65536)
                if frame[6:12] != self.mac:
                    continue
                tcp = frame[12:14] == b"\x08\x00" and frame[23] == 6
                header = 14 + (frame[14] & 15) * 4
                port = int.from_bytes(frame[header + 2 : header + 4], "big") if tcp else None
                if ports is None or port in ports:
                    out.append(frame[header + 13] if tcp else None)
        return out


def write(path: Path, data: bytes, sync: bool = True) -> None:
    with open(path, "wb") as handle:
        handle.write(data)
        if sync:
            handle.flush()
            os.fsync(handle.fileno())


def test_poweroff_is_silent_and_the_returned_node_resets_old_connections(lab: Lab) -> None:
    sniffer, sock, idle = Sniffer(lab, "client", 2), connect(lab, 2), connect(lab, 2)
    echo(sock)
    ports = {sock.getsockname()[1], idle.getsockname()[1]}
    sniffer.flags()
    lab.poweroff(2)
    sock.settimeout(1.5)
    sock.sendall(b"anyone?")
    with pytest.raises(TimeoutError):
        sock.recv(10)
    assert established(sock) and established(idle)
    assert sniffer.flags() == [], "a frame of the dead node escaped"
    assert lab.pids(2) == []
    lab.poweron(2)
    lab.wait_port(2, 9000)
    sock.settimeout(10)
    with pytest.raises(ConnectionResetError):  # the new kernel knows no such connection
        sock.recv(10)
    assert not [f for f in sniffer.flags(ports) if f and f & 1], "a FIN of the dead host escaped"
    assert established(idle)  # it still believes: only a keepalive or a deadline can tell
    for each in (sock, idle, sniffer.sock):
        each.close()


def test_kill_tells_the_peers_and_keeps_the_page_cache(lab: Lab) -> None:
    path = lab.drives.path(3, 1) / "cached"
    write(path, b"c", sync=False)
    with connect(lab, 3) as sock:
        echo(sock)
        lab.kill(3)
        assert sock.recv(10) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(lab, 3)
    assert path.read_bytes() == b"c"


def test_unsynced_data_is_lost_and_synced_data_kept_at_poweroff(lab: Lab) -> None:
    drive = lab.drives.path(1, 2)
    write(drive / "synced", b"s" * 100_000)
    with open(drive / "synced", "ab") as handle:
        handle.write(b"tail")
    write(drive / "renamed.tmp", b"n", sync=False)
    os.rename(drive / "renamed.tmp", drive / "renamed")  # the classic missing fsync
    write(drive / "unsynced", b"u" * 100_000, sync=False)
    lab.poweroff(1)
    assert os.listdir(drive) == []  # nothing mounted
    lab.poweron(1)
    assert (drive / "synced").read_bytes() == b"s" * 100_000
    assert sorted(os.listdir(drive)) == ["lost+found", "synced"]


def test_hang_keeps_the_kernel_alive_and_hang_host_does_not(lab: Lab) -> None:
    lab.hang(1)
    with connect(lab, 1) as accepted_by_the_kernel:
        with pytest.raises(TimeoutError):
            echo(accepted_by_the_kernel, 0.5)
        lab.resume(1)
        accepted_by_the_kernel.settimeout(2)
        assert accepted_by_the_kernel.recv(10) == b"ping"
        lab.hang(1, host=True)
        with pytest.raises(OSError):
            connect(lab, 1)
        assert established(accepted_by_the_kernel)
        lab.resume(1)
        echo(accepted_by_the_kernel, 5)


def reaches(lab: Lab, source: int | str, node: int) -> bool:
    with contextlib.suppress(OSError), lab.netns(source):
        with socket.create_connection((lab.ip(node), 9000), timeout=0.6) as sock:
            echo(sock, 0.6)
        return True
    return False


def test_partition_cuts_both_ways_or_one(lab: Lab) -> None:
    lab.fabric.partition("1|2,3")
    assert not reaches(lab, 1, 3) and not reaches(lab, 3, 1)
    assert reaches(lab, 2, 3) and reaches(lab, "client", 1)
    lab.fabric.heal()  # ARP may need up to a second more
    wait_until(lambda: reaches(lab, 1, 3), 10, "node 1 to reach node 3 again")
    with connect(lab, 3, source=1) as sock:
        echo(sock)
        sniffer = Sniffer(lab, 3, 1)
        lab.fabric.partition("3>1")
        sock.sendall(b"x")
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.recv(10)
        assert sniffer.flags(), "1 -> 3 must still pass"
        sniffer.sock.close()


def test_drive_faults_reach_the_file_system(lab: Lab) -> None:
    drive = lab.drives.path(2, 1)
    write(drive / "a", b"a" * 50_000)
    lab.drives.fail(2, 1, "read")
    with pytest.raises(OSError) as failed:
        (drive / "a").read_bytes()
    assert failed.value.errno == errno.EIO
    write(lab.drives.path(2, 2) / "b", b"neighbour")  # the other drives are fine
    lab.drives.ok(2, 1)
    assert (drive / "a").read_bytes() == b"a" * 50_000
    lab.drives.lie(2, 1)
    with open(drive / "a", "r+b") as handle:
        handle.write(b"new")
        handle.flush()
        os.fsync(handle.fileno())  # "succeeds"
    lab.drives.drop_caches(2, 1)
    assert (drive / "a").read_bytes() == b"a" * 50_000
    lab.drives.ok(2, 1)
    lab.drives.flip(2, 1, "a", offset=7, bit=3)
    assert (drive / "a").read_bytes()[:9] == b"aaaaaaaia"
    with pytest.raises(LabError):
        lab.drives.flip(2, 1, "../disk2/b")


def test_a_hung_drive_blocks_until_released_and_does_not_block_a_poweroff(lab: Lab) -> None:
    path = lab.drives.path(3, 2) / "h"
    lab.drives.hang(3, 2, "write")
    worker = threading.Thread(target=write, args=(path, b"h" * 10_000), daemon=True)
    worker.start()
    worker.join(0.5)
    assert worker.is_alive()
    lab.drives.ok(3, 2)
    worker.join(5)
    assert not worker.is_alive() and path.read_bytes() == b"h" * 10_000
    lab.drives.hang(3, 2)
    code = "import os, sys; f = open(sys.argv[1], 'wb'); f.write(b'x'); f.flush(); os.fsync(f)"
    stuck = lab.popen(3, [sys.executable, "-I", "-S", "-c", code, str(path.with_name("x"))])
    with pytest.raises(Exception, match="timed out"):
        stuck.wait(0.7)
    lab.poweroff(3)
    stuck.wait(5)


def test_the_reaper_clears_away_after_its_owner_was_killed() -> None:
    if reason := missing():
        pytest.skip(reason)
    name = f"{NAME}-crash"
    code = f"""
import time
from tests.cluster.lab import Lab
lab = Lab(["sleep", "100"], nodes=1, drives=1, drive_mb=64, name={name!r}).up()
lab.drives.hang(1, 1)
print("ready", flush=True)
time.sleep(100)
"""
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        owner.kill()

    def gone() -> bool:
        spaces = [n for n in os.listdir("/run/netns") if n.startswith(f"hflab-{name}-")]
        return not spaces and f"/{name}/" not in Path("/proc/self/mounts").read_text()

    assert wait_until(gone, 20, "the reaper to finish", step_s=0.1)
