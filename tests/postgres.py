"""A PostgreSQL of the tests' own: a cluster in a temporary folder, ended with the tests; never the machine's."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.process import free_port, freeze

# Loaded machines take long to write a new cluster.
STARTS_WITHIN_S = 60.0

_DATABASES = count(1)


def _program(name: str) -> str:
    """Return where a program of PostgreSQL is: the newest that Debian has installed, or the one on the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda each: float(each.parts[4]))
    program = str(found[-1]) if found else shutil.which(name)
    if program is None:
        pytest.fail(f"PostgreSQL's {name} is not installed; run tools/postgresql")
    return program


def _unprivileged() -> str:
    """Return the user to run it as, since PostgreSQL does not run as root."""
    if os.geteuid():
        return getpass.getuser()
    with suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    return "nobody"


class Postgres:
    """A cluster, which runs until it is stopped.

    Attributes:
        port: Where it listens, on 127.0.0.1; its socket is in its folder.
        programs: The folder of its programs.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.programs = Path(_program("psql")).parent
        self._folder = folder
        self._data = folder / "data"
        user = pwd.getpwnam(_unprivileged())
        self._as: dict[str, Any] = (
            {} if os.geteuid() else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        )
        os.chown(folder, user.pw_uid, user.pw_gid)
        make = [_program("initdb"), "-D", str(self._data), "-U", "chatx", "-A", "trust", "-E", "UTF8", "--no-sync"]
        made = subprocess.run(
            [*make, "--locale=C.UTF-8"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=folder,
            **self._as,
        )
        assert made.returncode == 0, made.stderr
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database of it, by its socket in the folder."""
        return f"postgresql://chatx@/{database}?host={self._folder}&port={self.port}"

    def new_database(self) -> str:
        """Make an empty database, and return its URL."""
        name = f"test_{next(_DATABASES)}"
        self.psql(f"CREATE DATABASE {name}")
        return self.url(name)

    def psql(self, statement: str, database: str = "postgres") -> str:
        """Execute a statement on a connection of its own, and return what it answers, without a heading."""
        ran = subprocess.run(
            [_program("psql"), "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement, self.url(database)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    def start(self, *options: str) -> None:
        """Start it, also behind one that was killed and whose processes are going still."""
        deadline = time.monotonic() + STARTS_WITHIN_S
        with (self._folder / "log").open("ab") as log:
            while True:
                if self._process is None or self._process.poll() is not None:
                    self._process = subprocess.Popen(
                        [
                            *(_program("postgres"), "-D", str(self._data), "-k", str(self._folder)),
                            *("-h", "127.0.0.1", "-p", str(self.port), "-c", "fsync=on", *options),
                        ],
                        stdout=log,
                        stderr=log,
                        cwd=self._folder,
                        process_group=0,
                        **self._as,
                    )
                ready = [_program("pg_isready"), "-q", "-h", str(self._folder), "-p", str(self.port)]
                if subprocess.run(ready, check=False, timeout=30).returncode == 0 and self._process.poll() is None:
                    return
                if time.monotonic() > deadline:
                    raise AssertionError("PostgreSQL does not start: " + self.log()[-4000:])
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop it as its operator would who does not wait for its clients."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it as the kernel would: all its processes, with whatever they had in memory."""
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._end(signal.SIGKILL)

    def kill_postmaster(self) -> None:
        """End its first process only; the others see that and go by themselves."""
        self._end(signal.SIGKILL)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Have none of its processes run within the block; connections are taken by the kernel still."""
        pids = self._pids()
        for pid in pids:
            freeze(pid)
        try:
            yield
        finally:
            for pid in reversed(pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def cut_connections(self) -> int:
        """End all connections of clients, and return how many there were."""
        return int(
            self.psql(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        )

    def log(self) -> str:
        """Return what it has logged."""
        return (self._folder / "log").read_text(errors="replace")

    def end(self) -> None:
        """End it for good."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _pids(self) -> list[int]:
        """Return its processes, the first one first, so that it can begin no other while they are gone through."""
        assert self._process is not None
        first = self._process.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    def _end(self, sent: int) -> None:
        process = self._process
        assert process is not None
        process.send_signal(sent)
        process.wait(timeout=60)
        self._process = None


@contextmanager
def cluster(within: str | None = None) -> Iterator[Postgres]:
    """Make a cluster and run it, in a folder of its own within this one."""
    # Not in pytest's folder, which only the user who runs the tests may enter; and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="chatx-pg-", dir=within))
    try:
        running = Postgres(folder)
        try:
            yield running
        finally:
            running.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
