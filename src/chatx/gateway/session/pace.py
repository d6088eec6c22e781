"""How much of one socket's input is taken before the others have a turn of the event loop.

A shell that reads from a queue waits for nothing while there is something in it: `await receive()` returns at once, and
one client's flood keeps the loop from everybody else.
"""

from __future__ import annotations

from typing import Final

MESSAGES_A_TURN: Final = 16
"""Messages of one socket, or of one post, that are taken in one turn of the loop."""

SIZE_A_TURN: Final = 8_192
"""Characters or bytes of such messages; one message may be larger."""


class Pace:
    """How much input of one socket was taken in its present turn."""

    __slots__ = ("_messages", "_size")

    def __init__(self) -> None:
        self._messages = 0
        self._size = 0

    def over(self, size: int) -> bool:
        """Count a message of this size as taken; return whether the turn is over, and begin the next one then."""
        self._messages += 1
        self._size += size
        if self._messages < MESSAGES_A_TURN and self._size < SIZE_A_TURN:
            return False
        self._messages = self._size = 0
        return True
