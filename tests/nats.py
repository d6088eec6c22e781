"""NATS servers of the tests' own, on loopback, with random credentials, in a temporary folder; a proxy before one."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

from chatx.cluster.nats_options import NatsOptions
from tests.process import free_port, freeze

STARTS_WITHIN_S = 30.0

DEBIAN = Path("/usr/sbin/nats-server")


def program(which: str) -> Path:
    """Return where a server's program is: `debian` is Debian's 2.9, `current` the one of the wheel."""
    found = DEBIAN if which == "debian" else Path(sys.executable).parent / "nats-server"
    if not found.is_file():
        pytest.fail(f"{found} is not there; run tools/nats, or install the extra dev-test")
    return found


class NatsServer:
    """A server, which runs until it is stopped, and starts again on the same port.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        user: The only user's name.
        password: Its password.
    """

    def __init__(self, program: Path, folder: Path, *lines: str, user: NatsServer | None = None) -> None:
        self.port = free_port()
        self.user: str = user.user if user else "u" + secrets.token_hex(8)
        # One that begins as a number would have to be quoted.
        self.password: str = user.password if user else "p" + secrets.token_hex(16)
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._config = folder / "nats.conf"
        self._config.touch(mode=0o600)
        self.configure(f"authorization {{ user: {self.user}, password: {self.password} }}", *lines)
        self.start()

    def configure(self, *lines: str) -> None:
        """Say how it is to be run from the next start, or reload, on."""
        self._config.write_text("\n".join([f"listen: 127.0.0.1:{self.port}", *lines, ""]))

    def reload(self) -> None:
        """Have it read its configuration."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    @property
    def pid(self) -> int:
        """The id of its process, which runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """Its URL, without credentials."""
        return f"nats://127.0.0.1:{self.port}"

    def options(self, *servers: str) -> NatsOptions:
        """Return how to reach it, there or at these URLs."""
        return NatsOptions(servers=servers or (self.url,), user=self.user, password=self.password, cluster="test")

    def start(self) -> None:
        """Start it."""
        deadline = time.monotonic() + STARTS_WITHIN_S
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-c", self._config], stdout=log, stderr=log, cwd=self._folder, process_group=0
            )
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError("nats-server does not start: " + (self._folder / "log").read_text()[-4000:])
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it as its operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as the kernel would."""
        self._end(signal.SIGKILL)

    def forget(self) -> None:
        """Let go of the data of JetStream in its own folder, while it does not run."""
        shutil.rmtree(self._folder / "jetstream")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Have it not run within the block; connections are taken by the kernel still."""
        assert self._process is not None
        freeze(self._process.pid)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End it for good."""
        if self._process is not None:
            self.kill()

    def _end(self, sent: int) -> None:
        process = self._process
        assert process is not None
        process.send_signal(sent)
        process.wait(timeout=30)
        self._process = None


@contextmanager
def server(which: str, folder: Path, *, jetstream: bool = False) -> Iterator[NatsServer]:
    """Run a server in a folder of its own within this one, where JetStream is to be on its data too."""
    own = folder / f"nats-{which}-{secrets.token_hex(4)}"
    own.mkdir()
    running = NatsServer(program(which), own, *([f"jetstream {{ store_dir: '{own}' }}"] if jetstream else []))
    try:
        yield running
    finally:
        running.end()
        shutil.rmtree(own, ignore_errors=True)


class Proxy:
    """Carries bytes to a server, until it is told to swallow them.

    Attributes:
        swallows: Whether all bytes are lost, both ways, on connections that stay open.
        swallows_answers: Whether those of the server are.
        port: Where it listens.
    """

    def __init__(self, to: int) -> None:
        self.swallows = False
        self.swallows_answers = False
        self.port = 0
        self._to = to
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Its URL."""
        return f"nats://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listen within the block."""
        serving = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = serving.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            serving.close()
            self.cut()

    def cut(self) -> None:
        """End every connection."""
        for writer in list(self._open):
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, there}
        try:
            await asyncio.gather(self._pump(reader, there), self._pump(there_reader, writer))
        finally:
            for each in (writer, there):
                self._open.discard(each)
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers = writer.get_extra_info("peername")[1] != self._to
        with suppress(OSError):
            while some := await reader.read(65536):
                if not self.swallows and not (answers and self.swallows_answers):
                    writer.write(some)
                    await writer.drain()
        writer.transport.abort()


def no_such_server() -> str:
    """Return the URL of a port that nobody listens on."""
    return f"nats://127.0.0.1:{free_port()}"
