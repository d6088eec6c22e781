"""Who is in a room, and what changed since it was last told.

Rules:
1. A user is present while one of their memberships is; each membership is one meta with a ref of its own.
2. A diff names each real change once: a membership that began and ended between two diffs is in none.
3. A snapshot and every diff taken after it, replayed, equal a fresh snapshot. So a snapshot is handed out only when
   no change is untold: the caller takes the diff first.
"""

from __future__ import annotations

from itertools import islice

from chatx.core.message import PresenceMeta, Presences


class Changes:
    """The memberships that began, and those that ended, still to be told; one that did both is not among them."""

    __slots__ = ("_joined", "_left")

    def __init__(self) -> None:
        self._joined: dict[str, tuple[str, PresenceMeta]] = {}
        self._left: dict[str, tuple[str, PresenceMeta]] = {}

    def __bool__(self) -> bool:
        """Return whether there is anything to tell."""
        return bool(self._joined or self._left)

    def began(self, user_id: str, meta: PresenceMeta) -> None:
        """Note a membership that began; its ref is one that the room has not seen."""
        self._joined[meta.ref] = (user_id, meta)

    def ended(self, user_id: str, meta: PresenceMeta) -> None:
        """Note that a membership ended."""
        if self._joined.pop(meta.ref, None) is None:
            self._left[meta.ref] = (user_id, meta)

    def add(self, joins: Presences, leaves: Presences) -> None:
        """Note a diff, as taken from other changes of the same room."""
        for user_id, metas in joins.items():
            for meta in metas:
                self.began(user_id, meta)
        for user_id, metas in leaves.items():
            for meta in metas:
                self.ended(user_id, meta)

    def take(self) -> tuple[Presences, Presences]:
        """Return (joins, leaves), and count them as told."""
        joined, self._joined = self._joined, {}
        left, self._left = self._left, {}
        return _by_user(joined), _by_user(left)

    def copy(self) -> Changes:
        """Return an equal copy."""
        copy = type(self)()
        copy._joined, copy._left = dict(self._joined), dict(self._left)
        return copy


class Presence:
    """The memberships of one room."""

    __slots__ = ("_changes", "_listed", "_users")

    def __init__(self) -> None:
        self._users: dict[str, dict[str, PresenceMeta]] = {}
        self._changes = Changes()
        self._listed: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """Return how many users are present."""
        return len(self._users)

    def __contains__(self, user_id: object) -> bool:
        """Return whether the user is present."""
        return user_id in self._users

    def has(self, user_id: str, ref: str) -> bool:
        """Return whether the user has this membership."""
        return ref in self._users.get(user_id, ())

    def users(self) -> tuple[str, ...]:
        """Return who is present, in the order of their coming; the same tuple until that changes."""
        if self._listed is None:
            self._listed = tuple(self._users)
        return self._listed

    def add(self, user_id: str, meta: PresenceMeta) -> None:
        """Begin a membership; its ref is one that the room has not seen."""
        metas = self._users.get(user_id)
        if metas is None:
            metas = self._users[user_id] = {}
            self._listed = None
        metas[meta.ref] = meta
        self._changes.began(user_id, meta)

    def remove(self, user_id: str, ref: str) -> bool:
        """End a membership; return whether there was one."""
        metas = self._users.get(user_id)
        meta = metas.pop(ref, None) if metas is not None else None
        if metas is None or meta is None:
            return False
        if not metas:
            del self._users[user_id]
            self._listed = None
        self._changes.ended(user_id, meta)
        return True

    @property
    def changed(self) -> bool:
        """Whether there is a change that no diff has told."""
        return bool(self._changes)

    def take_diff(self) -> tuple[Presences, Presences]:
        """Return (joins, leaves) since the last diff, and count them as told."""
        return self._changes.take()

    def rebuilt(self) -> Presence:
        """Return a fresh presence with the same members and the same changes still to tell."""
        fresh = type(self)()
        fresh._users = {user_id: dict(metas) for user_id, metas in self._users.items() if metas}
        fresh._changes = self._changes.copy()
        return fresh

    def snapshot(self) -> Presences:
        """Return user id to metas, as a copy."""
        return {user_id: list(metas.values()) for user_id, metas in self._users.items()}

    def first(self, limit: int) -> Presences:
        """Return user id to metas of the users who came first, at most `limit` metas; no other user is looked at."""
        first: Presences = {}
        for user_id, metas in self._users.items():
            if limit <= 0:
                break
            first[user_id] = list(islice(metas.values(), limit))
            limit -= len(metas)
        return first


def _by_user(changes: dict[str, tuple[str, PresenceMeta]]) -> Presences:
    users: Presences = {}
    for user_id, meta in changes.values():
        users.setdefault(user_id, []).append(meta)
    return users
