"""A proxy before a NATS server that has it forget a client's subscriptions, which nothing tells the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from tests.nats import Proxy


class Forgetful(Proxy):
    """Carries bytes to a server, and has it forget subscriptions when it is told to."""

    def __init__(self, to: int) -> None:
        super().__init__(to)
        self._subscribed: dict[asyncio.StreamWriter, dict[bytes, str]] = {}  # by connection: sid -> subject

    @property
    def subjects(self) -> list[str]:
        """What is subscribed now."""
        return [subject for of_one in self._subscribed.values() for subject in of_one.values()]

    def forget(self, which: Callable[[str], bool]) -> int:
        """Have the server forget what is subscribed on some subjects; return how many subscriptions that were.

        It is said between two lines of the client's, of which it knows nothing.
        """
        count = 0
        for there, of_one in self._subscribed.items():
            for sid in [sid for sid, subject in of_one.items() if which(subject)]:
                del of_one[sid]
                there.write(b"UNSUB " + sid + b"\r\n")
                count += 1
        return count

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = writer.get_extra_info("peername")[:2]
        if (host, port) != ("127.0.0.1", self._to):
            await super()._pump(reader, writer)
            return
        subscribed = self._subscribed.setdefault(writer, {})
        with suppress(OSError, asyncio.IncompleteReadError, ValueError):
            while line := await reader.readline():
                words = line.split()
                kind = words[0].upper() if words else b""
                if kind == b"SUB":
                    subscribed[words[-1]] = words[1].decode()
                elif kind == b"UNSUB":
                    subscribed.pop(words[1], None)
                elif kind in (b"PUB", b"HPUB"):
                    line += await reader.readexactly(int(words[-1]) + 2)
                if not self.swallows:
                    writer.write(line)
                    await writer.drain()
        del self._subscribed[writer]
        writer.transport.abort()
