"""What goes back for a request: one byte that says how it went, and the reply.

At most so many requests are handled at once; more are answered `busy` without being looked at, and so are those for
which the handler raises `NodeBusy` when it is called. Whatever else it raises stays here: the asker is told that it
failed, and the log says how.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final

from chatx.cluster.backplane import PAYLOAD_BYTES, Handle, NodeBusy, RequestFailed

logger: logging.Logger = logging.getLogger("chatx")

_DONE: Final = b"\x00"
_BUSY: Final = b"\x01"
_FAILED: Final = b"\x02"


class Answers:
    """Handles the requests to one node.

    Args:
        handle: What answers one.
        at_once: How many at once, at least 1.
    """

    def __init__(self, handle: Handle, at_once: int) -> None:
        if at_once < 1:
            raise ValueError(f"at_once is {at_once}; it must be 1 or more.")
        self._handle = handle
        self._at_once = at_once
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, payload: bytes, reply: Callable[[bytes], object]) -> None:
        """Begin to handle a request, and give what goes back to `reply`, which raises nothing."""
        if len(self._tasks) >= self._at_once:
            reply(_BUSY)
            return
        try:
            answering = self._handle(payload)
        except NodeBusy:
            reply(_BUSY)
            return
        except Exception as error:
            self._failed(error, reply)
            return
        task = asyncio.get_running_loop().create_task(self._answer(answering, reply))
        self._tasks.add(task)

        def answered(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if isinstance(answering, Coroutine):
                answering.close()  # which was not begun where this was ended in the same turn

        task.add_done_callback(answered)

    async def _answer(self, answering: Awaitable[bytes], reply: Callable[[bytes], object]) -> None:
        try:
            answer = await answering
            if not isinstance(answer, bytes) or len(answer) > PAYLOAD_BYTES:
                raise ValueError(f"the answer is not bytes, at most {PAYLOAD_BYTES} of them")
        except Exception as error:
            self._failed(error, reply)
        else:
            reply(_DONE + answer)

    def _failed(self, error: Exception, reply: Callable[[bytes], object]) -> None:
        logger.error("a request from another node could not be answered; it is told that it failed", exc_info=error)
        reply(_FAILED)

    async def end(self) -> None:
        """End what is being handled, without an answer."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def read_answer(boot: str, answer: bytes) -> bytes:
    """Return the reply in what came back.

    Raises:
        NodeBusy: The node did not look at the request.
        RequestFailed: Its handler raised, or what came back is nothing that a node says.
    """
    how, reply = answer[:1], answer[1:]
    if how == _DONE:
        return reply
    if how == _BUSY:
        raise NodeBusy(f"Node {boot} handles as many requests as it does at once; ask it again later.")
    if how == _FAILED:
        raise RequestFailed(f"Node {boot} failed to answer a request; its log says why.")
    raise RequestFailed(f"Node {boot} sent back what is no answer; it may run another version.")
