"""How the tests of SQLite open their file, and use it from several threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

from chatx.adapters.sqlite import SQLitePersistence

Open: TypeAlias = Callable[..., SQLitePersistence]


def in_threads(write: Callable[[SQLitePersistence, str], None], stores: Sequence[SQLitePersistence]) -> list[str]:
    """Write to four rooms in a thread each, over the stores in turn; return the rooms, or raise what one raised."""
    failures: list[BaseException] = []

    def contained(store: SQLitePersistence, room_id: str) -> None:
        try:
            write(store, room_id)
        except BaseException as error:
            failures.append(error)

    rooms = [f"room {number}" for number in range(4)]
    threads = [
        threading.Thread(target=contained, args=(store, room_id))
        for room_id, store in zip(rooms, itertools.cycle(stores), strict=False)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return rooms
