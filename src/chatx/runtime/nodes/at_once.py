"""How many asks of other nodes are answered at once: each kind has a bound of its own, and so none keeps another out.

| lane | which | how long it may take |
|---|---|---|
| `sends` | `Submit` | as the middlewares, and the log where it is to be stored |
| `rooms` | `Attach`, `Read`, `Join` | as the store, where the room is not open yet |
| `moves` | `HandOff` | as the log, or until the room is open |
| `posts` | `Post` | as what a client pushes |
| `now` | all others, and what cannot be read | no time: nothing is awaited |

At `AT_ONCE` of a lane the next one is answered `NodeBusy`: nothing was done, and whoever asks tries again.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from chatx.cluster.backplane import SERVED_AT_ONCE, NodeBusy
from chatx.cluster.polling import Post
from chatx.cluster.rpc import Attach, HandOff, Join, Read, Submit

Lane: TypeAlias = Literal["sends", "rooms", "moves", "posts", "now"]

LANES: Final[tuple[Lane, ...]] = ("sends", "rooms", "moves", "posts", "now")

AT_ONCE: Final = SERVED_AT_ONCE
"""Asks of one lane, at most."""


def lane_of(ask: object) -> Lane:
    """Return the lane of an ask."""
    if isinstance(ask, Submit):
        return "sends"
    if isinstance(ask, Attach | Read | Join):
        return "rooms"
    if isinstance(ask, Post):
        return "posts"
    return "moves" if isinstance(ask, HandOff) else "now"


class AtOnce:
    """The asks that are being answered."""

    def __init__(self) -> None:
        self._under_way = dict.fromkeys(LANES, 0)

    def enter(self, lane: Lane) -> None:
        """Begin to answer one; `leave` follows.

        Raises:
            NodeBusy: As many of the lane are being answered as may be.
        """
        if self._under_way[lane] >= AT_ONCE:
            raise NodeBusy(f"{AT_ONCE} asks of this kind are being answered, which is the bound; ask again later.")
        self._under_way[lane] += 1

    def leave(self, lane: Lane) -> None:
        """Take note that one has been answered."""
        self._under_way[lane] -= 1
