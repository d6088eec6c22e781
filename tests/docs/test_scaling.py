"""What the page on many nodes tells to do works, with the server's own workers and a real broker."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import tomllib
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import nkeys
import pytest
import trustme

from chatx import AdapterError, Chat, Message, RoomUnavailable
from tests.docs.markdown import ROOT, blocks
from tests.gateway.real_client import RealClient, real_client
from tests.nats import NatsServer, server
from tests.process import Served, module

PAGE = ROOT / "docs" / "scaling.md"
(APPLICATION,) = [block.code for block in blocks(PAGE, "python")]
WORKERS = re.compile(r"(g?u[nv]icorn app:app --workers \d.*)\n")

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
@pytest.mark.parametrize("program", ["uvicorn", "gunicorn"])
async def test_the_workers_of_a_server_are_one_chat(program: str, tmp_path: Path) -> None:
    shown = {match for block in blocks(PAGE, "bash") for match in WORKERS.findall(block.code)}
    commands = [re.sub(r"--workers \d", "--workers 2", each).split() for each in shown if each.startswith(program)]
    assert commands
    (tmp_path / "app.py").write_text(APPLICATION, encoding="utf-8")
    (tmp_path / "served.py").write_text(SAYS_WHERE, encoding="utf-8")
    listens = {"uvicorn": ("--port", "{port}"), "gunicorn": ("--bind", "localhost:{port}")}[program]
    arguments = (program, "served:app", *commands[0][2:], *listens)
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


class Production:
    """A server that runs the page's very configuration but for what is of this machine, and what nodes need for it."""

    def __init__(self, broker: NatsServer, folder: Path) -> None:
        seed = bytes(nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER))
        (folder / "node.nk").write_bytes(seed)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        for name, host in (("server", "127.0.0.1"), ("node", "node.example")):
            issued = authority.issue_cert(host)
            issued.private_key_pem.write_to_path(folder / f"{name}-key.pem")
            issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        (configuration,) = [block.code for block in blocks(PAGE, "text") if "listen:" in block.code]
        for pattern, here in (
            (r"listen: \S+\n", ""),  # which the test's server says itself
            ("/etc/nats/", f"{folder}/"),
            ("/var/lib/nats", f"{folder}/log"),
            (r"\bU[A-Z2-7]{55}\b", nkeys.from_seed(bytearray(seed)).public_key.decode()),
        ):
            configuration, times = re.subn(pattern, here, configuration)
            assert times
        broker.stop()
        broker.configure(configuration)
        broker.start()
        (table,) = [block.code for block in blocks(PAGE, "toml") if "cluster_ca" in block.code]
        table = table.replace("/etc/chatx/", f"{folder}/").replace("10.0.0.5:4222", f"127.0.0.1:{broker.port}")
        self.options: dict[str, Any] = tomllib.loads(table)["chatx"]


async def all_know_of_all(chats: list[Chat]) -> None:
    """Wait until nodes that have just come agree on whose a room is: a moment before that, a room may be on its way."""
    async with asyncio.timeout(20):
        for chat in chats:
            while True:
                with suppress(RoomUnavailable):
                    await chat.presence("general")
                    break
                await asyncio.sleep(0.01)


@pytest.fixture
def production(tmp_path: Path) -> Iterator[Production]:
    with server("current", tmp_path) as broker:
        yield Production(broker, tmp_path)


@pytest.mark.process
async def test_three_nodes_are_one_chat_with_the_production_configuration(production: Production) -> None:
    names = ("a", "b", "c")
    async with AsyncExitStack() as stack:
        chats = [Chat(node_name=name, **production.options) for name in names]
        await asyncio.gather(*(stack.enter_async_context(chat) for chat in chats))
        await all_know_of_all(chats)
        readers = [await stack.enter_async_context(chat.subscribe("general")) for chat in chats]
        for chat, name in zip(chats, names, strict=True):
            await chat.join("general", name)
            await chat.send_message("general", name, f"from {name}")
        async with asyncio.timeout(20):
            seen = [[await anext(reader) for _ in names] for reader in readers]
            for chat in chats:
                while {*await chat.presence("general")} != {*names}:  # noqa: ASYNC110  # told a round trip later
                    await asyncio.sleep(0.01)
        assert seen[0] == seen[1] == seen[2]
        assert [each.offset for each in seen[0] if isinstance(each, Message)] == [1, 2, 3]


@pytest.mark.process
async def test_others_do_not_come_into_production_and_are_told_why(production: Production) -> None:
    def but(*lacks: str, **other: str) -> Chat:
        options: dict[str, Any] = {name: each for name, each in production.options.items() if name not in lacks}
        return Chat(**{**options, **other})

    others = but("cluster_credentials"), but("cluster_cert", "cluster_key"), but(cluster_name="other")
    # At once, since each tries for as long as a broker may take to come back.
    nobody, no_certificate, other_name = await asyncio.gather(
        *(chat.start() for chat in others), return_exceptions=True
    )
    for refused in (nobody, no_certificate, other_name):
        assert isinstance(refused, AdapterError)
    assert "Authorization Violation" in str(nobody)
    assert "broker cannot be reached" in str(no_certificate)
    assert "its permissions for cx.other.>" in str(other_name)
    assert 'permissions violation for subscription to "cx.other' in str(other_name)


def people_of(client: RealClient) -> set[str]:
    """Return whom a client was told to be in the room."""
    told = [each.payload for each in client.received if each.event == "presence_state"]
    told += [each.payload["joins"] for each in client.received if each.event == "presence_diff"]
    return {name for each in told for name in each}
