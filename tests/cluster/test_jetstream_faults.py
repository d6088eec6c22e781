"""The log in JetStream while real servers fail: what was acknowledged is there, once, and the log goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chatx.adapters.room_log import FENCED, LogUnavailable
from chatx.cluster.jetstream import AsksBroker, JetStream, NoJetStream
from chatx.cluster.jetstream_log import JetStreamLog
from chatx.cluster.nats import NatsBackplane
from chatx.core.message import Position
from tests.cluster.links import WITHIN_S, new_boot, until
from tests.cluster.owners import EPOCH, Owner, check
from tests.nats import NatsServer, Proxy, server

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

ROOMS = ("general", "ein Raum")


@asynccontextmanager
async def stream_on(nats: NatsServer, *servers: str, **given: int) -> AsyncIterator[JetStream]:
    """Have the stream, over a link of a node of its own."""
    link = NatsBackplane(new_boot(), nats.options(*servers))
    await link.connect(WITHIN_S)
    try:
        stream = JetStream(link, "test", **given)
        await stream.ensure()
        yield stream
    finally:
        await link.close()


@asynccontextmanager
async def running(*owners: Owner) -> AsyncIterator[None]:
    """Have these append within the block, and until each of them has gone on behind it."""
    tasks = [asyncio.ensure_future(each.run()) for each in owners]
    try:
        yield
        for each in owners:
            await goes_on(each)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def goes_on(owner: Owner) -> None:
    before = len(owner.acked)
    await until(lambda: len(owner.acked) > before + 10)


@pytest.mark.parametrize("which", ["debian", "current"])
async def test_a_server_that_is_killed_or_stands_still_while_it_is_appended_to(which: str, tmp_path: Path) -> None:
    with server(which, tmp_path, jetstream=True) as nats:
        async with stream_on(nats) as stream, stream_on(nats) as other:
            logs = JetStreamLog(stream), JetStreamLog(other)
            owners = [Owner(log, room) for log, room in zip(logs, ROOMS, strict=True)]
            async with running(*owners):
                for each in owners:
                    await goes_on(each)
                nats.kill()
                await until(lambda: all(each.doubted + each.unavailable for each in owners))
                nats.start()
                for each in owners:
                    await goes_on(each)
                doubted = [each.doubted for each in owners]
                with nats.frozen():  # what it was sent it takes when it goes on, from connections that are over
                    await until(lambda: all(each.doubted > n for each, n in zip(owners, doubted, strict=True)))
            for owner, room in zip(owners, ROOMS, strict=True):
                await check(stream, room, owner)


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with server("current", tmp_path_factory.mktemp("nats"), jetstream=True) as one:
        yield one


class Uncompared:
    """A link whose appends expect nothing."""

    def __init__(self, link: AsksBroker) -> None:
        self.boot, self.broker, self.watch = link.boot, link.broker, link.watch
        self._ask = link.ask_broker

    async def ask_broker(
        self, subject: str, payload: bytes, timeout_s: float, headers: dict[str, str] | None = None
    ) -> bytes:
        return await self._ask(subject, payload, timeout_s)


@pytest.mark.parametrize("compares", [True, False])
async def test_of_two_who_have_a_room_one_is_fenced(nats: NatsServer, compares: bool) -> None:
    room = f"duel-{compares}"
    async with stream_on(nats) as stream, stream_on(nats) as other:
        both = [stream, other]
        if not compares:  # without it they fork, or this test would show nothing
            both = [JetStream(Uncompared(each._link), "test") for each in both]
        owners = [Owner(JetStreamLog(each), room, name) for each, name in zip(both, "ab", strict=True)]
        async with running(*owners):
            await goes_on(owners[0])
            for each in range(10):
                owners[each % 2].restart()
                await goes_on(owners[each % 2])
        if compares:
            assert all(each.fenced for each in owners)
            await check(stream, room, *owners)
        else:
            with pytest.raises(AssertionError, match=r"entries are there, and one|is there twice|assert \d+ >= "):
                await check(stream, room, *owners)


async def test_an_append_whose_answer_is_lost_is_there_once(nats: NatsServer) -> None:
    async with Proxy(nats.port).running() as proxy, stream_on(nats, proxy.url) as stream, stream_on(nats) as other:
        owner = Owner(JetStreamLog(stream), "answer")
        async with running(owner):
            await goes_on(owner)
            doubted = owner.doubted
            proxy.swallows_answers = True
            async with asyncio.timeout(WITHIN_S):
                while (await JetStreamLog(other).look("answer")).head == Position(EPOCH, len(owner.acked)):
                    pass
            proxy.cut()
            await until(lambda: owner.doubted > doubted)
            proxy.swallows_answers = False
        await check(other, "answer", owner)


@pytest.mark.parametrize("which", ["debian", "current"])
async def test_a_full_store_refuses_and_keeps_what_it_has(which: str, tmp_path: Path) -> None:
    with server(which, tmp_path, jetstream=True) as nats:
        user = f"authorization {{ user: {nats.user}, password: {nats.password} }}"
        store = f"store_dir: '{tmp_path}/store'"

        def restart(limit: int) -> None:
            nats.stop()
            nats.configure(user, f"jetstream {{ {store}, max_file_store: {limit} }}")
            nats.start()

        restart(200_000)
        async with stream_on(nats) as stream:
            log = JetStreamLog(stream)
            owner = Owner(log, "general")
            appending = asyncio.ensure_future(owner.run())
            await until(lambda: owner.unavailable > 3)
            assert not owner.doubted
            with pytest.raises(LogUnavailable, match=r"JetStream refused: .*(resources|maximum bytes)"):
                await log.take_over("another room")
            count = await check(stream, "general", owner)
            assert count == len(owner.acked) > 300
            restart(10_000_000)
            await goes_on(owner)
            appending.cancel()
            await asyncio.gather(appending, return_exceptions=True)
            await check(stream, "general", owner)


@pytest.mark.parametrize("which", ["debian", "current"])
async def test_a_user_without_jetstream_is_told_so(which: str, tmp_path: Path) -> None:
    with server(which, tmp_path, jetstream=True) as nats:
        nats.stop()
        nats.configure(
            f"jetstream {{ store_dir: '{tmp_path}/store' }}",
            f"accounts {{ CHAT: {{ users: [ {{ user: {nats.user}, password: {nats.password} }} ] }} }}",
        )
        nats.start()
        with pytest.raises(NoJetStream):
            async with stream_on(nats):
                pass


@pytest.mark.parametrize("which", ["debian", "current"])
async def test_a_server_that_comes_back_without_its_data_is_not_taken_for_an_empty_log(
    which: str, tmp_path: Path
) -> None:
    with server(which, tmp_path, jetstream=True) as nats:
        async with stream_on(nats) as stream:
            log = JetStreamLog(stream)
            owner = Owner(log, "general")
            async with running(owner):
                await goes_on(owner)
            nats.kill()
            nats.forget()
            nats.start()
            await until(lambda: stream.losses == 1 and stream._link.state == "connected")  # type: ignore[attr-defined]
            append = owner.next_append()
            for asked in log.append([append]), log.look("general"), log.read("general", limit=1):
                with pytest.raises(LogUnavailable):
                    await asked
            # Another node makes the stream anew: whoever had the room has it no more.
            await stream.ensure()
            assert await log.append([append]) == [FENCED]
            assert not await log.unproven("general", append.term, append.after)
