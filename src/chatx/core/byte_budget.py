"""How many bytes each user may have read for them: a budget that is charged after the fact.

Rules:
1. What a read brings is known only when it is done, so a user may go into debt by what they have under way, and reads
   nothing more until it is paid off. A refusal costs a look into a dict.
2. A budget that is whole again is forgotten. Users stand in the order of their last charge, and a debt is bounded by
   what one read brings; so whole budgets are looked for at the front only.
"""

from __future__ import annotations

from collections import OrderedDict

# Whole budgets are looked for once in so many charges.
_CHARGES = 16


class ByteBudget:
    """The budgets of all users under one rate. Times are seconds of one monotonic clock.

    Args:
        rate: Bytes a second that come back; above 0.
        burst: Bytes that a whole budget holds; above 0.
    """

    __slots__ = ("_burst", "_charges", "_rate", "_spent")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._charges = 0
        # user -> (bytes spent, at what time); least recently charged first
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many users are in memory."""
        return len(self._spent)

    def wait(self, user_id: str, now: float) -> float:
        """Return 0.0 where the user may read, or the seconds after which they may."""
        spent, at = self._spent.get(user_id, (0.0, now))
        return max(0.0, (spent - self._burst) / self._rate - (now - at))

    def charge(self, user_id: str, size: int, now: float) -> None:
        """Take the bytes that were read from the user's budget."""
        budgets = self._spent
        before = budgets.pop(user_id, None)
        if before is not None:
            debt = before[0] - (now - before[1]) * self._rate
            if debt > 0:
                size += debt  # type: ignore[assignment]  # a part of a byte comes back too
        budgets[user_id] = (size, now)
        self._charges += 1
        if not self._charges % _CHARGES:
            self._forget_whole(now)

    def _forget_whole(self, now: float) -> None:
        # Two for one: however many users read, those whose budgets are whole go faster.
        budgets = self._spent
        for _ in range(2 * _CHARGES):
            first = next(iter(budgets), None)
            if first is None:
                break
            spent, at = budgets[first]
            if spent > (now - at) * self._rate:
                break
            del budgets[first]
