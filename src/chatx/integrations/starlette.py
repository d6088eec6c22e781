"""A room as HTML, rendered by the server and pushed as server-sent events, for Starlette and FastAPI.

    @app.get("/live/events")
    async def events(room: str) -> Response:
        return chat.live(room, render, user_id=...)

The events of the stream; `data` is what `render` returned:

| event     | id    | data is the HTML of                       | the page                       |
|-----------|-------|-------------------------------------------|--------------------------------|
| `reset`   | place | the newest messages, oldest first         | replaces its messages          |
| `message` | place | one `Message`                             | appends it                     |
| `gap`     | place | a `Gap`; one that loses the place is followed by a `reset` | appends it    |
| `people`  | none  | a `PresenceState`: all who are here now   | replaces its list of people    |

Rules:
1. A place is `epoch:offset`. A browser sends the last one back as `Last-Event-ID`, and a page whose messages are in its
   HTML already begins with `?after=`; what follows that place comes first, whole, or a `gap` says so. Without a place,
   or with one that is none, a stream begins with a `reset`.
2. A reader is a member of the room while its stream is open. Whatever ends the stream ends the membership.
3. Streams are bounded as sockets are (`live_streams.py`), and refused before anything is asked.
4. What waits for a reader is its connection's mailbox; a reader that is too slow for it, or takes less than
   `LEAST_TAKEN` bytes in `WRITE_STALL_S`, is cut off. It comes back by itself and resumes.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote, unquote

from msgspec import Struct
from msgspec.json import encode

from chatx import errors
from chatx.adapters.boundary import check_arguments, is_async
from chatx.core.message import (
    Event,
    Gap,
    Message,
    Position,
    PresenceDiff,
    Presences,
    PresenceState,
    SubscriptionEnded,
)
from chatx.core.validation import valid_id
from chatx.errors import ChatError, ConfigError
from chatx.extras import needs
from chatx.gateway.entry.stopping import bounded_when_stopping
from chatx.gateway.session.progress import taken_within, transport_of
from chatx.gateway.wire.payloads import error_response
from chatx.integrations.live_streams import Stream, streams_of
from chatx.runtime.connection import Connection
from chatx.runtime.process import RoomProcess

with needs("gateway", "chatx.integrations.starlette"):
    from starlette.datastructures import Headers, QueryParams
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send
    from starlette.websockets import WebSocket

if TYPE_CHECKING:
    from chatx.chat import Chat

Render: TypeAlias = Callable[[Event], str]
"""Returns the HTML of a `Message`, a `Gap` or a `PresenceState`, or "" for what is not shown."""

SCRIPT = Path(__file__).with_name("live.js")
"""The script for the page, to be served as it is; its first comment says what it looks for there."""

KEEP_ALIVE_S = 15.0
"""Seconds of silence after which a comment is written, so that no proxy takes the stream for dead."""

WRITE_STALL_S = 10.0
"""Seconds in which a reader must take a kilobyte of what is written, where that can be seen; else all of one write."""

REPLAYED = 500
"""Messages that a reader who comes back gets, at most; one who missed more is told so, and begins anew."""

RETRY_MS = 1_000
"""Milliseconds after which a browser comes back."""

BATCH_EVENTS = 64
"""Events that leave as one write, at most."""

LOST_PLACE = ("epoch_changed", "too_old", "too_many")
"""Reasons of a gap after which what the page shows does not lead up to what follows."""

_PLACE = re.compile(r"(?P<epoch>.+):(?P<offset>[0-9]{1,18})")

HTTP_STATUS = errors.HTTP_STATUS
"""The status of an error by its code; any other code is 503 where the error is retryable, else 422."""


def http_status(error: ChatError) -> int:
    """Return an error's HTTP status: 4xx for what was asked, 503 for what may work later, 500 for a mistake here."""
    return errors.http_status(error)


def chat_error_response(request: Request | WebSocket, error: Exception) -> Response:
    """Return a `ChatError` as the response to the request that raised it; a handler for Starlette and FastAPI.

        app.add_exception_handler(ChatError, chat_error_response)

    The body is what clients on the wire get, as JSON: `code`, `reason`, `retryable`, and `retry_after_ms` where it is
    known; `Retry-After` says the same in whole seconds. The status is that of `http_status`.

    Raises:
        Exception: `error` itself, where it is no `ChatError`, or where it ends a WebSocket of the application's own:
            that has no response.
    """
    if not isinstance(error, ChatError) or request.scope["type"] != "http":
        raise error
    return refusal(error)


class Snapshot(Struct, frozen=True):
    """A room as HTML, to be put into a page.

    Attributes:
        messages: The newest messages, oldest first.
        people: Who is here now.
        after: The place that this leads up to; the page's stream goes on from it with `?after=`.
        count: How many users are here now, all of whom `people` need not show.
    """

    messages: str
    people: str
    after: str
    count: int


async def snapshot(chat: Chat, room_id: str, render: Render, *, user_id: str, history: int = 50) -> Snapshot:
    """Return a room as HTML for a page that a user asks for.

    Args:
        chat: The chat.
        room_id: The room; begun if it is not there.
        render: As in `Chat.live`.
        user_id: Who asks; must be allowed to subscribe.
        history: How many messages, at most; at least 1.

    Raises:
        InvalidMessage: An id or `history` is not valid.
        Unauthorized: The user may not; `AdapterError`: the auth adapter failed.
        RateLimited: The user has had too much read from history.
        RoomUnavailable: The room has just failed.
        Closed: The chat is not running.
    """
    streams = streams_of(chat.engine)
    streams.check_reading(valid_id(user_id, "user_id"))
    process = await chat.engine.enter(room_id, user_id, "subscribe")
    present = process.state()
    messages, place = await _newest(chat, process, render, history, partial(streams.read, user_id))
    return Snapshot(messages, _html(render, present), _place_text(place), len(present.presences))


class LiveResponse(Response):
    """The stream of one reader; see `Chat.live`."""

    media_type = "text/event-stream"

    def __init__(self, chat: Chat, room_id: str, render: Render, *, user_id: str, history: int) -> None:
        if not callable(render) or is_async(render):
            raise ConfigError(f"render is {render!r}; give a plain function of one event that returns HTML.")
        check_arguments("render", render, "event")
        if isinstance(history, bool) or not isinstance(history, int) or history < 1:
            raise ConfigError(f"history is {history!r}; give a whole number of messages of at least 1.")
        # A proxy must neither keep nor hold back what is for one reader, now.
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chat = chat
        self._room_id = room_id
        self._render = render
        self._user_id = user_id
        self._history = history

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream until the client goes, the server or the chat stops, or the reader is too slow."""
        after = _place_asked(scope)
        far: Gap | None = None
        head: Position | None = None
        transport = transport_of(receive)
        async with AsyncExitStack() as stack:
            try:
                engine = self._chat.engine
                stream = streams_of(engine).open(scope, valid_id(self._user_id, "user_id"), transport)
                stack.callback(stream.end)
                connection = await stack.enter_async_context(self._chat.connect(self._user_id))
                stream.closes(connection.close)
                known = engine.rooms.find(valid_id(self._room_id, "room_id")) is not None
                if after is not None:
                    # The join alone would begin a new stream where the store cannot say where the old one stood.
                    process = await engine.enter(self._room_id, self._user_id, "join", at_a_place=True)
                    await engine.reach(process, after)
                    far, head = _too_far(process, after), process.head
                await connection.join(self._room_id)
                if not known:
                    stream.began_room()
                await connection.subscribe(self._room_id, after=after if far is None else None, presence=True)
            except ChatError as error:
                await refusal(error)(scope, receive, send)
                return
            await stack.enter_async_context(_closed_when_gone(connection, receive))
            feed = _Feed(self._chat, stream, self._room_id, self._render, self._history, head)

            async def write(message: dict[str, object], size: int = 0) -> None:
                stream.writes(size)
                async with taken_within(WRITE_STALL_S, transport):
                    await send(message)

            try:
                async with bounded_when_stopping(scope, connection.close):
                    await write({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    if scope["method"] != "HEAD":
                        async for text in self._stream(connection, feed, after, far):
                            body = text.encode()
                            await write({"type": "http.response.body", "body": body, "more_body": True}, len(body))
                    await write({"type": "http.response.body", "body": b""})
            except (OSError, TimeoutError):
                # The client is gone or takes nothing; it comes back to where it stood.
                return

    async def _stream(
        self, connection: Connection, feed: _Feed, after: Position | None, far: Gap | None
    ) -> AsyncIterator[str]:
        """Yield the text to write until the stream is over: first what the reader missed, or the gap instead of it."""
        try:
            if far is not None:
                await feed.add([far])
            elif after is None:
                await feed.reset()
            yield f"retry: {RETRY_MS}\n\n{feed.taken()}"
            ended = False
            while not ended:
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        events = await _batch(connection)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                ended = await feed.add(events)
                yield feed.taken()
        except (ChatError, StopAsyncIteration):
            # The chat stops, the reader is too slow, or it has gone.
            return


class _Feed:
    """Turns events into the text of the stream; what came before `head` is charged as read from history."""

    def __init__(
        self, chat: Chat, stream: Stream, room_id: str, render: Render, history: int, head: Position | None
    ) -> None:
        self._chat = chat
        self._stream = stream
        self._room_id = room_id
        self._render = render
        self._history = history
        self._head = head
        self._shown: Position | None = None
        self._presences: Presences = {}
        self._parts: list[str] = []

    def taken(self) -> str:
        """Return the text to write, and forget it."""
        text = "".join(self._parts)
        self._parts.clear()
        return text

    async def reset(self) -> None:
        """Begin the page's messages anew with the newest ones."""
        process = await self._chat.engine.room(self._room_id)
        html, self._shown = await _newest(self._chat, process, self._render, self._history, self._stream.read)
        self._parts.append(_frame("reset", html, self._shown))

    async def add(self, events: Sequence[Event]) -> bool:
        """Add events to the text; return whether the room has ended the subscription."""
        people_changed = False
        missed = [each for each in events if isinstance(each, Message) and self._is_missed(each)]
        if missed:
            self._stream.read(missed)
        for event in events:
            match event:
                case Message():
                    self._show(event)
                case Gap():
                    self._frame("gap", event, Position(event.epoch, event.offset))
                    if event.reason in LOST_PLACE:
                        await self.reset()
                case PresenceState():
                    self._presences = dict(event.presences)
                    people_changed = True
                case PresenceDiff():
                    self._change(event)
                    people_changed = True
                case SubscriptionEnded():
                    return True
        if people_changed:
            # Once for the batch: a room in which many come and go is drawn once for all of them.
            self._frame("people", PresenceState(self._room_id, self._presences))
        return False

    def _is_missed(self, message: Message) -> bool:
        head = self._head
        return head is not None and message.offset <= head.offset and message.epoch == head.epoch

    def _show(self, message: Message) -> None:
        shown = self._shown
        # What was published while the newest messages were read is among them, and in the mailbox too.
        if shown is None or message.epoch != shown.epoch or message.offset > shown.offset:
            self._frame("message", message, Position(message.epoch, message.offset))

    def _change(self, diff: PresenceDiff) -> None:
        for user_id, metas in diff.joins.items():
            self._presences[user_id] = [*self._presences.get(user_id, ()), *metas]
        for user_id, metas in diff.leaves.items():
            gone = {meta.ref for meta in metas}
            left = [meta for meta in self._presences.pop(user_id, ()) if meta.ref not in gone]
            if left:
                self._presences[user_id] = left

    def _frame(self, name: str, event: Event, place: Position | None = None) -> None:
        html = _html(self._render, event)
        if html:
            self._parts.append(_frame(name, html, place))


def refusal(error: ChatError) -> Response:
    """Return an error as a response: JSON, its status and, where it is known, `Retry-After` in seconds."""
    headers = {"cache-control": "no-store"}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    return Response(encode(error_response(error)), http_status(error), headers, "application/json")


def _too_far(process: RoomProcess, after: Position) -> Gap | None:
    """Return the gap of a reader who has missed more than a page is brought up to date with, message by message."""
    head = process.head
    missed = head.offset - after.offset
    if head.epoch != after.epoch or missed <= REPLAYED:
        return None
    return Gap(process.room_id, "too_many", head.epoch, head.offset, missed)


async def _newest(
    chat: Chat,
    process: RoomProcess,
    render: Render,
    limit: int,
    read: Callable[[Sequence[Message]], object],
) -> tuple[str, Position]:
    """Return the newest messages as HTML, and the place they lead up to; tell `read` which they were."""
    # Nothing is awaited between the two, so the history ends at this very place.
    place = process.head
    messages = await chat.history(process.room_id, limit=limit)
    read(messages)
    parts = []
    before: Message | None = None
    for message in messages:
        if before is not None and before.epoch == message.epoch and before.offset + 1 < message.offset:
            missed = message.offset - before.offset - 1
            parts.append(_html(render, Gap(message.room_id, "missing", message.epoch, message.offset - 1, missed)))
        parts.append(_html(render, message))
        before = message
    return "".join(parts), place


def _html(render: Render, event: Event) -> str:
    html = render(event)
    if not isinstance(html, str):
        raise TypeError(
            f"render returned {type(html).__name__} for a {type(event).__name__}; "
            "it must return HTML as text, and an empty text for what is not shown."
        )
    return html


def _frame(name: str, html: str, place: Position | None) -> str:
    lines = [f"event: {name}"]
    if place is not None:
        lines.append(f"id: {_place_text(place)}")
    # Any of these ends a line of the stream; within the data each is a line of its own, and HTML takes them alike.
    lines += [f"data: {line}" for line in re.split("\r\n|\r|\n", html)]
    return "\n".join(lines) + "\n\n"


def _place_text(place: Position) -> str:
    # An epoch may be any text; an event id must not break a line or a header.
    return f"{quote(place.epoch, safe='')}:{place.offset}"


def _place_asked(scope: Scope) -> Position | None:
    text = Headers(scope=scope).get("last-event-id") or QueryParams(scope["query_string"]).get("after", "")
    found = _PLACE.fullmatch(text)
    return Position(unquote(found["epoch"]), int(found["offset"])) if found else None


async def _batch(connection: Connection) -> list[Event]:
    """Wait for an event, and return it with what has come after it."""
    events = [await anext(connection)]
    while connection.unread and len(events) < BATCH_EVENTS:
        events.append(await anext(connection))
    return events


@asynccontextmanager
async def _closed_when_gone(connection: Connection, receive: Receive) -> AsyncIterator[None]:
    """Close the connection as soon as the client goes, not at the next write."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        connection.close()

    watcher = asyncio.create_task(watch(), name="chatx live watcher")
    try:
        yield
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
