"""In-process fan-out: deliveries a second to N subscribers with W messages outstanding. One process, one figure.

python -m benchmarks.fanout KIND SUBSCRIBERS OUTSTANDING SECONDS
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from chatx import Chat, RateLimit

CONTENT = "hello there everyone, this is a chat line"
UNLIMITED = RateLimit(messages_per_sec=1e9, burst=10**9)


class Load:
    """Keeps W messages under way for some seconds and counts deliveries."""

    def __init__(self, outstanding: int, seconds: float) -> None:
        self.outstanding = outstanding
        self.seconds = seconds
        self.delivered = 0
        self.under_way = 0
        self.progress = asyncio.Event()

    def arrived(self) -> None:
        """Note that the last subscriber has a message: by then all have been given it."""
        self.under_way -= 1
        self.progress.set()

    async def run(self, publish: Callable[[], Awaitable[object]]) -> dict[str, float]:
        """Publish for as long as it is to last, and return the figures."""
        await self._publish_for(min(0.5, self.seconds), publish)
        before, began = self.delivered, time.perf_counter()
        await self._publish_for(self.seconds, publish)
        return {"deliveries": self.delivered - before, "seconds": time.perf_counter() - began}

    async def _publish_for(self, seconds: float, publish: Callable[[], Awaitable[object]]) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or self.under_way:
            while self.under_way < self.outstanding and time.perf_counter() < end:
                self.under_way += 1
                await publish()
            if self.under_way:
                self.progress.clear()
                await self.progress.wait()


async def callbacks(subscribers: int, load: Load) -> dict[str, float]:
    """Each subscriber is a callback that counts."""

    def subscriber(last: bool) -> Callable[[object], None]:
        def count(event: object) -> None:
            load.delivered += 1

        def count_and_tell(event: object) -> None:
            load.delivered += 1
            load.arrived()

        return count_and_tell if last else count

    async with Chat(rate_limit=UNLIMITED) as chat:
        opened = [
            await chat.subscribe_callback("lobby", subscriber(number == subscribers - 1))
            for number in range(subscribers)
        ]
        assert len(opened) == subscribers
        return await load.run(lambda: chat.send_message("lobby", "user-0001", CONTENT))


async def iterators(subscribers: int, load: Load) -> dict[str, float]:
    """Each subscriber is a task with `async for`."""
    async with Chat(rate_limit=UNLIMITED) as chat:
        ready = 0
        all_ready = asyncio.Event()

        async def read(last: bool) -> None:
            nonlocal ready
            async with chat.subscribe("lobby") as subscription:
                ready += 1
                if ready == subscribers:
                    all_ready.set()
                async for _ in subscription:
                    load.delivered += 1
                    if last:
                        load.arrived()

        tasks = [asyncio.create_task(read(number == subscribers - 1)) for number in range(subscribers)]
        await all_ready.wait()
        figures = await load.run(lambda: chat.send_message("lobby", "user-0001", CONTENT))
        await _end(tasks)
        return figures


async def queues(subscribers: int, load: Load) -> dict[str, float]:
    """The reference: one `asyncio.Queue` and one task a subscriber, and nothing else."""
    boxes: list[asyncio.Queue[dict[str, Any]]] = [asyncio.Queue() for _ in range(subscribers)]

    async def read(box: asyncio.Queue[dict[str, Any]], last: bool) -> None:
        while True:
            await box.get()
            load.delivered += 1
            if last:
                load.arrived()

    async def publish() -> None:
        message = {"room_id": "lobby", "user_id": "user-0001", "content": CONTENT}
        for box in boxes:
            box.put_nowait(message)

    tasks = [asyncio.create_task(read(box, box is boxes[-1])) for box in boxes]
    figures = await load.run(publish)
    await _end(tasks)
    return figures


async def broadcaster(subscribers: int, load: Load) -> dict[str, float]:
    """The reference: the package `broadcaster` with its memory backend."""
    from broadcaster import Broadcast

    async with Broadcast("memory://") as broadcast:
        ready = 0
        all_ready = asyncio.Event()

        async def read(last: bool) -> None:
            nonlocal ready
            async with broadcast.subscribe(channel="lobby") as subscription:
                ready += 1
                if ready == subscribers:
                    all_ready.set()
                async for _ in subscription:  # type: ignore[union-attr]  # broadcaster annotates it as optional
                    load.delivered += 1
                    if last:
                        load.arrived()

        tasks = [asyncio.create_task(read(number == subscribers - 1)) for number in range(subscribers)]
        await all_ready.wait()
        figures = await load.run(lambda: broadcast.publish(channel="lobby", message=CONTENT))
        await _end(tasks)
        return figures


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


KINDS: dict[str, Callable[[int, Load], Coroutine[Any, Any, dict[str, float]]]] = {
    "callbacks": callbacks,
    "iterators": iterators,
    "queues": queues,
    "broadcaster": broadcaster,
}


def main() -> None:
    """Measure one cell and print it as JSON."""
    kind, subscribers, outstanding, seconds = sys.argv[1:]

    async def measure() -> dict[str, float]:
        return await KINDS[kind](int(subscribers), Load(int(outstanding), float(seconds)))

    print(json.dumps(asyncio.run(measure())))


if __name__ == "__main__":
    main()
