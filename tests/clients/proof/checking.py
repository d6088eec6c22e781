"""What clients told, held against each other and against the server's history: every fault is a sentence.

Rules:
1. A client has told the whole history, and one that came late no fewer of the newest than it was to load: once, in
   order, and nothing else.
2. A gap is a fault: the history has what it stands for.
3. A send has one outcome. Acknowledged, it is in the history at the place that was named; refused, it is not there; of
   one that nobody knows, both is right.
4. A content is in the history once, and those of one sender in the order in which they were sent.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple


class Said(NamedTuple):
    """A message at its place."""

    epoch: str
    offset: int
    id: str
    user: str
    content: str


class Missed(NamedTuple):
    """A gap."""

    reason: str
    epoch: str
    offset: int
    missed: int | None


class Acknowledged(NamedTuple):
    """A send that has a place."""

    epoch: str
    offset: int
    id: str


class Failed(NamedTuple):
    """A send that was given up; `published` is None where nobody knows."""

    code: str
    published: bool | None


@dataclass
class Witness:
    """What one client told of one room.

    Attributes:
        name: The client's, which is its user's id.
        loads: How many of the newest messages it was to load when it came, or None for one that was there before all.
        told: Messages and gaps, in order.
        sends: Contents in the order in which they were to be sent.
        outcomes: What became of each.
    """

    name: str
    loads: int | None = None
    told: list[Said | Missed] = field(default_factory=list)
    sends: list[str] = field(default_factory=list)
    outcomes: defaultdict[str, list[Acknowledged | Failed]] = field(default_factory=lambda: defaultdict(list))

    @property
    def settled(self) -> bool:
        """Whether every send has an outcome."""
        return self.outcomes.keys() >= set(self.sends)


def faults(history: Sequence[Said], witnesses: Iterable[Witness]) -> list[str]:
    """Return all that is wrong in a room, or nothing."""
    found = list(_of_history(history))
    places = {each.content: each for each in history}
    order = {each.content: place for place, each in enumerate(history)}
    for witness in witnesses:
        found += (f"{witness.name}: {each}" for each in _of_told(_to_tell(history, witness), witness.told))
        found += (f"{witness.name}: {each}" for each in _of_sends(places, order, witness))
    return found


def _of_history(history: Sequence[Said]) -> Iterable[str]:
    for before, after in pairwise(history):
        if (after.epoch, after.offset) != (before.epoch, before.offset + 1):
            yield f"the history goes from {before} to {after}"
    for content, times in Counter(each.content for each in history).items():
        if times > 1:
            yield f"doubled: {content!r} is in the history {times} times"


def _to_tell(history: Sequence[Said], witness: Witness) -> Sequence[Said]:
    first = witness.told[0] if witness.told else None
    if witness.loads is None or first not in history:
        return history
    behind = history[history.index(first) :]
    return behind if len(behind) >= witness.loads else history


def _of_told(history: Sequence[Said], told: Sequence[Said | Missed]) -> Iterable[str]:
    messages: list[Said] = []
    for number, each in enumerate(told):
        if isinstance(each, Said):
            messages.append(each)
        else:
            yield f"a gap of what the history has: {each}, behind {told[number - 1] if number else 'nothing'}"
    times = Counter(messages)
    kept = set(history)
    for each in dict.fromkeys(messages):
        if times[each] > 1:
            yield f"doubled: it told {times[each]} times {each}"
        if each not in kept:
            yield f"invented: the history does not have {each}"
    for each in history:
        if each not in times:
            yield f"lost: it did not tell {each}"
    place = {each: number for number, each in enumerate(history)}
    known = [each for each in dict.fromkeys(messages) if each in kept]
    for before, after in pairwise(known):
        if place[after] < place[before]:
            yield f"reordered: it told {after} behind {before}"


def _of_sends(places: Mapping[str, Said], order: Mapping[str, int], witness: Witness) -> Iterable[str]:
    for content in witness.sends:
        outcomes = witness.outcomes.get(content, [])
        if len(outcomes) != 1:
            yield f"{content!r} has {len(outcomes)} outcomes: {outcomes}"
        there = places.get(content)
        for outcome in outcomes:
            if isinstance(outcome, Acknowledged):
                if there is None:
                    yield f"lost: {content!r} was acknowledged, {outcome}, and is not in the history"
                elif (there.epoch, there.offset, there.id) != outcome:
                    yield f"{content!r} was acknowledged at {outcome}, and is at {there}"
            elif outcome.published is False and there is not None:
                yield f"{content!r} was refused, {outcome}, and is at {there}"
    for content in witness.outcomes.keys() - set(witness.sends):
        yield f"{content!r} has an outcome, and was not sent"
    published = [content for content in witness.sends if content in order]
    for first, second in pairwise(published):
        if order[second] < order[first]:
            yield f"reordered: {second!r} was sent behind {first!r}, and is ahead of it in the history"
