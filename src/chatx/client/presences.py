"""Who is in a room, from the states and diffs that the wire tells.

Rules: a state replaces everything; of a diff, leaves are taken away by `ref` and joins added; a user without
memberships is gone. The server bounds how many there are: they are those of the room.
"""

from __future__ import annotations

from chatx.core.message import PresenceMeta
from chatx.gateway.wire.payloads import PhxDiff, PhxMetas


class Presences:
    """The memberships of a room, by user and `ref`."""

    __slots__ = ("_here",)

    def __init__(self) -> None:
        self._here: dict[str, dict[str, PresenceMeta]] = {}

    def replace(self, state: dict[str, PhxMetas]) -> None:
        """Take a whole state."""
        self._here = {user: _by_ref(known) for user, known in state.items() if known.metas}

    def change(self, diff: PhxDiff) -> None:
        """Take what changed."""
        for user, gone in diff.leaves.items():
            known = self._here.get(user, {})
            for meta in gone.metas:
                known.pop(meta.phx_ref, None)
            if not known:
                self._here.pop(user, None)
        for user, come in diff.joins.items():
            if come.metas:
                self._here.setdefault(user, {}).update(_by_ref(come))

    def members(self) -> dict[str, tuple[PresenceMeta, ...]]:
        """Return who is there."""
        return {user: tuple(known.values()) for user, known in self._here.items()}


def _by_ref(user: PhxMetas) -> dict[str, PresenceMeta]:
    return {meta.phx_ref: PresenceMeta(meta.phx_ref, meta.online_at) for meta in user.metas}
