"""Who asks, and may they: the use cases of identity.

The root comes from the configuration and needs nobody: it works before the cluster is formed and
without any quorum. Everybody else is in the directory (node.identity.replica). What this node cannot
know now is Unavailable (503); "denied", "unknown key" and "wrong signature" are said only by a node
that knows.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from iam import directory as directories
from iam import sigv4
from iam.document import Document as PolicyDocument
from iam.errors import AccessKeyExists, AuthError, NoSuchAccessKey
from iam.evaluate import CompiledPolicy, Decision, Request
from iam.model import ANONYMOUS, ROOT, AccessKey, Directory, KeyStatus, Principal, User
from iam.secrets import (
    ACCESS_KEY_ID_RANDOM_BYTES,
    SECRET_KEY_RANDOM_BYTES,
    access_key_id,
    secret_key,
)
from iam.sigv4 import Authentication, RequestParts, Verified
from node.config import Settings
from node.guard.guard import Guard
from node.identity.ports import Copies, Documents, Metrics, Spread
from node.identity.replica import Known, Replica
from node.identity.vault import Keks, Vault, derive_keks
from node.options import Secret
from node.runtime.ports import Clock, Cpu, Rng


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks. `access_key` and `name` are empty for anonymous callers."""

    access_key: str
    name: str
    is_root: bool = False
    anonymous: bool = False
    principal: Principal = ANONYMOUS


NOBODY = Caller(access_key="", name="", anonymous=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticated:
    """A request whose claim holds. `verification` seeds an aws-chunked body, None for anonymous."""

    caller: Caller
    verification: Verified | None
    auth: Authentication


@dataclass(frozen=True, slots=True)
class Credential:
    """An access key in use: whom it proves, and with what."""

    caller: Caller
    secret: str = field(repr=False)


class Identity:
    """Authentication, authorization, and the changes of the directory, of one node."""

    def __init__(
        self,
        root_user: str,
        root_password: str,
        region: str,
        replica: Replica,
        keks: Keks,
        clock: Clock,
        rng: Rng,
    ) -> None:
        caller = Caller(access_key=root_user, name=root_user, is_root=True, principal=ROOT)
        self._root = Credential(caller, root_password)
        self._region = region
        self._replica = replica
        self._keks = keks
        self._clock = clock
        self._rng = rng
        self._callers: dict[str, Credential] = {}
        self._callers_of: Known | None = None

    # ---- life -----------------------------------------------------------------------------------------
    def start(self) -> None:
        self._replica.start()

    async def close(self) -> None:
        await self._replica.close()

    async def handle_spread(self, payload: bytes) -> bytes:
        """The inbound side of Method.IDENTITY."""
        return await self._replica.handle_announcement(payload)

    # ---- who ------------------------------------------------------------------------------------------
    async def authenticate(self, parts: RequestParts, *, deadline: float) -> Authenticated:
        """Raises iam.errors.AuthError; Unavailable when the identities cannot be known now."""
        auth = sigv4.parse(parts)
        if not auth.signed:
            # A POST form is anonymous, too, until its handler has read the policy inside it.
            return Authenticated(caller=NOBODY, verification=None, auth=auth)
        if auth.session_token:
            raise AuthError("InvalidToken", "The provided token is malformed or otherwise invalid.")
        credential = await self.credential(auth.access_key, deadline=deadline)
        verified = sigv4.verify(
            auth, parts, credential.secret, now_s=self._clock.now(), region=self._region
        )
        return Authenticated(caller=credential.caller, verification=verified, auth=auth)

    async def credential(self, access_key: str, *, deadline: float) -> Credential:
        """The credential of an access key that may be used now. AuthError("InvalidAccessKeyId") for
        one that is unknown or switched off, Unavailable when that cannot be known now."""
        if access_key == self._root.caller.access_key:
            return self._root
        known = await self._replica.current(deadline=deadline)
        found = self._find(known, access_key)
        if found is None:
            # It may have been made on another node a moment ago: only a read can deny it.
            found = self._find(await self._replica.newest(deadline=deadline), access_key)
        if found is None:
            raise AuthError(
                "InvalidAccessKeyId",
                "The AWS Access Key Id you provided does not exist in our records.",
                {"AWSAccessKeyId": access_key},
            )
        return found

    async def log_in(self, access_key: str, secret: str, *, deadline: float) -> Caller:
        """By the secret itself (the console). Errors as of `authenticate`."""
        credential = await self.credential(access_key, deadline=deadline)
        if not hmac.compare_digest(credential.secret.encode(), secret.encode()):
            raise AuthError("SignatureDoesNotMatch", "The secret key is wrong.")
        return credential.caller

    def _find(self, known: Known, access_key: str) -> Credential | None:
        if self._callers_of is not known:
            self._callers, self._callers_of = {}, known
        found = self._callers.get(access_key)
        if found is None:
            credential = directories.lookup(known.directory, access_key)
            if credential is None:
                return None
            principal = credential.principal
            caller = Caller(access_key=access_key, name=principal.name, principal=principal)
            found = self._callers[access_key] = Credential(caller, credential.secret)
        return found

    # ---- may they -------------------------------------------------------------------------------------
    def allows(
        self,
        caller: Caller,
        action: str,
        resource_arn: str,
        context: Mapping[str, Any],
        *,
        resource_policy: PolicyDocument | CompiledPolicy | None = None,
    ) -> bool:
        if caller.is_root:
            return True
        known = self._replica.known
        directory = known.directory if known is not None else _EMPTY
        decision = directories.authorize(
            directory,
            caller.principal,
            Request(action, resource_arn, context),
            resource_policy=resource_policy,
        )
        return decision is Decision.ALLOW

    def authorize(
        self,
        caller: Caller,
        action: str,
        resource_arn: str,
        context: Mapping[str, Any],
        *,
        resource_policy: PolicyDocument | CompiledPolicy | None = None,
    ) -> None:
        """Raises iam.errors.AuthError("AccessDenied")."""
        if not self.allows(caller, action, resource_arn, context, resource_policy=resource_policy):
            raise AuthError("AccessDenied", "Access Denied")

    # ---- sessions -------------------------------------------------------------------------------------
    def session_keys(self, purpose: str) -> tuple[bytes, ...]:
        """Keys (32 bytes) that every node derives alike: the first signs, each may prove."""
        label = b"holdfast session 1\0" + purpose.encode()
        return tuple(hmac.digest(kek, label, "sha256") for kek in self._keks.own)

    # ---- the directory --------------------------------------------------------------------------------
    @property
    def version(self) -> int:
        """The document's version of this node's copy; 0 before there is one."""
        known = self._replica.known
        return 0 if known is None else known.version

    @property
    def ready(self) -> bool:
        """Whether this node has a copy to judge requests by, be it its own of an earlier life."""
        return self._replica.known is not None

    @property
    def lag_s(self) -> float:
        return self._replica.lag_s

    @property
    def problem(self) -> str:
        """Why the stored identities cannot be opened by this node; "" when they can."""
        return self._replica.problem

    async def directory(self, *, deadline: float) -> Directory:
        return (await self._replica.current(deadline=deadline)).directory

    async def create_user(self, name: str, *, deadline: float) -> User:
        now_s = self._clock.now()
        changed = await self._change(
            lambda directory: directories.add_user(directory, name, now_s=now_s), deadline
        )
        return changed.user_index[name]

    async def delete_user(self, name: str, *, deadline: float) -> None:
        await self._change(lambda directory: directories.remove_user(directory, name), deadline)

    async def set_user_enabled(self, name: str, enabled: bool, *, deadline: float) -> User:
        changed = await self._change(
            lambda directory: directories.set_user_enabled(directory, name, enabled), deadline
        )
        return changed.user_index[name]

    async def create_access_key(
        self, user: str, *, access_key: str = "", secret: str = "", deadline: float
    ) -> AccessKey:
        """With random values where none are given. The secret is shown here and never again."""
        key = AccessKey(
            id=access_key or access_key_id(self._rng.bytes(ACCESS_KEY_ID_RANDOM_BYTES)),
            secret=secret or secret_key(self._rng.bytes(SECRET_KEY_RANDOM_BYTES)),
            created_s=self._clock.now(),
        )
        if key.id == self._root.caller.access_key:
            raise AccessKeyExists(key.id)
        await self._change(
            lambda directory: directories.add_access_key(directory, user, key), deadline
        )
        return key

    async def delete_access_key(self, user: str, access_key: str, *, deadline: float) -> None:
        await self._change(
            lambda directory: directories.remove_access_key(
                directory, _key_of(directory, user, access_key)
            ),
            deadline,
        )

    async def set_access_key_status(
        self, user: str, access_key: str, status: KeyStatus, *, deadline: float
    ) -> None:
        await self._change(
            lambda directory: directories.set_access_key_status(
                directory, _key_of(directory, user, access_key), status
            ),
            deadline,
        )

    async def put_policy(self, name: str, document: str | bytes, *, deadline: float) -> None:
        await self._change(
            lambda directory: directories.put_policy(directory, name, document), deadline
        )

    async def delete_policy(self, name: str, *, deadline: float) -> None:
        await self._change(lambda directory: directories.remove_policy(directory, name), deadline)

    async def attach(self, policy: str, user: str, *, deadline: float) -> None:
        await self._change(
            lambda directory: directories.attach(directory, policy, user=user), deadline
        )

    async def detach(self, policy: str, user: str, *, deadline: float) -> None:
        await self._change(
            lambda directory: directories.detach(directory, policy, user=user), deadline
        )

    async def _change(self, modify: Callable[[Directory], Directory], deadline: float) -> Directory:
        return await self._replica.change(modify, deadline=deadline)


_EMPTY = Directory()


def _key_of(directory: Directory, user: str, access_key: str) -> str:
    """The key's id, when it belongs to this user."""
    found = directory.key_index.get(access_key)
    if found is None or found[0].name != user:
        raise NoSuchAccessKey(access_key)
    return access_key


async def create_identity(
    settings: Settings,
    cluster_id: bytes,
    *,
    documents: Documents,
    copies: Copies,
    spread: Spread,
    guard: Guard,
    clock: Clock,
    rng: Rng,
    cpu: Cpu,
    metrics: Metrics,
    publish: Callable[[str, int], None],
    highest_seen: Callable[[], int],
) -> Identity:
    """The identity of one node; call `start` on it. `publish(name, version)` puts a version into the
    heartbeats, `highest_seen()` is the highest one in those of the peers."""

    def value(secret: Secret | None) -> str | None:
        return None if secret is None else secret.value

    root_password = settings.root_password.value
    keks = await derive_keks(
        value(settings.cluster_secret),
        value(settings.previous_cluster_secret),
        root_password,
        cluster_id,
        cpu,
    )
    replica = Replica(
        len(settings.node_names),
        documents,
        copies,
        spread,
        Vault(keks, cluster_id, rng),
        guard,
        clock,
        rng,
        metrics,
        publish,
        highest_seen,
    )
    return Identity(settings.root_user, root_password, settings.region, replica, keks, clock, rng)
