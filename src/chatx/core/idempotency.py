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

from collections import OrderedDict, defaultdict
from struct import Struct as Layout
from typing import Final

from msgspec import Struct

from chatx.core.data import Data
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

# When it expires, when it was published, the offset, the hash of what it says, the length of the id in characters; id
# and epoch follow.
_LAYOUT = Layout("<dqqqH")
_pack = _LAYOUT.pack

# Added to the length of the id where the message was acknowledged as stored.
_STORED: Final = 0x8000

# The least that each rank stands for: 0 for nothing, then four ranks for each power of two. Of 1 to 11 there are none.
_FLOORS: Final = (0, *[4] * 11, *((4 | rank & 3) << (rank >> 2) - 3 for rank in range(12, 260)))


class Place(Struct, frozen=True, gc=False):
    """Where the message that a key made stands.

    Attributes:
        id: The message's id.
        inserted_at: When it was published, in ms since the Unix epoch.
        epoch: The stream.
        offset: The place in that stream.
        content_hash: `said` of its content and data, which tells whether a repeat says the same.
        stored: Whether it was acknowledged as stored.
    """

    id: str
    inserted_at: int
    epoch: str
    offset: int
    content_hash: int
    stored: bool = False


class _Holder(Struct, gc=False, eq=False):
    """A user with keys: the bytes that the keys cost, the rank by them, and the oldest key and the newest."""

    user_id: str
    held: int
    rank: int
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
        incomplete_until: Until when a key may be missing here within its window, since bounds made it go early.
    """

    __slots__ = (
        "_by_room",
        "_due",
        "_heaviest",
        "_kept",
        "_most",
        "_ranks",
        "_share",
        "_sorted_to",
        "_users",
        "_window_s",
        "held",
        "incomplete_until",
    )

    def __init__(self, *, window_s: float = WINDOW_S, most_bytes: int = BYTES) -> None:
        self._window_s = window_s
        self._most = most_bytes
        self._share = most_bytes // SHARES
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()  # oldest first
        self._by_room: defaultdict[bytes, list[bytes]] = defaultdict(list)  # of keys up to one, some of them gone
        self._sorted_to: _Kept | None = None
        self._due = 0.0  # nothing is over before
        self._users: dict[str, _Holder] = {}
        # Rank by bytes held -> who has it; who came to it first is first.
        self._ranks: defaultdict[int, OrderedDict[_Holder, None]] = defaultdict(OrderedDict)
        self._heaviest = 0  # no rank above this one
        self.held: int = 0
        self.incomplete_until: float = 0.0

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._kept)

    def find(self, scope: bytes, now: float) -> Place | None:
        """Return the place of the message that the key of this `scope_of` made within the window, or None."""
        kept = self._kept.get(scope)
        if kept is None:
            return None
        packed = kept.packed
        until, inserted_at, offset, content_hash, id_length = _LAYOUT.unpack_from(packed)
        if until <= now:
            return None
        texts = packed[_LAYOUT.size :].decode()
        stored = id_length >= _STORED
        if stored:
            id_length -= _STORED
        return Place(texts[:id_length], inserted_at, texts[id_length:], offset, content_hash, stored)

    def keys_of(self, room_id: str) -> dict[int, str]:
        """Return offset to key, of what is remembered of a room.

        The first call looks at every key there is, and sorts them by room; a later one looks at those that came since,
        until `forget_rooms`.
        """
        newer: list[bytes] = []
        for scope, kept in reversed(self._kept.items()):
            if kept is self._sorted_to:
                break
            newer.append(scope)
        else:
            self._by_room.clear()  # the last one that was sorted is gone, or there was none
        for scope in newer:
            self._by_room[scope[: scope.index(b"\0")]].append(scope)
        self._sorted_to = next(reversed(self._kept.values()), None)
        of_room = ((scope, self._kept.get(scope)) for scope in self._by_room.get(room_id.encode(), ()))
        return {_LAYOUT.unpack_from(kept.packed)[2]: key_of(scope) for scope, kept in of_room if kept is not None}

    def forget_rooms(self) -> None:
        """Let go of how the keys are sorted by room: it takes about as much again as the keys."""
        self._by_room.clear()
        self._sorted_to = None

    def record(self, scope: bytes, message: Message, now: float) -> None:
        """Remember that a key, by the `scope_of` it in the message's room and for its sender, made this message."""
        if now >= self._due:
            # Two for one, so that what is over goes although nobody sweeps.
            self.expire(now, 2)
        message_id = message.id
        id_length = len(message_id) + _STORED if message.stored else len(message_id)
        packed = (
            _pack(
                now + self._window_s,
                message.inserted_at,
                message.offset,
                said(message.content, message.data),
                id_length,
            )
            + (message_id + message.epoch).encode()
        )
        keys = self._kept
        kept = keys.get(scope)
        if kept is not None:
            if _until(kept) > now:
                return
            # It is over, and so are the user's older ones.
            while scope in keys:
                self._forget_oldest(kept.holder)
        cost = _KEY_BYTES + len(scope) + len(packed)
        user_id = message.user_id
        holder = self._users.get(user_id)
        if holder is None:
            holder = self._users[user_id] = _Holder(user_id, 0, 0, scope, scope)
            cost += _USER_BYTES + len(user_id.encode())
        else:
            keys[holder.newest].newer = scope
            holder.newest = scope
        keys[scope] = _Kept(packed, None, holder)
        holder.held = held = holder.held + cost
        self.held += cost
        if held >= _FLOORS[holder.rank + 1]:
            self._rank_anew(holder)
        while holder.held > self._share and holder.oldest is not scope:
            self._forget_oldest(holder)
            self.incomplete_until = now + self._window_s
        while self.held > self._most and len(self._kept) > 1:
            self._forget_oldest(self._who_holds_most())
            self.incomplete_until = now + self._window_s

    def expire(self, now: float, at_most: int) -> int:
        """Forget keys whose window has passed, oldest first, at most `at_most`; return how many were forgotten."""
        gone = 0
        while gone < at_most and self._kept:
            oldest = self._kept[next(iter(self._kept))]
            until = _until(oldest)
            if until > now:
                self._due = until
                break
            # The oldest of all is its user's oldest as well.
            self._forget_oldest(oldest.holder)
            gone += 1
        return gone

    def _forget_oldest(self, holder: _Holder) -> None:
        scope = holder.oldest
        kept = self._kept.pop(scope)
        self._lighten(holder, _KEY_BYTES + len(scope) + len(kept.packed))
        if kept.newer is None:
            self._lighten(holder, holder.held)
            del self._users[holder.user_id]
        else:
            holder.oldest = kept.newer

    def _lighten(self, holder: _Holder, less: int) -> None:
        """Take `less` bytes from what a user holds, and rank the user anew where the sum asks for it."""
        holder.held = held = holder.held - less
        self.held -= less
        if held < _FLOORS[holder.rank]:
            self._rank_anew(holder)

    def _rank_anew(self, holder: _Holder) -> None:
        """Rank a user by the bytes that they hold; one who holds nothing has no rank."""
        if holder.rank:
            del self._ranks[holder.rank][holder]
        held = holder.held
        bits = held.bit_length()
        # 0 for nothing, else a number that grows by one for about a fifth more.
        rank = holder.rank = bits << 2 | held >> bits - 3 & 3 if bits > 2 else 0
        if rank:
            equals = self._ranks[rank]
            if not equals:
                self._heaviest = max(self._heaviest, rank)
            equals[holder] = None

    def _who_holds_most(self) -> _Holder:
        # There are few ranks, four for each power of two.
        while not self._ranks[self._heaviest]:
            self._heaviest -= 1
        return next(iter(self._ranks[self._heaviest]))


def said(content: str, data: Data | None) -> int:
    """Return a hash of what a message says, by which a repeat is compared with the first one of its key."""
    return hash(content) if data is None else hash((content, data.text))


def key_of(scope: bytes) -> str:
    """Return the key that a `scope_of` was made of."""
    return scope.rpartition(b"\0")[2].decode()


def scope_of(room_id: str, user_id: str, key: str) -> bytes:
    """Return what stands for a user's key in a room; three valid ids make one that no others make."""
    # No id has a control character in it, so no two scopes are written alike.
    return f"{room_id}\0{user_id}\0{key}".encode()


def _until(kept: _Kept) -> float:
    until: float = _LAYOUT.unpack_from(kept.packed)[0]
    return until
