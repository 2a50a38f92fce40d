"""A local cluster of real processes on loopback, node by node: what `holdfast dev` starts, with a switch for each."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from node.cli.dev import NODE_COMMAND, Credentials, plan_members

ROOT = Path(__file__).resolve().parents[2]
CREDENTIALS = Credentials(
    user="dev-root", password="development-secret", cluster_secret="a-secret-of-this-test-cluster"
)
START_S = 90.0


def free_base_port(nodes: int) -> int:
    """A base port whose ports are all free now; far below the ephemeral ones."""
    for base in range(21_000 + os.getpid() % 500 * 10, 32_000, 10 * nodes):
        with contextlib.ExitStack() as stack:
            try:
                for offset in range(0, 10 * nodes, 10):
                    for port in range(base + offset, base + offset + 3):
                        probe = stack.enter_context(socket.socket())
                        probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise AssertionError("no free ports")


class DevWorld:
    """Nodes are numbered from 1."""

    def __init__(self, *, nodes: int = 4, drives: int = 4, **settings: str) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="holdfast-dev-"))
        environ = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
        self.members = plan_members(
            nodes=nodes,
            drives=drives,
            directory=self.dir,
            base_port=free_base_port(nodes),
            credentials=CREDENTIALS,
            parity=None,
            durability="strict",
            environ=environ,
        )
        self.settings = settings
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for node in self.numbers:
            for drive in range(1, drives + 1):
                self.drive(node, drive).mkdir(parents=True)

    @property
    def numbers(self) -> range:
        return range(1, len(self.members) + 1)

    def drive(self, node: int, drive: int) -> Path:
        return self.members[node - 1].directory / f"disk{drive}"

    # ---- life ------------------------------------------------------------------------------------
    def up(self) -> None:
        for node in self.numbers:
            self.start(node)
        self.wait_ready(*self.numbers)

    def down(self) -> None:
        for node in list(self.processes):
            self.signal(node, signal.SIGCONT)
            self.kill(node)
        shutil.rmtree(self.dir, ignore_errors=True)

    def start(self, node: int) -> None:
        member = self.members[node - 1]
        with open(member.log, "ab") as log:
            self.processes[node] = subprocess.Popen(
                NODE_COMMAND,
                env={**member.environment, **self.settings},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def signal(self, node: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.processes[node].send_signal(number)

    def kill(self, node: int) -> None:
        """SIGKILL; the drives' processes end with their node."""
        self.signal(node, signal.SIGKILL)
        self.processes.pop(node).wait(30)

    def stop(self, node: int) -> int:
        """SIGTERM; -> exit code."""
        self.signal(node, signal.SIGTERM)
        return self.processes.pop(node).wait(60)

    def ready(self, node: int, what: str = "ready/write") -> bool:
        try:
            with urllib.request.urlopen(f"{self.s3_url(node)}/health/{what}", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def wait_ready(self, *nodes: int, what: str = "ready/write") -> None:
        self.until(lambda: all(self.ready(node, what) for node in nodes), f"{nodes} to be {what}")

    def until(self, condition: Callable[[], bool], what: str, bound_s: float = START_S) -> None:
        end = time.monotonic() + bound_s
        while not condition():
            assert time.monotonic() < end, f"waited for {what}\n{self.logs()}"
            time.sleep(0.1)

    def log(self, node: int) -> str:
        return self.members[node - 1].log.read_text(errors="replace")

    def logs(self) -> str:
        return "\n".join(
            f"--- node {n}\n" + "\n".join(self.log(n).splitlines()[-15:]) for n in self.numbers
        )

    # ---- clients ---------------------------------------------------------------------------------
    def s3_url(self, node: int) -> str:
        return self.members[node - 1].s3

    def client(self, node: int = 1, **options: Any) -> Any:
        """boto3, without retries: a failed request must show."""
        config = Config(
            retries={"total_max_attempts": 1},
            connect_timeout=5,
            read_timeout=options.pop("read_timeout", 60),
            s3={"addressing_style": "path"},
            max_pool_connections=64,
            **options,
        )
        return boto3.client(
            "s3",
            endpoint_url=self.s3_url(node),
            aws_access_key_id=CREDENTIALS.user,
            aws_secret_access_key=CREDENTIALS.password,
            region_name="us-east-1",
            config=config,
        )
