"""One message's way in: validate, idempotency, admission, middlewares, sequence, and off to the delivery queue.

Rules:
1. Where nothing in the chain awaits and the room is there, a send runs to its end without yielding.
2. Otherwise the sends of one user in one room go one at a time, in the order of their calls; other users do not wait.
3. A message takes its place when its chain ends.
4. A repeat of an idempotency key takes no token and is not published (`repeats`). A refusal records nothing.
5. A trusted send skips the chain and nothing else. It waits for the earlier sends of its user in its room, as any
   other does, so that order holds.
6. What is for one epoch only is held against the room's behind any look at its key: ahead of the chain, so that no step
   refuses what another epoch may have, and where it gets its place. A room in which something waits keeps its epoch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextvars import ContextVar

from msgspec.structs import replace

from chatx.adapters.boundary import Boundary
from chatx.adapters.room_log import Keyed
from chatx.config import ChatConfig
from chatx.core.data import valid_data
from chatx.core.idempotency import IdempotencyWindow, key_of, scope_of
from chatx.core.message import Draft, Message
from chatx.core.rate_limit import TokenBuckets, wait_in_words
from chatx.core.sequencer import Waiting
from chatx.core.validation import valid_content, valid_epoch, valid_id
from chatx.errors import (
    AdapterError,
    ChatError,
    Closed,
    InvalidMessage,
    RateLimited,
    RoomOverloaded,
    RoomUnavailable,
)
from chatx.runtime.committing import Committing
from chatx.runtime.delivery import Delivery
from chatx.runtime.elsewhere import Elsewhere
from chatx.runtime.ids import MessageIds
from chatx.runtime.log_storage import LogStorage
from chatx.runtime.process import RoomProcess
from chatx.runtime.repeats import Repeats
from chatx.runtime.rooms import Rooms
from chatx.runtime.send_events import SendEvents
from chatx.runtime.steps import chain_of
from chatx.runtime.storage import Storage
from chatx.telemetry import Telemetry


class _Pass:
    """A send of one user in one room that is in its chain; its turn is over once it is not `open`."""

    __slots__ = ("open", "pair", "sending")

    def __init__(self, sending: Sending, pair: tuple[str, str]) -> None:
        self.sending = sending
        self.pair = pair
        self.open = True


# The sends whose chains the current task is inside of. An adapter that sends to its own room as the user it is asked
# about goes ahead of the send that waits for it: behind it, both would wait for ever. A task that an adapter left
# running inherits them too, and waits in line like everybody else once they are over.
_inside: ContextVar[tuple[_Pass, ...]] = ContextVar("chatx_inside", default=())


class Sending:
    """The pipeline of one chat.

    Attributes:
        under_way: Sends that await something.
        sent: Messages published so far.
        duplicates: Repeats answered so far.
        refused: Refusals so far, by code; see `SendEvents`.
        window: The idempotency keys.
        buckets: The token buckets.
    """

    def __init__(
        self,
        *,
        config: ChatConfig,
        boundary: Boundary,
        telemetry: Telemetry,
        rooms: Rooms,
        delivery: Delivery,
        storage: Storage,
        loop: asyncio.AbstractEventLoop,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._elsewhere = elsewhere
        self._size_limit = config.message_size_limit
        self._data_limit = config.message_data_limit
        self._queue_limit = config.room_queue_limit
        self._telemetry = telemetry
        self._watching = telemetry.watching
        self._rooms = rooms
        self._delivery = delivery
        self._storage = storage
        self._rate_limited = "rate_limit" in config.middlewares
        self._now = loop.time
        self._ids = MessageIds()
        self.buckets: TokenBuckets = TokenBuckets(config.rate_limit)
        self.window: IdempotencyWindow = IdempotencyWindow(most_bytes=config.idempotency_bytes)
        self._waiting: dict[str, int] = {}  # room id -> sends that wait for the room to be opened
        self._repeats = Repeats(rooms, storage, config.room_queue_limit, loop)
        self.under_way: int = 0
        self._quiet: asyncio.Event | None = None  # from when somebody waits for it
        self.sent: int = 0
        self.duplicates: int = 0
        self._tell = SendEvents(telemetry, delivery, config.room_queue_limit, loop.time)
        self.refused: dict[str, int] = self._tell.refused
        self._chain = chain_of(config, boundary, self._take_token)
        self._closed = False

    async def quiet(self) -> None:
        """Wait until no send is under way; nothing new may be sent by then."""
        if self.under_way:
            self._quiet = asyncio.Event()
            await self._quiet.wait()

    def close(self) -> None:
        """Refuse with `Closed` what is not published yet."""
        self._closed = True

    def send_at_once(
        self,
        room_id: str,
        user_id: str,
        content: str | bytes,
        key: str | None,
        trusted: bool = False,
        stored: bool = False,
        data: object = None,
        epoch: object = None,
    ) -> Message | Draft:
        """Send one message where nothing must be awaited for it; otherwise return it as a draft, for `send_draft`."""
        began = self._now()
        try:
            # Exactly a bool: what comes out of a form or a file as "false" must not get past the middlewares.
            if trusted is not False and trusted is not True:
                raise InvalidMessage(f"trusted is {trusted!r}; give True or False.")
            if data is None:
                draft = Draft(
                    valid_id(room_id, "room_id"),
                    valid_id(user_id, "user_id"),
                    valid_content(content, self._size_limit),
                )
            else:
                draft = self._draft_with_data(room_id, user_id, content, data)
            if epoch is not None:
                draft = replace(draft, epoch=valid_epoch(epoch))
            scope = None
            if key is not None:
                scope = scope_of(draft.room_id, draft.user_id, valid_id(key, "idempotency_key"))
                place = self.window.find(scope, began)
                if place is not None:
                    answer = self._repeats.from_memory(draft, place)
                    if answer is None:
                        return draft
                    self.duplicates += 1
                    return answer
                if self._only_the_log_may_know(draft.room_id, scope, began):
                    return draft
            if stored or epoch is not None or (self._chain.awaits and not trusted):
                return draft
            if self._elsewhere is not None and not self._elsewhere.owns(draft.room_id):
                return draft  # also where the room is here still: another node may have it by now
            process = self._rooms.at_once(draft.room_id)
            if process is None or process.detour or user_id in process.lanes:
                return draft
            if process.room.admitted >= self._queue_limit or self._delivery.full:
                raise self._overloaded(process)
            message = self.publish(process, draft if trusted else self._chain.run(draft), scope)
        except ChatError as error:
            self._tell.refusal(error, room_id, user_id)
            raise
        self.sent += 1
        if "message_sent" in self._watching:
            self._tell.sent(message, began)
        return message

    def _draft_with_data(self, room_id: str, user_id: str, content: str | bytes, data: object) -> Draft:
        room_id, user_id = valid_id(room_id, "room_id"), valid_id(user_id, "user_id")
        checked = valid_data(data, self._data_limit)
        return Draft(room_id, user_id, valid_content(content, self._size_limit, may_be_empty=bool(checked)), checked)

    async def send_draft(self, draft: Draft, key: str | None, trusted: bool = False, stored: bool = False) -> Message:
        """Send a draft that `send_at_once` returned."""
        if self._elsewhere is not None and not self._elsewhere.owns(draft.room_id):
            return await self._send_elsewhere(self._elsewhere, draft, key, trusted, stored)
        began = self._now() if "message_sent" in self._watching else None
        self.under_way += 1
        try:
            if key is None:
                message = await self._send_awaiting(draft, None, trusted, stored)
            else:
                message = await self._send_once(draft, key, trusted, stored)
        except ChatError as error:
            self._tell.refusal(error, draft.room_id, draft.user_id)
            raise
        finally:
            self._over()
        if message.duplicate:
            self.duplicates += 1
        else:
            self.sent += 1
            if began is not None and "message_sent" in self._watching:
                self._tell.sent(message, began)
        return message

    async def _send_elsewhere(
        self, elsewhere: Elsewhere, draft: Draft, key: str | None, trusted: bool, stored: bool
    ) -> Message:
        """Have the room's owner send a draft: it counts and tells of what becomes of it, but for what it never got."""
        self.under_way += 1
        try:
            answer = await elsewhere.send(draft, key, trusted, stored)
        except ChatError as error:
            self._tell.refusal(error, draft.room_id, draft.user_id)
            raise
        finally:
            self._over()
        if isinstance(answer, ChatError):
            raise answer
        return answer

    def _over(self) -> None:
        self.under_way -= 1
        if self._quiet is not None and not self.under_way:
            self._quiet.set()

    def _only_the_log_may_know(self, room_id: str, scope: bytes, now: float) -> bool:
        """Return whether a key that memory does not have may be one that the room's log has, or gets yet."""
        storage = self._storage
        return isinstance(storage, LogStorage) and (
            not storage.knows_all_keys(room_id, now)
            or now < self.window.incomplete_until
            or self._commits.senders.left(scope) is not None  # of an earlier life of the room
        )

    def remember(self, room_id: str, keyed: Sequence[Keyed]) -> None:
        """Remember the keys that a log has of a room, as of now: a clock that was set forward forgets none."""
        now = self._now()
        for each in keyed:
            if isinstance(each.entry, Message):
                self.window.record(scope_of(room_id, each.entry.user_id, each.key), each.entry, now)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("The chat was stopped before this was sent; send it again when the chat runs.")

    async def _send_awaiting(self, draft: Draft, scope: bytes | None, trusted: bool, stored: bool) -> Message:
        process = self._rooms.at_once(draft.room_id)
        if process is None:
            process = await self._opened(draft.room_id, stored=stored)
        if draft.epoch is not None:
            process.check_epoch(draft)
        if process.room.admitted >= self._queue_limit or self._delivery.full:
            raise self._overloaded(process)
        began = self._now()
        process.admit()
        if "queue_size" in self._watching:
            self._tell.admitted(process)
        self._delivery.reserve()
        try:
            if stored and (trusted or not self._chain.awaits) and draft.user_id not in process.lanes:
                if self._closed:
                    self._check_open()
                # Nothing is awaited before the log, so this one is behind the user's earlier sends without a lane.
                commits = self._commits
                waiting = commits.submit(process, draft if trusted else self._chain.run(draft), scope, stored)
                return await commits.senders.outcome(process, waiting)
            way = await self._through_the_chain(process, draft, scope, trusted, stored)
            # What waits for the log has its turn there; this user's next send need not wait for it.
            return way if isinstance(way, Message) else await self._commits.senders.outcome(process, way)
        finally:
            self._delivery.release()
            process.chain_s += ((self._now() - began) - process.chain_s) / 8
            process.release()

    async def _through_the_chain(
        self, process: RoomProcess, draft: Draft, scope: bytes | None, trusted: bool, stored: bool
    ) -> Message | Waiting:
        """Take a draft through its chain in its user's lane; publish it, or leave it with the room's sequencer."""
        pair = (draft.room_id, draft.user_id)
        inside = tuple(each for each in _inside.get() if each.open)
        nested = any(each.pair == pair and each.sending is self for each in inside)
        own = _Pass(self, pair)
        entered = False
        token = None
        try:
            if not nested:
                await process.lanes.enter(draft.user_id)
                entered = True
                token = _inside.set((*inside, own))
                self._check_open()
            if not trusted:
                draft = await self._chain.run_awaiting(draft)
                self._check_open()
            if process.proven and not stored:
                error = await self._rooms.withdraw_proof(process)
                self._check_open()
                if error is not None:
                    raise error
            if self._elsewhere is not None and not self._elsewhere.owns(draft.room_id):
                # Another node may have it by now, also where this one stood still meanwhile and was not told yet.
                raise RoomUnavailable("The room goes on elsewhere, so nothing was sent; send again.", retry_after=0.1)
            if draft.epoch is not None:
                process.check_epoch(draft)
            if stored or process.detour:
                return self._commits.submit(process, draft, scope, stored)
            return self.publish(process, draft, scope)
        finally:
            if token is not None:
                _inside.reset(token)
            own.open = False
            if entered:
                process.lanes.leave(draft.user_id)

    async def _opened(self, room_id: str, *, stored: bool) -> RoomProcess:
        """Return the room; the sends that wait for it count against its bound, like those it has admitted.

        What is to be `stored`, or has a key that the log may have, begins no new stream for a log that is away.

        Raises:
            RoomUnavailable: That is so.
        """
        waiting = self._waiting.get(room_id, 0)
        if waiting >= self._queue_limit:
            raise self._too_many_wait(waiting, 1.0)
        self._waiting[room_id] = waiting + 1
        try:
            return await self._rooms.opened(room_id, at_a_place=stored)
        except AdapterError:
            self._check_open()
            raise self._unreadable() from None
        finally:
            self._waiting[room_id] -= 1
            if not self._waiting[room_id]:
                del self._waiting[room_id]

    def _unreadable(self) -> RoomUnavailable:
        committing = self._delivery.committing
        return RoomUnavailable(
            "The store cannot say where the room stands or which keys it has, so nothing was sent; send again later.",
            retry_after=1.0 if committing is None else committing.retry_after,
        )

    @property
    def _commits(self) -> Committing:
        committing = self._delivery.committing
        if committing is None:
            raise RuntimeError("Nothing waits for a log where there is none.")
        return committing

    async def _send_once(self, draft: Draft, key: str, trusted: bool, stored: bool) -> Message:
        scope = scope_of(draft.room_id, draft.user_id, key)
        outcome = await self._repeats.outcome(scope)
        if outcome is not None:
            return outcome
        place = self.window.find(scope, self._now())
        if place is None:
            sending = self._send_new if self._storage.is_log else self._send_opening
            return await self._repeats.send_first(scope, sending(draft, scope, trusted, stored))
        answer = self._repeats.from_memory(draft, place)
        if answer is None:
            if self._rate_limited and not trusted:
                # A repeat takes no token, but this one reads.
                self._take_token(draft)
            answer = await self._repeats.from_storage(draft, place)
            self._check_open()
        return answer

    async def _send_opening(self, draft: Draft, scope: bytes, trusted: bool, stored: bool) -> Message:
        """Send a draft whose key memory does not have, also when the room is here that may have moved here just now."""
        if self._elsewhere is not None and self._rooms.at_once(draft.room_id) is None:
            # The node that had the room tells the keys of what was said there.
            await self._opened(draft.room_id, stored=stored)
            self._check_open()
            place = self.window.find(scope, self._now())
            if place is not None:
                answer = self._repeats.from_memory(draft, place) or await self._repeats.from_storage(draft, place)
                self._check_open()
                return answer
        return await self._send_awaiting(draft, scope, trusted, stored)

    async def _send_new(self, draft: Draft, scope: bytes, trusted: bool, stored: bool) -> Message:
        """Send a draft whose key memory does not have; one that only the log has is answered with what it made."""
        # Opening a room tells the keys that its log has.
        process = await self._opened(draft.room_id, stored=True)
        if (left := self._commits.senders.left(scope)) is not None:
            return replace(await self._commits.senders.outcome(*left), duplicate=True)
        storage = self._storage
        if isinstance(storage, LogStorage):
            # Until whoever had the room is fenced, they may write under this key. That it stands elsewhere by now is
            # found again when the message gets its place.
            try:
                await storage.owns(draft.room_id, process.stored_to)
            except AdapterError:
                raise self._unreadable() from None
            self._check_open()
        place = self.window.find(scope, self._now())
        if place is None and isinstance(storage, LogStorage):
            if not self._only_the_log_may_know(draft.room_id, scope, self._now()):
                return await self._send_awaiting(draft, scope, trusted, stored)
            try:
                found = await storage.find(draft.room_id, draft.user_id, key_of(scope))
            except AdapterError:
                raise self._unreadable() from None
            self._check_open()
            if not isinstance(found, Message):
                return await self._send_awaiting(draft, scope, trusted, stored)
            if self._rate_limited and not trusted:
                self._take_token(draft)  # another repeat takes none, but this one reads
            return replace(found, duplicate=True)
        answer = None if place is None else self._repeats.from_memory(draft, place)
        if place is not None and answer is None:
            answer = await self._repeats.from_storage(draft, place)
            self._check_open()
        return answer if answer is not None else await self._send_awaiting(draft, scope, trusted, stored)

    def place(self, draft: Draft, epoch: str, offset: int, stored: bool) -> Message:
        """Return a draft as the message at that place."""
        now_ms = time.time_ns() // 1_000_000
        return Message(
            self._ids.next(now_ms),
            draft.room_id,
            draft.user_id,
            draft.content,
            now_ms,
            epoch,
            offset,
            False,
            stored,
            draft.data,
        )

    def committed(self, process: RoomProcess, message: Message, scope: bytes | None) -> None:
        """Let everybody have a message that the log has.

        Raises:
            RoomUnavailable: The room crashed.
        """
        if scope is not None:
            # Ahead of the room, which may crash: the log has it under its key.
            self.window.record(scope, message, self._now())
        try:
            process.commit(message)
        finally:
            # Everybody will have it, also where the room crashed on it.
            self._delivery.notify(process, message)
            if "broadcast" in self._watching:
                self._tell.broadcast(process, message)

    def publish(self, process: RoomProcess, draft: Draft, scope: bytes | None) -> Message:
        """Place a draft and let everybody have it; errors as `RoomProcess.publish`."""
        now_ms = time.time_ns() // 1_000_000
        message_id = self._ids.next(now_ms)
        try:
            message = process.publish(draft, message_id, now_ms)
        except RoomUnavailable:
            # Published or not: what the history has, everybody will see, so it counts as published once.
            for newest in process.newest(1):
                if newest.id == message_id and isinstance(newest, Message):
                    self.sent += 1
                    self._published(process, newest, scope)
            raise
        self._published(process, message, scope)
        return message

    def _published(self, process: RoomProcess, message: Message, scope: bytes | None) -> None:
        if scope is not None:
            self.window.record(scope, message, self._now())
        if self._delivery.enabled:
            self._delivery.offer(process, message, scope)
        if "broadcast" in self._watching:
            self._tell.broadcast(process, message)

    def _take_token(self, draft: Draft) -> Draft:
        retry_after = self.buckets.acquire(draft.room_id, draft.user_id, self._now())
        if not retry_after:
            return draft
        if self._telemetry.watched("rate_limit_hit"):
            self._telemetry.emit(
                "rate_limit_hit",
                {"retry_after_ms": retry_after * 1000},
                {"room_id": draft.room_id, "user_id": draft.user_id},
            )
        raise RateLimited(
            f"Too many messages; send the next one in {wait_in_words(retry_after)} or later.", retry_after=retry_after
        )

    def _overloaded(self, process: RoomProcess) -> RoomOverloaded:
        if self._delivery.full:
            return RoomOverloaded(
                f"{self._delivery.size} messages wait to be saved already; send again later.",
                retry_after=self._delivery.retry_after,
            )
        return self._too_many_wait(process.admitted, max(process.chain_s, 0.01))

    def _too_many_wait(self, count: int, retry_after: float) -> RoomOverloaded:
        return RoomOverloaded(f"{count} messages wait in this room already; send again later.", retry_after=retry_after)
