"""How a node of `horde` starts: with the log of its broker, or as one of `pg` where that has none, and says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient

from chatx import AdapterError, Chat, ConfigError, RoomUnavailable
from chatx.cluster.backplane import NoReply
from chatx.config import ChatConfig
from chatx.gateway.operations.app import operations_app
from chatx.gateway.operations.metrics import Metrics
from chatx.runtime.nodes.horde import Ground
from chatx.telemetry import Telemetry
from tests.nats import NatsServer, server
from tests.postgres import Postgres

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def with_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with server("current", tmp_path_factory.mktemp("with"), jetstream=True) as running:
        yield running


@pytest.fixture(scope="module")
def without_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with server("current", tmp_path_factory.mktemp("without")) as running:
        yield running


def node(broker: NatsServer, name: str, **options: Any) -> Chat:
    """Return a node; each test has a cluster of its own, by `cluster_name`."""
    url = f"nats://{broker.user}:{broker.password}@127.0.0.1:{broker.port}"
    return Chat(**{"cluster_strategy": "horde", "cluster_url": url, "node_name": name, **options})


async def asked(chat: Chat, path: str) -> str:
    app = operations_app(chat, Metrics(chat), ready=lambda: True, admin_token=None)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://here") as client:
        return (await client.get(path)).text


async def test_every_message_is_in_the_log_whatever_durability_says(with_log: NatsServer) -> None:
    async with node(with_log, "a", cluster_name="durability") as chat:
        sent = [
            await chat.send_message("general", "ann", "one"),
            await chat.send_message("general", "ann", "two", durability="sequenced"),
        ]
        assert [each.stored for each in sent] == [True, True]
        assert chat.statistics().cluster_strategy == "horde"
        assert '"strategy":"horde"' in await asked(chat, "/readyz")
    async with node(with_log, "b", cluster_name="durability") as chat:
        third = await chat.send_message("general", "ann", "three")
        assert (third.epoch, third.offset) == (sent[0].epoch, 3)
        assert await chat.history("general") == [*sent, third]


async def test_where_the_broker_has_no_log_the_nodes_are_of_pg_and_say_so(
    without_log: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        chats = [node(without_log, name, cluster_name="fallback", retention_days=7) for name in "ab"]
        await asyncio.gather(*(stack.enter_async_context(each) for each in chats))
        assert [each.statistics().cluster_strategy for each in chats] == ["pg", "pg"]
        assert '"strategy":"pg"' in await asked(chats[0], "/readyz")
        assert 'chatx_cluster_strategy{strategy="pg"} 1.0' in await asked(chats[0], "/metrics")
        async with asyncio.timeout(30):
            while True:  # until both have heard of each other
                with suppress(RoomUnavailable):
                    assert not (await chats[0].send_message("general", "ann", "one")).stored
                    break
                await asyncio.sleep(0.1)
        told = [each for each in caplog.records if getattr(each, "code", "") == "no_jetstream"]
        assert [each.levelno for each in told] == [logging.ERROR] * 2
        assert "this chat runs as 'pg'" in told[0].getMessage()


async def test_it_does_not_fall_back_to_less_than_was_asked_for(without_log: NatsServer) -> None:
    with pytest.raises(ConfigError, match="durability is 'stored'"):
        await node(without_log, "a", cluster_name="stored", durability="stored").start()


@pytest.mark.parametrize("first, second", [("horde", "pg"), ("pg", "horde")])
async def test_a_node_of_another_strategy_is_refused(with_log: NatsServer, first: str, second: str) -> None:
    name = f"{first}-{second}"
    async with node(with_log, "a", cluster_strategy=first, cluster_name=name):
        with pytest.raises(ConfigError, match=f"has the cluster strategy '{first}', and this one, 'b', has '{second}'"):
            await node(with_log, "b", cluster_strategy=second, cluster_name=name).start()


async def test_the_permissions_of_the_documentation_are_enough_and_without_them_it_does_not_start(
    tmp_path: Path,
) -> None:
    with server("current", tmp_path, jetstream=True) as broker:

        def permit(*more: str) -> None:
            allowed = ", ".join(f'"{each}"' for each in ("cx.shop.>", *more))
            permissions = f'permissions: {{ publish: [{allowed}], subscribe: "cx.shop.>" }}'
            broker.configure(
                f"jetstream {{ store_dir: '{tmp_path}' }}",
                f"authorization {{ users: [ {{ user: {broker.user}, password: {broker.password}, {permissions} }} ] }}",
            )
            broker.stop()
            broker.start()

        permit()
        with pytest.raises(AdapterError, match="does not say whether it has a log"):
            await node(broker, "a", cluster_name="shop").start()
        permit("$JS.API.INFO", *(f"$JS.API.STREAM.{each}.CHATX_shop" for each in ("INFO", "CREATE", "MSG.GET")))
        async with node(broker, "a", cluster_name="shop") as chat:
            sent = await chat.send_message("general", "ann", "one", idempotency_key="one")
        async with node(broker, "a", cluster_name="shop") as chat:
            again = await chat.send_message("general", "ann", "one", idempotency_key="one")
            assert (again.id, again.duplicate) == (sent.id, True)
            assert await chat.history("general") == [sent]


class SilentLink:
    """A link to a broker that does not answer what it is asked itself."""

    boot = "silent"

    async def connect(self) -> None:
        pass

    def watch(self, *_: object) -> None:
        pass

    async def ask_broker(self, *_: object, **__: object) -> bytes:
        raise NoReply("No answer came in time.")


async def test_a_broker_that_does_not_answer_has_not_said_that_it_has_no_log() -> None:
    config = ChatConfig(cluster_strategy="horde", cluster_url="nats://in.memory:4222")
    ground = Ground(config, SilentLink(), Telemetry())  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match="does not say whether it has a log"):
        await ground.begin()


async def test_a_store_behind_the_log_gets_what_the_log_has(with_log: NatsServer, postgres: Postgres) -> None:
    store = postgres.new_database()
    async with node(with_log, "a", cluster_name="store", store=store) as chat:
        sent = [await chat.send_message("general", "ann", f"{number}") for number in range(5)]
    async with Chat(store=store, durability="stored") as alone:  # the store is whole, and goes on by itself
        assert await alone.history("general") == sent
        assert (await alone.send_message("general", "ann", "alone")).offset == 6
