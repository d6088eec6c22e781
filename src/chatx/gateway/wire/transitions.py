"""The states of a topic on one connection: what may happen to it in each, and what comes of that."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class State(StrEnum):
    """Where a topic stands on one connection; nothing is kept for an absent one."""

    ABSENT = "absent"
    JOINING = "joining"
    JOINED = "joined"
    LEAVING = "leaving"


class Input(StrEnum):
    """What happens to a topic: frames of the client, then calls of the shell."""

    JOIN = "phx_join"
    JOIN_UNMATCHED = "phx_join of no room"
    JOIN_EXCESS = "phx_join beyond max_joins"
    JOIN_UNREADABLE = "phx_join with a payload that cannot be read"
    LEAVE = "phx_leave"
    LEAVE_UNREADABLE = "phx_leave with a payload that cannot be read"
    PUSH = "any other event"
    PUSH_UNREADABLE = "any other event with a payload that cannot be read"
    STALE = "a leave or push with another join_ref"
    JOIN_OK = "join_ok()"
    JOIN_ERROR = "join_error()"
    LEFT = "left()"
    CLOSED = "channel_closed()"
    FAILED = "channel_error()"


class Effect(StrEnum):
    """What comes of an input, in words that the documentation shows."""

    START = "Join"
    RESTART = "Superseded, phx_close with the old join_ref, Join"
    STOP = "Leave"
    DELIVER = "Push"
    WAIT = "waits for the answer"
    DROP = "dropped"
    REFUSE_TOPIC = "error reply: unmatched topic"
    REFUSE_EXCESS = "error reply: too many channels joined"
    REFUSE_PAYLOAD = "error reply: invalid_message"
    CONFIRM = "ok reply"
    ACCEPT = "ok reply, then what waited"
    REJECT = "error reply, then what waited"
    FINISH = "ok reply, phx_close, then what waited"
    CLOSE = "phx_close"
    FAIL = "phx_error"
    NOTHING = "nothing"


class Transition(NamedTuple):
    """What the table says of an input in a state: the state that follows, and the effect."""

    state: State
    effect: Effect


def _waiting(state: State) -> dict[Input, Transition]:
    frames = (
        *(Input.JOIN, Input.LEAVE, Input.PUSH),
        *(Input.JOIN_UNREADABLE, Input.LEAVE_UNREADABLE, Input.PUSH_UNREADABLE),
    )
    calls = (Input.CLOSED, Input.FAILED)
    return {
        **dict.fromkeys(frames, Transition(state, Effect.WAIT)),
        **dict.fromkeys(calls, Transition(state, Effect.NOTHING)),
    }


# A pair that is not here cannot come from a client, and is a shell's mistake.
TRANSITIONS: Final[dict[State, dict[Input, Transition]]] = {
    State.ABSENT: {
        Input.JOIN: Transition(State.JOINING, Effect.START),
        Input.JOIN_UNMATCHED: Transition(State.ABSENT, Effect.REFUSE_TOPIC),
        Input.JOIN_EXCESS: Transition(State.ABSENT, Effect.REFUSE_EXCESS),
        Input.JOIN_UNREADABLE: Transition(State.ABSENT, Effect.REFUSE_PAYLOAD),
        Input.LEAVE: Transition(State.ABSENT, Effect.CONFIRM),
        Input.LEAVE_UNREADABLE: Transition(State.ABSENT, Effect.REFUSE_PAYLOAD),
        Input.PUSH: Transition(State.ABSENT, Effect.REFUSE_TOPIC),
        Input.PUSH_UNREADABLE: Transition(State.ABSENT, Effect.REFUSE_TOPIC),
        Input.CLOSED: Transition(State.ABSENT, Effect.NOTHING),
        Input.FAILED: Transition(State.ABSENT, Effect.NOTHING),
    },
    State.JOINING: {
        **_waiting(State.JOINING),
        Input.JOIN_OK: Transition(State.JOINED, Effect.ACCEPT),
        Input.JOIN_ERROR: Transition(State.ABSENT, Effect.REJECT),
    },
    State.JOINED: {
        Input.JOIN: Transition(State.JOINING, Effect.RESTART),
        Input.JOIN_UNREADABLE: Transition(State.JOINED, Effect.REFUSE_PAYLOAD),
        Input.LEAVE: Transition(State.LEAVING, Effect.STOP),
        Input.LEAVE_UNREADABLE: Transition(State.JOINED, Effect.REFUSE_PAYLOAD),
        Input.PUSH: Transition(State.JOINED, Effect.DELIVER),
        Input.PUSH_UNREADABLE: Transition(State.JOINED, Effect.REFUSE_PAYLOAD),
        Input.STALE: Transition(State.JOINED, Effect.DROP),
        Input.CLOSED: Transition(State.ABSENT, Effect.CLOSE),
        Input.FAILED: Transition(State.ABSENT, Effect.FAIL),
    },
    State.LEAVING: {
        **_waiting(State.LEAVING),
        Input.LEFT: Transition(State.ABSENT, Effect.FINISH),
    },
}
