"""What is said over one connection after the other: joins, resumes, sends, heartbeats, and what comes of them. No I/O.

The shell tells it what has happened (`opened`, `received`, `lost`, `tick`), each time with its clock, and then does
what it has collected: writes `frames`, looks at `settled`, `woken` and `broken`, and calls `tick` again at `due`.

Rules:
1. A room that is open is joined on each connection, from its cursor. An answer that says no for a while is asked again
   later; one that says no for good ends the room.
2. A frame of a membership that is over is dropped, by its `join_ref`.
3. Of each room one send is on its way at most, and of all rooms together `MOST_UNANSWERED`: the server reads no further
   while 64 pushes are unanswered.
4. Whoever has to hear something and hears nothing for `answer_s` asks with a heartbeat, and takes the connection for
   dead where nothing comes of that for as long again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from msgspec import UNSET, DecodeError, Raw, Struct, json

from chatx.client.errors import ClientError, HistoryRefused, JoinRefused, SendRefused
from chatx.client.events import Message, State
from chatx.client.options import Options
from chatx.client.outbox import Entry, Outbox
from chatx.client.presences import Presences
from chatx.client.stream import Stream
from chatx.core.backoff import backoff_ms
from chatx.gateway.wire.payloads import ErrorResponse, Joined, PhxDiff, PhxMetas, Sent

MOST_UNANSWERED: Final = 32
"""Sends of all rooms that are on their way."""

_ENDED: Final = ErrorResponse("closed", "The membership ended.", retryable=False)

_LEAST_PAUSE_S: Final = 0.01

LEAVES_OPEN: Final = frozenset({"room_unavailable"})
"""Refusals that do not say whether the message was published."""

_COMES_BACK: Final = frozenset({"unmatched_topic", "closed"})
"""Not retryable as they are, but fine after the next join: the membership or the chat is gone."""


class _Frame(Struct, array_like=True, gc=False):
    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: Raw


class _Reply(Struct, gc=False):
    status: str
    response: Raw


class _Page(Struct, gc=False):
    messages: list[Message]
    more: bool = False


class _Asked(NamedTuple):
    """Something that is to be answered."""

    room: Membership | None
    answer: Callable[[bool, Raw, float], None]
    at: float


_frame = json.Decoder(_Frame).decode
_reply = json.Decoder(_Reply).decode
_message = json.Decoder(Message).decode
_error = json.Decoder(ErrorResponse).decode
_joined = json.Decoder(Joined).decode
_sent = json.Decoder(Sent).decode
_page = json.Decoder(_Page).decode
_state = json.Decoder(dict[str, PhxMetas]).decode
_diff = json.Decoder(PhxDiff).decode


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
        self.failures: int = 0
        self.in_flight: Entry | None = None
        self.page_at: float = 0.0
        self.asks: deque[Ask] = deque()
        self.acknowledged: dict[str, tuple[Entry, Sent]] = {}

    @property
    def joined(self) -> bool:
        """Whether it is joined on the present connection."""
        return self.state.state == "joined"


class Conversation:
    """The protocol of one client.

    Attributes:
        frames: What is to be written, in order.
        settled: Sends that have their outcome.
        woken: Rooms in which something can be taken, or that have ended.
        broken: Why the connection is to be closed, or None.
        due: When `tick` is to be called next, at the latest.
        outbox: What waits to be sent.
        failures: Connections one after the other on which nothing was joined.
    """

    def __init__(self, options: Options, jitter: Callable[[], float]) -> None:
        """Begin without a connection.

        Args:
            options: The client's.
            jitter: Draws a number in [0, 1).
        """
        self.frames: list[str] = []
        self.settled: list[tuple[Entry, Message | ClientError]] = []
        self.woken: set[str] = set()
        self.broken: str | None = None
        self.due: float = float("inf")
        self.rooms: dict[str, Membership] = {}
        self.failures: int = 0
        self.user: str = ""
        self.outbox: Outbox = Outbox(
            most=options.outbox_messages,
            most_bytes=options.outbox_bytes,
            most_age_s=options.outbox_age_s,
            window_s=options.key_window_s,
        )
        self.marking: list[Entry] | None = None  # with a storage: sends that it is to mark ahead of their first attempt
        self._options = options
        self._jitter = jitter
        self._open = False
        self._refs = 0
        self._asked: dict[str, _Asked] = {}
        self._heard_at = 0.0
        self._heartbeat_at = 0.0
        self._heartbeat_ref: str | None = None
        self._probed_at = 0.0
        self._unanswered = 0
        self._waiting: deque[str] = deque()  # rooms with something to send, beyond MOST_UNANSWERED

    # What the program does.

    def enter(self, room: Membership, now: float) -> None:
        """Open a room."""
        self.rooms[room.id] = room
        room.join_at = now
        self._join(room, now)
        self._lower(self.outbox.next_overdue((room.id,)))  # of what was restored

    def leave(self, room: Membership, error: ClientError) -> None:
        """Leave a room for good; what waits to be sent in it fails."""
        if self._open and room.join_ref is not None:
            self._push(room, "phx_leave", b"{}", None, 0.0)
        self._end(room, error)

    def end(self, error: ClientError) -> None:
        """End all rooms."""
        for room in list(self.rooms.values()):
            self._end(room, error)
        for entry in list(self.outbox):
            self._settle(entry, self.outbox.failed(entry, error))

    def send(self, entry: Entry, now: float) -> None:
        """Write a send that is in the outbox as soon as it may be."""
        room = self.rooms.get(entry.room)
        if room is not None:
            self._pump(room, now)
        self._lower(self.outbox.ends(entry))

    def withdraw(self, entry: Entry) -> bool:
        """Take back a send; return False where it may be published."""
        if entry.doubtful_since is not None:
            return False
        self.outbox.remove(entry)
        return True

    def give_up(self, entry: Entry, error: ClientError) -> None:
        """End a send that is not on its way with an error, unless it has an outcome already."""
        if entry in self.outbox.of(entry.room):
            self._settle(entry, error)

    def ask(self, room: Membership, ask: Ask, now: float) -> None:
        """Ask for history, now or once the room is joined."""
        room.asks.append(ask)
        if room.joined:
            self._ask(room, ask, now)

    def taken(self, room: Membership, now: float) -> None:
        """Take it that something was taken out of a room's stream: there may be place for more."""
        if room.stream.behind:
            self._page(room, now)

    # What the connection does.

    def opened(self, now: float) -> None:
        """Take it that a connection is open: join all rooms."""
        self._open = True
        self._heard_at = now
        self._heartbeat_at = now + self._options.heartbeat_s
        self._lower(self._heartbeat_at)
        for room in self.rooms.values():
            room.join_at = max(room.join_at, now)
            self._join(room, now)

    def lost(self, why: str, now: float, *, poisoned: bool = False) -> float:
        """Take it that the connection has ended or could not be opened; return how long to wait, in seconds.

        Args:
            why: For a person.
            now: The clock.
            poisoned: Whether it was closed for something that this client had written.
        """
        self._open = False
        self.broken = None
        self.frames.clear()
        self._asked.clear()
        self._heartbeat_ref = None
        self._unanswered = 0
        self._waiting.clear()
        for room in list(self.rooms.values()):
            entry = room.in_flight
            if poisoned and entry is not None:
                entry.strikes += 1
            self._away(room, why, now)
            if entry is not None and entry.strikes > 1:
                self._settle(entry, entry.unknown(f"The connection was closed with it twice: {why}."))
        self.failures += 1
        return backoff_ms(self.failures, max(1, int(self._options.first_pause_s * 1000)), self._jitter()) / 1000

    def received(self, text: str | bytes, now: float) -> None:
        """Take a frame. One that cannot be read breaks the connection."""
        self._heard_at = now
        try:
            frame = _frame(text)
            self._take(frame, len(text), now)
        except DecodeError as error:
            self.broken = f"the server sent what cannot be read: {error}"

    def tick(self, now: float) -> None:
        """Do what is due."""
        self.due = float("inf")
        for entry, error in self.outbox.overdue(now, self.rooms):
            room = self.rooms[entry.room]
            if room.in_flight is entry:
                self._land(room)
            self._settle(entry, error)
        self._lower(self.outbox.next_overdue(self.rooms))
        if not self._open:
            return
        for room in list(self.rooms.values()):
            if room.joined:
                self._pump(room, now)
                self._page(room, now)
            else:
                self._join(room, now)
        self._look_for_life(now)

    # Frames.

    def _take(self, frame: _Frame, size: int, now: float) -> None:
        if frame.event == "new_message" and frame.ref is None:
            room = self._room(frame)
            if room is not None and room.joined:
                self._heard(room, _message(frame.payload), size, now)
            return
        if frame.event == "phx_reply":
            asked = self._asked.pop(frame.ref, None) if frame.ref is not None else None
            if asked is not None:
                reply = _reply(frame.payload)
                asked.answer(reply.status == "ok", reply.response, now)
            return
        room = self._room(frame)
        if room is None:
            return
        if frame.event in {"phx_error", "phx_close"} and frame.join_ref == room.join_ref:
            self._come_back(room, _ENDED, now)
        elif room.presences is not None and frame.event == "presence_state":
            room.presences.replace(_state(frame.payload))
            self._tell_presence(room)
        elif room.presences is not None and frame.event == "presence_diff":
            room.presences.change(_diff(frame.payload))
            self._tell_presence(room)

    def _room(self, frame: _Frame) -> Membership | None:
        room = self.rooms.get(frame.topic[5:])
        if room is None or room.topic != frame.topic:
            return None
        return room if frame.join_ref is None or frame.join_ref == room.join_ref else None

    def _heard(self, room: Membership, message: Message, size: int, now: float) -> None:
        if not room.stream.heard(message, size):
            # Another stream, and nobody said so: the answer to a join does.
            self._away(room, "the room's stream is another", now)
            self._join(room, now)
            return
        self.woken.add(room.id)
        if room.acknowledged:
            known = room.acknowledged.pop(message.id, None)
            if known is not None:
                self.user = message.user
                self._acknowledge(known[0], known[1], message)
        if room.stream.behind:
            self._page(room, now)

    # Joins.

    def _join(self, room: Membership, now: float) -> None:
        if not self._open or room.join_ref is not None:
            return
        if now < room.join_at:
            self._lower(room.join_at)
            return
        room.join_ref = str(self._refs + 1)

        def answer(ok: bool, response: Raw, now: float) -> None:
            if ok:
                self._join_answered(room, _joined(response), now)
            else:
                self._join_refused(room, _error(response), now)

        self._push(room, "phx_join", json.encode(room.stream.join_payload()), answer, now)

    def _join_answered(self, room: Membership, answer: Joined, now: float) -> None:
        self.failures = room.failures = 0
        room.stream.joined(
            answer.epoch, answer.offset, answer.recovered, None if answer.reason is UNSET else answer.reason
        )
        self._enter_state(room, State(room.id, "joined"))
        for entry in self.outbox.of(room.id):
            if in_doubt(entry, answer.epoch):
                self._settle(
                    entry, entry.unknown("The answer was lost, and the room went on in another stream meanwhile.")
                )
        for ask in list(room.asks):
            self._ask(room, ask, now)
        self._page(room, now)
        self._pump(room, now)

    def _join_refused(self, room: Membership, refused: ErrorResponse, now: float) -> None:
        room.join_ref = None
        if not refused.retryable and refused.code not in _COMES_BACK:
            self._end(room, JoinRefused(refused.code, refused.reason, _after(refused)))
            return
        room.failures += 1
        room.join_at = now + self._pause(room.failures, _after(refused))
        self._enter_state(room, State(room.id, "away" if room.stream.cursor else "joining", refused.reason))
        self._lower(room.join_at)

    def _away(self, room: Membership, why: str, now: float) -> None:
        """Take it that the room is not joined any more; what was on its way has no answer."""
        self._forget(room)
        room.join_ref = None
        room.join_at = max(room.join_at, now)
        room.page_at = max(room.page_at, now)
        room.stream.lost()
        self._enter_state(room, State(room.id, "joining" if room.stream.cursor is None else "away", why))

    def _come_back(self, room: Membership, refused: ErrorResponse, now: float) -> None:
        """Join again in a while: the membership or the chat is gone."""
        self._away(room, refused.reason, now)
        room.failures += 1
        room.join_at = now + self._pause(room.failures, _after(refused))
        self._lower(room.join_at)

    def _forget(self, room: Membership) -> None:
        """Give up what was asked in a membership that is over: its answers may never come."""
        self._land(room)
        for entry, sent in room.acknowledged.values():
            self._acknowledge(entry, sent, None)
        room.acknowledged.clear()
        for ref in [ref for ref, asked in self._asked.items() if asked.room is room]:
            del self._asked[ref]

    def _enter_state(self, room: Membership, state: State) -> None:
        if state.state == room.state.state == "away":
            room.state = state
            return
        room.state = state
        if state.state != "joining":
            room.stream.tell_state(state)
        self.woken.add(room.id)

    def _end(self, room: Membership, error: ClientError) -> None:
        self.rooms.pop(room.id, None)
        self._forget(room)
        room.error = error
        room.state = State(room.id, "left", error.reason)
        refusal = error if not isinstance(error, JoinRefused) else SendRefused(error.code, error.reason)
        for entry in self.outbox.of(room.id):
            self._settle(entry, self.outbox.failed(entry, refusal))
        for ask in room.asks:
            ask.error = error
            ask.done()
        room.asks.clear()
        self.woken.add(room.id)

    # Sends.

    def _pump(self, room: Membership, now: float) -> None:
        """Write the room's next send, if it may be."""
        entry = self.outbox.head(room.id)
        if entry is None or room.in_flight is not None or not room.joined or not entry.ready:
            return
        if now < entry.not_before:
            self._lower(entry.not_before)
            return
        if self._unanswered >= MOST_UNANSWERED:
            if room.id not in self._waiting:
                self._waiting.append(room.id)
            return
        if entry.doubtful_since is None:
            cursor = room.stream.cursor
            assert cursor is not None
            entry.doubtful_since = now
            entry.epoch = cursor.epoch
            if self.marking is not None:
                entry.ready = False
                self.marking.append(entry)
                return
        self._write(room, entry, now)

    def _write(self, room: Membership, entry: Entry, now: float) -> None:
        room.in_flight = entry
        self._unanswered += 1

        def answer(ok: bool, response: Raw, now: float) -> None:
            if room.in_flight is not entry:
                return  # it was given up
            self._land(room)
            if ok:
                self._sent(room, entry, _sent(response))
            else:
                self._refused(room, entry, _error(response), now)
            self._pump(room, now)
            self._pump_others(now)

        self._push(room, "new_message", entry.payload, answer, now)

    def _land(self, room: Membership) -> None:
        """Take it that nothing of the room is on its way any more."""
        if room.in_flight is not None:
            room.in_flight = None
            self._unanswered -= 1

    def _pump_others(self, now: float) -> None:
        """Give those their turn that waited for others to be answered."""
        while self._waiting and self._unanswered < MOST_UNANSWERED:
            room = self.rooms.get(self._waiting.popleft())
            if room is not None:
                self._pump(room, now)

    def _sent(self, room: Membership, entry: Entry, sent: Sent) -> None:
        self.outbox.remove(entry)
        cursor = room.stream.cursor
        to_come = cursor is not None and cursor.epoch == sent.epoch and room.stream.newest < sent.offset
        if to_come:
            # The message itself is right behind, and has what the answer does not: its user, and what middlewares made
            # of it.
            room.acknowledged[sent.id] = (entry, sent)
            if len(room.acknowledged) > MOST_UNANSWERED:
                self._acknowledge(*room.acknowledged.pop(next(iter(room.acknowledged))), None)
        else:
            self._acknowledge(entry, sent, None)

    def _acknowledge(self, entry: Entry, sent: Sent, message: Message | None) -> None:
        self.settled.append(
            (
                entry,
                Message(
                    id=sent.id,
                    room=entry.room,
                    user=self.user if message is None else message.user,
                    content=entry.content if message is None else message.content,
                    at=sent.inserted_at,
                    epoch=sent.epoch,
                    offset=sent.offset,
                    data=entry.data if message is None else message.data,
                    duplicate=sent.duplicate is True,
                    stored=sent.stored is True,
                ),
            )
        )

    def _refused(self, room: Membership, entry: Entry, refused: ErrorResponse, now: float) -> None:
        error = SendRefused(refused.code, refused.reason, _after(refused))
        comes_back = refused.code in _COMES_BACK
        if not refused.retryable and not comes_back:
            self._settle(entry, error)
            return
        if refused.code not in LEAVES_OPEN:
            entry.doubtful_since = None
            entry.epoch = None
        entry.refused = error
        entry.failures += 1
        entry.not_before = now + self._pause(entry.failures, error.retry_after)
        self._lower(min(entry.not_before, self.outbox.ends(entry)))
        if comes_back:
            self._come_back(room, refused, now)

    def _settle(self, entry: Entry, error: ClientError) -> None:
        self.outbox.remove(entry)
        self.settled.append((entry, error))

    # History.

    def _page(self, room: Membership, now: float) -> None:
        if not room.joined or not room.stream.behind:
            return
        if now < room.page_at:
            self._lower(room.page_at)
            return
        wanted = room.stream.wanted_page()
        if wanted is None:
            return

        def answer(ok: bool, response: Raw, now: float) -> None:
            if ok:
                page = _page(response)
                room.stream.page(page.messages, page.more, len(bytes(response)))
                self.woken.add(room.id)
                self._page(room, now)
                return
            refused = _error(response)
            room.stream.page_failed()
            if refused.code in {"epoch_changed", "too_old"}:
                room.stream.misplaced()
                self._away(room, refused.reason, now)
                self._join(room, now)
            elif refused.code in _COMES_BACK:
                self._come_back(room, refused, now)
            elif refused.retryable:
                room.page_at = now + self._pause(1, _after(refused))
                self._lower(room.page_at)
            else:
                self._end(room, JoinRefused(refused.code, refused.reason))

        self._push(room, "history", json.encode(wanted), answer, now)

    def _ask(self, room: Membership, ask: Ask, now: float) -> None:
        def answer(ok: bool, response: Raw, now: float) -> None:
            if ask not in room.asks:
                return  # its caller is gone
            refused = None if ok else _error(response)
            if refused is not None and refused.code in _COMES_BACK:
                self._come_back(room, refused, now)
                return
            room.asks.remove(ask)
            if refused is None:
                page = _page(response)
                ask.messages, ask.more = page.messages, page.more
            else:
                ask.error = HistoryRefused(refused.code, refused.reason, _after(refused))
            ask.done()

        self._push(room, "history", json.encode(ask.payload), answer, now)

    # The connection.

    def _look_for_life(self, now: float) -> None:
        options = self._options
        if self._heartbeat_ref is not None:
            if self._heartbeat_ref in self._asked:
                silent_since = max(self._probed_at, self._heard_at)
                if now >= silent_since + options.answer_s:
                    self.broken = f"nothing was heard for {options.answer_s:g} s"
                    return
                self._lower(silent_since + options.answer_s)
                return
            self._heartbeat_ref = None
        oldest = next(iter(self._asked.values()), None)
        if oldest is not None:
            wait = max(oldest.at, self._heard_at) + options.answer_s
            if now >= wait:
                self._heartbeat_at = now
            else:
                self._lower(wait)
        if now >= self._heartbeat_at:
            self._beat(now)
        self._lower(self._heartbeat_at)

    def _beat(self, now: float) -> None:
        self._heartbeat_at = now + self._options.heartbeat_s
        self._refs += 1
        ref = self._heartbeat_ref = str(self._refs)
        self._probed_at = now
        self._asked[ref] = _Asked(None, _nothing, now)
        self.frames.append(f'[null,"{ref}","phoenix","heartbeat",{{}}]')
        self._lower(now + self._options.answer_s)

    def _push(
        self,
        room: Membership,
        event: str,
        payload: bytes,
        answer: Callable[[bool, Raw, float], None] | None,
        now: float,
    ) -> None:
        self._refs += 1
        ref = str(self._refs)
        if answer is not None:
            self._asked[ref] = _Asked(room, answer, now)
            self._lower(now + self._options.answer_s)
        topic = json.encode(room.topic).decode()
        self.frames.append(f'["{room.join_ref}","{ref}",{topic},"{event}",{payload.decode()}]')

    def _tell_presence(self, room: Membership) -> None:
        room.stream.tell_presence()
        self.woken.add(room.id)

    def _pause(self, failures: int, wanted_s: float | None = None) -> float:
        """Return how long to wait after so many refusals: what the server wants, or longer each time."""
        if wanted_s is not None:
            return max(wanted_s, _LEAST_PAUSE_S)
        return backoff_ms(failures, 1000, self._jitter()) / 1000

    def _lower(self, due: float | None) -> None:
        if due is not None and due < self.due:
            self.due = due


def in_doubt(entry: Entry, epoch: str) -> bool:
    """Return whether a send may be published in a stream that is over, of whose keys nothing may be known."""
    return entry.doubtful_since is not None and entry.epoch != epoch


def _nothing(ok: bool, response: Raw, now: float) -> None:
    """Take the answer to a heartbeat: that it came was all."""


def _after(refused: ErrorResponse) -> float | None:
    return None if refused.retry_after_ms is UNSET else refused.retry_after_ms / 1000
