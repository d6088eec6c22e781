"""The proxy does what it says: what passes is whole, and each fault is what its sides see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from tests.clients.proof.proxy import CuttingProxy, Passage, cutting_proxy
from tests.gateway.real_client import until


class End(NamedTuple):
    """One end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def hears(self, text: bytes) -> None:
        async with asyncio.timeout(20):
            assert await self.reader.readexactly(len(text)) == text

    async def is_reset(self) -> None:
        async with asyncio.timeout(20):
            with pytest.raises(ConnectionResetError):
                await self.reader.read()


class Through(NamedTuple):
    """A connection through a proxy, and the other ends of further ones."""

    proxy: CuttingProxy
    passage: Passage
    client: End
    server: End
    others: list[End]


@asynccontextmanager
async def connected() -> AsyncIterator[Through]:
    accepted: list[End] = []
    behind = await asyncio.start_server(lambda *end: accepted.append(End(*end)), "127.0.0.1")
    async with cutting_proxy(behind.sockets[0].getsockname()[1]) as proxy:
        client = End(*await asyncio.open_connection("127.0.0.1", proxy.port))
        await until(lambda: bool(proxy.passages and accepted))
        through = Through(proxy, next(iter(proxy.passages)), client, accepted.pop(), accepted)
        try:
            yield through
        finally:
            for end in (client, through.server, *accepted):
                end.writer.close()
            behind.close()


async def test_what_passes_is_whole_and_what_is_held_back_comes_in_order() -> None:
    async with connected() as (_, passage, client, server, _):
        passage.delay(0.05)
        client.writer.write(b"one ")
        client.writer.write(b"two")
        await server.hears(b"one two")
        server.writer.write(b"x" * 1_000_000)
        await client.hears(b"x" * 1_000_000)


async def test_a_reset_is_one_on_both_sides() -> None:
    async with connected() as (proxy, passage, client, server, _):
        passage.reset()
        await client.is_reset()
        await server.is_reset()
        await until(lambda: not proxy.passages)


async def test_a_close_is_an_end_on_both_sides_behind_what_was_said() -> None:
    async with connected() as (_, passage, client, server, _):
        server.writer.write(b"bye")
        await client.hears(b"bye")
        passage.close()
        assert (await client.reader.read(), await server.reader.read()) == (b"", b"")


async def test_the_end_of_one_side_is_the_end_of_the_other() -> None:
    async with connected() as (_, _, client, server, _):
        server.writer.write(b"bye")
        server.writer.close()
        async with asyncio.timeout(20):
            assert await client.reader.read() == b"bye"


async def test_of_a_half_open_connection_neither_words_nor_the_end_are_heard_until_it_is_reset() -> None:
    async with connected() as (proxy, passage, client, server, _):
        passage.silence(up=False, down=True, reset_after_s=3600)
        server.writer.write(b"lost")
        client.writer.write(b"heard")
        await server.hears(b"heard")
        client.writer.close()
        await client.writer.wait_closed()
        server.writer.write(b"lost too")
        await server.writer.drain()
        assert passage in proxy.passages
        passage.reset()
        await server.is_reset()


async def test_an_answer_is_lost_behind_what_it_answers() -> None:
    async with connected() as (_, passage, client, server, _):
        passage.lose_answer(0.1)
        server.writer.write(b"before")
        await client.hears(b"before")
        client.writer.write(b"question")
        await server.hears(b"question")
        server.writer.write(b"answer")
        await client.is_reset()


async def test_what_is_torn_arrives_by_half() -> None:
    async with connected() as (_, passage, client, server, _):
        passage.tear(up=True)
        server.writer.write(b"whole")
        await client.hears(b"whole")
        client.writer.write(b"onehalf!")
        await server.hears(b"oneh")
        await server.is_reset()
        await client.is_reset()


async def test_who_is_refused_finds_nobody_and_who_is_in_stays() -> None:
    async with connected() as (proxy, _, client, server, others):
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        client.writer.write(b"still here")
        await server.hears(b"still here")
        await proxy.accept()
        _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        await until(lambda: bool(others))
        writer.close()


async def test_where_the_server_is_away_a_connection_is_reset() -> None:
    async with connected() as (proxy, *_):
        proxy.behind = 1
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        await End(reader, writer).is_reset()
        writer.close()
