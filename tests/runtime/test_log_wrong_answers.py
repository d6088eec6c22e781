"""A log that answers what no log may: it is contained, and nothing is lost by it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from chatx import ChatError, Message
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import Answer, Append, Found, Opened
from chatx.core.message import Position
from tests.logs import chat_on
from tests.virtual import virtual


class WrongLog(MemoryLog):
    """A log that answers one of its calls with what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.method = ""
        self.answer: Any = None

    async def look(self, room_id: str, /) -> Opened:
        right = await super().look(room_id)
        return self.answer if self.method == "look" else right

    async def take_over(self, room_id: str, /) -> Opened:
        right = await super().take_over(room_id)
        return self.answer if self.method == "take_over" else right

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        right = await super().append(appends)
        return self.answer if self.method == "append" else right

    async def read(
        self, room_id: str, /, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> Found:
        right = await super().read(room_id, after=after, before=before, limit=limit)
        return self.answer if self.method == "read" else right


class Unreadable(list[None]):
    """A list that cannot be read."""

    def __iter__(self) -> Any:
        raise RuntimeError("no")


_AT = Position("e", 1)

# Built as anybody may build one: nothing checks what is in it.
_opened: Any = Opened
_found: Any = Found

WRONG: dict[str, list[Any]] = {
    "look, take_over": [
        None,
        _opened("1", _AT, 1, True),
        _opened(1, "e:1", 1, True),
        _opened(1, _AT, None, True),
        _opened(1, _AT, 1, 1),
        _opened(1, _AT, 1, True, None),
        _opened(1, _AT, 1, True, ("k",)),
    ],
    "append": [None, [], [True], [False], ["", ""], "x", [b"fenced"], Unreadable([None])],
    "read": [None, [], _found(None, None), _found(("x",), None), _found((), 3)],
}
CASES = [(method, answer) for methods, wrong in WRONG.items() for method in methods.split(", ") for answer in wrong]


@pytest.mark.parametrize("method, answer", CASES, ids=[f"{method}-{n}" for n, (method, _) in enumerate(CASES)])
@virtual
async def test_a_wrong_answer_of_a_log_is_contained_and_nothing_is_lost_by_it(method: str, answer: Any) -> None:
    log = WrongLog()
    chat = chat_on(log, adapter_timeout_ms=500, history_size=1)
    async with chat:
        log.method, log.answer = method, answer
        answers: list[Any] = []
        for number in range(3):
            try:
                answers.append(await chat.send_message("a", "ann", str(number), durability="stored"))
            except ChatError as error:
                answers.append(error)
            try:
                await chat.history("a", limit=5)
            except ChatError:
                pass
            await asyncio.sleep(1)
        log.method = ""
        await asyncio.sleep(10)
        last = await chat.send_message("a", "ann", "last", durability="stored")
        assert last.stored
        assert chat.dead_letters == ()
        kept = [each.entry.content for each in log.records("a")]
        assert kept == [each.content for each in await chat.history("a")]
        assert [each.content for each in answers if isinstance(each, Message)] == [
            each for each in kept if each in {each.content for each in answers if isinstance(each, Message)}
        ]
        assert len(set(kept)) == len(kept)
