"""Whether a key is in the log of a busy room is found without reading the room for each that is asked for."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

import chatx.cluster.jetstream_keys as keys
from chatx.adapters.room_log import KEYS_KEPT_MS, Append, LogUnavailable, Record
from chatx.cluster.backplane import BackplaneAway
from chatx.cluster.jetstream import Stored
from chatx.cluster.jetstream_log import JetStreamLog
from chatx.core.message import Message, Position
from tests.cluster.memory_stream import MemoryStream

SAID = 300
BEGAN = datetime(2030, 1, 1, tzinfo=UTC)


class TimedStream(MemoryStream):
    """A stream of which each record is a second younger than the one before it, and which can stand still or fail."""

    def __init__(self) -> None:
        super().__init__("a" * 16)
        self.goes = asyncio.Event()
        self.goes.set()
        self.fails = False
        self.most_at_once = self._at_once = 0

    async def numbered(self, number: int) -> Stored | None:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await self.goes.wait()
        self._at_once -= 1
        if self.fails:
            raise BackplaneAway("away")
        stored = await super().numbered(number)
        at = (BEGAN + timedelta(seconds=number)).isoformat().replace("+00:00", ".123456789Z")
        return stored and msgspec.structs.replace(stored, time=at)


class Room:
    """A room in which each message has a key, `k1` and so on."""

    def __init__(self, log: JetStreamLog, room_id: str = "room") -> None:
        self.log = log
        self.room_id = room_id
        self.said = 0
        self.at_ms = time.time_ns() // 1_000_000

    async def begin(self, count: int = SAID) -> None:
        self.term = (await self.log.take_over(self.room_id)).term
        await self.say(count)

    async def say(self, count: int, key: str | None = None) -> None:
        for _ in range(count):
            after, self.said = self.said, self.said + 1
            message = Message(f"m{self.said}", self.room_id, "ann", "hi", self.at_ms, "e", self.said, stored=True)
            record = Record(message, key or f"k{self.said}")
            assert await self.log.append([Append(self.room_id, self.term, Position("e", after), (record,), True)]) == [
                None
            ]

    async def find(self, key: str, user: str = "ann") -> str | None:
        found = await self.log.find(self.room_id, user, key)
        return None if found is None else found.id


@pytest.fixture
def stream() -> TimedStream:
    return TimedStream()


@pytest.fixture
async def room(stream: TimedStream) -> Room:
    room = Room(JetStreamLog(stream))
    await room.begin()
    stream.reads = 0
    return room


async def test_a_room_is_read_once_for_all_who_ask(stream: TimedStream, room: Room) -> None:
    asked = [f"k{number}" for number in range(1, SAID + 1, 30)]
    found = await asyncio.gather(*map(room.find, asked), *(room.find(f"new {number}") for number in range(40)))
    assert found == [f"m{key[1:]}" for key in asked] + [None] * 40
    assert stream.reads == SAID + 50 + len(asked)  # the keyed ones, the newest for each, and those that were found
    assert await room.find("k1", "bob") is None


async def test_what_was_said_since_is_read_and_no_more(stream: TimedStream, room: Room) -> None:
    assert await room.find("k9999") is None
    await room.say(5)
    stream.reads = 0
    assert await room.find(f"k{SAID + 1}") == f"m{SAID + 1}"
    assert stream.reads <= 2 + 32  # a trail
    assert await room.find("k7") == "m7"


async def test_the_first_message_of_a_key_is_the_answer(room: Room) -> None:
    await room.say(1, "k3")
    assert await room.find("k3") == "m3"
    await room.say(1, "k3")
    assert await room.find("k3") == "m3"


async def test_who_waits_no_longer_has_not_asked_for_nothing(stream: TimedStream, room: Room) -> None:
    stream.goes.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await room.find("k1")
    stream.goes.set()
    assert await room.find("k1") == "m1"
    assert stream.reads <= SAID + 3


async def test_a_read_that_fails_is_told_to_all_and_is_made_anew(stream: TimedStream, room: Room) -> None:
    stream.fails = True
    told = await asyncio.gather(*(room.find("k1") for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in told] == [LogUnavailable] * 3
    stream.fails = False
    assert await room.find("k1") == "m1"


async def test_where_the_link_was_lost_all_is_read_anew(stream: TimedStream, room: Room) -> None:
    assert await room.find("k1") == "m1"
    stream.losses += 1
    stream.reads = 0
    assert await room.find("k1") == "m1"
    assert stream.reads >= SAID
    stream.losses += 1
    stream.goes.clear()
    asking = asyncio.ensure_future(room.find("k1"))
    await asyncio.sleep(0.01)
    stream.losses += 1
    stream.goes.set()
    with pytest.raises(LogUnavailable, match="link was lost"):
        await asking


async def test_keys_are_looked_for_as_far_back_as_they_have_to_answer(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "READ_BACK_S", 200.0)
    assert [await room.find(f"k{number}") for number in (SAID - 199, 50)] == [f"m{SAID - 199}", None]


async def test_keys_that_are_kept_no_longer_are_not_looked_for(stream: TimedStream) -> None:
    room = Room(JetStreamLog(stream))
    room.at_ms -= KEYS_KEPT_MS + 60_000
    await room.begin()
    room.at_ms = time.time_ns() // 1_000_000
    await room.say(10)
    stream.reads = 0
    assert [await room.find(key) for key in (f"k{SAID + 1}", "k1")] == [f"m{SAID + 1}", None]
    assert stream.reads < 2 * 32


async def test_keys_are_bounded_and_those_of_the_room_asked_for_longest_ago_go(
    stream: TimedStream, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "KEYS", 350)
    other = Room(room.log, "other")
    await other.begin(200)
    for each in (room, other):
        assert await each.find("k150") == "m150"
    stream.reads = 0
    assert (await other.find("k1"), stream.reads) == ("m1", 2)
    assert await room.find("k1") == "m1"
    assert stream.reads >= SAID
    await room.say(100)
    assert [await room.find(f"k{number}") for number in (1, 60, SAID + 100)] == [None, "m60", f"m{SAID + 100}"]


async def test_few_rooms_are_read_at_a_time(stream: TimedStream) -> None:
    log = JetStreamLog(stream)
    rooms = [Room(log, f"room {number}") for number in range(6)]
    for each in rooms:
        await each.begin(40)
    stream.most_at_once = 0
    assert await asyncio.gather(*(each.find("k1") for each in rooms)) == ["m1"] * 6
    assert stream.most_at_once <= 2 * 32 + 6
