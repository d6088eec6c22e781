"""What a server logs: one line a record, for a person or a machine, and no tokens."""

from __future__ import annotations

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.cli.logs import Human, Json, log_to

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(message: str, *arguments: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("chatx", logging.WARNING, "here.py", 1, message, arguments, None)
    vars(made).update(more)
    return made


def failed() -> logging.LogRecord:
    try:
        raise ValueError(f"\x1b[2Jit was {TOKEN}")
    except ValueError as error:
        made = record("It failed.")
        made.exc_info = (type(error), error, error.__traceback__)
        return made


@pytest.mark.parametrize("stream, human", [(io.StringIO, False), (Terminal, True)])
def test_a_terminal_gets_lines_to_read_and_everything_else_json(
    stream: type[io.StringIO], human: bool, quiet_logging: None
) -> None:
    out = stream()
    log_to(out)
    logging.getLogger("chatx").info("Ready.")
    logging.getLogger("chatx").debug("Not this.")
    logging.getLogger("asyncio").info("Nor this.")

    written = out.getvalue()
    assert written.count("\n") == 1
    if human:
        assert written.endswith(" info     Ready.\n")
    else:
        assert {"level": "info", "logger": "chatx", "message": "Ready."}.items() <= json.loads(written).items()


def test_a_style_and_a_level_may_be_named(quiet_logging: None) -> None:
    out = Terminal()
    log_to(out, style="json", level="error")
    logging.getLogger("chatx").warning("Not this.")
    logging.getLogger("chatx").error("This.", extra={"room_id": "a", "error_code": object})

    assert json.loads(out.getvalue())["room_id"] == "a"


@given(st.text())
def test_a_record_is_one_line_whatever_is_in_it(text: str) -> None:
    for line in (Human().format(record("%s", text)), Json().format(record("%s", text))):
        assert len(line.splitlines()) == 1
        assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in line)
        line.encode()


@pytest.mark.parametrize(
    "message",
    [
        f"GET /socket/websocket?vsn=2.0.0&token={TOKEN}&x=1",
        "GET /socket/websocket?token=opaque-text-of-a-token",
        f"Authorization: Bearer {TOKEN}",
        "authorization: bearer opaque-text-of-a-token",
        "base64url.bearer.phx.b3BhcXVlLXRleHQtb2YtYS10b2tlbg",
        f"somebody said {TOKEN} aloud",
    ],
)
def test_tokens_are_not_written(message: str) -> None:
    for formatter in (Human(), Json()):
        line = formatter.format(record("%s", message))
        assert "[redacted]" in line
        for secret in (TOKEN, TOKEN.split(".", maxsplit=1)[1], "opaque-text", "b3BhcXVl"):
            assert secret not in line


def test_a_traceback_follows_for_a_person_and_is_a_field_for_a_machine_and_both_are_clean() -> None:
    human, machine = Human().format(failed()), json.loads(Json().format(failed()))

    assert human.splitlines()[0].endswith("warning  It failed.")
    assert human.splitlines()[-1] == "ValueError: \\x1b[2Jit was [redacted]"
    assert machine["message"] == "It failed."
    assert machine["error"].splitlines()[-1] == human.splitlines()[-1]


def test_on_a_terminal_a_warning_has_its_colour_and_a_message_brings_none_of_its_own() -> None:
    line = Human(colours=True).format(record("red \x1b[31m text"))

    assert line.startswith("\x1b[33m")
    assert line.endswith("red \\x1b[31m text\x1b[0m")
