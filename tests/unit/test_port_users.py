"""Who may touch the ports behind which bytes leave the node: so that every path goes through a guard.

import-linter knows modules, and the ports share one; this looks at the names.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

NODE = Path(__file__).resolve().parents[2] / "node"
PORTS = {"node.runtime.ports", "node.store.drive_gate", "node.runtime"}
# The port, and the modules that use it. node.machine and node.compose only hand the real ones in.
USERS = {
    "Wire": {"node.rpc.client", "node.rpc.link", "node.machine"},
    "WireConnection": {"node.rpc.link"},
    "WireStream": {"node.rpc.link", "node.rpc.transfer", "node.peer.inbound", "node.machine"},
    "Drive": set(),
    "DriveService": {"node.machine"},
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(NODE.parent).with_suffix("").parts)


@pytest.mark.parametrize("port", USERS)
def test_a_port_has_the_users_that_are_listed(port: str) -> None:
    users = set()
    for path in NODE.rglob("*.py"):
        module = module_of(path)
        if module.startswith("node.runtime."):
            continue  # what implements them
        for statement in ast.walk(ast.parse(path.read_text())):
            if isinstance(statement, ast.ImportFrom) and statement.module in PORTS:
                users |= {module for alias in statement.names if alias.name == port}
            if isinstance(statement, ast.Attribute) and statement.attr == port:
                of = statement.value
                users |= {module} if isinstance(of, ast.Name) and of.id == "ports" else set()
    assert users <= USERS[port], f"{port} is for {sorted(USERS[port])}: {sorted(users)}"
