"""What the client raises: one small tree, apart from the server's, since it also says what the server never heard."""

from __future__ import annotations

from typing import Final, Self


class ClientError(Exception):
    """What was asked of the client did not happen, or nobody knows.

    Attributes:
        code: Stable machine-readable text: the server's, as in the table of errors, or one of the client's own.
        reason: What was wrong, what was expected, and what to do, for a person.
        retry_after: Seconds to wait before it may succeed, or None where that is not known.
    """

    def __init__(self, code: str, reason: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {reason}")
        self.code: str = code
        self.reason: str = reason
        self.retry_after: float | None = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.code, self.reason, self.retry_after)

    def again(self) -> Self:
        """Return an equal one without this one's traceback, for another caller who gets the same."""
        return type(self)(self.code, self.reason, self.retry_after)


class JoinRefused(ClientError):
    """The room may not be joined, or not any longer."""


class HistoryRefused(ClientError):
    """The server does not serve this history: its reason says why."""


class SendRefused(ClientError):
    """The message was not published, and will not be."""


class OutboxFull(SendRefused):
    """As much waits to be sent as may; this message was not taken."""


class SendUnknown(ClientError):
    """Nobody knows whether the message was published: its answer was lost, and it is too late to ask again."""


class ClientClosed(ClientError):
    """The client or the room is not open: it was closed, or was not entered."""


CLOSED: Final = "closed"
EXPIRED: Final = "expired"
OUTBOX_FULL: Final = "outbox_full"
REVOKED: Final = "revoked"
UNKNOWN: Final = "unknown"
