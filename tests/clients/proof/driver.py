"""What a test does with the client for Python, as `driver.mjs` has it: commands on standard input, reports on output.

python -m tests.clients.proof.driver
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from typing import Any

from chatx.client import Client, ClientError, Gap, Message, Room, SendUnknown, State
from chatx.client.client import Transport
from chatx.client.wire import Wire


class KeylessWire:
    """A connection on which messages go without their keys."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.read = wire.read
        self.close = wire.close
        self.abort = wire.abort

    async def write(self, frames: Sequence[str]) -> None:
        await self._wire.write([_without_key(each) for each in frames])


def _without_key(text: str) -> str:
    frame = json.loads(text)
    if frame[3] == "new_message":
        del frame[4]["key"]
    return json.dumps(frame)


class KeylessClient(Client):
    """A client whose messages have no keys."""

    async def _dial(self) -> Wire:
        return KeylessWire(await super()._dial())


class Driver:
    """The clients of this process."""

    def __init__(self) -> None:
        self._rooms: dict[tuple[str, str], Room] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Do what is asked, until there is no more to read."""
        loop = asyncio.get_running_loop()
        commands = asyncio.StreamReader(loop=loop)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        async for line in commands:
            command = json.loads(line)
            self._begin(getattr(self, command.pop("command"))(**command))
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _begin(self, doing: Any) -> None:
        task = asyncio.ensure_future(doing)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            traceback.print_exception(task.exception())
            os._exit(1)  # a fault of this driver must not look like one of a client

    async def join(
        self, client: str, url: str, rooms: list[str], history: int, polls: bool, spoiled: str | None
    ) -> None:
        made = KeylessClient if spoiled == "keyless" else Client
        transport: Transport = "longpoll" if polls else "auto"
        async with made(url, params={"user_id": client}, transport=transport) as connected:
            await asyncio.gather(*(self._stay(connected, client, each, history, spoiled) for each in rooms))

    async def _stay(self, client: Client, name: str, room_id: str, history: int, spoiled: str | None) -> None:
        def report(**fields: Any) -> None:
            _report(client=name, room=room_id, **fields)

        while True:
            async with client.room(room_id, history=history) as room:
                self._rooms[name, room_id] = room
                report(state="joined")
                async for event in room:
                    if isinstance(event, Message):
                        message = {
                            "epoch": event.epoch,
                            "offset": event.offset,
                            "id": event.id,
                            "user_id": event.user,
                            "content": event.content,
                        }
                        late_s = random.random() if spoiled == "disorderly" else 0.0
                        if late_s:
                            asyncio.get_running_loop().call_later(late_s, partial(report, message=message))
                        else:
                            report(message=message)
                    elif isinstance(event, Gap):
                        gap = {each: getattr(event, each) for each in ("reason", "epoch", "offset", "missed")}
                        report(gap=gap)
                    elif isinstance(event, State):
                        report(state=event.state, why=event.reason)
                        if event.state == "away" and spoiled == "forgetful":
                            break

    async def send(self, client: str, room: str, content: str) -> None:
        outcome: dict[str, Any]
        try:
            message = await self._rooms[client, room].send(content)
        except ClientError as error:
            published = None if isinstance(error, SendUnknown) else False
            outcome = {"failed": {"content": content, "code": error.code, "published": published}}
        else:
            sent = {"content": content, "id": message.id, "epoch": message.epoch, "offset": message.offset}
            outcome = {"sent": sent}
        _report(client=client, room=room, **outcome)


def _report(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(Driver().run())
