"""What a server writes to its log: lines for a person on a terminal, JSON for a machine elsewhere.

Rules:
1. One record is one line: control characters are escaped, so nobody writes a line of their own into the log. For a
   person a traceback follows, each line behind `  | `, with which no record begins.
2. What looks like a token is not written, whoever logged it.
3. What `extra` brings has the place of none of the fields that every record has, and raises nothing.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from msgspec import json

FORMATS = ("auto", "human", "json")

LEVELS = ("debug", "info", "warning", "error")

# The three parts of a JWT; the token of a session that polls; what follows the subprotocol, the header's scheme, and
# the parameters and headers that carry a token. A group is what stays.
_SECRETS = re.compile(
    r"eyJ[\w-]*\.[\w-]+\.[\w-]*"
    r"|chatx-lp\.[\w-]+\.[0-9]+"
    r"|(base64url\.bearer\.phx\.)[\w=-]+"
    r"|(bearer(?:\s|%20|\+)+)[^\s&'\",]+"
    r"|(token=)[^\s&'\"]+"
    r"|(x-phoenix-(?:authtoken|longpoll-token)['\"]?\s*[:=,]\s*(?:b?['\"])?)[^\s'\",]+",
    re.IGNORECASE,
)
_REDACTED = "[redacted]"
# The C0 and C1 controls but the newlines of a traceback, which the formatters handle; what turns text around.
_CONTROLS = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_BELOW = "  | "
_DEPTH = 4
"""Levels of what `extra` brings that are written; it may contain itself."""

_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[31m"}


def log_to(stream: TextIO | None = None, *, style: str = "auto", level: str = "info") -> None:
    """Write what chatx and the libraries below it log to a stream, by default to stderr.

    Args:
        stream: Where to.
        style: One of `FORMATS`; `auto` is `human` on a terminal, else `json`.
        level: One of `LEVELS`; of what is not chatx's own, warnings are the least.
    """
    target = sys.stderr if stream is None else stream
    human = style == "human" or (style == "auto" and target.isatty())
    handler = logging.StreamHandler(target)
    handler.setFormatter(Human(colours=target.isatty()) if human else Json())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("chatx").setLevel(level.upper())


class Human(logging.Formatter):
    """`08:31:02 warning  what happened`, with a traceback below it where there is one."""

    def __init__(self, *, colours: bool = False) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        line = f"{at} {record.levelname.lower():8} {_one_line(record.getMessage())}"
        colour = _COLOURS.get(record.levelno)
        if self._colours and colour:
            line = f"{colour}{line}\x1b[0m"
        failure = _failure(record)
        below = _clean(failure).split("\n") if failure else []
        return "\n".join([line, *(_BELOW + each for each in below)])


class Json(logging.Formatter):
    """One object a line: `time` in UTC, `level`, `logger`, `message`, what `extra` gave, and a traceback as `error`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, Any] = {
            _text(name): _plain(value) for name, value in vars(record).items() if name not in _STANDARD
        }
        fields |= {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _one_line(record.getMessage()),
        }
        failure = _failure(record)
        if failure:
            fields["error"] = _clean(failure)
        return json.encode(fields).decode()


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _failure(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[1] is not None:
        return "".join(traceback.format_exception(record.exc_info[1])).rstrip()
    return ""


def _clean(text: str) -> str:
    """Return a text without tokens, and without what a terminal or a reader of lines would obey."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], _SECRETS.sub(_redacted, text))


def _redacted(found: re.Match[str]) -> str:
    return (found[found.lastindex] if found.lastindex else "") + _REDACTED


def _one_line(text: str) -> str:
    return _clean(text).replace("\n", "\\n")


def _plain(value: object, depth: int = _DEPTH) -> Any:
    """Return a value as JSON can hold it, each text in it clean."""
    if value is None or type(value) in (bool, float) or (type(value) is int and abs(value) < 2**63):
        return value
    if depth and isinstance(value, dict):
        return {_text(key): _plain(each, depth - 1) for key, each in value.items()}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each, depth - 1) for each in value]
    return _text(value)


def _text(value: object) -> str:
    try:
        return _one_line(str(value))
    except Exception:  # a text that cannot be had
        return type(value).__name__
