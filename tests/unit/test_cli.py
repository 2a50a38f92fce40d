"""The holdfast command: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
import typer.main
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials
from typer.testing import CliRunner

from node.cli.admin import split_drive
from node.cli.app import app
from node.cli.client import RequestFailed, access_from, console_of
from node.cli.examples import EXAMPLES
from node.config import WrongConfig
from node.errors import ConfigError

assert boto3  # botocore comes with it

ROOT = {"HOLDFAST_ROOT_USER": "admin", "HOLDFAST_ROOT_PASSWORD": "long-enough"}
CLUSTER = {
    "cluster_id": "ab12",
    "node": "node1:9002",
    "parity": 8,
    "durability": "strict",
    "ready": True,
    "write_ready": True,
    "notices": ["node4:9002 is dark"],
    "nodes": [
        {
            "name": "node4:9002",
            "state": "dead",
            "since_s": 300.0,
            "rtt_ms": 1.25,
            "breakers": {"fast": "open", "bulk": "closed"},
            "drives": [
                {"path": "/data/disk1", "set": 0, "state": "online", "free_bytes": 1 << 30},
                {"path": "/data/disk2", "set": 0, "state": "hung"},
            ],
        }
    ],
    "sets": [
        {"index": 0, "online": 12, "n": 16, "k": 8, "read_tolerance": 4, "write_tolerance": 3}
    ],
    "repair": {"queue": 7, "oldest_s": 30.0, "undecided": 2},
}


class Node(http.server.BaseHTTPRequestHandler):
    """Answers what the test says and keeps what it was asked."""

    answers: dict[str, tuple[int, Any]] = {}
    asked: list[tuple[str, str, dict[str, str], bytes]] = []

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        Node.asked.append((self.command, self.path, headers, body))
        status, answer = Node.answers.get(self.path.partition("?")[0], (404, {"code": "NotFound"}))
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def node() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Node)
    Node.answers, Node.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(*arguments: str, **environment: str) -> Any:
    clean = {name: None for name in os.environ if name.startswith("HOLDFAST_")}
    return CliRunner().invoke(app, list(arguments), env={**clean, **environment})


def holdfast(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {n: v for n, v in os.environ.items() if not n.startswith("HOLDFAST_")}
    return subprocess.run(
        [sys.executable, "-m", "node.cli", *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_serve_without_configuration_says_what_to_set() -> None:
    done = holdfast("serve", HOLDFAST_VOLUMS="x")
    assert done.returncode == 2
    assert "did you mean HOLDFAST_VOLUMES?" in done.stderr
    assert "HOLDFAST_ROOT_PASSWORD is not set" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_config_shows_origins_and_hides_secrets() -> None:
    done = run(
        "config", HOLDFAST_VOLUMES="/data/disk{1...4}", HOLDFAST_REGION="eu-central-1", **ROOT
    )
    assert done.exit_code == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "eu-central-1" in lines["HOLDFAST_REGION"]
    assert "environment HOLDFAST_REGION" in lines["HOLDFAST_REGION"]
    assert "default" in lines["HOLDFAST_S3_LISTEN"]
    assert "********" in lines["HOLDFAST_ROOT_PASSWORD"]
    assert "long-enough" not in done.stdout


def test_config_shows_the_values_also_when_they_are_wrong() -> None:
    done = run("config", HOLDFAST_PARITY="99", **ROOT)
    assert isinstance(done.exception, WrongConfig)
    assert "HOLDFAST_PARITY" in done.stdout


def test_plan_states_capacity_and_tolerance() -> None:
    done = run("plan", "--drive-size", "1TiB")
    assert "1 erasure set of 16 drives, 16 TiB raw" in done.stdout
    default = next(line for line in done.stdout.splitlines() if line.rstrip().endswith("default"))
    assert default.startswith("8+8")
    assert "8 TiB (50%)" in default
    assert "any 2 nodes" in default
    twelve = next(line for line in done.stdout.splitlines() if line.startswith("12+4"))
    assert "12 TiB (75%)" in twelve


def test_plan_takes_volumes() -> None:
    assert "1 node with 4 drives" in run("plan", "--volumes", "/d{1...4}").stdout
    assert isinstance(run("plan", "--nodes", "1", "--drives", "17").exception, ConfigError)
    assert isinstance(run("plan", "--drive-size", "big").exception, ConfigError)


def test_version() -> None:
    assert run("version").stdout.startswith("holdfast 0.")


def test_health_check_asks_the_local_node(node: str) -> None:
    Node.answers = {"/health/live": (200, {})}
    port = node.rpartition(":")[2]
    assert run("healthcheck", HOLDFAST_S3_LISTEN=f"0.0.0.0:{port}").exit_code == 0
    Node.answers = {"/health/live": (503, {})}
    done = run("healthcheck", HOLDFAST_S3_LISTEN=f"0.0.0.0:{port}")
    assert done.exit_code == 1
    assert "503" in done.stdout


def test_health_check_without_a_node_fails() -> None:
    done = run("healthcheck", HOLDFAST_S3_LISTEN="127.0.0.1:1")
    assert done.exit_code == 1
    assert "no answer" in done.stdout


# ---- against a node ------------------------------------------------------------------------------------
def test_status_shows_what_is_wrong(node: str) -> None:
    Node.answers = {"/admin/v1/cluster": (200, CLUSTER)}
    done = run("status", "--console", node, **ROOT)
    assert done.exit_code == 0
    for text in (
        "ab12",
        "node4:9002 is dark",
        "dead",
        "fast open",
        "1/2",
        "hung",
        "12/16",
        "8+8",
        "7 queued",
    ):
        assert text in done.stdout
    assert "bulk closed" not in done.stdout


def test_status_as_json_and_its_exit_code(node: str) -> None:
    Node.answers = {"/admin/v1/cluster": (200, {**CLUSTER, "write_ready": False})}
    done = run("status", "--json", "--console", node, **ROOT)
    assert json.loads(done.stdout)["cluster_id"] == "ab12"
    assert done.exit_code == 1


def test_requests_are_signed_as_s3_clients_sign(node: str) -> None:
    Node.answers = {"/admin/v1/users": (200, None)}
    run("user", "add", "anna", "--console", node, **ROOT)
    method, path, headers, body = Node.asked[0]
    assert (method, path, json.loads(body)) == ("POST", "/admin/v1/users", {"name": "anna"})
    request = AWSRequest(method, f"{node}{path}", data=body)
    signed = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    for name in signed:
        request.headers[name] = headers[name]
    request.context["timestamp"] = headers["x-amz-date"]
    oracle = SigV4Auth(BotoCredentials("admin", "long-enough"), "s3", "us-east-1")
    canonical = oracle.canonical_request(request)
    signature = oracle.signature(oracle.string_to_sign(request, canonical), request)
    assert headers["authorization"].endswith(f"Signature={signature}")


@pytest.mark.parametrize(
    ("command", "method", "path", "body"),
    [
        ("user remove a/b", "DELETE", "/users/a%2Fb", None),
        ("key remove anna K1", "DELETE", "/users/anna/keys/K1", None),
        ("policy attach readonly anna", "PUT", "/users/anna/policies/readonly", None),
        ("policy detach readonly anna", "DELETE", "/users/anna/policies/readonly", None),
        ("policy remove readonly", "DELETE", "/policies/readonly", None),
        ("heal pause", "POST", "/heal", {"paused": True}),
        ("heal --resume", "POST", "/heal", {"paused": False}),
        ("heal", "GET", "/heal", None),
        ("locks release b/k", "DELETE", "/locks?resource=b%2Fk", None),
        (
            "drive rebuild n2:9002:/d/1",
            "POST",
            "/drives/rebuild",
            {"node": "n2:9002", "path": "/d/1"},
        ),
        (
            "drive accept n2:9002:/d/1",
            "POST",
            "/drives/accept",
            {"node": "n2:9002", "path": "/d/1"},
        ),
    ],
)
def test_commands_ask_the_right_thing(
    node: str, command: str, method: str, path: str, body: object
) -> None:
    target = f"/admin/v1{path}"
    Node.answers = {target.partition("?")[0]: (200, {})}
    done = run(*command.split(), "--console", node, **ROOT)
    assert done.exit_code == 0, done.output
    asked = Node.asked[0]
    assert asked[:2] == (method, target)
    assert (json.loads(asked[3]) if asked[3] else None) == body


def test_lists_are_tables(node: str) -> None:
    users = [{"name": "anna", "enabled": True, "policies": ["readonly", "x"], "keys": []}]
    Node.answers = {
        "/admin/v1/users": (200, {"users": users}),
        "/admin/v1/locks": (200, {"locks": [{"resource": "b/k", "age_s": 1.5}]}),
    }
    done = run("user", "list", "--console", node, **ROOT)
    assert "readonly, x" in done.stdout
    assert "b/k" in run("locks", "list", "--console", node, **ROOT).stdout


def test_a_secret_key_is_shown_once(node: str) -> None:
    answer = {"access_key": "AK", "secret_key": "SK"}
    Node.answers = {"/admin/v1/users/anna/keys": (201, answer)}
    assert run("key", "create", "anna", "--console", node, **ROOT).stdout.split() == [
        "access", "key", "AK", "secret", "key", "SK",
    ]  # fmt: skip


def test_what_the_node_refuses_is_told(node: str) -> None:
    Node.answers = {"/admin/v1/heal": (403, {"code": "AccessDenied", "message": "not yours"})}
    done = run("heal", "status", "--console", node, **ROOT)
    assert isinstance(done.exception, RequestFailed)
    assert "answered 403 AccessDenied: not yours" in str(done.exception)
    Node.answers = {"/admin/v1/heal": (422, {"detail": "wrong"})}
    assert "422 wrong" in str(run("heal", "status", "--console", node, **ROOT).exception)


def test_no_answer_is_told_with_what_to_do() -> None:
    done = holdfast("status", "--endpoint", "http://127.0.0.1:1", **ROOT)
    assert done.returncode == 1
    assert "is the node up?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_policy_must_be_json(node: str, tmp_path: Any) -> None:
    file = tmp_path / "policy.json"
    file.write_text("{")
    done = run("policy", "put", "p", str(file), "--console", node, **ROOT)
    assert isinstance(done.exception, ConfigError)
    assert Node.asked == []


def test_the_console_is_one_port_higher() -> None:
    assert console_of("http://host:9000") == "http://host:9001"
    assert console_of("https://[::1]:443") == "https://[::1]:444"
    access = access_from({"HOLDFAST_ENDPOINT": "http://h:1", **ROOT})
    assert (access.s3, access.console) == ("http://h:1", "http://h:2")


def test_credentials_to_ask_with_are_required() -> None:
    with pytest.raises(WrongConfig) as caught:
        access_from({})
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("text", ["node2:9002:/data/disk3", "node2:9002/data/disk3/"])
def test_a_drive_is_named_by_node_and_path(text: str) -> None:
    assert split_drive(text) == ("node2:9002", "/data/disk3")
    with pytest.raises(ConfigError):
        split_drive("/data/disk3")


# ---- the census ------------------------------------------------------------------------------------------
SET = {"index": 0, "n": 4, "k": 2, "objects": 7, "by_shards": {"1": 1, "3": 2, "4": 4}}


def census(node: str, *options: str, **answer: object) -> Any:
    before = {"running": True, "finished_s": 1.0}
    after = {"running": False, "finished_s": 2.0, "complete": True, "sets": [SET], **answer}
    Node.answers = {
        "/admin/v1/heal/census": (200, before),
        "/admin/v1/heal/census/progress": (200, after),
    }
    return run("heal", "--census", *options, "--console", node, **ROOT)


def test_a_census_is_started_followed_and_shown_by_set_and_shards(node: str) -> None:
    done = census(node, whole=False)
    assert next(asked[:2] for asked in Node.asked) == ("POST", "/admin/v1/heal/census")
    assert done.exit_code == 1, "not every object is whole"
    lines = [line.rstrip().split(maxsplit=3) for line in done.stdout.splitlines()]
    assert ["0", "4/4", "4", "whole"] in lines and ["0", "3/4", "2", "may lose 1 more"] in lines
    assert ["0", "1/4", "1", "cannot be read now"] in lines


def test_a_whole_census_is_exit_code_0_and_json_is_the_answer(node: str) -> None:
    done = census(node, "--json", whole=True)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["sets"] == [SET]


def test_heal_shows_progress_of_queue_and_fills(node: str) -> None:
    fill = {"node": "n1", "path": "/d1", "keys": 5, "expected": 9, "rate_per_s": 2.0, "eta_s": 2.0}
    repair = {"queue": 1234, "rate_per_s": 40.0, "eta_s": 31.0, "fills": [fill]}
    Node.answers = {"/admin/v1/heal": (200, repair)}
    shown = run("heal", "--console", node, **ROOT).stdout
    assert "1,234 objects queued, 40.0/s, about 31 s left" in shown
    assert "filling n1/d1: 5 of 9 keys" in shown and "no census yet" in shown


def test_heal_takes_one_order_at_a_time(node: str) -> None:
    assert run("heal", "--pause", "--resume", "--console", node, **ROOT).exit_code == 2


def _commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        here = f"{path} {name}".strip()
        yield here, command
        if hasattr(command, "commands"):
            yield from _commands(command, here)


def test_every_command_has_help_and_examples_that_it_understands() -> None:
    commands = dict(_commands(typer.main.get_command(app)))
    assert EXAMPLES.keys() <= commands.keys()
    for path, command in commands.items():
        shown = CliRunner().invoke(app, [*path.split(), "--help"], terminal_width=200).output
        assert command.help and "Example" in shown, path
        if hasattr(command, "commands"):
            continue
        for example in EXAMPLES[path]:
            assert example in shown
            program, *words = shlex.split(example)
            assert program == "holdfast" and words[: len(path.split())] == path.split()
            arguments = words[len(path.split()) :]
            command.make_context(path, list(arguments), resilient_parsing=False).close()
