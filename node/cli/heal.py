"""`holdfast heal`: what repair does, pausing it, and the census that proves it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from node.cli.asking import AsJson, ConsoleOption, Endpoint, ask, print_json
from node.cli.client import RequestFailed
from node.limits import CENSUS_FOLLOW_S, CENSUS_PATIENCE_S
from node.runtime.system import SystemClock

EXIT_SHORT = 1


def heal_app() -> typer.Typer:
    app = typer.Typer(
        help="Repair: what it does, pause and resume, and the census of shards.",
        pretty_exceptions_enable=False,
        invoke_without_command=True,
    )
    app.callback()(_heal)
    app.command("status")(_status)
    app.command("pause")(_pause)
    app.command("resume")(_resume)
    app.command("census")(_census)
    return app


def _heal(
    context: typer.Context,
    census: Annotated[bool, typer.Option("--census", help="The same as `heal census`.")] = False,
    pause: Annotated[bool, typer.Option("--pause", help="The same as `heal pause`.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="The same as `heal resume`.")] = False,
    as_json: AsJson = False,
    endpoint: Endpoint = None,
    console: ConsoleOption = None,
) -> None:
    """Repair: what it does, pause and resume, and the census of shards."""
    if context.invoked_subcommand is not None:
        return
    if census + pause + resume > 1:
        raise typer.BadParameter("give one of --census, --pause and --resume")
    command = _census if census else _pause if pause else _resume if resume else _status
    command(as_json=as_json, endpoint=endpoint, console=console)


def _status(
    as_json: AsJson = False, endpoint: Endpoint = None, console: ConsoleOption = None
) -> None:
    """Show what repair has to do, how fast it is, and what the last census said."""
    _show(ask("GET", "/heal", endpoint=endpoint, console=console), as_json)


def _pause(
    as_json: AsJson = False, endpoint: Endpoint = None, console: ConsoleOption = None
) -> None:
    """Pause repair on every node. It stays paused over restarts, until it is resumed."""
    _show(ask("POST", "/heal", {"paused": True}, endpoint=endpoint, console=console), as_json)


def _resume(
    as_json: AsJson = False, endpoint: Endpoint = None, console: ConsoleOption = None
) -> None:
    """Let repair go on."""
    _show(ask("POST", "/heal", {"paused": False}, endpoint=endpoint, console=console), as_json)


def _census(
    as_json: AsJson = False, endpoint: Endpoint = None, console: ConsoleOption = None
) -> None:
    """Count the shards of every object, in the background of a node that yields to clients.

    Exit code 0 when every object is whole, 1 when not. Interrupted, the count goes on; ask again to see it.
    """
    before = ask("POST", "/heal/census", endpoint=endpoint, console=console)
    answer = _follow(before, endpoint, console)
    if as_json:
        print_json(answer)
    else:
        print_census(answer, Console(soft_wrap=True, highlight=False))
    raise typer.Exit(0 if answer.get("whole") else EXIT_SHORT)


def _follow(before: dict[str, Any], endpoint: str | None, console: str | None) -> dict[str, Any]:
    """Polls until there is a newer census than `before`, with a progress bar on a terminal."""
    clock = SystemClock()
    troubled_since: float | None = None
    columns = (
        TextColumn("counting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("keys at the most,"),
        TextColumn("{task.fields[rate]:,.0f}/s,"),
        TimeElapsedColumn(),
        TextColumn("gone, left at the most"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[problem]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("census", total=None, rate=0.0, problem="")
        while True:
            answer: dict[str, Any] = ask(
                "GET", "/heal/census/progress", endpoint=endpoint, console=console
            )
            if not answer.get("running") and answer.get("finished_s") != before.get("finished_s"):
                return answer
            problem = str(answer.get("problem", ""))
            progress.update(
                task,
                completed=answer.get("counted", 0),
                total=max(answer.get("expected", 0), answer.get("counted", 0)) or None,
                rate=answer.get("rate_per_s", 0.0),
                problem=problem,
            )
            now = clock.monotonic()
            troubled_since = (
                (troubled_since or now) if problem or not answer.get("running") else None
            )
            if troubled_since is not None and now - troubled_since > CENSUS_PATIENCE_S:
                raise RequestFailed(
                    f"the census makes no progress: {problem or 'the node was restarted'}"
                )
            asyncio.run(clock.sleep(CENSUS_FOLLOW_S))


# ---- showing -------------------------------------------------------------------------------------------
def _show(repair: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(repair)
        return
    terminal = Console(soft_wrap=True, highlight=False)
    terminal.print(_queue_line(repair))
    for fill in repair.get("fills", []):
        terminal.print(
            f"filling {fill['node']}{fill['path']}: {fill['keys']:,} of {fill['expected']:,} keys "
            f"at the most, {fill['rate_per_s']:,.0f}/s{_left(fill)}",
            markup=False,
        )
    census = repair.get("census")
    if census:
        print_census(census, terminal)
    else:
        terminal.print("no census yet: `holdfast heal --census` takes one")


def _queue_line(repair: dict[str, Any]) -> str:
    queue = repair.get("queue", 0)
    words = [f"{queue:,} objects queued"]
    if repair.get("paused"):
        words.append("paused")
    elif queue:
        words.append(f"{repair.get('rate_per_s', 0.0):,.1f}/s{_left(repair)}")
    words.append(f"{repair.get('undecided', 0):,} writes undecided")
    words.append(f"{repair.get('repaired', 0):,} repaired since the nodes started")
    return "repair: " + ", ".join(words)


def _left(progress: dict[str, Any]) -> str:
    eta_s = progress.get("eta_s")
    return "" if eta_s is None else f", about {eta_s:,.0f} s left"


def print_census(census: dict[str, Any], terminal: Console) -> None:
    """`census` of GET /admin/v1/heal/census/progress: per set, how many objects have how many shards."""
    if census.get("running"):
        terminal.print(
            f"census under way at {census.get('node', '?')}: {census.get('counted', 0):,} of "
            f"{census.get('expected', 0):,} keys at the most{_left(census)}",
            markup=False,
        )
    if not census.get("finished_s"):
        return
    table = Table("set", "shards", "objects", "", box=None, pad_edge=False)
    for each in census.get("sets", []):
        n, k = each["n"], each["k"]
        for shards in sorted({*map(int, each["by_shards"]), n}, reverse=True):
            objects = each["by_shards"].get(str(shards), 0)
            table.add_row(
                str(each["index"]), f"{shards}/{n}", f"{objects:,}", _meaning(shards, n, k)
            )
    terminal.print(table)
    age_s = max(SystemClock().now() - census["finished_s"], 0.0)
    words = "every object is whole" if census.get("whole") else "not every object is whole"
    if not census.get("complete"):
        words = "not every drive was read: its shards count as missing"
    terminal.print(f"census of {age_s:,.0f} s ago: {words}")


def _meaning(shards: int, n: int, k: int) -> Text:
    if shards >= n:
        return Text("whole", style="green")
    if shards >= k:
        return Text(f"may lose {shards - k} more", style="yellow")
    return Text("cannot be read now", style="red")
