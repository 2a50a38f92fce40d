"""`holdfast dev`: a whole cluster on this machine, one process a node, until Ctrl-C."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated

import typer
from rich.console import Console
from rich.table import Table

from node.cli.client import get_status
from node.config import WrongConfig, environment, load, parse_values, resolve
from node.errors import ConfigError
from node.limits import DEV_READY_S, DEV_STOP_S
from node.runtime.system import SystemClock

_READY = "/health/ready/write"
_POLL_S = 0.2
_SAY_S = 5.0
_LOG_LINES = 20
_PORTS_A_NODE = 10
NODE_COMMAND = (sys.executable, "-m", "node.cli", "serve")
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
# What a user's environment may say about the cluster; the rest is different for each node.
_PASSED_ON = (
    "REGION",
    "LOG_LEVEL",
    "MEMORY_LIMIT",
    "DOMAIN",
    "TRUSTED_PROXIES",
    "CLUSTER_SECRET_PREVIOUS",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    user: str
    password: str
    cluster_secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One node of the local cluster."""

    name: str
    directory: Path
    environment: Mapping[str, str]
    s3: str
    console: str

    @property
    def log(self) -> Path:
        return self.directory / "log"


def register(app: typer.Typer) -> None:
    app.command()(dev)


def dev(
    nodes: Annotated[int, typer.Option(min=1, max=64, help="Nodes.")] = 4,
    drives: Annotated[int, typer.Option(min=1, max=64, help="Drives of each node.")] = 4,
    directory: Annotated[
        Path, typer.Option("--dir", help="Where drives, logs and credentials go.")
    ] = Path("var/cluster"),
    base_port: Annotated[
        int,
        typer.Option(
            min=1024, max=65000, help="S3 port of node 1; +1 console, +2 peers, +10 the next node."
        ),
    ] = 9000,
    parity: Annotated[int | None, typer.Option(help="Parity shards of a stripe.")] = None,
    durability: Annotated[str | None, typer.Option(help="strict or relaxed.")] = None,
) -> None:
    """Start a local cluster, print how to use it, and run it until Ctrl-C."""
    directory = directory.absolute()
    _check_directory(directory)
    lock = lock_directory(directory)
    environ = environment()
    credentials = choose_credentials(directory, environ)
    members = plan_members(
        nodes=nodes, drives=drives, directory=directory, base_port=base_port, credentials=credentials,
        parity=parity, durability=durability, environ=environ,
    )  # fmt: skip
    taken = taken_ports(base_port, nodes)
    if taken:
        raise ConfigError(
            f"ports that are taken: {', '.join(taken)}. Free them, or use another --base-port"
        )
    for member in members:
        for number in range(1, drives + 1):
            (member.directory / f"disk{number}").mkdir(parents=True, exist_ok=True)
    try:
        code = asyncio.run(LocalCluster(members, credentials).run())
    finally:
        lock.close()
    raise typer.Exit(code)


# ---- planning ------------------------------------------------------------------------------------------
def choose_credentials(directory: Path, environ: Mapping[str, str]) -> Credentials:
    """From the environment where set there, else those of an earlier run, else new ones that are kept."""
    resolved = resolve({}, environ)
    problems = list(resolved.problems)
    given = parse_values(resolved, problems)
    if problems:
        raise WrongConfig(tuple(problems))
    path = directory / "credentials.json"
    kept: dict[str, str] = {}
    if path.exists():
        try:
            kept = dict(json.loads(path.read_text()))
        except ValueError:
            raise ConfigError(
                f"{path} is damaged: restore it, or remove it together with the drives"
            ) from None
    made = {
        "user": kept.get("user") or f"root-{secrets.token_hex(4)}",
        "password": kept.get("password") or secrets.token_hex(20),
        "cluster_secret": kept.get("cluster_secret") or secrets.token_hex(32),
    }
    if made != kept:
        _write_private(path, json.dumps(made, indent=1) + "\n")
    return Credentials(
        user=given["root_user"] or made["user"],
        password=given["root_password"].value if given["root_password"] else made["password"],
        cluster_secret=given["cluster_secret"].value
        if given["cluster_secret"]
        else made["cluster_secret"],
    )


def plan_members(
    *,
    nodes: int,
    drives: int,
    directory: Path,
    base_port: int,
    credentials: Credentials,
    parity: int | None,
    durability: str | None,
    environ: Mapping[str, str],
) -> tuple[Member, ...]:
    """The nodes with their environments. Checks the whole configuration by checking one of them."""
    ports = [base_port + _PORTS_A_NODE * index for index in range(nodes)]
    volumes = " ".join(
        f"127.0.0.1:{port + 2}{directory}/node{index}/disk{number}"
        for index, port in enumerate(ports, 1)
        for number in range(1, drives + 1)
    )
    shared = {name: value for name, value in environ.items() if not name.startswith("HOLDFAST_")}
    for name in _PASSED_ON:
        if f"HOLDFAST_{name}" in environ:
            shared[f"HOLDFAST_{name}"] = environ[f"HOLDFAST_{name}"]
    shared |= {
        "HOLDFAST_VOLUMES": volumes,
        "HOLDFAST_ROOT_USER": credentials.user,
        "HOLDFAST_ROOT_PASSWORD": credentials.password,
        "HOLDFAST_CLUSTER_SECRET": credentials.cluster_secret,
    }
    if parity is not None:
        shared["HOLDFAST_PARITY"] = str(parity)
    if durability is not None:
        shared["HOLDFAST_DURABILITY"] = durability
    members = []
    for index, port in enumerate(ports, 1):
        own = {
            "HOLDFAST_NODE": f"127.0.0.1:{port + 2}",
            "HOLDFAST_S3_LISTEN": f"127.0.0.1:{port}",
            "HOLDFAST_CONSOLE_LISTEN": f"127.0.0.1:{port + 1}",
            "HOLDFAST_PEER_LISTEN": f"127.0.0.1:{port + 2}",
        }
        members.append(
            Member(
                name=f"node{index}",
                directory=directory / f"node{index}",
                environment=shared | own,
                s3=f"http://127.0.0.1:{port}",
                console=f"http://127.0.0.1:{port + 1}",
            )
        )
    load({}, members[0].environment)
    return tuple(members)


def _check_directory(directory: Path) -> None:
    if any(character in str(directory) for character in " {},\t\n"):
        raise ConfigError(f"--dir {directory}: use a path without spaces, commas and braces")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--dir {directory} cannot be made: {error.strerror}") from error


def lock_directory(directory: Path) -> IO[str]:
    """Held while the cluster runs: two of them on the same drives would be two wrong ones."""
    file = (directory / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigError(
            f"a cluster is running in {directory} already: stop it, or use another --dir and --base-port"
        ) from None
    return file


def taken_ports(base_port: int, nodes: int) -> list[str]:
    """Those of the cluster's ports that something else listens at."""
    taken = []
    for port in (
        base_port + _PORTS_A_NODE * n + offset for n in range(nodes) for offset in range(3)
    ):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                taken.append(str(port))
    return taken


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


# ---- running -------------------------------------------------------------------------------------------
def _die_with_parent() -> None:
    """In the child: a killed `holdfast dev` leaves no nodes behind."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


class LocalCluster:
    """The processes of the members, from start to stop."""

    def __init__(
        self,
        members: tuple[Member, ...],
        credentials: Credentials,
        command: tuple[str, ...] = NODE_COMMAND,
    ) -> None:
        self._members = members
        self._credentials = credentials
        self._command = command
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._stop = asyncio.Event()
        self._clock = SystemClock()
        self._console = Console(soft_wrap=True, highlight=False)

    @property
    def processes(self) -> tuple[asyncio.subprocess.Process, ...]:
        return tuple(self._processes.values())

    async def run(self) -> int:
        """-> the exit code: 0 when it was told to stop, 1 when a node died or never got ready."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        try:
            for member in self._members:
                await self._spawn(member)
            watch = [asyncio.ensure_future(self._died(member)) for member in self._members]
            told = asyncio.ensure_future(self._stop.wait())
            ready = asyncio.ensure_future(self._until_ready())
            pending = {*watch, told, ready}
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if told in done:
                    self._say("stopping")
                    return 0
                dead = [
                    member
                    for member, task in zip(self._members, watch, strict=True)
                    if task in done
                ]
                if dead:
                    self._tell_death(dead[0])
                    return 1
                if not ready.result():
                    return 1
                self._tell_ready()
        finally:
            await self._stop_all()

    async def _spawn(self, member: Member) -> None:
        with member.log.open("ab") as log:
            self._processes[member.name] = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                env=dict(member.environment),
                start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip

    async def _died(self, member: Member) -> None:
        await self._processes[member.name].wait()

    async def _until_ready(self) -> bool:
        started = said = self._clock.monotonic()
        waiting = list(self._members)
        while waiting:
            states = await asyncio.gather(
                *(asyncio.to_thread(get_status, member.s3, _READY) for member in waiting)
            )
            waiting = [m for m, status in zip(waiting, states, strict=True) if status != 200]
            now = self._clock.monotonic()
            if waiting and now - started > DEV_READY_S:
                self._say(
                    f"not ready after {DEV_READY_S:.0f} s: {', '.join(m.name for m in waiting)}"
                )
                self._tell_log(waiting[0])
                return False
            if waiting and now - said > _SAY_S:
                said = now
                self._say(f"waiting for {', '.join(member.name for member in waiting)}")
            if waiting:
                await self._clock.sleep(_POLL_S)
        return True

    async def _stop_all(self) -> None:
        running = [process for process in self._processes.values() if process.returncode is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        stopped = asyncio.gather(*(process.wait() for process in running))
        try:
            await asyncio.wait_for(asyncio.shield(stopped), DEV_STOP_S)
        except TimeoutError:
            for process in running:
                if process.returncode is None:
                    process.kill()
            await stopped

    # ---- telling -----------------------------------------------------------------------------------
    def _say(self, text: str) -> None:
        self._console.print(f"holdfast dev: {text}", markup=False)
        self._console.file.flush()

    def _tell_death(self, member: Member) -> None:
        code = self._processes[member.name].returncode
        self._say(f"{member.name} ended with exit code {code}; stopping the others")
        self._tell_log(member)

    def _tell_log(self, member: Member) -> None:
        lines = member.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        self._say(f"last lines of {member.log}:")
        for line in lines:
            self._console.print(f"  {line}", markup=False)

    def _tell_ready(self) -> None:
        table = Table("node", "S3", "console")
        for member in self._members:
            table.add_row(member.name, member.s3, member.console)
        self._console.print(table)
        self._say(f"logs are in {self._members[0].directory.parent}/node*/log")
        self._console.print(
            example(self._members[0].s3, self._credentials, self._members), markup=False
        )
        # By itself on its line: what a script that started us waits for.
        print("ready", flush=True)


def example(endpoint: str, credentials: Credentials, members: tuple[Member, ...]) -> str:
    """What to type next."""
    region = members[0].environment.get("HOLDFAST_REGION") or "us-east-1"
    return f"""
access key  {credentials.user}
secret key  {credentials.password}

With the AWS CLI:

  export AWS_ACCESS_KEY_ID={credentials.user} AWS_SECRET_ACCESS_KEY={credentials.password}
  export AWS_DEFAULT_REGION={region} AWS_ENDPOINT_URL={endpoint}
  aws s3 mb s3://demo
  aws s3 cp README.md s3://demo/
  aws s3 ls s3://demo/

With boto3:

  import boto3
  s3 = boto3.client("s3", endpoint_url="{endpoint}", region_name="{region}",
                    aws_access_key_id="{credentials.user}",
                    aws_secret_access_key="{credentials.password}")
  s3.create_bucket(Bucket="demo")
  s3.put_object(Bucket="demo", Key="hello", Body=b"hello")
  print(s3.get_object(Bucket="demo", Key="hello")["Body"].read())

Ctrl-C stops the cluster; its data stays.
"""
