"""What does not go into one record goes in several: large messages, large histories and many members."""

from __future__ import annotations

import asyncio

import pytest

from chatx import AdapterError, Message
from chatx.cluster import rpc
from chatx.cluster.backplane import PAYLOAD_BYTES
from chatx.cluster.entries import Placed
from chatx.cluster.fields import Place
from chatx.cluster.memberships import Membership
from chatx.config_checks import LARGEST_BETWEEN_NODES
from chatx.core.data import Data
from chatx.core.message import Entry
from chatx.runtime.nodes.fitting import TOLD_BYTES, newest_that_fit, oldest_that_fit
from chatx.runtime.subscription import Subscription
from tests.runtime.nodes.fabric import RECORDS, Node, nodes, room_of
from tests.virtual import virtual

LARGEST = "\N{GRINNING FACE}" * 1024  # as many bytes as a content may have
DATA = {"note": "\N{GRINNING FACE}" * 1000}


async def filled(node: Node, room: str, count: int, first: int = 0) -> list[Message]:
    return [
        await node.chat.send_message(room, "ann", LARGEST, data=DATA, idempotency_key=f"{number}")
        for number in range(first, first + count)
    ]


async def read(subscription: Subscription, count: int) -> list[str]:
    """Return the ids of the next messages: as a whole they are too much for a failure to show."""
    found: list[str] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            event = await anext(subscription)
            found.append(event.id if isinstance(event, Message) else repr(event))
    return found


def ids(messages: list[Message]) -> list[str]:
    return [each.id for each in messages]


@virtual
async def test_a_node_comes_to_a_room_whose_history_is_larger_than_a_record() -> None:
    async with nodes("a", "b") as (_, (a, b)):
        room = room_of("a", "b")
        sent = await filled(a, room, 300)
        async with b.chat.subscribe(room, after=sent[50]) as reader:
            assert await read(reader, 249) == ids(sent[51:])
            reading = asyncio.create_task(read(reader, 300))
            sent += await filled(a, room, 300, 300)  # much of it in each turn
            assert await reading == ids(sent[300:])
        assert ids(await b.chat.history(room, limit=200)) == ids(sent[-200:])
        assert ids(await b.chat.history(room, before=sent[-100], limit=100)) == ids(sent[-200:-100])


@virtual
async def test_a_replica_that_is_far_behind_catches_up_in_several_steps() -> None:
    async with nodes("a", "b", history_size=1000, mailbox_bytes=2**25) as (fabric, (a, b)):
        room = room_of("a", "b")
        first = await a.chat.send_message(room, "ann", "first")
        async with b.chat.subscribe(room, after=first) as reader:
            fabric.lossy = 1.0
            sent = await filled(a, room, 600)
            await asyncio.sleep(0)
            fabric.lossy = 0.0
            assert await read(reader, 600) == ids(sent)


def test_whatever_goes_together_fits_into_one_record() -> None:
    data = Data.of({"note": "\N{GRINNING FACE}" * 1000})
    entries: list[Entry] = [
        Message(f"{number:064}", "r" * 128, "u" * 128, LARGEST, 2**60, "e" * 128, 2**60 + number, False, True, data)
        for number in range(300)
    ]
    member = Membership("u" * 128, "r" * 128, 2**60)
    for found in (oldest_that_fit(entries), newest_that_fit(entries)):
        placed = tuple(Placed.of(each, "k" * 128) for each in found)
        assert len(placed) > 60
        attached = rpc.Attached(Place("e" * 128, 2**60), 2**60, placed, True, (member,) * 1000, True)
        assert len(RECORDS.encode(attached)) <= PAYLOAD_BYTES
    largest = Message("i" * 64, "r" * 128, "u" * 128, "x" * LARGEST_BETWEEN_NODES, 2**60, "e" * 128, 2**60, False, True)
    assert oldest_that_fit([largest, largest], TOLD_BYTES) == oldest_that_fit([largest, largest]) == [largest]
    members = (Membership("u" * 128, f"{'z' * 32}.{2**63:x}", 2**60),) * 1000
    told = rpc.Told("r" * 128, "z" * 32, 2**60, (Placed.of(largest, "k" * 128),), members, members)
    assert len(RECORDS.encode(told)) <= PAYLOAD_BYTES
    assert oldest_that_fit(entries)[0] is entries[0]
    assert newest_that_fit(entries)[-1] is entries[-1]
    short: list[Entry] = [Message("i", "r", "u", "hi", 1, "e", number) for number in range(300)]
    assert len(oldest_that_fit(short)) == 256
    assert oldest_that_fit([]) == []


@virtual
async def test_an_owner_that_answers_with_what_was_not_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes("a", "b", history_size=10) as (_, (a, b)):
        room = room_of("a", "b")
        sent = [await a.chat.send_message(room, "ann", f"{number}") for number in range(30)]
        async with b.chat.subscribe(room):
            found = rpc.Found(tuple(Placed.of(each) for each in sent[:5]), None)

            async def answered(ask: rpc.Ask) -> rpc.Answer:
                return found

            monkeypatch.setattr(a.answering, "answer", answered)
            with pytest.raises(AdapterError, match="other entries"):
                await b.chat.history(room, after=sent[10], limit=5)
