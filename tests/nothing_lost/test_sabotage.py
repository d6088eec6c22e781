"""Whether the schedules find what they are for: engines that break one promise each, and the seeds until it shows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from chatx.adapters.room_log import Found, Opened
from chatx.core.idempotency import IdempotencyWindow
from chatx.core.message import Message, Position
from chatx.core.sequencer import Flight, Sequencer
from chatx.errors import AdapterError
from chatx.runtime.committing import Committing
from chatx.runtime.log_storage import LogStorage
from tests.nothing_lost.evidence import Violation
from tests.nothing_lost.play import play
from tests.nothing_lost.test_schedules import SUITE
from tests.nothing_lost.world import run


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


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


class GuessingCommitting(Committing):
    """Settles what is not known by a bare read: what is on its way may arrive still."""

    async def _tail(self, room_id: str, flight: Flight) -> tuple[Opened, Found] | None:
        try:
            found = await self._storage.read(room_id, after=flight.after, limit=len(flight.entries) + 1)
        except AdapterError:
            return None
        return Opened(0, flight.after, 1, True), found


class ForgivingCommitting(Committing):
    """Takes what surely failed for written."""

    def _failed(self, process: Any) -> None:
        self._committed(process)


class SilentCommitting(Committing):
    """Drops what the log does not take, and tells nobody."""

    def owe(self, process: Any, message: Message, scope: bytes | None) -> None:
        if message.offset % 5:
            super().owe(process, message, scope)


def assert_found() -> None:
    """Fail unless a seed of the suite's shows the fault, and says how to see it again."""
    for seed in range(SUITE):
        try:
            run(seed, play)
        except Violation as violation:
            found = violation
        else:
            continue
        assert f"TEST_SEED={seed} " in found.__notes__[-1]
        return
    pytest.fail(f"{SUITE} seeds did not show the fault.")


@pytest.mark.parametrize(
    "place, fault",
    [
        ("committing.Sequencer", HastySequencer),
        ("sending.IdempotencyWindow", ForgetfulWindow),
        ("engine.LogStorage", RashStorage),
        ("engine.LogStorage", ShortStorage),
        ("engine.LogStorage", HeedlessStorage),
        ("engine.LogStorage", UnheldStorage),
        ("delivery.Committing", GuessingCommitting),
        ("delivery.Committing", ForgivingCommitting),
        ("delivery.Committing", SilentCommitting),
    ],
)
def test_a_broken_promise_is_found(monkeypatch: pytest.MonkeyPatch, place: str, fault: type) -> None:
    monkeypatch.setattr(f"chatx.runtime.{place}", fault)
    assert_found()
