"""A process that the supervisor has begun: what it prints, a whole line at a time, and when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

AT_ONCE: Final = 65_536
"""Bytes that are read at a time, and kept of a line whose end has not come; a longer one is broken."""

LEFT: Final = 64
"""Times that it is read when it has ended, at most: what it has begun itself may print for ever."""


class Child:
    """A process, in a group of its own: what a terminal sends to all, it does not get.

    Args:
        command: The program and its arguments.
        on_lines: Called with what it printed, whole lines.
        pass_fds: Descriptors that it inherits.
        variables: Variables of its environment, in place of this process's.

    Attributes:
        pid: Its id.
        ended: Its exit status when it has ended, which `look` finds out.
    """

    def __init__(
        self,
        command: Sequence[str],
        on_lines: Callable[[bytes], object],
        *,
        pass_fds: Sequence[int] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_lines = on_lines
        self._begun = b""  # of a line
        self._printed, printing = os.pipe()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=printing,
                stderr=printing,
                pass_fds=pass_fds,
                env=None if variables is None else {**os.environ, **variables},
                process_group=0,
            )
        except BaseException:
            os.close(self._printed)
            raise
        finally:
            os.close(printing)
        self.pid: int = self._process.pid
        self.ended: asyncio.Future[int] = self._loop.create_future()
        os.set_blocking(self._printed, False)
        self._loop.add_reader(self._printed, self._read)

    def send(self, sent: int) -> None:
        """Send it a signal, if it has not ended."""
        if not self.ended.done():
            self._process.send_signal(sent)

    def look(self) -> None:
        """Find out whether it has ended; to be called when some process has."""
        if self.ended.done() or (status := self._process.poll()) is None:
            return
        for _ in range(LEFT):
            if not self._read():
                break
        self._stop_reading()
        self.ended.set_result(status)

    async def end(self, patience_s: float) -> None:
        """Have it end, by force where it takes longer."""
        self.send(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await asyncio.wait((self.ended,))
        self.send(signal.SIGKILL)
        await asyncio.wait((self.ended,))

    def _read(self) -> bool:
        """Take what it has printed; return whether there may be more."""
        try:
            some = os.read(self._printed, AT_ONCE)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            some = b""
        if not some:
            self._loop.remove_reader(self._printed)
            if self._begun:
                self._on_lines(self._begun + b"\n")
                self._begun = b""
            return False
        lines, newline, begun = (self._begun + some).rpartition(b"\n")
        if len(begun) > AT_ONCE:
            lines, newline, begun = lines + newline + begun, b"\n", b""
        self._begun = begun
        if newline:
            self._on_lines(lines + newline)
        return True

    def _stop_reading(self) -> None:
        self._loop.remove_reader(self._printed)
        os.close(self._printed)
        if self._begun:  # whoever it began has its output still
            self._on_lines(self._begun + b"\n")
            self._begun = b""
