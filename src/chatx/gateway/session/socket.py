"""What a session writes, and what it writes to: bundles of text messages, shared by all sockets that get the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import Protocol

_TEXT = 0x81
"""First byte of a text message in one frame: FIN and opcode 1."""


class Bundle:
    """Whole text messages, in order; shared, so never changed.

    Attributes:
        texts: The messages.
    """

    __slots__ = ("_size", "_wire", "texts")

    def __init__(self, texts: list[str]) -> None:
        self.texts: list[str] = texts
        self._wire: bytes | None = None
        self._size: int | None = None

    @property
    def size(self) -> int:
        """Bytes of UTF-8 in all messages."""
        if self._size is None:
            self._size = sum(len(text) if text.isascii() else len(text.encode()) for text in self.texts)
        return self._size

    @property
    def wire(self) -> bytes:
        """The messages as a server's WebSocket frames, joined: one write, however many there are.

        A server's frames are not masked, so they are the same bytes for every socket. Source: RFC 6455, section 5.2.
        """
        if self._wire is None:
            parts: list[bytes] = []
            for text in self.texts:
                payload = text.encode()
                parts += (_header(len(payload)), payload)
            self._wire = b"".join(parts)
        return self._wire


class Flow:
    """Counts how often the `direct` of any socket of a gateway has changed, for whoever keeps some of them.

    Attributes:
        changes: The count.
    """

    __slots__ = ("changes",)

    def __init__(self) -> None:
        self.changes: int = 0


class Socket(Protocol):
    """A WebSocket as a session writes to it; nothing here blocks, and only `direct` may raise."""

    @property
    def direct(self) -> Callable[[bytes], int | None] | None:
        """Takes the `wire` of a `Bundle` where nothing waits before it; None where `write` must be asked.

        It returns how many bytes it took, or None: all. It raises `BlockingIOError` where it took none, and something
        else where the connection has just gone, of which its own shell will hear.
        """
        ...

    @property
    def unread(self) -> int:
        """How many writes wait for the client to take what is before them."""
        ...

    def write_rest(self, data: bytes) -> None:
        """Send the bytes that `direct` has not taken, before anything else."""
        ...

    def abandon(self) -> None:
        """End the connection, which `direct` has found gone: there is nobody to close it for."""
        ...

    def write(self, bundle: Bundle) -> None:
        """Send these messages, in order. Over the bound the socket closes itself as slow."""
        ...

    def ask(self) -> Callable[[], bool] | None:
        """Ask the client for an answer that it gives by itself.

        Returns:
            What tells whether it has come, where the session does not hear of it; None where it cannot be asked now.
        """
        ...

    async def drained(self) -> None:
        """Wait until what was written is on its way; returns at once when the socket is closed."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Close the socket, after what was written; the first call stands."""
        ...


class Audience:
    """Sockets that get the same, each once, with the quickest way to each as it is now.

    An audience is out of date as soon as a `Flow` counts a change.

    Args:
        sockets: The sockets.
    """

    __slots__ = ("_direct", "_others", "_sockets")

    def __init__(self, sockets: Iterable[Socket]) -> None:
        self._direct: list[Callable[[bytes], int | None]] = []
        self._sockets: list[Socket] = []  # of `_direct`, in its order
        self._others: list[Socket] = []
        for socket in sockets:
            direct = socket.direct
            if direct is None:
                self._others.append(socket)
            else:
                self._direct.append(direct)
                self._sockets.append(socket)

    def send(self, bundle: Bundle) -> None:
        """Write a bundle to each socket."""
        if self._direct:
            self._send_directly(bundle.wire)
        for socket in self._others:
            socket.write(bundle)

    def _send_directly(self, wire: bytes) -> None:
        size = len(wire)
        remaining = iter(self._direct)
        while True:
            try:
                # This loop is what a delivery costs: it touches nothing of a socket but its `direct`.
                for direct in remaining:
                    taken = direct(wire)
                    if taken != size and taken is not None:
                        self._reached(remaining).write_rest(wire[taken:])
                return
            except (BlockingIOError, InterruptedError):
                self._reached(remaining).write_rest(wire)
            except Exception:
                # The connection is gone, which transports tell by exceptions of several kinds before they tell its end.
                self._reached(remaining).abandon()

    def _reached(self, remaining: Iterator[object]) -> Socket:
        """Return the socket whose `direct` was taken last."""
        return self._sockets[len(self._sockets) - length_hint(remaining) - 1]


def _header(length: int) -> bytes:
    if length < 126:
        return bytes((_TEXT, length))
    if length < 65_536:
        return bytes((_TEXT, 126)) + length.to_bytes(2)
    return bytes((_TEXT, 127)) + length.to_bytes(8)
