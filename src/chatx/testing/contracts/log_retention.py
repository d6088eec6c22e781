"""The checks of a log's retention: the oldest of a room goes, as much as is asked for, and its head stays."""

from __future__ import annotations

from typing import Any

from chatx.adapters.retention import Retention
from chatx.core.message import Entry, Position
from chatx.testing.contracts.log_calls import LogCalls, Owner, at

_NEVER = 2**62


async def _the_oldest_of_a_room_go_by_number(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log)
    await owner.say(3)
    old = owner.stream.epoch
    owner.begin()
    await owner.say(12)
    bystander = await Owner.of_a_new_room(log, said=3)
    await _trims(log, owner, Retention(None, 10, _NEVER, _NEVER), 4, gone=4)
    await _trims(log, owner, Retention(None, 10, _NEVER, _NEVER), 4, gone=1)
    await _trims(log, owner, Retention(None, 10, _NEVER, _NEVER), 4, gone=0)
    await _has(log, owner, owner.entries[5:], Position(owner.head.epoch, 3))
    nothing = await log.read(owner.room_id, after=Position(old, 0), limit=10)
    log.expect(
        (nothing.entries, nothing.oldest) == ((), None),
        f"read of an epoch of which nothing is left answered {nothing!r}; it must have no entries and no oldest place",
    )
    ahead = await log.read(owner.room_id, before=Position(old, 3), limit=10)
    log.expect(
        not ahead.entries,
        f"read(before=) in an epoch of which nothing is left answered {ahead!r}; it must stay known and have nothing",
    )
    await bystander.nothing_changed("trim of another room")


async def _the_oldest_of_a_room_go_by_age(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log, said=12)
    entries = owner.entries
    await _trims(log, owner, Retention(entries[5].inserted_at, None, _NEVER, _NEVER), 100, gone=5)
    await _has(log, owner, entries[5:], at(entries[5]))
    # Either is enough.
    await _trims(log, owner, Retention(entries[6].inserted_at, 4, _NEVER, _NEVER), 100, gone=3)
    await _has(log, owner, entries[8:], at(entries[8]))


async def _what_is_spared_stays_with_all_behind_it(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log)
    entries = owner.draw(12)
    await owner.write(owner.append(entries, keys=[None] * 3 + ["key"]))
    spares_all = Retention(None, 1, entries[0].inserted_at, entries[0].inserted_at)
    await _trims(log, owner, spares_all, 100, gone=0)
    spares_the_key = Retention(None, 1, _NEVER, entries[3].inserted_at)
    await _trims(log, owner, spares_the_key, 100, gone=3)
    found = await log.find(owner.room_id, entries[3].user_id, "key")
    log.expect(found == entries[3], f"find answered {found!r} for a key that retention spares; it must be its entry")
    await _has(log, owner, entries[3:], at(entries[3]))
    spares_the_young = Retention(None, 1, entries[8].inserted_at, entries[8].inserted_at)
    await _trims(log, owner, spares_the_young, 100, gone=5)
    await _has(log, owner, entries[8:], at(entries[8]))


async def _a_head_stays_where_nothing_is_left(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log, said=5)
    await _trims(log, owner, Retention(_NEVER, None, _NEVER, _NEVER), 100, gone=5)
    await _has(log, owner, [], Position(owner.head.epoch, 6))
    log.expect(await owner.is_proven(), "trim withdrew the proof of a head; it must leave it as it is")
    await owner.say(1)
    await _has(log, owner, owner.entries[5:], owner.head)


async def _rooms_are_listed_in_order(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log, said=1)
    # No other room is between this one and the beginning of its id, which is random.
    for after, expected in ((owner.room_id[:-2], True), (owner.room_id, False)):
        found = await log.calls.call("list_rooms", after, 1)
        log.expect(
            (list(found) == [owner.room_id]) is expected and all(each > after for each in found),
            f"list_rooms({after!r}, 1) answered {found!r}; it must be the next room behind that, in the order of ids",
        )


async def _trims(log: LogCalls, owner: Owner, retention: Retention, limit: int, *, gone: int) -> None:
    answer: Any = await log.calls.call("trim", [owner.room_id], retention, limit)
    log.expect(
        type(answer) is int and answer == gone,
        f"trim(rooms, {retention!r}, {limit}) answered {answer!r}; {gone} entries of the room go",
    )


async def _has(log: LogCalls, owner: Owner, expected: list[Entry], oldest: Position) -> None:
    await log.expect_read(expected, owner.room_id)
    await log.expect_read(
        [each for each in expected if each.epoch == owner.head.epoch],
        owner.room_id,
        after=Position(owner.head.epoch, 0),
    )
    found = await log.read(owner.room_id, limit=1)
    log.expect(
        found.oldest == oldest,
        f"read answered that the oldest place is {found.oldest} after trim; it must be {tuple(oldest)}",
    )
    opened = await owner.take()
    log.expect(
        (opened.head, opened.oldest) == (owner.head, oldest.offset),
        f"take_over answered the head {opened.head} and the oldest {opened.oldest} after trim; they must be "
        f"{tuple(owner.head)} and {oldest.offset}",
    )


CHECKS = (
    _the_oldest_of_a_room_go_by_number,
    _the_oldest_of_a_room_go_by_age,
    _what_is_spared_stays_with_all_behind_it,
    _a_head_stays_where_nothing_is_left,
    _rooms_are_listed_in_order,
)
