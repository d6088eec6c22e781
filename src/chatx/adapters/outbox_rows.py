"""A row of an outbox's table: how its users are kept, and which state it is in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from chatx.adapters.outbox import Notification, NotificationState


def text_of(users: Sequence[str] | None) -> str | None:
    """Return users as a row keeps them."""
    return None if users is None else msgspec.json.encode(users).decode()


def notification_of(row: Sequence[Any]) -> Notification:
    """Return the row (id, room_id, users, attempts, due_at, reason, claimer) as what it is."""
    id_, room_id, users, attempts, due_at, reason, claimer = row
    state: NotificationState = "dead" if reason is not None else "waiting" if claimer is None else "claimed"
    named = None if users is None else msgspec.json.decode(users, type=tuple[str, ...])
    return Notification(id_, room_id, named, attempts, state, due_at, reason)
