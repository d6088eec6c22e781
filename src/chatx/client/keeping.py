"""Brings the sends of a client to its storage, one step after the other, ahead of what may not happen before."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from msgspec import json

from chatx.client.errors import ClientError, SendRefused
from chatx.client.outbox import Entry
from chatx.client.storage import OutboxStorage, StoredSend

_LOG: Final = logging.getLogger("chatx.client")

CLOSE_S: Final = 5.0
"""How long a storage may take for what is left to do when the client is closed."""

_LONG_AGO_S: Final = 1e9


class Keeper:
    """The way to a storage.

    What waits here is bounded by the outbox: of each send there are three steps at most.
    """

    def __init__(
        self,
        storage: OutboxStorage,
        *,
        kept: Callable[[Entry], None],
        failed: Callable[[Entry, ClientError], None],
        now: Callable[[], float],
        wall_s: Callable[[], float],
    ) -> None:
        """Build it.

        Args:
            storage: Where to.
            kept: Called once a send is in the storage as it is: it may be written.
            failed: Called where it could not be brought there.
            now: The clock of the conversation, in seconds.
            wall_s: Seconds since the Unix epoch.
        """
        self._storage = storage
        self._kept = kept
        self._failed = failed
        self._now = now
        self._wall_s = wall_s
        self._steps: deque[tuple[Entry, bool]] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def load(self) -> list[Entry]:
        """Open the storage, and return what is in it as sends of this client."""
        now, wall_s = self._now(), self._wall_s()
        entries = []
        for send in await self._storage.load():
            payload = {"content": send.content, "key": send.key} | ({} if send.data is None else {"data": send.data})
            created = now - max(0.0, wall_s - send.created_ms / 1000)
            entry = Entry(send.room, send.key, send.content, send.data, json.encode(payload), created)
            if send.doubtful_ms is not None:
                age = wall_s - send.doubtful_ms / 1000
                # Where the clock was set back nobody knows how long ago that was.
                entry.doubtful_since = now - (age if age >= 0 else _LONG_AGO_S)
                entry.epoch = send.epoch
            entries.append(entry)
        self._task = asyncio.get_running_loop().create_task(self._run())
        return entries

    def put(self, entry: Entry) -> None:
        """Keep a send as it is now; `kept` follows, or `failed`."""
        entry.ready = False
        self._add(entry, keep=True)

    def remove(self, entry: Entry) -> None:
        """Let go of a send."""
        self._add(entry, keep=False)

    async def close(self) -> None:
        """Do what is left, and close the storage."""
        if self._task is not None:
            self._closing = True
            self._wake.set()
            done, _ = await asyncio.wait([self._task], timeout=CLOSE_S)
            if not done:
                _LOG.error("The storage of the outbox did not end within %g s; it was left.", CLOSE_S)
                self._task.cancel()
            await self._storage.close()

    def _add(self, entry: Entry, *, keep: bool) -> None:
        self._steps.append((entry, keep))
        self._wake.set()

    async def _run(self) -> None:
        while self._steps or not self._closing:
            if not self._steps:
                self._wake.clear()
                await self._wake.wait()
            while self._steps:
                try:
                    await self._step(*self._steps.popleft())
                except Exception:  # a fault of this client must not leave sends behind it
                    _LOG.exception("A step to the storage of the outbox failed.")

    async def _step(self, entry: Entry, keep: bool) -> None:
        try:
            if keep:
                await self._storage.put(self._stored(entry))
            else:
                await self._storage.remove(entry.room, entry.key)
        except Exception as error:
            _LOG.exception("The storage of the outbox failed.")
            if keep:
                reason = f"The storage of the outbox failed: {error}; it was not sent."
                self._failed(entry, SendRefused("storage_failed", reason))
        else:
            if keep:
                self._kept(entry)

    def _stored(self, entry: Entry) -> StoredSend:
        ahead_s = self._wall_s() - self._now()
        return StoredSend(
            room=entry.room,
            key=entry.key,
            content=entry.content,
            data=entry.data,
            created_ms=int((entry.created + ahead_s) * 1000),
            doubtful_ms=None if entry.doubtful_since is None else int((entry.doubtful_since + ahead_s) * 1000),
            epoch=entry.epoch,
        )
