"""Drives that are full, swapped, foreign or damaged: a message that says which and what to do, and nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from .dev_world import DevWorld

pytestmark = pytest.mark.timeout(240)
KIB, MIB = 1024, 1024 * 1024


@pytest.fixture(scope="module")
def world() -> Iterator[DevWorld]:
    """One node of four drives, 2+2: everything a drive can do is there, and it starts fast."""
    world = DevWorld(nodes=1, drives=4)
    try:
        world.up()
        client = world.client()
        client.create_bucket(Bucket="bucket")
        for size in (0, 3 * KIB, 2 * MIB):
            client.put_object(Bucket="bucket", Key=f"k{size}", Body=bytes(size))
        yield world
    finally:
        world.down()


def whole(world: DevWorld) -> None:
    client = world.client()
    for size in (0, 3 * KIB, 2 * MIB):
        assert client.get_object(Bucket="bucket", Key=f"k{size}")["Body"].read() == bytes(size)


_read = 0  # of the log, when the node was last started


def start(world: DevWorld) -> None:
    global _read
    _read = len(world.log(1))
    world.start(1)


def said(world: DevWorld, *words: str) -> bool:
    """Whether a line of the node's log since its start has all of these."""
    lines = world.log(1)[_read:].splitlines()
    return any(all(word in line for word in words) for line in lines)


def refuses_to_serve(world: DevWorld, *words: str) -> None:
    """The node says these words, and either ends or stays unready."""
    start(world)
    world.until(lambda: said(world, *words), f"a line with {words}")
    assert not world.ready(1)
    if world.processes[1].poll() is None:
        world.stop(1)
    else:
        assert world.processes.pop(1).wait() != 0
    assert "Traceback" not in world.log(1)


def test_swapped_drives_are_refused_and_named(world: DevWorld) -> None:
    world.stop(1)
    one, two, aside = world.drive(1, 1), world.drive(1, 2), world.drive(1, 1).with_name("aside")
    for source, target in ((one, aside), (two, one), (aside, two)):
        source.rename(target)
    refuses_to_serve(world, "disk1")
    for source, target in ((one, aside), (two, one), (aside, two)):
        source.rename(target)
    start(world)
    world.wait_ready(1)
    whole(world)


def test_a_drive_of_another_cluster_is_refused_and_named(world: DevWorld) -> None:
    other = DevWorld(nodes=1, drives=4)
    try:
        other.up()
        other.stop(1)
        world.stop(1)
        mine, aside = world.drive(1, 3), world.drive(1, 3).with_name("aside")
        mine.rename(aside)
        other.drive(1, 3).rename(mine)
        refuses_to_serve(world, "disk3")
        mine.rename(other.drive(1, 3))
        aside.rename(mine)
    finally:
        other.down()
    start(world)
    world.wait_ready(1)
    whole(world)


def test_a_directory_with_somebody_elses_files_is_not_written_to(world: DevWorld) -> None:
    world.stop(1)
    mine, aside = world.drive(1, 4), world.drive(1, 4).with_name("aside")
    mine.rename(aside)
    mine.mkdir()
    (mine / "holiday.jpg").write_bytes(b"not ours")
    start(world)
    world.until(lambda: said(world, "disk4"), "a line about the drive")
    world.wait_ready(1, what="ready")
    whole(world)  # three of four are enough to read
    world.stop(1)
    assert [path.name for path in mine.iterdir()] == ["holiday.jpg"]
    (mine / "holiday.jpg").unlink()
    mine.rmdir()
    aside.rename(mine)
    start(world)
    world.wait_ready(1)
    whole(world)


def test_an_unmounted_drive_is_not_filled_by_mistake(world: DevWorld) -> None:
    world.stop(1)
    mine, aside = world.drive(1, 2), world.drive(1, 2).with_name("aside")
    mine.rename(aside)
    mine.mkdir()
    start(world)
    world.until(lambda: said(world, "disk2", "accept"), "a line that says how to accept it")
    world.wait_ready(1, what="ready")
    whole(world)
    assert list(mine.iterdir()) == []
    world.stop(1)
    mine.rmdir()
    aside.rename(mine)
    start(world)
    world.wait_ready(1)
    whole(world)


def test_a_corrupt_catalog_is_reported_and_the_rest_serves(world: DevWorld) -> None:
    world.stop(1)
    current = world.drive(1, 2) / "catalog" / "CURRENT"
    kept = current.read_bytes()
    current.write_bytes(b"nonsense\n")
    start(world)
    world.wait_ready(1, what="ready/write")
    whole(world)
    world.client().put_object(Bucket="bucket", Key="more", Body=b"v")

    def corrupt() -> bool:
        return "corrupt" in status(world).lower()

    world.until(corrupt, "the status to say so")
    assert said(world, "disk2", "corrupt", "warning")
    world.stop(1)
    current.write_bytes(kept)
    start(world)
    world.wait_ready(1)
    whole(world)
    assert world.client().get_object(Bucket="bucket", Key="more")["Body"].read() == b"v"
    assert "Traceback" not in world.log(1)


def rebuild(world: DevWorld, disk: int) -> None:
    """The operator's way with a damaged drive: one command, and it is filled and counted whole."""
    node = world.members[0].environment["HOLDFAST_NODE"]
    done = holdfast(world, "drive", "rebuild", f"{node}:{world.drive(1, disk)}")
    assert done.returncode == 0, done.stderr
    world.until(lambda: said(world, "a replaced drive is filled", f"disk{disk}"), "the filling")
    world.until(lambda: holdfast(world, "heal", "--census").returncode == 0, "a whole census")
    assert (world.drive(1, disk) / "retired" / "format.json").exists(), "nothing was thrown away"
    again = holdfast(world, "drive", "rebuild", f"{node}:{world.drive(1, disk)}")
    assert again.returncode == 1 and "not a damaged drive" in again.stderr
    whole(world)


def test_a_truncated_catalog_is_named_and_the_drive_is_rebuilt_by_a_command(
    world: DevWorld,
) -> None:
    world.stop(1)
    (manifest,) = (world.drive(1, 2) / "catalog").glob("MANIFEST-*")
    manifest.write_bytes(manifest.read_bytes()[: manifest.stat().st_size // 2])
    start(world)
    world.wait_ready(1, what="ready/write")
    world.until(lambda: said(world, "disk2", "corrupt", "holdfast drive rebuild"), "what to do", 45)
    whole(world)
    rebuild(world, 2)


def test_a_catalog_that_is_gone_is_never_taken_for_an_empty_one(world: DevWorld) -> None:
    world.stop(1)
    shutil.rmtree(world.drive(1, 3) / "catalog")
    start(world)
    world.wait_ready(1, what="ready/write")
    world.until(lambda: said(world, "disk3", "catalog is gone", "holdfast drive rebuild"), "why")
    whole(world)
    assert not (world.drive(1, 3) / "catalog").exists(), "left alone"
    rebuild(world, 3)


def test_a_half_written_format_is_named_and_left_alone(world: DevWorld) -> None:
    world.stop(1)
    file = world.drive(1, 4) / "format.json"
    kept = file.read_bytes()
    file.write_bytes(kept[: len(kept) // 2])
    start(world)
    world.wait_ready(1, what="ready/write")
    world.until(
        lambda: said(world, "disk4", "format.json is damaged", "holdfast drive rebuild"), "why"
    )
    whole(world)
    assert file.read_bytes() == kept[: len(kept) // 2]
    world.stop(1)
    file.write_bytes(kept)
    start(world)
    world.wait_ready(1)
    whole(world)


def test_a_drive_of_a_newer_format_is_refused_and_never_touched(world: DevWorld) -> None:
    world.stop(1)
    path = world.drive(1, 4)
    kept = (path / "format.json").read_bytes()
    newer = kept.replace(b'"version": 1', b'"version": 2')
    assert newer != kept
    (path / "format.json").write_bytes(newer)
    before = {f: f.stat().st_mtime_ns for f in sorted(path.rglob("*"))}
    start(world)
    world.wait_ready(1, what="ready/write")
    world.until(lambda: said(world, "disk4", "version 2", "newer"), "a message")
    node = world.members[0].environment["HOLDFAST_NODE"]
    refused = holdfast(world, "drive", "rebuild", f"{node}:{path}")
    assert refused.returncode == 1, "a rebuild would throw away what a newer program can read"
    whole(world)
    assert {f: f.stat().st_mtime_ns for f in sorted(path.rglob("*"))} == before
    world.stop(1)
    (path / "format.json").write_bytes(kept)
    start(world)
    world.wait_ready(1)
    whole(world)


def test_volumes_that_do_not_match_the_drives_are_refused(world: DevWorld) -> None:
    world.stop(1)
    volumes = world.members[0].environment["HOLDFAST_VOLUMES"].split()
    world.settings = {"HOLDFAST_VOLUMES": " ".join([volumes[1], volumes[0], *volumes[2:]])}
    refuses_to_serve(world, "disk1")
    world.settings = {"HOLDFAST_PARITY": "1"}
    refuses_to_serve(world, "parity")
    world.settings = {}
    start(world)
    world.wait_ready(1)
    whole(world)


def status(world: DevWorld) -> str:
    """What the operator's command says."""
    found = holdfast(world, "status")
    return found.stdout + found.stderr


def holdfast(world: DevWorld, *arguments: str) -> subprocess.CompletedProcess[str]:
    member = world.members[0]
    return subprocess.run(
        [*_command(), *arguments],
        env={**member.environment, "HOLDFAST_ENDPOINT": member.s3},
        capture_output=True,
        text=True,
        timeout=120,
    )


def _command() -> tuple[str, ...]:
    from node.cli.dev import NODE_COMMAND

    return NODE_COMMAND[:-1]


@pytest.fixture
def small_drives(tmp_path: Path) -> Iterator[DevWorld]:
    """One node whose drives 1 and 2 are file systems of 96 MiB."""
    if os.geteuid() != 0:
        pytest.skip("a full drive needs a mount, and that needs root")
    world = DevWorld(nodes=1, drives=4)
    mounted: list[Path] = []
    try:
        for drive in (1, 2):
            path = world.drive(1, drive)
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=96m", "holdfast-test", str(path)],
                capture_output=True,
            )
            if done.returncode:
                pytest.skip(f"no mounts here: {done.stderr.decode()}")
            mounted.append(path)
        world.up()
        yield world
    finally:
        for node in list(world.processes):
            world.kill(node)
        for path in mounted:
            subprocess.run(["umount", "-l", str(path)], check=False)
        world.down()


def test_full_drives_refuse_writes_and_go_on_reading(small_drives: DevWorld) -> None:
    world = small_drives
    client = world.client()
    client.create_bucket(Bucket="bucket")
    kept: dict[str, bytes] = {}
    refused: Any = None
    for number in range(200):
        key, data = f"k{number:03}", os.urandom(8 * MIB)
        try:
            client.put_object(Bucket="bucket", Key=key, Body=data)
        except ClientError as error:
            refused = error.response
            break
        kept[key] = data
    assert refused is not None, "two of four drives are full: a quorum of three cannot write"
    assert refused["ResponseMetadata"]["HTTPStatusCode"] in (503, 507), refused
    assert len(kept) >= 10
    for key, data in kept.items():
        assert client.get_object(Bucket="bucket", Key=key)["Body"].read() == data
    assert client.list_objects_v2(Bucket="bucket")["KeyCount"] == len(kept)
    assert client.list_buckets()["Buckets"]
    for key in list(kept)[:8]:
        client.delete_object(Bucket="bucket", Key=key)
        del kept[key]

    def writable() -> bool:
        try:
            client.put_object(Bucket="bucket", Key="again", Body=bytes(4 * MIB))
        except ClientError:
            return False
        return True

    world.until(writable, "room again after the deletes", 30)
    for key, data in kept.items():
        assert client.get_object(Bucket="bucket", Key=key)["Body"].read() == data
