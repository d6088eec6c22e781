"""What is said over one connection after the other: joins, resumes, sends, heartbeats, and what comes of them. No I/O.

The shell tells it what has happened (`opened`, `received`, `lost`, `tick`), each time with its clock, and then does
what it has collected: writes `frames`, looks at `settled`, `woken` and `broken`, and calls `tick` again at `due`.

Rules:
1. A room that is open is joined on each connection, from its cursor. An answer that says no for a while is asked again
   later; one that says no for good ends the room.
2. A frame of a membership that is over is dropped, by its `join_ref`.
3. Whoever has to hear something and hears nothing for `answer_s` asks with a heartbeat, and takes the connection for
   dead where nothing comes of that for as long again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from msgspec import UNSET, DecodeError, Raw, json

from chatx.client.errors import ClientError, HistoryRefused, JoinRefused, SendRefused
from chatx.client.events import Message, State
from chatx.client.frames import (
    COMES_BACK,
    Frame,
    after_s,
    read_diff,
    read_error,
    read_frame,
    read_joined,
    read_message,
    read_page,
    read_reply,
    read_state,
)
from chatx.client.membership import Ask, Membership
from chatx.client.options import Options
from chatx.client.outbox import Entry, Outbox
from chatx.client.sends import Sends
from chatx.core.backoff import backoff_ms
from chatx.gateway.wire.payloads import ErrorResponse, Joined

_ENDED: Final = ErrorResponse("closed", "The membership ended.", retryable=False)

_LEAST_PAUSE_S: Final = 0.01

_ANEW_S: Final = 1.0
"""Seconds between two joins that are made anew at once: a server that contradicts itself is not asked without end."""

MOST_WAIT_S: Final = 300.0
"""The longest that a server's word on when to come back is heeded: asking sooner than that costs little."""


class _Asked(NamedTuple):
    """Something that is to be answered."""

    room: Membership | None
    answer: Callable[[bool, Raw, float], None]
    at: float


class Conversation:
    """The protocol of one client.

    Attributes:
        frames: What is to be written, in order.
        woken: Rooms in which something can be taken, or that have ended.
        broken: Why the connection is to be closed, or None.
        due: When `tick` is to be called next, at the latest.
        outbox: What waits to be sent.
        sends: What is on its way, and what came of it.
        failures: Connections one after the other on which nothing was joined, or what came could not be read.
        unreadable: Connections one after the other that ended since what came could not be read.
    """

    def __init__(self, options: Options, jitter: Callable[[], float]) -> None:
        """Begin without a connection.

        Args:
            options: The client's.
            jitter: Draws a number in [0, 1).
        """
        self.frames: list[str] = []
        self.woken: set[str] = set()
        self.broken: str | None = None
        self.due: float = float("inf")
        self.rooms: dict[str, Membership] = {}
        self.failures: int = 0
        self.unreadable: int = 0
        self.outbox: Outbox = Outbox(
            most=options.outbox_messages,
            most_bytes=options.outbox_bytes,
            most_age_s=options.outbox_age_s,
            window_s=options.key_window_s,
        )
        self.sends: Sends = Sends(self.outbox, self)
        self._options = options
        self._jitter = jitter
        self._open = False
        self._unread = False
        self._refs = 0
        self._asked: dict[str, _Asked] = {}
        self._heard_at = 0.0
        self._heartbeat_at = 0.0
        self._heartbeat_ref: str | None = None
        self._probed_at = 0.0

    # What the program does.

    def enter(self, room: Membership, now: float) -> None:
        """Open a room."""
        self.rooms[room.id] = room
        room.join_at = now
        self._join(room, now)
        self.lower(self.outbox.next_overdue((room.id,)))  # of what was restored

    def leave(self, room: Membership, error: ClientError) -> None:
        """Leave a room for good; what waits to be sent in it fails."""
        if self._open and room.join_ref is not None:
            self.push(room, "phx_leave", b"{}", None, 0.0)
        self._end(room, error)

    def end(self, error: ClientError) -> None:
        """End all rooms."""
        for room in list(self.rooms.values()):
            self._end(room, error)
        for entry in list(self.outbox):
            self.sends.settle(entry, self.outbox.failed(entry, error))

    def send(self, entry: Entry, now: float) -> None:
        """Write a send that is in the outbox as soon as it may be."""
        room = self.rooms.get(entry.room)
        if room is not None:
            self.sends.pump(room, now)
        self.lower(self.outbox.ends(entry))

    def withdraw(self, entry: Entry) -> bool:
        """Take back a send; return False where it may be published."""
        if entry.doubtful_since is not None:
            return False
        self.outbox.remove(entry)
        return True

    def give_up(self, entry: Entry, error: ClientError) -> None:
        """End a send that is not on its way with an error, unless it has an outcome already."""
        if entry in self.outbox.of(entry.room):
            self.sends.settle(entry, error)

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
        self.lower(self._heartbeat_at)
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
        self.unreadable = self.unreadable + 1 if self._unread else 0
        self._unread = False
        self.frames.clear()
        self._asked.clear()
        self._heartbeat_ref = None
        self.sends.lost()
        for room in list(self.rooms.values()):
            entry = room.in_flight
            if poisoned and entry is not None:
                entry.strikes += 1
            self._away(room, why, now)
            if entry is not None and entry.strikes > 1:
                self.sends.settle(entry, entry.unknown(f"The connection was closed with it twice: {why}."))
        # A join was no success where what followed it could not be read, time and again.
        self.failures = max(self.failures + 1, self.unreadable)
        return backoff_ms(self.failures, max(1, int(self._options.first_pause_s * 1000)), self._jitter()) / 1000

    def received(self, text: str | bytes, now: float) -> None:
        """Take a frame. One that cannot be read breaks the connection."""
        self._heard_at = now
        try:
            frame = read_frame(text)
            self._take(frame, len(text), now)
        except (DecodeError, UnicodeError, RecursionError) as error:
            self.unread(f"the server sent what cannot be read: {error}")

    def unread(self, why: str) -> None:
        """Break the connection, since what came over it cannot be read."""
        self.broken = why
        self._unread = True

    def tick(self, now: float) -> None:
        """Do what is due."""
        self.due = float("inf")
        self.sends.overdue(now)
        self.lower(self.outbox.next_overdue(self.rooms))
        if not self._open:
            return
        for room in list(self.rooms.values()):
            if room.joined:
                self.sends.pump(room, now)
                self._page(room, now)
            else:
                self._join(room, now)
        self._look_for_life(now)

    # Frames.

    def _take(self, frame: Frame, size: int, now: float) -> None:
        if frame.event == "new_message" and frame.ref is None:
            room = self._room(frame)
            if room is not None and room.joined:
                self._heard(room, read_message(frame.payload), size, now)
            return
        if frame.event == "phx_reply":
            asked = self._asked.pop(frame.ref, None) if frame.ref is not None else None
            if asked is not None:
                reply = read_reply(frame.payload)
                asked.answer(reply.status == "ok", reply.response, now)
            return
        room = self._room(frame)
        if room is None:
            return
        if frame.event in {"phx_error", "phx_close"} and frame.join_ref == room.join_ref:
            self.come_back(room, _ENDED, now)
        elif room.presences is not None and frame.event == "presence_state":
            room.presences.replace(read_state(frame.payload))
            self._tell_presence(room)
        elif room.presences is not None and frame.event == "presence_diff":
            room.presences.change(read_diff(frame.payload))
            self._tell_presence(room)

    def _room(self, frame: Frame) -> Membership | None:
        room = self.rooms.get(frame.topic[5:])
        if room is None or room.topic != frame.topic:
            return None
        return room if frame.join_ref is None or frame.join_ref == room.join_ref else None

    def _heard(self, room: Membership, message: Message, size: int, now: float) -> None:
        if not room.stream.heard(message, size):
            # Another stream, and nobody said so: the answer to a join does.
            self._join_anew(room, "the room's stream is another", now)
            return
        self.woken.add(room.id)
        if room.acknowledged:
            self.sends.heard(room, message)
        if room.stream.behind:
            self._page(room, now)

    # Joins.

    def _join(self, room: Membership, now: float) -> None:
        if not self._open or room.join_ref is not None:
            return
        if now < room.join_at:
            self.lower(room.join_at)
            return
        room.join_ref = str(self._refs + 1)

        def answer(ok: bool, response: Raw, now: float) -> None:
            if ok:
                self._join_answered(room, read_joined(response), now)
            else:
                self._join_refused(room, read_error(response), now)

        self.push(room, "phx_join", json.encode(room.stream.join_payload()), answer, now)

    def _join_answered(self, room: Membership, answer: Joined, now: float) -> None:
        self.failures = room.failures = 0
        room.stream.joined(
            answer.epoch, answer.offset, answer.recovered, None if answer.reason is UNSET else answer.reason
        )
        self._enter_state(room, State(room.id, "joined"))
        for ask in list(room.asks):
            self._ask(room, ask, now)
        self._page(room, now)
        self.sends.pump(room, now)

    def _join_refused(self, room: Membership, refused: ErrorResponse, now: float) -> None:
        room.join_ref = None
        if not refused.retryable and refused.code not in COMES_BACK:
            self._end(room, JoinRefused(refused.code, refused.reason, after_s(refused)))
            return
        room.failures += 1
        room.join_at = now + self.pause(room.failures, after_s(refused))
        self._enter_state(room, State(room.id, room.unjoined, refused.reason))
        self.lower(room.join_at)

    def _away(self, room: Membership, why: str, now: float) -> None:
        """Take it that the room is not joined any more; what was on its way has no answer."""
        self._forget(room)
        room.join_ref = None
        room.join_at = max(room.join_at, now)
        room.page_at = max(room.page_at, now)
        room.stream.lost()
        self._enter_state(room, State(room.id, room.unjoined, why))

    def _join_anew(self, room: Membership, why: str, now: float) -> None:
        """Join again, since what came does not fit the last join: at once, or soon where it was so just now."""
        self._away(room, why, now)
        room.join_at = max(room.join_at, room.anew_at)
        room.anew_at = room.join_at + _ANEW_S
        self._join(room, now)

    def come_back(self, room: Membership, refused: ErrorResponse, now: float) -> None:
        """Join again in a while: the membership or the chat is gone."""
        self._away(room, refused.reason, now)
        room.failures += 1
        room.join_at = now + self.pause(room.failures, after_s(refused))
        self.lower(room.join_at)

    def _forget(self, room: Membership) -> None:
        """Give up what was asked in a membership that is over: its answers may never come."""
        self.sends.forget(room)
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
            self.sends.settle(entry, self.outbox.failed(entry, refusal))
        for ask in room.asks:
            ask.error = error
            ask.done()
        room.asks.clear()
        self.woken.add(room.id)

    # History.

    def _page(self, room: Membership, now: float) -> None:
        if not room.joined or not room.stream.behind:
            return
        if now < room.page_at:
            self.lower(room.page_at)
            return
        wanted = room.stream.wanted_page()
        if wanted is None:
            return

        def answer(ok: bool, response: Raw, now: float) -> None:
            if ok:
                page = read_page(response)
                room.stream.page(page.messages, page.more, len(bytes(response)))
                self.woken.add(room.id)
                self._page(room, now)
                return
            refused = read_error(response)
            room.stream.page_failed()
            if refused.code in {"epoch_changed", "too_old"}:
                room.stream.misplaced()
                self._join_anew(room, refused.reason, now)
            elif refused.code in COMES_BACK:
                self.come_back(room, refused, now)
            elif refused.retryable:
                room.page_at = now + self.pause(1, after_s(refused))
                self.lower(room.page_at)
            else:
                self._end(room, JoinRefused(refused.code, refused.reason))

        self.push(room, "history", json.encode(wanted), answer, now)

    def _ask(self, room: Membership, ask: Ask, now: float) -> None:
        def answer(ok: bool, response: Raw, now: float) -> None:
            if ask not in room.asks:
                return  # its caller is gone
            refused = None if ok else read_error(response)
            if refused is not None and refused.code in COMES_BACK:
                self.come_back(room, refused, now)
                return
            room.asks.remove(ask)
            if refused is None:
                page = read_page(response)
                ask.messages, ask.more = page.messages, page.more
            else:
                ask.error = HistoryRefused(refused.code, refused.reason, after_s(refused))
            ask.done()

        self.push(room, "history", json.encode(ask.payload), answer, now)

    # The connection.

    def _look_for_life(self, now: float) -> None:
        options = self._options
        if self._heartbeat_ref is not None:
            if self._heartbeat_ref in self._asked:
                silent_since = max(self._probed_at, self._heard_at)
                if now >= silent_since + options.answer_s:
                    self.broken = f"nothing was heard for {options.answer_s:g} s"
                    return
                self.lower(silent_since + options.answer_s)
                return
            self._heartbeat_ref = None
        oldest = next(iter(self._asked.values()), None)
        if oldest is not None:
            wait = max(oldest.at, self._heard_at) + options.answer_s
            if now >= wait:
                self._heartbeat_at = now
            else:
                self.lower(wait)
        if now >= self._heartbeat_at:
            self._beat(now)
        self.lower(self._heartbeat_at)

    def _beat(self, now: float) -> None:
        self._heartbeat_at = now + self._options.heartbeat_s
        self._refs += 1
        ref = self._heartbeat_ref = str(self._refs)
        self._probed_at = now
        self._asked[ref] = _Asked(None, _nothing, now)
        self.frames.append(f'[null,"{ref}","phoenix","heartbeat",{{}}]')
        self.lower(now + self._options.answer_s)

    def push(
        self,
        room: Membership,
        event: str,
        payload: bytes,
        answer: Callable[[bool, Raw, float], None] | None,
        now: float,
    ) -> None:
        """Write a push to a room, whose answer is to be taken so."""
        self._refs += 1
        ref = str(self._refs)
        if answer is not None:
            self._asked[ref] = _Asked(room, answer, now)
            self.lower(now + self._options.answer_s)
        topic = json.encode(room.topic).decode()
        self.frames.append(f'["{room.join_ref}","{ref}",{topic},"{event}",{payload.decode()}]')

    def _tell_presence(self, room: Membership) -> None:
        room.stream.tell_presence()
        self.woken.add(room.id)

    def pause(self, failures: int, wanted_s: float | None = None) -> float:
        """Return how long to wait after so many refusals: what the server wants, or longer each time."""
        if wanted_s is not None:
            return min(max(wanted_s, _LEAST_PAUSE_S), MOST_WAIT_S)
        return backoff_ms(failures, 1000, self._jitter()) / 1000

    def lower(self, due: float | None) -> None:
        """Take it that something is due then, if that is sooner than what else is."""
        if due is not None and due < self.due:
            self.due = due


def _nothing(ok: bool, response: Raw, now: float) -> None:
    """Take the answer to a heartbeat: that it came was all."""
