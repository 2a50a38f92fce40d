"""The loopback world keeps its claim too: a node without power is silent, in both directions."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator

import pytest

from .world import S3_PORT, LoopbackWorld

pytestmark = pytest.mark.timeout(120)

# A node that echoes, and that keeps a connection to the next node's S3 port alive: whatever that
# one's kernel says when a node dies is printed.
SERVER = r"""
import os, socket, sys, threading, time
host, _, port = os.environ["HOLDFAST_S3_LISTEN"].rpartition(":")
listener = socket.create_server((host, int(port)))
print("listening", flush=True)
def echo(peer):
    try:
        while data := peer.recv(65536):
            peer.sendall(data)
        print("FIN", flush=True)
    except OSError:
        print("RST", flush=True)
def talk():
    target = os.environ.get("TALK_TO")
    while target:
        try:
            with socket.create_connection(("127.0.0.1", int(target)), timeout=5) as sock:
                sock.sendall(b"x")
                sock.recv(1)
                print("talks", flush=True)
                while True:
                    sock.sendall(b"x" * 100_000)
                    left = 100_000
                    while left:
                        left -= len(sock.recv(left))
                    time.sleep(0.02)
        except OSError:
            time.sleep(0.05)
threading.Thread(target=talk, daemon=True).start()
while True:
    threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
"""


@pytest.fixture
def world() -> Iterator[LoopbackWorld]:
    world = LoopbackWorld([sys.executable, "-I", "-S", "-c", SERVER])
    world.extra_env["TALK_TO"] = str(world.s3(1)[1])  # all nodes talk to node 1
    try:
        world.up()
        for node in (1, 2, 4):
            wait_for(world, node, "listening")
        wait_for(world, 4, "talks")  # a node that nobody is connected to leaves nothing to be heard
        yield world
    finally:
        world.down()


def wait_for(world: LoopbackWorld, node: int, text: str, count: int = 1) -> None:
    end = time.monotonic() + 40
    while world.log_path(node).read_text().count(text) < count:
        assert time.monotonic() < end, world.log_path(node).read_text()
        time.sleep(0.01)


def echo(sock: socket.socket, data: bytes, timeout_s: float = 5.0) -> bool:
    sock.settimeout(timeout_s)
    try:
        sock.sendall(data)
        left = len(data)
        while left:
            got = sock.recv(left)
            if not got:
                return False
            left -= len(got)
    except TimeoutError:
        return False
    return True


def test_a_cut_is_silent_for_the_client_and_for_the_peers(world: LoopbackWorld) -> None:
    with socket.create_connection(world.s3(4)) as old, socket.create_connection(world.s3(2)) as to2:
        assert echo(old, b"a" * 3_000_000)
        assert echo(to2, b"ping")
        world.poweroff(4)
        assert not world.powered(4)
        assert not echo(old, b"anyone?", 0.5)  # neither an answer nor an end
        assert echo(to2, b"ping"), "the others go on"
        with socket.create_connection(world.s3(4), timeout=1) as new:
            assert not echo(new, b"anyone?", 0.5)
        time.sleep(0.3)
        assert "RST" not in world.log_path(1).read_text()
        assert "FIN" not in world.log_path(1).read_text()
        world.poweroff(3)
        world.poweron(4)
        wait_for(world, 4, "listening", 2)
        wait_for(world, 1, "RST")  # node 1 hears of node 4's old connection only now
        assert world.log_path(1).read_text().count("RST") == 1  # and of node 3's still nothing
        with pytest.raises(ConnectionResetError):
            echo(old, b"anyone?")
        with socket.create_connection(world.s3(4)) as again:
            assert echo(again, b"back")


def test_a_closed_connection_is_forwarded_as_closed(world: LoopbackWorld) -> None:
    before = world.log_path(2).read_text().count("FIN")
    with socket.create_connection(world.s3(2)) as sock:
        assert echo(sock, b"x" * 500_000)
    wait_for(world, 2, "FIN", before + 1)
    assert world.real[2][S3_PORT] != world.s3(2)[1]
