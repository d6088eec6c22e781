"""The outbox of a log: whom the notifier is still to tell of a stored entry, kept until it was told or given up.

A log need not have one; then such notifications wait in memory, as all others do. One that has it writes a row for each
`Record.notify` in the transaction of the entry: there is never the one without the other.

| state | it may be claimed | ends by |
|---|---|---|
| `waiting` | when it is due | a claim |
| `claimed` | when its lease is over: the claimer has died | what its claimer settles |
| `dead` | never | `retry_notifications`, `drop_notifications` |

Times are the caller's, in ms since the Unix epoch. A row that is due more than `FARTHEST_MS` from now was written by a
clock that was set back since: it is due too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from msgspec import Struct

from chatx.adapters.boundary import check_method
from chatx.core.message import Entry

OUTBOX_USERS = 1_000
"""Users in one row, at most. In a room of more the notifier has to name them, by `recipients`."""

FARTHEST_MS = 60_000
"""How far ahead a row can be due, in ms: longer than every lease and every backoff."""

LISTED_AT_ONCE = 1_000
"""Rows in one answer, and ids in one call, at most."""

NotificationState: TypeAlias = Literal["waiting", "claimed", "dead"]
"""What a row of the outbox waits for; see `chatx.adapters.outbox`."""

NOTIFICATION_STATES: tuple[NotificationState, ...] = ("waiting", "claimed", "dead")


class Notification(Struct, frozen=True, gc=False):
    """What the notifier is still to be told: a row of the outbox.

    Attributes:
        id: The id of the entry that it is about.
        room_id: Its room.
        users: Whom to tell still, at most `OUTBOX_USERS`; None where the notifier's `recipients` says whom.
        attempts: How often telling them has failed.
        state: `waiting`, `claimed` by a worker, or `dead`.
        due_at: When it may be claimed, in ms since the Unix epoch; of one that is claimed, when its lease is over.
        reason: Why it is dead, as in `DeadLetter`; else None.
    """

    id: str
    room_id: str
    users: tuple[str, ...] | None
    attempts: int
    state: NotificationState
    due_at: int
    reason: str | None = None


class Claimed(Struct, frozen=True, gc=False):
    """A row that was claimed.

    Attributes:
        notification: The row, claimed.
        entry: What it is about; None where retention has taken it meanwhile.
    """

    notification: Notification
    entry: Entry | None


class Outcome(Struct, frozen=True, gc=False):
    """What became of a claimed row.

    Attributes:
        id: The row.
        state: `done` takes it out; `claimed` keeps it, with a new lease; the others put it back or give it up.
        users: Whom to tell still, as in `Notification`.
        attempts: As in `Notification`.
        due_at: As in `Notification`.
        reason: As in `Notification`.
    """

    id: str
    state: NotificationState | Literal["done"]
    users: tuple[str, ...] | None = None
    attempts: int = 0
    due_at: int = 0
    reason: str | None = None


class KeepsNotifications(Protocol):
    """What a log has that keeps an outbox, beside the methods of a `RoomLog`. Methods may be plain or async."""

    def claim_notifications(
        self, claimer: str, limit: int, now_ms: int, until_ms: int, /
    ) -> Sequence[Claimed] | Awaitable[Sequence[Claimed]]:
        """Claim until `until_ms` rows that are due, at most `limit`, those first that have been due longest.

        No two claims bring the same row while its lease lasts.
        """
        ...

    def settle_notifications(self, claimer: str, outcomes: Sequence[Outcome], /) -> object | Awaitable[object]:
        """Write down what became of rows, each named once; those no longer this claimer's stay as they are."""
        ...

    def list_notifications(
        self, state: NotificationState | None, after: str | None, limit: int, /
    ) -> Sequence[Notification] | Awaitable[Sequence[Notification]]:
        """Return rows of one state, or of all, in the order of their ids and behind one, at most `limit`."""
        ...

    def retry_notifications(self, ids: Sequence[str], /) -> int | Awaitable[int]:
        """Let dead rows be tried again, as if for the first time; return how many of these were dead."""
        ...

    def drop_notifications(self, ids: Sequence[str], /) -> int | Awaitable[int]:
        """Take rows out, whatever their state; return how many there were."""
        ...

    def count_notifications(self) -> tuple[int, int] | Awaitable[tuple[int, int]]:
        """Return how many rows are not dead, and how many are; it is asked once a minute."""
        ...


_METHODS = (
    "claim_notifications",
    "settle_notifications",
    "list_notifications",
    "retry_notifications",
    "drop_notifications",
    "count_notifications",
)


def has_outbox(log: Any) -> bool:
    """Return whether a log keeps an outbox."""
    return all(hasattr(log, each) for each in _METHODS)


def check_outbox(log: object) -> None:
    """Check that the methods of a log's outbox can be called as the engine calls them.

    Raises:
        ConfigError: They cannot, or some of them are missing.
    """
    check_method("persistence", log, "claim_notifications", "claimer", "limit", "now_ms", "until_ms")
    check_method("persistence", log, "settle_notifications", "claimer", "outcomes")
    check_method("persistence", log, "list_notifications", "state", "after", "limit")
    check_method("persistence", log, "retry_notifications", "ids")
    check_method("persistence", log, "drop_notifications", "ids")
    check_method("persistence", log, "count_notifications")


def keeps_some(log: object) -> bool:
    """Return whether a log has a method of an outbox, so that it must have all."""
    return any(hasattr(log, each) for each in _METHODS)
