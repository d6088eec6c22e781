"""What the page on many nodes tells to do works, with the server's own workers and a real broker."""

from __future__ import annotations

import os
import re
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, blocks
from tests.gateway.real_client import RealClient, real_client
from tests.nats import server
from tests.process import Served, module

PAGE = ROOT / "docs" / "scaling.md"
(APPLICATION,) = [block.code for block in blocks(PAGE, "python")]
WORKERS = re.compile(r"uvicorn (app:app --workers \d)\n")

# Beside what the page has: it says which worker has whom.
SAYS_WHERE = """
import os

from app import app as application


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        print(f"{scope['query_string'].decode().partition('user_id=')[2]} is on {os.getpid()}", flush=True)
    await application(scope, receive, send)
"""


def read_until(running: Served, pattern: str, printed: list[str], times: int = 1) -> list[str]:
    """Return what a pattern finds in the output, when it is found so often; all lines are kept."""
    assert running.process.stdout is not None
    while len(found := re.findall(pattern, "".join(printed))) < times:
        line = running.process.stdout.readline()
        assert line, "".join(printed)
        printed.append(line)
    return found


@pytest.mark.process
async def test_the_workers_of_uvicorn_are_one_chat(tmp_path: Path) -> None:
    (command,) = {match for block in blocks(PAGE, "bash") for match in WORKERS.findall(block.code)}
    (tmp_path / "app.py").write_text(APPLICATION, encoding="utf-8")
    (tmp_path / "served.py").write_text(SAYS_WHERE, encoding="utf-8")
    arguments = ("uvicorn", *command.replace("app:", "served:", 1).split(), "--port", "{port}")
    printed: list[str] = []
    async with AsyncExitStack() as stack:
        broker = stack.enter_context(server("current", tmp_path))
        running = stack.enter_context(
            module(
                *arguments,
                cwd=tmp_path,
                CHATX_CLUSTER_STRATEGY="pg",
                CHATX_CLUSTER_URL=f"nats://{broker.user}:{broker.password}@127.0.0.1:{broker.port}",
            )
        )
        read_until(running, "Application startup complete", printed, times=2)

        ada = await stack.enter_async_context(real_client(running.port, "ada"))
        (first,) = read_until(running, r"ada is on (\d+)", printed)
        # Whom the kernel gives a connection to is its own business: the one that stands still takes none.
        os.kill(int(first), signal.SIGSTOP)
        try:
            bob = await stack.enter_async_context(real_client(running.port, "bob"))
        finally:
            os.kill(int(first), signal.SIGCONT)
        (second,) = read_until(running, r"bob is on (\d+)", printed)
        assert first != second

        for client in (ada, bob):
            await client.ask("room:general", "phx_join", {})
        for number in range(5):
            for client, name in ((ada, "ada"), (bob, "bob")):
                await client.push("room:general", "new_message", {"content": f"{name} {number}"})
        seen = [await client.wait_for_messages(10) for client in (ada, bob)]
        assert [each["offset"] for each in seen[0]] == list(range(1, 11))
        assert seen[0] == seen[1]
        for client in (ada, bob):
            # Who is in is told a round trip later.
            await client.wait_for(lambda _, client=client: people_of(client) == {"ada", "bob"})
        _, rest = running.stop()
    assert "one of several workers" not in "".join(printed) + rest


def people_of(client: RealClient) -> set[str]:
    """Return whom a client was told to be in the room."""
    told = [each.payload for each in client.received if each.event == "presence_state"]
    told += [each.payload["joins"] for each in client.received if each.event == "presence_diff"]
    return {name for each in told for name in each}
