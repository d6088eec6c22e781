"""What a node counts of its life among the others."""

from __future__ import annotations

from msgspec import Struct


class Counts(Struct):
    """Counters since the start, and what goes on now.

    Attributes:
        isolations: How often the node has not heard itself.
        links_lost: How often the broker was lost.
        records_refused: Records that could not be read, heartbeats among them.
        asking: Questions to other nodes that wait for their answer.
        answering: Questions of other nodes that are being answered.
    """

    isolations: int = 0
    links_lost: int = 0
    records_refused: int = 0
    asking: int = 0
    answering: int = 0
