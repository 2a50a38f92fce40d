"""A running cluster under load while a link, a node or a drive is sick: nothing fails, nothing is lost.

Needs the laboratory: links that lose or delay packets, drives that hang, rot, fill up, are swapped or emptied.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .lab import Lab
from .ledger import value
from .observer import OPEN, wait_for
from .power_world import BUCKET, REPAIR_S, Cluster, finish
from .report import REPORT
from .wire import WireError
from .world import DRIVES, NODES, LabWorld, root_s3

pytestmark = [pytest.mark.lab, pytest.mark.timeout(420)]

MIB = 1 << 20
LOAD = ["--seconds", "120", "--rate", "90", "--conns", "12", "--timeout", "20"]


@pytest.fixture
def lab(whole: Cluster) -> Iterator[Lab]:
    """The laboratory of the shared cluster; whatever a test made sick is well again after it."""
    if not isinstance(whole.world, LabWorld):
        pytest.skip("only the laboratory can do this")
    lab = whole.world.lab
    yield lab
    lab.fabric.heal()
    for node in NODES:
        if lab.book.powered(node):
            lab.fabric.unslow(node)
            lab.resume(node)
        for drive in DRIVES:
            lab.drives.free(node, drive)
            if lab.book.state.faults.get(f"{node}.{drive}"):
                lab.drives.ok(node, drive)


def ride_out(
    cluster: Cluster,
    name: str,
    through: list[int],
    fault: Callable[[], Any],
    heal: Callable[[], Any],
    hold_s: float = 6.0,
) -> dict[str, Any]:
    """Load through some nodes while something is sick: no request fails, nothing acknowledged is lost."""
    writer = cluster.start_ledger("write", through, name, *LOAD)
    time.sleep(2.5)
    fault()
    began = time.monotonic()
    time.sleep(hold_s)
    ended = time.monotonic()
    heal()
    time.sleep(1.5)
    figures: dict[str, Any] = finish(writer, say="stop")
    operations = figures.pop("operations")
    REPORT.details[f"fault {name}"] = figures | {"began": began, "ended": ended}

    def p99(low: float, high: float) -> float:
        took = sorted(e - s for s, e, _, _ in operations if low <= s < high)
        return float(took[int(0.99 * (len(took) - 1))]) if took else 0.0

    stall_s = max(end - start for start, end, _, _ in operations)
    failed = figures["failed"]
    what = f"7 {name}"
    REPORT.figure(what, f"failed requests of {len(operations)}", failed, unit="", limit=0)
    REPORT.figure(what, "longest stall of one request", stall_s, limit=15, aim=2)
    REPORT.figure(what, "p99 before", p99(figures["begin"], began))
    REPORT.figure(what, "p99 during, after the first 3 s", p99(began + 3, ended))
    assert failed == 0 and figures["wrong"] == [], (figures["failures"][:3], figures["wrong"][:3])
    assert stall_s <= 15
    cluster.verify(list(NODES), name)
    return figures


def drive_process(lab: Lab, node: int, drive: int) -> int:
    """Pid of the process that serves a drive."""
    path = f"{lab.drives.path(node, drive)}\0".encode()
    for pid in lab.pids(node):
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"drive_process" in line and path in line:
            return pid
    raise AssertionError(f"no process serves drive {drive} of node {node}")


# -- nodes and links


def test_a_client_whose_node_dies_goes_on_at_another(whole: Cluster, lab: Lab) -> None:
    """Each write is tried at node 4, and at once again at node 1 when that fails: the same key, the same value."""
    acknowledged: dict[str, int] = {}
    slowest_s = 0.0
    cut = time.monotonic() + 2.0
    off = False
    number = 0
    while time.monotonic() < cut + 5.0:
        number += 1
        key = f"mover/{number % 10}"
        body = value(key, number, 4096)
        if not off and time.monotonic() >= cut:
            # Under way when the power goes: its lock and half of its work stay behind.
            with root_s3(whole.world, 4, timeout_s=0.05) as s3, contextlib.suppress(WireError):
                s3.call("PUT", f"/{BUCKET}/{key}", body=body)
            cut, off = whole.world.poweroff(4), True
        if not off and whole.put(4, key, number) == 200:
            acknowledged[key] = number
            continue
        began = time.monotonic()
        assert whole.put(1, key, number) == 200
        slowest_s = max(slowest_s, time.monotonic() - began)
        acknowledged[key] = number
    REPORT.figure("7 mover", "slowest repetition at another node", slowest_s, limit=15, aim=2)
    for key, version in acknowledged.items():
        assert whole.get(2, key) == (200, value(key, version, 4096))


def test_a_one_way_cut_costs_no_request_of_the_others(whole: Cluster, lab: Lab) -> None:
    def cut() -> None:
        lab.fabric.partition("4>1,2,3")  # it hears them, they do not hear it
        began = time.monotonic()

        def opened() -> bool:
            return whole.breakers_everywhere(4, OPEN)

        took_s = wait_for("breakers of node 4 are open", opened, 8, since=began)
        REPORT.figure("7 one-way", "breakers of the survivors open after", took_s, limit=8, aim=3)
        wait_for("node 4 knows that it is alone", lambda: not whole.see.healthy(4), 8, since=began)
        asked = time.monotonic()
        assert whole.put(4, "one-way", 1) == 503
        assert time.monotonic() - asked < 2

    ride_out(whole, "one-way", [1, 2, 3], cut, lab.fabric.heal, hold_s=2.0)
    wait_for("all nodes take writes", whole.ready, 30)


def test_lost_packets_cost_no_request_of_the_others(whole: Cluster, lab: Lab) -> None:
    """30 % of all frames to and from node 4."""
    sick = lambda: lab.fabric.slow(4, loss=30)  # noqa: E731
    ride_out(whole, "loss", [1, 2, 3], sick, lambda: lab.fabric.unslow(4), hold_s=8.0)


def test_a_slow_link_costs_no_request_of_the_others(whole: Cluster, lab: Lab) -> None:
    """Half a second more, each way."""
    sick = lambda: lab.fabric.slow(4, delay=500)  # noqa: E731
    ride_out(whole, "delay", [1, 2, 3], sick, lambda: lab.fabric.unslow(4), hold_s=8.0)


# -- drives


def test_a_stopped_drive_process_costs_no_request(whole: Cluster, lab: Lab) -> None:
    pid = drive_process(lab, 2, 1)
    try:
        ride_out(
            whole,
            "drive-stopped",
            list(NODES),
            lambda: os.kill(pid, signal.SIGSTOP),
            lambda: os.kill(pid, signal.SIGCONT),
        )
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for("every object has its 16 shards", whole.census_is_whole, REPAIR_S, 0.5)


def test_a_drive_that_hangs_in_the_kernel_costs_no_request(whole: Cluster, lab: Lab) -> None:
    ride_out(
        whole,
        "drive-hung",
        list(NODES),
        lambda: lab.drives.hang(3, 2),
        lambda: lab.drives.ok(3, 2),
    )
    wait_for("every object has its 16 shards", whole.census_is_whole, REPAIR_S, 0.5)


def test_rotten_shards_and_headers_are_read_around_and_repaired(whole: Cluster, lab: Lab) -> None:
    key, size = "rot", 3 * MIB
    before = {path for node in NODES for drive in DRIVES for path in shard_files(lab, node, drive)}
    assert whole.put(1, key, 1, size) == 200
    wait_for("every object has its 16 shards", whole.census_is_whole, REPAIR_S, 0.5)
    mine = [
        (node, drive, path)
        for node in NODES
        for drive in DRIVES
        for path in shard_files(lab, node, drive)
        if path not in before
    ]
    assert len(mine) == 16
    right = {path: path.read_bytes() for _, _, path in mine}
    bodies = []
    for number, (node, drive, path) in enumerate(mine[::2]):  # as many as there is parity
        name = str(path.relative_to(lab.drives.path(node, drive)))
        if number % 4:
            bodies.append(path)
            lab.drives.flip(node, drive, name, bit=number)
        else:
            lab.drives.flip(node, drive, name, offset=3)
    assert sum(path.read_bytes() != content for path, content in right.items()) == 8
    for node in NODES:
        for drive in DRIVES:
            lab.drives.drop_caches(node, drive)

    def mended() -> bool:
        for node in NODES:  # repair sees what readers met, and each meets its own node's shards
            assert whole.get(node, key) == (200, value(key, 1, size))
        return all(path.read_bytes() == right[path] for path in bodies)

    took_s = wait_for("the rotten shards are right again", mended, REPAIR_S, 0.5)
    REPORT.figure("7 rot", f"{len(bodies)} rotten shards of 16 right again after", took_s)


def shard_files(lab: Lab, node: int, drive: int) -> list[Path]:
    return [path for path in (lab.drives.path(node, drive) / "shards").rglob("*") if path.is_file()]


@pytest.mark.full
def test_a_rotten_catalog_is_left_alone_and_costs_nothing(whole: Cluster, lab: Lab) -> None:
    """Records rot: one bit in each file of a drive's catalog that holds rows, while its node is down."""
    load = ["--seconds", "3", "--rate", "60", "--conns", "4"]
    assert whole.ledger("write", list(NODES), "records", *load)["failed"] == 0
    lab.term(4)
    catalog = lab.drives.path(4, 1) / "catalog"
    files = [
        p
        for p in catalog.iterdir()
        if p.suffix in (".sst", ".log", ".blob") and p.stat().st_size > 64
    ]
    assert files
    kept = {path: path.read_bytes() for path in files}
    for path in files:
        lab.drives.flip(4, 1, str(path.relative_to(lab.drives.path(4, 1))))
    lab.drives.drop_caches(4, 1)
    lab.start(4)
    wait_for("all nodes take writes", whole.ready, 60)
    whole.verify([4], "records")
    whole.verify([1, 2], "records")
    lab.term(4)
    for path, content in kept.items():
        if path.exists():
            path.write_bytes(content)
    lab.start(4)
    wait_for("all nodes take writes", whole.ready, 60)
    whole.verify([4], "records")
    wait_for("every object has its 16 shards", whole.census_is_whole, REPAIR_S, 0.5)


def test_a_replaced_drive_is_filled_under_load(whole: Cluster, lab: Lab) -> None:
    load = ["--seconds", "3", "--rate", "60", "--conns", "4"]
    assert whole.ledger("write", list(NODES), "old", *load)["failed"] == 0
    ride_out(
        whole, "replaced", list(NODES), lambda: lab.drives.replace(4, 3), lambda: None, hold_s=8.0
    )
    took_s = wait_for("every object has its 16 shards", whole.census_is_whole, REPAIR_S, 0.5)
    REPORT.figure("7 replaced", "census whole, after the load, in", took_s)
    whole.world.poweroff(1, 2)
    whole.verify([3, 4], "old")  # the new drive does its part


@pytest.mark.full
def test_an_emptied_drive_is_filled_after_a_restart(whole: Cluster, lab: Lab) -> None:
    load = ["--seconds", "3", "--rate", "60", "--conns", "4", "--large-every", "2"]
    assert whole.ledger("write", list(NODES), "wiped", *load)["failed"] == 0
    lab.drives.wipe(3, 1)
    whole.verify(list(NODES), "wiped")
    lab.kill(3)
    lab.start(3)
    wait_for("all nodes take writes", whole.ready, 60)
    whole.verify(list(NODES), "wiped")
    wait_for("every object has its 16 shards", whole.census_is_whole, REPAIR_S, 0.5)


@pytest.mark.full
def test_drives_swapped_between_nodes_are_never_written_to(whole: Cluster, lab: Lab) -> None:
    load = ["--seconds", "3", "--rate", "60", "--conns", "4"]
    assert whole.ledger("write", list(NODES), "swap", *load)["failed"] == 0
    wait_for("every object has its 16 shards", whole.census_is_whole, REPAIR_S, 0.5)
    one, two = lab.drives.path(3, 2), lab.drives.path(4, 2)
    for node in (3, 4):
        lab.term(node)
    swap_contents(one, two)
    formats = [(path / "format.json").read_bytes() for path in (one, two)]
    marks = {node: whole.world.log_path(node).stat().st_size for node in (3, 4)}
    for node in (3, 4):
        lab.start(node)

    def named(node: int) -> bool:
        said = whole.world.log_path(node).read_bytes()[marks[node] :].splitlines()
        return any(b"disk2" in line and b"in its own place" in line for line in said)

    for node in (3, 4):
        wait_for(f"node {node} names the drive", lambda node=node: named(node), 30)
    whole.verify([1, 2], "swap")
    assert formats == [(path / "format.json").read_bytes() for path in (one, two)]
    for node in (3, 4):
        if lab.pids(node):
            lab.term(node)
    swap_contents(one, two)
    for node in (3, 4):
        lab.start(node)
    wait_for("all nodes take writes", whole.ready, 60)
    whole.verify(list(NODES), "swap")
    wait_for("every object has its 16 shards", whole.census_is_whole, REPAIR_S, 0.5)


def swap_contents(one: Path, two: Path) -> None:
    """The files of two drives that nobody uses change places."""
    aside = one.parent.parent.parent / "swap-aside"
    aside.mkdir()
    for source, target in ((one, aside), (two, one), (aside, two)):
        subprocess.run(["cp", "-a", f"{source}/.", str(target)], check=True)
        for entry in source.iterdir():
            if entry.name != "lost+found":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.rmtree(aside)


def test_full_drives_refuse_writes_let_go_and_tear_nothing(whole: Cluster, lab: Lab) -> None:
    """Eight of sixteen drives fill up under load: fewer than a write needs, enough for reads and deletes."""
    load = [*LOAD, "--large-every", "2", "--large", str(2 * MIB)]
    writer = whole.start_ledger("write", list(NODES), "full", *load)
    time.sleep(2.5)
    for node in (3, 4):
        for drive in DRIVES:
            lab.drives.full(node, drive, leave=4 * MIB)
    time.sleep(5.0)
    figures = finish(writer, say="stop")
    assert figures["wrong"] == []
    odd = [f for f in figures["failures"] if not f["why"].startswith(("503", "507"))]
    assert figures["failed"] > 0 and not odd, odd[:3]
    assert whole.put(1, "too-much", 1, 4 * MIB) in (503, 507)
    whole.verify(list(NODES), "full")
    with root_s3(whole.world, 2) as s3:
        assert s3.call("DELETE", f"/{BUCKET}/at-the-cut").status == 204
        assert s3.call("DELETE", f"/{BUCKET}/too-much").status == 204
    for node in (3, 4):
        for drive in DRIVES:
            lab.drives.free(node, drive)
    wait_for("room again", lambda: whole.put(3, "again", 1, 4 * MIB) == 200, 30)
    whole.verify(list(NODES), "full")
    wait_for("every object has its 16 shards", whole.census_is_whole, REPAIR_S, 0.5)
