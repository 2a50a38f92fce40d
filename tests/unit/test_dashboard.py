"""The Grafana dashboard: every metric it names exists, and every panel can be read and placed."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.unit.rules import ROOT, exported_names, metric_names, promtool

DASHBOARD: dict[str, Any] = json.loads((ROOT / "monitoring/grafana/holdfast.json").read_text())
PANELS: list[dict[str, Any]] = [p for p in DASHBOARD["panels"] if p["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_every_metric_it_names_exists() -> None:
    named = set().union(*map(metric_names, expressions()))
    named |= metric_names(json.dumps(DASHBOARD["templating"]))
    assert named <= exported_names().keys(), named - exported_names().keys()


def test_it_shows_what_there_is() -> None:
    exported = exported_names()
    shown = {exported[name].name for expr in expressions() for name in metric_names(expr)}
    assert {family.name for family in exported.values()} == shown


def test_labels_in_expressions_and_legends_exist() -> None:
    exported = exported_names()
    for panel in PANELS:
        for target in panel["targets"]:
            allowed = {"instance", "job", "le"}
            for name in metric_names(target["expr"]):
                allowed |= set(getattr(exported[name], "_labelnames", ()))
            used = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            used |= set(re.findall(r"[{,](\w+)[!=]", target["expr"]))
            for group in re.findall(r"by \(([^)]*)\)", target["expr"]):
                used |= {label.strip() for label in group.split(",")}
            assert used <= allowed, (panel["title"], used - allowed)


def test_panels_have_a_title_a_place_and_an_id_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert panel["title"] and place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(identities) == len(set(identities))


def test_promtool_parses_every_expression(tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard:{n}", "expr": expr.replace("$__rate_interval", "5m")}
        for n, expr in enumerate(expressions())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        [promtool(), "check", "rules", str(file)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
