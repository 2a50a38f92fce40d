"""`holdfast dev`: credentials, the nodes' environments, and the life of their processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest

from node.cli import dev
from node.cli.dev import Credentials, LocalCluster, Member, choose_credentials, plan_members
from node.config import WrongConfig, load
from node.errors import ConfigError

CREDENTIALS = Credentials(user="admin", password="long-enough", cluster_secret="s" * 32)

ANSWERING = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
port = int(os.environ["HOLDFAST_S3_LISTEN"].rpartition(":")[2])
print("serving", flush=True)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
DYING = "import sys; print('the reason why'); sys.exit(7)"


def members_in(directory: Path, nodes: int, **changes: object) -> tuple[Member, ...]:
    planned = {
        "nodes": nodes, "drives": 2, "directory": directory, "base_port": _free_base(nodes),
        "credentials": CREDENTIALS, "parity": None, "durability": None, "environ": {"PATH": "/bin"},
    }  # fmt: skip
    members = plan_members(**(planned | changes))  # type: ignore[arg-type]
    for member in members:
        member.directory.mkdir(parents=True, exist_ok=True)
    return members


def _free_base(nodes: int) -> int:
    """A base port whose S3 ports nobody holds now."""
    for _ in range(50):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            base: int = probe.getsockname()[1]
        if base + 10 * nodes < 65536 and not dev.taken_ports(base, nodes):
            return base
    raise AssertionError("no free ports")


def test_credentials_are_made_once_and_kept_private(tmp_path: Path) -> None:
    first = choose_credentials(tmp_path, {})
    assert choose_credentials(tmp_path, {}) == first
    file = tmp_path / "credentials.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(first.password) >= 16


def test_credentials_of_the_environment_count(tmp_path: Path) -> None:
    kept = choose_credentials(tmp_path, {})
    environ = {"HOLDFAST_ROOT_USER": "anna", "HOLDFAST_ROOT_PASSWORD": "my-password"}
    given = choose_credentials(tmp_path, environ)
    assert (given.user, given.password) == ("anna", "my-password")
    assert given.cluster_secret == kept.cluster_secret  # else identities could not be read
    assert choose_credentials(tmp_path, {}) == kept
    assert "my-password" not in (tmp_path / "credentials.json").read_text()
    with pytest.raises(WrongConfig, match="at least 8"):
        choose_credentials(tmp_path, {"HOLDFAST_ROOT_PASSWORD": "short"})
    (tmp_path / "credentials.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        choose_credentials(tmp_path, {})


def test_every_node_has_a_configuration_of_its_own(tmp_path: Path) -> None:
    members = members_in(
        tmp_path, 4, base_port=9000, parity=2, durability="relaxed",
        environ={"PATH": "/bin", "HOLDFAST_REGION": "eu", "HOLDFAST_S3_LISTEN": "1.2.3.4:5"},
    )  # fmt: skip
    settings = [load({}, member.environment) for member in members]
    assert [s.node for s in settings] == [f"127.0.0.1:{port}" for port in (9002, 9012, 9022, 9032)]
    assert [s.s3_listen[1] for s in settings] == [9000, 9010, 9020, 9030]
    assert [s.console_listen[1] for s in settings] == [9001, 9011, 9021, 9031]
    assert settings[2].local_paths == (f"{tmp_path}/node3/disk1", f"{tmp_path}/node3/disk2")
    assert {s.volumes for s in settings} == {settings[0].volumes}
    assert (settings[0].parity, settings[0].durability, settings[0].region) == (2, "relaxed", "eu")
    assert members[3].environment["PATH"] == "/bin"


def test_a_wrong_geometry_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(WrongConfig, match="HOLDFAST_PARITY=5"):
        members_in(tmp_path, 4, parity=5)


async def test_it_gets_ready_tells_so_and_stops_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = members_in(tmp_path, 2)
    cluster = LocalCluster(members, CREDENTIALS, (sys.executable, "-c", ANSWERING))
    running = asyncio.create_task(cluster.run())
    said = ""
    while "\nready\n" not in said:
        await asyncio.sleep(0.02)  # the processes are real
        said += capsys.readouterr().out
    assert members[1].s3 in said
    assert "aws s3 mb s3://demo" in said
    assert "boto3.client" in said
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert all(process.returncode is not None for process in cluster.processes)


async def test_a_node_that_dies_is_reported_and_ends_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = members_in(tmp_path, 2)
    first = members[0].environment["HOLDFAST_S3_LISTEN"]
    script = f"import os\nexec({ANSWERING!r} if os.environ['HOLDFAST_S3_LISTEN'] == {first!r} else {DYING!r})"
    cluster = LocalCluster(members, CREDENTIALS, (sys.executable, "-c", script))
    assert await cluster.run() == 1
    said = capsys.readouterr().out
    assert "ended with exit code 7" in said
    assert "the reason why" in said
    assert "\nready\n" not in said
    assert all(process.returncode is not None for process in cluster.processes)


def test_taken_ports_are_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert str(port) in dev.taken_ports(port, 1)


def test_a_second_cluster_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    held = dev.lock_directory(tmp_path)
    with pytest.raises(ConfigError, match="is running in"):
        dev.lock_directory(tmp_path)
    held.close()
    dev.lock_directory(tmp_path).close()
