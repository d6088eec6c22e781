"""What a server logs: one line a record, for a person or a machine, and no tokens."""

from __future__ import annotations

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.cli.identity import named_by_itself
from chatx.cli.logs import EXTRA, FAILURE, TEXT, Human, Json, log_to
from chatx.core.log_limit import LogLimit
from chatx.gateway.entry.handshake import Handshake

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
        "AUTHORIZATION: BEARER opaque-text-of-a-token",
        "authorization: bearer  opaque-text-of-a-token",
        "GET /socket/longpoll?authorization=bearer%20opaque-text-of-a-token&x=1",
        "GET /socket/websocket?TOKEN=opaque-text-of-a-token",
        "x-phoenix-authtoken: opaque-text-of-a-token",
        "(b'X-Phoenix-AuthToken', b'opaque-text-of-a-token')",
        "{'x-phoenix-longpoll-token': 'opaque-text-of-a-token'}",
        f"it polls with chatx-lp.{'opaque-text' + 'x' * 32}.7 now",
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
    assert human.splitlines()[-1] == "  | ValueError: \\x1b[2Jit was [redacted]"
    assert machine["message"] == "It failed."
    assert machine["error"].splitlines()[-1] == "ValueError: \\x1b[2Jit was [redacted]"


def test_a_traceback_is_told_from_records_by_what_each_of_its_lines_begins_with() -> None:
    try:
        raise ValueError("oh\n08:31:02 info     Forged.\r\n08:31:03 info     Forged.\u2028Forged.")
    except ValueError as error:
        made = record("It failed.")
        made.exc_info = (type(error), error, error.__traceback__)
    first, *rest = Human().format(made).splitlines()

    assert first.endswith("It failed.")
    assert len(rest) > 3
    assert [line for line in rest if not line.startswith("  | ")] == []


def test_what_extra_brings_is_clean_and_takes_no_fields_place() -> None:
    extra = {
        "level": "info",
        "time": "never",
        "error": "none",
        "path": f"/socket?token={TOKEN}",
        "user": "a\ud800b\nc",
        "more": {"deep": [f"Bearer {TOKEN}", 1.5, None, True], "k\udc80": {"x": "\x1b[2J"}},
        "thing": ValueError(f"with {TOKEN}"),
        "data": b"\xff",
        "nan": float("nan"),
        "loop": [],
    }
    extra["loop"].append(extra["loop"])  # type: ignore[attr-defined]
    made = failed()
    vars(made).update(extra)
    line = Json().format(made)
    said = json.loads(line)

    assert TOKEN not in line
    assert len(line.splitlines()) == 1
    assert (said["level"], said["message"], said["logger"]) == ("warning", "It failed.", "chatx")
    assert said["time"] != "never"
    assert "ValueError" in said["error"]
    assert said["path"] == "/socket?token=[redacted]"
    assert said["user"] == "a\\ud800b\\nc"
    assert said["more"]["deep"] == ["Bearer [redacted]", 1.5, None, True]
    assert said["thing"] == "with [redacted]"


@given(
    st.dictionaries(
        st.from_regex(r"x[a-z]{0,3}", fullmatch=True),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner),
            max_leaves=5,
        ),
    )
)
def test_no_value_of_extra_raises(extra: dict[str, object]) -> None:
    line = Json().format(record("It is so.", **extra))
    assert set(extra) <= set(json.loads(line))
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("mark", ["\u200e", "\u200f", "\u061c", "\u202e", "\u2066"])
def test_what_turns_text_around_is_escaped(mark: str) -> None:
    for line in (Human().format(record("a%sb", mark)), Json().format(record("a%sb", mark))):
        assert mark not in line


def test_on_a_terminal_a_warning_has_its_colour_and_a_message_brings_none_of_its_own() -> None:
    line = Human(colours=True).format(record("red \x1b[31m text"))

    assert line.startswith("\x1b[33m")
    assert line.endswith("red \\x1b[31m text\x1b[0m")


LINE = 2 * (TEXT + FAILURE + EXTRA) + 20_000
"""Characters that no line is longer than; JSON writes some of them as two."""


def deep(levels: int) -> object:
    return [deep(levels - 1)] * 10 if levels else "x" * 5_000


@pytest.mark.parametrize("formatter", [Human(), Human(colours=True), Json()], ids=["human", "colours", "json"])
@pytest.mark.parametrize(
    "text",
    ["x", "\x00", "\n", "\udc80", "\\", '"', "é", "token=", TOKEN + " "],
    ids=["x", "nul", "line", "half", "slash", "quote", "accent", "parameter", "token"],
)
def test_no_line_is_longer_than_its_bound_whatever_comes_in(formatter: logging.Formatter, text: str) -> None:
    many = text * (50_000 // len(text))
    made = record("%s", many, room=many, code=[many] * 1000, **{f"field {n}": many for n in range(1000)})
    vars(made)[many] = {f"{many}{n}": many for n in range(300)}
    vars(made)["deep"] = deep(5)
    try:
        raise ValueError(many)
    except ValueError as error:
        made.exc_info = (type(error), error, error.__traceback__)
    line = formatter.format(made)
    assert len(line) <= LINE
    assert TOKEN not in line
    assert "characters)..." in line
    if isinstance(formatter, Json):
        assert "left out" in json.dumps(json.loads(line))


def test_of_a_traceback_that_is_too_long_the_beginning_and_the_end_are_written() -> None:
    try:
        raise ValueError("first " + "x" * 100_000 + " last")
    except ValueError as error:
        made = record("It failed.")
        made.exc_info = (type(error), error, error.__traceback__)
    failure = json.loads(Json().format(made))["error"]
    assert failure.startswith("Traceback")
    assert failure.endswith(" last")
    assert "ValueError: first" in failure


def test_what_a_line_is_about_are_fields_of_its_json() -> None:
    fields = json.loads(Json().format(record("Refused.", extra=1, room="general", user="می", address="::1", code=4003)))
    assert {"room": "general", "user": "می", "address": "::1", "code": 4003}.items() <= fields.items()


@pytest.mark.parametrize(
    "headers, said",
    [
        ({"host": "localhost", "via": "1.1 proxy", "x-real-ip": "203.0.113.7"}, "a proxy (via, x-real-ip)"),
        ({"host": "evil.example"}, "not for localhost"),
    ],
)
def test_who_may_not_name_themselves_is_a_line_a_minute_that_says_why_and_what_to_do(
    headers: dict[str, str], said: str, quiet_logging: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("chatx.cli.identity._LOGGED", {"proxy": LogLimit(1), "host": LogLimit(1)})
    monkeypatch.setattr("chatx.cli.identity.time.monotonic", lambda: now)
    out = io.StringIO()
    log_to(out)
    handshake = Handshake({"user_id": "ada"}, headers, {}, None, (), {"client": ("203.0.113.9", 1)})
    for _ in range(1000):
        assert named_by_itself(handshake) is None
    now += 60
    assert named_by_itself(handshake) is None
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["level"], first["address"]) == ("warning", "203.0.113.9")
    assert said in first["message"]
    assert "999 more" in second["message"]
    assert "CHATX_SECRET" in first["message"]


def test_a_worker_among_others_says_in_each_line_which_it_is() -> None:
    made = record("%s", "hello")
    assert Human(worker="host-4000-1").format(made).endswith(" warning  [host-4000-1] hello")
    assert json.loads(Json("host-4000-1").format(made))["worker"] == "host-4000-1"
    assert "worker" not in json.loads(Json().format(made))
