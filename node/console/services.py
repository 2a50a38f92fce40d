"""What every part of the console is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from node.console.ports import ClusterView, Settings
from node.console.session import LoginBrake
from node.identity.service import Identity
from node.objects.api import ObjectStore
from node.runtime.ports import Clock, Rng

DEADLINE = "holdfast.deadline"  # in the ASGI scope, set at the edge


@dataclass(frozen=True, kw_only=True)
class Services:
    store: ObjectStore
    identity: Identity
    view: ClusterView
    clock: Clock
    rng: Rng
    settings: Settings
    log: Any
    brake: LoginBrake = field(default_factory=LoginBrake)


def deadline_of(request: Request) -> float:
    """When the request must be answered, on the monotonic clock."""
    found: float = request.scope[DEADLINE]
    return found
