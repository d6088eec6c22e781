from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import FENCED, Append, Record
from chatx.core.message import Message, Position


def message(offset: int, epoch: str = "a", room_id: str = "room") -> Message:
    return Message(f"id {epoch}{offset}", room_id, "alice", "hello", offset, epoch, offset)


def append(term: int, *entries: Message, key: str | None = None) -> Append:
    first = entries[0]
    records = tuple(Record(each, key) for each in entries)
    return Append(first.room_id, term, Position(first.epoch, first.offset - 1), records, True)


async def test_what_was_appended_is_read_and_a_head_is_proven_until_that_is_withdrawn() -> None:
    log = MemoryLog()
    opened = await log.take_over("room")
    assert (opened.term, opened.head, opened.oldest) == (1, None, 1)
    assert await log.append([append(1, message(1), message(2), key="k")]) == [None]
    assert (await log.read("room", limit=1)).entries == (message(2),)
    opened = await log.take_over("room")
    assert (opened.term, opened.head, opened.proven) == (2, ("a", 2), True)
    assert [each.entry for each in opened.keyed] == [message(1)]
    assert await log.unproven("room", 2, Position("a", 2))
    assert not (await log.take_over("room")).proven
    assert await log.close_rooms({"room": (3, Position("a", 2)), "other": (1, Position("a", 2))}) == {
        "room": True,
        "other": False,
    }
    assert (await log.take_over("room")).proven
    assert await log.append([append(3, message(3))]) == [FENCED]


async def test_what_is_let_go_of_leaves_the_head_and_moves_the_oldest() -> None:
    log = MemoryLog()
    await log.take_over("room")
    await log.append([append(1, message(1), message(2)), append(1, message(1, "b"), message(2, "b"))])
    log.forget("room", Position("b", 2))
    assert await log.read("room", before=Position("a", 9), limit=9) == await log.read("none", limit=9)
    found = await log.read("room", after=Position("b", 0), limit=9)
    assert (found.entries, found.oldest) == ((message(2, "b"),), ("b", 2))
    log.forget("room", Position("b", 3))
    opened = await log.take_over("room")
    assert (opened.head, opened.oldest, log.records("room")) == (("b", 2), 3, [])
    # What was let go of cannot be compared any more: it is not taken for the same.
    assert await log.append([append(2, message(2, "b"), message(3, "b"))]) == [FENCED]
    assert await log.append([append(2, message(3, "b"))]) == [None]
