"""A room id that is ending, opening, or the one after the other; and who waits for it to be open."""

from __future__ import annotations

import asyncio

from chatx.errors import ChatError


class Passage:
    """The callers that wait for one room, in the order of their coming.

    Attributes:
        over: Whether the callers are let through or refused already; one that comes now goes behind them.
    """

    __slots__ = ("_loop", "_places", "over")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._places: list[tuple[asyncio.Future[None], bool]] = []
        self.over: bool = False

    @property
    def wanted(self) -> bool:
        """Whether a caller has come that was not refused.

        One that was cancelled since counts, and costs an idle room.
        """
        return bool(self._places)

    async def through(self, *, at_a_place: bool) -> None:
        """Wait until the room is open; raise the error of a refusal. `at_a_place` as in `Rooms.opened`."""
        place: asyncio.Future[None] = self._loop.create_future()
        self._places.append((place, at_a_place))
        try:
            await place
        finally:
            del place  # it has the refusal, whose traceback has this frame: they would wait for the collector

    def let_through(self) -> None:
        """Let every caller go on."""
        places, self._places = self._places, []
        for place, _ in places:
            if not place.done():
                place.set_result(None)

    def refuse(self, error: ChatError, *, only_at_a_place: bool = False) -> None:
        """Refuse every caller, or only those that stand at a place in the stream."""
        places, self._places = self._places, []
        for place, at_a_place in places:
            if only_at_a_place and not at_a_place:
                self._places.append((place, at_a_place))
            elif not place.done():
                place.set_exception(error.again())
