"""`chatx` as a process of its own, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Python's own variables could hide that something is not written out.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("CHATX_") and name != "PYTHONUNBUFFERED"
}


def run(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "chatx", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=cwd,
        env=ENVIRONMENT | environment,
    )


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Demo:
    """A running `chatx demo` on localhost."""

    def __init__(self, store: Path, port: int) -> None:
        self.store = store
        self.port = port
        self.url = f"http://localhost:{port}"
        self.process = self._started()

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "chatx", "demo", "--port", str(self.port), "--store", str(self.store)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ENVIRONMENT,
        )

    def wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection(("localhost", self.port), timeout=5) as connection:
                    connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
                    if connection.recv(12).startswith(b"HTTP/1.1 "):
                        return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"chatx demo does not answer: {self.stop()}") from None
                time.sleep(0.02)

    def stop(self, signal: int = 15) -> tuple[int, str]:
        """Send a signal, and return the exit status and what was printed."""
        self.process.send_signal(signal)
        try:
            output, _ = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            output, _ = self.process.communicate()
            raise AssertionError(f"chatx demo did not stop: {output}") from None
        return self.process.returncode, output

    def restart(self) -> None:
        """Start it again, on the same port and store."""
        self.process = self._started()
        self.wait_until_it_answers()


@contextmanager
def demo(store: Path) -> Iterator[Demo]:
    """Run the demo on a free port."""
    running = Demo(store, free_port())
    try:
        running.wait_until_it_answers()
        yield running
    finally:
        if running.process.poll() is None:
            running.stop(9)
        if running.process.stdout is not None:
            running.process.stdout.close()
