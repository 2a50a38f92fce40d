"""The cluster that power-off tests share, and their figures after the run; the stand-in store of client tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from .observer import wait_for
from .power_world import BUCKET, START_S, Cluster, keep_logs
from .report import REPORT
from .standin import Store
from .world import choose, root_s3


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not REPORT.world:
        return
    terminalreporter.section("power-off figures")
    for line in REPORT.lines():
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"kept in {REPORT.save()}")


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    world, REPORT.world = choose()
    cluster = Cluster(world, tmp_path_factory.mktemp("poweroff"))
    try:
        world.up()
        took_s = wait_for("all nodes take writes", cluster.ready, START_S)
        REPORT.figure("start", "four nodes take writes after", took_s)
        with root_s3(world, 1) as s3:
            s3.expect("PUT", f"/{BUCKET}")
        yield cluster
    except BaseException:
        keep_logs(world)
        raise
    finally:
        keep_logs(world)
        world.down()


@pytest.fixture
def whole(built: Cluster) -> Cluster:
    """Every node powered and taking writes, every breaker closed, nothing left to repair."""
    built.whole()
    return built
