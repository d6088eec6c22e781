"""What happens inside, told to whoever attaches: counts, metrics and traces are adapters over this.

`handler(event, measurements, metadata)` is called synchronously, with the event's name as it was attached (with or
without the prefix `chatx.`), a dict of numbers and a dict of what they belong to. A handler that raises is detached
and logged. Handlers run on the hot path: they must be quick and must not block.

| event | when | measurements | metadata |
|---|---|---|---|
| `message_sent` | a send was accepted | `bytes`, `duration_ms` | `room_id`, `user_id`, `message_id`, `offset` |
| `broadcast` | a message was fanned out, recipients or none | `recipients` | `room_id`, `message_id`, `offset` |
| `room_join` | a user came in: their first membership began | `members` | `room_id`, `user_id` |
| `room_leave` | a user left: their last membership ended | `members` | `room_id`, `user_id` |
| `queue_size` | a room's admitted messages grew to a power of two | `size`, `limit` | `queue`, `room_id` |
| `queue_overflow` | a send was refused because a queue is full | `size`, `limit` | `queue`, `room_id`, `user_id` |
| `rate_limit_hit` | a send was refused for its rate | `retry_after_ms` | `room_id`, `user_id` |
| `message_refused` | a send was refused, whatever the reason | – | `room_id`, `user_id`, `code` |
| `slow_consumer` | a mailbox overflowed and was closed | `unread`, `bytes` | `room_id` |
| `subscriber_failed` | a subscriber's callback raised and is out | – | `room_id` |
| `room_crash` | a room's code raised and the room was rebuilt | `restarts` | `room_id`, `closed` |
| `room_forgotten` | an idle room was let go of | – | `room_id` |
| `adapter_failure` | an adapter raised, hung or answered wrongly | – | `adapter`, `failure` |
| `delivery_batch` | a batch was handed to persistence | `messages`, `failed`, `duration_ms` | – |
| `delivery_retry` | a delivery failed; tried again | `attempt`, `backoff_ms` | `room_id`, `message_id`, `adapter` |
| `persistence_away` | persistence saves nothing: all waits | `waiting` | `adapter`, `failure` |
| `persistence_back` | persistence saves again | `waiting`, `away_ms` | `adapter` |
| `dead_letter` | a delivery was given up | `attempts` | `room_id`, `message_id`, `adapter` |
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from chatx.core.interrupts import from_signal
from chatx.errors import ConfigError

logger: logging.Logger = logging.getLogger("chatx")

PREFIX = "chatx."

EVENTS = frozenset(
    {
        "adapter_failure",
        "broadcast",
        "dead_letter",
        "delivery_batch",
        "delivery_retry",
        "message_refused",
        "message_sent",
        "persistence_away",
        "persistence_back",
        "queue_overflow",
        "queue_size",
        "rate_limit_hit",
        "room_crash",
        "room_forgotten",
        "room_join",
        "room_leave",
        "slow_consumer",
        "subscriber_failed",
    }
)

Handler: TypeAlias = Callable[[str, Mapping[str, float], Mapping[str, Any]], object]
"""`handler(event, measurements, metadata)`, a plain function; what it returns is ignored."""


class Telemetry:
    """The handlers of one chat, by event."""

    def __init__(self) -> None:
        self._handlers: dict[str, tuple[tuple[str, Handler], ...]] = {}

    def attach(self, event: str, handler: Handler) -> Callable[[], None]:
        """Call a handler at each event of one name from now on.

        Args:
            event: A name of the table above, with or without the prefix `chatx.`.
            handler: `handler(event, measurements, metadata)`, a plain function.

        Returns:
            A function that detaches it; calling it twice is harmless.

        Raises:
            ConfigError: There is no such event, or the handler is not callable.
        """
        name = event.removeprefix(PREFIX) if isinstance(event, str) else event
        if not isinstance(name, str) or name not in EVENTS:
            raise ConfigError(f"There is no telemetry event {event!r}; there are {', '.join(sorted(EVENTS))}.")
        if not callable(handler) or inspect.iscoroutinefunction(handler):
            raise ConfigError(f"The handler for {event} is {handler!r}; give a plain function of three arguments.")
        entry = (event, handler)
        self._handlers[name] = (*self._handlers.get(name, ()), entry)
        return lambda: self._detach(name, entry)

    @property
    def watching(self) -> Mapping[str, object]:
        """The events of which anybody is told, always as they are now, for who asks with each message."""
        return self._handlers

    def watched(self, event: str) -> bool:
        """Return whether anybody is told of this event, so that nothing is computed for nobody."""
        return event in self._handlers

    def emit(self, event: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        """Tell the handlers; one that raises is detached and logged."""
        for entry in self._handlers.get(event, ()):
            try:
                entry[1](entry[0], measurements, metadata)
            # Whatever it raises: one that asks a cancelled future for its result must not cancel the sender.
            except BaseException as error:
                if from_signal(error):
                    raise
                self._detach(event, entry)
                logger.exception(
                    "A telemetry handler for %s raised and was detached.",
                    event,
                    extra={"event": event, "room": metadata.get("room_id"), "user": metadata.get("user_id")},
                )

    def _detach(self, event: str, entry: tuple[str, Handler]) -> None:
        left = tuple(each for each in self._handlers.get(event, ()) if each is not entry)
        if left:
            self._handlers[event] = left
        else:
            self._handlers.pop(event, None)
