"""What one room tells, from the wire to whoever iterates: in order, each message once, and every hole is told.

Rules:
1. The *cursor* is the place of the last message that was queued. What is queued next is at the place behind it, or a
   `Gap` says what is missing.
2. The queue is bounded in events and in bytes. What does not fit is not kept, and not lost either: the stream is then
   *behind*. When half of the queue has been taken, it asks the server for the page behind its cursor, and so on until
   it has met what is live. So a reader that is slow holds up no other room, and no answer to what it sends itself.
3. While a page is on its way, what is live is *held*, within the same bound, of which the page has its part.
4. `State`, `Presence` and the outcomes of sends have no place. Of the first two only the newest counts, so each waits
   once at most; of the third there are as many as the outbox holds.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from chatx.client.events import Event, Gap, Message, NotSent, Presence, Sent, State
from chatx.client.presences import Presences
from chatx.core.message import GapReason, Position

PAGE: Final = 200
"""The most messages that the server gives at once."""

EVENT_BYTES: Final = 128
"""What an event without a text counts for."""


class Stream:
    """The events of one room that wait to be taken.

    Attributes:
        cursor: The place of the last message queued, or None before the room was joined for the first time.
        newest: The highest offset in the cursor's epoch that the server has spoken of.
    """

    __slots__ = (
        "_asked",
        "_behind",
        "_bytes",
        "_earlier",
        "_held",
        "_held_bytes",
        "_history",
        "_most_bytes",
        "_most_events",
        "_presences",
        "_queue",
        "_room",
        "_told_presence",
        "_told_state",
        "cursor",
        "newest",
    )

    def __init__(
        self,
        room: str,
        *,
        history: int = 0,
        after: Position | None = None,
        most_events: int,
        most_bytes: int,
        presences: Presences | None = None,
    ) -> None:
        """Begin a stream in which nothing has come yet.

        Args:
            room: The room's id.
            history: How many of the newest messages to begin with, at most `most_events`.
            after: Where to go on from; then there is no history to begin with.
            most_events: The most that wait.
            most_bytes: The most bytes of frames that wait.
            presences: Who is there, where that is to be told.
        """
        self.cursor: Position | None = after
        self._room = room
        self._history = 0 if after is not None else history
        self._earlier: list[Message] | None = None  # pages of the first history, while it is loaded
        self.newest: int = 0
        self._behind = False
        self._asked = 0  # messages of a page that is on its way, at most
        self._queue: deque[tuple[Event, int]] = deque()
        self._bytes = 0
        self._held: deque[tuple[Message, int]] = deque()
        self._held_bytes = 0
        self._most_events = most_events
        self._most_bytes = most_bytes
        self._presences = presences
        self._told_presence = True
        self._told_state: State | None = None

    # What the protocol tells.

    def join_payload(self) -> dict[str, Any]:
        """Return what to join with: the cursor, but where what was missed could not be queued anyway."""
        if self.cursor is None or self._behind or self._earlier is not None:
            return {}
        return {"epoch": self.cursor.epoch, "offset": self.cursor.offset}

    def joined(self, epoch: str, offset: int, recovered: bool, reason: GapReason | None) -> None:
        """Take the answer to a join: the head of the stream, and whether what was missed follows."""
        self._asked = 0
        known = self.cursor
        if known is None or self._earlier is not None:
            self.cursor = Position(epoch, offset)
            self.newest = offset
            self._earlier = [] if self._history else None
        elif recovered or (reason is None and epoch == known.epoch):
            # Without a reason no place was sent, so nothing follows by itself.
            self.newest = max(self.newest, offset)
            self._behind = not recovered and self.newest > known.offset
        else:
            self._gap(reason or "epoch_changed", Position(epoch, offset))

    def heard(self, message: Message, size: int) -> bool:
        """Take a live or a missed message; return False where the room must be joined anew to understand it."""
        cursor = self.cursor
        if cursor is None or message.epoch != cursor.epoch:
            return False
        offset = message.offset
        if offset <= cursor.offset:
            return True
        self.newest = max(self.newest, offset)
        if not (self._behind or self._earlier is not None):
            if offset == cursor.offset + 1 and self._fits(size):
                self._push(message, size)
                return True
            self._behind = True
        if self._fits(size) and (not self._held or offset > self._held[-1][0].offset):
            self._held.append((message, size))
            self._held_bytes += size
        return True

    def lost(self) -> None:
        """Forget what only counts while the room is joined: what is held comes again."""
        self._asked = 0
        self._drop_held()
        if self._earlier:
            self._earlier = []

    def wanted_page(self) -> dict[str, Any] | None:
        """Return the payload of the next question for history, or None where there is nothing to ask now.

        It is to be answered by `page`, `page_failed` or `lost`; until then None is returned.
        """
        if self._asked or self.cursor is None:
            return None
        epoch, offset = self.cursor
        if self._earlier is not None:
            first = self._earlier[0] if self._earlier else None
            epoch, before = (first.epoch, first.offset) if first else (epoch, offset + 1)
            self._asked = min(self._history - len(self._earlier), PAGE)
            return {"limit": self._asked, "before": {"epoch": epoch, "offset": before}}
        if self._behind and len(self._queue) * 2 <= self._most_events and self._bytes * 2 <= self._most_bytes:
            free = self._most_events - len(self._queue)
            if len(self._held) * 2 > free:
                self._drop_held()  # it comes again in a page, and the pages ahead of it need the place
            self._asked = max(1, min((free - len(self._held)) // 2, PAGE))
            return {"limit": self._asked, "after": {"epoch": epoch, "offset": offset}}
        return None

    def page(self, messages: list[Message], more: bool, size: int) -> None:
        """Take the answer to `wanted_page`; `size` is its bytes.

        It may be larger than what the bound on bytes has left: a page is as large as the server makes it.
        """
        self._asked = 0
        each = size // max(1, len(messages))
        if self._earlier is None:
            self._take_next(messages, more, each)
        else:
            self._earlier = messages + self._earlier
            if more and messages and len(self._earlier) < self._history:
                return
            self._begin(self._earlier, each)
        self._go_on()

    def page_failed(self) -> None:
        """Take it that the question was not answered; it may be asked again."""
        self._asked = 0

    def misplaced(self) -> None:
        """Take it that the server cannot go on from the cursor, so the next join is to name it, and say why."""
        self._asked = 0
        self._behind = False
        self._drop_held()

    # What has no place.

    def tell(self, event: Sent | NotSent) -> None:
        """Queue the outcome of a send that nobody awaits."""
        self._queue.append((event, 0))

    def tell_state(self, state: State) -> None:
        """Tell a state once, in the place of one that was not taken yet."""
        if self._told_state is None:
            self._queue.append((_STATE, 0))
        self._told_state = state

    def tell_presence(self) -> None:
        """Tell who is there once, in the place of what was not taken yet."""
        if self._presences is not None and self._told_presence:
            self._told_presence = False
            self._queue.append((_PRESENCE, 0))

    # What the reader does.

    def __len__(self) -> int:
        return len(self._queue)

    def take(self) -> Event:
        """Return the next event; raise IndexError where none waits.

        What the stream wants may have changed: see `wanted_page`.
        """
        event, size = self._queue.popleft()
        self._bytes -= size
        if event is _STATE:
            state, self._told_state = self._told_state, None
            assert state is not None
            return state
        if event is _PRESENCE:
            assert self._presences is not None
            self._told_presence = True
            return Presence(self._room, self._presences.members())
        return event

    @property
    def behind(self) -> bool:
        """Whether there is more to ask for than has come."""
        return self._behind or self._earlier is not None

    def _begin(self, earlier: list[Message], each: int) -> None:
        """Queue the first history, which leads up to the cursor."""
        self._earlier = None
        self._history = 0
        head = self.cursor
        if earlier and head is not None:
            self.cursor = Position(earlier[0].epoch, earlier[0].offset - 1)
            for message in earlier:
                self._reach(message.epoch, message.offset - 1)
                self._push(message, each)
            self._reach(*head)

    def _take_next(self, messages: list[Message], more: bool, each: int) -> None:
        """Queue the page behind the cursor."""
        before = self.cursor
        assert before is not None
        for message in messages:
            if message.epoch == before.epoch and message.offset > before.offset:
                self._bridge(message.offset - 1)
                self._push(message, each)
        if self.cursor == before:
            # The server does not have what it has spoken of, whatever it says of more.
            self._bridge(self._held[0][0].offset - 1 if self._held else self.newest)

    def _fits(self, size: int) -> bool:
        to_come = self._asked if self._earlier is None else self._history
        return (
            len(self._queue) + len(self._held) + to_come < self._most_events
            and self._bytes + self._held_bytes + size <= self._most_bytes
        )

    def _drop_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    def _push(self, message: Message, size: int) -> None:
        self._queue.append((message, size))
        self._bytes += size
        self.cursor = Position(message.epoch, message.offset)

    def _go_on(self) -> None:
        """Queue what was held and follows the cursor; behind it the stream is live, or still behind."""
        while self._held:
            message, size = self._held[0]
            assert self.cursor is not None
            if message.offset > self.cursor.offset + 1:
                break
            self._held.popleft()
            self._held_bytes -= size
            if message.offset > self.cursor.offset:
                self._push(message, size)
        assert self.cursor is not None
        self._behind = self.cursor.offset < self.newest

    def _bridge(self, offset: int) -> None:
        """Tell of a hole up to and including a place, if there is one."""
        assert self.cursor is not None
        if offset > self.cursor.offset:
            self._tell_gap("missing", Position(self.cursor.epoch, offset))

    def _reach(self, epoch: str, offset: int) -> None:
        """Tell what is missing between the cursor and a place, in the same stream or the next one."""
        assert self.cursor is not None
        if epoch == self.cursor.epoch:
            self._bridge(offset)
        else:
            self._tell_gap("epoch_changed", Position(epoch, offset))

    def _gap(self, reason: GapReason, head: Position) -> None:
        self._tell_gap(reason, head)
        self.newest = head.offset
        self._behind = False
        self._drop_held()

    def _tell_gap(self, reason: GapReason, to: Position) -> None:
        known = self.cursor
        assert known is not None
        missed = to.offset - known.offset if known.epoch == to.epoch and to.offset >= known.offset else None
        last = self._queue[-1][0] if self._queue else None
        if isinstance(last, Gap):  # so of gaps behind each other one waits
            missed = None if missed is None or last.missed is None else missed + last.missed
            self._queue.pop()
            self._bytes -= EVENT_BYTES
        self._queue.append((Gap(self._room, reason, to.epoch, to.offset, missed), EVENT_BYTES))
        self._bytes += EVENT_BYTES
        self.cursor = to


_STATE: Final = State("", "joining")
_PRESENCE: Final = Presence("", {})
