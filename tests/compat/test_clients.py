"""Everyday work with the AWS CLI, s3cmd, minio-py and rclone."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.dev_world import CREDENTIALS, ROOT, DevWorld

pytestmark = pytest.mark.timeout(240)
CLIENTS = ROOT / "var/tools/clients/bin"
STORY = Path(__file__).with_name("minio_story.py")
MIB = 1024 * 1024


def content(size: int, seed: int) -> bytes:
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(size)


@pytest.fixture(scope="module")
def world() -> Iterator[DevWorld]:
    if not (CLIENTS / "aws").exists() or not (CLIENTS / "s3cmd").exists():
        pytest.skip("scripts/test-setup.sh could not get the AWS CLI and s3cmd")
    world = DevWorld(nodes=1, drives=4)
    try:
        world.up()
        yield world
    finally:
        world.down()


class Tool:
    """A command line client with its settings."""

    def __init__(self, argv: list[str], environ: dict[str, str], directory: Path) -> None:
        self.argv, self.environ, self.directory = argv, environ, directory

    def __call__(self, *arguments: str, fails: bool = False) -> str:
        done = subprocess.run(
            [*self.argv, *arguments],
            env=self.environ,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode != 0) == fails, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout + (done.stderr if fails else "")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with files of all kinds of sizes and names."""
    for name, size in (
        ("empty", 0),
        ("small.txt", 12),
        ("sub/deep/large.bin", 21 * MIB),
        ("sub/with space+plus", 70_000),
        ("sub/ümläut", 1),
    ):
        path = tmp_path / "from" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(size, size))
    return tmp_path


def same(one: Path, two: Path) -> None:
    names = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def base_environ(home: Path) -> dict[str, str]:
    return {
        "PATH": f"{CLIENTS}:{os.environ['PATH']}",
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
    }


def test_the_aws_cli(world: DevWorld, files: Path) -> None:
    # Version 1 of the CLI presigns with signature version 2 in this region unless it is told.
    (files / "config").write_text("[default]\ns3 =\n  signature_version = s3v4\n")
    aws = Tool(
        [str(CLIENTS / "aws"), "--endpoint-url", world.s3_url(1)],
        {
            **base_environ(files),
            "AWS_ACCESS_KEY_ID": CREDENTIALS.user,
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS.password,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_CONFIG_FILE": str(files / "config"),
        },
        files,
    )
    aws("s3", "mb", "s3://cli-bucket")
    assert "cli-bucket" in aws("s3", "ls")
    aws("s3", "cp", "from/small.txt", "s3://cli-bucket/one.txt")
    aws("s3", "cp", "s3://cli-bucket/one.txt", "back.txt")
    assert (files / "back.txt").read_bytes() == content(12, 12)
    aws("s3", "sync", "from", "s3://cli-bucket/tree")
    assert aws("s3", "sync", "from", "s3://cli-bucket/tree").strip() == "", "nothing is new"
    listed = aws("s3", "ls", "--recursive", "s3://cli-bucket/")
    assert len(listed.splitlines()) == 6 and "sub/ümläut" in listed
    assert "PRE tree/" in aws("s3", "ls", "s3://cli-bucket/")
    aws("s3", "sync", "s3://cli-bucket/tree", "to")
    same(files / "from", files / "to")
    aws("s3", "mv", "s3://cli-bucket/tree/sub/deep/large.bin", "s3://cli-bucket/moved.bin")
    aws("s3", "cp", "s3://cli-bucket/moved.bin", "moved.bin")
    assert (files / "moved.bin").read_bytes() == content(21 * MIB, 21 * MIB)
    url = aws("s3", "presign", "s3://cli-bucket/one.txt").strip()
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.read() == content(12, 12)
    head = aws("s3api", "head-object", "--bucket", "cli-bucket", "--key", "moved.bin")
    assert f'"ContentLength": {21 * MIB}' in head
    put = aws(
        "s3api", "put-object", "--bucket", "cli-bucket", "--key", "summed", "--body",
        "from/small.txt", "--checksum-algorithm", "SHA256",
    )  # fmt: skip
    assert "ChecksumSHA256" in put
    assert "404" in aws(
        "s3api", "head-object", "--bucket", "cli-bucket", "--key", "none", fails=True
    )
    assert "BucketNotEmpty" in aws("s3", "rb", "s3://cli-bucket", fails=True)
    aws("s3", "rm", "--recursive", "s3://cli-bucket")
    aws("s3", "rb", "s3://cli-bucket")
    assert "NoSuchBucket" in aws("s3", "ls", "s3://cli-bucket", fails=True)


def test_s3cmd(world: DevWorld, files: Path) -> None:
    host = world.s3_url(1).removeprefix("http://")
    s3cmd = Tool(
        [
            str(CLIENTS / "s3cmd"), "--no-ssl", f"--host={host}", f"--host-bucket={host}",
            f"--access_key={CREDENTIALS.user}", f"--secret_key={CREDENTIALS.password}",
            "--region=us-east-1", "--multipart-chunk-size-mb=5", "--no-progress",
            f"--config={files / 's3cfg'}",
        ],
        base_environ(files),
        files,
    )  # fmt: skip
    (files / "s3cfg").write_text("[default]\n")
    s3cmd("mb", "s3://cmd-bucket")
    assert "s3://cmd-bucket" in s3cmd("ls")
    s3cmd("put", "from/small.txt", "s3://cmd-bucket/one.txt")
    s3cmd("get", "s3://cmd-bucket/one.txt", "back.txt")
    assert (files / "back.txt").read_bytes() == content(12, 12)
    s3cmd("put", "from/sub/deep/large.bin", "s3://cmd-bucket/large.bin")
    s3cmd("get", "s3://cmd-bucket/large.bin", "large.back")
    assert (files / "large.back").read_bytes() == content(21 * MIB, 21 * MIB)
    s3cmd("sync", "from/", "s3://cmd-bucket/tree/")
    (files / "to").mkdir()
    s3cmd("sync", "s3://cmd-bucket/tree/", "to/")
    same(files / "from", files / "to")
    s3cmd("cp", "s3://cmd-bucket/one.txt", "s3://cmd-bucket/two.txt")
    s3cmd("mv", "s3://cmd-bucket/two.txt", "s3://cmd-bucket/three.txt")
    names = [line.split()[-1] for line in s3cmd("ls", "s3://cmd-bucket/").splitlines()]
    assert names == [
        "s3://cmd-bucket/tree/",
        "s3://cmd-bucket/large.bin",
        "s3://cmd-bucket/one.txt",
        "s3://cmd-bucket/three.txt",
    ]
    s3cmd("get", "s3://cmd-bucket/none", "none", fails=True)
    s3cmd("rb", "s3://cmd-bucket", fails=True)
    s3cmd("del", "--recursive", "--force", "s3://cmd-bucket/")
    s3cmd("rb", "s3://cmd-bucket")


def test_minio_py(world: DevWorld, files: Path) -> None:
    python = CLIENTS / "python"
    if subprocess.run([python, "-c", "import minio"], capture_output=True).returncode:
        pytest.skip("minio-py is not there: make test-setup gets it")
    host = world.s3_url(1).removeprefix("http://")
    story = Tool([str(python), str(STORY), host], base_environ(files), files)
    story(CREDENTIALS.user, CREDENTIALS.password)


def test_rclone(world: DevWorld, files: Path) -> None:
    program = shutil.which("rclone", path=f"{CLIENTS.parents[1] / 'bin'}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("rclone is not there: make test-setup gets it on Debian")
    rclone = Tool(
        [program, "--config", os.devnull, "--retries", "1", "--low-level-retries", "1"],
        {
            **base_environ(files),
            "RCLONE_CONFIG_H_TYPE": "s3",
            "RCLONE_CONFIG_H_PROVIDER": "Other",
            "RCLONE_CONFIG_H_ENDPOINT": world.s3_url(1),
            "RCLONE_CONFIG_H_ACCESS_KEY_ID": CREDENTIALS.user,
            "RCLONE_CONFIG_H_SECRET_ACCESS_KEY": CREDENTIALS.password,
            "RCLONE_CONFIG_H_REGION": "us-east-1",
            "RCLONE_CONFIG_H_CHUNK_SIZE": "5M",
            "RCLONE_CONFIG_H_UPLOAD_CUTOFF": "5M",
        },
        files,
    )
    many = files / "from" / "many"
    many.mkdir()
    for number in range(100):
        (many / f"{number} +ü").write_bytes(content(number * 100, number))
    rclone("mkdir", "h:rclone-bucket")
    rclone("sync", "from", "h:rclone-bucket/tree")
    rclone("check", "from", "h:rclone-bucket/tree")
    rclone("copy", "h:rclone-bucket/tree", "to")
    same(files / "from", files / "to")
    large = "h:rclone-bucket/tree/sub/deep/large.bin"
    rclone("copyto", large, "h:rclone-bucket/copied")
    rclone("moveto", "h:rclone-bucket/copied", "h:rclone-bucket/moved")
    rclone("copyto", "h:rclone-bucket/moved", "moved.bin")
    assert (files / "moved.bin").read_bytes() == content(21 * MIB, 21 * MIB)
    listed = rclone("lsf", "-R", "--files-only", "h:rclone-bucket").splitlines()
    assert len(listed) == 106 and "moved" in listed
    url = rclone("link", "h:rclone-bucket/tree/small.txt").split()[-1]
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.read() == content(12, 12)
    rclone("purge", "h:rclone-bucket")
    assert "rclone-bucket" not in rclone("lsd", "h:")
