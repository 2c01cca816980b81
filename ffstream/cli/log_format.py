"""The daemon's log: lines of text, or one JSON object a line.

    {"time": "2026-11-27T23:23:06.412Z", "level": "info", "logger": "ffstream.checkpoint.writer",
     "event": "checkpoint written", "message": "checkpoint written seq=4096 bytes=812 seconds=0.02",
     "seq": 4096, "bytes": 812, "seconds": 0.02}

`message` is what the text format shows, without its first three columns. `event` is the part of it before the first
field, which is the same whenever the event occurs. `exception` is there if there is one: the whole traceback. Every
other key is a field of the event; a field never replaces one of these keys.
"""

import ast
import json
import logging
import math
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal, TextIO, get_args

from ffstream.errors import FFStreamError

log = logging.getLogger(__name__)

LogFormat = Literal["text", "json"]
LOG_FORMATS = get_args(LogFormat)
RESERVED = ("time", "level", "logger", "event", "message", "exception")

_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_CONVERSION = re.compile(r"%(?:%|[-+ #0]*\d*(?:\.\d+)?[a-zA-Z])")  # as in "%s %.2f"
_KEY = re.compile(r"(?:^|(?<=\s))([a-z][a-z0-9_]*)=$")
_WRITTEN = re.compile(r"""(?:^|(?<=\s))([a-z][a-z0-9_]*)=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s;]+)""")
_CUT = "\0"  # where a field was


def configure(format: LogFormat, level: str, stream: TextIO) -> None:
    """Writes the log of the process to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if format == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(handlers=[handler], level=level.upper())
    if format == "json":  # Python would write these as several lines
        logging.captureWarnings(True)
        sys.excepthook = lambda *error: log.critical("uncaught exception", exc_info=error)
        threading.excepthook = lambda error: log.critical(
            "uncaught exception thread=%s", error.thread and error.thread.name, exc_info=_exc_info(error)
        )
        sys.unraisablehook = lambda error: log.error("ignored exception", exc_info=_exc_info(error))


def _exc_info(error: Any) -> Any:
    return error.exc_type, error.exc_value, error.exc_traceback


def json_line(level: str, event: str, **fields: Any) -> str:
    """A line of the JSON format that is written and not logged. Safe in a signal handler."""
    message = " ".join([event, *(f"{key}={value}" for key, value in fields.items())])
    return _dump(time.time(), level, log.name, event, message, fields) + "\n"


def log_error(error: FFStreamError, exit_code: int) -> None:
    """Logs the error that ends the process."""
    message = "exit exit_code=%d code=%s error=%s hint=%s"
    log.error(message, exit_code, error.code, error.message, error.hint or None)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object without line breaks."""

    def format(self, record: logging.LogRecord) -> str:
        """The object, as ASCII. Never raises for values that JSON does not have: they become text."""
        message = record.getMessage()
        event, fields = split(str(record.msg), record.args)
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = self.formatException(record.exc_info)
        return _dump(record.created, record.levelname.lower(), record.name, event, message, fields)


def split(template: str, arguments: Any) -> tuple[str, dict[str, Any]]:
    """The name of the event and its fields, from the arguments of a logging call.

    >>> split("rolled back to=%d later=%s: %s", (7, "skipped", "done"))
    ('rolled back', {'to': 7, 'later': 'skipped'})
    """
    if not isinstance(arguments, tuple) or not arguments:
        return template.partition("\n")[0], {}
    text, fields, end = "", {}, 0
    values = iter(arguments)
    for conversion in _CONVERSION.finditer(template):
        text += template[end : conversion.start()]
        end = conversion.end()
        if conversion[0] == "%%":
            text += "%"
            continue
        value = next(values)
        if key := _KEY.search(text):
            fields[key[1]] = _plain(value, conversion[0])
            text = text[: key.start()] + _CUT
        else:  # part of the event's name, or text with fields of its own
            text += conversion[0] % (value,)
    text = (text + template[end:]).partition("\n")[0]
    for name, written in _written(text):
        fields.setdefault(name, written)
    return _WRITTEN.sub(_CUT, text).partition(_CUT)[0].strip(" :;,"), fields


def _written(text: str) -> Iterator[tuple[str, Any]]:
    """The fields that are already part of a text."""
    for key, value in _WRITTEN.findall(text):
        if value[0] in "'\"":
            yield key, _unquoted(value)
        else:
            yield key, int(value) if re.fullmatch(r"-?\d{1,18}", value) else value


def _unquoted(written: str) -> str:
    """The text that `repr` has written in quotes. As it is if something else has written it."""
    try:
        return str(ast.literal_eval(written))
    except (SyntaxError, ValueError):
        return written[1:-1]


def _plain(value: Any, conversion: str) -> Any:
    """A value for JSON. A float is rounded as the text format rounds it; NaN and infinity become null."""
    if isinstance(value, float):
        shown = float(conversion % value) if conversion[-1] in "efg" else value
        return shown if math.isfinite(shown) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _dump(created: float, level: str, logger: str, event: str, message: str, fields: dict[str, Any]) -> str:
    second, milliseconds = divmod(int(created * 1000), 1000)
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))}.{milliseconds:03}Z"
    line = {"time": stamp, "level": level, "logger": logger, "event": event, "message": message}
    return json.dumps(line | {key: value for key, value in fields.items() if key not in line})
