"""Runs processes that talk, hears what they tell, ends them, and holds it all against what their store has."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from chatx.core.message import Entry
from tests.nothing_lost.evidence import Evidence, Kept, Reading
from tests.nothing_lost.talk import Fact, Got, Now, Orders, Refused, Sent, Try
from tests.nothing_lost.world import ROOMS
from tests.process import ENVIRONMENT
from tests.seeds import Violation, promise

WITHIN_S = 120.0
"""How long a process may take to come to something, also on a loaded machine."""

READERS = 8

_decode = msgspec.json.Decoder(Fact).decode


class Watch:
    """What the processes of one store have told, one after another.

    Attributes:
        refused: How often a send was refused, by code.
        sent: How many sends were answered.
    """

    def __init__(self, store: str, seed: int, *, unbroken: Collection[str] = ("vault",), **orders: Any) -> None:
        self.store = store
        self.evidence = Evidence(unbroken)
        self.chance = Random(seed)
        self.refused: Counter[str] = Counter()
        self.sent = 0
        self._orders = orders
        self._readings = {
            f"reader-{number}": Reading(self.evidence, f"reader-{number}", ROOMS[number % len(ROOMS)])
            for number in range(READERS)
        }
        self._pending: dict[str, Try] = {}
        self._tried = 0
        self._states: list[str] = []
        self._wrong: BaseException | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: threading.Thread | None = None

    def start(self, **more: Any) -> None:
        """Start a process, which goes on where the one before it ended."""
        places: dict[str, tuple[str, tuple[str, int] | None]] = {
            name: (each.room_id, each.position) for name, each in self._readings.items()
        }
        orders = Orders(
            self.store,
            self.chance.randrange(10**9),
            self._tried,
            places,
            list(self._pending.values()),
            **(self._orders | more),
        )
        self._states = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nothing_lost.talk", msgspec.json.encode(orders).decode()],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            env=ENVIRONMENT,
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()

    def kill(self) -> None:
        """Kill it, and hear what it has told till then."""
        self._signalled(signal.SIGKILL)
        self.check()

    def finish(self) -> None:
        """Have it come to its end, as everybody in it must."""
        self.wait("ready")
        self._signalled(signal.SIGTERM)
        self.check()
        assert self._states[-1:] == ["done"], f"It did not come to its end: {self._states}."

    def wait(self, state: str) -> None:
        """Wait until it is there."""
        self.wait_until(lambda: state in self._states)

    def wait_sent(self, more: int) -> None:
        """Wait for so many further answers."""
        enough = self.sent + more
        self.wait_until(lambda: self.sent >= enough)

    def check(self) -> None:
        """Raise what was heard to be wrong."""
        if self._wrong is not None:
            raise self._wrong

    def close(self) -> None:
        """End what runs."""
        if self._process is not None and self._process.poll() is None:
            self._signalled(signal.SIGKILL)

    def check_store(self, entries: dict[str, list[Entry]]) -> None:
        """Hold what the store has of each room against all that was told."""
        self.evidence.in_the_log({room_id: [Kept(each, None) for each in found] for room_id, found in entries.items()})
        for reading in self._readings.values():
            last = entries[reading.room_id][-1]
            promise(reading.position == (last.epoch, last.offset), "a reader misses the last:", reading.name, last)

    def _signalled(self, sent: int) -> None:
        process, listener = self._process, self._listener
        assert process is not None
        assert listener is not None
        process.send_signal(sent)
        try:
            process.wait(WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError("It does not end.") from None
        finally:
            listener.join(WITHIN_S)

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait until it is so, while the process runs."""
        deadline = time.monotonic() + WITHIN_S
        while not reached():
            self.check()
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"It came to nothing: {self._states}, {self.sent} sent, {self.refused}.")
            time.sleep(0.002)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if line.endswith(b"\n") and self._wrong is None:
                    try:
                        self._hear(_decode(line))
                    except (Violation, msgspec.MsgspecError) as error:
                        self._wrong = error

    def _hear(self, fact: Fact) -> None:
        match fact:
            case Try():
                self._tried += fact.content not in self._pending
                self._pending[fact.content] = fact
            case Sent():
                self.evidence.answered(fact.message, fact.content, stored=fact.message.stored)
                self._pending.pop(fact.content, None)
                self.sent += 1
            case Refused():
                promise(fact.retryable or fact.code == "closed", "refused for good:", fact)
                self.refused[fact.code] += 1
            case Got(reader, message, gap):
                for event in (message, gap):
                    if event is not None:
                        self._readings[reader].got(event)
            case Now():
                self._states.append(fact.state)
