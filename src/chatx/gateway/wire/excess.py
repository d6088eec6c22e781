"""A bound of one client's input was passed: how a bound says which close code that is."""

from __future__ import annotations


class Excess(Exception):
    """A bound was passed.

    Attributes:
        code: The close code.
        reason: For the close frame; at most 123 bytes, and nothing of the peer's in it.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
