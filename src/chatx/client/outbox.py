"""What waits to be sent, and what is on its way: bounded in messages, bytes and age.

Rules:
1. A room's sends have one order, and one of them is on its way at a time: one that is refused for a while and goes
   again would be overtaken otherwise.
2. A send keeps its idempotency key for all attempts. Once an attempt was written and not answered, it may be published:
   then it goes again within `window_s`, in which the server remembers the key, for the same epoch only. Later, or where
   another epoch does not know the key, it is `SendUnknown`.
3. What was surely not published waits for `most_age_s`, and is `SendRefused` then.
4. Each send that was taken has one outcome.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator
from typing import Any

from chatx.client.errors import EXPIRED, OUTBOX_FULL, UNKNOWN, ClientError, OutboxFull, SendRefused, SendUnknown


class Entry:
    """One send.

    Attributes:
        key: Its idempotency key.
        room: The room's id.
        content: What it says.
        data: The JSON object that travels with it, or None.
        payload: The JSON of its push.
        size: The bytes that it counts for.
        created: When it was taken, in seconds of the caller's clock.
        doubtful_since: When the first attempt was written of which it is not known whether it was published, or None.
        epoch: The room's epoch at that time.
        first: Whether that attempt is the one on its way, so that a refusal of it leaves nothing in doubt.
        ready: Whether it may be written: where there is a storage, once that has it.
        refused: The last refusal, where there was one.
        failures: Refusals one after the other.
        not_before: When it may be written again.
        strikes: How often the connection was closed for what was on its way, this among it.
    """

    __slots__ = (
        "content",
        "created",
        "data",
        "doubtful_since",
        "epoch",
        "failures",
        "first",
        "key",
        "not_before",
        "payload",
        "ready",
        "refused",
        "room",
        "size",
        "strikes",
    )

    def __init__(
        self, room: str, key: str, content: str, data: dict[str, Any] | None, payload: bytes, created: float
    ) -> None:
        self.room: str = room
        self.key: str = key
        self.content: str = content
        self.data: dict[str, Any] | None = data
        self.payload: bytes = payload
        self.size: int = len(payload)
        self.created: float = created
        self.doubtful_since: float | None = None
        self.epoch: str | None = None
        self.first: bool = False
        self.ready: bool = True
        self.refused: ClientError | None = None
        self.failures: int = 0
        self.not_before: float = created
        self.strikes: int = 0

    def unknown(self, why: str) -> SendUnknown:
        """Return what it ends with where nobody can say whether it was published."""
        return SendUnknown(UNKNOWN, f"{why} It may be published or not; look into the room's history, and decide.")


class Outbox:
    """The sends of all rooms of a client.

    Attributes:
        count: How many there are.
        size: Their bytes.
    """

    def __init__(self, *, most: int, most_bytes: int, most_age_s: float, window_s: float) -> None:
        """Build an empty one.

        Args:
            most: The most sends.
            most_bytes: The most bytes of their pushes.
            most_age_s: How long a send that was surely not published may wait.
            window_s: How long the server surely remembers a key; less than its five minutes.
        """
        self.count: int = 0
        self.size: int = 0
        self._most = most
        self._most_bytes = most_bytes
        self._most_age_s = most_age_s
        self._window_s = window_s
        self._rooms: dict[str, deque[Entry]] = {}
        self._keys: set[tuple[str, str]] = set()

    def add(self, entry: Entry) -> None:
        """Take a send, behind the others of its room.

        Raises:
            OutboxFull: There is no place for it.
            SendRefused: One with its key waits in its room already.
        """
        if (entry.room, entry.key) in self._keys:
            raise SendRefused(
                "invalid_message", f"The key {entry.key!r} is on its way in this room; draw one for each message."
            )
        if self.count >= self._most or self.size + entry.size > self._most_bytes:
            raise OutboxFull(
                OUTBOX_FULL,
                f"{self.count} messages of {self.size} bytes wait to be sent, and {self._most} of {self._most_bytes} "
                "bytes may; send more slowly, or set outbox_messages and outbox_bytes.",
            )
        self.restore(entry)

    def restore(self, entry: Entry) -> None:
        """Take a send that was in an outbox before, also beyond the bound: it was within one then."""
        self._rooms.setdefault(entry.room, deque()).append(entry)
        self._keys.add((entry.room, entry.key))
        self.count += 1
        self.size += entry.size

    def head(self, room: str) -> Entry | None:
        """Return the send of a room whose turn it is, or None."""
        waiting = self._rooms.get(room)
        return waiting[0] if waiting else None

    def remove(self, entry: Entry) -> None:
        """Let go of a send that has its outcome."""
        waiting = self._rooms[entry.room]
        waiting.remove(entry)
        if not waiting:
            del self._rooms[entry.room]
        self._keys.remove((entry.room, entry.key))
        self.count -= 1
        self.size -= entry.size

    def of(self, room: str) -> tuple[Entry, ...]:
        """Return the sends of a room, in their order."""
        return tuple(self._rooms.get(room, ()))

    def __iter__(self) -> Iterator[Entry]:
        return (entry for waiting in self._rooms.values() for entry in waiting)

    def overdue(self, now: float, rooms: Container[str]) -> list[tuple[Entry, ClientError]]:
        """Return the sends in these rooms that are too old, each with what it ends with; they stay until removed."""
        return [(entry, self._too_late(entry)) for entry in self if entry.room in rooms and now >= self.ends(entry)]

    def next_overdue(self, rooms: Container[str]) -> float | None:
        """Return when the next send in these rooms will be too old, or None where there is none."""
        return min((self.ends(entry) for entry in self if entry.room in rooms), default=None)

    def failed(self, entry: Entry, error: ClientError) -> ClientError:
        """Return what a send ends with that is given up for an error: `SendUnknown` where it may be published."""
        if entry.doubtful_since is not None:
            return entry.unknown(f"{error.reason} Until then there was no answer to this message.")
        return error.again()

    def ends(self, entry: Entry) -> float:
        """Return when a send is too old."""
        if entry.doubtful_since is not None:
            return entry.doubtful_since + self._window_s
        return entry.created + self._most_age_s

    def _too_late(self, entry: Entry) -> ClientError:
        if entry.doubtful_since is not None:
            return entry.unknown(f"The answer was lost, and for {self._window_s:g} s it could not be asked for again.")
        last = entry.refused
        if last is not None:
            return SendRefused(last.code, f"{last.reason} It was tried for {self._most_age_s:g} s.", last.retry_after)
        return SendRefused(EXPIRED, f"It could not be sent within {self._most_age_s:g} s; send it again.")
