"""The contract of persistence: what is saved comes back, at its place, and a proof is one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence

from chatx.adapters.protocols import Persistence
from chatx.core.message import Message
from chatx.testing.contracts.calls import Calls, brief, calls_of, shown
from chatx.testing.contracts.stream import Stream
from chatx.testing.contracts.texts import CONTENTS, LINE_BREAKS, USER_IDS


async def check_persistence(
    make: Callable[[], Persistence | Awaitable[Persistence]], *, timeout_s: float = 5.0
) -> None:
    """Check that a persistence adapter saves, and that it serves history and marks streams rightly, where it does.

    Args:
        make: A function without arguments, plain or async, that returns an adapter: the class, or one that always
            returns the same. It is called once per check. The checks use rooms of their own, so the adapters may share
            a store that holds other messages; what is to be closed in the end is the caller's.
        timeout_s: Bound of each call.

    Raises:
        AssertionError: The adapter does not.
    """
    for check in (
        _saved_messages_come_back_equal,
        _saving_again_changes_nothing,
        _late_messages_take_their_place,
        _rooms_are_kept_apart,
        _after_gives_the_first_ones_past_a_place,
        _before_gives_the_last_ones_ahead_of_a_place,
        _a_place_needs_no_message,
        _reading_backwards_comes_to_an_end,
        _epochs_keep_the_order_in_which_they_began,
        _a_failed_batch_leaves_nothing,
        _calls_at_once_do_not_disturb_each_other,
        _the_last_position_is_proven,
        _marks_give_and_withdraw_the_proof,
        _many_ends_are_recorded_together,
    ):
        made = make()
        adapter = await made if inspect.isawaitable(made) else made
        async with calls_of("persistence", adapter, timeout_s) as calls:
            await check(_Store(calls, adapter))


class _Store:
    """A persistence adapter under test."""

    def __init__(self, calls: Calls, adapter: object) -> None:
        self.calls = calls
        self.batches = hasattr(adapter, "save_messages")
        self.serves_history = hasattr(adapter, "load_messages")
        self.marks = hasattr(adapter, "mark_open")
        self.marks_many = hasattr(adapter, "mark_all_closed")

    async def save(self, *messages: Message) -> None:
        """Save messages as the engine does: a batch, or one after another."""
        if self.batches:
            await self.calls.call("save_messages", list(messages))
            return
        for message in messages:
            await self.calls.call("save_message", message)

    async def begin(self, stream: Stream) -> None:
        """Mark the stream's current epoch as open, where the adapter marks streams."""
        if self.marks:
            await self.calls.call("mark_open", stream.room_id, stream.epoch)

    async def expect_loaded(
        self, expected: Sequence[Message], room_id: str, *, limit: int = 100, **place: tuple[str, int]
    ) -> None:
        """Load messages and compare."""
        answer = await self.calls.call("load_messages", room_id, **place, limit=limit)
        asked = shown("load_messages", (room_id,), {**place, "limit": limit})
        self.calls.expect(
            isinstance(answer, Sequence) and all(isinstance(each, Message) for each in answer),
            f"{asked} answered {brief(repr(answer))}; it must answer a sequence of chatx.Message",
        )
        if list(answer) == list(expected):
            return
        differing = [
            f"{field} {getattr(got, field)!r} where {getattr(want, field)!r} was saved"
            for got, want in zip(answer, expected, strict=False)
            for field in Message.__struct_fields__
            if (got.epoch, got.offset) == (want.epoch, want.offset) and getattr(got, field) != getattr(want, field)
        ]
        if differing:
            raise self.calls.broken(f"{asked} changed a message: {brief(differing[0])}; it must come back equal")
        raise self.calls.broken(
            f"{asked} answered the places {_places(answer)}; it must answer {_places(expected)}, oldest first"
        )

    async def loads(self, room_id: str, *, limit: int, before: tuple[str, int]) -> Sequence[Message] | None:
        """Load the messages before a place that the store may not know, or return None where the adapter raises."""
        try:
            answer: Sequence[Message] = await self.calls.call("load_messages", room_id, before=before, limit=limit)
        except AssertionError:
            return None
        return answer

    async def position(self, room_id: str) -> tuple[str, int] | None:
        """Ask for the last position and check its form."""
        answer = await self.calls.call("last_position", room_id)
        match answer:
            case None:
                return None
            case (str() as epoch, int() as offset) if epoch and offset >= 0 and not isinstance(offset, bool):
                return epoch, offset
        raise self.calls.broken(f"last_position answered {answer!r}; it must answer (epoch, offset) or None")


async def _saved_messages_come_back_equal(store: _Store) -> None:
    stream = Stream()
    await store.begin(stream)
    by_content = [stream.message(content) for content in CONTENTS]
    by_user = [stream.message("hello", user) for user in USER_IDS]
    by_break = [stream.message(f"one{each}two") for each in LINE_BREAKS]
    await store.save(*by_content)
    await store.save(*by_user)
    await store.save(*by_break)
    if store.serves_history:
        await store.expect_loaded(by_content + by_user + by_break, stream.room_id)


async def _saving_again_changes_nothing(store: _Store) -> None:
    stream = Stream()
    await store.begin(stream)
    messages = stream.messages(3)
    await store.save(*messages)
    # After a timeout nobody knows the outcome: the message comes again, alone or beside new ones.
    await store.save(messages[1])
    more = stream.messages(2)
    await store.save(messages[2], *more)
    if store.serves_history:
        await store.expect_loaded([*messages, *more], stream.room_id)


async def _late_messages_take_their_place(store: _Store) -> None:
    if not store.serves_history:
        return
    stream = Stream()
    await store.begin(stream)
    first, second, third, fourth = stream.messages(4)
    await store.save(first, fourth)
    await store.save(third)
    await store.save(second)
    await store.expect_loaded([first, second, third, fourth], stream.room_id)
    await store.expect_loaded([second, third], stream.room_id, after=(stream.epoch, 1), limit=2)


async def _rooms_are_kept_apart(store: _Store) -> None:
    one, other = Stream(), Stream()
    # The same place in both: a key that leaves out the room shows.
    other.epoch = one.epoch
    await store.begin(one)
    await store.begin(other)
    mine, theirs = one.messages(3), other.messages(3)
    await store.save(mine[0], theirs[0], theirs[1], mine[1], mine[2], theirs[2])
    if not store.serves_history:
        return
    await store.expect_loaded(mine, one.room_id)
    await store.expect_loaded(theirs, other.room_id)
    await store.expect_loaded([], Stream().room_id)
    await store.expect_loaded([], one.room_id.upper(), after=(one.epoch, 0))


async def _after_an_epoch(store: _Store) -> tuple[Stream, list[Message], str]:
    """Return a stream that has begun its second epoch, and what is saved of its first: three messages, and its name."""
    stream = Stream()
    await store.begin(stream)
    earlier, old_epoch = stream.messages(3), stream.epoch
    await store.save(*earlier)
    stream.begin()
    await store.begin(stream)
    return stream, earlier, old_epoch


async def _after_gives_the_first_ones_past_a_place(store: _Store) -> None:
    if not store.serves_history:
        return
    stream, earlier, old_epoch = await _after_an_epoch(store)
    # More than ten: offsets that are compared as text show.
    later, room_id = stream.messages(12), stream.room_id
    await store.save(*later)
    await store.expect_loaded(later, room_id, after=(stream.epoch, 0))
    await store.expect_loaded(later[9:], room_id, after=(stream.epoch, 9))
    await store.expect_loaded(later[4:6], room_id, after=(stream.epoch, 4), limit=2)
    await store.expect_loaded([], room_id, after=(stream.epoch, 12))
    # Only that epoch: what follows in the next is not known to follow without a hole.
    await store.expect_loaded(earlier[1:], room_id, after=(old_epoch, 1))
    await store.expect_loaded([], room_id, after=(old_epoch, 3))
    await store.expect_loaded([], room_id, after=("an epoch nobody has seen", 0))


async def _before_gives_the_last_ones_ahead_of_a_place(store: _Store) -> None:
    if not store.serves_history:
        return
    stream, earlier, old_epoch = await _after_an_epoch(store)
    later, room_id = stream.messages(12), stream.room_id
    await store.save(*later)
    await store.expect_loaded(earlier + later, room_id)
    await store.expect_loaded(later[-2:], room_id, limit=2)
    await store.expect_loaded(later[7:9], room_id, before=(stream.epoch, 10), limit=2)
    await store.expect_loaded(earlier[1:] + later[:2], room_id, before=(stream.epoch, 3), limit=4)
    await store.expect_loaded(earlier, room_id, before=(stream.epoch, 1))
    await store.expect_loaded(earlier[:1], room_id, before=(old_epoch, 2))
    await store.expect_loaded([], room_id, before=(old_epoch, 1))


async def _a_place_needs_no_message(store: _Store) -> None:
    """Messages are served from a dead letter's place and from the one behind the newest message as from any other."""
    if not store.serves_history:
        return
    stream, earlier, old_epoch = await _after_an_epoch(store)
    later, room_id, epoch = stream.messages(12), stream.room_id, stream.epoch
    stored = later[:4] + later[6:]  # 5 and 6 were never saved
    await store.save(*stored)
    await store.expect_loaded(later[2:4], room_id, before=(epoch, 5), limit=2)
    await store.expect_loaded(later[2:4], room_id, before=(epoch, 6), limit=2)
    await store.expect_loaded(later[2:4] + later[6:7], room_id, before=(epoch, 8), limit=3)
    await store.expect_loaded(later[-2:], room_id, before=(epoch, 99), limit=2)
    await store.expect_loaded(earlier, room_id, before=(epoch, 0))
    await store.expect_loaded(earlier, room_id, before=(old_epoch, 99))
    await store.expect_loaded(later[6:8], room_id, after=(epoch, 4), limit=2)
    await store.expect_loaded(later[6:8], room_id, after=(epoch, 5), limit=2)
    # A store cannot say where an epoch belongs of which it has nothing: it may answer nothing, or that everything is
    # before it, or raise. Anything between is another room's life taken for this one's.
    place = ("an epoch nobody has seen", 5)
    answer = await store.loads(room_id, before=place, limit=100)
    store.calls.expect(
        answer is None or list(answer) in ([], earlier + stored),
        f"load_messages(room, before={place}, limit=100) answered the places {_places(answer or ())}; of an epoch that "
        "is not known everything is before it, or nothing",
    )


async def _reading_backwards_comes_to_an_end(store: _Store) -> None:
    if not store.serves_history:
        return
    stream = Stream()
    await store.begin(stream)
    earlier = stream.messages(5)
    await store.save(*earlier[:2], *earlier[3:])
    stream.begin()
    await store.begin(stream)
    later = stream.messages(5)
    await store.save(*later[1:4])  # the first and the newest are not saved yet: memory has them
    expected = [*earlier[:2], *earlier[3:], *later[1:4]]
    pages: list[Message] = []
    place = (later[4].epoch, later[4].offset)
    for _ in range(len(expected) + 1):
        page = await store.loads(stream.room_id, before=place, limit=2)
        if not page:
            break
        pages[:0] = page
        place = (page[0].epoch, page[0].offset)
    store.calls.expect(
        pages == expected,
        f"reading backwards, page by page, gave the places {_places(pages)}; it must give {_places(expected)} and end",
    )


async def _epochs_keep_the_order_in_which_they_began(store: _Store) -> None:
    if not store.serves_history:
        return
    stream = Stream()
    await store.begin(stream)
    lives: list[list[Message]] = []
    for _ in range(3):
        lives.append(stream.messages(3))
        await store.save(lives[-1][0], lives[-1][2])
        stream.begin()
        await store.begin(stream)
    # What failed at first is saved when its epoch is over.
    for life in reversed(lives):
        await store.save(life[1])
    await store.expect_loaded([each for life in lives for each in life], stream.room_id)
    await store.expect_loaded(lives[0][1:], stream.room_id, before=(lives[1][0].epoch, 1), limit=2)


async def _a_failed_batch_leaves_nothing(store: _Store) -> None:
    if not (store.batches and store.serves_history):
        return
    stream = Stream()
    await store.begin(stream)
    good, after = stream.message(), stream.message()
    # No encoder takes a lone surrogate. The engine never saves one; an adapter that can is not wrong.
    poison = stream.message("\ud800")
    if await store.calls.succeeds("save_messages", [good, poison, after]):
        return
    # After a failure the engine saves each alone: a half-saved batch would be there before its time.
    await store.expect_loaded([], stream.room_id)
    await store.save(good, after)
    await store.expect_loaded([good, after], stream.room_id)


async def _calls_at_once_do_not_disturb_each_other(store: _Store) -> None:
    streams = [Stream() for _ in range(8)]
    await asyncio.gather(*map(store.begin, streams))
    saved = [stream.messages(5) for stream in streams]

    async def use(stream: Stream, messages: list[Message]) -> None:
        for message in messages:
            await store.save(message)
        if store.serves_history:
            await store.expect_loaded(messages, stream.room_id)

    await asyncio.gather(*map(use, streams, saved))


async def _the_last_position_is_proven(store: _Store) -> None:
    if not store.serves_history:
        return
    stream = Stream()
    store.calls.expect(
        await store.position(stream.room_id) is None,
        "last_position of a room without messages is not None; it must be",
    )
    await store.begin(stream)
    await store.save(*stream.messages(3))
    position = await store.position(stream.room_id)
    store.calls.expect(
        position is None or (position[0] == stream.epoch and position[1] >= 3),
        f"last_position answered {position!r} after offset 3 of epoch {stream.epoch!r} was saved; it must answer a "
        "place that no message is past, or None",
    )


async def _marks_give_and_withdraw_the_proof(store: _Store) -> None:
    if not (store.marks and store.serves_history):
        return
    stream, other = Stream(), Stream()
    room_id, expect = stream.room_id, store.calls.expect
    other.epoch = stream.epoch
    await store.begin(other)
    await store.begin(stream)
    await store.save(*stream.messages(3))
    expect(
        await store.position(room_id) is None,
        "last_position is not None while the stream is open; a crash now could hide messages that were seen",
    )

    async def closed_at(offset: int) -> None:
        await store.calls.call("mark_closed", room_id, stream.epoch, offset)
        position = await store.position(room_id)
        expect(
            position == (stream.epoch, offset),
            f"last_position answered {position!r} after mark_closed(room, {stream.epoch!r}, {offset}); it must answer "
            "with that place",
        )

    await closed_at(3)
    expect(await store.position(other.room_id) is None, "mark_closed of one room closed another too")
    await store.begin(stream)
    expect(
        await store.position(room_id) is None,
        "last_position is not None after mark_open; it must withdraw the proof of mark_closed",
    )
    await store.save(*stream.messages(2))
    await closed_at(5)
    stream.begin()
    await store.begin(stream)
    expect(
        await store.position(room_id) is None,
        "last_position answers for an old epoch while a newer one is open; it must be None",
    )
    await store.save(*stream.messages(1))
    await closed_at(1)


async def _many_ends_are_recorded_together(store: _Store) -> None:
    if not (store.marks_many and store.serves_history):
        return
    streams = [Stream() for _ in range(3)]
    for stream in streams:
        await store.begin(stream)
        await store.save(*stream.messages(2))
    ends = [(stream.room_id, stream.epoch, 2) for stream in streams]
    await store.calls.call("mark_all_closed", ends[:2])
    for (room_id, epoch, offset), closed in zip(ends, (True, True, False), strict=True):
        position = await store.position(room_id)
        store.calls.expect(
            position == ((epoch, offset) if closed else None),
            f"last_position answered {position!r} after mark_all_closed({ends[:2]!r}); it must answer with the places "
            "given there, and None for other rooms",
        )


def _places(messages: Sequence[Message]) -> str:
    return "[" + ", ".join(f"{each.epoch}:{each.offset}" for each in messages) + "]"
