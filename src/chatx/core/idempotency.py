"""Which idempotency keys were used of late, and for which message.

Rules:
1. A key is scoped by (room, user); a key seen within the window answers with the message it made.
2. Only what was published is recorded: a refusal records nothing.
3. Bounded twice: by age (the window) and by count per room, where the oldest key goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice

from chatx.core.message import Message

WINDOW_S = 300.0
"""How long a key is remembered, in seconds."""

KEYS_PER_ROOM = 10_000
"""How many keys a room remembers; at the bound the oldest is forgotten."""


class IdempotencyWindow:
    """The keys of every room. It outlives the rooms themselves, which are forgotten sooner when idle."""

    __slots__ = ("_keys_per_room", "_rooms", "_window_s")

    def __init__(self, *, window_s: float = WINDOW_S, keys_per_room: int = KEYS_PER_ROOM) -> None:
        self._window_s = window_s
        self._keys_per_room = keys_per_room
        # Least recently written room first; in a room the oldest key first. A value is (message, when it expires).
        self._rooms: OrderedDict[str, OrderedDict[tuple[str, str], tuple[Message, float]]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return sum(map(len, self._rooms.values()))

    def find(self, room_id: str, user_id: str, key: str, now: float) -> Message | None:
        """Return the message this key made within the window, or None."""
        room = self._rooms.get(room_id)
        found = room.get((user_id, key)) if room is not None else None
        return found[0] if found is not None and found[1] > now else None

    def record(self, key: str, message: Message, now: float) -> None:
        """Remember that `key` of the message's room and sender made this message."""
        room = self._rooms.setdefault(message.room_id, OrderedDict())
        self._rooms.move_to_end(message.room_id)
        room.pop((message.user_id, key), None)
        # Two for one, so that a room that is never quiet lets go of its old keys too.
        for _ in range(2):
            if room and (len(room) >= self._keys_per_room or next(iter(room.values()))[1] <= now):
                room.popitem(last=False)
        room[message.user_id, key] = (message, now + self._window_s)

    def expire(self, now: float, at_most: int) -> int:
        """Forget keys whose window has passed, at most about `at_most`; return how many went.

        Rooms are visited from the least recently written one; a room whose newest key still counts ends the visit.
        """
        gone = 0
        for room_id in list(islice(self._rooms, at_most)):
            room = self._rooms[room_id]
            while room and gone < at_most:
                oldest = next(iter(room))
                if room[oldest][1] > now:
                    break
                del room[oldest]
                gone += 1
            if room:
                if next(reversed(room.values()))[1] > now:
                    break
            else:
                del self._rooms[room_id]
        return gone
