"""Two processes on one store: the second waits for the first to end, however that ends, or gives up and says so."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from chatx.adapters.sqlite import SQLitePersistence
from tests.gateway.real_client import RealClient, real_client
from tests.postgres import Postgres
from tests.process import Served, free_port, serve

WAITING = "Waiting up to"
LONG = "60000"
"""A drain timeout, in ms, that no test reaches."""
FAST = {"CHATX_RATE_LIMIT": "{ messages_per_sec = 1e9, burst = 1000000000 }"}


@contextmanager
def waiting(name: str, *arguments: str, **options: Any) -> Iterator[Served]:
    """A command on a free port that says that it waits for its store."""
    server = Served(name, free_port(), *arguments, **options)
    try:
        assert server.process.stdout is not None
        printed = ""
        while WAITING not in printed:
            line = server.process.stdout.readline()
            assert line, printed
            printed += line
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()
            server.process.wait()
        assert server.process.stdout is not None
        server.process.stdout.close()


def serving(store: str) -> tuple[str, ...]:
    return "--insecure-user-param", "--store", store


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'chat.db'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.new_database()


@pytest.mark.process
def test_a_second_server_that_waited_for_nothing_ends_with_a_clear_error(store: str) -> None:
    with (
        serve(*serving(store)),
        waiting("serve", *serving(store), CHATX_DRAIN_TIMEOUT_MS="1200") as second,
    ):
        status, output = second.wait()

    assert status == 1
    (refused,) = [json.loads(line) for line in output.splitlines()]
    assert refused["message"].startswith("The chat was not started: Another chat writes to ")
    assert (refused["level"], refused["code"]) == ("error", "store_in_use")


@pytest.mark.process
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_server_that_waits(how: signal.Signals, tmp_path: Path) -> None:
    store = str(tmp_path / "chat.db")
    with (
        serve(*serving(store)) as first,
        waiting("serve", *serving(store), CHATX_DRAIN_TIMEOUT_MS=LONG) as second,
    ):
        status, output = second.stop(how)
        assert (status, "Stopped." in output, "Ready" in output) == (0, True, False)
        assert first.process.poll() is None


@pytest.mark.process
async def test_who_waits_takes_over_from_a_server_that_is_killed(store: str) -> None:
    with serve(*serving(store), CHATX_DURABILITY="stored") as first:
        async with real_client(first.port, "ada") as ada:
            await ada.ask("room:a", "phx_join")
            sent = await ada.ask("room:a", "new_message", {"content": "hello"})
        with waiting("serve", *serving(store), CHATX_DRAIN_TIMEOUT_MS=LONG) as second:
            first.kill()
            await asyncio.to_thread(second.wait_until_it_answers)
            async with real_client(second.port, "ada") as ada:
                joined = await ada.ask("room:a", "phx_join", {"epoch": sent["epoch"], "offset": 0})
                assert (joined["recovered"], joined["offset"]) == (True, 1)
                again = await ada.ask("room:a", "new_message", {"content": "again"})
                assert (again["epoch"], again["offset"]) == (sent["epoch"], 2)


class Sender:
    """A client that sends one message after another, each with a key, to whichever of these servers takes it."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self.acked: list[dict[str, Any]] = []
        self.served_by: list[int] = []

    async def run(self) -> None:
        turn = 0
        while True:
            port = self._ports[turn % len(self._ports)]
            turn += 1
            try:
                async with real_client(port, "ada", open_timeout=30) as client:
                    await client.ask("room:a", "phx_join")
                    while True:
                        self.acked.append(await self._send(client))
                        self.served_by.append(port)
            except (OSError, ConnectionClosed, AssertionError):
                await asyncio.sleep(0.05)  # as a client does

    async def until(self, port: int, many: int) -> None:
        """Wait until so many more are acknowledged by this server."""
        wanted = self.served_by.count(port) + many
        async with asyncio.timeout(40):
            while self.served_by.count(port) < wanted:  # noqa: ASYNC110 # the client tells nobody
                await asyncio.sleep(0.01)

    async def _send(self, client: RealClient) -> dict[str, Any]:
        number = len(self.acked)
        return await client.ask("room:a", "new_message", {"content": str(number), "key": f"k{number}"})


@asynccontextmanager
async def sending(*ports: int) -> AsyncIterator[Sender]:
    sender = Sender(list(ports))
    task = asyncio.create_task(sender.run())
    try:
        yield sender
    finally:
        task.cancel()
        await asyncio.wait((task,))


@pytest.mark.process
async def test_in_a_rolling_restart_nothing_of_a_client_that_sends_all_the_time_is_lost_or_doubled(store: str) -> None:
    options: dict[str, Any] = {"CHATX_DURABILITY": "stored", **FAST}
    with (
        serve(*serving(store), **options) as first,
        waiting("serve", *serving(store), CHATX_DRAIN_TIMEOUT_MS=LONG, **options) as second,
    ):
        async with sending(first.port, second.port) as sender:
            await sender.until(first.port, 50)
            first.process.send_signal(signal.SIGTERM)
            assert (await asyncio.to_thread(first.wait))[0] == 0
            await sender.until(second.port, 50)
        async with real_client(second.port, "eve") as eve:
            await eve.ask("room:a", "phx_join", {"epoch": sender.acked[0]["epoch"], "offset": 0})
            seen = await eve.wait_for_messages(len(sender.acked))

    assert [each["content"] for each in seen] == [str(number) for number in range(len(sender.acked))]
    assert [each["offset"] for each in seen] == list(range(1, len(sender.acked) + 1))
    assert {each["epoch"] for each in seen} == {sender.acked[0]["epoch"]}


# The demo


@pytest.mark.process
@pytest.mark.slow
def test_a_second_demo_gives_up_with_a_clear_error_and_a_signal_ends_its_wait(tmp_path: Path) -> None:
    with serve(*serving(str(tmp_path / "chat.db"))):
        with waiting("demo", "--store", "chat.db", cwd=tmp_path) as second:
            status, output = second.stop()
        assert (status, output) == (0, "")
        with waiting("demo", "--store", "chat.db", cwd=tmp_path) as second:
            status, output = second.wait()
        assert status == 1
        assert output.startswith("chatx: Another chat writes to chat.db and did not end within 10 s")


@pytest.mark.process
async def test_a_demo_takes_over_when_the_other_ends(tmp_path: Path) -> None:
    with (
        serve(*serving(str(tmp_path / "chat.db"))) as first,
        waiting("demo", "--store", "chat.db", cwd=tmp_path) as second,
    ):
        assert (await asyncio.to_thread(first.stop))[0] == 0
        await asyncio.to_thread(second.wait_until_it_answers)
        async with real_client(second.port, "ada") as ada:
            await ada.ask("room:a", "phx_join")
            await ada.ask("room:a", "new_message", {"content": "hello"})
        status, output = await asyncio.to_thread(second.stop)
        assert (status, "open http://localhost" in output) == (0, True)
    with closing(SQLitePersistence(tmp_path / "chat.db")) as kept:
        assert [each.content for each in kept.load_messages("a", limit=9)] == ["hello"]
