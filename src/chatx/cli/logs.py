"""What a server writes to its log: lines for a person on a terminal, JSON for a machine elsewhere.

Rules:
1. One record is one line: control characters are escaped, so nobody writes a line of their own into the log. For a
   person a traceback follows, each line behind `  | `, with which no record begins.
2. What looks like a token is not written, whoever logged it.
3. A field that `extra` brings takes the place of none that every record has, and cannot make the writing of a line
   raise.
4. A line has a bound, whatever comes in: `TEXT` characters for a text, `FAILURE` for a traceback, `EXTRA` for all that
   `extra` brings, in `FIELDS` fields and as many values within them. What is left out is said.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, TextIO

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

TEXT: Final = 2_000
"""Characters of a message, and of one text of what `extra` brings."""

FAILURE: Final = 16_000
"""Characters of a traceback; its middle is left out."""

FIELDS: Final = 200
"""Fields of what `extra` brings, and values within them."""

EXTRA: Final = 16_000
"""Characters of all that `extra` brings."""

_LEFT_OUT = "... (more is left out)"

_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[31m"}


def log_to(
    stream: TextIO | None = None,
    *,
    style: str = "auto",
    level: str = "info",
    worker: str | None = None,
    colours: bool | None = None,
) -> None:
    """Write what chatx and the libraries below it log to a stream, by default to stderr.

    Args:
        stream: Where the lines go.
        style: One of `FORMATS`; `auto` is `human` on a terminal, else `json`.
        level: One of `LEVELS`. Of other loggers than chatx's, only warnings and worse are written whatever it is.
        worker: The name of this process among several that write to one log, or None where it is alone.
        colours: Whether a person's lines have colours; on a terminal, where it is not said.
    """
    target = sys.stderr if stream is None else stream
    human = style_of(target, style) == "human"
    handler = logging.StreamHandler(target)
    colours = target.isatty() if colours is None else colours
    handler.setFormatter(Human(colours=colours, worker=worker) if human else Json(worker))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("chatx").setLevel(level.upper())


def style_of(stream: TextIO, style: str) -> str:
    """Return `human` or `json`: what a style means for a stream."""
    return ("human" if stream.isatty() else "json") if style == "auto" else style


class Human(logging.Formatter):
    """`08:31:02 warning  what happened`, with a traceback below it where there is one; ahead of it a worker's name."""

    def __init__(self, *, colours: bool = False, worker: str | None = None) -> None:
        super().__init__()
        self._colours = colours
        self._from = "" if worker is None else f"[{worker}] "

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        line = f"{at} {record.levelname.lower():8} {self._from}{_one_line(record.getMessage())}"
        colour = _COLOURS.get(record.levelno)
        if self._colours and colour:
            line = f"{colour}{line}\x1b[0m"
        failure = _failure(record)
        below = failure.split("\n") if failure else []
        return "\n".join([line, *(_BELOW + each for each in below)])


class Json(logging.Formatter):
    """One object a line: `time` in UTC, `level`, `logger`, `message`, what `extra` gave, and a traceback as `error`.

    Of several workers each says by `worker` which one it is.
    """

    def __init__(self, worker: str | None = None) -> None:
        super().__init__()
        self._from = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = (
            _Extra().of(record)
            | self._from
            | {
                "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": _one_line(record.getMessage()),
            }
        )
        failure = _failure(record)
        if failure:
            fields["error"] = failure
        return json.encode(fields).decode()


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _failure(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[1] is not None:
        return _clean("".join(traceback.format_exception(record.exc_info[1])).rstrip(), FAILURE, end=FAILURE // 2)
    return ""


def _clean(text: str, most: int, *, end: int = 0) -> str:
    """Return at most about `most` characters of a text, the last `end` of it among them.

    They are without tokens, and without what a terminal or a reader of lines would obey.
    """
    # Cut before, so that it takes no time, with room for a token that begins where it is cut; and after, as it grows.
    text = _cut(text, 2 * most, 2 * end)
    text = _CONTROLS.sub(lambda found: repr(found[0])[1:-1], _SECRETS.sub(_redacted, text))
    return _cut(text, most, end)


def _cut(text: str, most: int, end: int) -> str:
    left_out = len(text) - most
    if left_out <= 0:
        return text
    return f"{text[: most - end]}...({left_out} characters)...{text[len(text) - end :]}"


def _redacted(found: re.Match[str]) -> str:
    return (found[found.lastindex] if found.lastindex else "") + _REDACTED


def _one_line(text: str) -> str:
    return _clean(text, TEXT).replace("\n", "\\n")


class _Extra:
    """What `extra` gave one record, as JSON can hold it, each text in it clean, within the bounds of a line."""

    def __init__(self) -> None:
        self._values = FIELDS
        self._characters = EXTRA

    def of(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the fields that `extra` gave a record; the last one says where some are left out."""
        given = [name for name in vars(record) if name not in _STANDARD]
        fields = {self._text(name): self._plain(vars(record)[name], _DEPTH) for name in given[:FIELDS]}
        return fields if len(given) <= FIELDS else fields | {"...": _LEFT_OUT}

    def _within(self, values: Iterable[Any]) -> Iterator[Any]:
        """Yield the values, as many as the line may still hold."""
        for each in values:
            if not self._values:
                return
            self._values -= 1
            yield each

    def _plain(self, value: object, depth: int) -> Any:
        if value is None or type(value) in (bool, float) or (type(value) is int and abs(value) < 2**63):
            return value
        if depth and isinstance(value, dict):
            pairs = {self._text(key): self._plain(value[key], depth - 1) for key in self._within(value)}
            return pairs if self._values else pairs | {"...": _LEFT_OUT}
        if depth and isinstance(value, (list, tuple, set, frozenset)):
            items = [self._plain(each, depth - 1) for each in self._within(value)]
            return items if self._values else [*items, _LEFT_OUT]
        return self._text(value)

    def _text(self, value: object) -> str:
        try:
            text = _one_line(str(value))
        except Exception:  # a text that cannot be had
            text = type(value).__name__
        if len(text) > self._characters:
            text = "..."
        self._characters -= len(text)
        return text
