"""A drive is wiped while its node serves a ledger: refused, accepted, filled, and nothing acknowledged is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.cli.dev import NODE_COMMAND

from .dev_world import CREDENTIALS, ROOT, DevWorld

pytestmark = pytest.mark.timeout(400)
VICTIM, DISK = 4, 1


@pytest.fixture
def world() -> Iterator[DevWorld]:
    """Four nodes of two drives, 4+4."""
    world = DevWorld(nodes=4, drives=2)
    try:
        world.up()
        yield world
    finally:
        world.down()


def holdfast(world: DevWorld, *arguments: str) -> subprocess.CompletedProcess[str]:
    member = world.members[0]
    return subprocess.run(
        [*NODE_COMMAND[:-1], *arguments],
        env={**member.environment, "HOLDFAST_ENDPOINT": member.s3},
        capture_output=True,
        text=True,
        timeout=120,
    )


def drive_state(world: DevWorld) -> tuple[str, str]:
    """The wiped drive's state and id, as node 1 tells it."""
    answer = json.loads(holdfast(world, "status", "--json").stdout)
    node = answer["nodes"][VICTIM - 1]
    drive = node["drives"][DISK - 1]
    return drive["state"], drive["drive_id"]


class Ledger:
    """tests.cluster.ledger as a process of its own."""

    def __init__(self, world: DevWorld, journal: Path) -> None:
        self._world, self._journal = world, journal
        self._writing: subprocess.Popen[str] | None = None

    def _command(self, verb: str, nodes: tuple[int, ...], *more: str) -> list[str]:
        hosts = ",".join(self._world.s3_url(n).removeprefix("http://") for n in nodes)
        return [
            *(sys.executable, "-m", "tests.cluster.ledger", verb, "--endpoints", hosts),
            *("--journal", str(self._journal), "--conns", "4", *more),
        ]

    @property
    def _environment(self) -> dict[str, str]:
        # The names that tests.cluster.wire reads the credentials from.
        return {
            **os.environ,
            "AWS_ACCESS_KEY_ID": CREDENTIALS.user,
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS.password,
        }

    def start(self) -> None:
        self._writing = subprocess.Popen(
            self._command("write", (1, 2, 3, 4), "--seconds", "300", "--rate", "20"),
            env=self._environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> dict[str, Any]:
        assert self._writing is not None
        out, _ = self._writing.communicate("\n", timeout=120)
        found: dict[str, Any] = json.loads(out)
        return found

    def verify(self, *nodes: int) -> dict[str, Any]:
        done = subprocess.run(
            self._command("verify", nodes, "--timeout", "30"),
            env=self._environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def test_a_drive_that_is_wiped_while_serving_is_taken_in_and_filled(
    world: DevWorld, tmp_path: Path
) -> None:
    world.client().create_bucket(Bucket="ledger")
    ledger = Ledger(world, tmp_path / "journal")
    ledger.start()
    world.until(lambda: len(list(world.drive(VICTIM, DISK).glob("shards/*/*"))) > 3, "some shards")
    _, before = drive_state(world)
    path = world.drive(VICTIM, DISK)
    for child in path.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()

    # Refused: an empty directory may be a drive that is not mounted. Said, with the command that takes it in.
    world.until(lambda: drive_state(world)[0] == "unformatted", "the drive to be found empty")
    world.until(lambda: "holdfast drive accept" in world.log(VICTIM), "what to do")
    left = {child.name for child in path.iterdir()}
    assert "format.json" not in left

    node = world.members[VICTIM - 1].environment["HOLDFAST_NODE"]
    accepted = holdfast(world, "drive", "accept", f"{node}:{path}")
    assert accepted.returncode == 0, accepted.stderr
    world.until(
        lambda: "a replaced drive is filled" in world.log(VICTIM), "the filling to end", 180
    )
    state, after = drive_state(world)
    assert state == "online" and after != before, "a new drive, not the old one emptied"

    written = ledger.stop()
    assert written["wrong"] == []
    assert written["failed"] <= len(written["operations"]) // 100, written["failures"]
    world.until(lambda: holdfast(world, "heal", "--census").returncode == 0, "a whole census", 120)
    found = ledger.verify(1, 2, 3, 4)
    assert (found["wrong"], found["failed"]) == ([], 0), found

    # Its shards are right: with two other nodes gone every object needs them.
    world.kill(1)
    world.kill(2)
    world.wait_ready(3, 4, what="ready")
    found = ledger.verify(3, 4)
    assert (found["wrong"], found["failed"]) == ([], 0), found
    assert "Traceback" not in world.log(VICTIM)
