"""How every exception becomes an answer of the console: a status, a code, a sentence.

Not logged in (401), refused (403), unknown (404), a state the request met (4xx) and a cluster that
cannot answer now (503) never share a status.
"""

from __future__ import annotations

from dataclasses import dataclass

from iam import errors as iam
from node import errors

_STATUS = {
    "AccessDenied": 403,
    "InvalidAccessKeyId": 403,
    "SignatureDoesNotMatch": 403,
    "RequestTimeTooSkewed": 403,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "NoSuchLock": 404,
    "NoSuchPage": 404,
    "MethodNotAllowed": 405,
    "BucketAlreadyOwnedByYou": 409,
    "BucketAlreadyExists": 409,
    "BucketNotEmpty": 409,
    "MissingContentLength": 411,
    "PreconditionFailed": 412,
    "RequestTooLarge": 413,
}
_CONFLICTS = (
    iam.UserExists,
    iam.GroupExists,
    iam.GroupInUse,
    iam.PolicyInUse,
    iam.AccessKeyExists,
    iam.LimitExceeded,
)
_ABSENT = (
    iam.NoSuchUser,
    iam.NoSuchGroup,
    iam.NoSuchPolicy,
    iam.NoSuchAccessKey,
    iam.NotAttached,
    iam.NotAMember,
)


class NotLoggedIn(errors.HoldfastError):
    """Log in first: the session has ended or never began."""


class LoginRefused(errors.HoldfastError):
    """The access key or the secret key is wrong."""


class TooManyAttempts(errors.HoldfastError):
    """Too many failed attempts to log in."""

    def __init__(self, wait_s: float) -> None:
        self.retry_after_s = max(1, round(wait_s))
        super().__init__(f"Too many failed attempts: wait {self.retry_after_s} s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    status: int
    code: str
    message: str
    retry_after_s: int = 0


def translate(error: BaseException) -> Fault | None:
    """None: nobody foresaw it (500, logged with its trace)."""
    if isinstance(error, NotLoggedIn):
        return Fault(status=401, code="NotLoggedIn", message=_said(error))
    if isinstance(error, LoginRefused):
        return Fault(status=401, code="LoginRefused", message=_said(error))
    if isinstance(error, TooManyAttempts):
        return Fault(
            status=429,
            code="TooManyAttempts",
            message=str(error),
            retry_after_s=error.retry_after_s,
        )
    if isinstance(error, errors.Unavailable):
        busy = isinstance(error, errors.Shed | errors.LockContended)
        return Fault(
            status=503,
            code="SlowDown" if busy else "ServiceUnavailable",
            message=_said(error),
            retry_after_s=max(1, error.retry_after_s),
        )
    if isinstance(error, errors.ClientError):
        return Fault(status=_STATUS.get(error.code, 400), code=error.code, message=_said(error))
    if isinstance(error, iam.AuthError):
        return Fault(status=_STATUS.get(error.code, 400), code=error.code, message=error.message)
    if isinstance(error, iam.DirectoryError):
        status = (
            404 if isinstance(error, _ABSENT) else 409 if isinstance(error, _CONFLICTS) else 400
        )
        return Fault(status=status, code=type(error).__name__, message=error.message)
    if isinstance(error, iam.MalformedPolicy):
        return Fault(status=400, code="MalformedPolicy", message=str(error))
    return None


def _said(error: errors.HoldfastError) -> str:
    return str(error) or (type(error).__doc__ or "").strip()
