"""All clients of a load, and what they know together: what was said, when, and at which place it came."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from msgspec import DecodeError, Struct, json

from chatx.cli.load.histogram import Histogram
from chatx.cli.load.stream_check import Totals
from chatx.cli.load.target import Target
from chatx.cli.load.visitor import PATIENCE_S, Visitor
from chatx.core.backoff import backoff_ms

PLACES: Final = 100_000
"""Messages of which it is remembered at which place they came, to see that it is the same for everybody. So many may be
without an answer, too: what is to be said beyond that is not, and counts as unanswered."""

PLACES_BYTES: Final = 64 * 1024**2
"""Their bytes."""

FRAMES: Final = 4096
"""Frames whose meaning is remembered: each comes to everybody alike."""

HEAD_BYTES: Final = 1024
"""Bytes of a frame within which its event is: the ids before it have at most 128 each, and escapes."""

BACK_MS: Final = 100
"""The ceiling of the first pause of a client that was cut off; it doubles each time."""

BEAT_S: Final = 25
"""Between two heartbeats of a client, in seconds."""

TOKEN_S: Final = 86_400.0
"""How long the token of a client lasts."""


class Said(Struct, frozen=True):
    """Something that is said.

    Attributes:
        number: Of all that is said.
        content: It, which nothing else is like.
        at: When it was to be said.
    """

    number: int
    content: str
    at: float


class Heard(NamedTuple):
    """A message of a room, as everybody gets it."""

    epoch: str
    offset: int
    at: float | None
    """When it was to be said; None where somebody else has said it."""


class Crew:
    """The clients.

    Args:
        target: The server.
        seed: Of everything that is random, and part of each name.

    Attributes:
        totals: What they have seen wrong.
        visitors: All of them.
        connected: How long each took to come in first, since it was to.
        returned: How long each took to come back, since it was cut off.
        delivered: How long each delivery took, since the message was to be said.
        refused: How often the server said no, by what it said.
        closed: How often it closed a connection, by code; 0 where it threw somebody out of a room.
        said: Messages said.
        acknowledged: Those that have their place.
        given_up: Those that the server does not take.
        unsent: Those that were to be said, and were not, since too many had no answer.
        over: Whether nobody comes back any more.
    """

    def __init__(self, target: Target, seed: int) -> None:
        self._target = target
        self._name = f"bench-{seed:x}"
        self._frames: dict[bytes, Heard] = {}
        self._frames_before: dict[bytes, Heard] = {}
        self._times: dict[str, float] = {}  # of what was said, by its content
        self._places: dict[str, tuple[str, str, int]] = {}  # the same
        self._contents: dict[tuple[str, str, int], str] = {}  # the other way round
        self._oldest: deque[str] = deque()
        self._heads: dict[tuple[str, str | None], int] = {}
        self._users = 0
        self.seed: int = seed
        self.random: random.Random = random.Random(seed)
        self.totals: Totals = Totals()
        self.visitors: list[Visitor] = []
        self.connected: Histogram = Histogram()
        self.returned: Histogram = Histogram()
        self.delivered: Histogram = Histogram()
        self.refused: Counter[str] = Counter()
        self.closed: Counter[int] = Counter()
        self.said: int = 0
        self.acknowledged: int = 0
        self.given_up: int = 0
        self.unsent: int = 0
        self.over: bool = False
        self.now: Callable[[], float] = time.perf_counter

    # Who there is

    def room(self, number: int) -> str:
        """Return the id of a room."""
        return f"{self._name}-{number}"

    def add(self, room: str) -> Visitor:
        """Return a new client of a room, which has not come yet."""
        self._users += 1
        visitor = Visitor(self, f"{self._name}-{self._users}", room)
        self.visitors.append(visitor)
        return visitor

    def remove(self, visitor: Visitor, *, should_have_all: bool = False) -> None:
        """Have a client leave, and count what it has not seen: ahead of what it has, or of all that was said."""
        check = visitor.check
        check.end(self.head(visitor.room, check.epoch) if should_have_all else check.stands)
        visitor.goes()
        self.visitors.remove(visitor)

    @property
    def inside(self) -> int:
        """How many are joined."""
        return sum(each.inside for each in self.visitors)

    async def leave(self, *, should_have_all: bool = True) -> None:
        """Have everybody leave, and count what they have not seen but should have."""
        self.over = True
        for each in self.visitors:
            if should_have_all:
                each.check.end(self.head(each.room, each.check.epoch))
            each.goes()
        self.visitors.clear()
        await asyncio.sleep(0.1)

    def all_seen(self) -> bool:
        """Return whether everybody is inside, has seen what was said, and knows what became of what it said."""
        return all(
            each.inside and not each.unanswered and each.check.has_all(self.head(each.room, each.check.epoch))
            for each in self.visitors
        )

    async def keep(self) -> None:
        """Have each say now and then that it is there, and begin anew where it is not answered."""
        for turn in itertools.count():
            await asyncio.sleep(1.0)
            now = self.now()
            for number, each in enumerate(self.visitors):
                if each.inside and number % BEAT_S == turn % BEAT_S:
                    each.beats()
                elif not each.inside and now - each.began > PATIENCE_S:
                    each.cut()

    def begin_anew(self) -> None:
        """Count times from here on."""
        self.connected, self.returned, self.delivered = Histogram(), Histogram(), Histogram()

    # What clients ask of it

    async def connect(self, visitor: Visitor) -> None:
        """Open a connection for a client."""
        await asyncio.get_running_loop().create_connection(lambda: visitor, **self._target.options())

    def hello(self, user: str) -> bytes:
        """Return the handshake of a user."""
        return self._target.hello(user, TOKEN_S)

    def pause_s(self, attempt: int) -> float:
        """Return how long to wait before an attempt to come back."""
        return backoff_ms(attempt, BACK_MS, self.random.random()) / 1000

    # What is said

    def say(self, visitor: Visitor, at: float, size: int) -> None:
        """Have a client say something that was to be said at a time."""
        self.said += 1
        most = min(PLACES, PLACES_BYTES // size)
        if self.said - self.acknowledged - self.given_up - self.unsent > most:
            self.unsent += 1
            return
        content = f"{self._name} {self.said} ".ljust(size, ".")
        self._times[content] = at
        self._oldest.append(content)
        if len(self._oldest) > most:
            old = self._oldest.popleft()
            del self._times[old]
            self._contents.pop(self._places.pop(old, ("", "", 0)), None)
        visitor.says(Said(self.said, content, at))

    def answered(self, room: str, said: Said, epoch: str, offset: int) -> None:
        """Take the place of something that was said in a room."""
        self.acknowledged += 1
        self._placed(room, said.content, epoch, offset)

    def heard(self, frame: bytes) -> Heard | None:
        """Return the message that a frame is, or None where it is something else."""
        known = self._frames.get(frame)
        if known is not None or b',"new_message",' not in frame[:HEAD_BYTES]:
            return known
        heard = self._frames_before.get(frame) or self._read(frame)
        if heard is not None:
            if len(self._frames) >= FRAMES // 2:
                self._frames_before, self._frames = self._frames, {}
            self._frames[frame] = heard
        return heard

    def head(self, room: str, epoch: str | None) -> int:
        """Return the newest place of a stream that anybody has heard of."""
        return self._heads.get((room, epoch), 0)

    def _read(self, frame: bytes) -> Heard | None:
        try:
            _, _, _, event, message = json.decode(frame)
            room, content = message["room_id"], message["content"]
            epoch, offset = message["epoch"], message["offset"]
        except (DecodeError, ValueError, KeyError, TypeError):
            return None
        if event != "new_message":
            return None
        self._placed(room, content, epoch, offset)
        return Heard(epoch, offset, self._times.get(content))

    def _placed(self, room: str, content: str, epoch: str, offset: int) -> None:
        place = room, epoch, offset
        if content not in self._times:
            pass  # somebody else has said it, or it was long ago
        elif self._places.setdefault(content, place) != place:
            # One that nobody's retry may bring: it is there twice, or at another place for somebody else.
            self.totals.doubled += 1
        elif self._contents.setdefault(place, content) != content:
            self.totals.reordered += 1  # at this place is another one for somebody else
        self._heads[room, epoch] = max(offset, self._heads.get((room, epoch), 0))
