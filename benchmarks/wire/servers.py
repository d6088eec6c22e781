"""The programs of one measurement: a fresh server on one core, the load on another, and what the load saw."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TIMEOUT_S = 180

Seen = dict[str, Any]
"""What one phase of the load saw; see load.c."""


class Server:
    """A server that serves."""

    def __init__(self, process: subprocess.Popen[str], kind: str) -> None:
        self._process = process
        self.kind: str = kind
        self.port: int = self._read()["port"]

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait()

    def holds(self) -> Seen:
        """Ask it what it holds; only `native` answers."""
        self._process.send_signal(signal.SIGUSR1)
        return self._read()

    def _read(self) -> Seen:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"benchmarks: the server {self.kind} ended before it served; what it said is above.")
        told: Seen = json.loads(line)
        return told


class Bench:
    """Starts servers and loads.

    Args:
        folder: Where the C programs are compiled to.
    """

    def __init__(self, folder: Path) -> None:
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            sys.exit("benchmarks: there is one core; a server and its load need one each.")
        self._server_core, self._load_core = str(cores[0]), str(cores[1])
        self._folder = folder
        compiler = shutil.which("cc")
        if compiler is None:
            sys.exit("benchmarks: cc is missing, which the load and a reference are compiled with; install gcc.")
        for program in ("load", "room"):
            command = [compiler, "-O2", "-Wall", "-o", str(folder / program), str(HERE / f"{program}.c")]
            subprocess.run(command, check=True)

    @contextmanager
    def server(self, kind: str, *options: str) -> Iterator[Server]:
        """Run a fresh server: `each` and `joined` are the C program's, the others those of server.py."""
        if kind in ("each", "joined"):
            command = [str(self._folder / "room"), kind, self._server_core]
        else:
            command = [sys.executable, "-m", "benchmarks.wire.server", kind, "--cpu", self._server_core, *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            try:
                yield Server(process, kind)
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()

    def load(self, server: Server, *arguments: str) -> list[Seen]:
        """Run the load against a server; return what its phases saw, `connect` first."""
        command = self._load(server)
        done = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            sys.exit(f"benchmarks: the load on {server.kind} failed; what it said is above.")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def _load(self, server: Server) -> list[str]:
        command = [str(self._folder / "load"), "--cpu", self._load_core]
        command += ["--port", str(server.port), "--pid", str(server.pid)]
        return command if server.kind in ("native", "asgi") else [*command, "--plain"]

    def across_a_restart(self, missed: int, *arguments: str, store: str) -> Seen:
        """Run the load against a server that is killed while its clients are away; return what their resume saw."""
        options = ("--store", store, "--stored")
        with ExitStack() as stack:
            server = stack.enter_context(self.server("native", *options))
            command = [*self._load(server), *arguments, f"restart:{missed}"]
            load = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert load.stdin is not None
            assert load.stdout is not None
            told = [load.stdout.readline() for _ in ("connect", "restart")]
            if all(told):
                server.kill()
                server = stack.enter_context(self.server("native", *options, "--port", str(server.port)))
                told.append(load.communicate(f"{server.pid}\n", timeout=TIMEOUT_S)[0])
            if load.wait(TIMEOUT_S):
                sys.exit("benchmarks: the load on a server that is restarted failed; what it said is above.")
        seen: Seen = json.loads(told[-1])
        return seen

    def run(self, kind: str, *arguments: str) -> list[Seen]:
        """Run the load against a fresh server."""
        with self.server(kind) as server:
            return self.load(server, *arguments)
