"""Errors of the peers' layer, and how errors travel over the wire: by class name and message."""

from __future__ import annotations

from node import errors
from node.errors import HoldfastError, TargetFailed, Unavailable


class PeerRefused(TargetFailed):
    """A peer and this node do not get a link: `reason` is one of the REASONS, the message says what to do."""

    def __init__(self, reason: str, message: str, *, current: int = 0) -> None:
        """`current`: for STALE_INCARNATION, the incarnation that the one who refuses has heard of."""
        super().__init__(message)
        self.reason = reason
        self.current = current


WRONG_SECRET = "wrong_secret"
WRONG_TARGET = "wrong_target"
WRONG_PROTOCOL = "wrong_protocol"
STALE_INCARNATION = "stale_incarnation"
UNKNOWN_NODE = "unknown_node"
UNKNOWN_SESSION = "unknown_session"
BAD_MESSAGE = "bad_message"

REASONS = frozenset(
    {
        WRONG_SECRET,
        WRONG_TARGET,
        WRONG_PROTOCOL,
        STALE_INCARNATION,
        UNKNOWN_NODE,
        UNKNOWN_SESSION,
        BAD_MESSAGE,
    }
)


def _travelling() -> dict[str, type[HoldfastError]]:
    """Error classes that keep their class over the wire: those made from a message alone."""
    found: dict[str, type[HoldfastError]] = {}
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, HoldfastError):
            if value in (errors.DriveFailed, errors.CodedError):
                continue
            found[name] = value
    return found


_CLASSES = _travelling()


def encode_error(error: BaseException) -> tuple[str, str]:
    """(error name, detail) of what a handler raised. Anything unexpected is named, never described."""
    if isinstance(error, errors.DriveFailed):
        return "DriveFailed", _text(f"{error.fault}\x1f{error.detail}")
    if isinstance(error, errors.CodedError):
        return "CodedError", _text(f"{error.code}\x1f{error}")
    if isinstance(error, PeerRefused):
        current = f"\x1f{error.current}" if error.current else ""
        return "PeerRefused", _text(f"{error.reason}\x1f{error}{current}")
    for cls in type(error).__mro__:
        if _CLASSES.get(cls.__name__) is cls:
            return cls.__name__, _text(str(error))
    return "TargetFailed", f"internal error ({type(error).__name__})"


def _text(message: str) -> str:
    """Valid UTF-8, whatever path or key the message quotes."""
    return message.encode("utf-8", "backslashreplace").decode()


def _as_answer(error: HoldfastError) -> HoldfastError:
    error.answered = True  # type: ignore[attr-defined]
    return error


def decode_error(peer: str, name: str, detail: str) -> HoldfastError:
    """The error a peer answered with; `answered` is set on it: the peer itself is well."""
    error: HoldfastError
    head, _, tail = detail.partition("\x1f")
    if name == "DriveFailed":
        error = errors.DriveFailed(head, tail)
    elif name == "CodedError":
        error = errors.CodedError(head, tail)
    elif name == "PeerRefused":
        message, _, current = tail.partition("\x1f")
        heard = int(current) if current.isdecimal() and len(current) < 20 else 0
        error = PeerRefused(head, f"{peer}: {message}", current=heard)
    else:
        cls = _CLASSES.get(name, TargetFailed)
        if issubclass(cls, errors.ClientError):
            error = cls(detail)  # clients read it: no peer's name in it
        else:
            kept = cls if issubclass(cls, Unavailable) else TargetFailed
            error = kept(f"{peer}: {detail}" if detail else peer)
    return _as_answer(error)
