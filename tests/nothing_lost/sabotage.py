"""Parts of the engine that break one promise each, and where they are put in."""

from __future__ import annotations

from typing import Any

from chatx.adapters.outbox import Claimed, Outcome
from chatx.adapters.retention import Retention
from chatx.adapters.room_log import Found, Opened, Recipients
from chatx.core.idempotency import IdempotencyWindow
from chatx.core.message import Message, Position
from chatx.core.sequencer import Flight, Sequencer
from chatx.errors import AdapterError
from chatx.runtime.committing import Committing
from chatx.runtime.log_storage import LogStorage
from chatx.runtime.outbox import Outbox
from chatx.runtime.process import RoomProcess
from chatx.runtime.settling import Settling
from tests.nothing_lost.keeping import TrimmedLog


class HastySequencer(Sequencer):
    """Answers the senders of a batch before the log has it."""

    __slots__ = ()

    def form(self, *args: Any) -> Flight:
        flight = super().form(*args)
        for each in flight.drafts:
            if not each.sender.done():
                each.sender.set_result(each.message)
        return flight


class ForgetfulWindow(IdempotencyWindow):
    """Remembers no key."""

    __slots__ = ()

    def record(self, scope: bytes, message: Message, now: float) -> None:
        pass


class UnheldStorage(LogStorage):
    """Takes a room over without looking whether it stands where it stood."""

    async def _take_at(self, room_id: str, head: Position) -> bool:
        await self.take_over(room_id)
        return True


class RashStorage(UnheldStorage):
    """Goes on behind the head, whether or not it is proven: what comes behind it may have been seen."""

    async def last_position(self, room_id: str) -> Position | None:
        return (await self._opened("look", room_id)).head


class ShortStorage(LogStorage):
    """Answers with less where the log cannot be read."""

    async def read(
        self, room_id: str, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> Found:
        try:
            return await super().read(room_id, after=after, before=before, limit=limit)
        except AdapterError:
            return Found((), None)


class HeedlessStorage(LogStorage):
    """Publishes past a proof that stands."""

    async def mark_open(self, room_id: str, head: Position) -> bool:
        return True


class GuessingSettling(Settling):
    """Settles what is not known by a bare read: what is on its way may arrive still."""

    async def _tail(self, room_id: str, flight: Flight) -> tuple[Opened, Found] | None:
        try:
            found = await self._storage.read(room_id, after=flight.after, limit=len(flight.entries) + 1)
        except AdapterError:
            return None
        return Opened(0, flight.after, 1, True), found


class ForgivingCommitting(Committing):
    """Takes what surely failed for written."""

    def failed(self, process: Any) -> None:
        self.committed(process)


class SilentCommitting(Committing):
    """Drops what the log does not take, and tells nobody."""

    def owe(self, process: Any, message: Message, scope: bytes | None) -> None:
        if message.offset % 5:
            super().owe(process, message, scope)


class SparingOutbox(Outbox):
    """Writes no notification down for some of what is stored."""

    def recipients(self, process: RoomProcess, message: Message) -> Recipients | None:
        return super().recipients(process, message) if message.offset % 5 else None


class HastyOutbox(Outbox):
    """Settles what it has claimed before it tells anybody."""

    def _begin(self, claimed: Claimed) -> None:
        super()._begin(claimed)
        self._outcomes[claimed.notification.id] = Outcome(claimed.notification.id, "done")
        self._wake.set()


class GreedyRetention(Retention, frozen=True, gc=False):
    """Lets go of one too many."""

    def lets_go(self, inserted_at: int, newer: int, *, keyed: bool) -> bool:
        return super().lets_go(inserted_at, newer + 1, keyed=keyed)


class KeylessRetention(Retention, frozen=True, gc=False):
    """Lets go of keys that must answer."""

    def lets_go(self, inserted_at: int, newer: int, *, keyed: bool) -> bool:
        return super().lets_go(inserted_at, newer, keyed=False)


class HeedlessLog(TrimmedLog):
    """Lets go of what somebody is still to be told of."""

    def _waits(self, entry_id: str) -> bool:
        return False


PLACES: dict[type, str] = {
    HastySequencer: "chatx.runtime.log_backlog.Sequencer",
    ForgetfulWindow: "chatx.runtime.sending.IdempotencyWindow",
    RashStorage: "chatx.runtime.engine.LogStorage",
    ShortStorage: "chatx.runtime.engine.LogStorage",
    HeedlessStorage: "chatx.runtime.engine.LogStorage",
    UnheldStorage: "chatx.runtime.engine.LogStorage",
    GuessingSettling: "chatx.runtime.committing.Settling",
    ForgivingCommitting: "chatx.runtime.delivery.Committing",
    SilentCommitting: "chatx.runtime.delivery.Committing",
    SparingOutbox: "chatx.runtime.delivery.Outbox",
    HastyOutbox: "chatx.runtime.delivery.Outbox",
    GreedyRetention: "chatx.runtime.trimming.Retention",
    KeylessRetention: "chatx.runtime.trimming.Retention",
    HeedlessLog: "tests.nothing_lost.world.TrimmedLog",
}
"""Each, and what it takes the place of."""
