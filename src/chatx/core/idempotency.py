"""Which idempotency keys were used of late, and the place of the message that each one made.

Rules:
1. A key is scoped by (room, user). Seen again within the window it answers with the place of the message it made.
2. Only what was published is recorded: a refusal records nothing. The first message of a key stands.
3. A place is kept, not a message: what a key costs does not grow with what was said.
4. All keys together are bounded in bytes, what Python's objects cost included. One user's keys may take a share of
   these bytes, over all rooms and connections; beyond it that user's oldest key is forgotten. At the bound of all, the
   oldest key of one of the users who hold most is forgotten, where holdings within a quarter of each other count as
   equal. So a user with few keys keeps them, however many other users have.
"""

from __future__ import annotations

from collections import OrderedDict
from struct import Struct as Layout
from typing import Final

from msgspec import Struct

from chatx.core.message import Message

WINDOW_S: Final = 300.0
"""How long a key is remembered, in seconds."""

BYTES: Final = 32 * 1024 * 1024
"""Bytes of all keys together; at the bound the oldest key of whoever holds most is forgotten."""

SHARES: Final = 4
"""One user's keys may take one of so many parts of `BYTES`; beyond it that user's oldest key is forgotten."""

# What a key costs beside its two texts, and a user beside their id: tables, objects, what memory is rounded up by.
# Measured, and held against what Python allocates by a test.
_KEY_BYTES = 280
_USER_BYTES = 400

# When it expires, when it was published, the offset, the hash of the content, the bytes of the id; id and epoch follow.
_LAYOUT = Layout("<dqqqH")


class Place(Struct, frozen=True, gc=False):
    """Where the message that a key made stands.

    Attributes:
        id: The message's id.
        inserted_at: When it was published, in ms since the Unix epoch.
        epoch: The stream.
        offset: The place in that stream.
        content_hash: `hash` of its content, which tells whether a repeat says the same.
    """

    id: str
    inserted_at: int
    epoch: str
    offset: int
    content_hash: int


class _Holder(Struct, gc=False, eq=False):
    """A user with keys: the bytes that the keys cost, and the first and the last of the chain from oldest to newest."""

    user_id: str
    held: int
    oldest: bytes
    newest: bytes


class _Kept(Struct, gc=False):
    """One key: its place, packed into bytes, the next newer key of the same user, and that user."""

    packed: bytes
    newer: bytes | None
    holder: _Holder


class IdempotencyWindow:
    """The idempotency keys of all rooms. A key outlives its room, which is forgotten sooner when idle.

    Attributes:
        held: Bytes that the keys cost.
    """

    __slots__ = ("_heaviest", "_kept", "_most", "_ranks", "_share", "_users", "_window_s", "held")

    def __init__(self, *, window_s: float = WINDOW_S, most_bytes: int = BYTES) -> None:
        self._window_s = window_s
        self._most = most_bytes
        self._share = most_bytes // SHARES
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()  # oldest first
        self._users: dict[str, _Holder] = {}
        # Rank by bytes held -> who has it; who came to it first is first.
        self._ranks: dict[int, OrderedDict[_Holder, None]] = {}
        self._heaviest = 0  # no rank above this one
        self.held: int = 0

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._kept)

    def find(self, room_id: str, user_id: str, key: str, now: float) -> Place | None:
        """Return the place of the message that this key made within the window, or None."""
        kept = self._kept.get(_scope(room_id, user_id, key))
        if kept is None:
            return None
        packed = kept.packed
        until, inserted_at, offset, content_hash, id_size = _LAYOUT.unpack_from(packed)
        if until <= now:
            return None
        epoch_at = _LAYOUT.size + id_size
        return Place(
            packed[_LAYOUT.size : epoch_at].decode(), inserted_at, packed[epoch_at:].decode(), offset, content_hash
        )

    def record(self, key: str, message: Message, now: float) -> None:
        """Remember that `key` of the message's room and sender made this message."""
        # Two for one, so that what is over goes although nobody sweeps.
        self.expire(now, 2)
        user_id = message.user_id
        scope = _scope(message.room_id, user_id, key)
        message_id = message.id.encode()
        packed = (
            _LAYOUT.pack(
                now + self._window_s, message.inserted_at, message.offset, hash(message.content), len(message_id)
            )
            + message_id
            + message.epoch.encode()
        )
        kept = self._kept.get(scope)
        if kept is not None:
            if _until(kept) > now:
                return
            # It is over, and so are the user's older ones.
            while scope in self._kept:
                self._forget_oldest(kept.holder)
        holder = self._users.get(user_id)
        if holder is None:
            holder = self._users[user_id] = _Holder(user_id, 0, scope, scope)
            self._weigh(holder, _USER_BYTES + len(user_id.encode()))
        else:
            self._kept[holder.newest].newer = scope
            holder.newest = scope
        self._kept[scope] = _Kept(packed, None, holder)
        self._weigh(holder, _KEY_BYTES + len(scope) + len(packed))
        while holder.held > self._share and holder.oldest is not scope:
            self._forget_oldest(holder)
        while self.held > self._most and len(self._kept) > 1:
            self._forget_oldest(self._who_holds_most())

    def expire(self, now: float, at_most: int) -> int:
        """Forget keys whose window has passed, oldest first, at most `at_most`; return how many were forgotten."""
        gone = 0
        while gone < at_most and self._kept:
            oldest = self._kept[next(iter(self._kept))]
            if _until(oldest) > now:
                break
            # The oldest of all is its user's oldest as well.
            self._forget_oldest(oldest.holder)
            gone += 1
        return gone

    def _forget_oldest(self, holder: _Holder) -> None:
        scope = holder.oldest
        kept = self._kept.pop(scope)
        self._weigh(holder, -(_KEY_BYTES + len(scope) + len(kept.packed)))
        if kept.newer is None:
            self._weigh(holder, -holder.held)
            del self._users[holder.user_id]
        else:
            holder.oldest = kept.newer

    def _weigh(self, holder: _Holder, more: int) -> None:
        """Add `more` bytes to what a user holds, and rank the user by the sum; one who holds nothing has no rank."""
        before, after = _rank(holder.held), _rank(holder.held + more)
        holder.held += more
        self.held += more
        if before == after:
            return
        if before:
            equals = self._ranks[before]
            del equals[holder]
            if not equals:
                del self._ranks[before]
        if after:
            self._ranks.setdefault(after, OrderedDict())[holder] = None
            self._heaviest = max(self._heaviest, after)

    def _who_holds_most(self) -> _Holder:
        # There are few ranks, four for each power of two.
        while self._heaviest not in self._ranks:
            self._heaviest -= 1
        return next(iter(self._ranks[self._heaviest]))


def _scope(room_id: str, user_id: str, key: str) -> bytes:
    # No id has a control character in it, so no two scopes are written alike.
    return f"{room_id}\0{user_id}\0{key}".encode()


def _rank(held: int) -> int:
    """Return the rank of so many bytes: 0 for none, else a number that grows by one for about each fifth more."""
    bits = held.bit_length()
    return bits << 2 | held >> bits - 3 & 3 if bits > 2 else 0


def _until(kept: _Kept) -> float:
    until: float = _LAYOUT.unpack_from(kept.packed)[0]
    return until
