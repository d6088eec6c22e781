"""What can be set about a client: each with its default, its unit and its bound."""

from __future__ import annotations

from math import inf

from msgspec import Struct


class Options(Struct, frozen=True, kw_only=True):
    """Every option of a client; those of `Client` are these.

    Attributes:
        queue_events: Events of a room that wait to be taken.
        queue_bytes: Bytes of those.
        outbox_messages: Messages of all rooms that wait to be sent.
        outbox_bytes: Bytes of those.
        outbox_age_s: Seconds that a message may wait which was surely not published.
        key_window_s: Seconds in which a message goes again whose answer was lost. The server remembers keys for 300.
        heartbeat_s: Seconds between two heartbeats. The server closes what is silent for 60.
        answer_s: Seconds without a word from the server, though one is due, after which it is asked by a heartbeat;
            after as many more the connection is given up.
        open_s: Seconds that a connection may take to open.
        first_pause_s: The longest first pause before a connection is made anew. It doubles, up to 30 s, and each is a
            random part of it.
    """

    queue_events: int = 1024
    queue_bytes: int = 1_048_576
    outbox_messages: int = 1000
    outbox_bytes: int = 1_048_576
    outbox_age_s: float = 300.0
    key_window_s: float = 240.0
    heartbeat_s: float = 30.0
    answer_s: float = 10.0
    open_s: float = 10.0
    first_pause_s: float = 1.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < inf:
                raise ValueError(f"{name} is {value!r}; give a number above 0, and a finite one.")
            if self.__annotations__[name] == "int" and not isinstance(value, int):
                raise ValueError(f"{name} is {value!r}; give a whole number.")
        if self.key_window_s > MOST_KEY_WINDOW_S:
            raise ValueError(
                f"key_window_s is {self.key_window_s:g}, and at most {MOST_KEY_WINDOW_S:g} are allowed: the server "
                "forgets a key after 300 s, and what goes again behind that may be published twice."
            )


MOST_KEY_WINDOW_S = 280.0
"""The server's five minutes, less what an attempt may be on its way."""
