"""The node's error root. What a caller must tell apart has a class of its own; errors carry data."""

from __future__ import annotations


class HoldfastError(Exception):
    """Root of everything the node raises on purpose."""


# ---- guard: why a call did not happen or did not end -------------------------------------------------
class Unavailable(HoldfastError):
    """The cluster cannot do this now, and may later: 503 with Retry-After. Never 'not found', never 'denied'."""

    retry_after_s: int = 1


class DeadlineExceeded(Unavailable):
    """A wait reached its bound."""


class Shed(Unavailable):
    """Refused by a bulkhead or a byte budget before anything was done: SlowDown."""


class TargetDown(Unavailable):
    """The target's breaker is open, or the target is declared dead. Nothing was sent."""


class TargetFailed(Unavailable):
    """The target answered with sickness, or the connection to it broke. The effect is unknown."""


class QuorumLost(Unavailable):
    """Too few drives or nodes answered for this operation. Nothing was acknowledged."""


class OutcomeUnknown(Unavailable):
    """A write was sent and its outcome could not be learned in time; it may be visible or not."""


class LockContended(Unavailable):
    """The lock stayed taken through all retries: SlowDown."""


class Undecided(Unavailable):
    """The newest write of the key is undecided and could not be settled now."""


# ---- what clients asked for -------------------------------------------------------------------------
class ClientError(HoldfastError):
    """A request that is wrong or that meets a state of its own: mapped to an S3 error code by name."""

    code: str = "InvalidRequest"

    def __init__(self, message: str = "", **data: str) -> None:
        super().__init__(message or self.__doc__ or self.code)
        self.data = data


class CodedError(ClientError):
    """Any S3 error by its code, for faces and bodies."""

    def __init__(self, code: str, message: str = "", **data: str) -> None:
        super().__init__(message or code, **data)
        self.code = code


class NoSuchBucket(ClientError):
    """The specified bucket does not exist."""

    code = "NoSuchBucket"


class NoSuchKey(ClientError):
    """The specified key does not exist."""

    code = "NoSuchKey"


class NoSuchUpload(ClientError):
    """The specified multipart upload does not exist. It may have been aborted or completed."""

    code = "NoSuchUpload"


class BucketAlreadyExists(ClientError):
    """The bucket exists and is yours."""

    code = "BucketAlreadyOwnedByYou"


class BucketNotEmpty(ClientError):
    """The bucket you tried to delete is not empty."""

    code = "BucketNotEmpty"


class PreconditionFailed(ClientError):
    """At least one of the preconditions you specified did not hold."""

    code = "PreconditionFailed"


class NotModified(ClientError):
    """Not modified."""

    code = "NotModified"


class InvalidRange(ClientError):
    """The requested range is not satisfiable."""

    code = "InvalidRange"


class InvalidPart(ClientError):
    """One or more of the specified parts could not be found, or its ETag does not match."""

    code = "InvalidPart"


class InvalidPartOrder(ClientError):
    """The list of parts was not in ascending order."""

    code = "InvalidPartOrder"


class EntityTooSmall(ClientError):
    """Your proposed upload is smaller than the minimum allowed size."""

    code = "EntityTooSmall"


class EntityTooLarge(ClientError):
    """Your proposed upload exceeds the maximum allowed size."""

    code = "EntityTooLarge"


# ---- the machine ------------------------------------------------------------------------------------
class ConfigError(HoldfastError):
    """A wrong configuration: the message says what to do."""


class DriveFailed(TargetFailed):
    """A drive answered with a fault. `fault` is a node.protocol.verbs.DriveFault."""

    def __init__(self, fault: str, detail: str = "") -> None:
        super().__init__(f"{fault}: {detail}" if detail else fault)
        self.fault = fault
        self.detail = detail
