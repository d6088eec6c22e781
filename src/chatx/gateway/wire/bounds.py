"""The bounds that a client meets and no option of `ChatConfig` sets: what the description of the wire tells of."""

from __future__ import annotations

from typing import Final

MAX_FRAME_BYTES: Final = 65_536
"""Bytes of a whole WebSocket message; a larger one closes the socket."""

MAX_JOINS: Final = 100
"""Topics that a connection has joined, joins or leaves, unless told otherwise; a further join is refused."""

MAX_WAITING_FRAMES: Final = 64
"""Frames to one topic that wait for its join or leave; one more closes the socket."""

MAX_WAITING_BYTES: Final = 262_144
"""Bytes of all such frames of one connection; more closes the socket."""

IDLE_TIMEOUT_S: Final = 60.0
"""Seconds of silence after which a socket is closed; clients send a heartbeat every 30 s."""

ANSWER_S: Final = 2.0
"""Seconds in which a silent socket must show itself when it is asked at the bound of one user, or it gives way to a
newcomer, who waits as long. phoenix.js falls back to long-polling after 2.5 s, where it is set up as Phoenix has it."""

OVERDUE_PERCENT: Final = 75
"""The part of the idle timeout for which a socket must have been silent to give way to a newcomer where it cannot be
asked, as under most ASGI servers: by default 45 s, which is a heartbeat and half of the next."""

PENDING_PUSHES: Final = 64
"""Pushes of one connection under way at a time."""

JOIN_BURSTS: Final = 5
"""Joins that a socket may make at once, as a multiple of the rooms that it may have joined. phoenix.js tries a refused
join again after 1, 2, 5 and then every 10 s: if every join is refused, each is made four times within 8 s."""

JOIN_SECONDS: Final = 10
"""Seconds in which a socket regains as many joins as it may have joined rooms; the pause of phoenix.js between two
tries."""

ROOM_SECONDS: Final = 60
"""Seconds in which a user may begin as many rooms as all of their sockets together may have joined: about as long as a
room stays that nobody is in."""

MESSAGE_ROOMS: Final = 25
"""Rooms in which one user may send at the full rate of the rate limit at the same time."""

MAX_FRAGMENTS: Final = 128
"""Frames of one message to the native server, the first and the last included."""

CONTROL_FRAMES_PER_S: Final = 10.0
CONTROL_FRAMES_BURST: Final = 20
"""Pings and pongs that one socket of the native server may send, a second and at once. A browser sends none by itself,
other clients one in some seconds."""

LEAST_TAKEN: Final = 1024
"""Bytes that a peer must take, of what waits for it, in the time in which it must take something; or the last of them.
Without a least one byte every 9 s would hold a connection for ever."""

CLOSING_S: Final = 120.0
"""Seconds between a close from this side and the end of the connection, at most, however steadily the peer takes what
was written before the close: 5 MB at 40 kB/s, which is about what the kernel and a mailbox hold."""
