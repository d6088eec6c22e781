"""Clients of the wire who talk and read whatever happens to the nodes, and a checker of what they were told."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Origin

from tests.gateway.phoenix_peer import raw_frame, read

Said: TypeAlias = dict[str, Any]

ANSWERED_S = 7.0
"""Seconds after which a push counts as not answered; a node holds a send for five."""


class Talker:
    """One user in one room, on whichever node takes them: they come back from where they stand, and send again by key.

    Attributes:
        acked: What was acknowledged, by content.
        seen: What came, in the order in which it came.
        lost: Joins that told of a gap.
        stall_s: The longest time from the first try of a send to its acknowledgement, in seconds.
        doubled: Repeats that were answered with the first message.
    """

    def __init__(self, room: str, user: str, port: Callable[[], int]) -> None:
        self.room = room
        self.user = user
        self._port = port
        self.acked: dict[str, Said] = {}
        self.seen: list[Said] = []
        self.lost: list[Said] = []
        self.stall_s = 0.0
        self.doubled = 0
        self._topic = f"room:{room}"
        self._connection: ClientConnection | None = None
        self._joined: str | None = None  # the ref of the join, while in the room
        self._joining = ""  # the ref of the newest join
        self._refs = itertools.count(1)
        self._replies: dict[str, asyncio.Future[Said]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._quiet = False
        self._tasks.append(asyncio.create_task(self._read()))
        self._tasks.append(asyncio.create_task(self._talk()))
        self._tasks.append(asyncio.create_task(self._be_in()))

    async def be_quiet(self) -> None:
        """Say nothing more, when what is under way is acknowledged."""
        self._quiet = True
        async with asyncio.timeout(60):
            await self._tasks[1]

    async def log(self) -> list[Said]:
        """Return all that the room has, from its beginning."""
        found: list[Said] = []
        async with asyncio.timeout(30):
            while True:
                payload: Said = {"limit": 100}
                if found:
                    payload["before"] = {"epoch": found[0]["epoch"], "offset": found[0]["offset"]}
                reply = await self._ask("history", payload)
                if reply is None or reply["status"] != "ok":
                    await asyncio.sleep(0.1)
                elif page := reply["response"]["messages"]:
                    found[:0] = page
                else:
                    return found

    async def end(self) -> None:
        """Go."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _talk(self) -> None:
        loop = asyncio.get_running_loop()
        for number in itertools.count(1):
            if self._quiet:
                return
            content, began = f"{self.user} {number}", loop.time()
            while content not in self.acked:
                reply = await self._ask("new_message", {"content": content, "key": content})
                if reply is not None and reply["status"] == "ok":
                    self.acked[content] = reply["response"]
                    self.doubled += bool(reply["response"].get("duplicate"))
                else:
                    await asyncio.sleep(0.1)
            self.stall_s = max(self.stall_s, loop.time() - began)
            await asyncio.sleep(0.1)

    async def _ask(self, event: str, payload: Said) -> Said | None:
        connection = self._connection
        if connection is None or (self._joined is None and event != "phx_join"):
            return None
        ref = str(next(self._refs))
        if event == "phx_join":
            self._joining = ref
        reply: asyncio.Future[Said] = asyncio.get_running_loop().create_future()
        self._replies[ref] = reply
        try:
            async with asyncio.timeout(ANSWERED_S):
                await connection.send(
                    raw_frame(2, ref if event == "phx_join" else self._joined, ref, self._topic, event, payload)
                )
                return await reply
        except (TimeoutError, WebSocketException, OSError):
            return None
        finally:
            del self._replies[ref]

    async def _read(self) -> None:
        while True:
            with suppress(WebSocketException, OSError, TimeoutError, EOFError):
                port = self._port()
                # A node that stands still is noticed as phoenix.js does, by a heartbeat that is not answered.
                async with connect(
                    f"ws://localhost:{port}/socket/websocket?vsn=2.0.0&user_id={self.user}",
                    origin=Origin(f"http://localhost:{port}"),
                    max_queue=None,
                    open_timeout=2,
                    ping_interval=1,
                    ping_timeout=2,
                    close_timeout=0.2,
                ) as connection:
                    self._connection = connection
                    async for text in connection:
                        self._take(read(2, str(text)))
            self._connection = self._joined = None
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_exception(TimeoutError())
            await asyncio.sleep(0.1)

    async def _be_in(self) -> None:
        while True:
            if self._joined is None:
                place = {name: self.seen[-1][name] for name in ("epoch", "offset")} if self.seen else {}
                reply = await self._ask("phx_join", place)
                if place and reply is not None and reply["status"] == "ok" and not reply["response"]["recovered"]:
                    self.lost.append(reply["response"])
            await asyncio.sleep(0.05)

    def _take(self, frame: Any) -> None:
        if frame.event == "new_message":
            self.seen.append(frame.payload)
        elif frame.event in ("phx_error", "phx_close"):
            if frame.join_ref == self._joined:
                self._joined = None
        elif frame.event == "phx_reply":
            if frame.ref == self._joining and frame.payload["status"] == "ok":
                self._joined = frame.ref
            reply = self._replies.get(frame.ref)
            if reply is not None and not reply.done():
                reply.set_result(frame.payload)


async def check(talkers: Sequence[Talker]) -> int:
    """Assert that nothing was lost, doubled or disordered, and return how many messages there are."""
    count = 0
    for room in sorted({each.room for each in talkers}):
        inside = [each for each in talkers if each.room == room]
        # A replica that has missed a word hears of that within a second or two.
        newest = max(each["offset"] for talker in inside for each in talker.acked.values())
        async with asyncio.timeout(30):
            while any(talker.seen[-1]["offset"] < newest for talker in inside):  # noqa: ASYNC110  # no event for it
                await asyncio.sleep(0.05)
        log = await inside[0].log()
        count += len(log)
        assert [each["offset"] for each in log] == list(range(1, len(log) + 1)), f"{room} has holes"
        assert len({each["epoch"] for each in log}) == 1, f"{room} has another epoch"
        assert len({each["content"] for each in log}) == len(log), f"{room} has something twice"
        for talker in inside:
            await _check_one(talker, log)
    return count


async def _check_one(talker: Talker, log: Sequence[Said]) -> None:
    user, by_content = talker.user, {each["content"]: each for each in log}
    lost = [content for content in talker.acked if content not in by_content]
    assert not lost, f"acknowledged and lost: {lost}"
    for content, acked in talker.acked.items():
        found = by_content[content]
        assert (found["id"], found["offset"]) == (acked["id"], acked["offset"]), f"{content} is elsewhere"
    own = [each["content"] for each in log if each["content"].startswith(f"{user} ")]
    assert own == list(talker.acked), f"what {user} said is in another order"
    assert not talker.lost, f"{user} was told of a gap: {talker.lost}"
    behind = log[talker.seen[0]["offset"] - 1 :]
    assert [each["id"] for each in talker.seen] == [each["id"] for each in behind], f"{user} saw something else"
