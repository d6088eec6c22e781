"""A lock on a file, which one process of a machine holds at a time, and which dies with its holder."""

from __future__ import annotations

import os
import threading
import time

from chatx.errors import ConfigError

# Windows has none. Its locks keep a file from being read, which a rule of one writer does not ask for.
try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

LOOK_S = 0.05
"""How often one who waits looks again, in s: the system tells nobody that a lock is free without blocking a thread."""


class WriterLock:
    """The lock of one file, which is made where it is not there and never removed.

    To remove it would let a third one make and lock another file, while the second still holds the one that is gone.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file: int | None = None

    @property
    def held(self) -> bool:
        """Whether the lock is held; never where there are no such locks."""
        return self._file is not None

    def hold(self, wait_ms: int) -> bool:
        """Take the lock, waiting for at most so long; return whether it is held. To hold it already is enough.

        Raises:
            ConfigError: The file cannot be made, opened or locked.
        """
        if fcntl is None:
            return True
        until = time.monotonic() + wait_ms / 1000
        while not self._taken():
            if time.monotonic() >= until:
                return False
            time.sleep(LOOK_S)
        return True

    def let_go(self) -> None:
        """Free the lock; twice is harmless."""
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                os.close(file)

    def _taken(self) -> bool:
        with self._lock:
            if self._file is not None:
                return True
            file = None
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if file is not None:
                    os.close(file)
                if isinstance(error, BlockingIOError):
                    return False
                raise ConfigError(
                    f"The lock of the one who writes, {self._path!r}, cannot be taken: {error.strerror}; let the "
                    "process write in the folder of the database, which must be on this machine, and see whose it is."
                ) from error
            self._file = file
            return True
