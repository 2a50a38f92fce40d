"""The admin API under /admin/v1: typed JSON for the console and the command line alike.

Authorised by an S3 signature or by a console session with its CSRF token; each route needs the `admin:`
action it names. The root may everything.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Depends, Request

from iam.model import AccessKey, Directory, KeyStatus
from iam.model import User as StoredUser
from node import limits
from node.console import models
from node.console.access import Access
from node.console.services import Services, deadline_of
from node.errors import CodedError

PREFIX = "/admin/v1"

_FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": models.Fault} for status in (400, 401, 403, 404, 409, 503)
}


def admin_router(services: Services, access: Access) -> APIRouter:
    router = APIRouter(prefix=PREFIX, responses=_FAULTS)
    _add_cluster(router, services, access)
    _add_repair(router, services, access)
    _add_locks_and_drives(router, services, access)
    _add_users(router, services, access)
    _add_keys(router, services, access)
    _add_policies(router, services, access)
    return router


def cluster_facts(services: Services) -> models.Cluster:
    """The view's facts, and what identity has to complain about."""
    facts = services.view.cluster()
    identity = services.identity
    notices = list(facts.notices)
    if facts.ready:  # before that there is no identity to ask
        if identity.problem:
            notices.append(identity.problem)
        if identity.lag_s > limits.IDENTITY_CATCH_UP_S:
            notices.append(f"identities are {identity.lag_s:.0f} s behind: only the root gets in")
    return facts.model_copy(update={"notices": tuple(notices)})


# ---- the cluster ------------------------------------------------------------------------------------
def _add_cluster(router: APIRouter, services: Services, access: Access) -> None:
    @router.get("/cluster", dependencies=[Depends(access.admin("GetCluster"))])
    async def cluster() -> models.Cluster:
        """Nodes, drives, sets, breakers, margins and repair, as this node knows them."""
        return cluster_facts(services)

    @router.get("/config", dependencies=[Depends(access.admin("GetConfig"))])
    async def config() -> models.Config:
        """Effective settings of this node with the origin of each."""
        return models.Config(values=services.view.config())


def _add_repair(router: APIRouter, services: Services, access: Access) -> None:
    view = services.view

    @router.get("/heal", dependencies=[Depends(access.admin("GetRepair"))])
    async def heal() -> models.Repair:
        """What repair has to do and how far it is."""
        return view.repair()

    @router.post("/heal", dependencies=[Depends(access.admin("PauseRepair"))])
    async def pause(request: Request, wanted: models.Pause) -> models.Repair:
        """Pause repair on every node, or let it go on."""
        return await view.pause_repair(wanted.paused, deadline=deadline_of(request))

    @router.get("/heal/census", dependencies=[Depends(access.admin("GetCensus"))])
    async def census(request: Request) -> models.Census:
        """Count the shards of every object now. Reads every catalog: for small clusters, others take it
        in the background."""
        return await view.census(deadline=deadline_of(request))

    @router.post("/heal/census", dependencies=[Depends(access.admin("StartCensus"))])
    async def start_census() -> models.Census:
        """Count in the background of this node; answers at once, with the last census."""
        return view.start_census()

    @router.get("/heal/census/progress", dependencies=[Depends(access.admin("GetCensus"))])
    async def progress() -> models.Census:
        """How far the background census of this node is, and the last one."""
        return view.own_census()


def _add_locks_and_drives(router: APIRouter, services: Services, access: Access) -> None:
    view = services.view

    @router.get("/locks", dependencies=[Depends(access.admin("ListLocks"))])
    async def locks(request: Request) -> models.Locks:
        """Locks that this node's lock server knows, the oldest first."""
        found = await view.locks(deadline=deadline_of(request))
        return models.Locks(locks=found[: limits.ADMIN_PAGE])

    async def release(request: Request, resource: str) -> None:
        if not await view.release_lock(resource, deadline=deadline_of(request)):
            raise CodedError("NoSuchLock", f"nobody holds {resource}")

    @router.delete("/locks", status_code=204, dependencies=[Depends(access.admin("ReleaseLock"))])
    async def delete_lock(request: Request, resource: str) -> None:
        """Release a lock by force. Safe for data: no commit relies on its lock."""
        await release(request, resource)

    @router.post(
        "/locks/release", status_code=204, dependencies=[Depends(access.admin("ReleaseLock"))]
    )
    async def release_lock(request: Request, wanted: models.ResourceToRelease) -> None:
        """The same with the resource in the body."""
        await release(request, wanted.resource)

    @router.post(
        "/drives/accept", status_code=204, dependencies=[Depends(access.admin("AcceptDrive"))]
    )
    async def accept(request: Request, wanted: models.DriveToAccept) -> None:
        """Take an empty directory into the cluster as a drive; repair fills it."""
        await view.accept_drive(wanted.node, wanted.path, deadline=deadline_of(request))

    @router.post(
        "/drives/rebuild", status_code=204, dependencies=[Depends(access.admin("RebuildDrive"))]
    )
    async def rebuild(request: Request, wanted: models.DriveToAccept) -> None:
        """Take a drive whose catalog is damaged or gone as a new, empty one; its old content is moved aside."""
        await view.accept_drive(
            wanted.node, wanted.path, rebuild=True, deadline=deadline_of(request)
        )


# ---- identities -----------------------------------------------------------------------------------
def user_of(user: StoredUser) -> models.User:
    return models.User(
        name=user.name,
        enabled=user.enabled,
        policies=user.policies,
        keys=tuple(key.id for key in user.access_keys),
        created_s=user.created_s,
    )


def policies_of(directory: Directory) -> tuple[models.Policy, ...]:
    return tuple(
        models.Policy(
            name=policy.name, document=json.loads(policy.document), built_in=policy.built_in
        )
        for policy in sorted(directory.policy_index.values(), key=lambda each: each.name)
    )


def _page(names: list[Any], after: str) -> list[Any]:
    """ADMIN_PAGE rows behind the name `after`, by name."""
    rows = sorted((row for row in names if row.name > after), key=lambda row: row.name)
    return rows[: limits.ADMIN_PAGE]


def _add_users(router: APIRouter, services: Services, access: Access) -> None:
    identity = services.identity

    @router.get("/users", dependencies=[Depends(access.admin("ListUsers"))])
    async def users(request: Request, after: str = "") -> models.Users:
        """Users in order of their names; `after` continues behind the last one of a full page."""
        directory = await identity.directory(deadline=deadline_of(request))
        return models.Users(users=tuple(map(user_of, _page(list(directory.users), after))))

    @router.post("/users", status_code=201, dependencies=[Depends(access.admin("CreateUser"))])
    async def create(request: Request, new: models.NewUser) -> models.User:
        """A user without access keys and without policies."""
        return user_of(await identity.create_user(new.name, deadline=deadline_of(request)))

    @router.patch("/users/{name}", dependencies=[Depends(access.admin("UpdateUser"))])
    async def update(request: Request, name: str, change: models.UserChange) -> models.User:
        """Switch a user off or on."""
        return user_of(
            await identity.set_user_enabled(name, change.enabled, deadline=deadline_of(request))
        )

    @router.delete(
        "/users/{name}", status_code=204, dependencies=[Depends(access.admin("DeleteUser"))]
    )
    async def delete(request: Request, name: str) -> None:
        """The user and all its access keys."""
        await identity.delete_user(name, deadline=deadline_of(request))

    @router.put(
        "/users/{name}/policies/{policy}",
        status_code=204,
        dependencies=[Depends(access.admin("AttachPolicy"))],
    )
    async def attach(request: Request, name: str, policy: str) -> None:
        await identity.attach(policy, name, deadline=deadline_of(request))

    @router.delete(
        "/users/{name}/policies/{policy}",
        status_code=204,
        dependencies=[Depends(access.admin("DetachPolicy"))],
    )
    async def detach(request: Request, name: str, policy: str) -> None:
        await identity.detach(policy, name, deadline=deadline_of(request))


def _add_keys(router: APIRouter, services: Services, access: Access) -> None:
    identity = services.identity

    @router.post(
        "/users/{name}/keys", status_code=201, dependencies=[Depends(access.admin("CreateKey"))]
    )
    async def create(request: Request, name: str, new: models.NewKey | None = None) -> models.Key:
        """An access key. Its secret is in this answer and in no other."""
        wanted = new or models.NewKey()
        key: AccessKey = await identity.create_access_key(
            name,
            access_key=wanted.access_key,
            secret=wanted.secret_key,
            deadline=deadline_of(request),
        )
        return models.Key(access_key=key.id, secret_key=key.secret)

    @router.patch(
        "/users/{name}/keys/{access_key}",
        status_code=204,
        dependencies=[Depends(access.admin("UpdateKey"))],
    )
    async def update(
        request: Request, name: str, access_key: str, change: models.UserChange
    ) -> None:
        """Switch an access key off or on."""
        status = KeyStatus.ACTIVE if change.enabled else KeyStatus.INACTIVE
        await identity.set_access_key_status(
            name, access_key, status, deadline=deadline_of(request)
        )

    @router.delete(
        "/users/{name}/keys/{access_key}",
        status_code=204,
        dependencies=[Depends(access.admin("DeleteKey"))],
    )
    async def delete(request: Request, name: str, access_key: str) -> None:
        await identity.delete_access_key(name, access_key, deadline=deadline_of(request))


def _add_policies(router: APIRouter, services: Services, access: Access) -> None:
    identity = services.identity

    @router.get("/policies", dependencies=[Depends(access.admin("ListPolicies"))])
    async def policies(request: Request, after: str = "") -> models.Policies:
        directory = await identity.directory(deadline=deadline_of(request))
        return models.Policies(policies=tuple(_page(list(policies_of(directory)), after)))

    @router.post("/policies", status_code=201, dependencies=[Depends(access.admin("PutPolicy"))])
    async def put(request: Request, policy: models.Policy) -> models.Policy:
        """Create or replace a policy. What the evaluator does not know is refused here."""
        document = policy.document
        text = document if isinstance(document, str) else json.dumps(document)
        await identity.put_policy(policy.name, text, deadline=deadline_of(request))
        return models.Policy(name=policy.name, document=json.loads(text))

    @router.delete(
        "/policies/{name}", status_code=204, dependencies=[Depends(access.admin("DeletePolicy"))]
    )
    async def delete(request: Request, name: str) -> None:
        await identity.delete_policy(name, deadline=deadline_of(request))
