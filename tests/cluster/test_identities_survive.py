"""Users while nodes come and go: a start at which no quorum answers, and a new cluster secret node by node."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from node.cli.client import Access, AdminClient, console_of
from node.options import Secret

from .dev_world import CREDENTIALS, DevWorld

pytestmark = pytest.mark.timeout(400)
OLD, NEW = CREDENTIALS.cluster_secret, "another-secret-of-this-test-cluster"


@pytest.fixture(scope="module")
def world() -> Iterator[DevWorld]:
    world = DevWorld(nodes=3, drives=2)
    try:
        world.up()
        yield world
    finally:
        world.down()


@pytest.fixture(scope="module")
def key(world: DevWorld) -> tuple[str, str]:
    admin = AdminClient(
        Access(
            s3=world.s3_url(1),
            console=console_of(world.s3_url(1)),
            user=CREDENTIALS.user,
            password=Secret(CREDENTIALS.password),
            region="us-east-1",
        )
    )
    admin.request("POST", "/admin/v1/users", body={"name": "ann"})
    made = admin.request("POST", "/admin/v1/users/ann/keys")
    admin.request("PUT", "/admin/v1/users/ann/policies/readwrite")
    return made["access_key"], made["secret_key"]


def listing(world: DevWorld, node: int, key: tuple[str, str]) -> str:
    """ListBuckets as this user: the error's code, "" when it went well."""
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30)
    client: Any = boto3.client(
        "s3",
        endpoint_url=world.s3_url(node),
        aws_access_key_id=key[0],
        aws_secret_access_key=key[1],
        region_name="us-east-1",
        config=config,
    )
    try:
        client.list_buckets()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


def health(world: DevWorld, node: int) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{world.s3_url(node)}/health/ready", timeout=5) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        return dict(json.load(error))
    except OSError:
        return {"reasons": ["no answer"], "nodes": {"alive": 0}}


def copies(world: DevWorld, node: int) -> list[bytes]:
    return [
        path.read_bytes()
        for drive in (1, 2)
        if (path := world.drive(node, drive) / "identity").exists()
    ]


def _knows_all_but_the_drives(reasons: list[str]) -> bool:
    return any("misses" in reason for reason in reasons) and not any(
        "identities" in reason for reason in reasons
    )


def test_a_lone_node_knows_its_users(world: DevWorld, key: tuple[str, str]) -> None:
    assert listing(world, 2, key) == ""
    # All six are alike once the last change has reached every drive.
    world.until(
        lambda: (
            len(found := [c for n in world.numbers for c in copies(world, n)]) == 6
            and len(set(found)) == 1
        ),
        "every drive to have the copy",
    )
    assert not any(text.encode() in copies(world, 2)[0] for text in (*key, "ann"))
    for node in world.numbers:
        world.kill(node)
    world.start(2)
    world.wait_ready(2, what="live")
    world.until(
        lambda: _knows_all_but_the_drives(health(world, 2)["reasons"]),
        "node 2 to know the identities, and that it lacks drives",
    )
    # Who is wrong is told so, which only a node does that knows; who is right hears of the quorum.
    assert listing(world, 2, (key[0], "x" * len(key[1]))) == "SignatureDoesNotMatch"
    assert listing(world, 2, key) in ("ServiceUnavailable", "SlowDown")
    assert listing(world, 2, ("HFUNKNOWNKEY", key[1])) in ("ServiceUnavailable", "SlowDown")
    for node in (1, 3):
        world.start(node)
    world.wait_ready(*world.numbers)
    assert listing(world, 2, key) == ""


def _restart_each(world: DevWorld, key: tuple[str, str], **settings: str) -> None:
    """One node after the other; after each, all hear each other and the user gets in everywhere."""
    world.settings = settings
    for node in world.numbers:
        world.stop(node)
        world.start(node)
        world.wait_ready(*world.numbers)
        world.until(
            lambda: all(health(world, n)["nodes"]["alive"] == 3 for n in world.numbers),
            "every node to hear every other one",
        )
        for other in world.numbers:
            assert listing(world, other, key) == "", f"node {other} after node {node}"


def test_a_new_secret_takes_one_pass_and_one_more_to_forget_the_old(
    world: DevWorld, key: tuple[str, str]
) -> None:
    new = {"HOLDFAST_CLUSTER_SECRET": NEW}
    _restart_each(world, key, **new, HOLDFAST_CLUSTER_SECRET_PREVIOUS=OLD)
    _restart_each(world, key, **new)
    world.stop(1)
    world.settings = {"HOLDFAST_CLUSTER_SECRET": OLD}
    world.start(1)
    world.until(lambda: "HOLDFAST_CLUSTER_SECRET" in world.log(1), "node 1 to say what is wrong")
    world.until(lambda: health(world, 1)["nodes"]["alive"] == 1, "node 1 to be alone")
    assert not world.ready(1)
    world.stop(1)
    world.settings = new
    world.start(1)
    world.wait_ready(*world.numbers)
