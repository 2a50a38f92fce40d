"""Prints the figures of the power-off tests after the run; the stand-in store of client tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from .report import REPORT
from .standin import Store


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
