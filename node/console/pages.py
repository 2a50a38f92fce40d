"""The console's pages, rendered here; a little script refreshes and sends what forms say."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from node.console import models, verdict
from node.console.access import Access, Visitor
from node.console.api import cluster_facts, policies_of, user_of
from node.console.data import ALL_BUCKETS, list_page
from node.console.errors import Fault
from node.console.services import Services, deadline_of
from node.errors import CodedError

_HERE = Path(__file__).parent
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
_TYPES[".svg"] = "image/svg+xml"


def clock_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def query(path: str, **values: str) -> str:
    return f"{path}?{urlencode(values, quote_via=quote)}"


class Pages:
    """Templates, loaded once."""

    def __init__(self, services: Services, access: Access) -> None:
        self._services = services
        self._access = access
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "duration": verdict.duration,
            "size": verdict.size,
            "time": clock_time,
            "part": lambda text: quote(text, safe=""),
            "pretty": lambda document: json.dumps(document, indent=2),
        }
        self._templates.globals |= {"query": query, "node": services.settings.node}

    def render(self, name: str, visitor: Visitor | None, **values: Any) -> HTMLResponse:
        access = self._access
        shown = {
            "visitor": visitor,
            "csrf": visitor.csrf if visitor else "",
            "sees_cluster": visitor is not None and access.may(visitor, "admin:GetCluster"),
            "sees_users": visitor is not None and access.may(visitor, "admin:ListUsers"),
        }
        return HTMLResponse(self._templates.get_template(name).render(**shown, **values))

    def fault(self, fault: Fault) -> HTMLResponse:
        """An error as a page, for a browser that asked for one."""
        response = self.render("fault.html", None, fault=fault)
        response.status_code = fault.status
        if fault.retry_after_s:
            response.headers["retry-after"] = str(fault.retry_after_s)
        return response

    # ---- the cluster --------------------------------------------------------------------------------
    async def home(self, request: Request) -> Response:
        visitor = await self._access.visitor(request)
        sees = self._access.may(visitor, "admin:GetCluster")
        return RedirectResponse("/cluster" if sees else "/buckets", status_code=303)

    async def login(self, request: Request) -> Response:
        return self.render("login.html", None)

    async def cluster(self, request: Request) -> Response:
        return self._cluster("cluster.html", await self._access.visitor(request))

    async def cluster_part(self, request: Request) -> Response:
        """What the cluster page exchanges every two seconds."""
        return self._cluster("_cluster.html", await self._access.visitor(request))

    def _cluster(self, template: str, visitor: Visitor) -> Response:
        self._access.allow(visitor, "admin:GetCluster", "*")
        facts = cluster_facts(self._services)
        return self.render(
            template,
            visitor,
            facts=facts,
            verdict=verdict.judge(facts),
            stale_s=verdict.STALE_S,
            widest=max((len(each.drives) for each in facts.nodes), default=0),
            as_of=clock_time(self._services.clock.now()),
        )

    # ---- buckets and objects --------------------------------------------------------------------------
    async def buckets(self, request: Request) -> Response:
        visitor = await self._access.visitor(request)
        self._access.allow(visitor, "s3:ListAllMyBuckets", ALL_BUCKETS)
        found = await self._services.store.list_buckets(deadline=deadline_of(request))
        return self.render("buckets.html", visitor, buckets=found)

    async def objects(
        self, request: Request, bucket: str, prefix: str = "", after: str = ""
    ) -> Response:
        visitor = await self._access.visitor(request)
        page = await list_page(
            self._services,
            self._access,
            visitor,
            bucket,
            prefix,
            after,
            "/",
            deadline_of(request),
        )
        return self.render(
            "objects.html",
            visitor,
            bucket=bucket,
            prefix=prefix,
            after=after,
            crumbs=_crumbs(prefix),
            page=page,
        )

    # ---- users ----------------------------------------------------------------------------------------
    async def users(self, request: Request) -> Response:
        visitor = await self._access.visitor(request)
        self._access.allow(visitor, "admin:ListUsers", "*")
        directory = await self._services.identity.directory(deadline=deadline_of(request))
        users: list[models.User] = sorted(map(user_of, directory.users), key=lambda each: each.name)
        return self.render("users.html", visitor, users=users, policies=policies_of(directory))


def _crumbs(prefix: str) -> list[tuple[str, str]]:
    """(name, prefix up to it) of each level."""
    levels = [level + "/" for level in prefix.split("/")[:-1]]
    return [(level, "".join(levels[: at + 1])) for at, level in enumerate(levels)]


def page_router(pages: Pages) -> APIRouter:
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
    routes: dict[str, Callable[..., Any]] = {
        "/": pages.home,
        "/login": pages.login,
        "/cluster": pages.cluster,
        "/cluster/part": pages.cluster_part,
        "/buckets": pages.buckets,
        "/buckets/{bucket}": pages.objects,
        "/users": pages.users,
    }
    for path, endpoint in routes.items():
        router.add_api_route(path, endpoint, methods=["GET", "HEAD"], response_model=None)
    files = {
        path.name: (path.read_bytes(), _TYPES[path.suffix])
        for path in (_HERE / "static").iterdir()
        if path.suffix in _TYPES
    }

    @router.get("/static/{name}", response_model=None)
    async def static(name: str) -> Response:
        if name not in files:
            raise CodedError("NoSuchPage", "there is no such file")
        data, kind = files[name]
        return Response(data, media_type=kind, headers={"cache-control": "no-cache"})

    return router


def is_page(path: str) -> bool:
    """Whether a person looks at what this path answers."""
    return not path.startswith(("/api/", "/admin/", "/static/", "/cluster/part"))
