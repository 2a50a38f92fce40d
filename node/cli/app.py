"""All commands together."""

from __future__ import annotations

import typer

from node.cli import admin, dev, node_commands
from node.cli.examples import add_examples

app = typer.Typer(
    name="holdfast",
    help="S3-compatible, erasure-coded storage cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
node_commands.register(app)
dev.register(app)
admin.register(app)
add_examples(app)
