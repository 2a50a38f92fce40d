"""The alert rules: complete, on metrics that exist, documented, and each proven by promtool to fire and to rest."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.rules import ROOT, Rule, exported_names, metric_names, promtool, read_rules

RULES = read_rules()
CASES = ROOT / "monitoring" / "alerts_test.yml"

# The specification's nine: severity, how long, threshold as its text has it.
NINE = {
    "IAMLockTimeoutHigh": ("critical", "2m", "> 0.1"),
    "MultipleNodesUnreachable": ("critical", "1m", "> 1"),
    "ConfigReadTimeoutHigh": ("warning", "2m", "> 0.5"),
    "DiskStateCheckTimeoutHigh": ("warning", "2m", "> 0.5"),
    "DiskStateCheckSlow": ("warning", "5m", "> 2"),
    "IAMOperationSlow": ("warning", "5m", "> 5"),
    "NodeUnreachableExtended": ("warning", "5m", "== 2"),
    "OperationDurationSpike": ("warning", "5m", "> 3"),
    "LockRetryRateHigh": ("info", "5m", "> 1"),
}
BEYOND = {
    "WriteQuorumLost": {"critical"},
    "ReadQuorumLost": {"critical"},
    "StripeMarginSpent": {"warning"},
    "DriveOffline": {"warning"},
    "DriveFull": {"warning", "critical"},
    "RepairBacklogOld": {"warning"},
    "RottenBlocksFound": {"warning"},
    "ScrubOverdue": {"info"},
    "UndecidedWritesOld": {"warning"},
    "LockHealthDegraded": {"warning"},
    "LockHealthUnhealthy": {"critical"},
    "CascadingFailureDetected": {"warning"},
    "RecurringCascadingFailures": {"warning"},
    "ClockSkew": {"warning"},
}


def ids(rule: Rule) -> str:
    return f"{rule.name}-{rule.labels['severity']}"


def read_cases() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = yaml.safe_load(CASES.read_text())["tests"]
    return cases


def headings() -> dict[str, str]:
    """Alert headings of docs/OPERATIONS.md -> the text below each."""
    parts = re.split(r"^## (\w+)$", (ROOT / "docs/OPERATIONS.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [promtool(), *map(str, command)], capture_output=True, text=True, timeout=100, check=False
    )


def test_no_alert_is_missing_and_none_is_unknown() -> None:
    assert {rule.name for rule in RULES} == NINE.keys() | BEYOND.keys()


@pytest.mark.parametrize("name", NINE)
def test_the_specified_nine(name: str) -> None:
    (rule,) = (rule for rule in RULES if rule.name == name)
    severity, hold, threshold = NINE[name]
    assert rule.labels["severity"] == severity
    assert rule.hold == hold
    assert threshold in rule.expr


def test_severities_beyond_the_nine() -> None:
    for name, severities in BEYOND.items():
        assert {r.labels["severity"] for r in RULES if r.name == name} == severities


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_each_rule_says_what_one_needs_to_know(rule: Rule) -> None:
    assert set(rule.labels) == {"severity", "component"}
    assert set(rule.annotations) == {"summary", "description", "remediation", "runbook"}
    assert all(len(text) > 10 for text in rule.annotations.values())
    assert rule.annotations["runbook"] == f"docs/OPERATIONS.md#{rule.name.lower()}"
    assert "Fault: " in rule.comment, "name the laboratory's fault that fires it"


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_each_metric_is_one_that_nodes_emit_with_these_labels(rule: Rule) -> None:
    exported = exported_names()
    names = metric_names(rule.expr)
    assert names and names <= exported.keys(), names - exported.keys()
    allowed = {"instance", "job", "le"}
    for name in names:
        allowed |= set(getattr(exported[name], "_labelnames", ()))
    used = {
        label.strip()
        for group in re.findall(r"by \(([^)]*)\)", rule.expr)
        for label in group.split(",")
    } | set(re.findall(r"[{,](\w+)[!=]", rule.expr))
    assert used <= allowed, used - allowed
    # What the texts name must survive the expression's aggregation.
    kept = re.search(r"by \(([^)]*)\)", rule.expr)
    for label in re.findall(r"\$labels\.(\w+)", " ".join(rule.annotations.values())):
        assert label in (kept[1] if kept else allowed), label


def test_each_alert_has_its_heading_and_each_heading_its_alert() -> None:
    found = headings()
    assert found.keys() == {rule.name for rule in RULES}
    for name, text in found.items():
        for part in ("**Meaning.**", "**First look.**", "**Remedy.**"):
            assert part in text, f"{name}: {part}"


def test_runbooks_name_metrics_that_exist() -> None:
    exported = exported_names()
    known = exported.keys() | {family.name for family in exported.values()}
    assert metric_names("\n".join(headings().values())) <= known


@pytest.mark.parametrize("name", sorted(NINE.keys() | BEYOND.keys()))
def test_each_rule_has_a_case_that_fires_and_one_that_stays_silent(name: str) -> None:
    mine = [case for case in read_cases() if case["name"].startswith(name + " ")]
    for case in mine:
        fires = [bool(test["exp_samples"]) for test in case["promql_expr_test"]]
        assert any(fires) is case["name"].startswith(f"{name} fires: "), case["name"]
        assert all(f'alertname="{name}"' in test["expr"] for test in case["promql_expr_test"])
        for series in case["input_series"]:
            assert metric_names(series["series"]) <= exported_names().keys()
    kinds = {case["name"].removeprefix(name).split(":")[0].strip() for case in mine}
    assert kinds == {"fires", "stays silent"}


def test_promtool_accepts_the_rules() -> None:
    done = run("check", "rules", ROOT / "alerts.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_proves_every_case() -> None:
    done = run("test", "rules", CASES)
    assert done.returncode == 0, done.stdout + done.stderr


def spoiled(tmp_path: Path, expr: str) -> str:
    """promtool's verdict on our cases when every rule has this expression and no patience."""
    rules = yaml.safe_load((ROOT / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = expr
            rule.pop("for", None)
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules))
    cases = CASES.read_text().replace("../alerts.yml", "alerts.yml")
    (tmp_path / "cases.yml").write_text(cases)
    done = run("test", "rules", tmp_path / "cases.yml")
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.full  # half a minute of promtool
@pytest.mark.parametrize(("expr", "fires"), [("vector(0) > 1", True), ("vector(1)", False)])
def test_the_cases_find_rules_that_never_or_always_fire(
    tmp_path: Path, expr: str, fires: bool
) -> None:
    verdict = spoiled(tmp_path, expr)
    expected = Counter(
        case["name"].split()[0]
        for case in read_cases()
        for test in case["promql_expr_test"]
        if bool(test["exp_samples"]) is fires
    )
    found = Counter(re.findall(r'alertname=\\*"(\w+)', verdict))
    assert found >= expected, expected - found
