"""What waits in the outbox of a log, page by page, for whoever looks at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatx.adapters.boundary import AdapterFailure, Boundary, adapter_name
from chatx.adapters.outbox import LISTED_AT_ONCE, NOTIFICATION_STATES, Notification, has_outbox
from chatx.errors import AdapterError, ChatError, ConfigError, InvalidMessage


async def outbox_page(
    log: Any, boundary: Boundary, state: Any, after: object, limit: object
) -> tuple[Notification, ...]:
    """Return a page of the outbox; arguments and errors as `Chat.outbox`."""
    if not has_outbox(log):
        raise ConfigError("persistence keeps no outbox; give a log that does, such as SQLitePersistence('chat.db').")
    if state is not None and state not in NOTIFICATION_STATES:
        raise InvalidMessage(f"state is {state!r:.100}; give one of {', '.join(NOTIFICATION_STATES)}, or None for all.")
    if isinstance(after, Notification):
        after = after.id
    if after is not None and not isinstance(after, str):
        raise InvalidMessage(f"after is {after!r:.100}; give the Notification behind which the page begins, or its id.")
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LISTED_AT_ONCE:
        raise InvalidMessage(f"limit is {limit!r:.100}; give a whole number from 1 to {LISTED_AT_ONCE}.")
    name = adapter_name(log)
    try:
        answer = await boundary.caller("looking into the outbox")(name, log.list_notifications, state, after, limit)
        if not isinstance(answer, Sequence) or not all(isinstance(each, Notification) for each in answer):
            boundary.failed(name, "wrong_answer", f"list_notifications() answered {type(answer).__name__}")
    except (ChatError, AdapterFailure) as error:
        raise AdapterError(f"{name} could not list its outbox; try again later.") from error
    return tuple(answer[:limit])
