"""What clients were given and what the log has, each fact held against all the others; whoever ran what, and where.

It knows nothing of loops, processes or stores. A run on virtual time and one with real processes bring the same facts:
what a reader was given, what a sender was answered, and in the end what is in the log.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from chatx import Event, Gap, Message
from chatx.core.message import Entry, Position
from tests.seeds import promise


class Place(NamedTuple):
    """A place in a room's stream."""

    room_id: str
    epoch: str
    offset: int


class Kept(NamedTuple):
    """An entry as the log has it, with its key."""

    entry: Entry
    key: str | None


class Evidence:
    """Every fact of one run. Each content is sent by one sender to one room, again only under its key.

    Args:
        unbroken: The rooms of which nothing is lost that anybody saw: all that is sent there is to be stored, or was
            when its process was killed.

    Attributes:
        promised: By content, the first answer that said `stored`.
        gone: By room, what the log let go of, in order.
    """

    def __init__(self, unbroken: Collection[str]) -> None:
        self.unbroken = unbroken
        self.promised: dict[str, Message] = {}
        self.gone: defaultdict[str, list[Kept]] = defaultdict(list)
        self._gone_places: set[Place] = set()
        self._there: dict[Place, tuple[str, str]] = {}  # the id and the content at a place
        self._place: dict[str, Place] = {}  # by id
        self._places: defaultdict[str, set[Place]] = defaultdict(set)  # by content
        self._behind: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)  # (an epoch, one behind it), by room

    def seen(self, entry: Entry, who: str) -> None:
        """Somebody saw an entry at its place."""
        place = Place(entry.room_id, entry.epoch, entry.offset)
        what = (entry.id, entry.content)
        there = self._there.setdefault(place, what)
        promise(there == what, "two entries at one place:", place, there, what, who)
        first = self._place.setdefault(entry.id, place)
        promise(first == place, "one entry at two places:", entry, first, who)
        self._places[entry.content].add(place)

    def let_go(self, kept: Kept) -> None:
        """The log let go of the oldest entry of a room."""
        self.seen(kept.entry, "the log")
        self.gone[kept.entry.room_id].append(kept)
        self._gone_places.add(Place(kept.entry.room_id, kept.entry.epoch, kept.entry.offset))

    def too_old(self, room_id: str, before: Position, to: int) -> bool:
        """Return whether the log let go of every place behind one, up to an offset; and whether there is one."""
        places = {Place(room_id, before.epoch, each) for each in range(before.offset + 1, to + 1)}
        return bool(places) and places <= self._gone_places

    def moved_on(self, room_id: str, before: str, behind: str) -> None:
        """Somebody went from one epoch of a room to another."""
        self._behind[room_id].add((before, behind))

    def answered(self, message: Message, content: str, *, stored: bool) -> None:
        """A sender was told that this is their message; `stored`: and that the log has it."""
        promise(message.content == content, "the answer is another message's:", message, content)
        self.seen(message, "its sender")
        first = self.promised.get(content)
        promise(first is None or first.id == message.id, "one key, two messages:", first, message)
        if stored:
            self.promised.setdefault(content, message)

    def in_the_log(self, rooms: Mapping[str, Iterable[Kept]]) -> None:
        """Take all that the log has and had of each room, in its order, and look at everything."""
        there: dict[str, Entry] = {}
        for room_id, kept in rooms.items():
            self._whole(room_id, [each.entry for each in kept])
            keys: dict[tuple[str, str], Entry] = {}
            for entry, key in kept:
                promise(entry.content not in there, "a message was doubled:", there.get(entry.content), entry)
                there[entry.content] = entry
                if key is not None:
                    first = keys.setdefault((entry.user_id, key), entry)
                    promise(first is entry, "one key, two entries in the log:", key, first, entry)
        for content, message in self.promised.items():
            found = there.get(content)
            promise(found is not None, "acknowledged as stored, and not in the log:", message)
            promise(found is not None and found.id == message.id, "another than was acknowledged:", message, found)
        for content, places in self._places.items():
            lost = {each for each in places if each.room_id in self.unbroken}
            found = there.get(content)
            lost -= set() if found is None else {Place(found.room_id, found.epoch, found.offset)}
            promise(not lost, "seen before it was stored, and lost:", content, lost)

    def _whole(self, room_id: str, entries: list[Entry]) -> None:
        head: Position | None = None
        over: set[str] = set()
        for entry in entries:
            self.seen(entry, "the log")
            if head is None or entry.epoch != head.epoch:
                promise(entry.epoch not in over, "an epoch goes on behind another:", entry)
                promise(entry.offset == 1, "an epoch does not begin at 1:", entry)
                if head is not None:
                    over.add(head.epoch)
                    back = {(entry.epoch, each) for each in over} & self._behind[room_id]
                    promise(not back, "two orders of epochs:", room_id, back)
            else:
                promise(entry.offset == head.offset + 1, "a hole in the log:", head, entry)
            head = Position(entry.epoch, entry.offset)


class Reading:
    """What one reader of one room was given, over all of its subscriptions.

    Attributes:
        position: What it was given up to; None before the first event.
    """

    def __init__(self, evidence: Evidence, name: str, room_id: str) -> None:
        self.name = name
        self.room_id = room_id
        self.position: Position | None = None
        self._evidence = evidence

    def got(self, event: Event) -> None:
        """Take an event; raise `Violation` where no correct room gives it."""
        match event:
            case Message():
                self._message(event)
            case Gap():
                self._gap(event)
            case _:
                promise(False, f"{self.name} was given what nobody sent:", event)

    def _message(self, message: Message) -> None:
        self._evidence.seen(message, self.name)
        if self.position is not None:
            due = Position(self.position.epoch, self.position.offset + 1)
            promise(due == (message.epoch, message.offset), f"{self.name} missed or doubled: due", due, message)
        self.position = Position(message.epoch, message.offset)

    def _gap(self, gap: Gap) -> None:
        if gap.reason == "too_old" and self.position is not None and gap.epoch == self.position.epoch:
            gone = self._evidence.too_old(self.room_id, self.position, gap.offset)
            promise(gone, f"{self.name} is told that too old is what the log has:", self.position, gap)
            self.position = Position(gap.epoch, gap.offset)
            return
        unbroken = self.room_id in self._evidence.unbroken
        promise(not unbroken, f"{self.name} saw nothing that may be lost, and has a gap at", self.position, gap)
        promise(self.position is not None, f"{self.name} has a gap without a place:", gap)
        assert self.position is not None
        before, self.position = self.position, Position(gap.epoch, gap.offset)
        if gap.epoch != before.epoch:
            promise(gap.reason == "epoch_changed", f"{self.name}: a gap across epochs:", before, gap)
            self._evidence.moved_on(self.room_id, before.epoch, gap.epoch)
            return
        # What lies ahead of its place in the same epoch is kept in memory or in the log, whatever happened.
        promise(gap.reason == "epoch_changed" and gap.offset < before.offset, f"{self.name}: a gap:", before, gap)
