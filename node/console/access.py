"""Who asks the console: a session of a browser, or a signed request of a program.

Either way the caller is looked up in this node's identities, and waited for no longer than
CONSOLE_ANSWER_S: an answer that cannot be had is 503 within a second, not a page that hangs.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from iam.errors import AuthError
from iam.sigv4 import AuthKind, PayloadKind, RequestParts, content_sha256_mismatch
from node import limits
from node.console import session
from node.console.errors import LoginRefused, NotLoggedIn, TooManyAttempts
from node.console.models import Credentials
from node.console.services import Services, deadline_of
from node.errors import CodedError, HoldfastError
from node.identity.service import Caller

_SAFE_METHODS = frozenset({"GET", "HEAD"})

ADMIN_RESOURCE = "*"


@dataclass(frozen=True, slots=True)
class Visitor:
    """A caller that was proved. `csrf` is empty for signed requests, which need none."""

    caller: Caller
    csrf: str


class Access:
    def __init__(self, services: Services) -> None:
        self._services = services

    # ---- sessions --------------------------------------------------------------------------------------
    async def log_in(self, request: Request, given: Credentials) -> tuple[Caller, str, str, float]:
        """(caller, cookie value, CSRF token, when it ends). One error for wrong key and wrong secret."""
        services = self._services
        _refuse_foreign_site(request)
        source = session.source_of(
            request.client.host if request.client else "",
            [part.strip() for part in request.headers.get("x-forwarded-for", "").split(",")],
            services.settings.trusted_proxies,
        )
        now = services.clock.monotonic()
        wait_s = services.brake.take(source, now)
        if wait_s:
            raise TooManyAttempts(wait_s)
        identity = services.identity
        try:
            caller = await identity.log_in(
                given.access_key, given.secret_key, deadline=self._until(request)
            )
        except AuthError:
            services.log.warning("login refused", source=source)
            raise LoginRefused from None
        except HoldfastError:  # nothing was learned about the guess
            services.brake.give_back(source, now)
            raise
        services.brake.give_back(source, now)
        token, csrf, expires_s = session.issue(
            identity.session_keys(session.PURPOSE),
            caller.access_key,
            given.secret_key,
            now_s=services.clock.now(),
            nonce=services.rng.bytes(session.NONCE_BYTES),
        )
        services.log.info("logged in", user=caller.name, source=source)
        return caller, token, csrf, expires_s

    async def visitor(self, request: Request) -> Visitor:
        """Whoever sends this request, proved; NotLoggedIn, AuthError or Unavailable otherwise."""
        if "authorization" in request.headers:
            return await self._signed(request)
        found = await self._by_cookie(request)
        if request.method not in _SAFE_METHODS:
            _refuse_foreign_site(request)
            given = request.headers.get("x-csrf-token", "")
            if not hmac.compare_digest(given.encode(), found.csrf.encode()):
                raise CodedError("AccessDenied", "the X-CSRF-Token header is missing or wrong")
        return found

    async def _by_cookie(self, request: Request) -> Visitor:
        services = self._services
        claimed = session.read(request.cookies.get(session.COOKIE, ""))
        if claimed is None:
            raise NotLoggedIn
        identity = services.identity
        try:
            credential = await identity.credential(
                claimed.access_key, deadline=self._until(request)
            )
        except AuthError:
            raise NotLoggedIn from None
        csrf = session.prove(
            claimed,
            identity.session_keys(session.PURPOSE),
            credential.secret,
            now_s=services.clock.now(),
        )
        if csrf is None:
            raise NotLoggedIn
        return Visitor(credential.caller, csrf)

    async def _signed(self, request: Request) -> Visitor:
        """The same credentials and signatures as on the S3 port; the body must be under the signature."""
        scope = request.scope
        parts = RequestParts(
            request.method,
            scope.get("raw_path") or scope["path"].encode(),
            scope["query_string"],
            scope["headers"],
        )
        found = await self._services.identity.authenticate(parts, deadline=self._until(request))
        if found.auth.kind is not AuthKind.HEADER:
            raise AuthError("AccessDenied", "Access Denied")
        body = b"" if _is_transfer(request) else await request.body()
        digest = hashlib.sha256(body).hexdigest()
        if found.auth.payload is PayloadKind.SIGNED and not _is_transfer(request):
            if not hmac.compare_digest(found.auth.payload_sha256, digest):
                raise content_sha256_mismatch(found.auth.payload_sha256, digest)
        elif body or found.auth.payload is not PayloadKind.UNSIGNED:
            raise AuthError("AccessDenied", "sign the SHA-256 of the body: x-amz-content-sha256")
        return Visitor(found.caller, "")

    def _until(self, request: Request) -> float:
        soon = self._services.clock.monotonic() + limits.CONSOLE_ANSWER_S
        return min(deadline_of(request), soon)

    # ---- what a visitor may do ---------------------------------------------------------------------------
    def allow(
        self,
        visitor: Visitor,
        action: str,
        resource: str,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        self._services.identity.authorize(visitor.caller, action, resource, context or {})

    def may(self, visitor: Visitor, action: str, resource: str = ADMIN_RESOURCE) -> bool:
        return self._services.identity.allows(visitor.caller, action, resource, {})

    def admin(self, action: str) -> Callable[[Request], Awaitable[Visitor]]:
        """A dependency: whoever asks may do this `admin:` action. Changes are written to the log."""
        reads = action.startswith(("Get", "List"))

        async def dependency(request: Request) -> Visitor:
            visitor = await self.visitor(request)
            self.allow(visitor, f"admin:{action}", ADMIN_RESOURCE)
            if not reads:
                self._services.log.info(
                    "admin change", action=action, user=visitor.caller.name, path=request.url.path
                )
            return visitor

        return dependency


def _is_transfer(request: Request) -> bool:
    return request.method == "PUT" and request.url.path.endswith("/object")


def _refuse_foreign_site(request: Request) -> None:
    """A change that another site's page sends along with our cookie, or a login it forces on somebody."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise CodedError("AccessDenied", "this request comes from another site")
