"""Structured logs: one JSON object a line, with timestamp, level, logger, event, node and request_id.

Lines are written to a stream (standard error) with one write each; a stream that fails is ignored, for a
full disk under a log must not stop a storage node. Secrets never get here by their names: keys that name
one are replaced, at any depth.
"""

from __future__ import annotations

import contextvars
import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import msgspec
import structlog

from node.limits import LOG_VALUE_CHARACTERS

LEVELS: dict[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
HIDDEN = "[hidden]"
_SECRET_WORDS = (
    "password", "passwd", "secret", "authorization", "signature", "token", "credential", "cookie",
    "private_key",
)  # fmt: skip
_DEEP = 6
_NAME = "request_id"

Event = MutableMapping[str, Any]


class _RequestId:
    """The request that the present task works for; tasks started by it inherit it."""

    def set(self, value: str) -> contextvars.Token[Any]:
        return structlog.contextvars.bind_contextvars(**{_NAME: value})[_NAME]

    def reset(self, token: contextvars.Token[Any]) -> None:
        structlog.contextvars.reset_contextvars(**{_NAME: token})

    def get(self) -> str:
        """ "" outside of a request."""
        return str(structlog.contextvars.get_contextvars().get(_NAME, ""))


request_id = _RequestId()


def current_request_id() -> str:
    """The request's id, "" outside of one."""
    return request_id.get()


def get_logger(name: str) -> Any:
    """A structlog logger whose lines carry `logger: name`."""
    return structlog.get_logger(name)


def configure(level: str = "info", stream: TextIO | None = None, *, node: str = "") -> None:
    """Set up this process's logs. `level`: debug, info, warning or error; `node`: the name in each line."""
    if level not in LEVELS:
        raise ValueError(f"log level {level!r}: one of {', '.join(LEVELS)}")
    out = stream if stream is not None else sys.stderr

    def name_source(lines: Any, __: str, event: Event) -> Event:
        event["logger"] = lines.name
        if node:
            event.setdefault("node", node)
        return event

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
            name_source,
            structlog.processors.format_exc_info,
            hide_secrets,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *names: _Lines(out, *names),
        cache_logger_on_first_use=False,
    )
    _adopt_standard_logging(LEVELS[level])


def hide_secrets(_: Any, __: str, event: Event) -> Event:
    """Replaces the value of every key that names a secret."""
    for key in event:
        event[key] = HIDDEN if _names_secret(key) else _hidden_below(event[key], _DEEP)
    return event


def _names_secret(key: object) -> bool:
    if not isinstance(key, str):
        return False
    name = key.lower().replace("-", "_")
    return any(word in name for word in _SECRET_WORDS)


def _hidden_below(value: Any, depth: int) -> Any:
    if depth == 0:
        return "..."
    if isinstance(value, Mapping):
        return {
            k: HIDDEN if _names_secret(k) else _hidden_below(v, depth - 1) for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_hidden_below(v, depth - 1) for v in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    # All else by its repr: a dataclass written out field by field would show what its repr hides.
    text = value if isinstance(value, str) else repr(value)
    half = LOG_VALUE_CHARACTERS // 2
    return text if len(text) <= 2 * half else f"{text[:half]} ... {text[-half:]}"


_FIRST_KEYS = ("timestamp", "level", "logger", "event", "node", _NAME)


def _render(_: Any, __: str, event: Event) -> str:
    ordered = {key: event.pop(key) for key in _FIRST_KEYS if key in event}
    ordered.update(event)
    return msgspec.json.encode(_plain_keys(ordered)).decode()


def _plain_keys(value: Any) -> Any:
    """JSON's object keys are strings."""
    if isinstance(value, dict):
        return {str(k): _plain_keys(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain_keys(v) for v in value]
    return value


class _Lines:
    """What structlog hands finished lines to."""

    def __init__(self, stream: TextIO, name: str = "holdfast") -> None:
        self._stream = stream
        self.name = name

    def msg(self, message: str) -> None:
        try:
            self._stream.write(message + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody can be told

    log = debug = info = warning = warn = error = critical = exception = fatal = msg


class _Bridge(logging.Handler):
    """Libraries log through the standard library: their warnings come out as lines like ours."""

    def emit(self, record: logging.LogRecord) -> None:
        extra: dict[str, Any] = {}
        if record.exc_info and record.exc_info[0] is not None:
            extra["exc_info"] = record.exc_info
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        write = getattr(get_logger(record.name), level if level in LEVELS else "info")
        write(record.getMessage(), **extra)


def _adopt_standard_logging(level: int) -> None:
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Bridge)]:
        root.removeHandler(handler)
    root.addHandler(_Bridge())
    # Libraries are heard from warnings on: below that they narrate each connection and each request.
    root.setLevel(max(level, logging.WARNING))
