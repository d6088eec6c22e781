"""The server that is measured, begun for it or not; and its figures, as `/metrics` tells them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from msgspec import Struct

from chatx.cli.load.target import Target
from chatx.cli.workers import keeper

STARTS_S: Final = 60.0
"""Seconds for the server to become ready."""

ENDS_S: Final = 30.0
"""Seconds for the server to end by itself."""

_SERIES: Final = {
    "process_cpu_seconds_total": "cpu_s",
    "process_resident_memory_bytes": "resident",
    "process_open_fds": "descriptors",
    "chatx_tasks": "tasks",
    "chatx_sockets": "sockets",
}


class Figures(Struct):
    """What the processes of a server hold and have used, together.

    Attributes:
        cpu_s: CPU, in seconds.
        resident: Memory, in bytes.
        descriptors: Open files.
        tasks: Tasks of their event loops.
        sockets: Open sockets.
    """

    cpu_s: float = 0.0
    resident: float = 0.0
    descriptors: float = 0.0
    tasks: float = 0.0
    sockets: float = 0.0


class NotServed(Exception):
    """The server does not start."""


class Measured(NamedTuple):
    """A server that is there to be measured.

    Attributes:
        target: It.
        ended: Done when it has ended by itself, with how.
    """

    target: Target
    ended: asyncio.Future[str]


async def figures_of(target: Target) -> Figures | None:
    """Return the figures of a server, or None where it tells none."""
    try:
        text = await asyncio.to_thread(_read, target)
    except (OSError, ValueError, HTTPException):
        return None
    found = Figures()
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        field = _SERIES.get(name.partition("{")[0])
        if field is not None:
            setattr(found, field, getattr(found, field) + float(value))
    return found if found.cpu_s else None


@asynccontextmanager
async def serving(options: list[str], variables: dict[str, str], *, stores: bool) -> AsyncIterator[Measured]:
    """Run `chatx serve` within the block. It ends with this process, however that ends.

    Args:
        options: Of the command.
        variables: Of the environment, in place of every `CHATX_*` that there is: a store of yours is not its.
        stores: Whether it has a store of its own, in a file that goes with it.

    Raises:
        NotServed: It does not become ready.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CHATX_")}
    held, kept = os.pipe()
    with TemporaryDirectory(prefix="chatx-bench-") as folder:
        said = Path(folder) / "said"
        command = [
            *(sys.executable, "-I", "-S", keeper.__file__, str(os.getpid()), str(held)),
            *(sys.executable, "-m", "chatx", "serve", "--host", "127.0.0.1", "--port", str(port)),
            *("--insecure-user-param", "--log-level", "warning", "--log-format", "human", *options),
            *(("--store", f"sqlite:///{folder}/chat.db") if stores else ()),
        ]
        process = _begun(command, said, held, environment | variables)
        target = Target("127.0.0.1", port)
        ending = asyncio.ensure_future(_end(process, said))
        try:
            await _until_ready(target, process, said)
            yield Measured(target, ending)
        finally:
            ending.cancel()
            process.terminate()
            try:
                await asyncio.to_thread(process.wait, ENDS_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(held)
            os.close(kept)


async def _until_ready(target: Target, process: subprocess.Popen[bytes], said: Path) -> None:
    url = target.figures_url.replace("/metrics", "/readyz")
    loop = asyncio.get_running_loop()
    ends = loop.time() + STARTS_S
    while loop.time() < ends and process.poll() is None:
        try:
            await asyncio.to_thread(_get, url, None)
        except (OSError, HTTPException):
            await asyncio.sleep(0.05)
        else:
            return
    raise NotServed(f"chatx serve does not become ready. It said: {_end_of(said)}")


async def _end(process: subprocess.Popen[bytes], said: Path) -> str:
    """Return how a server ended, when it has."""
    while (status := process.poll()) is None:  # noqa: ASYNC110 # no event tells, and a thread would outlive this
        await asyncio.sleep(0.1)
    how = f"status {status}" if status >= 0 else signal.Signals(-status).name
    return f"The server ended while it was measured, with {how}. It said: {_end_of(said)}"


def _begun(command: list[str], said: Path, held: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with said.open("wb") as out:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=(held,), process_group=0,
            env=environment, cwd=said.parent,
        )  # fmt: skip


def _end_of(said: Path) -> str:
    return said.read_text(errors="replace").strip()[-2000:] or "nothing."


def _read(target: Target) -> str:
    return _get(target.figures_url, target)


def _get(url: str, target: Target | None) -> str:
    # Clients go by no proxy, so neither does this, whatever the environment says.
    handlers = [
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=None if target is None else target.tls),
    ]
    with urllib.request.build_opener(*handlers).open(url, timeout=5) as answer:
        found: bytes = answer.read(4_194_304)
    return found.decode()
