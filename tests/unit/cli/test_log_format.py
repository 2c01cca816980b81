"""The daemon's log as JSON: one object a line, stable keys, values with their types."""

import ast
import io
import json
import logging
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ffstream
from ffstream.cli import log_format
from ffstream.server.rejections import RejectionLog
from tests.harness.commands import COMMAND_S

PACKAGE = Path(ffstream.__file__).parent


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Gets the JSON lines of the logger `test` and of the package."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(log_format.JsonFormatter())
    loggers = [logging.getLogger(name) for name in ("test", "ffstream")]
    for each in loggers:
        each.addHandler(handler)
    yield stream
    for each in loggers:
        each.removeHandler(handler)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("template", "arguments", "event", "fields"),
    [
        ("stopped late=%s", ("none",), "stopped", {"late": "none"}),
        (
            "checkpoint written seq=%d bytes=%d seconds=%.2f",
            (64, 812, 0.01999),
            "checkpoint written",
            {"seq": 64, "bytes": 812, "seconds": 0.02},
        ),
        (
            "no keys accepted path=%s error=%s",
            (Path("/k"), "no b=c"),
            "no keys accepted",
            {"path": "/k", "error": "no b=c"},
        ),
        ("failed seq=%d error=%r", (7, "it's a=b"), "failed", {"seq": 7, "error": "it's a=b"}),
        (
            "samples are rejected code=%s: %s",
            ("disk_full", "full at=9"),
            "samples are rejected",
            {"code": "disk_full", "at": 9},
        ),
        ("layer %s layer=%d share=%.4f", ("dead", 1, math.nan), "layer dead", {"layer": 1, "share": None}),
        ("starts paused applied=%d: ffstream resume", (3,), "starts paused", {"applied": 3}),
        (
            "reloaded %s; options are read once",
            ("learn_keys=2 predict_keys=1",),
            "reloaded",
            {"learn_keys": 2, "predict_keys": 1},
        ),
        (
            "%s socket=%s count=%d %s",
            ("rejected", "learn", 2, "client='a b=1' hint=\"it's\""),
            "rejected",
            {"socket": "learn", "count": 2, "client": "a b=1", "hint": "it's"},
        ),
        ("100%% of seq=%d", (1,), "100% of", {"seq": 1}),
        ("Invalid HTTP request received.", (), "Invalid HTTP request received.", {}),
        ("%s", ("first line a=1\nsecond b=2",), "first line", {"a": 1}),
    ],
)
def test_an_event_is_split_into_its_name_and_its_fields(
    template: str, arguments: tuple[object, ...], event: str, fields: dict[str, object]
) -> None:
    assert log_format.split(template, arguments) == (event, fields)


def test_a_line_has_the_stable_keys_and_the_whole_message(stream: io.StringIO) -> None:
    logging.getLogger("test").warning("drift detected seq=%d error=%.2f", 9, 0.256)
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "warning",
        "logger": "test",
        "event": "drift detected",
        "message": "drift detected seq=9 error=0.26",
        "seq": 9,
        "error": 0.26,
    }


def test_a_traceback_is_one_field_of_one_line(stream: io.StringIO) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("test").exception("thread failed name=%s", "ff-learn")
    (line,) = lines(stream)
    assert (line["event"], line["name"]) == ("thread failed", "ff-learn")
    assert line["exception"].startswith("Traceback (most recent call last)")
    assert line["exception"].endswith("ValueError: two\nlines")


def test_a_value_of_a_client_cannot_replace_a_stable_key_or_begin_a_new_line(stream: io.StringIO) -> None:
    """A client chooses its name and can make the daemon write it."""
    name = "x\n{} level=info event=nothing\u2028 key='"
    RejectionLog("message rejected", "learn").add("bad_header", f"client={name!r} level=debug")
    (line,) = lines(stream)
    assert (line["level"], line["event"], line["client"]) == ("warning", "message rejected", name)
    assert stream.getvalue().isascii()


def test_a_counted_rejection_keeps_its_traceback(stream: io.StringIO) -> None:
    try:
        raise RuntimeError("in the application")
    except RuntimeError:
        RejectionLog("http server", "http").add("error", "Exception in ASGI application", exc_info=sys.exc_info())
    (line,) = lines(stream)
    assert (line["event"], line["reason"], line["count"]) == ("http server", "error", 1)
    assert "RuntimeError: in the application" in line["exception"]


def test_what_python_itself_reports_is_json_too() -> None:
    """A warning, an exception that ends a thread, one in a finalizer, and one that ends the process."""
    program = """
import sys, threading, warnings
from ffstream.cli.log_format import configure
configure("json", "info", sys.stderr)
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
class Finalized:
    def __del__(self):
        raise KeyError("gone")
Finalized()
raise ValueError("the end")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", timeout=COMMAND_S, check=False
    )
    assert done.returncode == 1
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in found][1:] == ["uncaught exception", "ignored exception", "uncaught exception"]
    assert "UserWarning: old" in found[0]["message"]
    assert found[1]["thread"] == "worker"
    errors = [line["exception"].splitlines()[-1] for line in found[1:]]
    assert errors == ["ZeroDivisionError: division by zero", "KeyError: 'gone'", "ValueError: the end"]


def _templates() -> Iterator[tuple[str, str]]:
    """The file and the template of each call of `log` in the package."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "log":
                for value in (each.value for each in node.args[:2] if isinstance(each, ast.Constant)):
                    yield str(path.relative_to(PACKAGE)), str(value)


def test_no_log_line_has_a_field_with_the_name_of_a_stable_key() -> None:
    found = list(_templates())
    assert len(found) > 30
    for path, template in found:
        keys = re.findall(r"(?:^|\s)([a-z0-9_]+)=", template)
        assert not set(keys) & set(log_format.RESERVED), f"{path}: {template}"


@pytest.mark.parametrize("written", ["\\x", "\\N{zz}", "a\0b", "\ud800", "\\u12", "\\U99999999"])
def test_quoted_text_that_is_not_pythons_stays_as_it_is(written: str) -> None:
    assert log_format.split("%s", (f"found at='{written}'",)) == ("found", {"at": written})
