"""The documentation names what exists: files, tests, commands, settings; and its computed tables are right."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import typer.main

from node import limits
from node.cli.app import app
from node.config import load
from node.options import OPTIONS, VARIABLES
from node.s3.operations import IMPLEMENTED, UNSUPPORTED
from tests.unit import documents
from tests.unit.documents import DOCUMENTS, ROOT
from tests.unit.rules import exported_names, metric_names, read_rules

EACH = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))

# Written by the tests and benchmarks themselves, or by `make run` and `make up`: not in a fresh checkout.
_MADE = ("var/", "test-results/", "bench-results/", ".env", ".venv")
_FOLDERS = tuple(
    f"{entry.name}/" for entry in ROOT.iterdir() if entry.is_dir() and entry.name[0] != "."
)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def cells_of(name: str, header: str) -> list[list[str]]:
    rows = documents.table_below(documents.read(name), header)
    return [documents.cells(row) for row in rows]


# ---- files and links -----------------------------------------------------------------------------------
@EACH
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", documents.prose(text_of(path)))
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{link}: there is no {target}"
        if anchor:
            assert anchor in documents.anchors(text_of(target)), f"{link}: no such heading"


@EACH
def test_files_that_are_named_exist(path: Path) -> None:
    for span in documents.code_spans(text_of(path)):
        name, _, test = span.partition("::")
        if not re.fullmatch(r"[\w./-]+", name) or name.startswith(_MADE):
            continue
        if name.startswith(_FOLDERS) or re.fullmatch(r"[\w-]+\.(yml|md|toml)", name):
            assert (ROOT / name).exists(), f"{span}: there is no such file"
        if test:
            assert re.search(rf"^(async )?def {test}\(", text_of(ROOT / name), re.MULTILINE), span


def test_the_check_of_files_sees_them() -> None:
    """Guards the two tests above against finding nothing to check."""
    spans = documents.code_spans(documents.read("docs/FAILURE_MODEL.md"))
    assert sum("::test_" in span for span in spans) > 20
    assert len(re.findall(r"\]\(docs/", documents.read("README.md"))) > 10


def test_decisions_are_numbered_and_have_their_parts() -> None:
    found = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [path.name[:4] for path in found] == [f"{n:04}" for n in range(1, len(found) + 1)]
    for path in found:
        text = text_of(path)
        assert text.startswith(f"# {path.name[:4]}: "), path
        for part in ("Status", "Context", "Decision", "Consequences", "Proof"):
            assert f"**{part}.**" in text, f"{path.name} has no {part}"
        assert len(text.splitlines()) <= 60, f"{path.name} is longer than a page"


def test_the_picture_is_well_formed_and_has_a_title() -> None:
    svg = ET.parse(ROOT / "docs/images/architecture.svg").getroot()
    assert svg.find("{http://www.w3.org/2000/svg}title") is not None


# ---- commands and targets ------------------------------------------------------------------------------
@EACH
def test_commands_exist_with_their_options(path: Path) -> None:
    for words in documents.commands(text_of(path)):
        shown = f"holdfast {' '.join(words)}"
        command: Any = typer.main.get_command(app)
        rest = list(words)
        while hasattr(command, "commands") and rest and re.fullmatch(r"[a-z]+", rest[0]):
            assert rest[0] in command.commands, f"{shown}: no command {rest[0]}"
            command = command.commands[rest.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        options = [word for word in rest if word.startswith("--")]
        assert known.issuperset(options), f"{shown}: {options}"
        if options or hasattr(command, "commands"):
            continue
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        assert len(rest) in (0, len(arguments)), f"{shown}: wants {len(arguments)}"


def test_the_check_of_commands_sees_them() -> None:
    seen = [" ".join(words) for words in documents.commands(documents.read("README.md"))]
    assert "user add alice" in seen and any(each.startswith("plan --nodes") for each in seen)
    seen = [" ".join(words) for words in documents.commands(documents.read("docs/DEPLOYMENT.md"))]
    assert "serve" in seen  # of the systemd unit
    assert "status" in seen  # behind `docker compose exec`


@EACH
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", documents.read("Makefile"), re.MULTILINE))
    text = text_of(path)
    lines = [line for block in documents.blocks(text) for line in block.text.splitlines()]
    for line in (*lines, *documents.code_spans(text)):
        match = re.match(r"make ([a-z-]+)", line)
        assert match is None or match[1] in targets, line


# ---- settings ------------------------------------------------------------------------------------------
def test_the_table_of_settings_is_that_of_the_program() -> None:
    rows = documents.table_below(documents.read("docs/DEPLOYMENT.md"), documents.SETTINGS_HEADER)
    assert rows == documents.settings_rows()


@EACH
def test_settings_that_are_named_exist(path: Path) -> None:
    ignored = re.compile(r"HOLDFAST_(SERVICE_|PORT)")  # Kubernetes' own
    for name in re.findall(r"HOLDFAST_[A-Z0-9_]+", text_of(path)):
        assert name in VARIABLES or ignored.match(name), name


@pytest.mark.parametrize("name", ["README.md", "docs/DEPLOYMENT.md"])
def test_the_environments_shown_are_right(name: str) -> None:
    shown = [b.text for b in documents.blocks(documents.read(name)) if b.language == "env"]
    assert shown
    for text in shown:
        settings = load({}, dict(line.split("=", 1) for line in text.splitlines()))
        assert len(settings.node_names) == 4 and settings.drives_per_node == (4, 4, 4, 4)


def test_ports_are_the_defaults() -> None:
    defaults = {option.variable: option.default for option in OPTIONS}
    rows = cells_of("docs/DEPLOYMENT.md", "| port | setting | what | who must reach it |")
    assert len(rows) == 3
    for port, setting, *_ in rows:
        variable = setting.strip("`")
        default = defaults[variable] or "0.0.0.0:9002"  # the port of the node's own name
        assert default.endswith(f":{port}"), setting


# ---- what is computed ----------------------------------------------------------------------------------
def test_the_table_of_geometries_is_what_the_code_says() -> None:
    rows = documents.table_below(documents.read("README.md"), documents.GEOMETRIES_HEADER)
    assert rows == documents.geometry_rows()


def test_the_list_of_operations_is_that_of_the_program() -> None:
    section = documents.read("README.md").partition("## What it speaks")[2].partition("\n\n")[2]
    listed = re.findall(r"`(\w+)`", section.partition("\n\n")[0])
    assert listed == [row.name for row in IMPLEMENTED]


def test_what_is_said_to_answer_501_does() -> None:
    refused = {row.name for row in UNSUPPORTED}
    assert refused.issuperset(
        {
            "PutBucketVersioning", "PutBucketPolicy", "PutBucketAcl", "PutObjectAcl", "PutBucketCors",
            "PutBucketLifecycleConfiguration", "PutObjectLockConfiguration", "PutBucketEncryption",
            "PutObjectTagging", "PutBucketTagging", "PutBucketNotificationConfiguration",
            "PutBucketReplication", "PutBucketWebsite", "PostObject",
        }
    )  # fmt: skip


def test_bounds_are_those_of_the_program() -> None:
    rows = cells_of("docs/FAILURE_MODEL.md", "| what | name | value |")
    assert len(rows) > 15
    for _, name, value in rows:
        constant = getattr(limits, name.strip("`"))
        assert value == f"{constant:g} s", name


@EACH
def test_metrics_that_are_named_exist(path: Path) -> None:
    known = exported_names()
    families = {family.name for family in known.values()}
    for name in metric_names(documents.prose(text_of(path))):
        assert name in known or name in families, name


@EACH
def test_alerts_that_are_linked_exist(path: Path) -> None:
    alerts = {rule.name for rule in read_rules()}
    for name in re.findall(r"OPERATIONS\.md#(\w+)", text_of(path)):
        assert name in {alert.lower() for alert in alerts}, name
