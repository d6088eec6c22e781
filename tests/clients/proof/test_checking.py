"""The checker finds what it is there to find, wherever it is, and nothing where there is nothing."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.clients.proof.checking import Acknowledged, Failed, Missed, Said, Witness, faults


@dataclass
class World:
    """A room in which all is well."""

    history: list[Said]
    witnesses: list[Witness]

    def faults(self) -> list[str]:
        return faults(self.history, self.witnesses)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    witnesses = [Witness(name) for name in ("ada", "bob", "carol")]
    history: list[Said] = []
    for number, (who, outcome) in enumerate(
        draw(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["ok", "lost", "refused", "unknown"])), min_size=4))
    ):
        witness = witnesses[who]
        content = f"{witness.name} {number}"
        witness.sends.append(content)
        if outcome in ("ok", "lost"):
            history.append(Said("e", len(history) + 1, f"id {number}", witness.name, content))
        if outcome == "ok":
            witness.outcomes[content].append(Acknowledged("e", len(history), f"id {number}"))
        elif outcome == "refused":
            witness.outcomes[content].append(Failed("blocked", published=False))
        else:
            witness.outcomes[content].append(Failed("unknown", published=None))
    for number in range(2):
        history.append(Said("e", len(history) + 1, f"other {number}", "dave", f"other {number}"))
    for witness in witnesses:
        witness.told = list(history)
    witnesses[2].loads = draw(st.integers(2, len(history)))
    witnesses[2].told = [*history[-witnesses[2].loads - draw(st.integers(0, 2)) :]]
    return World(history, witnesses)


def lose(world: World, at: int) -> str:
    told = world.witnesses[0].told
    del told[at % len(told)]
    return "ada: lost: "


def double(world: World, at: int) -> str:
    told = world.witnesses[1].told
    told.insert(at * 7 % (len(told) + 1), told[at % len(told)])
    return "bob: doubled: "


def swap(world: World, at: int) -> str:
    told = world.witnesses[0].told
    at %= len(told) - 1
    told[at : at + 2] = reversed(told[at : at + 2])
    return "ada: reordered: "


def tell_a_gap(world: World, at: int) -> str:
    told: list[Any] = world.witnesses[0].told
    missing = told[at % len(told)]
    told[at % len(told)] = Missed("missing", missing.epoch, missing.offset, 1)
    return "ada: a gap "


def invent(world: World, at: int) -> str:
    world.witnesses[0].told.insert(at % len(world.history), Said("other", 1, "id", "eve", "Hello"))
    return "ada: invented: "


def publish_twice(world: World, at: int) -> str:
    world.history.append(world.history[at % len(world.history)]._replace(offset=len(world.history) + 1, id="again"))
    for witness in world.witnesses:
        witness.told = list(world.history)
    return "doubled: "


def lose_what_was_acknowledged(world: World, at: int) -> str:
    world.witnesses[0].sends.append("gone")
    world.witnesses[0].outcomes["gone"] = [Acknowledged("e", at, "gone")]
    return "ada: lost: 'gone' was acknowledged"


def answer_twice(world: World, at: int) -> str:
    witness = world.witnesses[1]
    witness.sends.append("twice")
    witness.outcomes["twice"] = [Failed("blocked", published=False)] * 2
    return "bob: 'twice' has 2 outcomes"


def answer_never(world: World, at: int) -> str:
    world.witnesses[2].sends.append("never")
    assert not world.witnesses[2].settled
    return "carol: 'never' has 0 outcomes"


def refuse_what_is_published(world: World, at: int) -> str:
    said = world.history[-1]
    world.witnesses[0].sends.append(said.content)
    world.witnesses[0].outcomes[said.content] = [Failed("blocked", published=False)]
    return f"ada: {said.content!r} was refused"


def acknowledge_elsewhere(world: World, at: int) -> str:
    said = world.history[-1]
    world.witnesses[0].sends.append(said.content)
    world.witnesses[0].outcomes[said.content] = [Acknowledged("e", said.offset + 1, said.id)]
    return f"ada: {said.content!r} was acknowledged at"


def send_in_another_order(world: World, at: int) -> str:
    later, earlier = world.history[-1], world.history[-2]
    witness = world.witnesses[0]
    for said in (later, earlier):
        witness.sends.append(said.content)
        witness.outcomes[said.content] = [Acknowledged(said.epoch, said.offset, said.id)]
    return "ada: reordered: "


def leave_a_hole(world: World, at: int) -> str:
    world.history[-1] = world.history[-1]._replace(offset=len(world.history) + 1)
    return "the history goes from "


def load_too_few(world: World, at: int) -> str:
    witness = world.witnesses[1]
    witness.loads = 1 + at % len(world.history)
    witness.told = [*world.history[len(world.history) - witness.loads + 1 :]]
    return "bob: lost: "


FAULTS = [
    load_too_few,
    lose,
    double,
    swap,
    tell_a_gap,
    invent,
    publish_twice,
    lose_what_was_acknowledged,
    answer_twice,
    answer_never,
    refuse_what_is_published,
    acknowledge_elsewhere,
    send_in_another_order,
    leave_a_hole,
]


@given(worlds(), st.sampled_from(FAULTS), st.integers(0, 1000))
def test_it_finds_each_fault_and_nothing_else(world: World, fault: Any, at: int) -> None:
    assert world.faults() == []
    broken = deepcopy(world)
    expected = fault(broken, at)
    assert any(each.startswith(expected) for each in broken.faults()), (expected, broken.faults())
