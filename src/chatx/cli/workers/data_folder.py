"""The folder of a supervisor: how its broker is reached, which `chatx cluster --data` reads, and what that keeps.

lock            held while a supervisor, or its broker, runs
cluster.toml    the options by which nodes reach the broker, with its password; mode 0600
nats.conf       the broker's configuration, with its password; mode 0600
jetstream/      what the broker keeps
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

DEFAULT: Final = "chatx-data"
"""The folder where none is named, in the current one."""

OPTIONS: Final = "cluster.toml"
"""The file with the options by which nodes reach the broker."""

FREE_WITHIN_S: Final = 5.0
"""Seconds for whoever had the folder to end."""


class CannotUse(Exception):
    """The folder cannot be used; the message says why, and what to do."""


class DataFolder:
    """A folder that this process has to itself until it ends.

    Args:
        path: Where it is; it is made where it is not there.

    Attributes:
        path: Where it is.
        lock: The descriptor that holds it. Whoever inherits it holds it too.
        port: Where the broker listens, on 127.0.0.1.
        user: The broker's only user.
        password: That user's password.

    Raises:
        CannotUse: Another supervisor has it, it cannot be written to, or what is in it is not of this.
    """

    def __init__(self, path: Path) -> None:
        self.path: Path = path.absolute()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock: int = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CannotUse(
                f"--data {path}: {error.strerror}; give a folder that this process may write to."
            ) from error
        try:
            self._take()
            # A password that begins as a number would have to be quoted.
            port, user, password = self._kept() or (_free_port(), "chatx", "p" + secrets.token_hex(24))
        except BaseException:
            os.close(self.lock)
            raise
        self.port: int = port
        self.user: str = user
        self.password: str = password

    @property
    def url(self) -> str:
        """Where nodes reach the broker, with its user and password."""
        return f"nats://{self.user}:{self.password}@127.0.0.1:{self.port}"

    def write(self, cluster_name: str, strategy: str, *, syncs_always: bool = True) -> Path:
        """Write both files anew, and return the broker's.

        Where another program has the port by now, a new one is drawn.

        Args:
            cluster_name: What the nodes have in common.
            strategy: Theirs; with `horde` the broker keeps their log.
            syncs_always: Whether the broker can be told to acknowledge what is on the disk only.

        Raises:
            CannotUse: They cannot be written.
        """
        if not _is_free(self.port):
            self.port = _free_port()
        told = f"""[chatx]
cluster_strategy = "{strategy}"
cluster_name = "{cluster_name}"
cluster_url = "{self.url}"
"""
        broker = f"""listen: "127.0.0.1:{self.port}"
server_name: "chatx-{cluster_name}"
logtime: false
authorization {{ user: {self.user}, password: {self.password} }}
"""
        if strategy == "horde":
            # Elsewhere it goes to the disk every two minutes: a process may end, the machine may not.
            sync = ", sync_interval: always" if syncs_always else ""
            broker += f"jetstream {{ store_dir: {json.dumps(str(self.path))}{sync} }}\n"
        path = self.path / "nats.conf"
        try:
            _write(self.path / OPTIONS, told)
            _write(path, broker)
        except OSError as error:
            raise CannotUse(f"--data {self.path}: {error}; give a folder that this process may write to.") from error
        return path

    def close(self) -> None:
        """Let go of it."""
        os.close(self.lock)

    def _take(self) -> None:
        import fcntl  # which is not on Windows, where the file's name is wanted only

        until = time.monotonic() + FREE_WITHIN_S
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() > until:
                raise CannotUse(
                    f"--data {self.path} is in use: another chatx serve has its broker there. Stop that one, or give "
                    "this one a folder of its own."
                )
            time.sleep(0.05)  # the broker of one that was killed needs a moment

    def _kept(self) -> tuple[int, str, str] | None:
        """Return the port, the user and the password of the broker that was here before, or None."""
        path = self.path / OPTIONS
        try:
            with path.open("rb") as file:
                url = urlsplit(tomllib.load(file)["chatx"]["cluster_url"])
            if url.port and url.username and url.password:
                return url.port, url.username, url.password
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            pass
        raise CannotUse(f"{path} is not as it was written; delete it, and it is written anew.")


def _write(path: Path, text: str) -> None:
    """Write a file that only this user may read, whole or not at all."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the broker does: connections of the one before may linger.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
