"""Signals that a command of `chatx` gets: a hangup, an interrupt while it loads, one that it was begun without."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import trustme
from websockets.asyncio.client import connect

from chatx.adapters.sqlite import SQLitePersistence
from tests.cli.test_serve import ask, entries, no_longer_ready
from tests.gateway.real_client import RealClient, real_client, until
from tests.process import ENVIRONMENT, Served, demo, free_port, serve


def shown(port: int, authority: Path) -> str:
    """Return the serial number of the certificate that a new connection is shown."""
    trusted = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection(("localhost", port), timeout=20) as connection,
        trusted.wrap_socket(connection, server_hostname="localhost") as encrypted,
    ):
        return str((encrypted.getpeercert() or {})["serialNumber"])


async def logged(server: Served, text: str) -> None:
    """Wait until the server has logged this."""
    assert server.process.stdout is not None
    while text not in (line := await asyncio.to_thread(server.process.stdout.readline)):
        assert line, "it ended"


@pytest.mark.process
async def test_a_hangup_reads_the_certificate_anew_for_new_connections_and_keeps_it_where_it_cannot(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    chain, key = certificate
    authority = tmp_path / "authority.pem"
    shutil.copy(chain, authority)
    renewed = trustme.CA()
    issued = renewed.issue_cert("localhost")
    trusted = ssl.create_default_context(cafile=str(authority))
    with serve("--insecure-user-param", "--tls-cert", str(chain), "--tls-key", str(key)) as server:
        url = f"wss://localhost:{server.port}/socket/websocket?vsn=2.0.0&user_id=ada"
        origin = f"https://localhost:{server.port}"
        async with connect(url, ssl=trusted, origin=origin) as connection:  # type: ignore[arg-type]
            client = RealClient(connection)
            await client.ask("room:a", "phx_join")
            first = await asyncio.to_thread(shown, server.port, authority)

            # A pair that does not fit, no certificate at all, no file: the one before stays.
            issued.private_key_pem.write_to_path(str(key))
            server.process.send_signal(signal.SIGHUP)
            await logged(server, "the one before stays")
            assert await asyncio.to_thread(shown, server.port, authority) == first
            chain.write_text("none")
            server.process.send_signal(signal.SIGHUP)
            await logged(server, "the one before stays")
            chain.unlink()
            server.process.send_signal(signal.SIGHUP)
            await logged(server, f"--tls-cert {chain} cannot be read")
            assert await asyncio.to_thread(shown, server.port, authority) == first

            for pem in issued.cert_chain_pems:
                pem.write_to_path(str(chain), append=True)
            server.process.send_signal(signal.SIGHUP)
            await logged(server, "was read anew")
            renewed.cert_pem.write_to_path(str(authority))
            assert await asyncio.to_thread(shown, server.port, authority) != first
            # Who was there before stays.
            await client.ask("room:a", "new_message", {"content": "still here"})
        server.process.send_signal(signal.SIGTERM)
        assert (await asyncio.to_thread(server.wait))[0] == 0


@pytest.mark.process
async def test_a_hangup_where_there_is_nothing_to_read_anew_drains_it_and_another_is_no_hurry() -> None:
    with serve("--insecure-user-param", CHATX_DRAIN_TIMEOUT_MS="3000") as server:
        async with real_client(server.port, "ada", close_timeout=0.1) as ada:
            await ada.ask("room:a", "phx_join")
            ada.connection.transport.pause_reading()  # it does not answer the close
            server.process.send_signal(signal.SIGHUP)
            await no_longer_ready(server)
            status, output = await asyncio.to_thread(server.stop, signal.SIGHUP)

    assert status == 0
    assert entries(output)[-1]["message"] == "Stopped."


async def takes_nothing_new(client: RealClient) -> bool:
    """Return whether the server has begun to stop."""
    ref = await client.push("room:a", "history")
    reply = await client.wait_for(lambda each: each.event == "phx_reply" and each.ref == ref)
    return bool(reply.payload["response"].get("code") == "closed")


@pytest.mark.process
@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
async def test_the_demo_saves_what_was_under_way_whatever_stops_it(how: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "demo.db"
    with demo(path) as server:
        async with real_client(server.port, "ada") as ada:
            await ada.ask("room:a", "phx_join")
            await ada.ask("room:a", "new_message", {"content": "message 0"})  # the room's stream has begun
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                await until(lambda: bool(other.execute("SELECT 1 FROM chatx_entries").fetchone()))
                # Nothing can be saved while somebody else writes.
                other.execute("BEGIN IMMEDIATE")
                for number in range(1, 6):
                    await ada.ask("room:a", "new_message", {"content": f"message {number}"})
                server.process.send_signal(how)
                while not await takes_nothing_new(ada):
                    pass
                assert other.execute("SELECT count(*) FROM chatx_entries").fetchone() == (1,)
                other.execute("COMMIT")
        status, printed = await asyncio.to_thread(server.wait)

    assert (status, printed.count("\n")) == (0, 1)
    with closing(SQLitePersistence(path)) as store:
        messages = store.load_messages("a", limit=100)
        assert [each.content for each in messages] == [f"message {number}" for number in range(6)]
        # It ended in order, so the stream goes on.
        assert store.last_position("a") == (messages[-1].epoch, 6)


IGNORING = """
import os, signal, sys
signal.signal(getattr(signal, sys.argv[1]), signal.SIG_IGN)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.process
@pytest.mark.parametrize("ignored", ["SIGINT", "SIGHUP"])
@pytest.mark.parametrize("name", ["serve", "demo"])
def test_a_signal_that_it_was_begun_without_is_not_heeded(name: str, ignored: str, tmp_path: Path) -> None:
    command = (sys.executable, "-c", IGNORING, ignored, sys.executable, "-m", "chatx")
    options = ["--insecure-user-param"] if name == "serve" else ["--store", str(tmp_path / "chat.db")]
    server = Served(name, free_port(), *options, command=command)
    server.wait_until_it_answers()
    server.process.send_signal(getattr(signal, ignored))
    assert ask(server, "/live.js" if name == "demo" else "/readyz")[0] == 200
    status, output = server.stop(signal.SIGTERM)
    assert server.process.stdout is not None
    server.process.stdout.close()
    assert status == 0
    assert ignored not in output


INTERRUPTED = """
import runpy, signal, sys

class Counts:
    left = None
    def find_spec(self, name, path=None, target=None):
        # Python itself has begun, and what is loaded is ours to answer for.
        if name == "chatx.cli" and self.left is None:
            self.left = int(sys.argv.pop(1))
        if self.left is not None:
            self.left -= 1
            if self.left == -1:
                signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Counts())
if sys.argv[2] == "script":
    del sys.argv[2]
    from chatx.cli import main
    sys.exit(main())
del sys.argv[2]
runpy.run_module("chatx", run_name="__main__", alter_sys=True)
"""


@pytest.mark.process
@pytest.mark.parametrize("modules", [0, 1, 5, 25, 100, 200])
@pytest.mark.parametrize("how", ["module", "script"])
@pytest.mark.parametrize("command", ["serve", "demo"])
def test_an_interrupt_at_any_moment_of_its_loading_is_a_quiet_end(
    command: str, how: str, modules: int, tmp_path: Path
) -> None:
    if how == "script" and modules == 0:
        return  # the script's own first line
    program = [sys.executable, "-c", INTERRUPTED, str(modules), how, command]
    options = ["--insecure-user-param"] if command == "serve" else ["--store", "chat.db"]
    ended = subprocess.run(
        [*program, "--port", str(free_port()), *options],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=ENVIRONMENT,
        cwd=tmp_path,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.process
@pytest.mark.parametrize("library", ["_asyncio", "msgspec", "uvloop"])
@pytest.mark.parametrize("command", ["serve", "demo"])
def test_an_interrupt_from_outside_while_it_loads_is_a_quiet_end(command: str, library: str, tmp_path: Path) -> None:
    options = ["--insecure-user-param"] if command == "serve" else ["--store", str(tmp_path / "chat.db")]
    server = Served(command, free_port(), *options)
    loaded = Path(f"/proc/{server.process.pid}/maps")
    while library not in loaded.read_text():
        assert server.process.poll() is None
    status, printed = server.stop(signal.SIGINT)
    assert server.process.stdout is not None
    server.process.stdout.close()

    assert "Traceback" not in printed
    # 0 where it had come so far as to serve.
    assert status in (0, 130)


@pytest.mark.process
@pytest.mark.parametrize("command", ["serve", "demo", "token"])
def test_an_interrupt_while_it_loads_is_a_quiet_end(command: str, tmp_path: Path) -> None:
    # The package is there; what the command needs beside it is being loaded.
    program = f"""
import signal, sys
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("chatx.gateway", "uvicorn", "chatx.cli.token")):
            signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
from chatx.cli import main
sys.meta_path.insert(0, Slow())
sys.exit(main([{command!r}, *{["ada"] if command == "token" else []}]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False, env=ENVIRONMENT
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
