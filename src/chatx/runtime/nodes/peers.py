"""The other nodes, as rooms reach them: whose a room is, what a node is asked, and what an owner tells its replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from chatx.cluster.rpc import Answer, Ask, Told

HELD_S = 5.0
"""Seconds for which is held what the owner of a room has to do, while it cannot be reached."""

AGAIN_S = 0.1
"""Seconds between two tries to reach a node."""


class Unreachable(Exception):
    """A node cannot be asked, or has not answered.

    Attributes:
        surely: Whether it has surely done nothing of what was asked.
        busy: Whether it has answered that it has as much to do as it takes.
    """

    def __init__(self, reason: str, *, surely: bool, busy: bool = False) -> None:
        super().__init__(reason)
        self.surely: bool = surely
        self.busy: bool = busy


class Peers(Protocol):
    """The nodes of one chat, this one among them.

    Attributes:
        boot: The id of this process among all that were ever nodes.
    """

    boot: str

    @property
    def serving(self) -> bool:
        """Whether this node is one of the others now."""
        ...

    def owner(self, room_id: str) -> str:
        """Return the boot id of the node whose room it is."""
        ...

    def before(self, room_id: str) -> list[str]:
        """Return which nodes may have had the room a moment ago, likeliest first; none where no node changed."""
        ...

    async def ask(self, boot: str, ask: Ask) -> Answer:
        """Ask a node.

        Raises:
            Unreachable: It cannot be asked, or has not answered in time.
        """
        ...

    def tell(self, told: Told) -> bool:
        """Tell the replicas of a room what was placed there; return whether it is on its way."""
        ...

    async def listen(self, room_id: str, heard: Callable[[Told | None], object]) -> Callable[[], object]:
        """Have what is told of a room given to `heard`, None for what cannot be read; call the answer to end that."""
        ...

    def everybody(self) -> list[str]:
        """Return the boot ids of the other nodes that are there."""
        ...
