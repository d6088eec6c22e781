"""`chatx serve --workers` as processes: what they log, who they are, and clients on each of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tests.gateway.real_client import RealClient, real_client
from tests.process import Served, free_port, freeze

WITHIN_S = 45.0


class Supervised(Served):
    """A supervisor with two workers, whose log is kept as it comes."""

    def __init__(self, folder: Path, *arguments: str, port: int | None = None, **environment: str) -> None:
        self.logged: list[str] = []
        self.folder = folder
        arguments = ("--workers", "2", "--insecure-user-param", *arguments)
        super().__init__("serve", port or free_port(), *arguments, cwd=folder, **environment)
        self._reading = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reading.start()

    def _read(self, lines: Any) -> None:
        self.logged.extend(iter(lines.readline, ""))  # each as it comes

    def said(self, text: str) -> list[dict[str, Any]]:
        """Return the entries of the log with this in their message."""
        entries = [json.loads(line) for line in list(self.logged)]
        return [each for each in entries if text in each["message"]]

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until this was logged so often."""
        until(lambda: len(self.said(text)) >= times or self._ended(text))

    def _ended(self, text: str) -> bool:
        if self.process.poll() is not None and not self._reading.is_alive():
            raise AssertionError(f"it ended without {text!r}: {''.join(self.logged)}")
        return False

    def ends(self) -> int:
        """Return the exit status, when it and all that writes to its log has ended."""
        status = self.process.wait(timeout=WITHIN_S)
        self._reading.join(timeout=WITHIN_S)
        assert not self._reading.is_alive(), "something of it still runs"
        return status

    def children(self) -> dict[str, int]:
        """Return the process of each worker by its number, and that of the broker."""
        found = {}
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            name = words[-2].rpartition("-")[2] if "chatx.cli.workers.worker" in words else "broker"
            found[name] = int(pid)
        return found

    @asynccontextmanager
    async def client_on(self, number: str, user: str) -> AsyncIterator[RealClient]:
        """Connect to one of the workers: those that stand still take nobody."""
        others = [pid for name, pid in self.children().items() if name not in (number, "broker")]
        for pid in others:
            freeze(pid)
        try:
            connecting = real_client(self.port, user)
            client = await connecting.__aenter__()
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)
        try:
            yield client
        finally:
            await connecting.__aexit__(None, None, None)


@contextmanager
def supervised(
    folder: Path, *arguments: str, early: signal.Signals | None = None, **options: Any
) -> Iterator[Supervised]:
    """Run two workers within the block, and leave nothing of them; `early` is sent while they load."""
    running = Supervised(folder, *arguments, **options)
    try:
        if early is not None:
            running.wait_for("Listening on")
            until(lambda: len(running.children()) == 3)
            running.process.send_signal(early)
        running.wait_for("All 2 workers serve.")
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.ends()
        assert running.process.stdout is not None
        running.process.stdout.close()


def until(condition: Any) -> None:
    """Wait for what nothing tells of."""
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Return whether a process runs, not only waits for somebody to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def chats(server: Supervised, room: str, content: str) -> None:
    """Send from one worker's client to the other's, both ways."""
    async with server.client_on("1", "ada") as ada, server.client_on("2", "bob") as bob:
        for client in (ada, bob):
            await client.ask(f"room:{room}", "phx_join")
        await ada.ask(f"room:{room}", "new_message", {"content": f"{content} from ada"})
        await bob.ask(f"room:{room}", "new_message", {"content": f"{content} from bob"})
        seen = await asyncio.gather(*(client.wait_for_messages(2) for client in (ada, bob)))
    assert seen[0] == seen[1]
    assert [each["content"] for each in seen[0]] == [f"{content} from ada", f"{content} from bob"]
