"""At the bound of one user: who is dead gives way within `ANSWER_S`, and nobody who answers does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.frames import Opcode

from chatx.chat import Chat
from chatx.core.rate_limit import RateLimit
from chatx.gateway.asgi.app import AsgiSocket
from chatx.gateway.entry.admission import COME_BACK_S, Admission, Full, Place
from chatx.gateway.entry.newcomers import LOOKS, Newcomers
from chatx.gateway.session.entrance import Client
from chatx.gateway.session.progress import untaken
from chatx.gateway.session.socket import Bundle
from chatx.gateway.wire.bounds import ANSWER_S
from tests.gateway.fakes import settle
from tests.gateway.loops import on_each_loop
from tests.gateway.raw_peer import close_code, masked, next_frame, opened, pushed
from tests.gateway.real_client import real_client, until
from tests.gateway.servers import SHELLS, named, native, served
from tests.gateway.test_silence import takes
from tests.longpoll.polling import PollingClient, inside
from tests.virtual import turns, virtual


class Peer:
    """Who is on a place, and when it answers a question: seconds after it, or never."""

    def __init__(self, counts: Admission, last_seen: float, answers_after: float | None = None) -> None:
        self.place = counts.begin(None)
        self.place.admit("ada")
        self.place.occupy(self)
        self.last_seen = last_seen
        self.answers_after = answers_after
        self.gave_way = False

    def ask(self) -> Callable[[], bool] | None:
        asked = asyncio.get_running_loop().time()

        def answered() -> bool:
            now = asyncio.get_running_loop().time()
            return self.answers_after is not None and asked + self.answers_after <= now

        return answered

    def give_way(self) -> None:
        self.gave_way = True


class Lively(Peer):
    """One that need not be asked."""

    def ask(self) -> Callable[[], bool] | None:
        return None


def gave_way(*peers: Peer) -> list[bool]:
    return [peer.gave_way for peer in peers]


async def come(newcomers: Newcomers, counts: Admission) -> Place:
    place = counts.begin(None)
    try:
        await newcomers.admit(place, "ada")
    except BaseException:
        place.end()
        raise
    return place


@virtual
async def test_the_longest_silent_of_those_that_do_not_answer_gives_way() -> None:
    loop = asyncio.get_running_loop()
    counts = Admission(per_user=4, per_address=0)
    newcomers = Newcomers(counts)
    answers, longest = Peer(counts, 1.0, answers_after=ANSWER_S / 2), Peer(counts, 2.0)
    dead, lively = Peer(counts, 3.0), Lively(counts, 0.0)
    for expected in ([False, True, False, False], [False, True, True, False]):
        began = loop.time()
        await come(newcomers, counts)
        assert loop.time() - began == ANSWER_S
        assert gave_way(answers, longest, dead, lively) == expected
        assert not counts.has_room("ada")
    # Those that came in have no occupant yet: they are not asked.
    with pytest.raises(Full) as refused:
        await come(newcomers, counts)
    assert (refused.value.status, refused.value.retry_after) == (429, COME_BACK_S)
    assert gave_way(answers, lively) == [False, False]
    assert len(newcomers) == 0


@virtual
async def test_a_newcomer_is_refused_as_soon_as_everybody_has_answered_and_at_once_where_nobody_is_asked() -> None:
    loop = asyncio.get_running_loop()
    counts = Admission(per_user=2, per_address=0)
    newcomers = Newcomers(counts)
    Lively(counts, 0.0), Peer(counts, 0.0, answers_after=ANSWER_S / 4)
    with pytest.raises(Full):
        await come(newcomers, counts)
    assert loop.time() <= ANSWER_S / 4 + ANSWER_S / LOOKS
    counts = Admission(per_user=1, per_address=0)
    Lively(counts, 0.0)
    began = loop.time()
    with pytest.raises(Full):
        await come(Newcomers(counts), counts)
    assert loop.time() == began


@virtual
async def test_no_more_newcomers_wait_than_there_are_sockets_that_may_give_way() -> None:
    counts = Admission(per_user=3, per_address=0)
    newcomers = Newcomers(counts)
    peers = [Peer(counts, 0.0), Peer(counts, 1.0), Peer(counts, 2.0, answers_after=ANSWER_S / 2)]
    waiting = [asyncio.create_task(come(newcomers, counts)) for _ in range(3)]
    await settle()
    with pytest.raises(Full) as refused:
        await come(newcomers, counts)
    assert refused.value.retry_after == ANSWER_S
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert sorted(type(each).__name__ for each in outcomes) == ["Full", "Place", "Place"]
    assert gave_way(*peers) == [True, True, False]
    assert len(newcomers) == 0


@virtual
async def test_a_place_that_becomes_free_is_taken_and_nobody_gives_way() -> None:
    counts = Admission(per_user=2, per_address=0)
    newcomers = Newcomers(counts)
    stays, goes = Peer(counts, 0.0), Peer(counts, 1.0)
    waiting = asyncio.create_task(come(newcomers, counts))
    await settle()
    goes.place.end()
    await waiting
    assert asyncio.get_running_loop().time() <= ANSWER_S / LOOKS + 0.001
    assert gave_way(stays, goes) == [False, False]


@virtual
async def test_a_newcomer_that_goes_while_it_waits_costs_nobody_a_place() -> None:
    counts = Admission(per_user=1, per_address=0)
    newcomers = Newcomers(counts)
    peer = Peer(counts, 0.0)
    cancelled = asyncio.create_task(come(newcomers, counts))
    place = counts.begin(None)
    await settle()
    cancelled.cancel()
    await settle()
    assert len(newcomers) == 0
    ended = asyncio.create_task(newcomers.admit(place, "ada"))
    await settle()
    place.end()
    await ended
    assert (gave_way(peer), len(newcomers), len(counts)) == ([False], 0, 1)


@virtual
async def test_answers_that_wait_while_turns_take_long_are_read_before_anybody_gives_way() -> None:
    counts = Admission(per_user=1, per_address=0)
    peer = Peer(counts, 0.0)
    waiting = asyncio.create_task(come(Newcomers(counts), counts))
    await settle()

    async def answer() -> None:
        await turns(LOOKS - 3)  # through the queues of a server
        peer.answers_after = 0.0

    answering = asyncio.create_task(answer())
    for _ in range(LOOKS):
        takes(ANSWER_S)
        await turns(1)
    with pytest.raises(Full):
        await waiting
    await answering
    assert gave_way(peer) == [False]


@virtual
async def test_a_session_whose_client_polls_no_more_gives_way_and_one_that_polls_does_not() -> None:
    async with Chat(max_connections_per_user=2) as chat:
        app = chat.asgi(authenticate=named)
        alive, dead = PollingClient(inside(app)), PollingClient(inside(app))
        await alive.open()
        await dead.open()

        async def poll() -> None:
            while (await alive.poll()).status in (200, 204):
                pass

        polling = asyncio.create_task(poll())
        await asyncio.sleep(ANSWER_S + 1)  # the poll is held open, which by itself proves nothing
        newcomer = PollingClient(inside(app))
        await newcomer.open()
        assert await dead.poll() == (410, [])
        await alive.join("room:a")
        await newcomer.join("room:a")
        assert len((await chat.presence("a"))["ada"]) == 2
        polling.cancel()


@virtual
async def test_a_user_who_is_revoked_while_a_newcomer_waits_does_not_come_in() -> None:
    async with Chat(max_connections_per_user=1) as chat:
        app = chat.asgi(authenticate=named)
        await PollingClient(inside(app)).open()
        await asyncio.sleep(ANSWER_S + 1)
        newcomer = PollingClient(inside(app))
        coming = asyncio.create_task(newcomer.request("GET"))
        await asyncio.sleep(ANSWER_S / 2)
        await chat.revoke("ada")
        assert (await coming).status == 403
        await settle()
        assert chat.statistics().connections == 0


def grown_silent(chat: Chat) -> None:
    """Let every socket have been silent for longer than an answer takes."""
    for consumer in list(chat.engine.consumers):
        assert isinstance(consumer, Client)
        consumer.session.last_seen -= ANSWER_S + 1


@pytest.mark.process
@pytest.mark.parametrize("shell", SHELLS)
async def test_dead_sockets_give_way_and_what_answers_a_ping_does_not(shell: str) -> None:
    chat = Chat(max_connections_per_user=3)
    async with (
        served(shell, chat) as port,
        real_client(port, "ada") as alive,
        opened(port, b"bob"),
        opened(port) as (first, _),
        opened(port) as (second, _),
        AsyncExitStack() as stack,
    ):
        await until(lambda: chat.statistics().connections == 4)
        for dead in (first, second):
            grown_silent(chat)
            newcomer = await stack.enter_async_context(real_client(port, "ada"))
            await newcomer.ask("room:a", "phx_join")
            assert await close_code(dead) == 1001
        grown_silent(chat)
        with pytest.raises(InvalidStatus) as refused:
            async with real_client(port, "ada"):
                pass
        response = refused.value.response
        assert (response.status_code, response.headers.get("retry-after")) == {
            "asgi": (403, None),
            "native": (429, "5"),
        }[shell]
        await alive.ask("room:a", "phx_join")
        in_force = [
            each.user_id for each in chat.engine.consumers if isinstance(each, Client) and not each.session._ended
        ]
        assert sorted(in_force) == ["ada", "ada", "ada", "bob"]


class Holding(asyncio.Transport):
    """A transport that holds so many bytes."""

    holds = 1000

    def get_write_buffer_size(self) -> int:
        return self.holds


@virtual
async def test_under_asgi_taking_some_of_a_write_that_waits_is_an_answer() -> None:
    flows = asyncio.Event()

    async def send(message: Any) -> None:
        await flows.wait()

    transport = Holding()
    socket = AsgiSocket(send, 10_000, transport=transport)
    writing = asyncio.create_task(socket.run())
    await settle()
    assert socket.ask() is None  # there is nothing to ask by
    socket.write(Bundle(["one", "two"]))
    await settle()
    answered = socket.ask()
    assert answered is not None
    await asyncio.sleep(9)  # with looks of the socket's own
    assert not answered()
    transport.holds = 999
    assert answered()
    again = socket.ask()
    assert again is not None
    flows.set()
    await settle()
    assert again()  # all was taken
    socket.close(1001, "")
    await writing
    assert socket.ask() is None


async def taken_no_more(transport: asyncio.Transport) -> None:
    """Return when a peer's kernel has taken what it takes."""
    left = None
    while left != (left := untaken(transport)):  # noqa: ASYNC110  # there is no event for it
        await asyncio.sleep(0.3)


@pytest.mark.process
@on_each_loop
async def test_of_those_whose_transports_are_full_the_one_that_takes_nothing_gives_way() -> None:
    chat = Chat(max_connections_per_user=2, rate_limit=RateLimit(1e6, 10**6), mailbox_bytes=50_000_000)
    async with (
        chat,
        native(chat) as (server, port),
        opened(port, receive_buffer=4096) as (slowly, slow),
        opened(port, receive_buffer=4096) as (nothing, stuck),
    ):
        for reader, writer in ((slowly, slow), (nothing, stuck)):
            writer.write(pushed("room:a", "phx_join"))
            await next_frame(reader)

        async def read_slowly() -> None:
            while await slowly.read(1000):  # noqa: ASYNC110  # it is the pace that is wanted
                await asyncio.sleep(0.02)

        reading = asyncio.create_task(read_slowly())
        streams = list(server.streams)
        while not all(stream.writing._full for stream in streams):
            await chat.send_message("a", "bob", "x" * 4000)
            await asyncio.sleep(0)
        for _ in range(500):  # so that it stays so, however slowly it is taken
            await chat.send_message("a", "bob", "x" * 4000)
        await taken_no_more(streams[1].writing._transport)
        grown_silent(chat)
        async with real_client(port, "ada"):
            ended = [client.session._ended for client in server.streams.values()]
            assert ended == [False, True, False]
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


@pytest.mark.process
@on_each_loop
async def test_one_whose_peer_does_not_answer_its_close_gives_way() -> None:
    chat = Chat(max_connections_per_user=1)
    async with chat, native(chat) as (server, port), opened(port) as (reader, _):
        await until(lambda: chat.statistics().connections == 1)
        (client,) = server.streams.values()
        client.session.cut(1013, "too slow: resume from the last message")
        assert await close_code(reader) == 1013
        async with real_client(port, "ada") as newcomer:
            await newcomer.ask("room:a", "phx_join")
            assert server.sockets_closed == {1013: 1}


@pytest.mark.process
@on_each_loop
async def test_one_question_at_a_time_is_put_to_a_socket_however_many_come() -> None:
    chat = Chat(max_connections_per_user=1)
    async with chat, native(chat) as (server, port), opened(port) as (reader, writer):
        await until(lambda: chat.statistics().connections == 1)
        grown_silent(chat)
        coming = [asyncio.create_task(status_of(port)) for _ in range(4)]
        first, payload = await next_frame(reader)
        assert (first, payload) == (0x89, b"")
        await until(lambda: server.refused[429] == 3)
        writer.write(masked(Opcode.PONG, b""))
        assert await asyncio.gather(*coming) == [429] * 4
        writer.write(masked(Opcode.PING, b"last"))
        # Nothing lay between.
        assert await next_frame(reader) == (0x8A, b"last")


async def status_of(port: int) -> Any:
    try:
        async with real_client(port, "ada"):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code
