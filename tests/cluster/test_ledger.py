"""The ledger and the upload client find what they are there to find: shown on a broken store."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .ledger import Operation, Slot, summary, value
from .standin import Store
from .wire import Credentials, sign

ROOT = Path(__file__).parents[2]
KEYS = Credentials(access_key="tester", secret_key="a secret of tests")


def client(module: str, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.cluster.{module}", *argv],
        cwd=ROOT,
        env=KEYS.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_ledger(store: Store, verb: str, journal: Path, *argv: str) -> dict[str, Any]:
    common = ["--endpoints", store.endpoint, "--journal", str(journal), "--conns", "3"]
    with client("ledger", verb, *common, "--large", "100000", "--slots", "4", *argv) as process:
        assert process.stdout is not None
        out = process.stdout.read()  # its standard input stays open: closing it would stop it
    return json.loads(out)


def test_an_honest_store_passes(store: Store, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    figures = run_ledger(store, "write", journal, "--seconds", "1", "--rate", "150")
    assert figures["failed"] == 0 and figures["wrong"] == []
    assert 20 < sum(figures["ok"].values()) <= 170  # paced
    assert set(figures["ok"]) >= {"put", "get"}
    back = run_ledger(store, "verify", journal)
    assert back == {"keys": figures["keys"], "wrong": [], "failed": 0, "failures": []}


@pytest.mark.parametrize("mode", ["forgets", "damages"])
def test_a_store_that_lies_is_caught(store: Store, tmp_path: Path, mode: str) -> None:
    store.mode = mode
    journal = tmp_path / "journal"
    figures = run_ledger(store, "write", journal, "--seconds", "1", "--rate", "200")
    back = run_ledger(store, "verify", journal)
    assert figures["failed"] == 0
    assert figures["wrong"] or back["wrong"]


@pytest.mark.parametrize("mode", ["refuses", "refuses but does"])
def test_a_refused_write_may_or_may_not_have_happened(
    store: Store, tmp_path: Path, mode: str
) -> None:
    store.mode = mode
    journal = tmp_path / "journal"
    figures = run_ledger(store, "write", journal, "--seconds", "1", "--rate", "200")
    assert figures["failed"] > 3 and "503" in figures["failures"][0]["why"]
    assert figures["wrong"] == []
    assert run_ledger(store, "verify", journal)["wrong"] == []


def test_an_acknowledged_write_that_is_lost_later_is_found(store: Store, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    run_ledger(store, "write", journal, "--seconds", "0.5", "--rate", "200")
    path = sorted(store.objects)[0]
    del store.objects[path]
    wrong = run_ledger(store, "verify", journal)["wrong"]
    assert len(wrong) == 1 and wrong[0].startswith(path.removeprefix("/ledger/"))


def test_a_value_seen_and_gone_is_found() -> None:
    slot = Slot(key="k", size=10, last=2)
    slot.acked(1)
    slot.lost_track(2)
    assert slot.judge(200, value("k", 1, 10)) is None
    assert slot.judge(200, value("k", 2, 10)) is None  # the unknown write took effect
    assert "stale version 1" in str(slot.judge(200, value("k", 1, 10)))
    assert "damaged" in str(slot.judge(200, value("k", 2, 10)[:-1] + b"\0"))
    assert "another key" in str(slot.judge(200, value("j", 2, 10)))
    assert "missing" in str(slot.judge(404, b""))


def test_the_longest_gap_counts_the_ends_of_the_run() -> None:
    done = [
        Operation(start=t, end=t + 0.1, kind="put", failure=why)
        for t, why in [(10.0, None), (10.5, None), (12.0, "503"), (13.0, None)]
    ]
    figures = summary(done, 9.0, 14.0)
    assert figures["longest_gap_s"] == pytest.approx(2.5)
    assert figures["longest_gap_at"] == pytest.approx(10.6)
    assert figures["failed"] == 1 and figures["ok"] == {"put": 3}
    assert [row["s"] for row in figures["seconds"]] == [1, 3, 4]


def test_a_stall_shows_as_a_gap_and_the_ledger_stops_when_told(
    store: Store, tmp_path: Path
) -> None:
    common = ["--endpoints", store.endpoint, "--journal", str(tmp_path / "j"), "--conns", "2"]
    process = client("ledger", "write", *common, "--reads", "0", "--rate", "100", "--seconds", "60")
    assert process.stdin is not None
    while store.writes < 10:
        time.sleep(0.01)
    store.gate.clear()
    begun = time.monotonic()
    time.sleep(0.8)
    held = time.monotonic() - begun
    store.gate.set()
    out, _ = process.communicate("stop\n", timeout=30)
    figures = json.loads(out)
    assert figures["failed"] == 0
    assert figures["longest_gap_s"] > held - 0.3
    assert figures["longest_stall_s"] > held - 0.3


@pytest.mark.parametrize("how", [["--conns", "2"], ["--streamed"]])
def test_an_upload_marks_its_progress_and_is_verified(store: Store, how: list[str]) -> None:
    common = ["--endpoint", store.endpoint, "--size-mb", "9", "--part-mb", "2"]
    process = client("upload", "put", *common, *how)
    lines = process.communicate(timeout=60)[0].splitlines()
    assert lines[0].startswith("mark 45 ")
    figures = json.loads(lines[1])
    assert figures["failure"] is None and figures["longest_gap_s"] > 0
    good = json.loads(client("upload", "verify", *common).communicate(timeout=60)[0])
    assert good == {"failure": None, "mib": 9, "wrong_mib": 0}
    (path,) = store.objects
    damaged = bytearray(store.objects[path])
    damaged[5_000_000] ^= 1
    store.objects[path] = bytes(damaged)
    bad = json.loads(client("upload", "verify", *common).communicate(timeout=60)[0])
    assert bad["wrong_mib"] == 1


def test_the_signature_is_botocores() -> None:
    auth = pytest.importorskip("botocore.auth")
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as BotoCredentials

    target, headers = sign(KEYS, "GET", "h:1", "/b/k é", [("prefix", "a/b"), ("x", "")])
    request = AWSRequest(method="GET", url=f"http://h:1{target}")
    request.headers["X-Amz-Content-SHA256"] = "UNSIGNED-PAYLOAD"
    request.context["timestamp"] = headers["x-amz-date"]
    boto = BotoCredentials(KEYS.access_key, KEYS.secret_key)
    signer = auth.S3SigV4Auth(boto, "s3", "us-east-1")
    request.headers["host"] = "h:1"
    request.headers["x-amz-date"] = headers["x-amz-date"]
    to_sign = signer.string_to_sign(request, signer.canonical_request(request))
    assert headers["Authorization"].endswith(signer.signature(to_sign, request))
