"""Sums over the rooms of one chat, kept as they change: nobody has to look at all of them.

Each room brings in the difference since it was counted last.
"""

from __future__ import annotations


class Totals:
    """Sums over the rooms in memory.

    Attributes:
        members: Users present.
        subscriptions: Subscribers.
        admitted: Messages admitted and not yet sequenced or refused.
        crashes: Crashes.
    """

    __slots__ = ("admitted", "crashes", "members", "subscriptions")

    def __init__(self) -> None:
        self.members: int = 0
        self.subscriptions: int = 0
        self.admitted: int = 0
        self.crashes: int = 0
