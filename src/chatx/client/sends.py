"""The sends of all rooms on their way: which may be written, and what comes of their answers.

Rules:
1. Of each room one is on its way at most, and of all rooms together `MOST_UNANSWERED`: the server reads no further
   while 64 pushes are unanswered.
2. From when a send is written until there is an answer it is in doubt. A refusal says that this attempt was not
   published, and nothing of an attempt before it: some are made ahead of any look at the key.
3. A send that is in doubt goes again for the epoch only in which that began: in another one its key may not be known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from msgspec import Raw, json

from chatx.client.errors import ClientError, SendRefused
from chatx.client.events import Message
from chatx.client.frames import COMES_BACK, after_s, read_error, read_sent
from chatx.client.membership import Membership
from chatx.client.outbox import Entry, Outbox
from chatx.gateway.wire.payloads import ErrorResponse, Sent

MOST_UNANSWERED: Final = 32
"""Sends of all rooms that are on their way."""

LEAVES_OPEN: Final = frozenset({"room_unavailable"})
"""Refusals that do not say whether the message was published."""


class Talk(Protocol):
    """What sends need of the conversation."""

    rooms: dict[str, Membership]

    def push(
        self,
        room: Membership,
        event: str,
        payload: bytes,
        answer: Callable[[bool, Raw, float], None] | None,
        now: float,
    ) -> None:
        """Write a push."""
        ...

    def pause(self, failures: int, wanted_s: float | None = None) -> float:
        """Return how long to wait after so many refusals, in seconds."""
        ...

    def come_back(self, room: Membership, refused: ErrorResponse, now: float) -> None:
        """Join again in a while."""
        ...

    def lower(self, due: float | None) -> None:
        """Take it that something is due then."""
        ...


class Sends:
    """What is sent over one connection after the other.

    Attributes:
        settled: Sends that have their outcome, for whoever looks next.
        marking: With a storage: sends that it is to mark ahead of their first attempt; else None.
        user: Whose messages this client's are, once it has seen one; else empty.
    """

    def __init__(self, outbox: Outbox, talk: Talk) -> None:
        """Begin with nothing on its way.

        Args:
            outbox: What waits.
            talk: The conversation.
        """
        self.settled: list[tuple[Entry, Message | ClientError]] = []
        self.marking: list[Entry] | None = None
        self.user: str = ""
        self._outbox = outbox
        self._talk = talk
        self._unanswered = 0
        self._waiting: deque[str] = deque()  # rooms with something to send, each once, beyond MOST_UNANSWERED

    def pump(self, room: Membership, now: float) -> None:
        """Write the room's next send, if it may be."""
        entry = self._outbox.head(room.id)
        if entry is None or room.in_flight is not None or not room.joined or not entry.ready:
            return
        if now < entry.not_before:
            self._talk.lower(entry.not_before)
            return
        if self._unanswered >= MOST_UNANSWERED:
            if room.id not in self._waiting:
                self._waiting.append(room.id)
            return
        if entry.doubtful_since is None:
            cursor = room.stream.cursor
            assert cursor is not None
            entry.doubtful_since = now
            entry.epoch = cursor.epoch
            entry.first = True
            if self.marking is not None:
                entry.ready = False
                self.marking.append(entry)
                return
        self._write(room, entry, now)

    def heard(self, room: Membership, message: Message) -> None:
        """Take a message that may be one of this client's, whose acknowledgement was there before it."""
        known = room.acknowledged.pop(message.id, None)
        if known is not None:
            self.user = message.user
            self._acknowledge(known[0], known[1], message)

    def overdue(self, now: float) -> None:
        """End what is too old."""
        rooms = self._talk.rooms
        for entry, error in self._outbox.overdue(now, rooms):
            if rooms[entry.room].in_flight is entry:
                self._land(rooms[entry.room])
            self.settle(entry, error)

    def forget(self, room: Membership) -> None:
        """Take it that what is on its way in a room is not answered any more: its membership is over."""
        if room.in_flight is not None:
            room.in_flight.first = False
        self._land(room)
        for entry, sent in room.acknowledged.values():
            self._acknowledge(entry, sent, None)
        room.acknowledged.clear()

    def lost(self) -> None:
        """Take it that the connection is lost, before each room is forgotten: none has its turn on it any more."""
        self._waiting.clear()

    def settle(self, entry: Entry, error: ClientError) -> None:
        """End a send with an error."""
        self._outbox.remove(entry)
        self.settled.append((entry, error))

    def _write(self, room: Membership, entry: Entry, now: float) -> None:
        room.in_flight = entry
        self._unanswered += 1

        def answer(ok: bool, response: Raw, now: float) -> None:
            if room.in_flight is not entry:
                return  # it was given up
            self._land(room)
            if ok:
                self._sent(room, entry, read_sent(response))
            else:
                self._refused(room, entry, read_error(response), now)
            self.pump(room, now)
            self._pump_others(now)

        self._talk.push(room, "new_message", attempt(entry), answer, now)

    def _land(self, room: Membership) -> None:
        """Take it that nothing of the room is on its way any more."""
        if room.in_flight is not None:
            room.in_flight = None
            self._unanswered -= 1

    def _pump_others(self, now: float) -> None:
        """Give those their turn that waited for others to be answered."""
        while self._waiting and self._unanswered < MOST_UNANSWERED:
            room = self._talk.rooms.get(self._waiting.popleft())
            if room is not None:
                self.pump(room, now)

    def _sent(self, room: Membership, entry: Entry, sent: Sent) -> None:
        self._outbox.remove(entry)
        cursor = room.stream.cursor
        if cursor is None or cursor.epoch != sent.epoch or sent.offset <= room.stream.newest:
            self._acknowledge(entry, sent, None)
            return
        # The message itself is right behind, and has what the answer does not: its user, what middlewares made of it.
        room.acknowledged[sent.id] = (entry, sent)
        if len(room.acknowledged) > MOST_UNANSWERED:
            self._acknowledge(*room.acknowledged.pop(next(iter(room.acknowledged))), None)

    def _acknowledge(self, entry: Entry, sent: Sent, message: Message | None) -> None:
        acknowledged = Message(
            id=sent.id,
            room=entry.room,
            user=self.user if message is None else message.user,
            content=entry.content if message is None else message.content,
            at=sent.inserted_at,
            epoch=sent.epoch,
            offset=sent.offset,
            data=entry.data if message is None else message.data,
            duplicate=sent.duplicate is True,
            stored=sent.stored is True,
        )
        self.settled.append((entry, acknowledged))

    def _refused(self, room: Membership, entry: Entry, refused: ErrorResponse, now: float) -> None:
        error = SendRefused(refused.code, refused.reason, after_s(refused))
        if refused.code == "epoch_changed" and not entry.first:
            why = "The answer was lost, and the room went on in another epoch meanwhile, which does not know its key."
            self.settle(entry, entry.unknown(why))
            return
        comes_back = refused.code in COMES_BACK
        if not refused.retryable and not comes_back:
            self.settle(entry, error)
            return
        if surely_not_published(entry, refused.code):
            entry.doubtful_since = None
            entry.epoch = None
        entry.first = False
        entry.refused = error
        entry.failures += 1
        entry.not_before = now + self._talk.pause(entry.failures, error.retry_after)
        self._talk.lower(min(entry.not_before, self._outbox.ends(entry)))
        if comes_back:
            self._talk.come_back(room, refused, now)


def attempt(entry: Entry) -> bytes:
    """Return the JSON of the next attempt: behind one that left it open, for that one's epoch only."""
    if entry.first:
        return entry.payload
    return entry.payload[:-1] + b',"epoch":' + json.encode(entry.epoch) + b"}"


def surely_not_published(entry: Entry, code: str) -> bool:
    """Return whether a refusal with this code settles that no attempt was published."""
    return entry.first and code not in LEAVES_OPEN
