"""The example client stays in its room on both shells: across cuts, lost replies, gaps and refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from chatx import Chat, RateLimit
from examples import client as example
from tests.gateway.real_client import until
from tests.gateway.servers import SHELLS, served

pytestmark = pytest.mark.process
on_both_shells = pytest.mark.parametrize("shell", SHELLS)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(example, "LONGEST_PAUSE_S", 0.05)


class Line:
    """A TCP connection to the server that can be cut, and that can swallow what the server says.

    Attributes:
        mute: Whether nothing of the server's gets through.
        refuse: Whether new connections are cut at once.
        cuts: How often something was cut.
    """

    def __init__(self) -> None:
        self.mute = False
        self.refuse = False
        self.cuts = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def to(self, port: int) -> AsyncIterator[int]:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self.refuse:
                self.cuts += 1
                writer.transport.abort()
                return
            there, back = await asyncio.open_connection("127.0.0.1", port)
            self._writers |= {writer, back}
            await asyncio.gather(self._pass(reader, back, False), self._pass(there, writer, True))
            self._writers -= {writer, back}

        async with await asyncio.start_server(connected, "127.0.0.1") as server:
            yield server.sockets[0].getsockname()[1]
            self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self.cuts += 1

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool) -> None:
        try:
            while data := await reader.read(65_536):
                if not (answers and self.mute):
                    writer.write(data)
        except ConnectionError:
            pass
        writer.close()


class Seen:
    """A running client of the example's, and what it showed."""

    def __init__(self, port: int, room_id: str = "a", user: str = "ada") -> None:
        self.contents: list[str] = []
        self.offsets: list[int] = []
        self.missed: list[str] = []
        address = f"ws://127.0.0.1:{port}/socket/websocket?vsn=2.0.0&user_id={user}"
        self.client = example.Client(lambda: address, room_id, self._show, self.missed.append)

    def _show(self, message: Any) -> None:
        self.contents.append(message["content"])
        self.offsets.append(message["offset"])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[example.Client]:
        task = asyncio.create_task(self.client.run())
        try:
            async with asyncio.timeout(20):
                await self.client.joined.wait()
            yield self.client
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@on_both_shells
async def test_nothing_is_lost_and_nothing_is_doubled_across_cuts_and_lost_replies(shell: str) -> None:
    chat, line = Chat(), Line()
    async with served(shell, chat) as port, line.to(port) as cut_port:
        seen = Seen(cut_port)
        async with seen.running() as client, asyncio.timeout(20):
            for number in range(4):
                assert "duplicate" not in await client.send(f"ada {number}")
                line.mute = True
                lost = asyncio.create_task(client.send(f"lost reply {number}"))
                await until(lambda: chat.statistics().sent == 4 * number + 2)  # noqa: B023  # it is awaited here
                line.refuse = True
                line.cut()
                for missed in range(2):
                    await chat.send_message("a", "bob", f"missed {number} {missed}")
                line.mute = line.refuse = False
                assert (await lost)["duplicate"] is True
            await until(lambda: len(seen.contents) >= 16)
            await client.send("last")
            await until(lambda: "last" in seen.contents)

        assert seen.contents == [each.content for each in await chat.history("a")]
        assert seen.offsets == list(range(1, 18))
        assert (seen.missed, seen.client.seen["offset"]) == ([], 17)
        assert line.cuts >= 4


async def test_what_another_epoch_may_have_is_not_sent_again_in_the_next() -> None:
    chat, line = Chat(), Line()
    async with served("native", chat) as port, line.to(port) as cut_port:
        seen = Seen(cut_port)
        async with seen.running() as client, asyncio.timeout(20):
            await client.send("first")
            line.mute = True
            lost = asyncio.create_task(client.send("perhaps there"))
            await until(lambda: chat.statistics().sent == 2)
            await chat.stop()
            await chat.start()
            line.mute = False
            line.cut()
            with pytest.raises(example.Refused, match=r"epoch_changed: .*had no answer may have been"):
                await lost
            await client.send("next")
        assert [each.content for each in await chat.history("a")] == ["next"]


@on_both_shells
async def test_what_cannot_be_had_any_more_is_told_once_and_the_room_goes_on(shell: str) -> None:
    chat, line = Chat(history_size=2), Line()
    async with served(shell, chat) as port, line.to(port) as cut_port:
        seen = Seen(cut_port)
        async with seen.running() as client, asyncio.timeout(20):
            await client.send("before")
            await until(lambda: seen.contents == ["before"])
            line.refuse = True
            line.cut()
            for number in range(5):
                await chat.send_message("a", "bob", f"missed {number}")
            line.refuse = False
            await client.send("after")
            await until(lambda: seen.contents == ["before", "after"])

        assert seen.missed == ["too_old"]
        assert seen.offsets == [1, 7]


@on_both_shells
async def test_it_waits_where_it_may_ask_again_and_gives_up_where_it_may_not(shell: str) -> None:
    class Rules:
        def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            return room_id != "secret"

        def check(self, content: str) -> bool:
            return content != "rude"

    rules = Rules()
    chat = Chat(auth=rules, moderation=rules, rate_limit=RateLimit(messages_per_sec=50, burst=1))
    async with served(shell, chat) as port:
        seen = Seen(port)
        async with seen.running() as client, asyncio.timeout(20):
            for number in range(3):
                await client.send(f"quick {number}")
            with pytest.raises(example.Refused, match="blocked"):
                await client.send("rude")
            await until(lambda: seen.contents == ["quick 0", "quick 1", "quick 2"])
        with pytest.raises(example.Refused, match="unauthorized"):
            await Seen(port, "secret").client.run()


@on_both_shells
async def test_it_joins_again_where_its_membership_fails(shell: str) -> None:
    chat = Chat()
    async with served(shell, chat) as port:
        seen = Seen(port)
        async with seen.running() as client, asyncio.timeout(20):
            await client.send("before")
            await chat.stop()  # its clients are sent away, and come back
            await chat.start()
            await until(lambda: seen.missed == ["epoch_changed"])
            await client.send("after")
            await until(lambda: seen.contents == ["before", "after"])


@on_both_shells
async def test_it_tells_the_server_that_it_is_there(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Listening(example.Client):
        answers = 0

        def _answer(self, ref: str, payload: Any) -> None:
            self.answers += payload == {"status": "ok", "response": {}}
            super()._answer(ref, payload)

    monkeypatch.setattr(example, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(example, "Client", Listening)
    async with served(shell, Chat()) as port, Seen(port).running() as client:
        assert isinstance(client, Listening)
        await until(lambda: client.answers >= 3)


async def test_its_place_moves_by_messages_and_not_by_the_reply_to_a_join() -> None:
    """A server that cuts the line between the reply and what was missed, which a real one does once in a blue moon."""
    asked: list[Any] = []
    third = asyncio.Event()

    async def cutting(socket: ServerConnection) -> None:
        join_ref, ref, topic, _, payload = json.loads(await socket.recv())
        asked.append(payload)
        if len(asked) == 3:
            third.set()
            await socket.wait_closed()
            return
        again = len(asked) == 2
        response = {"epoch": "e", "offset": 9 if again else 3, "recovered": again}
        await socket.send(json.dumps([join_ref, ref, topic, "phx_reply", {"status": "ok", "response": response}]))
        if not again:
            message = {"content": "x", "epoch": "e", "offset": 4}
            await socket.send(json.dumps([None, None, topic, "new_message", message]))
        await socket.close(1012)

    async with serve(cutting, "127.0.0.1", 0) as server, asyncio.timeout(20):
        seen = Seen(next(iter(server.sockets)).getsockname()[1])
        async with seen.running():
            await third.wait()

    assert asked == [{}, {"epoch": "e", "offset": 4}, {"epoch": "e", "offset": 4}]
    assert seen.missed == []
