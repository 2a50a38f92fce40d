"""What commands that ask a running cluster share: their options, the request, JSON on the terminal."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from node.cli.client import AdminClient, access_from
from node.config import environment

Endpoint = Annotated[
    str | None, typer.Option(help="S3 endpoint of a node; else HOLDFAST_ENDPOINT.")
]
ConsoleOption = Annotated[
    str | None, typer.Option("--console", help="Console endpoint; else the S3 port + 1.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]

_API = "/admin/v1"


def ask(
    method: str,
    path: str,
    body: object = None,
    *,
    endpoint: str | None,
    console: str | None,
    query: tuple[tuple[str, str], ...] = (),
) -> Any:
    """The decoded answer of the administration API; RequestFailed, WrongConfig."""
    access = access_from(environment(), endpoint=endpoint, console=console)
    return AdminClient(access).request(method, _API + path, query=query, body=body)


def print_json(answer: Any) -> None:
    typer.echo(json.dumps(answer, indent=2))
