"""What every load is made of: clients come in, some of them talk at a pace, and everybody sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from chatx.cli.load.bars import Bar
from chatx.cli.load.crew import Crew
from chatx.cli.load.visitor import Visitor

LOOK_S: Final = 0.05
"""Between two looks at how far a phase is."""

BUSY: Final = 0.85
"""The share of a core above which the load measures itself more than the server."""

LATE_S: Final = 0.05
"""How late the load's own clock may run; beyond that it adds to what it measures."""


class NotIn(Exception):
    """Not everybody came in."""


class Load:
    """How busy the load itself is, from here to `end`.

    Attributes:
        share: Of a core.
        late_s: By how much the ninth of ten looks came late.
    """

    def __init__(self) -> None:
        self.share: float = 0.0
        self.late_s: float = 0.0
        self._lates: list[float] = []
        self._began = time.monotonic()
        self._cpu = time.process_time()
        self._looking = asyncio.get_running_loop().create_task(self._look())

    def end(self) -> None:
        """Measure no further."""
        self._looking.cancel()
        self.share = (time.process_time() - self._cpu) / max(1e-9, time.monotonic() - self._began)
        lates = sorted(self._lates)
        self.late_s = lates[len(lates) * 9 // 10] if lates else 0.0

    @property
    def says(self) -> str | None:
        """What is to be told of it, or None where it is not in the way."""
        if self.share > BUSY:
            return f"The load took {self.share:.0%} of its core: the figures are its own more than the server's."
        if self.late_s > LATE_S:
            return f"The load's own clock ran {self.late_s * 1000:.0f} ms late: that is in every time here."
        return None

    async def _look(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(LOOK_S)
            if len(self._lates) < 200_000:  # hours
                self._lates.append(time.monotonic() - before - LOOK_S)


async def come_in(crew: Crew, visitors: Sequence[Visitor], *, at_once: int, within_s: float, what: str) -> float:
    """Have clients come in, so many at a time; return the seconds it took.

    Raises:
        NotIn: Some are not inside in time.
    """
    bar, began = Bar(what, len(visitors), "clients"), time.monotonic()
    begun = inside = 0
    while inside < len(visitors):
        inside = sum(each.inside for each in visitors[:begun])
        while begun < min(len(visitors), inside + at_once):
            visitors[begun].comes(crew.now())
            begun += 1
        bar.at(inside)
        if time.monotonic() - began > within_s:
            bar.end(inside)
            refused = ", ".join(f"{what} ({times:,})" for what, times in crew.refused.most_common(5)) or "nothing"
            raise NotIn(
                f"{inside} of {len(visitors)} clients came in within {within_s:.0f} s; they were told: {refused}."
            )
        await asyncio.sleep(LOOK_S / 2)
    bar.end(inside)
    return time.monotonic() - began


async def talk(
    crew: Crew,
    speakers: Sequence[Visitor],
    *,
    rate: float,
    seconds: float,
    size: int,
    what: str,
    meanwhile: Callable[[float], object] | None = None,
) -> None:
    """Have clients talk in turn, at a pace that waits for nobody.

    Each message counts from when it was to be said, also where the load or the server is late with it.
    Source: Gil Tene, "How NOT to measure latency", on coordinated omission.

    Args:
        crew: All clients.
        speakers: Those who talk.
        rate: Messages a second.
        seconds: For how long.
        size: The bytes of a message, at least.
        what: What the bar is called.
        meanwhile: Called again and again with how many seconds have passed.
    """
    bar, began, said = Bar(what, seconds, "s"), crew.now(), 0
    while (passed := crew.now() - began) < seconds:
        while said < rate * passed:
            crew.say(speakers[said % len(speakers)], began + said / rate, size)
            said += 1
        if meanwhile is not None:
            meanwhile(passed)
        bar.at(passed)
        await asyncio.sleep(min(LOOK_S, max(0.001, (said / rate) - (crew.now() - began))))
    bar.end(passed)


async def until(done: Callable[[], bool], *, within_s: float, what: str) -> bool:
    """Wait for something; return whether it came in time."""
    bar, began = Bar(what, within_s, "s at most"), time.monotonic()
    while not (is_done := done()) and time.monotonic() - began < within_s:
        bar.at(time.monotonic() - began)
        await asyncio.sleep(LOOK_S)
    bar.end(time.monotonic() - began)
    return is_done


async def kept(crew: Crew, work: Awaitable[None]) -> None:
    """Do the work of a load while its clients are kept alive; at its end, whichever it is, everybody leaves.

    Where it is cut short, what was on its way then is not lost.
    """
    keeping, whole = asyncio.ensure_future(crew.keep()), False
    try:
        await work
        whole = True
    finally:
        keeping.cancel()
        await crew.leave(should_have_all=whole)
