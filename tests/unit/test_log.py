"""Log lines: JSON, their fixed members, the request's id, and no secrets."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from node.limits import LOG_VALUE_CHARACTERS
from node.observe import log


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    out = io.StringIO()
    log.configure("info", out, node="node1:9002")
    yield out
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_its_fixed_members_first(stream: io.StringIO) -> None:
    token = log.request_id.set("4f21")
    log.get_logger("holdfast.s3").warning("slow", seconds=2.5)
    log.request_id.reset(token)
    (line,) = lines(stream)
    assert list(line)[:6] == ["timestamp", "level", "logger", "event", "node", "request_id"]
    assert line["timestamp"].endswith("Z")
    del line["timestamp"]
    assert line == {
        "level": "warning",
        "logger": "holdfast.s3",
        "event": "slow",
        "node": "node1:9002",
        "request_id": "4f21",
        "seconds": 2.5,
    }


def test_a_logger_made_before_the_set_up_follows_it() -> None:
    early = log.get_logger("early")
    out = io.StringIO()
    try:
        log.configure("info", out)
        early.info("hello")
    finally:
        structlog.reset_defaults()
    assert lines(out)[0]["logger"] == "early"
    assert "node" not in lines(out)[0] and "request_id" not in lines(out)[0]


def test_levels(stream: io.StringIO) -> None:
    logger = log.get_logger("x")
    logger.debug("no")
    logger.info("yes")
    log.configure("error", stream)
    logger.warning("no")
    logger.error("yes")
    assert [line["event"] for line in lines(stream)] == ["yes", "yes"]
    with pytest.raises(ValueError, match="debug, info, warning, error"):
        log.configure("chatty", stream)


@dataclass
class Credentials:
    user: str
    word: str = field(repr=False)


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "root_password",
        "secret",
        "secret_key",
        "SecretAccessKey",
        "Authorization",
        "signature",
        "X-Amz-Signature",
        "x-amz-security-token",
    ],
)
def test_secrets_never_show(stream: io.StringIO, key: str) -> None:
    log.get_logger("x").info("e", **{key: "hunter2"})
    log.get_logger("x").info("e", headers={"Host": "h", key: "hunter2"})
    log.get_logger("x").info("e", deep=[{"a": ({key: b"hunter2"},)}])
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count(log.HIDDEN) == 3
    assert lines(stream)[1]["headers"]["Host"] == "h"


def test_objects_show_their_repr_not_their_fields(stream: io.StringIO) -> None:
    log.get_logger("x").info("e", who=Credentials("root", "hunter2"), raw=b"\xff", none=None)
    (line,) = lines(stream)
    assert "hunter2" not in stream.getvalue() and "root" in line["who"]
    assert line["raw"] == r"b'\xff'" and line["none"] is None


def test_long_values_are_cut_and_keep_both_ends(stream: io.StringIO) -> None:
    log.get_logger("x").info("e", text="a" + "x" * 10 * LOG_VALUE_CHARACTERS + "z")
    text = lines(stream)[0]["text"]
    assert len(text) <= LOG_VALUE_CHARACTERS + 5
    assert text.startswith("ax") and text.endswith("xz")


def test_exceptions_are_one_line(stream: io.StringIO) -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        log.get_logger("x").error("failed", exc_info=True)
    (line,) = lines(stream)
    assert "RuntimeError: broken" in line["exception"]


def test_standard_logging_comes_out_alike(stream: io.StringIO) -> None:
    logging.getLogger("library").info("connected")
    logging.getLogger("library").warning("lost %s", "it")
    logging.getLogger("library").critical("dead")
    found = lines(stream)
    assert [(line["logger"], line["level"], line["event"]) for line in found] == [
        ("library", "warning", "lost it"),
        ("library", "error", "dead"),
    ]


def test_setting_up_twice_does_not_double_lines(stream: io.StringIO) -> None:
    log.configure("info", stream)
    logging.getLogger("library").warning("once")
    assert len(lines(stream)) == 1


async def test_request_ids_do_not_leak_between_tasks(stream: io.StringIO) -> None:
    async def work(name: str) -> str:
        log.request_id.set(name)
        await asyncio.sleep(0)
        log.get_logger("x").info(name)
        return log.current_request_id()

    assert list(await asyncio.gather(work("a"), work("b"))) == ["a", "b"]
    assert log.current_request_id() == ""
    assert {(line["event"], line["request_id"]) for line in lines(stream)} == {
        ("a", "a"),
        ("b", "b"),
    }


def test_an_id_bound_by_structlog_itself_is_the_same_id(stream: io.StringIO) -> None:
    structlog.contextvars.bind_contextvars(request_id="r9")
    assert log.current_request_id() == "r9"


def test_a_broken_stream_stops_nobody() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    closed = io.StringIO()
    closed.close()
    try:
        for stream in (Full(), closed):
            log.configure("info", stream)
            log.get_logger("x").error("lost")
    finally:
        structlog.reset_defaults()
