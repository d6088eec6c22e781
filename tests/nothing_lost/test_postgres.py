"""Real processes over a PostgreSQL that stops, dies, freezes or cuts them off, and that are killed themselves.

Eight kills of the chat; TEST_KILLS=n for more.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from chatx.adapters.postgres_log import PostgresLog
from chatx.core.message import Entry
from tests.nothing_lost.test_processes import LULL, LULLS, SEED, goes_on_where_it_was_proven_again, killed
from tests.nothing_lost.watching import Watch
from tests.nothing_lost.world import ROOMS
from tests.postgres import Postgres

KILLS = int(os.environ.get("TEST_KILLS") or 8)

pytestmark = [pytest.mark.process, pytest.mark.timeout(300 + 10 * KILLS)]


@pytest.fixture
def watch(postgres: Postgres) -> Iterator[Watch]:
    """The processes of one database."""
    watched = Watch(postgres.new_database(), SEED)
    yield watched
    watched.close()


def entries(url: str) -> dict[str, list[Entry]]:
    """Return what the database has of each room, in order."""

    async def read() -> dict[str, list[Entry]]:
        log = PostgresLog(url)
        try:
            return {room_id: list((await log.read(room_id, limit=1_000_000)).entries) for room_id in ROOMS}
        finally:
            await log.close()

    return asyncio.run(read())


def stopped_and_started(postgres: Postgres, watch: Watch) -> None:
    postgres.stop()
    refused(watch)
    postgres.start()


def killed_whole(postgres: Postgres, watch: Watch) -> None:
    postgres.kill()
    refused(watch)
    postgres.start()


def cut_again_and_again(postgres: Postgres, watch: Watch) -> None:
    for _ in range(10):
        postgres.cut_connections()
        watch.wait_sent(1)


def frozen(postgres: Postgres, watch: Watch) -> None:
    with postgres.frozen():
        time.sleep(10)


def frozen_while_the_chat_is_killed(postgres: Postgres, watch: Watch) -> None:
    """What the killed chat had asked for is done when the server goes on, beside the next chat."""
    with postgres.frozen():
        watch.kill()
        watch.start()
        watch.wait("began")
        time.sleep(2)


def refused(watch: Watch) -> None:
    """Wait until some have been refused."""
    enough = watch.refused.total() + 16
    watch.wait_until(lambda: watch.refused.total() >= enough)


@pytest.mark.parametrize(
    "fault", [stopped_and_started, killed_whole, cut_again_and_again, frozen, frozen_while_the_chat_is_killed]
)
def test_nothing_is_lost_while_the_server_is(
    postgres: Postgres, watch: Watch, fault: Callable[[Postgres, Watch], None]
) -> None:
    watch.start()
    watch.wait_sent(100)
    fault(postgres, watch)
    watch.wait_sent(100)
    watch.kill()
    watch.start()
    watch.wait_sent(50)
    watch.finish()
    watch.check_store(entries(watch.store))


def test_nothing_is_lost_when_the_chat_is_killed_at_any_moment(watch: Watch) -> None:
    killed(watch, KILLS)
    watch.start()
    watch.wait_sent(100)
    watch.finish()
    watch.check_store(entries(watch.store))


def test_a_head_that_was_proven_again_goes_on_after_a_kill_and_one_that_was_not_does_not(postgres: Postgres) -> None:
    with closing(Watch(postgres.new_database(), SEED, **LULL)) as watch:
        killed(watch, LULLS, "withdrawn")
        watch.start()
        watch.finish()
        goes_on_where_it_was_proven_again(watch, entries(watch.store))
