"""One room as a process: what changes its state, contained. A crash is an exception that escapes the room's own code.

Rules:
1. Whatever the room's code raises, the caller gets `RoomUnavailable` and other rooms never notice.
2. After a crash the room is rebuilt from its members, history and subscribers, at once; nobody misses a message that
   is in the history, and nobody gets one twice.
3. More than `RESTARTS` crashes within `RESTART_WINDOW_S` close the room: its subscribers get the error, and its next
   use begins a new life in a new epoch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, Protocol, TypeAlias, TypeVar

from chatx.core.fanout import Callback, Subscriber
from chatx.core.interrupts import from_signal
from chatx.core.message import Draft, Entry, Event, Message, Position, PresenceMeta
from chatx.core.room import Effects, Room
from chatx.errors import ChatError, RoomUnavailable, SubscriberFailed
from chatx.runtime.lanes import Lanes
from chatx.runtime.room_state import RoomState
from chatx.runtime.totals import Totals
from chatx.runtime.turn import Turn
from chatx.telemetry import Telemetry

logger: logging.Logger = logging.getLogger("chatx")

P = ParamSpec("P")
T = TypeVar("T")

OnEnded: TypeAlias = Callable[[ChatError], object]
"""What is called where a room ends something that somebody holds there; what it raises is logged."""

RESTARTS = 3
"""Crashes within the window that a room survives; Elixir's supervisors have the same default."""

RESTART_WINDOW_S = 5.0


class Keeper(Protocol):
    """The registry of the rooms, which is told when one falls idle or closes for good."""

    def fell_idle(self, process: RoomProcess) -> None:
        """Take note that nothing holds the room now."""
        ...

    def closed(self, process: RoomProcess) -> None:
        """Let go of the room, which has crashed too often."""
        ...


class Neighbours(Protocol):
    """Who tells the other nodes of the memberships of this one."""

    def new_ref(self) -> str:
        """Return a ref for a membership: no other membership of any node has it."""
        ...

    def joined(self, process: RoomProcess, user_id: str, meta: PresenceMeta) -> None:
        """Take note that a membership has begun on this node."""
        ...

    def left(self, process: RoomProcess, user_id: str, ref: str) -> None:
        """Take note that a membership of this node has ended."""
        ...


class RoomProcess(RoomState):
    """One room, its supervisor, and the queue of each sender in it.

    Attributes:
        replica: Whether another node owns the room: nothing is placed here.
        crashes: How often the room has crashed.
        lanes: The sends under way that await something, and those that wait for them.
        goes_on: Whether the stream began in an earlier life.
        proofs: How often an append has proven the head, in this life.
        unstored_at: When something was seen last before it was stored (loop time).
        doubted: Whether it is not known if the store withdrew the proof, so that the end has to be recorded anyway.
        detour: Whether a message has to await something before it can be published here.
        chain_s: About how long a message spends in the middlewares, in seconds; an estimate for `retry_after`.
    """

    def __init__(
        self,
        room: Room,
        *,
        loop: asyncio.AbstractEventLoop,
        turn: Turn,
        telemetry: Telemetry,
        keeper: Keeper,
        totals: Totals,
        proven: bool = False,
        replica: bool = False,
        neighbours: Neighbours | None = None,
    ) -> None:
        super().__init__(room)
        self.replica: bool = replica
        self._neighbours = neighbours
        self.crashes: int = 0
        self.lanes: Lanes = Lanes()
        self._proven = proven
        self.detour: bool = proven or replica
        self.goes_on: bool = False
        self.doubted: bool = False
        self.proofs: int = 0
        self.unstored_at: float = 0.0
        self.chain_s: float = 0.05
        self._loop = loop
        self._turn = turn
        self._telemetry = telemetry
        self._keeper = keeper
        self._totals = totals
        self._counted = (0, 0, 0)  # what this room has in each of the sums
        self._retired = False
        self._recent: deque[float] = deque(maxlen=RESTARTS + 1)
        self._error: RoomUnavailable | None = None
        self._refs = 0
        self._on_ended: dict[str, OnEnded] = {}  # by the ref of the membership
        self._holders = 0  # who is about to use it, and must find it here

    @property
    def over(self) -> bool:
        """Whether the room was closed for good: what is here of it is another life's, or another node's."""
        return self._error is not None

    @property
    def proven(self) -> bool:
        """Whether the store may still prove the head of the stream; nothing unstored is seen before it does not."""
        return self._proven

    @proven.setter
    def proven(self, proven: bool) -> None:
        self._proven = proven
        self.update_detour()

    def admit(self) -> None:
        """Count a message as admitted; `release` follows, whatever becomes of it."""
        self.room.admitted += 1
        if not self._retired:
            self._totals.admitted += 1

    def release(self) -> None:
        """Count a message as sequenced or refused."""
        self.room.admitted -= 1
        if not self._retired:
            self._totals.admitted -= 1
        if not self.room.admitted and self.idle:
            self._keeper.fell_idle(self)

    def begin_anew(self, position: Position) -> None:
        """Go on in another stream. Nothing was published in this life, nobody reads it, and nothing waits for a log."""
        self._begin_stream(position)
        self.goes_on = False
        self.update_detour()

    def update_detour(self) -> None:
        """Take note that the proof or the sequencer has changed."""
        sequencer = self.sequencer
        self.detour = self._proven or self.replica or (sequencer is not None and sequencer.blocked)

    def publish(self, draft: Draft, message_id: str, now_ms: int) -> Message:
        """Sequence a draft and fan it out.

        Raises:
            RoomUnavailable: The room crashed. The message may have been published: then it is the history's last.
        """
        if self._error is not None:
            raise self._error.again()
        turn = self._turn
        try:
            message = self.room.place(draft, message_id, now_ms)
            raised = self.room.apply(message)
        except Exception as error:
            turn.touch(self)
            raise self._crashed(error) from error
        turn.published += 1
        turn.touch(self)
        if raised:
            self._report(Effects(raised, ()))
        return message

    def commit(self, entry: Entry) -> None:
        """Let everybody have an entry that the log has.

        Raises:
            RoomUnavailable: The room crashed, and is closed where the entry could not be kept: its place is taken, so
                only the room's next life can go on behind it.
        """
        if self._error is not None:
            raise self._error.again()
        try:
            self._apply(entry)
        except RoomUnavailable:
            if self._error is None and self.offset < entry.offset:
                self._apply_or_close(entry)
            else:
                raise

    def _apply(self, entry: Entry) -> None:
        try:
            raised = self.room.apply(entry)
        except Exception as error:
            self._turn.touch(self)
            raise self._crashed(error) from error
        self._turn.published += 1
        self._turn.touch(self)
        if raised:
            self._report(Effects(raised, ()))

    def _apply_or_close(self, entry: Entry) -> None:
        try:
            self._apply(entry)
        except RoomUnavailable:
            if self._error is None and self.offset < entry.offset:
                self.shut(RoomUnavailable("The room failed on what its log has and was closed; open it anew."))
            raise

    def shut(self, error: RoomUnavailable) -> None:
        """Close the room for good: whoever uses it gets this error, and its id is free for another life."""
        self._error = error
        self._keeper.closed(self)
        self.close(error)

    def flush(self) -> None:
        """Bring the pending events to the subscribers."""
        try:
            if self._error is None and self.room.unflushed:
                self._report(self.room.flush(self._turn.number))
        except Exception as error:
            self._crashed(error)
            self._turn.touch(self)  # for what the crash left pending
        if self.idle:
            self._keeper.fell_idle(self)

    def join(self, user_id: str, now_ms: int, on_ended: OnEnded | None = None) -> str:
        """Begin a membership of the user, beside those that the user may have, and return its ref.

        Where the room is closed with the membership in it, `on_ended` is called, ahead of the subscribers' ends.
        """
        self._refs += 1
        ref = f"{self._refs:x}" if self._neighbours is None else self._neighbours.new_ref()
        meta = PresenceMeta(ref, now_ms)
        try:
            first = self._contained(self.room.join, user_id, meta)
        except RoomUnavailable:
            # The crash may have come after the membership began: nobody would end it.
            self.room.presence.remove(user_id, ref)
            raise
        finally:
            self._count()
            self._turn.touch(self)
        if on_ended is not None:
            self._on_ended[ref] = on_ended
        if self._neighbours is not None:
            self._neighbours.joined(self, user_id, meta)
        if first and self._telemetry.watched("room_join"):
            self._told("room_join", user_id)
        return ref

    def leave(self, user_id: str, ref: str) -> bool:
        """End a membership; return whether there was one. Never raises: a membership that is gone is left already."""
        self._on_ended.pop(ref, None)
        try:
            left = self._contained(self.room.leave, user_id, ref)
        except RoomUnavailable:
            # The crash may have come before the membership ended: the rebuilt room is asked once more.
            left = self._error is None and self.room.presence.remove(user_id, ref)
        self._count()
        self._turn.touch(self)
        if left and self._neighbours is not None:
            self._neighbours.left(self, user_id, ref)
        if left and user_id not in self.room.presence and self._telemetry.watched("room_leave"):
            self._told("room_leave", user_id)
        return left

    def joined_elsewhere(self, user_id: str, meta: PresenceMeta) -> None:
        """Begin a membership that another node has told of; twice is harmless."""
        if not self.room.presence.has(user_id, meta.ref):
            self._contained(self.room.join, user_id, meta)
            self._count()
            self._turn.touch(self)

    def left_elsewhere(self, user_id: str, ref: str) -> None:
        """End a membership that another node has told the end of; twice is harmless."""
        self._contained(self.room.leave, user_id, ref)
        self._count()
        self._turn.touch(self)

    def join_plain(self, user_id: str, now_ms: int) -> bool:
        """Begin the user's plain membership; return whether there was none."""
        if user_id in self.room.plain:
            return False
        self.room.plain[user_id] = self.join(user_id, now_ms)
        return True

    def leave_plain(self, user_id: str) -> bool:
        """End the user's plain membership; return whether there was one."""
        ref = self.room.plain.pop(user_id, None)
        return ref is not None and self.leave(user_id, ref)

    def attach(self, subscriber: Subscriber) -> None:
        """Add a subscriber, which gets what is published from now on.

        A subscriber that has neither a mailbox nor a callback gets nothing until it is attached again with either.
        """
        self.settle()
        self._contained(self.room.fanout.add, subscriber)
        self._count()

    @property
    def idle(self) -> bool:
        """Whether nothing is in the room, and nobody is about to use it."""
        return not self._holders and self.room.idle

    def held(self) -> AbstractContextManager[None]:
        """Keep the room from being forgotten for as long as the block takes."""
        return _Hold(self)

    def settle(self) -> None:
        """Flush until no event is pending: a callback that a flush calls may publish in turn."""
        while self._error is None and self.room.unflushed:
            self.flush()

    def replay(self, subscriber: Subscriber, callback: Callback, events: deque[Event]) -> None:
        """Give the events to a subscriber's callback, and take each out of the deque; a callback that raises is out."""
        try:
            while events and self.holds(subscriber):
                callback(events.popleft())
        except BaseException as error:
            self.room.fanout.remove(subscriber)
            self._count()
            if from_signal(error):
                raise
            self._report(Effects([(subscriber, error)], ()))

    def detach(self, subscriber: Subscriber) -> None:
        """Remove a subscriber, behind the events that were published before it left."""
        self.flush()
        self.room.fanout.remove(subscriber)
        self._count()
        self._turn.touch(self)

    def expel(self, subscriber: Subscriber, error: ChatError) -> None:
        """Remove a subscriber and tell it why; it does not get the events that are pending for it."""
        self.room.fanout.remove(subscriber)
        self._count()
        self._turn.touch(self)
        self._end(subscriber, error)

    def check(self) -> None:
        """Raise `RoomUnavailable` if the room is closed."""
        if self._error is not None:
            raise self._error.again()

    def close(self, error: ChatError) -> None:
        """End every subscription with this error, and tell whoever asked for it that a membership has ended."""
        told, self._on_ended = self._on_ended, {}
        for on_ended in told.values():
            self._tell(on_ended, error)
        for subscriber in list(self.room.fanout.subscribers):
            self.room.fanout.remove(subscriber)
            self._count()
            self._end(subscriber, error)

    def _contained(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._error is not None:
            raise self._error.again()
        try:
            return step(*args, **kwargs)
        except Exception as error:
            raise self._crashed(error) from error

    def _crashed(self, cause: Exception) -> RoomUnavailable:
        now = self._loop.time()
        self.crashes += 1
        self._recent.append(now)
        often = len(self._recent) > RESTARTS and now - self._recent[0] <= RESTART_WINDOW_S
        if not often:
            try:
                self._report(self._rebuild())
            except Exception:
                logger.exception(
                    "Room %r could not be rebuilt and is closed.",
                    self.room_id,
                    extra={"room": self.room_id, "code": RoomUnavailable.code},
                )
                often = True
        self._count()
        logger.error(
            "Room %r crashed and %s.",
            self.room_id,
            "is closed" if often else "was rebuilt",
            exc_info=cause,
            extra={"room": self.room_id, "code": RoomUnavailable.code, "restarts": self.crashes},
        )
        if self._telemetry.watched("room_crash"):
            self._telemetry.emit("room_crash", {"restarts": self.crashes}, {"room_id": self.room_id, "closed": often})
        if not often:
            return RoomUnavailable("The room failed and was rebuilt; send again with the same idempotency key.")
        error = RoomUnavailable(
            f"The room failed more than {RESTARTS} times within {RESTART_WINDOW_S:g} s and was closed; "
            "subscribe and send again to open it anew."
        )
        self.shut(error)
        return error.again()

    def retire(self) -> None:
        """Take the room out of the sums over all rooms, also where somebody still has a reference to it."""
        self._retired = True
        self._totals.admitted -= self.room.admitted
        self._count()

    def _count(self) -> None:
        """Bring the sums over all rooms up to what this room has now."""
        room, totals = self.room, self._totals
        now = (len(room.presence), len(room.fanout.subscribers), self.crashes)
        if self._retired:
            now = (0, 0, 0)
        if now == self._counted:
            return
        members, subscriptions, crashes = self._counted
        self._counted = now
        totals.members += now[0] - members
        totals.subscriptions += now[1] - subscriptions
        totals.crashes += now[2] - crashes

    def _report(self, effects: Effects) -> None:
        if effects.raised or effects.full:
            self._count()
        for subscriber, error in effects.raised:
            logger.error(
                "A subscriber of room %r raised and is out.",
                self.room_id,
                exc_info=error,
                extra={"room": self.room_id, "code": SubscriberFailed.code},
            )
            if self._telemetry.watched("subscriber_failed"):
                self._telemetry.emit("subscriber_failed", {}, {"room_id": self.room_id})
            self._end(subscriber, SubscriberFailed())
            error.__traceback__ = None  # its frames have this list: they would wait together for the collector
        for subscriber in effects.full:
            mailbox = subscriber.mailbox
            if mailbox is not None and self._telemetry.watched("slow_consumer"):
                self._telemetry.emit(
                    "slow_consumer",
                    {"unread": mailbox.unread, "bytes": mailbox.size},
                    {"room_id": self.room_id},
                )
            if mailbox is not None and mailbox.error is not None:
                self._end(subscriber, mailbox.error)

    def _end(self, subscriber: Subscriber, error: ChatError) -> None:
        if subscriber.on_closed is not None:
            self._tell(subscriber.on_closed, error)

    def _tell(self, on_ended: OnEnded, error: ChatError) -> None:
        try:
            on_ended(error)
        except BaseException as raised:
            if from_signal(raised):
                raise
            logger.exception(
                "What a subscriber or member of room %r does at its end raised.",
                self.room_id,
                extra={"room": self.room_id, "code": SubscriberFailed.code},
            )

    def _told(self, event: str, user_id: str) -> None:
        self._telemetry.emit(event, {"members": len(self.room.presence)}, {"room_id": self.room_id, "user_id": user_id})


class _Hold(AbstractContextManager[None]):
    """A block in which a room is not forgotten; a generator would cost a join twice as much."""

    __slots__ = ("_process",)

    def __init__(self, process: RoomProcess) -> None:
        self._process = process

    def __enter__(self) -> None:
        self._process._holders += 1

    def __exit__(self, *raised: object) -> None:
        process = self._process
        process._holders -= 1
        if process.idle:
            process._keeper.fell_idle(process)
