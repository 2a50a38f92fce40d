"""Commands about one node and its configuration: serve, config, plan, version, healthcheck."""

from __future__ import annotations

import sys
from importlib.metadata import version as distribution_version
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from erasure.errors import ErasureError
from erasure.geometry import Tolerance, tolerance
from node.cli.client import get_status
from node.config import WrongConfig, build, environment, load, resolve
from node.errors import ConfigError
from node.options import parse_listen, parse_size
from node.volumes import join_address, node_names, parse_volumes


def register(app: typer.Typer) -> None:
    app.command()(serve)
    app.command(name="config")(show_config)
    app.command()(plan)
    app.command()(version)
    app.command()(healthcheck)


def serve(
    volumes: Annotated[str | None, typer.Option(help="Drives of all nodes.")] = None,
    node: Annotated[str | None, typer.Option(help="Which host:port of them is this node.")] = None,
    s3_listen: Annotated[str | None, typer.Option(help="Address of the S3 API.")] = None,
    console_listen: Annotated[str | None, typer.Option(help="Address of the console.")] = None,
    peer_listen: Annotated[str | None, typer.Option(help="Address for peers.")] = None,
    parity: Annotated[str | None, typer.Option(help="Parity shards of a stripe.")] = None,
    durability: Annotated[str | None, typer.Option(help="strict or relaxed.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration file (TOML).")] = None,
) -> None:
    """Run one node until it is told to stop. Flags go before HOLDFAST_ variables, these before the file."""
    flags = {
        "volumes": volumes,
        "node": node,
        "s3_listen": s3_listen,
        "console_listen": console_listen,
        "peer_listen": peer_listen,
        "parity": parity,
        "durability": durability,
        "log_level": log_level,
        "config": config,
    }
    settings = load(flags)
    from node.compose import serve as serve_node  # the whole node: other commands start without it

    raise typer.Exit(serve_node(settings))


def show_config(
    config: Annotated[str | None, typer.Option(help="Configuration file (TOML).")] = None,
) -> None:
    """Show the effective values with their origin, secrets hidden, and what is wrong with them."""
    resolved = resolve({"config": config}, environment())
    problem: WrongConfig | None = None
    try:
        build(resolved)
    except WrongConfig as error:
        problem = error
    table = Table("name", "value", "origin", box=None, pad_edge=False)
    for value in resolved.values.values():
        table.add_row(value.option.variable, value.shown, value.origin if value.text else "not set")
    _wide().print(table)
    for warning in resolved.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if problem is not None:
        raise problem


def plan(
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the cluster.")] = 4,
    drives: Annotated[int, typer.Option(min=1, help="Drives of each node.")] = 4,
    parity: Annotated[int | None, typer.Option(min=0, help="Show this parity only.")] = None,
    drive_size: Annotated[str, typer.Option(help="Size of a drive.")] = "1TiB",
    volumes: Annotated[str | None, typer.Option(help="Take nodes and drives from these.")] = None,
) -> None:
    """Show capacity and tolerance of a geometry, for each parity it may have."""
    try:
        if volumes is not None:
            nodes, drives = _shape_of(volumes)
        size = parse_size(drive_size)
        default = tolerance(nodes, drives)
        chosen = [parity] if parity is not None else _parities(default)
        rows = [tolerance(nodes, drives, m) for m in chosen]
    except (ErasureError, ValueError) as error:
        raise ConfigError(str(error)) from error
    raw = nodes * drives * size
    n = default.geometry.n
    typer.echo(
        f"{_many(nodes, 'node')} with {_many(drives, 'drive')} of {_size(size)}: "
        f"{_many(default.sets, 'erasure set')} of {_many(n, 'drive')}, {_size(raw)} raw"
    )
    table = Table(
        "stripe", "usable", "reads survive", "writes survive", "", box=None, pad_edge=False
    )
    for row in rows:
        m = row.geometry.m
        table.add_row(
            f"{row.geometry.k}+{m}",
            f"{_size(row.usable_bytes(raw))} ({row.usable_fraction:.0%})",
            _survives(row.read_nodes_dark, row.read_spare_drives, row.read_drives_dark),
            _survives(row.write_nodes_dark, row.write_spare_drives, row.write_drives_dark),
            "default" if m == default.geometry.m else f"HOLDFAST_PARITY={m}",
        )
    _wide().print(table)


def version() -> None:
    """Show the version."""
    typer.echo(f"holdfast {distribution_version('holdfast')}")


def healthcheck(
    path: Annotated[str, typer.Option(help="What to ask for.")] = "/health/live",
) -> None:
    """Ask the node on this machine whether it lives; for containers. Exit code 0 when it does."""
    resolved = resolve({}, environment())
    try:
        host, port = parse_listen(resolved.values["s3_listen"].text or "")
    except ValueError as error:
        raise ConfigError(f"HOLDFAST_S3_LISTEN: {error}") from error
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    endpoint = f"http://{join_address(local, port)}"
    status = get_status(endpoint, path)
    typer.echo(f"{endpoint}{path}: {status or 'no answer'}")
    raise typer.Exit(0 if status == 200 else 1)


def _wide() -> Console:
    """Into a pipe or a file, tables are not squeezed to 80 columns."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def _shape_of(volumes: str) -> tuple[int, int]:
    listed = parse_volumes(volumes)
    names = node_names(listed)
    if len(listed) % len(names):
        raise ConfigError("give every node the same number of drives")
    return len(names), len(listed) // len(names)


def _parities(default: Tolerance) -> list[int]:
    n = default.geometry.n
    return list(range(1, n // 2 + 1)) if n > 1 else [0]


def _survives(nodes: int, spare: int, drives: int) -> str:
    if not nodes:
        return f"any {_many(drives, 'drive')}"
    more = f" and {_many(spare, 'drive')}" if spare else ""
    return f"any {_many(nodes, 'node')}{more}, or any {_many(drives, 'drive')}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _size(count: int) -> str:
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.4g} {units[0]}"
