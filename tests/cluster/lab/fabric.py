"""The network: a namespace per host, one bridge, and what can be done to the wires.

The bridge lives in a namespace of its own; nothing is added to the root network namespace and no
traffic can leave the laboratory.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

from .book import Book, operation
from .system import LabError, in_netns, ip_batch, sh


def _no_ipv6(netns: str) -> None:
    with in_netns(netns):
        for which in ("all", "default"):
            with contextlib.suppress(OSError):
                Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")


def _port(host: int | str) -> str:
    return "client" if host == "client" else f"n{host}"


class Fabric:
    """Hosts and wires of one lab; hosts are node numbers from 1 and "client"."""

    def __init__(self, book: Book) -> None:
        self.book = book

    def build(self) -> None:
        fabric = self.book.ns("fabric")
        sh("ip", "netns", "add", fabric)
        _no_ipv6(fabric)
        bridge = "link add br0 type bridge forward_delay 0 mcast_snooping 0"
        ip_batch(fabric, ["link set lo up", bridge, "link set br0 up"])
        self._apply_partitions()
        self.add_host("client")

    def add_host(self, host: int | str) -> None:
        """A namespace with an empty network stack, wired to the bridge, MAC and IP fixed."""
        book, netns, port = self.book, self.book.ns(host), _port(host)
        number = 100 if host == "client" else 10 + int(host)
        etc = Path("/etc/netns") / netns
        etc.mkdir(parents=True, exist_ok=True)
        names = [("127.0.0.1", "localhost"), (book.ip("client"), "client")]
        names += [(book.ip(n), f"node{n}") for n in book.nodes]
        (etc / "hosts").write_text("".join(f"{a} {n}\n" for a, n in names))
        (etc / "resolv.conf").write_text("options timeout:1 attempts:1\n")
        sh("ip", "netns", "add", netns)
        _no_ipv6(netns)
        mac = f"02:00:00:00:00:{number:02x}"
        ip_batch(
            book.ns("fabric"),
            [
                f"link add {port} type veth peer name eth0 address {mac} netns {netns}",
                f"link set {port} up",
            ],
        )
        address = f"addr add {book.ip(host)}/24 dev eth0"
        ip_batch(netns, ["link set lo up", address, "link set eth0 up"])
        if host not in book.state.unplugged:
            self.wire(host, True)

    def remove_host(self, node: int) -> None:
        """Orphaned sockets of a dead host must not retransmit a FIN later: the stack goes too."""
        sh("ip", "-n", self.book.ns("fabric"), "link", "del", f"n{node}")
        sh("ip", "netns", "del", self.book.ns(node))

    def wire(self, host: int | str, connected: bool) -> None:
        """Join or leave the bridge.  The host's own carrier stays up: it notices nothing."""
        port = _port(host) if str(host) not in self.book.state.slow else f"s{host}"
        role = ["master", "br0"] if connected else ["nomaster"]
        sh("ip", "-n", self.book.ns("fabric"), "link", "set", port, *role)

    @operation
    def unplug(self, node: int) -> None:
        """Cable out; processes keep running."""
        self.book.need(node)
        self.wire(node, False)
        self.book.state.unplugged.append(node)
        self.book.mark(node, "unplugged")

    @operation
    def plug(self, node: int) -> None:
        self.book.need(node)
        self.book.state.unplugged = [n for n in self.book.state.unplugged if n != node]
        self.wire(node, True)
        self.book.mark(node, "plugged")

    # -- partitions

    def _group(self, text: str, others: set[str]) -> set[str]:
        hosts = {str(n) for n in self.book.nodes} | {"client"}
        if text.strip() == "*":
            return hosts - others
        group = {h.strip().removeprefix("node") for h in text.split(",") if h.strip()}
        if group - hosts:
            raise LabError(f"unknown host in partition: {sorted(group - hosts)}")
        return group

    @operation
    def partition(self, spec: str) -> None:
        """'1,2|3,4' drops both ways; '1>3' drops only what 1 sends to 3; '*' = all others."""
        sign = ">" if ">" in spec else "|"
        left_text, _, right_text = spec.partition(sign)
        right_first = self._group(right_text, set()) if left_text.strip() == "*" else set()
        left = self._group(left_text, right_first)
        right = self._group(right_text, left)
        pairs = [[a, b] for a in sorted(left) for b in sorted(right) if a != b]
        self.book.state.partitions += pairs
        self.book.state.partitions += [] if sign == ">" else [[b, a] for a, b in pairs]
        self._apply_partitions()

    @operation
    def heal(self) -> None:
        """Remove all partitions."""
        self.book.state.partitions = []
        self._apply_partitions()

    def _apply_partitions(self) -> None:
        def ports(host: str) -> str:
            return '{ "client" }' if host == "client" else f'{{ "n{host}", "s{host}" }}'

        rules = [
            f"    iifname {ports(a)} oifname {ports(b)} drop" for a, b in self.book.state.partitions
        ]
        lines = [
            "add table bridge lab",
            "delete table bridge lab",
            "table bridge lab {",
            "  chain cut {",
            "    type filter hook forward priority 0; policy accept;",
            *rules,
            "  }",
            "}",
            "",
        ]
        fabric = self.book.ns("fabric")
        sh("ip", "netns", "exec", fabric, "nft", "-f", "-", stdin="\n".join(lines))

    # -- slow wires

    @operation
    def slow(
        self, node: int, delay: float = 0, jitter: float = 0, loss: float = 0, rate: float = 0
    ) -> None:
        """Milliseconds, milliseconds, per cent, Mbit/s (0 = unlimited); for each direction."""
        self.book.need(node)
        self._slow(node, {"delay": delay, "jitter": jitter, "loss": loss, "rate": rate})
        self.book.mark(node, f"slow link {self.book.state.slow[str(node)]}")

    def restore_slow(self, node: int) -> None:
        """A slow link stays slow over a power cycle; its relay must be made anew."""
        link = self.book.state.slow.pop(str(node), None)
        if link:
            self._slow(node, link)

    def _slow(self, node: int, link: dict[str, float]) -> None:
        book, fabric = self.book, self.book.ns("fabric")
        config, key = book.dir / "run" / f"slow{node}.json", f"relay{node}"
        config.write_text(json.dumps(link))
        if str(node) in book.state.slow and key in book.state.helpers:
            os.kill(book.state.helpers[key]["pid"], signal.SIGHUP)
        else:
            argv = [f"a{node}", f"s{node}", str(config)]
            relay = book.helper(key, "relay.py", argv, netns=fabric, stdout=subprocess.PIPE)
            assert relay.stdout is not None
            with relay.stdout as answer:
                if answer.readline() != b"ready\n":
                    raise LabError("the slow-link relay did not start; see helpers.log")
            ip_batch(
                fabric,
                [
                    f"link add brs{node} type bridge forward_delay 0 mcast_snooping 0",
                    f"link set brs{node} up",
                    f"link set a{node} master brs{node} up",
                    f"link set s{node} up",
                    f"link set n{node} master brs{node}",
                ],
            )
            book.state.slow[str(node)] = link
            if node not in book.state.unplugged:
                self.wire(node, True)
        book.state.slow[str(node)] = link

    @operation
    def unslow(self, node: int) -> None:
        if str(node) in self.book.state.slow:
            del self.book.state.slow[str(node)]
            if node not in self.book.state.unplugged:
                self.wire(node, True)
            self.end_relay(node)
            self.book.mark(node, "slow link off")

    def end_relay(self, node: int) -> None:
        if f"relay{node}" in self.book.state.helpers:
            self.book.end_helper(f"relay{node}")
            sh("ip", "-n", self.book.ns("fabric"), "link", "del", f"brs{node}", check=False)
