"""The outbox of a log in memory: for tests, and for trying out what needs one. The chat's `outbox_limit` bounds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from chatx.adapters.outbox import FARTHEST_MS, Claimed, Notification, NotificationState, Outcome
from chatx.adapters.room_log import Record
from chatx.core.message import Entry


class MemoryOutbox:
    """Notifications in memory, by the ids of their entries; its methods are async and await nothing."""

    def __init__(self, entry_at: Callable[[str, str, int], Entry | None]) -> None:
        self._entry_at = entry_at  # (room id, epoch, offset) -> the entry, where it is kept
        self._rows: dict[str, Notification] = {}
        self._places: dict[str, tuple[str, str, int]] = {}
        self._claimers: dict[str, str] = {}

    def _keep(self, record: Record) -> None:
        """Take a row for an entry that is appended, where somebody is to be told of it."""
        entry, notify = record.entry, record.notify
        if notify is not None:
            self._rows[entry.id] = Notification(entry.id, entry.room_id, notify.users, 0, "waiting", notify.due_at)
            self._places[entry.id] = entry.room_id, entry.epoch, entry.offset

    def _waits(self, entry_id: str) -> bool:
        """Return whether somebody is still to be told of an entry."""
        row = self._rows.get(entry_id)
        return row is not None and row.state != "dead"

    async def claim_notifications(self, claimer: str, limit: int, now_ms: int, until_ms: int, /) -> list[Claimed]:
        """Claim until `until_ms` rows that are due, at most `limit`, those first that have been due longest."""
        due = [each for each in self._rows.values() if each.state != "dead" and _is_due(each, now_ms)]
        due.sort(key=lambda each: each.due_at)
        claimed: list[Claimed] = []
        for row in due[:limit]:
            self._claimers[row.id] = claimer
            self._rows[row.id] = replace(row, state="claimed", due_at=until_ms)
            claimed.append(Claimed(self._rows[row.id], self._entry_at(*self._places[row.id])))
        return claimed

    async def settle_notifications(self, claimer: str, outcomes: Sequence[Outcome], /) -> None:
        """Write down what became of rows; those that are not this claimer's any more stay as they are."""
        for each in outcomes:
            row = self._rows.get(each.id)
            if row is None or self._claimers.get(each.id) != claimer:
                continue
            if each.state == "done":
                await self.drop_notifications([each.id])
                continue
            if each.state != "claimed":
                del self._claimers[each.id]
            self._rows[each.id] = Notification(
                row.id, row.room_id, each.users, each.attempts, each.state, each.due_at, each.reason
            )

    async def list_notifications(
        self, state: NotificationState | None, after: str | None, limit: int, /
    ) -> list[Notification]:
        """Return rows of one state, or of all, in the order of their ids and behind one, at most `limit`."""
        rows = sorted(self._rows.values(), key=lambda each: each.id)
        return [each for each in rows if state in (None, each.state) and (after is None or each.id > after)][:limit]

    async def retry_notifications(self, ids: Sequence[str], /) -> int:
        """Let dead rows be tried again, as if for the first time; return how many of these were dead."""
        dead = [row for each in ids if (row := self._rows.get(each)) is not None and row.state == "dead"]
        for row in dead:
            self._rows[row.id] = replace(row, state="waiting", attempts=0, due_at=0, reason=None)
        return len(dead)

    async def drop_notifications(self, ids: Sequence[str], /) -> int:
        """Take rows out, whatever their state; return how many there were."""
        found = [each for each in dict.fromkeys(ids) if each in self._rows]
        for each in found:
            del self._rows[each], self._places[each]
            self._claimers.pop(each, None)
        return len(found)

    async def count_notifications(self) -> tuple[int, int]:
        """Return how many rows are not dead, and how many are."""
        dead = sum(each.state == "dead" for each in self._rows.values())
        return len(self._rows) - dead, dead


def _is_due(row: Notification, now_ms: int) -> bool:
    return row.due_at <= now_ms or row.due_at > now_ms + FARTHEST_MS
