"""What a room is, in plain Python: a list of messages for each epoch, and who is in it; and what a reader may see.

The model hears of every message at the moment it gets its place, and of every join and leave when its caller is told. A
reader's `View` hears what that reader was given. Everything is compared with everything.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from chatx import Event, Gap, Message, PresenceDiff, PresenceState
from chatx.core.message import Position, SubscriptionEnded
from tests.seeds import promise


class RoomModel:
    """One room.

    Attributes:
        streams: By epoch, its messages in order; the first has offset `starts[epoch] + 1`.
        head: Where the stream stands.
        members: One entry a membership: (who holds it, its user).
        lives: This life and those that ended in a crash.
        in_flight: Sends that were called and have not returned.
    """

    def __init__(self, room_id: str) -> None:
        self.room_id = room_id
        self.streams: dict[str, list[Message]] = {}
        self.head: Position | None = None
        self.members: dict[object, str] = {}
        self.lives = 1
        self.in_flight = 0

    def began(self, position: Position) -> None:
        """A life of the room began here."""
        if position.epoch in self.streams:
            last = len(self.streams[position.epoch])
            promise(position.offset == last, "an epoch went on elsewhere than at its end:", position, last)
        else:
            promise(position.offset == 0, "a new epoch began in its middle:", position)
            self.streams[position.epoch] = []
        self.head = position

    def published(self, message: Message) -> None:
        """A message got its place."""
        stream = self.streams[message.epoch]
        promise(message.offset == len(stream) + 1, "offsets have a hole:", message, len(stream))
        stream.append(message)
        self.head = Position(message.epoch, message.offset)

    def died(self) -> None:
        """The room crashed too often: whoever was in it is out."""
        self.members.clear()
        self.lives += 1

    def presences(self) -> Counter[str]:
        """Return how many memberships each user has."""
        return Counter(self.members.values())

    def find(self, epoch: str, offset: int) -> Message | None:
        """Return the message at a place."""
        stream = self.streams.get(epoch, [])
        return stream[offset - 1] if 0 < offset <= len(stream) else None


class View:
    """What one reader of one room was given, and where that leaves it.

    Attributes:
        position: What it has seen up to; None before the first subscription.
        present: Its replay of presence: ref to user; None where it was not told a state yet.
    """

    def __init__(self, name: str, room: RoomModel, history_size: int, *, stored: bool, drops: bool) -> None:
        self.name = name
        self.room = room
        self.position: Position | None = None
        self.present: dict[str, str] | None = None
        self.seen: list[Message] = []
        self._history_size = history_size
        self._stored = stored
        self._drops = drops

    @property
    def offset(self) -> int | None:
        """The offset of the position; an epoch is another name in each run."""
        return self.position.offset if self.position is not None else None

    def opened(self, *, resumed: bool) -> None:
        """A subscription began: from the position where it resumes, else from the head."""
        self.present = None
        if not resumed:
            self.position = self.room.head

    def got(self, event: Event) -> None:
        """Take an event; raise `Violation` where no correct room would have given it."""
        match event:
            case Message():
                self._message(event)
            case Gap():
                self._gap(event)
            case PresenceState():
                self.present = {ref: user for user, ref in _memberships(event.presences)}
                promise(len(self.present) == len(_memberships(event.presences)), f"{self.name}: refs twice:", event)
            case PresenceDiff():
                self._diff(event)
            case SubscriptionEnded():
                pass

    def _message(self, message: Message) -> None:
        promise(self.position is not None, f"{self.name} reads without a position:", message)
        assert self.position is not None
        expected = Position(self.position.epoch, self.position.offset + 1)
        promise((message.epoch, message.offset) == expected, f"{self.name} missed or doubled: due", expected, message)
        self.position = expected
        self.seen.append(message)

    def _gap(self, gap: Gap) -> None:
        promise(self.position is not None, f"{self.name} has a gap without a position:", gap)
        assert self.position is not None
        before, self.position = self.position, Position(gap.epoch, gap.offset)
        if gap.reason == "epoch_changed":
            promise(gap.epoch != before.epoch, f"{self.name}: the epoch did not change:", before, gap)
            return
        promise(gap.epoch == before.epoch, f"{self.name}: a gap across epochs:", before, gap)
        promise(gap.missed == gap.offset - before.offset, f"{self.name}: a wrong count missing:", before, gap)
        promise(gap.offset > before.offset, f"{self.name}: a gap of nothing:", before, gap)
        promise(gap.offset <= len(self.room.streams[gap.epoch]), f"{self.name}: a gap beyond the head:", gap)
        match gap.reason:
            case "slow_consumer":
                promise(self._drops, f"{self.name}: dropped although it is to be disconnected:", gap)
            case "too_old":
                promise((gap.missed or 0) > self._history_size, f"{self.name}: too old for no reason:", gap)
                promise(not self._stored, f"{self.name}: too old although it is stored:", gap)
            case _:
                promise(self._stored and gap.reason == "missing", f"{self.name}: a gap for no reason:", gap)

    def _diff(self, diff: PresenceDiff) -> None:
        promise(self.present is not None, f"{self.name}: a diff before the state:", diff)
        assert self.present is not None
        for user, ref in _memberships(diff.joins):
            promise(ref not in self.present, f"{self.name}: joined twice:", diff)
            self.present[ref] = user
        for user, ref in _memberships(diff.leaves):
            promise(self.present.pop(ref, None) == user, f"{self.name}: left without having joined:", diff)

    def check_order(self) -> None:
        """What was given is what the room published, each message at its place."""
        for message in self.seen:
            promise(
                self.room.find(message.epoch, message.offset) == message, f"{self.name} saw another order:", message
            )

    def check_caught_up(self) -> None:
        """Nothing is left to come."""
        promise(self.position == self.room.head, f"{self.name} misses the newest:", self.position, self.room.head)

    def check_presence(self) -> None:
        """The replay equals who is there."""
        if self.present is not None:
            counts = Counter(self.present.values())
            promise(counts == self.room.presences(), f"{self.name}: wrong presence:", counts, self.room.presences())


def _memberships(presences: dict[str, list[Any]]) -> list[tuple[str, str]]:
    return [(user, meta.ref) for user, metas in presences.items() for meta in metas]
