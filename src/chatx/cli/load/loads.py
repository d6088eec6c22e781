"""The three loads: one room that many read, everybody coming back at once, and a long day."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Final

from msgspec import Struct, field

from chatx.cli.load.bars import Bar
from chatx.cli.load.crew import Crew
from chatx.cli.load.phases import Load, come_in, kept, talk, until
from chatx.cli.load.server import Figures, figures_of
from chatx.cli.load.target import Target
from chatx.cli.load.visitor import Visitor

AT_ONCE: Final = 100
"""Clients that come in at a time, where it is no storm."""

COME_IN_S: Final = 30.0
"""Seconds for a thousand clients to come in, and for each further thousand."""

SEEN_S: Final = 15.0
"""Seconds for everybody to have seen everything, when nothing more is said."""

SPEAKERS: Final = 10
"""Clients that talk, at most, in one room: so each stays below the rate limit of a server with the usual options."""

SPARE_BYTES: Final = 64 * 1024**2
"""Bytes that a server may hold more after a soak than before: as much as its keys may take, since Python does not give
back what others lie between; and as much again for the same of everything else."""

LETS_GO_S: Final = 330.0
"""Seconds for a server to let go of what it had: it remembers the key of a message for 300."""

WATCHED_S: Final = 2.0
"""Between two looks at what the server holds, in seconds."""


class Plan(Struct, frozen=True):
    """What is to be done.

    Attributes:
        clients: How many clients there are.
        rate: Messages a second.
        seconds: How long they talk.
        size: The bytes of a message, at least.
        rooms: In how many rooms.
        churn: Clients that leave, each for a new one, a second.
        cuts: Clients that are cut off a second.
        slow: Clients that stop reading now and then.
        rest_s: Seconds for the server to close and forget rooms in which nobody is, before and after.
    """

    clients: int
    rate: float
    seconds: float
    size: int
    rooms: int = 1
    churn: float = 0.0
    cuts: float = 0.0
    slow: int = 0
    rest_s: float = 0.0


class Course(Struct):
    """What came of it, beside what the crew has counted. A day's looks at memory are its largest part, about 1 MiB.

    Attributes:
        came_in: How many came in, where that was measured.
        came_in_s: How long it took them.
        talked_s: How long they talked.
        complete: Whether everybody has seen everything in time.
        cut: How many were cut off.
        churned: How many left for a new one.
        before: What the server held before anybody talked; of a soak, before anybody came.
        after: The same at its end.
        most: The most of it meanwhile.
        held: The memory that it held meanwhile, in bytes, from look to look.
        cpu_s: The CPU that it took while they talked, in seconds; None where it tells none.
        deliveries: Messages that came to somebody while they talked.
        acknowledged: Messages that were placed while they talked.
        bottleneck: What is to be told of the load itself, or None.
    """

    came_in: int = 0
    came_in_s: float = 0.0
    talked_s: float = 0.0
    complete: bool = False
    cut: int = 0
    churned: int = 0
    before: Figures | None = None
    after: Figures | None = None
    most: Figures = field(default_factory=Figures)
    held: list[float] = field(default_factory=list)
    cpu_s: float | None = None
    deliveries: int = 0
    acknowledged: int = 0
    bottleneck: str | None = None


def late_growth(course: Course) -> float | None:
    """Return by how many bytes a server's memory grew in the second half of the time; None where it was not seen."""
    tenth = len(course.held) // 10
    if not tenth:
        return None
    half = len(course.held) // 2
    return median(course.held[-tenth:]) - median(course.held[half : half + tenth])


async def fanout(target: Target, crew: Crew, plan: Plan, course: Course) -> None:
    """Have many clients read one room, in which some talk."""

    async def work() -> None:
        visitors = [crew.add(crew.room(0)) for _ in range(plan.clients)]
        await _come_in(crew, visitors, AT_ONCE, course)
        await asyncio.sleep(1.0)  # what is told of who came is no part of it
        await _measured(target, crew, course, _talk(crew, visitors[:SPEAKERS], plan, course))

    await kept(crew, work())


async def storm(target: Target, crew: Crew, plan: Plan, course: Course) -> None:
    """Have all clients come at once; and when they are inside, and some talk, cut all of them off at once."""

    async def work() -> None:
        visitors = [crew.add(crew.room(number % plan.rooms)) for number in range(plan.clients)]
        speakers = [crew.add(crew.room(number % plan.rooms)) for number in range(max(SPEAKERS, plan.rooms))]
        await come_in(crew, speakers, at_once=AT_ONCE, within_s=COME_IN_S, what="speakers")
        await _come_in(crew, visitors, plan.clients, course)

        def cut(passed: float) -> None:
            if not course.cut and passed > plan.seconds / 4:
                course.cut = len(visitors)
                for each in visitors:
                    each.cut()

        await _measured(target, crew, course, _talk(crew, speakers, plan, course, cut))

    await kept(crew, work())


async def soak(target: Target, crew: Crew, plan: Plan, course: Course) -> None:
    """Have clients come and go, be cut off and read slowly, while they talk in many rooms; then let all go.

    What the server holds is compared when nobody is on it: before anybody came, but for one round that warms it up, and
    at the end.
    """

    async def warm_up() -> None:
        warming = [crew.add(crew.room(number % plan.rooms)) for number in range(plan.clients)]
        await come_in(crew, warming, at_once=AT_ONCE, within_s=_patience(plan.clients), what="warm up")
        await talk(crew, warming[: plan.rooms], rate=plan.rate, seconds=5, size=plan.size, what="warm up")
        await until(crew.all_seen, within_s=SEEN_S, what="warm up")
        for each in warming:
            crew.remove(each, should_have_all=True)

    async def work() -> None:
        await warm_up()
        crew.begin_anew()
        course.before = await _at_rest(target, plan.rest_s)
        # Who talks is never cut off nor slow: what it says is to be said on time.
        speakers = [crew.add(crew.room(number)) for number in range(plan.rooms)]
        others = [crew.add(crew.room(number % plan.rooms)) for number in range(plan.clients - plan.rooms)]
        await _come_in(crew, speakers + others, AT_ONCE, course)
        rested = course.before
        day = Day(crew, others, plan, course)
        await _measured(target, crew, course, _talk(crew, speakers, plan, course, day.at))
        course.before, course.after = rested, None

    await kept(crew, work())
    course.after = await _let_go(target, plan, course.before)


class Day:
    """What happens to clients over a day: they go, others come, they are cut off, they do not read for a while."""

    def __init__(self, crew: Crew, others: list[Visitor], plan: Plan, course: Course) -> None:
        self._crew = crew
        self._others = others
        self._plan = plan
        self._course = course
        self._slow = others[: plan.slow]
        self._reads_at: dict[Visitor, float] = {}
        # One for each, so that a seed has the same happen whatever the moment at which it is looked.
        self._leaves, self._is_cut, self._dawdles = (random.Random(f"{crew.seed} {what}") for what in range(3))

    def at(self, passed: float) -> None:
        """Have happen what is to have happened by now."""
        while self._others and self._course.churned < self._plan.churn * passed:
            self._course.churned += 1
            place = self._leaves.randrange(self._plan.slow, len(self._others))
            leaving = self._others[place]
            self._crew.remove(leaving)
            self._others[place] = coming = self._crew.add(leaving.room)
            coming.comes(self._crew.now())
        while self._others and self._course.cut < self._plan.cuts * passed:
            self._course.cut += 1
            self._is_cut.choice(self._others).cut()
        for each in self._slow:
            if (reads_at := self._reads_at.get(each)) is None:
                self._reads_at[each] = passed + self._dawdles.uniform(5, 30)
            elif passed >= reads_at:
                each.reads(each.dawdles)
                del self._reads_at[each]
        if passed > self._plan.seconds - 5:
            for each in self._slow:
                if each.dawdles:
                    each.reads(True)


async def _come_in(crew: Crew, visitors: list[Visitor], at_once: int, course: Course) -> None:
    within_s = _patience(len(visitors))
    course.came_in_s = await come_in(crew, visitors, at_once=at_once, within_s=within_s, what="connect")
    course.came_in = len(visitors)


async def _talk(
    crew: Crew, speakers: list[Visitor], plan: Plan, course: Course, meanwhile: Callable[[float], object] | None = None
) -> None:
    began = crew.now()
    try:
        await talk(
            crew, speakers, rate=plan.rate, seconds=plan.seconds, size=plan.size, what="talk", meanwhile=meanwhile
        )
    finally:
        course.talked_s = crew.now() - began
    course.complete = await until(crew.all_seen, within_s=SEEN_S, what="see the rest")


async def _measured(target: Target, crew: Crew, course: Course, talking: Awaitable[None]) -> None:
    """Do something, and take down what it costs the server and the load."""
    course.before = await figures_of(target)
    watching = asyncio.ensure_future(_watch(target, course))
    load, seen, placed = Load(), crew.delivered.count, crew.acknowledged
    try:
        await talking
    finally:
        load.end()
        watching.cancel()
        course.bottleneck = load.says
        course.deliveries, course.acknowledged = crew.delivered.count - seen, crew.acknowledged - placed
    course.after = await figures_of(target)
    if course.before is not None and course.after is not None:
        course.cpu_s = course.after.cpu_s - course.before.cpu_s


async def _watch(target: Target, course: Course) -> None:
    while True:
        found = await figures_of(target)
        if found is not None:
            for name in Figures.__struct_fields__:
                setattr(course.most, name, max(getattr(course.most, name), getattr(found, name)))
            course.held.append(found.resident)
        await asyncio.sleep(WATCHED_S)


async def _at_rest(target: Target, rest_s: float) -> Figures | None:
    """Return what the server holds when nobody has been on it for a while."""
    await until(lambda: False, within_s=rest_s, what="rest")
    return await figures_of(target)


async def _let_go(target: Target, plan: Plan, before: Figures | None) -> Figures | None:
    """Return what the server holds when it has let go of everybody, or when it should have."""
    held = await _at_rest(target, plan.rest_s)
    bar, ends = Bar("let go", LETS_GO_S, "s at most"), (began := time.monotonic()) + LETS_GO_S
    while before is not None and held is not None and time.monotonic() < ends:
        if (
            held.tasks <= before.tasks
            and held.descriptors <= before.descriptors
            and held.resident <= before.resident + SPARE_BYTES
        ):
            break
        await asyncio.sleep(WATCHED_S)
        bar.at(time.monotonic() - began)
        held = await figures_of(target) or held
    bar.end(time.monotonic() - began)
    return held


def _patience(clients: int) -> float:
    return COME_IN_S * max(1.0, clients / 1000)
