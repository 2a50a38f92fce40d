"""The condition keys of a request, as policies name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iam.sigv4 import AuthKind
from node.s3 import codec
from node.s3 import headers as wire
from node.s3.shapes import Request

# Condition keys taken from headers of the same name.
_HEADER_KEYS = (
    "x-amz-acl",
    "x-amz-content-sha256",
    "x-amz-copy-source",
    "x-amz-metadata-directive",
    "x-amz-storage-class",
    "x-amz-website-redirect-location",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-customer-algorithm",
    "if-match",
    "if-none-match",
)
_QUERY_KEYS = (
    ("prefix", "s3:prefix"),
    ("delimiter", "s3:delimiter"),
    ("max-keys", "s3:max-keys"),
    ("versionId", "s3:VersionId"),
)


def condition_context(request: Request) -> dict[str, Any]:
    """Everything that a condition may ask of this request; who the caller is, identity adds."""
    now_s = request.services.clock.now()
    headers = request.headers
    context: dict[str, Any] = {
        "aws:SourceIp": request.client_ip,
        "aws:SecureTransport": "true" if request.scheme == "https" else "false",
        "aws:EpochTime": str(int(now_s)),
        "aws:CurrentTime": codec.iso_date(int(now_s) * 1_000_000_000),
        "aws:RequestedRegion": request.services.region,
    }
    if "user-agent" in headers:
        context["aws:UserAgent"] = headers["user-agent"]
    if "referer" in headers:
        context["aws:Referer"] = headers["referer"]
    for name in _HEADER_KEYS:
        if name in headers:
            context[f"s3:{name}"] = headers[name]
    if request.query:
        for name, key in _QUERY_KEYS:
            if name in request.query:
                context[key] = request.query[name]
    if headers.get("x-amz-tagging"):
        tags = wire.tagging(headers["x-amz-tagging"])
        context["s3:RequestObjectTagKeys"] = list(tags)
        context.update({f"s3:RequestObjectTag/{name}": value for name, value in tags.items()})
    context.update(_signature_context(request, now_s))
    return context


def _signature_context(request: Request, now_s: float) -> Mapping[str, str]:
    if request.auth is None:
        return {}
    claim = request.auth.auth
    if claim.kind is AuthKind.HEADER:
        kind = "REST-HEADER"
    elif claim.kind is AuthKind.PRESIGNED:
        kind = "REST-QUERY-STRING"
    else:
        return {}
    found = {"s3:signatureversion": "AWS4-HMAC-SHA256", "s3:authType": kind}
    when = codec.parse_http_date(claim.amz_date) if claim.kind is AuthKind.PRESIGNED else None
    if when is not None:
        found["s3:signatureAge"] = str(max(0, int((now_s - when) * 1000)))
    return found
