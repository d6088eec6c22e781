"""The page on writing a client says what the code does: reasons, close codes, limits, and times."""

import re
from typing import get_args

from chatx.core.message import Unrecovered
from chatx.gateway.describe.asyncapi import document
from chatx.gateway.wire.closes import CLOSES
from tests.docs.markdown import ROOT, prose, rows

PAGE = ROOT / "docs" / "client.md"
LIMITS = {name: limit["default"] for name, limit in document()["x-limits"].items()}


def _numbers(text: str) -> set[int]:
    return {int(number.replace(",", "")) for number in re.findall(r"(?<!-)\b\d[\d,]*", text)}


def _section(heading: str) -> str:
    return prose(PAGE).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_it_says_what_to_do_for_each_reason_of_an_unrecovered_resume() -> None:
    said = " ".join(reply for reply, _ in rows(PAGE, "the reply", "what you do"))
    assert set(re.findall(r"`([a-z]+_[a-z]+)`", said)) == set(get_args(Unrecovered))


def test_it_says_what_to_do_for_each_close_code() -> None:
    said = [code for codes, _ in rows(PAGE, "code", "what you do") for code in _numbers(codes)]
    assert sorted(said) == sorted({1006, *CLOSES})


def test_its_limits_are_those_of_the_code() -> None:
    elsewhere = {"silence_s", "heartbeat_s", "waiting_frames", "fragments", "control_frames_per_s"}
    as_words = {"frame_bytes": "64 KiB", "unread_bytes": "1 MiB"}
    told = {value for name, value in LIMITS.items() if name not in elsewhere | set(as_words)}
    assert [LIMITS[name] for name in as_words] == [64 * 1024, 1024**2]
    # 1 is the least size of an id too, and 1013 a close code.
    assert _numbers(_section("Limits")) == told | {64, 1, 1013}
    for words in as_words.values():
        assert words in _section("Limits")


def test_its_heartbeat_is_in_time() -> None:
    heartbeat, silence = LIMITS["heartbeat_s"], LIMITS["silence_s"]
    assert _numbers(re.sub(r'"\d"', "", _section("Heartbeat"))) == {heartbeat, silence, 1001}
    assert f"; {LIMITS['waiting_frames']} frames may" in _section("Join")
