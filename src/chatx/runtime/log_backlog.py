"""What a log has not got yet: its accounts, and which rooms are to be written next.

Rules:
1. A room's lives are written in their order: once the next epoch has begun no log takes an earlier life's entries.
2. A room in which somebody waits for the log is written ahead of one that only owes it something.
3. A room whose batch the log has refused rests for `REFUSED_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from chatx.config import ChatConfig
from chatx.core.message import Draft, Message, Position
from chatx.core.sequencer import Owed, Sequencer, Waiting
from chatx.errors import AdapterError, RoomUnavailable
from chatx.runtime.process import RoomProcess

REFUSED_S = 1.0
"""How long a room waits whose batch the log has answered to be wrong, in seconds."""


class LogBacklog:
    """What one chat has for its log; `delivery_queue_limit` and the rooms' admission bound it where messages are sent.

    Attributes:
        size: Entries that everybody has and the log does not.
        bytes: What they weigh, and the drafts that wait for the log.
        drained: Set when the log has everything.
    """

    def __init__(self, config: ChatConfig, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._batch_size = config.delivery_batch_size
        self.size: int = 0
        self.bytes: int = 0
        self.drained: asyncio.Event = asyncio.Event()
        self.drained.set()
        self._busy: dict[str, list[RoomProcess]] = {}  # room id -> its lives of which something is under way
        self._written: dict[str, asyncio.Event] = {}  # room id -> set when there is none any more
        self._urgent: dict[RoomProcess, None] = {}  # somebody waits for their next batch
        self._owing: dict[RoomProcess, None] = {}
        self._resting: set[RoomProcess] = set()  # the log refused their batch just now
        self._wanted = asyncio.Event()  # something is to be written
        self._soon = asyncio.Event()  # it is not to wait for company
        self._hurried = False
        self._closed = False

    def waits(self, room_id: str) -> bool:
        """Return whether something of this room is not in the log yet."""
        return room_id in self._busy

    def latest(self, room_id: str) -> RoomProcess | None:
        """Return the room's latest life of which something is not in the log yet, or None."""
        lives = self._busy.get(room_id)
        return lives[-1] if lives else None

    def has_all(self, room_id: str) -> bool:
        """Return whether the log has every entry of this room."""
        return room_id not in self._busy

    def forget(self, room_id: str) -> None:
        """Do nothing: a log has no holes that a room's life could leave."""

    async def written(self, room_id: str) -> None:
        """Wait until nothing of the room's earlier lives is under way, for as long as a call may take.

        Raises:
            AdapterError: It is still.
        """
        if room_id not in self._busy:
            return
        event = self._written.setdefault(room_id, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                await event.wait()
        if room_id in self._busy:
            raise AdapterError("What was said in this room before is not in the log yet; try again later.")

    def owe(self, process: RoomProcess, message: Message, scope: bytes | None) -> None:
        """Take a message that everybody has."""
        sequencer = self._sequencer(process, Position(message.epoch, message.offset - 1))
        owed = sequencer.owe(message, scope)
        process.unstored_at = self._loop.time()
        self.size += 1
        self.bytes += owed.weight
        self.drained.clear()
        self._note(process, sequencer)

    def submit(self, process: RoomProcess, draft: Draft, scope: bytes | None, stored: bool) -> Waiting:
        """Take a draft that waits for its place; what became of it is told to its `sender`, a future of a message.

        Raises:
            RoomUnavailable: Somebody else has the room.
        """
        sequencer = process.sequencer or self._sequencer(process, process.head)
        if sequencer.fenced:
            raise room_lost()
        noted = sequencer.blocked  # since one that is ahead of this one came, or its batch was formed
        weight = len(draft.content.encode()) + (0 if draft.data is None else draft.data.weight) + _WEIGHT
        waiting = Waiting(draft, scope, stored, self._loop.create_future(), weight)
        sequencer.submit(waiting)
        self.bytes += weight
        if not noted:
            self._note(process, sequencer)
        return waiting

    def _rest(self, process: RoomProcess) -> None:
        """Form no batch of this room for a while."""
        self._resting.add(process)

        def over() -> None:
            self._resting.discard(process)
            if process.sequencer is not None and not self._closed:
                self._note(process, process.sequencer)

        self._loop.call_later(REFUSED_S, over)

    def _sequencer(self, process: RoomProcess, head: Position) -> Sequencer:
        sequencer = process.sequencer
        if sequencer is None:
            sequencer = process.sequencer = Sequencer(head)
        return sequencer

    def _note(self, process: RoomProcess, sequencer: Sequencer) -> None:
        """Note what a room has for the log now."""
        process.update_detour()
        if sequencer.flight is None and not sequencer.ready:
            self._not_busy(process)
            return
        lives = self._busy.setdefault(process.room_id, [])
        if process not in lives:
            lives.append(process)
        if process in self._resting or lives[0] is not process:
            return  # an earlier life's entries come first: once the next epoch has begun no log takes them
        if sequencer.urgent:
            self._owing.pop(process, None)
            self._urgent[process] = None
        elif sequencer.ready and process not in self._urgent:
            self._owing[process] = None
        self._look()

    def _not_busy(self, process: RoomProcess) -> None:
        lives = self._busy.get(process.room_id)
        if lives is None or process not in lives:
            return
        lives.remove(process)
        if lives:
            if lives[0].sequencer is not None:
                self._note(lives[0], lives[0].sequencer)
            return
        del self._busy[process.room_id]
        event = self._written.pop(process.room_id, None)
        if event is not None:
            event.set()

    def _look(self) -> None:
        if self._urgent or self._owing:
            self._wanted.set()
        else:
            self._wanted.clear()
        if self._urgent or self._hurried or self.size >= self._batch_size:
            self._soon.set()
        else:
            self._soon.clear()

    def _no_longer_owed(self, owed: Sequence[Owed]) -> None:
        self.size -= len(owed)
        self.bytes -= sum(each.weight for each in owed)
        if not self.size:
            self.drained.set()


# What a draft weighs beside its texts.
_WEIGHT = 128


def room_lost() -> RoomUnavailable:
    """Return the error for whoever uses a room that somebody else has taken over."""
    return RoomUnavailable("The room is somebody else's now: another chat writes to the same store. Send again later.")
