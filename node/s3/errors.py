"""S3 error codes: their statuses, their messages, and how every exception becomes one of them.

Source: "Error responses" in the Amazon S3 API reference. A refusal (403), a state the client met (4xx)
and a cluster that cannot answer now (503) never share a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from iam.errors import AuthError
from node import errors as node_errors
from node.s3.codec import XML_DECLARATION, escape_told

_BAD_REQUEST = (
    "AccessControlListNotSupported AuthorizationHeaderMalformed AuthorizationQueryParametersError "
    "BadDigest EntityTooLarge EntityTooSmall IllegalLocationConstraintException IncompleteBody "
    "InvalidArgument InvalidBucketName InvalidDigest InvalidLocationConstraint InvalidPart "
    "InvalidPartOrder InvalidRequest InvalidStorageClass InvalidTag InvalidToken InvalidURI "
    "KeyTooLongError MalformedPolicy MalformedXML MaxMessageLengthExceeded MetadataTooLarge "
    "ExpiredToken InvalidEncryptionAlgorithmError MalformedTrailerError "
    "MissingSecurityHeader RequestHeaderSectionTooLarge RequestTimeout TooManyBuckets "
    "UnexpectedContent XAmzContentSHA256Mismatch XAmzContentChecksumMismatch"
)
_STATUS: dict[str, int] = {
    **dict.fromkeys(_BAD_REQUEST.split(), 400),
    "AccessDenied": 403,
    "AccessForbidden": 403,
    "InvalidAccessKeyId": 403,
    "InvalidObjectState": 403,
    "RequestTimeTooSkewed": 403,
    "SignatureDoesNotMatch": 403,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "NoSuchTagSet": 404,
    "NoSuchUpload": 404,
    "NoSuchVersion": 404,
    "MethodNotAllowed": 405,
    "BucketAlreadyExists": 409,
    "BucketAlreadyOwnedByYou": 409,
    "BucketNotEmpty": 409,
    "ConditionalRequestConflict": 409,
    "OperationAborted": 409,
    "MissingContentLength": 411,
    "PreconditionFailed": 412,
    "InvalidRange": 416,
    "NotModified": 304,
    "InternalError": 500,
    "NotImplemented": 501,
    "ServiceUnavailable": 503,
    "SlowDown": 503,
}

_UNAVAILABLE: tuple[tuple[type[node_errors.Unavailable], str, str], ...] = (
    (node_errors.Shed, "SlowDown", "Please reduce your request rate."),
    (
        node_errors.LockContended,
        "SlowDown",
        "The key is being written by others; please reduce your request rate.",
    ),
    (
        node_errors.OutcomeUnknown,
        "ServiceUnavailable",
        "The write was sent, but its outcome could not be learned in time: it may be visible or not. "
        "Please retry.",
    ),
    (
        node_errors.QuorumLost,
        "ServiceUnavailable",
        "Too few drives can be reached for this operation now. Nothing was acknowledged. "
        "Please retry.",
    ),
    (
        node_errors.DeadlineExceeded,
        "ServiceUnavailable",
        "The operation did not end within its time. Please retry.",
    ),
    (
        node_errors.Unavailable,
        "ServiceUnavailable",
        "The service cannot answer this request now. Please retry.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An error as the client sees it. `details` become elements of the document."""

    code: str
    status: int
    message: str
    details: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: int = 0
    internal: bool = False  # an exception nobody foresaw: log it with its trace


def status_of(code: str) -> int:
    """HTTP status of an S3 code; a code the table lacks is a client's fault (400)."""
    return _STATUS.get(code, 400)


def known_codes() -> frozenset[str]:
    return frozenset(_STATUS)


def translate(error: BaseException) -> Fault:
    """What the client is told about `error`. Unforeseen ones say nothing but InternalError."""
    if isinstance(error, node_errors.ClientError):
        return Fault(
            code=error.code, status=status_of(error.code), message=str(error), details=error.data
        )
    if isinstance(error, AuthError):
        return Fault(
            code=error.code,
            status=status_of(error.code),
            message=error.message,
            details=error.details,
        )
    for kind, code, message in _UNAVAILABLE:
        if isinstance(error, kind):
            return Fault(
                code=code, status=503, message=message, retry_after_s=max(1, error.retry_after_s)
            )
    return Fault(
        code="InternalError",
        status=500,
        message="We encountered an internal error. Please try again.",
        internal=True,
    )


def error_document(fault: Fault, *, resource: str, request_id: str, host_id: str) -> bytes:
    """The <Error> document. Elements that a client may not see twice (Code, Message) come first."""
    details = "".join(
        f"<{name}>{escape_told(text)}</{name}>"
        for name, text in fault.details.items()
        if name.isidentifier()
    )
    return (
        f"{XML_DECLARATION}<Error><Code>{fault.code}</Code><Message>{escape_told(fault.message)}</Message>"
        f"{details}<Resource>{escape_told(resource)}</Resource><RequestId>{request_id}</RequestId>"
        f"<HostId>{host_id}</HostId></Error>"
    ).encode("utf-8", "replace")
