"""Examples at the end of each command's --help; a test holds them to the commands."""

from __future__ import annotations

import typer

EXAMPLES: dict[str, tuple[str, ...]] = {
    "serve": (
        "holdfast serve --config /etc/holdfast/holdfast.toml",
        "holdfast serve --volumes 'node{1...4}:9002/data/disk{1...4}' --node node1:9002",
    ),
    "config": ("holdfast config", "holdfast config --config /etc/holdfast/holdfast.toml"),
    "plan": (
        "holdfast plan --nodes 4 --drives 4 --drive-size 4TiB",
        "holdfast plan --volumes 'node{1...4}:9002/data/disk{1...4}' --parity 4",
    ),
    "version": ("holdfast version",),
    "healthcheck": ("holdfast healthcheck",),
    "dev": (
        "holdfast dev",
        "holdfast dev --nodes 1 --drives 4 --dir /tmp/holdfast --base-port 19000",
        "holdfast dev --parity 4",
    ),
    "status": ("holdfast status --endpoint http://node1:9000", "holdfast status --json"),
    "user list": ("holdfast user list",),
    "user add": ("holdfast user add alice",),
    "user remove": ("holdfast user remove alice",),
    "key create": ("holdfast key create alice",),
    "key remove": ("holdfast key remove alice HFEXAMPLEKEY",),
    "policy list": ("holdfast policy list",),
    "policy put": ("holdfast policy put readers policy.json",),
    "policy remove": ("holdfast policy remove readers",),
    "policy attach": ("holdfast policy attach readonly alice",),
    "policy detach": ("holdfast policy detach readonly alice",),
    "heal": ("holdfast heal status", "holdfast heal census"),
    "heal status": ("holdfast heal status --json",),
    "heal pause": ("holdfast heal pause",),
    "heal resume": ("holdfast heal resume",),
    "heal census": ("holdfast heal census",),
    "locks list": ("holdfast locks list",),
    "locks release": ("holdfast locks release bucket/key",),
    "drive accept": ("holdfast drive accept node2:9002/data/disk3",),
    "drive rebuild": ("holdfast drive rebuild node2:9002/data/disk3",),
}
_ACCESS = (
    "HOLDFAST_ENDPOINT, HOLDFAST_ROOT_USER and HOLDFAST_ROOT_PASSWORD say whom to ask, and as whom."
)


def add_examples(app: typer.Typer) -> None:
    """Gives every command that has examples its epilog."""
    app.info.epilog = "Begin with `holdfast dev`: a cluster on this machine. " + _ACCESS
    _add(app, "")


def _add(app: typer.Typer, group: str) -> None:
    for command in app.registered_commands:
        callback = command.callback
        name = command.name or (callback.__name__ if callback is not None else "")
        command.epilog = _epilog(f"{group} {name}".strip()) or None
    for info in app.registered_groups:
        if info.typer_instance is not None and info.name:
            name = str(info.name)
            lines = [
                example
                for command, examples in EXAMPLES.items()
                if command.split()[0] == name
                for example in examples[:1]
            ]
            info.epilog = _text(list(dict.fromkeys(lines)))
            _add(info.typer_instance, name)


def _epilog(command: str) -> str:
    return _text(list(EXAMPLES.get(command, ())))


def _text(lines: list[str]) -> str:
    """Each example a paragraph of its own, or rich would join them."""
    if not lines:
        return ""
    return "\n\n".join(["Examples:" if len(lines) > 1 else "Example:", *lines])
