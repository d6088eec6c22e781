"""The checks of what a log is given: who may append, where, and what of it is there afterwards."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from chatx.adapters.room_log import FENCED, Append
from chatx.core.data import Data
from chatx.core.message import Entry, Message, Position, UnknownEntry
from chatx.testing.contracts.log_calls import NOWHERE, LogCalls, Owner, at
from chatx.testing.contracts.stream import Stream
from chatx.testing.contracts.texts import CONTENTS, LINE_BREAKS, USER_IDS


async def _rooms_are_taken_over_under_rising_terms(log: LogCalls) -> None:
    owner, other = Owner(log), Owner(log)
    opened = await owner.take()
    log.expect(
        opened.head is None and not opened.keyed,
        f"take_over of a room in which nothing was said answered {opened!r}; its head must be None",
    )
    await other.take()
    await owner.take()
    await owner.say(3)
    seen = await log.look(owner.room_id)
    log.expect(
        (seen.term, seen.head, seen.oldest) == (owner.term, owner.head, 1),
        f"look answered the term {seen.term}, the head {seen.head} and the oldest {seen.oldest} of a room that holds 1 "
        f"to 3 under the term {owner.term}",
    )
    # Who has it is not fenced by that.
    await owner.say(1)
    opened = await owner.take()
    log.expect(
        (opened.head, opened.oldest) == (owner.head, 1),
        f"take_over answered the head {opened.head} and the oldest {opened.oldest} of a room that holds 1 to 4; they "
        f"must be {tuple(owner.head)} and 1",
    )
    # The other room's term is its own.
    await other.say(1)


async def _what_was_appended_comes_back_equal(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log)
    stream = owner.stream
    data = (
        Data.of({}),
        Data.of(
            {"text": "\u2028 ünï \U0001f469\u200d\U0001f469", "n": [1, -2.5, 1e300, 2**53], "deep": {"a": [None, True]}}
        ),
        Data.from_text('{"b":1,"a":1.0,"big":12345678901234567890,"slash":"\\/"}'),
    )
    entries: list[Entry] = [stream.message(each) for each in (*CONTENTS, *(f"one{each}two" for each in LINE_BREAKS))]
    entries += [stream.message("hello", each) for each in USER_IDS]
    entries += [replace(stream.message(""), data=each) for each in data]
    entries += [replace(stream.message("both"), data=data[1], stored=True)]
    entries += [
        _unknown(stream.message(""), "edit", None, None),
        _unknown(stream.message("x"), "kind ü", "id'1", data[1]),
    ]
    # One alone, then many, then as much as goes into one append at most.
    await owner.write(owner.append(entries[:1], durable=False))
    await owner.write(owner.append(entries[1:], keys=[f"{each.offset}" for each in entries[1:]]))
    await owner.write(owner.append([stream.message("\U0001f600" * 1024) for _ in range(64)]))
    await log.expect_read(owner.entries, owner.room_id, after=Position(stream.epoch, 0), limit=1000)
    await log.expect_read(owner.entries[-70:], owner.room_id, limit=70)
    for each in entries[1:]:
        log.expect_equal(await log.find(owner.room_id, each.user_id, f"{each.offset}"), each, "what find(...) answered")
    opened = await owner.take()
    for keyed in opened.keyed:
        want = entries[keyed.entry.offset - 1]
        log.expect(keyed.key == f"{want.offset}", f"take_over answered the key {keyed.key!r} for another entry")
        log.expect_equal(keyed.entry, want, "a keyed entry that take_over answered")


async def _places_have_no_holes(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log, said=3)
    epoch, four, five, six = owner.stream.epoch, *owner.draw(3)
    for after, entries, why in (
        (owner.head, [five], "of an entry two places behind the head"),
        (owner.head, [four, six], "with a hole in it"),
        (owner.head, [five, four], "in another order than that of its places"),
        (owner.head, [four, four], "with one entry twice"),
        (Position(epoch, 4), [five], "behind a place that nothing is at"),
        (owner.head, [replace(four, epoch=NOWHERE.epoch)], "of an entry of another epoch"),
        (owner.head, [replace(four, room_id=Stream().room_id)], "of an entry of another room"),
        (Position(epoch, 1), [replace(four, offset=2)], "of another entry at a place that is taken"),
        (owner.head, [], "of nothing"),
    ):
        await owner.is_refused(replace(owner.append(entries), after=after), why)
    await owner.write(owner.append([four, five]))
    await owner.nothing_changed("append")


async def _an_entry_that_cannot_be_stored_leaves_nothing_and_fails_alone(log: LogCalls) -> None:
    owner, other = await Owner.of_a_new_room(log, said=1), await Owner.of_a_new_room(log)
    good, poisoned, behind = owner.draw(3)
    # No encoder takes a lone surrogate. The engine never appends one; a log that can is not wrong.
    append = owner.append([good, replace(poisoned, content="\ud800"), behind])
    theirs = other.append(other.draw())
    answers = await log.append(append, theirs)
    other.appended(theirs)
    log.expect(
        answers[0] != FENCED and answers[1] is None,
        f"append of a lone surrogate, beside another room, answered {answers!r}; it must say what is wrong with the "
        "entry, and append to the other room",
    )
    if answers[0] is None:
        owner.appended(append)
    await owner.nothing_changed("append of an entry that cannot be stored")
    await other.nothing_changed("append")
    if answers[0] is not None:
        await owner.write(owner.append([good]))


async def _a_refused_room_fails_alone(log: LogCalls) -> None:
    owners = [await Owner.of_a_new_room(log, said=n % 2) for n in range(5)]
    appends = [each.append(each.draw(2)) for each in owners]
    await log.take_over(owners[1].room_id)
    appends[3] = replace(appends[3], after=Position(owners[3].stream.epoch, 7))
    answers = await log.append(*appends)
    log.expect(
        [each is None for each in answers] == [True, False, True, False, True] and answers[1] == FENCED,
        f"append to five rooms, of which the second is fenced and the fourth has a hole, answered {answers!r}; these "
        "two must be refused, and the others appended",
    )
    for number in (0, 2, 4):
        owners[number].appended(appends[number])
    for owner in owners:
        await owner.nothing_changed("append to many rooms")


async def _taking_over_fences_whoever_had_the_room(log: LogCalls) -> None:
    for term in (0, 1):
        stranger = Owner(log)
        stranger.term = term
        await stranger.is_refused(stranger.append(stranger.draw()), "to a room that nobody took over", fenced=True)
    owner = await Owner.of_a_new_room(log, said=2)
    before, room_id = owner.term, owner.room_id
    await owner.take()
    late = replace(owner.append(owner.draw()), term=before)
    await owner.is_refused(late, "under an earlier term", fenced=True)
    new_epoch = NOWHERE._replace(epoch=f"{NOWHERE.epoch} {room_id}")
    entry = replace(late.records[0].entry, epoch=new_epoch.epoch, offset=1)
    begins = replace(late, after=new_epoch, records=(replace(late.records[0], entry=entry),))
    await owner.is_refused(begins, "of a new epoch under an earlier term", fenced=True)
    await owner.is_refused(replace(late, term=owner.term + 1), "under a term that nobody was given", fenced=True)
    log.expect(await owner.is_proven(), "the head is not proven where all that was seen is stored; it must be")
    log.expect(
        not await log.unproven(room_id, before, owner.head), "unproven under an earlier term is True; it must be False"
    )
    log.expect(await owner.is_proven(), "unproven under an earlier term withdrew the proof; it must change nothing")
    log.expect(await log.unproven(room_id, owner.term, owner.head), "unproven under the room's term is not True")
    ends = {room_id: (before, owner.head)}
    log.expect(
        await log.close_rooms(ends) == {room_id: False}, "close_rooms under an earlier term is True; it must be False"
    )
    log.expect(not await owner.is_proven(), "close_rooms under an earlier term proved the head; it must change nothing")
    await owner.write(replace(late, term=owner.term))


async def _the_same_append_again_is_not_written_twice(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log)
    first = owner.append(owner.draw(3), keys=["key"])
    await owner.write(first)

    async def again(append: Append, when: str) -> None:
        answer = (await log.append(append))[0]
        log.expect(answer is None, f"the same append again{when} answered {answer!r}; it must be None")
        await owner.nothing_changed(f"the same append again{when}")

    await again(first, "")
    await owner.take()
    await again(replace(first, term=owner.term), ", after a new take_over")
    await owner.say(2)
    await again(replace(first, term=owner.term), ", when others are behind it")
    opened = await owner.take()
    log.expect(
        opened.head == owner.head and len(opened.keyed) == 1,
        f"take_over answered the head {opened.head} and {len(opened.keyed)} keyed entries after an append that came "
        f"again; they must be {tuple(owner.head)} and 1",
    )


async def _another_epoch_begins_at_its_beginning(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log)
    lives: list[list[Entry]] = []
    old = owner.head
    for _ in range(3):
        lives.append(await owner.say(3))
        old = owner.head
        owner.begin()
        skipping = owner.draw(2)[1:]
        append = replace(owner.append(skipping), after=Position(owner.stream.epoch, 1))
        await owner.is_refused(append, "of a new epoch that does not begin at offset 1")
        owner.begin()
    lives.append(await owner.say(2))
    late = replace(lives[0][0], id="late", epoch=old.epoch, offset=old.offset + 1)
    await owner.is_refused(replace(owner.append([late]), after=old), "to an epoch that is over")
    anew = replace(late, offset=1)
    await owner.is_refused(replace(owner.append([anew]), after=old._replace(offset=0)), "that begins an old epoch anew")
    await log.expect_read([each for life in lives for each in life], owner.room_id)
    await log.expect_read(lives[1][1:] + lives[2][:1], owner.room_id, before=at(lives[2][1]), limit=3)
    await log.expect_read(lives[1][1:], owner.room_id, after=at(lives[1][0]))
    opened = await owner.take()
    log.expect(
        (opened.head, opened.oldest) == (owner.head, 1),
        f"take_over answered the head {opened.head} and the oldest {opened.oldest} after a new epoch began; they must "
        f"be {tuple(owner.head)} and 1",
    )


async def _one_of_many_takes_a_place(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log, said=1)
    entry = owner.draw()[0]
    appends = [owner.append([replace(entry, id=f"{entry.id[:-2]}{n:02}")]) for n in range(8)]
    answers = [each[0] for each in await asyncio.gather(*map(log.append, appends))]
    log.expect(
        answers.count(None) == 1,
        f"eight appends of different entries at one place answered {answers!r}; exactly one must be appended",
    )
    owner.appended(appends[answers.index(None)])
    await owner.nothing_changed("an append that was refused")
    terms = [each.term for each in await asyncio.gather(*(log.take_over(owner.room_id) for _ in range(8)))]
    log.expect(len({*terms, owner.term}) == 9, f"eight calls of take_over at once answered the terms {terms}")


async def _many_rooms_at_once_do_not_disturb_each_other(log: LogCalls) -> None:
    owners = await asyncio.gather(*(Owner.of_a_new_room(log) for _ in range(16)))

    async def use(mine: list[Owner]) -> None:
        for turn in range(5):
            # Not always in one order: whoever locks rooms as they come would wait for ever.
            appends = [each.append(each.draw(3)) for each in (mine if turn % 2 else mine[::-1])]
            answers = await log.append(*appends)
            log.expect(answers == [None] * len(mine), f"append to rooms of one's own answered {answers!r}")
            for owner, append in zip(mine if turn % 2 else mine[::-1], appends, strict=True):
                owner.appended(append)
                await log.expect_read(owner.entries, owner.room_id)

    async def disturb(rooms: list[Owner]) -> None:
        for _ in range(5):
            late = [_from_before(each) for each in rooms]
            answers = await log.append(*late)
            log.expect(answers == [FENCED] * len(rooms), f"append under an earlier term answered {answers!r}")

    await asyncio.gather(*(use(owners[n : n + 4]) for n in range(0, 16, 4)), disturb(owners), disturb(owners[::-1]))
    for owner in owners:
        await owner.nothing_changed("what others did at the same time")


def _from_before(owner: Owner) -> Append:
    """Return an append to a new epoch by whoever had the room before."""
    entry = Message("late", owner.room_id, "alice", "late", 1, NOWHERE.epoch, 1)
    return replace(owner.append([entry]), term=owner.term - 1, after=NOWHERE)


def _unknown(entry: Entry, kind: str, target: str | None, data: Data | None) -> UnknownEntry:
    fields = (entry.id, entry.room_id, entry.user_id, entry.content, entry.inserted_at, entry.epoch, entry.offset)
    return UnknownEntry(*fields, kind, target, data)


CHECKS = (
    _rooms_are_taken_over_under_rising_terms,
    _what_was_appended_comes_back_equal,
    _places_have_no_holes,
    _an_entry_that_cannot_be_stored_leaves_nothing_and_fails_alone,
    _a_refused_room_fails_alone,
    _taking_over_fences_whoever_had_the_room,
    _the_same_append_again_is_not_written_twice,
    _another_epoch_begins_at_its_beginning,
    _one_of_many_takes_a_place,
    _many_rooms_at_once_do_not_disturb_each_other,
)
