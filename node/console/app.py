"""The console's application: pages, its JSON, and the admin API, behind one edge."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from iam.errors import IamError
from node.console import api, data
from node.console.access import Access
from node.console.edge import Edge
from node.console.errors import Fault, NotLoggedIn, translate
from node.console.pages import Pages, is_page, page_router
from node.console.ports import ClusterView, Metrics, Receive, Scope, Send, Settings
from node.console.services import Services
from node.errors import HoldfastError
from node.guard.guard import Guard
from node.identity.service import Identity
from node.objects.api import ObjectStore
from node.runtime.ports import Clock, Rng

_CODES = {401: "NotLoggedIn", 404: "NoSuchPage", 405: "MethodNotAllowed"}
_MESSAGES = {404: "There is no such page.", 405: "This page does not take that method."}


class ConsoleApp(FastAPI):
    """FastAPI behind the edge."""

    edge: Edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.edge(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)


def create_console(
    store: ObjectStore,
    identity: Identity,
    view: ClusterView,
    metrics: Metrics,
    clock: Clock,
    rng: Rng,
    settings: Settings,
    guard: Guard,
    *,
    log: Any = None,
) -> ConsoleApp:
    """The whole console port of one node."""
    services = Services(
        store=store,
        identity=identity,
        view=view,
        clock=clock,
        rng=rng,
        settings=settings,
        log=log if log is not None else structlog.get_logger("holdfast.console"),
    )
    access = Access(services)
    pages = Pages(services, access)
    app = ConsoleApp(
        title="Holdfast administration",
        version=version("holdfast"),
        openapi_url=f"{api.PREFIX}/openapi.json",
        docs_url=None,  # their pages load scripts from other hosts
        redoc_url=None,
    )
    app.edge = Edge(app.inside, guard, clock, metrics, services.log)
    _add_faults(app, pages)
    app.include_router(api.admin_router(services, access))
    app.include_router(data.data_router(services, access))
    app.include_router(page_router(pages))
    return app


def _add_faults(app: FastAPI, pages: Pages) -> None:
    def answer(request: Request, fault: Fault) -> Response:
        if is_page(request.url.path):
            return pages.fault(fault)
        headers = {"retry-after": str(fault.retry_after_s)} if fault.retry_after_s else None
        content = {"code": fault.code, "message": fault.message}
        return JSONResponse(content, status_code=fault.status, headers=headers)

    async def foreseen(request: Request, error: Exception) -> Response:
        if isinstance(error, NotLoggedIn) and is_page(request.url.path):
            return RedirectResponse("/login", status_code=303)
        fault = translate(error)
        if fault is None:
            raise error
        return answer(request, fault)

    async def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        problems = "; ".join(
            f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}"
            for each in error.errors()[:5]
        )
        return answer(request, Fault(status=400, code="InvalidRequest", message=problems))

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _CODES.get(error.status_code, "InvalidRequest")
        message = _MESSAGES.get(error.status_code, error.detail)
        return answer(request, Fault(status=error.status_code, code=code, message=message))

    app.add_exception_handler(HoldfastError, foreseen)
    app.add_exception_handler(IamError, foreseen)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, unknown)
