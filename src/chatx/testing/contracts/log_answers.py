"""The checks of what a log answers: reads, proofs of heads, idempotency keys."""

from __future__ import annotations

from msgspec.structs import replace

from chatx.adapters.room_log import KEYS_AT_ONCE
from chatx.core.message import Position
from chatx.testing.contracts.log_calls import NOWHERE, LogCalls, Owner
from chatx.testing.contracts.stream import Stream


async def _after_gives_the_first_ones_behind_a_place(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log)
    earlier, old = await owner.say(3), owner.stream.epoch
    owner.begin()
    # More than ten: offsets that are compared as text show.
    later, epoch, room_id = await owner.say(12), owner.stream.epoch, owner.room_id
    await log.expect_read(later, room_id, after=Position(epoch, 0))
    await log.expect_read(later[9:], room_id, after=Position(epoch, 9))
    await log.expect_read(later[4:6], room_id, after=Position(epoch, 4), limit=2)
    await log.expect_read([], room_id, after=Position(epoch, 12))
    await log.expect_read([], room_id, after=Position(epoch, 99))
    # Only that epoch: what follows in the next is not known to follow without a hole.
    await log.expect_read(earlier[1:], room_id, after=Position(old, 1))
    await log.expect_read([], room_id, after=NOWHERE)
    await log.expect_read([], Stream().room_id, after=Position(epoch, 0))
    for place, oldest in (
        (Position(epoch, 12), Position(epoch, 1)),
        (Position(old, 3), Position(old, 1)),
        (NOWHERE, None),
    ):
        found = await log.read(room_id, after=place, limit=1)
        log.expect(
            found.oldest == oldest,
            f"read(room, after={tuple(place)}) answered that the oldest place is {found.oldest}; it must be {oldest}",
        )


async def _before_gives_the_last_ones_ahead_of_a_place(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log)
    earlier, old = await owner.say(3), owner.stream.epoch
    owner.begin()
    later, epoch, room_id = await owner.say(12), owner.stream.epoch, owner.room_id
    await log.expect_read(earlier + later, room_id)
    await log.expect_read(later[-2:], room_id, limit=2)
    await log.expect_read(later[7:9], room_id, before=Position(epoch, 10), limit=2)
    await log.expect_read(earlier[1:] + later[:2], room_id, before=Position(epoch, 3), limit=4)
    await log.expect_read(earlier, room_id, before=Position(epoch, 1))
    await log.expect_read(earlier[:1], room_id, before=Position(old, 2))
    await log.expect_read([], room_id, before=Position(old, 1))
    await log.expect_read(earlier, room_id, before=Position(old, 99))
    await log.expect_read(later[-2:], room_id, before=Position(epoch, 99), limit=2)
    # An epoch of which nothing is there yet is newer than all that is.
    await log.expect_read(earlier + later, room_id, before=NOWHERE)
    await log.expect_read([], Stream().room_id)
    found, nothing = await log.read(room_id, limit=1), await log.read(Stream().room_id, limit=1)
    log.expect(
        (found.oldest, nothing.oldest) == ((epoch, 1), None),
        f"read answered that the oldest places are {found.oldest}, and {nothing.oldest} in a room without entries; "
        f"they must be that of the newest epoch, {(epoch, 1)}, and None",
    )


async def _a_proof_is_withdrawn_and_given_again(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log, said=2)
    room_id, expect = owner.room_id, log.expect
    other = await Owner.of_a_new_room(log, said=1)
    expect(await owner.is_proven(), "the head is not proven where all was stored; it must be")
    expect(await log.unproven(room_id, owner.term, owner.head), "unproven under the room's term is not True")
    expect(not await owner.is_proven(), "the head is proven after unproven; a crash now could hide what was seen")
    await owner.say(2, durable=False, proven=False)
    await owner.say(1, proven=False)
    expect(not await owner.is_proven(), "an append of proven=False proved the head again; it must stay as it is")
    for elsewhere in (owner.head.offset - 1, owner.head.offset + 1):
        ends = {room_id: (owner.term, owner.head._replace(offset=elsewhere))}
        await log.close_rooms(ends)
        expect(not await owner.is_proven(), f"close_rooms({ends}) proved the head {tuple(owner.head)}; it is elsewhere")
    closed = await log.close_rooms({room_id: (owner.term, owner.head)})
    expect(closed[room_id], f"close_rooms answered {closed} for a room that ends at its head; it must be True")
    expect(await owner.is_proven(), "the head is not proven after close_rooms; it must be")
    await owner.say(2)
    expect(await owner.is_proven(), "an append withdrew the proof; only unproven does")
    expect(await other.is_proven(), "unproven of one room withdrew the proof of another")


async def _an_epoch_begins_proven_or_not(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log)
    await owner.say(2, proven=False)
    log.expect(
        not await owner.is_proven(), "an epoch that begins with an append of proven=False is proven; it must not be"
    )
    await owner.say(1, proven=True)
    log.expect(await owner.is_proven(), "an append of proven=True within an epoch did not prove its head; it must")
    owner.begin()
    await owner.say(2, proven=True)
    log.expect(await owner.is_proven(), "an epoch that begins with an append of proven=True is not proven; it must be")
    await owner.say(1, proven=False)
    log.expect(await owner.is_proven(), "an append of proven=False within an epoch withdrew its proof")
    owner.begin()
    log.expect(
        await log.unproven(owner.room_id, owner.term, owner.head),
        "unproven under the room's term, at the beginning of an epoch that is not known, is not True",
    )
    await owner.say(1, proven=False)
    log.expect(not await owner.is_proven(), "an epoch that began unproven is proven")


async def _many_rooms_are_closed_at_once(log: LogCalls) -> None:
    owners = [await Owner.of_a_new_room(log) for _ in range(4)]
    for each in owners:
        await each.say(2, proven=False)
    ends = {each.room_id: (each.term, each.head) for each in owners[:3]}
    ends[owners[1].room_id] = (owners[1].term - 1, owners[1].head)
    nowhere = Stream()
    ends[nowhere.room_id] = (1, Position(nowhere.epoch, 1))
    answers = list((await log.close_rooms(ends)).values())
    log.expect(
        answers == [True, False, True, False],
        f"close_rooms of four rooms, of which the second is fenced and the last is not there, answered {answers}",
    )
    proven = [await each.is_proven() for each in owners]
    log.expect(
        proven == [True, False, True, False],
        f"after close_rooms of the first three of four rooms, the second under an earlier term, they are proven as "
        f"{proven}; only the first and the third must be",
    )
    log.expect(await log.close_rooms({}) == {}, "close_rooms of no rooms must answer with none")


async def _a_key_answers_with_its_first_entry(log: LogCalls) -> None:
    owner, other = await Owner.of_a_new_room(log), await Owner.of_a_new_room(log)
    first, bobs, second, plain = owner.draw(4)
    bobs = replace(bobs, user_id="bob")
    odd = "50%' OR '1'='1 ü\U0001f600"
    await owner.write(owner.append([first, bobs, second, plain], keys=["key", "key", "key", odd]))
    theirs = other.draw()
    await other.write(other.append(theirs, keys=["key"]))
    for room_id, user_id, key, want in (
        (owner.room_id, first.user_id, "key", first),
        (owner.room_id, "bob", "key", bobs),
        (other.room_id, first.user_id, "key", theirs[0]),
        (owner.room_id, plain.user_id, odd, plain),
        (owner.room_id, first.user_id, "Key", None),
        (owner.room_id, "nobody", "key", None),
        (Stream().room_id, first.user_id, "key", None),
    ):
        found = await log.find(room_id, user_id, key)
        log.expect(
            found == want,
            f"find(room, {user_id!r}, {key!r}) answered {found!r}; it must answer with the first entry of that room, "
            f"user and key, {want!r}",
        )
    await owner.take()
    await owner.write(owner.append(owner.draw(), keys=["key"]))
    keyed = [(each.key, each.entry) for each in (await owner.take()).keyed]
    log.expect(
        keyed == [("key", first), ("key", bobs), (odd, plain)],
        f"take_over answered the keyed entries {keyed!r}; they must be the first of each user and key, oldest first",
    )


async def _the_newest_keys_come_with_a_room(log: LogCalls) -> None:
    owner = await Owner.of_a_new_room(log)
    while owner.head.offset < KEYS_AT_ONCE + 10:
        entries = owner.draw(64)
        await owner.write(owner.append(entries, keys=[f"key {each.offset}" for each in entries], durable=False))
    keyed = [each.entry for each in (await owner.take()).keyed]
    log.expect(
        keyed == owner.entries[-KEYS_AT_ONCE:],
        f"take_over answered {len(keyed)} keyed entries of {len(owner.entries)}; they must be the newest "
        f"{KEYS_AT_ONCE}",
    )
    oldest = owner.entries[0]
    log.expect(
        await log.find(owner.room_id, oldest.user_id, "key 1") == oldest,
        "find does not know a key that was too old to come with take_over; it must",
    )


CHECKS = (
    _after_gives_the_first_ones_behind_a_place,
    _before_gives_the_last_ones_ahead_of_a_place,
    _a_proof_is_withdrawn_and_given_again,
    _an_epoch_begins_proven_or_not,
    _many_rooms_are_closed_at_once,
    _a_key_answers_with_its_first_entry,
    _the_newest_keys_come_with_a_room,
)
