"""What the tests of alerts and of the dashboard share: the files, and the names of metrics in expressions."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.core import Metric

from node.observe.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
_NAME = re.compile(r"\b(?:rustfs|holdfast)_[a-z0-9_]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One alert rule, with the comment above it."""

    name: str
    expr: str
    hold: str  # "for", "" when it fires at once
    labels: dict[str, str]
    annotations: dict[str, str]
    comment: str


def read_rules() -> list[Rule]:
    text = (ROOT / "alerts.yml").read_text()
    comments = re.findall(r"((?:^ *#.*\n)*)^ *- alert: (\w+)$", text, re.MULTILINE)
    found: list[dict[str, Any]] = [
        rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]
    ]
    assert [name for _, name in comments] == [rule["alert"] for rule in found]
    return [
        Rule(
            name=rule["alert"],
            expr=rule["expr"],
            hold=rule.get("for", ""),
            labels=rule["labels"],
            annotations=rule["annotations"],
            comment=comment,
        )
        for (comment, _), rule in zip(comments, found, strict=True)
    ]


def metric_names(expression: str) -> set[str]:
    return set(_NAME.findall(expression))


def exported_names() -> dict[str, Metric]:
    """Every name that a sample of a node's page can have -> its family."""
    names = {}
    for family in Metrics().registry.collect():
        if family.type == "histogram":
            suffixes = ["_bucket", "_sum", "_count"]
        else:
            suffixes = ["_total"] if family.type == "counter" else [""]
        names.update({family.name + suffix: family for suffix in suffixes})
    return names


def promtool() -> str:
    """Its path. Where it is required (continuous integration) its absence fails the test, elsewhere it skips it."""
    tools = ROOT / "var" / "tools" / "bin"
    found = shutil.which("promtool", path=f"{os.environ.get('PATH', '')}{os.pathsep}{tools}")
    if found is None:
        reason = (
            "promtool is missing: run scripts/test-setup.sh (Debian's package prometheus has it)"
        )
        if os.environ.get("CI") or os.environ.get("REQUIRE_PROMTOOL"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found
