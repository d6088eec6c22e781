"""`chatx` as a process of its own, for tests."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Python's own variables could hide that something is not written out.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("CHATX_") and name != "PYTHONUNBUFFERED"
}


@contextmanager
def interruptible() -> Iterator[None]:
    """Begin within it a child that heeds Ctrl+C and a hangup, also where the tests run in the background."""
    ignored = [each for each in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_IGN]
    for each in ignored:
        signal.signal(each, signal.SIG_DFL)
    try:
        yield
    finally:
        for each in ignored:
            signal.signal(each, signal.SIG_IGN)


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


def freeze(pid: int) -> None:
    """Have a process run no more until SIGCONT; returns when it does not, for which the signal does not wait."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 30
    while any(state not in "TZ" for state in _states(pid)):
        assert time.monotonic() < deadline, f"{pid} runs on"
        time.sleep(0.001)


def _states(pid: int) -> list[str]:
    """Return the states of the threads of a process, as /proc has them."""
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # it may have ended meanwhile
            found.append(thread.read_text().rpartition(")")[2].split()[0])
    return found


def free_port() -> int:
    """Return a port that nobody has now, and that the kernel gives to nobody until it is listened on."""
    while True:
        # Below those that the kernel draws for connections, which other tests open meanwhile; not by `random`, which
        # tests seed alike.
        port = 15_000 + secrets.randbelow(15_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Served:
    """A running command of `chatx` that serves a port on localhost."""

    def __init__(
        self,
        name: str,
        port: int,
        *arguments: str,
        command: Sequence[str] = (sys.executable, "-m", "chatx"),
        cwd: Path | None = None,
        **environment: str,
    ) -> None:
        self.port = port
        self.url = f"http://localhost:{port}"
        self._command = [*command, name, "--port", str(port), *arguments]
        self._cwd = cwd
        self._environment = ENVIRONMENT | environment
        self.process = self._started()

    def _started(self) -> subprocess.Popen[str]:
        with interruptible():
            return subprocess.Popen(
                self._command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self._cwd,
                env=self._environment,
                process_group=0,
            )

    def wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                with socket.create_connection(("localhost", self.port), timeout=5) as connection:
                    connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
                    connection.recv(12)  # where it speaks TLS, it only hangs up
                    return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"chatx does not answer: {self.stop()}") from None
                time.sleep(0.02)

    def stop(self, sent: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal, and return the exit status and what was printed."""
        self.process.send_signal(sent)
        return self.wait()

    def kill(self) -> None:
        """End it and the processes it has started, which hold its output too."""
        os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self) -> tuple[int, str]:
        """Wait until it ends, and return the exit status and what was printed."""
        try:
            output, _ = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()
            output, _ = self.process.communicate()
            raise AssertionError(f"chatx did not stop: {output}") from None
        return self.process.returncode, output

    def begin_again(self) -> None:
        """Start it again, with the same arguments; in the main thread, since only that may say which signals count."""
        self.process = self._started()

    def restart(self) -> None:
        """Start it again, and wait until it answers."""
        self.begin_again()
        self.wait_until_it_answers()


class Demo(Served):
    """A running `chatx demo`."""

    def __init__(self, store: Path, port: int, **options: Any) -> None:
        self.store = store
        super().__init__("demo", port, "--store", str(store), **options)


class Module(Served):
    """A module of Python that serves a port on localhost; `{port}` in its arguments stands for it."""

    def __init__(self, port: int, *arguments: str, cwd: Path, **environment: str) -> None:
        self.port = port
        self.url = f"http://localhost:{port}"
        self._command = [sys.executable, "-m", *(argument.format(port=port) for argument in arguments)]
        self._cwd = cwd
        self._environment = ENVIRONMENT | environment
        self.process = self._started()


@contextmanager
def demo(store: Path, **options: Any) -> Iterator[Demo]:
    """Run the demo on a free port; options as `Served`."""
    with _until_the_end(Demo(store, free_port(), **options)) as running:
        yield running


@contextmanager
def serve(*arguments: str, **options: Any) -> Iterator[Served]:
    """Run `chatx serve` on a free port; options and variables as `Served`."""
    with _until_the_end(Served("serve", free_port(), *arguments, **options)) as running:
        yield running


@contextmanager
def uvicorn(application: str, folder: Path, **environment: str) -> Iterator[Served]:
    """Run uvicorn in a folder, which has the application, on a free port; it is stopped gently."""
    command = (sys.executable, "-m", "uvicorn")
    with _until_the_end(Served(application, free_port(), command=command, cwd=folder, **environment)) as running:
        yield running
        running.stop()


@contextmanager
def module(*arguments: str, cwd: Path, **environment: str) -> Iterator[Module]:
    """Run a module of Python, such as a server of ASGI, on a free port."""
    with _until_the_end(Module(free_port(), *arguments, cwd=cwd, **environment)) as running:
        yield running


@contextmanager
def _until_the_end(running: Any) -> Iterator[Any]:
    try:
        running.wait_until_it_answers()
        yield running
    finally:
        if running.process.poll() is None:
            running.kill()
            running.process.wait()
        if running.process.stdout is not None:
            running.process.stdout.close()
