"""Uploads by an HTML form (POST Object): the signed policy and its conditions.

The form carries a policy document in base64, signed as it stands; the policy says until when it
holds and what the other fields may be. Every field but a few must be covered by a condition.

Source: "Browser-Based Uploads Using POST (AWS Signature Version 4)" in the S3 API reference.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from .canonical import ALGORITHM, TERMINATOR, sign_string, signing_key
from .claim import Authentication, AuthKind, split_credential
from .errors import AuthError

MAX_POLICY_BYTES = 20 * 1024
MAX_CONDITIONS = 256
_NOT_COVERED = frozenset({"policy", "x-amz-signature", "file", "submit", "awsaccesskeyid"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PostPolicy:
    """A policy that holds for the form. The file's size is checked once it is known."""

    expires_s: float  # seconds since 1970
    min_bytes: int = 0
    max_bytes: int | None = None

    def check_size(self, size_bytes: int) -> None:
        """Raises EntityTooSmall or EntityTooLarge."""
        if size_bytes < self.min_bytes:
            raise AuthError(
                "EntityTooSmall",
                "Your proposed upload is smaller than the minimum allowed object size.",
                {"ProposedSize": str(size_bytes), "MinSizeAllowed": str(self.min_bytes)},
            )
        if self.max_bytes is not None and size_bytes > self.max_bytes:
            raise AuthError(
                "EntityTooLarge",
                "Your proposed upload exceeds the maximum allowed object size.",
                {"ProposedSize": str(size_bytes), "MaxSizeAllowed": str(self.max_bytes)},
            )


def _bad_argument(message: str) -> AuthError:
    return AuthError("InvalidArgument", message)


def _bad_document(message: str) -> AuthError:
    return AuthError("InvalidPolicyDocument", f"Invalid Policy: {message}")


def _refused(message: str) -> AuthError:
    return AuthError("AccessDenied", f"Invalid according to Policy: {message}")


def parse_post_form(fields: Mapping[str, str]) -> Authentication:
    """The claim of a form (field names in lower case), to look its access key up."""
    if "policy" not in fields:
        if "x-amz-signature" in fields or "signature" in fields:
            raise _bad_argument("The form has a signature and no policy")
        return Authentication(kind=AuthKind.ANONYMOUS)
    if "signature" in fields and "x-amz-signature" not in fields:
        raise AuthError(
            "InvalidRequest",
            "Signature Version 2 (SigV2) is refused. Please use AWS4-HMAC-SHA256.",
        )
    for name in ("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature"):
        if not fields.get(name):
            raise _bad_argument(f"Bucket POST must contain a field named '{name}'.")
    if fields["x-amz-algorithm"] != ALGORITHM:
        raise _bad_argument(f"x-amz-algorithm only supports {ALGORITHM}")
    access_key, date, region, service, terminator = split_credential(
        fields["x-amz-credential"], lambda message, details: _bad_argument(message)
    )
    if terminator != TERMINATOR or fields["x-amz-date"][:8] != date:
        raise _bad_argument("x-amz-credential does not match x-amz-date or this endpoint")
    return Authentication(
        kind=AuthKind.POST_POLICY,
        access_key=access_key,
        date=date,
        region=region,
        service=service,
        signature=fields["x-amz-signature"],
        amz_date=fields["x-amz-date"],
        session_token=fields.get("x-amz-security-token", ""),
    )


def verify_post_policy(
    fields: Mapping[str, str], secret: str, now_s: float, *, region: str, service: str = "s3"
) -> PostPolicy:
    """Prove a form and check its fields against its policy, or raise AuthError.

    ``fields`` has lower-case names, every field that stands before the file, the key with
    ``${filename}`` replaced, and ``bucket`` as the request addressed it.
    """
    auth = parse_post_form(fields)
    if auth.kind is not AuthKind.POST_POLICY:
        raise AuthError("AccessDenied", "Access Denied")
    if auth.region != region or auth.service != service:
        raise _bad_argument(
            f"the scope of x-amz-credential is wrong; expecting region '{region}' and service "
            f"'{service}'"
        )
    encoded = fields["policy"]
    expected = sign_string(signing_key(secret, auth.date, region, service), encoded)
    if not hmac.compare_digest(expected.encode(), auth.signature.encode("utf-8", "replace")):
        raise AuthError(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. "
            "Check your key and signing method.",
            {"AWSAccessKeyId": auth.access_key, "StringToSign": encoded},
        )
    document = _document(encoded)
    expires_s = _expiration(document.get("expiration"))
    if now_s >= expires_s:
        raise _refused("Policy expired.")
    return _check_conditions(document.get("conditions"), fields, expires_s)


def _document(encoded: str) -> dict[str, object]:
    if len(encoded) > MAX_POLICY_BYTES * 4 // 3 + 4:
        raise _bad_document(f"it is larger than {MAX_POLICY_BYTES} bytes.")
    try:
        document = json.loads(base64.b64decode(encoded, validate=False))
    except (binascii.Error, ValueError, RecursionError):
        raise _bad_document("Invalid JSON.") from None
    if not isinstance(document, dict):
        raise _bad_document("Invalid JSON: not an object.")
    return document


def _expiration(value: object) -> float:
    if not isinstance(value, str):
        raise _bad_document("'expiration' is missing or not a string.")
    try:
        when = datetime.fromisoformat(value)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise _bad_document(f"Invalid 'expiration' value: '{value[:64]}'") from None


def _check_conditions(
    conditions: object, fields: Mapping[str, str], expires_s: float
) -> PostPolicy:
    if not isinstance(conditions, list) or not conditions or len(conditions) > MAX_CONDITIONS:
        raise _bad_document(f"'conditions' must be a list of 1 to {MAX_CONDITIONS}.")
    covered: set[str] = set()
    min_bytes, max_bytes = 0, None
    for condition in conditions:
        operator, first, second = _split_condition(condition)
        if operator == "content-length-range":
            low, high = _size(first), _size(second)
            min_bytes = max(min_bytes, low)
            max_bytes = high if max_bytes is None else min(max_bytes, high)
            continue
        name = _field_name(first, condition)
        if not isinstance(second, str):
            raise _bad_document(f"Invalid value in condition {json.dumps(condition)[:256]}")
        value = fields.get(name, "")
        held = value == second if operator == "eq" else value.startswith(second)
        if not held:
            raise _refused(f"Policy Condition failed: {json.dumps(condition)[:1024]}")
        covered.add(name)
    for name in fields:
        if name not in covered and name not in _NOT_COVERED and not name.startswith("x-ignore-"):
            raise _refused(f"Extra input fields: {name}")
    return PostPolicy(expires_s=expires_s, min_bytes=min_bytes, max_bytes=max_bytes)


def _split_condition(condition: object) -> tuple[str, object, object]:
    """Operator and its two arguments; {"name": "value"} is short for eq."""
    if isinstance(condition, dict) and len(condition) == 1:
        ((name, value),) = condition.items()
        return "eq", f"${name}", value
    if isinstance(condition, list) and len(condition) == 3 and isinstance(condition[0], str):
        operator = condition[0].lower()
        if operator in ("eq", "starts-with", "content-length-range"):
            return operator, condition[1], condition[2]
    raise _bad_document(f"Invalid condition: {json.dumps(condition)[:256]}")


def _field_name(value: object, condition: object) -> str:
    if not isinstance(value, str) or len(value) < 2 or value[0] != "$":
        raise _bad_document(f"Invalid field name in condition {json.dumps(condition)[:256]}")
    return value[1:].lower()


def _size(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**18:
        raise _bad_document("Invalid content-length-range.")
    return value
