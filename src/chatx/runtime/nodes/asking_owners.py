"""What a room's owner is asked to do: again, for `HELD_S`, where it may be done again."""

from __future__ import annotations

import asyncio

from chatx.cluster.rpc import Answer, Ask, Done, Moved, Present, Read, Refused
from chatx.errors import RoomOverloaded, RoomUnavailable
from chatx.runtime.nodes.peers import AGAIN_S, HELD_S, Peers, Unreachable
from chatx.runtime.nodes.refusals import error_of


async def answer_of_owner(peers: Peers, room_id: str, ask: Ask) -> Answer:
    """Ask a room's owner, and again for `HELD_S` where it has surely done nothing, or was only to say something.

    Raises:
        RoomUnavailable: It cannot be reached.
        RoomOverloaded: It has as much to do as it takes.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + HELD_S
    while True:
        busy = False
        try:
            answer = await peers.ask(peers.owner(room_id), ask)
        except Unreachable as error:
            busy = error.busy
            if not error.surely and not isinstance(ask, Read | Present):  # which change nothing
                raise RoomUnavailable(
                    "The node that has the room has not answered, so it is not known whether this was done; send "
                    "again with the same idempotency key.",
                    retry_after=1.0,
                ) from error
        else:
            if not isinstance(answer, Moved):
                return answer
        if loop.time() >= until and busy:
            raise RoomOverloaded(
                f"The node that has the room has had as much to do as it takes for {HELD_S:g} s, so nothing was done; "
                "try again later.",
                retry_after=1.0,
            )
        if loop.time() >= until:
            raise RoomUnavailable(
                f"The node that has the room could not be reached for {HELD_S:g} s, so nothing was done; try again "
                "later.",
                retry_after=1.0,
            )
        await asyncio.sleep(AGAIN_S)


async def ask_owner(peers: Peers, room_id: str, ask: Ask) -> Answer:
    """Return what a room's owner answers; errors as `answer_of_owner`, and its own refusal."""
    answer = await answer_of_owner(peers, room_id, ask)
    if isinstance(answer, Refused):
        raise error_of(answer)
    return answer


async def have_owner(peers: Peers, room_id: str, ask: Ask) -> None:
    """Have a room's owner do something that it answers with `Done`; errors as `ask_owner`."""
    answer = await ask_owner(peers, room_id, ask)
    if not isinstance(answer, Done):
        raise wrong(answer)


def wrong(answer: Answer) -> RoomUnavailable:
    """Return the error for an answer that is none to what was asked."""
    return RoomUnavailable(f"The node that has the room answered with {type(answer).__name__}; try again later.")
