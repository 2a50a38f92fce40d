"""Commands that ask a running cluster: status, user, key, policy, heal, locks, drive."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table

from node.cli.asking import AsJson, ConsoleOption, Endpoint, ask, print_json
from node.cli.client import RequestFailed
from node.cli.heal import heal_app
from node.cli.status import print_status
from node.errors import ConfigError
from node.limits import MAX_CONFIG_BYTES

Commands = Mapping[str, Callable[..., None]]


def register(app: typer.Typer) -> None:
    app.command()(status)
    app.add_typer(heal_app(), name="heal")
    for name, text, commands in (
        ("user", "Users of the cluster.", _USER),
        ("key", "Access keys of users.", _KEY),
        ("policy", "Policies and who has them.", _POLICY),
        ("locks", "Locks that are held.", _LOCKS),
        ("drive", "Drives of the cluster.", _DRIVE),
    ):
        group = typer.Typer(no_args_is_help=True, help=text, pretty_exceptions_enable=False)
        for command_name, command in commands.items():
            group.command(name=command_name)(command)
        app.add_typer(group, name=name)


def status(
    as_json: AsJson = False, endpoint: Endpoint = None, console: ConsoleOption = None
) -> None:
    """Show nodes, drives, sets, breakers and margins. Exit code 1 when writes are refused."""
    answer = ask("GET", "/cluster", endpoint=endpoint, console=console)
    if as_json:
        print_json(answer)
    else:
        print_status(answer, Console(soft_wrap=True, highlight=False))
    raise typer.Exit(0 if answer.get("write_ready", True) else 1)


# ---- users ---------------------------------------------------------------------------------------------
def _user_list(
    as_json: AsJson = False, endpoint: Endpoint = None, console: ConsoleOption = None
) -> None:
    """List users with their policies and access keys."""
    answer = ask("GET", "/users", endpoint=endpoint, console=console)
    rows = _rows(answer, "users")
    _show(answer if as_json else None, ("name", "enabled", "policies", "keys"), rows)


def _user_add(name: str, endpoint: Endpoint = None, console: ConsoleOption = None) -> None:
    """Create a user; `holdfast key create` gives it an access key."""
    ask("POST", "/users", {"name": name}, endpoint=endpoint, console=console)
    typer.echo(f"created user {name}")


def _user_remove(name: str, endpoint: Endpoint = None, console: ConsoleOption = None) -> None:
    """Remove a user and its access keys."""
    ask("DELETE", f"/users/{_part(name)}", endpoint=endpoint, console=console)
    typer.echo(f"removed user {name}")


# ---- keys ----------------------------------------------------------------------------------------------
def _key_create(
    user: str, as_json: AsJson = False, endpoint: Endpoint = None, console: ConsoleOption = None
) -> None:
    """Create an access key for a user. Its secret is shown this once."""
    answer = ask("POST", f"/users/{_part(user)}/keys", {}, endpoint=endpoint, console=console)
    if as_json:
        print_json(answer)
        return
    typer.echo(f"access key  {answer.get('access_key')}\nsecret key  {answer.get('secret_key')}")


def _key_remove(
    user: str, access_key: str, endpoint: Endpoint = None, console: ConsoleOption = None
) -> None:
    """Remove an access key of a user."""
    path = f"/users/{_part(user)}/keys/{_part(access_key)}"
    ask("DELETE", path, endpoint=endpoint, console=console)
    typer.echo(f"removed access key {access_key}")


# ---- policies ------------------------------------------------------------------------------------------
def _policy_list(
    as_json: AsJson = False, endpoint: Endpoint = None, console: ConsoleOption = None
) -> None:
    """List policies."""
    answer = ask("GET", "/policies", endpoint=endpoint, console=console)
    _show(answer if as_json else None, ("name",), _rows(answer, "policies"))


def _policy_put(
    name: str, document: Path, endpoint: Endpoint = None, console: ConsoleOption = None
) -> None:
    """Create or replace a policy from a JSON file ("-": from standard input)."""
    try:
        text = sys.stdin.read(MAX_CONFIG_BYTES) if str(document) == "-" else document.read_text()
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{document} is no policy document: {error}") from error
    body = {"name": name, "document": content}
    ask("POST", "/policies", body, endpoint=endpoint, console=console)
    typer.echo(f"stored policy {name}")


def _policy_remove(name: str, endpoint: Endpoint = None, console: ConsoleOption = None) -> None:
    """Remove a policy."""
    ask("DELETE", f"/policies/{_part(name)}", endpoint=endpoint, console=console)
    typer.echo(f"removed policy {name}")


def _policy_attach(
    policy: str, user: str, endpoint: Endpoint = None, console: ConsoleOption = None
) -> None:
    """Give a policy to a user."""
    path = f"/users/{_part(user)}/policies/{_part(policy)}"
    ask("PUT", path, endpoint=endpoint, console=console)
    typer.echo(f"{user} has {policy}")


def _policy_detach(
    policy: str, user: str, endpoint: Endpoint = None, console: ConsoleOption = None
) -> None:
    """Take a policy from a user."""
    path = f"/users/{_part(user)}/policies/{_part(policy)}"
    ask("DELETE", path, endpoint=endpoint, console=console)
    typer.echo(f"{user} no longer has {policy}")


# ---- locks, drives -----------------------------------------------------------------------------
def _locks_list(
    as_json: AsJson = False, endpoint: Endpoint = None, console: ConsoleOption = None
) -> None:
    """List locks: resource, holder, age, waiters."""
    answer = ask("GET", "/locks", endpoint=endpoint, console=console)
    columns = ("resource", "holder", "age_s", "waiters")
    _show(answer if as_json else None, columns, _rows(answer, "locks"))


def _locks_release(resource: str, endpoint: Endpoint = None, console: ConsoleOption = None) -> None:
    """Release a lock by force. Safe for data: a commit never relies on its lock."""
    query = (("resource", resource),)
    ask("DELETE", "/locks", endpoint=endpoint, console=console, query=query)
    typer.echo(f"released {resource}")


def _drive_accept(
    drive: Annotated[str, typer.Argument(metavar="NODE:PATH", help="node2:9002:/data/disk3")],
    endpoint: Endpoint = None,
    console: ConsoleOption = None,
) -> None:
    """Take an empty directory into the cluster as a drive that is no mount of its own."""
    node, path = split_drive(drive)
    body = {"node": node, "path": path}
    ask("POST", "/drives/accept", body, endpoint=endpoint, console=console)
    typer.echo(f"{node} took in {path}; repair fills it")


def _drive_rebuild(
    drive: Annotated[str, typer.Argument(metavar="NODE:PATH", help="node2:9002:/data/disk3")],
    endpoint: Endpoint = None,
    console: ConsoleOption = None,
) -> None:
    """Take a drive whose catalog is damaged or gone as a new one; what lay on it is moved aside."""
    node, path = split_drive(drive)
    body = {"node": node, "path": path}
    ask("POST", "/drives/rebuild", body, endpoint=endpoint, console=console)
    typer.echo(
        f"{node} took {path} as a new drive; repair fills it. What lay there is in {path}/retired: "
        "delete it when `holdfast heal --census` finds every object whole, or when its room is needed"
    )


def split_drive(text: str) -> tuple[str, str]:
    """'node2:9002:/data/disk3' or 'node2:9002/data/disk3' -> node and path."""
    node, slash, path = text.partition("/")
    if not slash or not node.rstrip(":"):
        raise ConfigError(f"{text!r}: write NODE:PATH, as in node2:9002:/data/disk3")
    return node.rstrip(":").lower(), f"/{path.rstrip('/')}"


_USER: Commands = {"list": _user_list, "add": _user_add, "remove": _user_remove}
_KEY: Commands = {"create": _key_create, "remove": _key_remove}
_POLICY: Commands = {
    "list": _policy_list,
    "put": _policy_put,
    "remove": _policy_remove,
    "attach": _policy_attach,
    "detach": _policy_detach,
}
_LOCKS: Commands = {"list": _locks_list, "release": _locks_release}
_DRIVE: Commands = {"accept": _drive_accept, "rebuild": _drive_rebuild}


# ---- asking and showing --------------------------------------------------------------------------------
def _part(text: str) -> str:
    return quote(text, safe="-_.~")


def _rows(answer: Any, member: str) -> list[dict[str, Any]]:
    rows = answer.get(member) if isinstance(answer, dict) else answer
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RequestFailed(
            f"the node's answer has no list of {member}: is it of the same version?"
        )
    return rows


def _show(as_json: Any, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    if as_json is not None:
        print_json(as_json)
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    Console(soft_wrap=True, highlight=False).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
