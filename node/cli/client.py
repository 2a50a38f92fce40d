"""Requests of the command line to a node: health probes, and the signed administration API."""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from iam.signer import encode_pairs, sign_headers
from node.config import WrongConfig, parse_values, resolve
from node.limits import MAX_ADMIN_ANSWER_BYTES
from node.options import Secret
from node.runtime.system import SystemClock

TIMEOUT_S = 10.0


class RequestFailed(Exception):
    """A request that got no good answer. `status` is 0 when there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where to ask, and as whom."""

    s3: str  # endpoints, "http://host:port"
    console: str
    user: str
    password: Secret
    region: str


def access_from(
    environ: Mapping[str, str], *, endpoint: str | None = None, console: str | None = None
) -> Access:
    """From HOLDFAST_ENDPOINT and the root credentials; WrongConfig says what is missing."""
    resolved = resolve({"endpoint": endpoint}, environ)
    problems: list[str] = []
    parsed = parse_values(resolved, problems)
    wanted = ("ENDPOINT", "ROOT_USER", "ROOT_PASSWORD", "REGION")
    problems = [p for p in problems if p.startswith(tuple(f"HOLDFAST_{name}" for name in wanted))]
    s3 = parsed["endpoint"] or "http://127.0.0.1:9000"
    for name, what in (("root_user", "access key"), ("root_password", "secret")):
        variable = f"HOLDFAST_{name.upper()}"
        if parsed[name] is None and not any(p.startswith(variable) for p in problems):
            problems.append(f"{variable} is not set: it is the {what} to ask with")
    if problems:
        raise WrongConfig(tuple(problems))
    return Access(
        s3=s3,
        console=(console or console_of(s3)).rstrip("/"),
        user=parsed["root_user"],
        password=parsed["root_password"],
        region=parsed["region"],
    )


def console_of(s3: str) -> str:
    """The console's endpoint of an S3 endpoint: by custom one port higher."""
    parts = urlsplit(s3)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{port + 1}"


def get_status(endpoint: str, path: str, *, timeout_s: float = 2.0) -> int:
    """The status of an unsigned GET; 0 when there is no answer."""
    try:
        return _send(endpoint, "GET", path, {}, b"", timeout_s)[0]
    except RequestFailed:
        return 0


class AdminClient:
    """The administration API of one node."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: object = None,
    ) -> Any:
        """The decoded JSON answer, None when it is empty; RequestFailed with what the node said."""
        access = self._access
        data = b"" if body is None else json.dumps(body).encode()
        digest = hashlib.sha256(data).hexdigest()
        headers = {"host": urlsplit(access.console).netloc}
        if data:
            headers["content-type"] = "application/json"
        headers |= sign_headers(
            method, path, query, headers, access.user, access.password.value, access.region,
            SystemClock().now(), digest,
        )  # fmt: skip
        target = f"{path}?{encode_pairs(query)}" if query else path
        status, answer = _send(access.console, method, target, headers, data, TIMEOUT_S)
        if status >= 300:
            raise RequestFailed(_reason(access.console, status, answer), status)
        if not answer:
            return None
        try:
            return json.loads(answer)
        except ValueError:
            raise RequestFailed(f"{access.console} did not answer with JSON", status) from None


def _send(
    endpoint: str,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes,
    timeout_s: float,
) -> tuple[int, bytes]:
    parts = urlsplit(endpoint)
    host, port = parts.hostname or "", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request(method, target, body=body or None, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.read(MAX_ADMIN_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise RequestFailed(
            f"no answer from {endpoint} ({error}): is the node up? name another with --endpoint "
            "or HOLDFAST_ENDPOINT"
        ) from error
    finally:
        connection.close()


def _reason(endpoint: str, status: int, answer: bytes) -> str:
    try:
        said = json.loads(answer)
    except ValueError:
        said = {}
    if not isinstance(said, dict):
        said = {}
    detail = said.get("detail")
    said = detail if isinstance(detail, dict) else said
    code = said.get("code", "")
    message = said.get("message") or (detail if isinstance(detail, str) else "")
    text = ": ".join(str(part) for part in (code, message) if part)
    return f"{endpoint} answered {status}" + (f" {text}" if text else "")
