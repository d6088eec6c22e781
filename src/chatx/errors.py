"""One tree of exceptions, one table of codes.

Every refusal chatx makes is a `ChatError`. The class attributes below are the table that the wire protocol, the
documentation and the tests read: `code` is stable text, `retryable` says whether the same call can succeed later
without being changed, and `summary` says in one line what the code means. `ERRORS` maps code to class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Self

# CPython's mark of a class that was made by a `class` statement, not built in.
_HEAP_TYPE = 1 << 9


class _Summary:
    """The reason of an error that was given none: its class's summary."""

    def __get__(self, error: ChatError | None, kind: type[ChatError]) -> str:
        return kind.summary


class ChatError(Exception):
    """A refusal or a failure, with a stable code.

    Attributes:
        code: Stable machine-readable text, one per class.
        retryable: Whether the same call may succeed later, unchanged.
        retry_after: Seconds to wait before the call may succeed, or None where that is not known.
        reason: What was wrong, what was expected, and what to do, for a person.
    """

    code: ClassVar[str] = "chat_error"
    retryable: ClassVar[bool] = False
    summary: ClassVar[str] = "The root of the tree; never raised itself."

    if not TYPE_CHECKING:
        # For classes of an application's own whose constructor does not pass them on.
        reason = _Summary()
        retry_after = None

    def __init__(self, reason: str = "", *, retry_after: float | None = None) -> None:
        self.reason: str = reason or type(self).summary
        self.retry_after: float | None = retry_after
        super().__init__(self.reason)

    def again(self) -> Self:
        """Return an equal exception without this one's traceback, for another caller who waits for the same outcome.

        No constructor is called: an application's own class may have one that takes something else.
        """
        kind = type(self)
        built_in = next(each for each in kind.__mro__ if not each.__flags__ & _HEAP_TYPE)
        try:
            error = built_in.__new__(kind, *self.args)
            error.args = self.args
            for name in (
                slot for each in kind.__mro__ for slot in getattr(each, "__slots__", ()) if hasattr(self, slot)
            ):
                setattr(error, name, getattr(self, name))
            vars(error).update(vars(self))
        except Exception:
            return self  # with a traceback that grows, rather than with none to raise
        return error


class ConfigError(ChatError):
    """An option is unknown, out of range, or of the wrong type.

    Attributes:
        problems: All that is wrong, each with what was expected and what to do; `reason` lists them.
    """

    code = "config_error"
    summary = "An option is unknown, out of range or of the wrong type."

    def __init__(self, reason: str = "", *, problems: Sequence[str] = (), retry_after: float | None = None) -> None:
        if len(problems) > 1:
            reason = f"{len(problems)} things are wrong:" + "".join(f"\n* {each}" for each in problems)
        super().__init__(reason or "".join(problems), retry_after=retry_after)
        self.problems: tuple[str, ...] = tuple(problems) or (self.reason,)


class Problems:
    """Gathers what is wrong with a configuration, so that all of it is told at once."""

    def __init__(self) -> None:
        self._found: list[ConfigError] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep a `ConfigError` that the block raises, and go on behind the block."""
        try:
            yield
        except ConfigError as error:
            self._found.append(error)

    def tell(self) -> None:
        """Raise the gathered errors as one, if there are any.

        Raises:
            ConfigError: Its `problems` are those of all gathered errors.
        """
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            raise ConfigError(problems=[each for error in self._found for each in error.problems])


class InvalidMessage(ChatError):
    """What was sent is not acceptable text, or an id in it is not a valid id."""

    code = "invalid_message"
    summary = "The content, an id or the payload is not valid."


class MessageTooLarge(ChatError):
    """The content has more bytes of UTF-8 than `message_size_limit`."""

    code = "message_too_large"
    summary = "The content is larger than message_size_limit."


class Unauthorized(ChatError):
    """The auth adapter said no. An auth adapter raises it itself to give a reason of its own."""

    code = "unauthorized"
    summary = "This user may not do this in this room."


class Revoked(ChatError):
    """`Chat.revoke` cut this user's sessions off; whether they may come back is for the application to say."""

    code = "revoked"
    summary = "This user's sessions were cut off by the application."


class Blocked(ChatError):
    """Moderation said no. A moderation adapter raises it itself to give a reason of its own."""

    code = "blocked"
    summary = "The moderation refused this content."


class RateLimited(ChatError):
    """The token bucket of this user in this room is empty; `retry_after` is exact for a lone sender."""

    code = "rate_limited"
    retryable = True
    summary = "Too many messages in too short a time."


class RoomOverloaded(ChatError):
    """As many messages as the bound allows are waiting already; `retry_after` is an estimate."""

    code = "room_overloaded"
    retryable = True
    summary = "The room has as many messages waiting as it may."


class RoomUnavailable(ChatError):
    """The room failed while it did this; whether the message was published is not known."""

    code = "room_unavailable"
    retryable = True
    summary = "The room failed; it is being rebuilt. Retry with the same idempotency key."


class AdapterError(ChatError):
    """An adapter or a middleware failed, hung or gave a wrong answer, and so the call was refused."""

    code = "adapter_error"
    retryable = True
    summary = "An adapter failed, so the call was refused."


class SlowConsumer(ChatError):
    """A subscriber left more unread than its mailbox holds and was cut off; it resumes from its last offset."""

    code = "slow_consumer"
    retryable = True
    summary = "Too much was left unread. Subscribe again after the last position read."


class SubscriberFailed(ChatError):
    """A subscriber's callback raised, so its subscription was ended."""

    code = "subscriber_failed"
    summary = "The subscriber's callback raised; subscribe again after the last position it handled."


class EpochChanged(ChatError):
    """The room is in another epoch than the place to go on from, or the send that is for one epoch only."""

    code = "epoch_changed"
    summary = "The room is in another epoch than the place, or the send, is for. Load the newest history."


class TooOld(ChatError):
    """What follows the place to go on from is no longer kept."""

    code = "too_old"
    summary = "What follows the place is no longer kept. Load the newest history."


class UnmatchedTopic(ChatError):
    """On the wire: the topic is not joined, or is none that this server has."""

    code = "unmatched_topic"
    summary = "unmatched topic"


class TooManyJoins(ChatError):
    """On the wire: the connection has joined as many topics as it may."""

    code = "too_many_joins"
    retryable = True
    summary = "too many channels joined"


class Closed(ChatError):
    """The chat, the connection or the subscription is not open."""

    code = "closed"
    summary = "The chat, connection or subscription is not open."


class AlreadyStarted(ChatError):
    """`start` was called on a chat that is running."""

    code = "already_started"
    summary = "The chat is running already."


class StoreInUse(ChatError):
    """Another chat writes to the store still, so this one did not start: a store has one writer at a time."""

    code = "store_in_use"
    retryable = True
    summary = "Another chat writes to the same store, so this one did not start."


class WrongLoop(ChatError):
    """The call came from another thread or another event loop than the chat was started on."""

    code = "wrong_loop"
    summary = "The call came from another thread or event loop than the chat runs on."


HTTP_STATUS = {
    "invalid_message": 400,
    "unauthorized": 403,
    "revoked": 403,
    "epoch_changed": 410,
    "too_old": 410,
    "message_too_large": 413,
    "blocked": 422,
    "rate_limited": 429,
    "closed": 503,
    "config_error": 500,
    "subscriber_failed": 500,
    "already_started": 500,
    "wrong_loop": 500,
}
"""The status of an error by its code; any other code is 503 where the error is retryable, else 422."""


def http_status(error: ChatError) -> int:
    """Return an error's HTTP status: 4xx for what was asked, 503 for what may work later, 500 for a mistake here."""
    return HTTP_STATUS.get(error.code, 503 if error.retryable else 422)


ERRORS: dict[str, type[ChatError]] = {
    error.code: error
    for error in (
        ConfigError,
        InvalidMessage,
        MessageTooLarge,
        Unauthorized,
        Revoked,
        Blocked,
        RateLimited,
        RoomOverloaded,
        RoomUnavailable,
        AdapterError,
        SlowConsumer,
        SubscriberFailed,
        EpochChanged,
        TooOld,
        UnmatchedTopic,
        TooManyJoins,
        Closed,
        AlreadyStarted,
        StoreInUse,
        WrongLoop,
    )
}
"""Every error that is raised, by its code."""
