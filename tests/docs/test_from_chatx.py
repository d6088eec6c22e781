"""The page for those who come from Chatx agrees with the code: options with their defaults, and events."""

import re
from dataclasses import fields

from chatx import ChatConfig, telemetry
from tests.docs.markdown import ROOT, rows

PAGE = ROOT / "docs" / "from-chatx.md"


def test_the_options_have_the_defaults_that_the_page_gives() -> None:
    options = {option.name for option in fields(ChatConfig)}
    numbers = {}
    for name, default, _ in rows(PAGE, "option", "default", "what differs"):
        named = set(re.findall(r"`(\w+)`", name))
        assert named <= options
        if re.fullmatch(r"[\d,]+", default):
            numbers.update(dict.fromkeys(named, int(default.replace(",", ""))))
        elif default.startswith("none"):
            assert all(getattr(ChatConfig(), each) is None for each in named)
        elif default.startswith("`"):
            (each,) = named
            assert repr(getattr(ChatConfig(), each)).replace("'", '"') == default.strip("`")
    assert len(numbers) == 6
    assert numbers == {name: getattr(ChatConfig(), name) for name in numbers}


def test_the_rate_limit_is_the_one_that_the_page_gives() -> None:
    (row,) = [cells for cells in rows(PAGE, "option", "default", "what differs") if cells[0] == "`rate_limit`"]
    limit = ChatConfig().rate_limit
    assert [float(number) for number in re.findall(r"\d+", row[1])] == [limit.messages_per_sec, limit.burst]


def test_the_events_exist() -> None:
    named = [name for cells in rows(PAGE, "event", "what differs") for name in re.findall(r"`(\w+)`", cells[0])]
    assert len(named) == 7
    assert set(named) <= set(re.findall(r"^\| `(\w+)`", telemetry.__doc__ or "", re.MULTILINE))
