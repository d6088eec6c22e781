"""A cluster is upgraded node by node: a node of the next version, and one of this, are one chat meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial

import pytest
from msgspec import Struct, msgpack

from chatx.cluster.memory_backplane import MemoryBackplane, MemoryHub
from chatx.cluster.peers import Me
from chatx.cluster.records import Record, Records
from chatx.cluster.rpc import Submit
from tests.runtime.nodes.test_nodes import clustered, owner_of
from tests.virtual import virtual

WRITTEN: Counter[tuple[str, int]] = Counter()
"""How often each kind of node has written a send in each shape."""


class OldRecords(Records):
    """Those of this version, counted."""

    def encode(self, record: Record, version: int | None = None) -> bytes:
        WRITTEN["old", self.version if version is None else version] += isinstance(record, Submit)
        return super().encode(record, version)


class NewSubmit(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="submit"):
    """A send as the next version may have it: `stored` is dropped, and two fields are added ahead of others."""

    room_id: str
    durability: str
    user_id: str
    content: str
    data: str | None
    key: str | None
    trusted: bool
    epoch: str | None
    trace: str


class NewRecords(Records):
    """Those of the next version: a send has another shape, and that of this version stays beside it."""

    def __init__(self) -> None:
        super().__init__(2)

    def encode(self, record: Record, version: int | None = None) -> bytes:
        version = self.version if version is None else version
        WRITTEN["new", version] += isinstance(record, Submit)
        if version == 1 or not isinstance(record, Submit):
            return super().encode(record, version)
        durability = "stored" if record.stored else "sequenced"
        said = (record.content, record.data, record.key, record.trusted, record.epoch)
        return bytes((2,)) + msgpack.encode(NewSubmit(record.room_id, durability, record.user_id, *said, "trace"))

    def decode(self, content: bytes) -> Record:
        if content[0] == 2 and msgpack.decode(content[1:])[0] == "submit":
            new = msgpack.decode(content[1:], type=NewSubmit)
            said = (new.content, new.data, new.key, new.trusted)
            return Submit(new.room_id, new.user_id, *said, new.durability == "stored", new.epoch)
        return super().decode(content)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> MemoryHub:
    """The broker that all chats of the test have in common."""
    hub = MemoryHub()
    monkeypatch.setattr("chatx.chat.link_of", lambda config, boot: MemoryBackplane(hub, boot))
    WRITTEN.clear()
    return hub


def be(monkeypatch: pytest.MonkeyPatch, kind: type[Records], version: int) -> None:
    """Have the nodes that start from here on be of this version."""
    monkeypatch.setattr("chatx.runtime.nodes.node.Records", kind)
    monkeypatch.setattr("chatx.runtime.nodes.node.Me", partial(Me, version=version))


@virtual
async def test_nodes_of_two_versions_are_one_chat_and_speak_the_new_one_when_the_last_old_one_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with AsyncExitStack() as stack:
        be(monkeypatch, OldRecords, 1)
        old = await stack.enter_async_context(clustered("old"))
        be(monkeypatch, NewRecords, 2)
        new = await stack.enter_async_context(clustered("new"))
        await asyncio.sleep(1)
        rooms = [next(f"r{n}" for n in range(99) if owner_of([old, new], f"r{n}") is each) for each in (old, new)]
        for room in rooms:
            async with old.subscribe(room) as one, new.subscribe(room) as other:
                sent = [await each.send_message(room, "ann", "hi") for each in (old, new)]
                assert [await anext(one), await anext(one)] == [await anext(other), await anext(other)] == sent
            async with old.connect("ann") as device, new.connect("ann") as another:
                await device.join(room)
                await another.join(room)
                await asyncio.sleep(1)
                for chat in (old, new):
                    assert [len(metas) for metas in (await chat.presence(room)).values()] == [2]
        assert WRITTEN == {("old", 1): 1, ("new", 1): 1}

        before = await old.history(rooms[0])
        await old.stop()  # and comes back upgraded
        newer = await stack.enter_async_context(clustered("newer"))
        await asyncio.sleep(3)
        assert await newer.history(rooms[0]) == before  # what the old one had was handed to a new one
        room = next(f"r{n}" for n in range(99) if owner_of([new, newer], f"r{n}") is new)
        message = await newer.send_message(room, "ann", "in the new shape")
        assert (await new.history(room, limit=1)) == [message]
        assert WRITTEN["new", 2] == 1
