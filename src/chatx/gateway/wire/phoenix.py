"""One client's side of Phoenix Channels, versions 1 and 2, as a state machine without I/O.

`PhoenixProtocol` takes what the client wrote and returns actions; a shell (an ASGI app, a native server) carries them
out and tells the outcome. Rules; each topic's part in them is the table `transitions.TRANSITIONS`:

1. A topic is `room:<room_id>`, or it matches nothing. A heartbeat on topic `phoenix` is answered whatever
   else goes on.
2. Every push, join and leave gets exactly one reply, in the shell's time. A push or leave whose join_ref is
   neither null nor that of the present membership is stale, and is dropped.
3. While a `Join` or a `Leave` is with the shell, that topic's further frames wait, and come out in order with
   the answer. Phoenix joins synchronously, so a client sees the same; other topics do not wait here. The
   bounds are `MAX_WAITING_FRAMES` for a topic and `MAX_WAITING_BYTES` for the connection; beyond them the
   connection is closed.
4. A join of a joined topic ends the first membership: `Superseded`, `phx_close` with the old join_ref,
   `Join`.
5. At most `max_joins` topics are joined, joining or leaving.
6. No input raises. A frame is refused like any invalid push where its payload cannot be read, or no more of it than its
   ref; the connection and its topics go on. What is no frame closes the connection with 1007, a frame that is too large
   with 1009, too many frames that wait with 1008; never 1000, after which a phoenix.js before 1.8.16 does not come
   back.

Source: Phoenix's guide "Writing a Channels Client" and `Phoenix.Socket`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import ClassVar, Final

from chatx.errors import TooManyJoins, UnmatchedTopic
from chatx.gateway.wire.actions import Action, Close, Join, Leave, Push, Superseded, Write
from chatx.gateway.wire.bounds import MAX_FRAME_BYTES, MAX_JOINS, MAX_WAITING_BYTES, MAX_WAITING_FRAMES
from chatx.gateway.wire.closes import CLOSE_MALFORMED, CLOSE_POLICY, CLOSE_TOO_LARGE, MAX_CLOSE_REASON
from chatx.gateway.wire.frames import (
    SOCKET_TOPIC,
    Frame,
    MalformedFrame,
    Misaddressed,
    Payload,
    Ref,
    UnreadableFrame,
    Version,
    decode,
    encode_frame,
    encode_reply,
)
from chatx.gateway.wire.payloads import Empty, ErrorResponse, Failed, Status, error_response
from chatx.gateway.wire.topics import PREFIX, room_id_of
from chatx.gateway.wire.transitions import TRANSITIONS, Effect, Input, State

BEARER: Final = "base64url.bearer.phx."
"""What the subprotocol begins with in which phoenix.js carries its `authToken`; it is never echoed."""

REFUSALS: Final[dict[str, ErrorResponse]] = {
    "unmatched_topic": error_response(UnmatchedTopic()),
    "too_many_joins": error_response(TooManyJoins()),
    "invalid_message": ErrorResponse(
        "invalid_message",
        "The payload is binary; expected a JSON object. Send the event as a text frame.",
        retryable=False,
    ),
}
"""The error replies of the protocol itself, by code. The reasons of the first two are Phoenix's own, since clients
compare them; another reason takes the place of the last one where a text payload cannot be read."""

_EMPTY = Empty()
_FAILED = Failed("channel_crash")


def _unreadable(reason: str) -> ErrorResponse:
    return ErrorResponse("invalid_message", reason, retryable=False)


def _bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # a server that checks no UTF-8, or a post whose text is none
        return len(text.encode("utf-8", "surrogatepass"))


class _Channel:
    """A topic that is not absent: its state, its membership's ref, and what the shell owes an answer to."""

    __slots__ = ("join_ref", "owed", "room_id", "state", "topic")

    def __init__(self, join: Join) -> None:
        self.topic = join.topic
        self.room_id = join.room_id
        self.join_ref = join.join_ref
        self.state = State.JOINING
        self.owed: Join | Leave | None = join


class PhoenixProtocol:
    """The protocol of one connection.

    The shell must carry out the actions of each list in order, and may answer a `Join`, `Leave` or `Push`
    while it does so, or at any later time. A `Join` or `Leave` is always the last action of its list, so the
    actions that an answer gives belong behind those at hand: one queue per connection is enough. Answers
    after a `Close`, or after the shell closed the connection itself and dropped this object, are harmless.

    The silence of a peer, the rate of its joins, Origin and authentication are the shell's business.

    Args:
        version: From `negotiate`.
        max_joins: Topics, at least 1.
        max_frame_bytes: Bytes of UTF-8 or binary in a whole WebSocket message, at least 1.
    """

    __slots__ = (
        "_channels",
        "_closed",
        "_max_frame_bytes",
        "_max_joins",
        "_waiting",
        "_waiting_bytes",
        "version",
    )

    def __init__(self, version: Version, *, max_joins: int = MAX_JOINS, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.version: Version = version
        self._max_joins = max_joins
        self._max_frame_bytes = max_frame_bytes
        self._channels: dict[str, _Channel] = {}
        # By topic, each frame with its size in bytes.
        self._waiting: dict[str, deque[tuple[Frame, int]]] = {}
        self._waiting_bytes = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether a `Close` was returned; from then on no action is."""
        return self._closed

    def state(self, topic: str) -> State:
        """Return the state of a topic."""
        channel = self._channels.get(topic)
        return State.ABSENT if channel is None else channel.state

    def receive(self, data: str | bytes) -> list[Action]:
        """Take one whole WebSocket message, `str` for text and `bytes` for binary, and return the actions for it.

        The caller must carry out all of them, in order, before it passes in the next message. No input raises.
        """
        if self._closed:
            return []
        try:
            size = len(data) if isinstance(data, bytes) or data.isascii() else _bytes(data)
            if size > self._max_frame_bytes:
                return self._close(CLOSE_TOO_LARGE, f"frame of {size} bytes; expected at most {self._max_frame_bytes}")
            frame = decode(self.version, data)
        except Misaddressed as error:
            refusal = _unreadable(f"The frame cannot be read: {error}. Send all its parts.")
            return [self._reply(error.join_ref, error.ref, error.topic, "error", refusal)]
        except MalformedFrame as error:
            return self._close(CLOSE_MALFORMED, f"malformed frame: {error}"[:MAX_CLOSE_REASON])
        if frame.topic == SOCKET_TOPIC and frame.event == "heartbeat":
            if isinstance(frame, UnreadableFrame) and not frame.binary:
                return self._refuse_payload(frame, size)
            return [self._reply(None, frame.ref, SOCKET_TOPIC, "ok", _EMPTY)]
        return self._advance(frame, size)

    def join_ok(self, join: Join, response: Payload) -> list[Action]:
        """Accept a join, and return the actions: the reply, then those for the frames that waited.

        The caller must write no broadcast of the topic before the first action, the reply. Before it carries
        out the others it must be subscribed, and have put the missed messages of a resume and the
        `presence_state` behind the reply. From then on it writes broadcasts, until a `Leave` or `Superseded`
        of the topic, or its own call of `channel_closed` or `channel_error`.

        Raises:
            RuntimeError: This join is not waiting for an answer.
        """
        return self._answer(Input.JOIN_OK, join, response)

    def join_error(self, join: Join, response: Payload) -> list[Action]:
        """Refuse a join, and return the actions: the error reply, then those for the frames that waited.

        phoenix.js tries again for ever, after 1, 2, 5 and then every 10 s.

        Raises:
            RuntimeError: This join is not waiting for an answer.
        """
        return self._answer(Input.JOIN_ERROR, join, response)

    def left(self, leave: Leave) -> list[Action]:
        """Confirm that a membership ended, and return the actions: the reply, `phx_close`, then those for what waited.

        The caller must have stopped the topic's broadcasts to this connection.

        Raises:
            RuntimeError: This leave is not waiting for an answer.
        """
        return self._answer(Input.LEFT, leave, _EMPTY)

    def reply(self, push: Push, status: Status, response: Payload) -> list[Action]:
        """Answer a push, and return the reply to write.

        The caller must do so once for each push, and may do so after the membership has ended: the reply carries the
        join_ref of that membership, and a client that has moved on ignores it.
        """
        if self._closed:
            return []
        return [self._reply(push.join_ref, push.ref, push.topic, status, response)]

    def push(self, topic: str, event: str, payload: Payload) -> list[Action]:
        """Return the `Write` of an event for this connection alone; nothing unless the topic is joined."""
        channel = self._channels.get(topic)
        if channel is None or channel.state is not State.JOINED:
            return []
        return [Write(encode_frame(self.version, channel.join_ref, None, topic, event, payload))]

    def channel_closed(self, topic: str) -> list[Action]:
        """End a membership from the server's side for good: phoenix.js does not join again after `phx_close`.

        The caller must have stopped the topic's broadcasts to this connection. Unless the topic is joined
        this does nothing: a `Join` or `Leave` at hand is answered by its own call.
        """
        return self._end(Input.CLOSED, topic, _EMPTY)

    def channel_error(self, topic: str, response: Payload | None = None) -> list[Action]:
        """End a membership that failed: phoenix.js joins again after `phx_error`.

        The caller must have stopped the topic's broadcasts to this connection. Unless the topic is joined
        this does nothing: a `Join` or `Leave` at hand is answered by its own call.
        """
        return self._end(Input.FAILED, topic, _FAILED if response is None else response)

    def _advance(self, frame: Frame, size: int) -> list[Action]:
        """Return what comes of a frame, by the table."""
        topic = frame.topic
        channel = self._channels.get(topic)
        state = State.ABSENT if channel is None else channel.state
        target, effect = TRANSITIONS[state][self._classify(frame, channel)]
        actions = self._ON_FRAME[effect](self, frame, size)
        if target is not State.ABSENT and not self._closed:
            self._channels[topic].state = target
        return actions

    def _classify(self, frame: Frame, channel: _Channel | None) -> Input:
        if frame.event == "phx_join":
            if channel is None:
                if room_id_of(frame.topic) is None:
                    return Input.JOIN_UNMATCHED
                if len(self._channels) >= self._max_joins:
                    return Input.JOIN_EXCESS
            return Input.JOIN_UNREADABLE if isinstance(frame, UnreadableFrame) else Input.JOIN
        # Whether a frame that waits is stale shows only when the answer is there.
        if (
            channel is not None
            and channel.state is State.JOINED
            and frame.join_ref is not None
            and frame.join_ref != channel.join_ref
        ):
            return Input.STALE
        if frame.event == "phx_leave":
            # It has nothing to say by its payload, so a binary one is as good as any.
            unreadable = isinstance(frame, UnreadableFrame) and not frame.binary
            return Input.LEAVE_UNREADABLE if unreadable else Input.LEAVE
        return Input.PUSH_UNREADABLE if isinstance(frame, UnreadableFrame) else Input.PUSH

    def _answer(self, call: Input, owed: Join | Leave, response: Payload) -> list[Action]:
        """Return the actions for the shell's answer to a `Join` or `Leave`, and for the frames that waited for it."""
        if self._closed:
            return []
        channel = self._channels.get(owed.topic)
        row = None if channel is None else TRANSITIONS[channel.state].get(call)
        if channel is None or row is None or channel.owed is not owed:
            raise RuntimeError(
                f"{call} was called with a {type(owed).__name__} of topic {owed.topic!r} that does not wait "
                "for it; expected one not answered yet. Answer each Join and each Leave exactly once."
            )
        actions = self._ON_CALL[row.effect](self, channel, response)
        channel.owed = None  # a Join keeps its whole frame in memory
        self._enter(channel, row.state)
        self._release(owed.topic, actions)
        return actions

    def _end(self, call: Input, topic: str, response: Payload) -> list[Action]:
        """Return the actions for a membership's end from the server's side."""
        channel = self._channels.get(topic)
        if channel is None:
            return []
        state, effect = TRANSITIONS[channel.state][call]
        actions = self._ON_CALL[effect](self, channel, response)
        self._enter(channel, state)
        return actions

    def _enter(self, channel: _Channel, state: State) -> None:
        channel.state = state
        if state is State.ABSENT:
            del self._channels[channel.topic]

    def _release(self, topic: str, actions: list[Action]) -> None:
        """Take the frames that waited, in order, until one of them makes the topic wait again."""
        waiting = self._waiting.get(topic)
        if waiting is None:
            return
        while waiting and self.state(topic) not in (State.JOINING, State.LEAVING):
            frame, size = waiting.popleft()
            self._waiting_bytes -= size
            actions += self._advance(frame, size)
        if not waiting:
            del self._waiting[topic]

    def _close(self, code: int, reason: str) -> list[Action]:
        self._closed = True
        self._channels.clear()
        self._waiting.clear()
        self._waiting_bytes = 0
        return [Close(code, reason)]

    def _reply(self, join_ref: Ref, ref: Ref, topic: str, status: Status, response: Payload) -> Write:
        return Write(encode_reply(self.version, join_ref, ref, topic, status, response))

    def _send_close(self, channel: _Channel) -> Write:
        ref = channel.join_ref
        return Write(encode_frame(self.version, ref, ref, channel.topic, "phx_close", _EMPTY))

    # Effects of a frame. Each is called before the state changes.

    def _start(self, frame: Frame, size: int) -> list[Action]:
        join_ref = frame.ref if frame.join_ref is None else frame.join_ref
        room_id = frame.topic[len(PREFIX) :]
        join = Join(frame.topic, room_id, join_ref, frame.ref, frame.payload)
        self._channels[frame.topic] = _Channel(join)
        return [join]

    def _restart(self, frame: Frame, size: int) -> list[Action]:
        old = self._channels[frame.topic]
        return [
            Superseded(old.topic, old.room_id, old.join_ref),
            self._send_close(old),
            *self._start(frame, size),
        ]

    def _stop(self, frame: Frame, size: int) -> list[Action]:
        channel = self._channels[frame.topic]
        channel.owed = leave = Leave(channel.topic, channel.room_id, channel.join_ref, frame.ref)
        return [leave]

    def _deliver(self, frame: Frame, size: int) -> list[Action]:
        channel = self._channels[frame.topic]
        return [Push(channel.topic, channel.room_id, channel.join_ref, frame.ref, frame.event, frame.payload)]

    def _wait(self, frame: Frame, size: int) -> list[Action]:
        waiting = self._waiting.setdefault(frame.topic, deque())
        if len(waiting) >= MAX_WAITING_FRAMES or self._waiting_bytes + size > MAX_WAITING_BYTES:
            return self._close(CLOSE_POLICY, "too many frames to a topic whose join or leave is under way")
        waiting.append((frame, size))
        self._waiting_bytes += size
        return []

    def _drop(self, frame: Frame, size: int) -> list[Action]:
        return []

    def _refuse_topic(self, frame: Frame, size: int) -> list[Action]:
        # Phoenix gives this reply no join_ref, so that a client which holds another one still sees it.
        return [self._reply(None, frame.ref, frame.topic, "error", REFUSALS["unmatched_topic"])]

    def _refuse_excess(self, frame: Frame, size: int) -> list[Action]:
        return [self._reply(frame.join_ref, frame.ref, frame.topic, "error", REFUSALS["too_many_joins"])]

    def _refuse_payload(self, frame: Frame, size: int) -> list[Action]:
        refusal = REFUSALS["invalid_message"]
        if isinstance(frame, UnreadableFrame) and not frame.binary:
            refusal = _unreadable(f"The payload cannot be read: {frame.problem}. Send a JSON object.")
        return [self._reply(frame.join_ref, frame.ref, frame.topic, "error", refusal)]

    def _confirm(self, frame: Frame, size: int) -> list[Action]:
        return [self._reply(frame.join_ref, frame.ref, frame.topic, "ok", _EMPTY)]

    # Effects of a call.

    def _accept(self, channel: _Channel, response: Payload) -> list[Action]:
        return [self._reply_owed(channel, "ok", response)]

    def _reject(self, channel: _Channel, response: Payload) -> list[Action]:
        return [self._reply_owed(channel, "error", response)]

    def _finish(self, channel: _Channel, response: Payload) -> list[Action]:
        return [self._reply_owed(channel, "ok", response), self._send_close(channel)]

    def _reply_owed(self, channel: _Channel, status: Status, response: Payload) -> Write:
        ref = None if channel.owed is None else channel.owed.ref
        return self._reply(channel.join_ref, ref, channel.topic, status, response)

    def _close_channel(self, channel: _Channel, response: Payload) -> list[Action]:
        return [self._send_close(channel)]

    def _fail_channel(self, channel: _Channel, response: Payload) -> list[Action]:
        ref = channel.join_ref
        return [Write(encode_frame(self.version, ref, ref, channel.topic, "phx_error", response))]

    def _nothing(self, channel: _Channel, response: Payload) -> list[Action]:
        return []

    _ON_FRAME: ClassVar[dict[Effect, Callable[[PhoenixProtocol, Frame, int], list[Action]]]] = {
        Effect.START: _start,
        Effect.RESTART: _restart,
        Effect.STOP: _stop,
        Effect.DELIVER: _deliver,
        Effect.WAIT: _wait,
        Effect.DROP: _drop,
        Effect.REFUSE_TOPIC: _refuse_topic,
        Effect.REFUSE_EXCESS: _refuse_excess,
        Effect.REFUSE_PAYLOAD: _refuse_payload,
        Effect.CONFIRM: _confirm,
    }
    _ON_CALL: ClassVar[dict[Effect, Callable[[PhoenixProtocol, _Channel, Payload], list[Action]]]] = {
        Effect.ACCEPT: _accept,
        Effect.REJECT: _reject,
        Effect.FINISH: _finish,
        Effect.CLOSE: _close_channel,
        Effect.FAIL: _fail_channel,
        Effect.NOTHING: _nothing,
    }
