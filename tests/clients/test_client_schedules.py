"""What the Python client decides, under faults drawn from seeds: cuts, refusals, failed memberships, slow readers."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import json

from chatx.client.conversation import Conversation
from chatx.client.errors import ClientError, SendRefused, SendUnknown
from chatx.client.events import Gap, Message
from chatx.client.membership import Membership
from chatx.client.options import Options
from chatx.client.outbox import Entry, Outbox
from chatx.client.sends import LEAVES_OPEN
from chatx.client.stream import Stream
from chatx.core.message import Position
from tests.clients.pretend import Pretend
from tests.seeds import Chance, assert_found, chunks, promise

SEEDS = 600
ROOMS = ["a", "b"]


class Play:
    """A run: a client in two rooms, whoever else talks there, and what happens to the line between."""

    def __init__(self, seed: int, *, loses: bool) -> None:
        """Build it.

        Args:
            seed: Everything is drawn from it.
            loses: Whether the server loses what it has: rooms begin anew, histories are cut, outages are long.
        """
        self.chance = Chance(f"{seed} play")
        self.loses = loses
        self.now = 1000.0
        self.server = Pretend(Chance(f"{seed} server"), ROOMS)
        self.server.refuses = 8
        options = Options(queue_events=12, outbox_messages=20)
        self.talk = Conversation(options, Chance(f"{seed} jitter").random)
        self.connected = False
        self.back_at = self.now
        self.sent: list[Entry] = []
        self.outcomes: dict[Entry, Message | ClientError] = {}
        self.readers = {name: Reader(self, name, self.chance.pick([0, 5])) for name in ROOMS}

    def __call__(self) -> None:
        for reader in self.readers.values():
            self.talk.enter(reader.room, self.now)
        for _ in range(400):
            self.step()
        self.quiesce()
        self.check()

    def step(self) -> None:
        room = self.chance.pick(ROOMS)
        match self.chance.upto(24):
            case 1 | 2 | 3 if self.talk.outbox.count < 20:
                self.send(room)
            case 4 | 5 | 6 | 7:
                for _ in range(self.chance.upto(20) if self.chance.once_in(10) else 1):
                    self.server.say(room, "bob", f"bob {self.chance.random()}", None, self.now)
            case 8 | 9 | 10 | 11 if self.connected and self.server.to_server:
                self.server.read(self.now)
            case 12 | 13 | 14 | 15 | 16 if self.connected and self.server.to_client:
                self.receive()
            case 17 | 18 | 19:
                self.readers[room].take(self.chance.upto(6))
            case 20:
                self.later(self.chance.random() * 3)
            case 21 if self.connected and self.chance.once_in(2):
                self.cut()
            case 22 if self.chance.once_in(4):
                self.server.fail(room)
            case 23 if self.loses and self.chance.once_in(6):
                if self.chance.once_in(3):
                    if self.chance.once_in(2):
                        self.cut()
                    for name, each in self.server.rooms.items():
                        each.begin_anew()
                        if self.chance.once_in(2):  # else the client hears of it when something is said
                            self.server.fail(name)
                elif self.chance.once_in(2):
                    self.server.rooms[room].trim(3)
                else:
                    self.server.rooms[room].lose_one(self.chance)
            case 24 if self.loses and self.chance.once_in(20):
                self.cut()
                self.back_at = self.now + 400
                self.later(self.chance.random() * 500)
            case _:
                self.connect()
        self.flush()

    def send(self, room: str) -> None:
        number = len(self.sent)
        content = f"bad {number}" if self.chance.once_in(9) else f"ada {number}"
        payload = json.encode({"content": content, "key": f"key {number}"})
        entry = Entry(room, f"key {number}", content, None, payload, self.now)
        self.sent.append(entry)
        self.talk.outbox.add(entry)
        self.talk.send(entry, self.now)

    def receive(self) -> None:
        self.talk.received(self.server.to_client.popleft(), self.now)
        for reader in self.readers.values():
            reader.look()

    def later(self, seconds: float) -> None:
        until = self.now + seconds
        while self.talk.due <= until:
            self.now = max(self.now, self.talk.due)
            self.talk.tick(self.now)
            self.flush()
        self.now = until

    def connect(self) -> None:
        if not self.connected and self.now >= self.back_at:
            self.connected = True
            self.talk.opened(self.now)

    def cut(self) -> None:
        self.server.cut()
        if self.connected:
            self.connected = False
            self.back_at = self.now + self.talk.lost("it was cut", self.now)

    def flush(self) -> None:
        if self.connected:
            self.server.to_server.extend(self.talk.frames)
            self.talk.frames.clear()
        promise(self.connected or not self.talk.frames, "It writes to no connection.")
        for entry, outcome in self.talk.sends.settled:
            promise(entry not in self.outcomes, "A send has two outcomes.", outcome)
            self.outcomes[entry] = outcome
        self.talk.sends.settled.clear()
        if self.talk.broken is not None:
            promise(
                "nothing was heard" in self.talk.broken, "It takes a good connection for a bad one.", self.talk.broken
            )
            self.cut()

    def quiesce(self) -> None:
        self.server.refuses = 0
        for _ in range(3000):
            self.connect()
            self.flush()
            while self.connected and (self.server.to_server or self.server.to_client):
                if self.server.to_server:
                    self.server.read(self.now)
                if self.server.to_client:
                    self.receive()
                self.flush()
            for reader in self.readers.values():
                reader.take(100)
            self.flush()
            if self.connected and not self.talk.outbox.count and all(each.is_done() for each in self.readers.values()):
                return
            self.later(1.0)
        promise(False, "It does not come to rest.", self.talk.outbox.count, [vars(e) for e in self.readers.values()])

    def check(self) -> None:
        for entry in self.sent:
            promise(entry in self.outcomes, "A send has no outcome.", entry.key)
            outcome = self.outcomes[entry]
            said = [each for each in self.server.rooms[entry.room].said if each["key"] == entry.key]
            promise(len(said) <= 1, "A message is there twice.", entry.key)
            if isinstance(outcome, Message):
                (message,) = said
                promise(
                    (message["id"], message["offset"]) == (outcome.id, outcome.offset), "It is another one.", outcome
                )
            elif isinstance(outcome, SendUnknown):
                promise(self.loses, "Nobody knows, though nothing was lost.", outcome)
            else:
                promise(isinstance(outcome, SendRefused) and not said, "It is there, though refused.", outcome)
                promise(self.loses or outcome.code == "blocked", "It is refused, though it was good.", outcome)
        for name, room in self.server.rooms.items():
            order = [each["key"] for each in room.said if each["key"] is not None]
            promise(order == sorted(order, key=lambda key: int(key.split()[1])), "They are out of order.", name)
        for reader in self.readers.values():
            reader.check()


class Reader:
    """Whoever iterates over a room."""

    def __init__(self, play: Play, name: str, history: int) -> None:
        self.play = play
        self.name = name
        self.stream = Stream(name, history=history, most_events=12, most_bytes=100_000)
        self.room = Membership(name, self.stream, None)
        self.begins: int | None = None
        self.history = history
        self.events: list[Any] = []

    def look(self) -> None:
        """See where it begins, which is where the room stood when it was joined first."""
        promise(len(self.stream) <= 14, "More waits than may.", len(self.stream))
        if self.stream.cursor is not None and (self.begins is None or self.stream._earlier is not None):
            self.begins = self.stream.cursor.offset

    def take(self, most: int) -> None:
        while self.stream and most:
            self.events.append(self.stream.take())
            self.play.talk.taken(self.room, self.play.now)
            most -= 1

    def is_done(self) -> bool:
        room = self.play.server.rooms[self.name]
        return self.room.joined and not self.stream.behind and self.stream.cursor == (room.epoch, room.head)

    def check(self) -> None:
        room = self.play.server.rooms[self.name]
        by_place = {(each["epoch"], each["offset"]): each for each in room.said}
        place: tuple[str, int] | None = None
        if not self.play.loses:
            assert self.begins is not None
            place = room.epoch, max(0, self.begins - self.history)
        for event in self.events:
            if isinstance(event, Gap):
                promise(self.play.loses, "There is a gap, though nothing was lost.", event)
                place = event.epoch, event.offset
            elif isinstance(event, Message):
                said = by_place[event.epoch, event.offset]
                promise((said["id"], said["content"]) == (event.id, event.content), "It says something else.", event)
                if place is not None:
                    promise(place == (event.epoch, event.offset - 1), "It does not follow.", place, event)
                place = event.epoch, event.offset
        promise(place is None or place == (room.epoch, room.head), "It does not end where the room does.", place)


def run(seed: int, *, loses: bool = True) -> None:
    try:
        Play(seed, loses=loses)()
    except BaseException as error:
        error.add_note(f"Replay it: TEST_SEED={seed} python -m pytest {__file__}")
        raise


@pytest.mark.parametrize("chunk", chunks(SEEDS, 100), ids=lambda chunk: f"{chunk.start}-{chunk.stop - 1}")
@pytest.mark.parametrize("loses", [False, True])
def test_nothing_is_lost_doubled_or_reordered(chunk: range, *, loses: bool) -> None:
    for seed in chunk:
        run(seed, loses=loses)


def test_a_client_that_takes_the_answer_to_a_join_for_its_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Stream.joined

    def hasty(stream: Stream, epoch: str, offset: int, recovered: bool, reason: Any) -> None:
        joined(stream, epoch, offset, recovered, reason)
        stream.cursor = Position(epoch, offset)

    monkeypatch.setattr(Stream, "joined", hasty)
    assert_found(run, SEEDS)


def test_a_client_that_does_not_tell_of_a_hole_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "_bridge", lambda stream, offset: None)
    assert_found(run, SEEDS)


def test_a_client_that_asks_again_when_the_key_is_forgotten_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outbox, "ends", lambda outbox, entry: entry.created + 10_000)
    assert_found(run, SEEDS)


def test_a_client_that_asks_again_in_another_epoch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.client.sends.attempt", lambda entry: entry.payload)
    assert_found(run, SEEDS)


def test_a_client_that_takes_an_open_refusal_for_a_sure_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.client.sends.LEAVES_OPEN", frozenset())
    assert_found(run, SEEDS)


def test_a_client_that_takes_a_refusal_for_one_of_all_attempts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.client.sends.surely_not_published", lambda entry, code: code not in LEAVES_OPEN)
    assert_found(run, SEEDS)


def test_a_client_that_lets_a_send_overtake_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outbox, "head", lambda outbox, room: (outbox.of(room) or (None,))[-1])
    assert_found(run, SEEDS)
