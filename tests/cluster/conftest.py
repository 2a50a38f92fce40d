"""Prints the figures of the power-off tests after the run, and keeps them as JSON."""

from __future__ import annotations

import pytest

from .report import REPORT


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not REPORT.world:
        return
    terminalreporter.section("power-off figures")
    for line in REPORT.lines():
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"kept in {REPORT.save()}")
