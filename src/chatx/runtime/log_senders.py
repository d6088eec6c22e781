"""Who waits for what becomes of a draft at the log, for as long as a call may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from chatx.core.message import Message
from chatx.core.sequencer import Waiting
from chatx.errors import ChatError, RoomUnavailable
from chatx.runtime.process import RoomProcess

Sender: TypeAlias = "asyncio.Future[Message | ChatError]"
"""What a sender waits for: the message, or the error that the send ends with."""


class LogSenders:
    """The senders of one chat that wait for its log, and the drafts whose senders wait no more."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        *,
        withdraw: Callable[[RoomProcess, Waiting], bool],
        retry_after: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._withdraw = withdraw
        self._retry_after = retry_after
        # By key, what may be published without its sender; a repeat waits for that. At most a batch of each room.
        self._left: dict[bytes, tuple[RoomProcess, Waiting]] = {}
        # Who waits for the log, and until when, in the order of that; a room admits so many, so these are bounded.
        self._waits: dict[Sender, tuple[RoomProcess, Waiting, float]] = {}
        self._expiry: asyncio.TimerHandle | None = None

    async def outcome(self, process: RoomProcess, waiting: Waiting) -> Message:
        """Wait for what becomes of a draft.

        Raises:
            RoomUnavailable: The log did not take it in time, or at all; its text says whether it may be there.
        """
        sender: Sender = waiting.sender
        if not sender.done():
            # One timer for all who wait: one each, and a future beside this one, cost a fifth of a stored send.
            self._waits[sender] = process, waiting, self._loop.time() + self._timeout_s
            if self._expiry is None:
                self._expiry = self._loop.call_later(self._timeout_s, self._expire)
        try:
            told = await sender
        except asyncio.CancelledError:
            if sender.cancelled() and not self._withdraw(process, waiting):
                self._leave(process, waiting)
            raise
        finally:
            self._waits.pop(sender, None)
        if isinstance(told, ChatError):
            # A copy that no future holds: with its traceback it would hold this frame, and that the future.
            raise told.again()
        return told

    def _expire(self) -> None:
        """Refuse those who have waited for as long as a call may take."""
        self._expiry = None
        now = self._loop.time()
        due: list[tuple[RoomProcess, Waiting]] = []
        for process, waiting, until in self._waits.values():
            if until > now:
                self._expiry = self._loop.call_at(until, self._expire)
                break
            due.append((process, waiting))
        for process, waiting in due:
            sender: Sender = waiting.sender
            del self._waits[sender]
            if sender.done():
                continue
            if self._withdraw(process, waiting):
                text = f"The store took nothing for {self._timeout_s:g} s, so nothing was sent; send again later."
            else:
                self._leave(process, waiting)
                text = (
                    f"The store has not answered for {self._timeout_s:g} s, so it is not known whether the message was "
                    "published; send it again with the same idempotency key."
                )
            sender.set_result(RoomUnavailable(text, retry_after=self._retry_after()))

    def left(self, scope: bytes) -> tuple[RoomProcess, Waiting] | None:
        """Return the draft that was sent with this key, whose sender waits no more, and which may be published yet."""
        return self._left.get(scope)

    def _leave(self, process: RoomProcess, waiting: Waiting) -> None:
        """Go on without the sender, who waits no more: a repeat of its key waits for the outcome in its place."""
        if waiting.over:
            return  # it came to its end after the sender was cancelled, and before that was heard here
        sender: Sender = self._loop.create_future()
        waiting.sender = sender
        scope = waiting.scope
        if scope is None or self._left.get(scope, (process, waiting))[1] is not waiting:
            return
        self._left[scope] = process, waiting

        def told(_: Sender) -> None:
            if waiting.sender is sender:
                self._left.pop(scope, None)

        sender.add_done_callback(told)

    def close(self) -> None:
        """Refuse nobody any more."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None


def tell(sender: Sender, error: ChatError) -> None:
    """Tell a sender the error, unless it was told already or waits no more."""
    if not sender.done():
        sender.set_result(error)
