"""A bound of a client's input was passed: what whoever counts tells whoever closes the socket."""

from __future__ import annotations


class Excess(Exception):
    """A bound of a client's input was passed, and the socket is to be closed.

    Attributes:
        code: The close code of the socket.
        reason: For the close frame; at most 123 bytes, and nothing of the peer's in it.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
