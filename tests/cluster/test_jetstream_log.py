"""The log in JetStream against real servers: its contract, and what it answers while a server fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chatx.cluster.jetstream import JetStream
from chatx.cluster.jetstream_log import JetStreamLog
from chatx.cluster.nats import NatsBackplane
from chatx.testing import check_room_log
from tests.nats import NatsServer, server

pytestmark = pytest.mark.process

BOOT = "0193a5c0b7d47c0e"


@pytest.fixture(params=["debian", "current"])
def nats(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NatsServer]:
    """A server with JetStream."""
    with server(request.param, tmp_path, jetstream=True) as running:
        yield running


@pytest.fixture
async def log(nats: NatsServer) -> AsyncIterator[JetStreamLog]:
    link = NatsBackplane(BOOT, nats.options())
    await link.connect()
    stream = JetStream(link, "test")
    await stream.ensure()
    yield JetStreamLog(stream)
    await link.close()


async def test_the_log_keeps_the_contract(log: JetStreamLog) -> None:
    await check_room_log(lambda: log)
