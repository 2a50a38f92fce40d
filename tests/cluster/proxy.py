"""A TCP proxy over loopback that can make a node go dark: what stands in for the wire.

One thread forwards every route.  A cut freezes the links of a node, those it accepted and those it
made (known by their source ports): nothing is forwarded, nothing is closed, and new connections to
it are accepted and then never answered, which is harder on a peer than a lost SYN.  When power
returns the frozen links are reset, as a rebooted host's kernel would do.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

CHUNK = 256 * 1024
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST
CALL_S = 10.0


@dataclass(slots=True, eq=False)
class Route:
    """What listens for one port of a node."""

    node: int
    listener: socket.socket
    target: tuple[str, int]


@dataclass(slots=True, eq=False)
class Side:
    """One socket of a link, what is still to be sent to it, and what it said about its end."""

    sock: socket.socket
    out: bytearray = field(default_factory=bytearray)
    read_open: bool = True
    closing: bool = False  # the other side ended: close our writing half once `out` is empty
    ready: bool = True  # False until a connection attempt has succeeded


@dataclass(slots=True, eq=False)
class Link:
    route: Route
    client: Side
    server: Side
    client_port: int
    frozen: set[int] = field(default_factory=set)  # the dark nodes it belongs to

    def other(self, side: Side) -> Side:
        return self.server if side is self.client else self.client


class Proxy:
    """Routes by port; cut() and restore() take effect before they return."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._routes: list[Route] = []
        self._links: set[Link] = set()
        self._dark: set[int] = set()
        self._inbox: list[Callable[[], None]] = []
        self._mutex = threading.Lock()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ, None)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="fault-proxy")
        self._thread.start()

    # -- called by the tests' threads

    def _call(self, action: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            action()
            done.set()

        with self._mutex:
            self._inbox.append(run)
        self._wake_out.send(b"x")
        if not done.wait(CALL_S):
            raise TimeoutError("the fault proxy does not answer")

    def route(self, node: int, target: tuple[str, int]) -> int:
        """A new port that leads to `target` of that node."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        listener.setblocking(False)
        route = Route(node, listener, target)

        def add() -> None:
            self._routes.append(route)
            self._selector.register(listener, selectors.EVENT_READ, route)

        self._call(add)
        port: int = listener.getsockname()[1]
        return port

    def cut(self, node: int, own_ports: set[int]) -> None:
        """Silence: links to the node, and links made from `own_ports` (the node's sockets)."""

        def freeze() -> None:
            self._dark.add(node)
            for link in self._links:
                if link.route.node == node or link.client_port in own_ports:
                    self._freeze(link, node)

        self._call(freeze)

    def restore(self, node: int) -> None:
        """The node's power is back: what it knew of connections is gone."""

        def reset() -> None:
            self._dark.discard(node)
            for link in [each for each in self._links if node in each.frozen]:
                self._drop(link, reset=True)

        self._call(reset)

    def close(self) -> None:
        def stop() -> None:
            self._stopped = True

        self._call(stop)
        self._thread.join(CALL_S)

    # -- the proxy's own thread

    def _run(self) -> None:
        while not self._stopped:
            for key, events in self._selector.select():
                if key.data is None:
                    self._take_calls()
                elif isinstance(key.data, Route):
                    self._accept(key.data)
                else:
                    self._serve(*key.data, events)
        for link in list(self._links):
            self._drop(link, reset=True)
        for route in self._routes:
            route.listener.close()
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    def _take_calls(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_in.recv(4096)
        with self._mutex:
            calls, self._inbox = self._inbox, []
        for call in calls:
            call()

    def _accept(self, route: Route) -> None:
        try:
            sock, address = route.listener.accept()
        except OSError:
            return
        onward = socket.socket()
        for each in (sock, onward):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(route, Side(sock), Side(onward, ready=False), address[1])
        self._links.add(link)
        if route.node in self._dark:
            link.frozen.add(route.node)
            return
        onward.connect_ex(route.target)
        self._watch(link)

    def _watch(self, link: Link) -> None:
        """Ask the selector for exactly what each side can do now."""
        if link.frozen or link not in self._links:
            return
        for side in (link.client, link.server):
            room = len(link.other(side).out) < CHUNK
            events = selectors.EVENT_READ if side.read_open and room and side.ready else 0
            if side.out or not side.ready:
                events |= selectors.EVENT_WRITE
            known = self._selector.get_map().get(side.sock.fileno())
            if known and not events:
                self._selector.unregister(side.sock)
            elif known and known.events != events:
                self._selector.modify(side.sock, events, (link, side))
            elif not known and events:
                self._selector.register(side.sock, events, (link, side))

    def _serve(self, link: Link, side: Side, events: int) -> None:
        if link.frozen or link not in self._links:
            return
        try:
            if not side.ready:
                if error := side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(error, os.strerror(error))
                side.ready = True
            if events & selectors.EVENT_READ and side.read_open:
                self._receive(link, side)
            for each in (link.client, link.server):
                self._flush(each)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(link, reset=True)
            return
        if any(each.read_open or each.out for each in (link.client, link.server)):
            self._watch(link)
        else:
            self._drop(link, reset=False)

    def _receive(self, link: Link, side: Side) -> None:
        data = side.sock.recv(CHUNK)
        other = link.other(side)
        if data:
            other.out += data
        else:
            side.read_open = False
            other.closing = True

    @staticmethod
    def _flush(side: Side) -> None:
        if side.out and side.ready:
            with contextlib.suppress(BlockingIOError):
                sent = side.sock.send(side.out)
                del side.out[:sent]
        if side.closing and not side.out and side.ready:
            side.closing = False
            side.sock.shutdown(socket.SHUT_WR)

    def _forget(self, link: Link) -> None:
        for side in (link.client, link.server):
            if self._selector.get_map().get(side.sock.fileno()):
                self._selector.unregister(side.sock)

    def _freeze(self, link: Link, node: int) -> None:
        link.frozen.add(node)
        self._forget(link)

    def _drop(self, link: Link, *, reset: bool) -> None:
        self._forget(link)
        self._links.discard(link)
        for side in (link.client, link.server):
            if reset:
                with contextlib.suppress(OSError):
                    side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            side.sock.close()
