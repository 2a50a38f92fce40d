"""The console's own JSON under /api: sessions, the cluster page's facts, buckets and objects.

A key travels as a query parameter: browsers normalise paths, and keys are not paths.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from node import limits
from node.console import models, session
from node.console.access import Access, Visitor
from node.console.api import cluster_facts
from node.console.services import Services, deadline_of
from node.console.transfer import Download, announced_size, body_of, transfer_s
from node.objects.api import NewObject
from node.objects.names import check_bucket_name, check_key

_FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": models.Fault} for status in (400, 401, 403, 404, 409, 429, 503)
}
ALL_BUCKETS = "arn:aws:s3:::*"

Key = Annotated[str, Query(min_length=1)]


def bucket_arn(bucket: str) -> str:
    return f"arn:aws:s3:::{bucket}"


def object_arn(bucket: str, key: str) -> str:
    return f"arn:aws:s3:::{bucket}/{key}"


def data_router(services: Services, access: Access) -> APIRouter:
    router = APIRouter(prefix="/api", responses=_FAULTS)
    _add_sessions(router, services, access)
    _add_buckets(router, services, access)
    _add_objects(router, services, access)

    @router.get("/cluster", dependencies=[Depends(access.admin("GetCluster"))])
    async def cluster() -> models.Cluster:
        return cluster_facts(services)

    return router


def _add_sessions(router: APIRouter, services: Services, access: Access) -> None:
    @router.post("/login", response_model=models.Session)
    async def log_in(request: Request, given: models.Credentials) -> Response:
        """A session by the cluster's credentials; any node accepts the cookie."""
        caller, token, csrf, expires_s = await access.log_in(request, given)
        answer = models.Session(
            name=caller.name, root=caller.is_root, csrf=csrf, expires_s=expires_s
        )
        response = JSONResponse(answer.model_dump())
        response.set_cookie(
            session.COOKIE,
            token,
            max_age=int(limits.SESSION_S),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    @router.post("/logout", status_code=204)
    async def log_out(request: Request) -> Response:
        """Forgets the cookie. It goes on to be valid until its end where it was copied to."""
        visitor = await access.visitor(request)
        services.log.info("logged out", user=visitor.caller.name)
        response = Response(status_code=204)
        response.delete_cookie(session.COOKIE, httponly=True, samesite="strict")
        return response


def _add_buckets(router: APIRouter, services: Services, access: Access) -> None:
    store = services.store

    @router.get("/buckets")
    async def buckets(request: Request) -> models.Buckets:
        visitor = await access.visitor(request)
        access.allow(visitor, "s3:ListAllMyBuckets", ALL_BUCKETS)
        found = await store.list_buckets(deadline=deadline_of(request))
        return models.Buckets(
            buckets=tuple(
                models.Bucket(name=each.name, created_s=each.created_s, owner=each.owner)
                for each in found
            )
        )

    @router.post("/buckets", status_code=201)
    async def create(request: Request, new: models.NewBucket) -> models.Bucket:
        visitor = await access.visitor(request)
        check_bucket_name(new.name)
        access.allow(visitor, "s3:CreateBucket", bucket_arn(new.name))
        made = await store.create_bucket(
            new.name, visitor.caller.name, deadline=deadline_of(request)
        )
        return models.Bucket(name=made.name, created_s=made.created_s, owner=made.owner)

    @router.delete("/buckets/{bucket}", status_code=204)
    async def delete(request: Request, bucket: str) -> None:
        """Only an empty one goes."""
        visitor = await access.visitor(request)
        check_bucket_name(bucket)
        access.allow(visitor, "s3:DeleteBucket", bucket_arn(bucket))
        await store.delete_bucket(bucket, deadline=deadline_of(request))


async def list_page(
    services: Services,
    access: Access,
    visitor: Visitor,
    bucket: str,
    prefix: str,
    after: str,
    delimiter: str,
    deadline: float,
) -> models.Objects:
    """One page of a bucket as its visitor may see it."""
    check_bucket_name(bucket)
    context = {"s3:prefix": prefix, "s3:delimiter": delimiter}
    access.allow(visitor, "s3:ListBucket", bucket_arn(bucket), context)
    page = await services.store.list_objects(
        bucket,
        prefix=prefix,
        delimiter=delimiter,
        after=after,
        limit=limits.CONSOLE_PAGE,
        deadline=deadline,
    )
    return models.Objects(
        prefixes=page.common_prefixes,
        objects=tuple(
            models.Object(key=o.key, size=o.size, etag=o.etag, modified_s=o.mtime_ns / 1e9)
            for o in page.objects
        ),
        next_after=page.next_after,
    )


def _add_objects(router: APIRouter, services: Services, access: Access) -> None:
    store, clock = services.store, services.clock

    @router.get("/buckets/{bucket}/objects")
    async def objects(
        request: Request,
        bucket: str,
        prefix: str = "",
        after: str = "",
        delimiter: str = "/",
    ) -> models.Objects:
        visitor = await access.visitor(request)
        deadline = deadline_of(request)
        return await list_page(
            services, access, visitor, bucket, prefix, after, delimiter, deadline
        )

    @router.get("/buckets/{bucket}/object", response_class=Response)
    async def download(request: Request, bucket: str, key: Key) -> Response:
        """The object as a file. A download that breaks breaks the connection, too."""
        visitor = await access.visitor(request)
        check_bucket_name(bucket)
        check_key(key)
        access.allow(visitor, "s3:GetObject", object_arn(bucket, key))
        deadline = clock.monotonic() + limits.OPEN_TIMEOUT_S
        reading = await store.get(bucket, key, deadline=deadline)
        return Download(reading, key.rstrip("/").rpartition("/")[2] or "object")

    @router.put("/buckets/{bucket}/object", status_code=201)
    async def upload(request: Request, bucket: str, key: Key) -> models.Stored:
        """The request's body as it is, of any size."""
        visitor = await access.visitor(request)
        check_bucket_name(bucket)
        check_key(key)
        access.allow(visitor, "s3:PutObject", object_arn(bucket, key))
        size = announced_size(request)
        kind = request.headers.get("content-type", "application/octet-stream")
        record = await store.put(
            bucket,
            key,
            body_of(request),
            NewObject(headers={"content-type": kind[:256]}, owner=visitor.caller.name),
            deadline=clock.monotonic() + transfer_s(size),
        )
        return models.Stored(key=key, size=record.size, etag=record.etag)

    @router.delete("/buckets/{bucket}/object", status_code=204)
    async def delete(request: Request, bucket: str, key: Key) -> None:
        visitor = await access.visitor(request)
        check_bucket_name(bucket)
        check_key(key)
        access.allow(visitor, "s3:DeleteObject", object_arn(bucket, key))
        await store.delete(bucket, key, deadline=deadline_of(request))
