"""What is told of the sends of one chat, as events; and how many were refused."""

from __future__ import annotations

from collections.abc import Callable

from chatx.core.message import Message
from chatx.errors import ChatError, RoomOverloaded
from chatx.runtime.delivery import Delivery
from chatx.runtime.process import RoomProcess
from chatx.telemetry import Telemetry


class SendEvents:
    """The events of one chat's sends. Whoever sends looks first whether anybody watches `message_sent` or `broadcast`.

    Attributes:
        refused: Refusals so far, by code.
    """

    def __init__(self, telemetry: Telemetry, delivery: Delivery, queue_limit: int, now: Callable[[], float]) -> None:
        self._telemetry = telemetry
        self._delivery = delivery
        self._queue_limit = queue_limit
        self._now = now
        self.refused: dict[str, int] = {}

    def sent(self, message: Message, began: float) -> None:
        """Tell of a message that was sent; `began` is when (loop time)."""
        self._telemetry.emit(
            "message_sent",
            {"bytes": len(message.content.encode()), "duration_ms": (self._now() - began) * 1000},
            {
                "room_id": message.room_id,
                "user_id": message.user_id,
                "message_id": message.id,
                "offset": message.offset,
            },
        )

    def broadcast(self, process: RoomProcess, message: Message) -> None:
        """Tell that everybody in the room gets a message."""
        self._telemetry.emit(
            "broadcast",
            {"recipients": process.subscribers},
            {"room_id": message.room_id, "message_id": message.id, "offset": message.offset},
        )

    def admitted(self, process: RoomProcess) -> None:
        """Tell how many messages the room has admitted, each time that is a power of two."""
        size = process.admitted
        if size & (size - 1) == 0 and self._telemetry.watched("queue_size"):
            self._telemetry.emit(
                "queue_size",
                {"size": size, "limit": self._queue_limit},
                {"queue": "room", "room_id": process.room_id},
            )

    def refusal(self, error: ChatError, room_id: object, user_id: object) -> None:
        """Count a refusal, and tell of it."""
        self.refused[error.code] = self.refused.get(error.code, 0) + 1
        about = {"room_id": room_id, "user_id": user_id}
        if isinstance(error, RoomOverloaded) and self._telemetry.watched("queue_overflow"):
            delivery = self._delivery.full
            size = self._delivery.size if delivery else self._queue_limit
            limit = self._delivery.limit if delivery else self._queue_limit
            queue = "delivery" if delivery else "room"
            self._telemetry.emit("queue_overflow", {"size": size, "limit": limit}, {"queue": queue, **about})
        if self._telemetry.watched("message_refused"):
            self._telemetry.emit("message_refused", {}, {**about, "code": error.code})
