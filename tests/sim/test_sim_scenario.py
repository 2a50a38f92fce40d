"""Seeds under every nemesis: no promise is broken, the same seed is the same run, and old finds stay mended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.__main__ import Report, main, run_budget, seconds, story_of
from tests.sim.scenario import Plan, Result, run_seed

ROOT = Path(__file__).resolve().parents[2]

# Seeds that found a fault once, kept for good: (seed, plan, what it was).
REGRESSIONS = [
    (1, Plan(storm_s=15.0), "a shard file that was only written was taken for present by repair"),
]
SHORT = Plan(storm_s=12.0)
BUDGET_S = float(os.environ.get("HOLDFAST_SIM_BUDGET_S", "75"))


@pytest.mark.timeout(900)
def test_fresh_seeds_break_no_promise() -> None:
    """As many as the budget allows; a seed that fails is printed with the command that replays it."""
    report = run_budget(BUDGET_S)
    print(f"\n{report}")
    for result in report.bad:
        print(story_of(result))
    assert not report.bad, f"{report}"
    assert report.operations > 0 and report.histories > 0


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_many_fresh_seeds_break_no_promise() -> None:
    report = run_budget(1800.0)
    print(f"\n{report}")
    assert not report.bad, f"{report}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("seed", "plan", "what"), REGRESSIONS, ids=lambda value: str(value)[:40])
def test_what_was_found_once_stays_mended(seed: int, plan: Plan, what: str) -> None:
    result = run_seed(seed, plan)
    assert not result.anomalies, f"{what}: {result.anomalies}"


def trace_under(hash_seed: str, seed: int) -> str:
    code = (
        "from tests.sim.test_sim_scenario import SHORT\n"
        "from tests.sim.scenario import run_seed\n"
        f"print(run_seed({seed}, SHORT).trace)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=250,
    )
    return done.stdout.strip()


@pytest.mark.timeout(600)
def test_a_storm_is_the_same_under_two_hash_seeds() -> None:
    first = trace_under("1", 11)
    assert first and trace_under("2", 11) == first


# ---- the command ------------------------------------------------------------------------------------------
def test_a_failing_seed_is_reported_with_its_story_and_the_command_that_replays_it() -> None:
    result = Result(seed=7, anomalies=["key01: no order explains"], story=["1.0 node1 power off"])
    report = Report(real_s=1.0)
    report.add(result)
    assert "make sim SEED=7" in str(report)
    assert "power off" in story_of(result) and "no order explains" in story_of(result)


def test_budgets_have_units() -> None:
    assert [seconds(text) for text in ("90", "60s", "10m", "8h")] == [90, 60, 600, 28800]


def test_one_seed_can_be_run_by_its_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.sim.__main__.run_seed", lambda seed: run_seed(seed, SHORT))
    status = main(["--seed", "12"])
    shown = capsys.readouterr().out
    assert status == 0, shown
    assert "the node serves" in shown and "histories        10 checked" in shown
