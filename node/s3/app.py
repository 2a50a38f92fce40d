"""The ASGI application of the S3 port: health and metrics by FastAPI, S3 itself raw.

The S3 pipeline is mounted at "/" of the FastAPI application, and requests for it are handed over before
the router: Starlette matches decoded paths by regular expressions, which lose keys with line breaks,
and costs more than the rest of a small request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from starlette.routing import Route

from node.guard.guard import Guard
from node.guard.policy import S3_OPERATIONS, Policy
from node.objects.api import ObjectStore
from node.runtime.ports import Clock, Rng
from node.s3.operations import OPERATIONS, policy_names
from node.s3.pipeline import S3Pipeline, host_id
from node.s3.ports import Health, Identity, Metrics, Receive, Scope, Send
from node.s3.routing import Router, virtual_bucket
from node.s3.shapes import Services

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Answer = tuple[bool, dict[str, Any]]


class Settings(Protocol):
    """The part of node.config.Settings that the face reads."""

    @property
    def node(self) -> str: ...
    @property
    def region(self) -> str: ...
    @property
    def domain(self) -> str | None: ...
    @property
    def trusted_proxies(self) -> tuple[str, ...]: ...


class S3App(FastAPI):
    """FastAPI for its own few paths; everything else goes to `pipeline` untouched."""

    pipeline: S3Pipeline
    own_paths: frozenset[str]
    domain: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_own(scope):
            await self.pipeline(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def _is_own(self, scope: Scope) -> bool:
        if scope["path"] not in self.own_paths:
            return False
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        return not virtual_bucket(host.decode("latin-1"), self.domain)


def create_app(
    store: ObjectStore,
    identity: Identity,
    metrics: Metrics,
    clock: Clock,
    rng: Rng,
    settings: Settings,
    health: Health,
    guard: Guard,
    *,
    policies: Mapping[str, Policy] = S3_OPERATIONS,
    log: Any = None,
) -> S3App:
    """The whole S3 port of one node."""
    missing, unknown = policy_names() - policies.keys(), policies.keys() - policy_names()
    assert not missing and not unknown, f"S3_OPERATIONS: missing {missing}, unknown {unknown}"
    domain = (settings.domain or "").lower()
    app = S3App(title="Holdfast S3", docs_url=None, redoc_url=None, openapi_url=None)
    _add_health(app, health)

    @app.get("/metrics")
    async def render_metrics() -> Response:
        return Response(metrics.render(), media_type=METRICS_TYPE)

    services = Services(
        store=store,
        identity=identity,
        clock=clock,
        rng=rng,
        region=settings.region,
        domain=domain,
        host_id=host_id(settings.node),
        trusted_proxies=settings.trusted_proxies,
    )
    app.pipeline = S3Pipeline(services, Router(OPERATIONS, domain), guard, policies, metrics, log)
    app.domain = domain
    app.own_paths = frozenset(route.path for route in app.routes if isinstance(route, Route))
    app.mount("/", app.pipeline)
    return app


def _add_health(app: FastAPI, health: Health) -> None:
    def answer(found: Answer, otherwise: int = 503) -> JSONResponse:
        fine, details = found
        return JSONResponse(details, status_code=200 if fine else otherwise)

    async def live() -> JSONResponse:
        return answer(health.live())

    async def ready() -> JSONResponse:
        return answer(health.ready())

    async def ready_write() -> JSONResponse:
        return answer(health.ready_write())

    async def cluster(maintenance: bool = False) -> JSONResponse:
        return answer(health.cluster(maintenance), 412 if maintenance else 503)

    async def cluster_read() -> JSONResponse:
        return answer(health.cluster_read())

    paths: dict[str, Callable[..., Any]] = {
        "/live": live,
        "/ready": ready,
        "/ready/write": ready_write,
        "/cluster": cluster,
        "/cluster/read": cluster_read,
    }
    for prefix in ("/health", "/minio/health"):
        for path, endpoint in paths.items():
            app.add_api_route(prefix + path, endpoint, methods=["GET", "HEAD"])
