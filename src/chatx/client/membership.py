"""One room, as the conversation has it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from chatx.client.errors import ClientError
from chatx.client.events import Message, Standing, State
from chatx.client.outbox import Entry
from chatx.client.presences import Presences
from chatx.client.stream import Stream
from chatx.gateway.wire.payloads import Sent


class Ask:
    """A question for history by the program; it is asked again on the next connection where there was no answer.

    Attributes:
        payload: What is asked.
        messages: The answer, once it is there.
        more: Whether there are more.
        error: What came instead.
        done: Called once there is either.
    """

    __slots__ = ("done", "error", "messages", "more", "payload")

    def __init__(self, payload: dict[str, Any], done: Callable[[], None]) -> None:
        self.payload: dict[str, Any] = payload
        self.messages: list[Message] = []
        self.more: bool = False
        self.error: ClientError | None = None
        self.done: Callable[[], None] = done


class Membership:
    """One room, as the conversation has it.

    Attributes:
        id: Its id.
        stream: What it tells.
        presences: Who is there, where that is to be told.
        state: How the client stands to it.
        error: Why it has ended, or None.
        acknowledged: Sends that are acknowledged and whose message is still to come, by its id.
    """

    __slots__ = (
        "acknowledged",
        "anew_at",
        "asks",
        "error",
        "failures",
        "id",
        "in_flight",
        "join_at",
        "join_ref",
        "page_at",
        "presences",
        "state",
        "stream",
        "topic",
    )

    def __init__(self, room: str, stream: Stream, presences: Presences | None) -> None:
        self.id: str = room
        self.stream: Stream = stream
        self.presences: Presences | None = presences
        self.state: State = State(room, "joining")
        self.error: ClientError | None = None
        self.topic: str = f"room:{room}"
        self.join_ref: str | None = None
        self.join_at: float = 0.0
        self.anew_at: float = 0.0
        self.failures: int = 0
        self.in_flight: Entry | None = None
        self.page_at: float = 0.0
        self.asks: deque[Ask] = deque()
        self.acknowledged: dict[str, tuple[Entry, Sent]] = {}

    @property
    def unjoined(self) -> Standing:
        """How the client stands to it while it is not joined."""
        return "joining" if self.state.state == "joining" else "away"

    @property
    def joined(self) -> bool:
        """Whether it is joined on the present connection."""
        return self.state.state == "joined"
