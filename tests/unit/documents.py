"""What the tests of the documentation share: the files, their tables and code blocks, and what tables should say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from erasure.geometry import Tolerance, tolerance
from node.config import WrongConfig, build, resolve
from node.options import OPTIONS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced code block. `language` is "" for none."""

    language: str
    text: str


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(language, body) for language, body in found]


def prose(text: str) -> str:
    """Without fenced blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


def table_below(text: str, header: str) -> list[str]:
    """The rows of the table with this header line, as they stand."""
    lines = text.splitlines()
    start = lines.index(header)
    assert re.fullmatch(r"\|( --- \|)+", lines[start + 1]), f"no table below {header}"
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(line)
    return rows


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def anchors(text: str) -> set[str]:
    """The anchors that headings get, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def commands(text: str) -> Iterator[list[str]]:
    """Every `holdfast ...` of the code blocks and code spans, as words."""
    lines = [line for block in blocks(text) for line in block.text.splitlines()]
    for line in (*lines, *code_spans(text)):
        match = re.match(r"(?:.*\bexec node\d )?(?:\S*/bin/)?holdfast +(\S.*)", line.strip())
        if match is not None:
            yield match[1].partition("#")[0].split()


# ---- what tables should say ------------------------------------------------------------------------
SETTINGS_HEADER = "| setting | default | meaning |"
GEOMETRIES_HEADER = "| nodes x drives | stripe | usable | readable with (worst case) | writable with (worst case) | |"
# nodes, drives of each, parity (None: the default)
GEOMETRIES = (
    (4, 4, None), (4, 4, 6), (4, 4, 4), (4, 1, None), (3, 4, None),
    (1, 4, None), (6, 4, None), (8, 4, None), (16, 4, None),
)  # fmt: skip


def settings_rows() -> list[str]:
    """A row for each of node.options.OPTIONS."""
    try:
        build(resolve({}, {}))
        problems: tuple[str, ...] = ()
    except WrongConfig as error:
        problems = error.problems
    required = {p.split()[0] for p in problems if " is not set" in p}
    rows = []
    for option in OPTIONS:
        name = f"`{option.variable}`" + (", `_FILE`" if option.from_file else "")
        default = f"`{option.default}`" if option.default else "none"
        default = "required" if option.variable in required else default
        rows.append(f"| {name} | {default} | {option.help} |")
    return rows


def geometry_rows() -> list[str]:
    """A row for each of GEOMETRIES, by erasure.geometry.tolerance."""
    return [_geometry_row(tolerance(*shape), shape[2]) for shape in GEOMETRIES]


def _geometry_row(found: Tolerance, parity: int | None) -> str:
    sets = "" if found.sets == 1 else f" ({found.sets} sets)"
    choice = "default" if parity is None else f"`HOLDFAST_PARITY={parity}`"
    return (
        f"| {found.nodes} x {found.drives_per_node} "
        f"| {found.geometry.k}+{found.geometry.m}{sets} "
        f"| {found.usable_fraction:.0%} "
        f"| {_dark(found.read_nodes_dark, found.read_spare_drives, found.read_drives_dark)} "
        f"| {_dark(found.write_nodes_dark, found.write_spare_drives, found.write_drives_dark)} "
        f"| {choice} |"
    )


def _dark(nodes: int, spare: int, drives: int) -> str:
    if not nodes:
        return f"{_many(drives, 'drive')} dark"
    more = f" and {_many(spare, 'drive')}" if spare else ""
    return f"{_many(nodes, 'node')}{more} dark, or {_many(drives, 'drive')}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
