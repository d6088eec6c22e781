"""The load of the benchmarks: a figure counts only where every delivery came, once and in order, so it must notice."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from benchmarks.goals import Goal, table
from benchmarks.wire.goals import GOALS
from benchmarks.wire.servers import HERE
from chatx.chat import Chat
from chatx.core.rate_limit import RateLimit
from tests.gateway.servers import named, native

SOME_MESSAGES = ("--clients", "20", "--senders", "4")
EIGHT = "pace:40:0.2"


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    assert compiler is not None, "the load is compiled with cc: install gcc"
    program = tmp_path_factory.mktemp("load") / "load"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, HERE / "load.c"], check=True)
    return program


async def seen_by(load: Path, port: int, *arguments: str) -> list[dict[str, Any]]:
    """Run the load against this process; return what its phases saw."""
    command = (str(load), "--port", str(port), "--pid", str(os.getpid()), *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    told, _ = await process.communicate()
    assert process.returncode == 0
    return [json.loads(line) for line in told.splitlines()]


@asynccontextmanager
async def room(order: Callable[[list[str]], list[str]]) -> AsyncIterator[int]:
    """Send what comes to everybody, four messages at a time; to the second client in the order given here."""
    clients: list[ServerConnection] = []
    held: list[str] = []

    async def handler(client: ServerConnection) -> None:
        clients.append(client)
        async for message in client:
            held.append(str(message))
            if len(held) == 4:
                four = held.copy()
                held.clear()
                for each in clients:
                    for text in order(four) if each is clients[1] else four:
                        await each.send(text)

    async with serve(handler, "127.0.0.1", 0, compression=None) as server:
        yield next(iter(server.sockets)).getsockname()[1]


@pytest.mark.process
@pytest.mark.parametrize(
    "order, incomplete, disordered",
    [
        (lambda four: four, False, 0),
        (lambda four: [four[1], four[0], *four[2:]], False, 1),
        (lambda four: [four[0], four[0], *four[2:]], False, 1),
        (lambda four: [*four, four[3]], True, 1),
    ],
    ids=["as sent", "swapped", "another's", "twice"],
)
async def test_the_load_sees_who_missed_something_or_saw_another_order(
    load: Path, order: Callable[[list[str]], list[str]], incomplete: bool, disordered: int
) -> None:
    async with room(order) as port:
        _, messages = await seen_by(load, port, *SOME_MESSAGES, "--plain", EIGHT)
    assert messages["messages"] == 8
    assert (messages["incomplete"] > 0) is incomplete
    if incomplete:
        # As many deliveries as there should be have come before the last client's, so that one may be told of as well.
        assert messages["disordered"] in (disordered, disordered + 1)
    else:
        assert messages["disordered"] == disordered


@pytest.mark.process
async def test_the_load_joins_sends_and_resumes_as_a_client_of_phoenix_does(load: Path) -> None:
    chat = Chat(rate_limit=RateLimit(messages_per_sec=1e6, burst=10**6))
    async with chat, native(chat, named) as (_, port):
        connect, messages = await seen_by(load, port, *SOME_MESSAGES, "saturate:4:0.2")
        assert connect["clients"] == 20
        assert messages["deliveries"] == 20 * messages["messages"] > 0
        assert (messages["incomplete"], messages["disordered"], messages["lost"]) == (0, 0, 0)

        _, resume = await seen_by(load, port, "--clients", "20", "--rooms", "4", "--senders", "4", "resume:3")
        assert (resume["resumed"], resume["unrecovered"], resume["incomplete"], resume["disordered"]) == (16, 0, 0, 0)


def test_a_goal_is_met_on_the_right_side_of_its_bound() -> None:
    figures = {"ours": 3.0, "theirs": 2.0}
    least = Goal("rate", "ours", "theirs", 1.5, "{:.1f}", least=True)
    most = Goal("time", "ours", "theirs", 1.4, "{:.1f}")
    alone = Goal("memory", "ours", None, 2.9, "{:.1f} KiB", scale=0.5)
    assert least.row(figures) == "| rate | 3.0 | 2.0 | 1.50× | ≥ 1.5× | yes |"
    assert most.row(figures) == "| time | 3.0 | 2.0 | 1.50× | ≤ 1.4× | no |"
    assert alone.row(figures) == "| memory | 1.5 KiB | – | – | ≤ 2.9 KiB | yes |"


def test_the_table_has_the_goals_that_were_measured_and_no_others() -> None:
    rows = table(GOALS, {"paced native user_us": 0.5}).strip().splitlines()
    assert len(rows) == 3
    assert rows[2].startswith(f"| {next(goal for goal in GOALS if goal.needs == 'paced native user_us').name} |")
