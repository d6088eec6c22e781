"""A chat client in one file. It comes back after every cut, goes on after the last message seen, and doubles nothing.

For trying it out, against a server of `chatx serve --insecure-user-param`:
    python examples/client.py "ws://localhost:4000/socket/websocket?vsn=2.0.0&user_id=ada" general
"""

import asyncio
import json
import random
import sys
import uuid
from collections.abc import Callable
from itertools import count
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

HEARTBEAT_S = 30.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
KEY_S = 300.0  # as long as the server remembers the key of a message


class Refused(Exception):
    """The server said no, and would say so again."""


class Client:
    def __init__(
        self, address: Callable[[], str], room_id: str, show: Callable[[Any], None], missed: Callable[[str], None]
    ) -> None:
        self.address = address  # called for each connection, so that a token in it is never an old one
        self.topic = f"room:{room_id}"
        self.show = show
        self.missed = missed
        self.seen: dict[str, Any] = {}  # the place of the last message; keep it to go on in another process
        self.joined = asyncio.Event()
        self._refs = count(1)
        self._join_ref = ""
        self._replies: dict[str, asyncio.Future[Any]] = {}
        self._failures = 0

    async def run(self) -> None:
        """Stay in the room until cancelled; raise `Refused` where it may not be joined."""
        while True:
            try:
                async with connect(self.address()) as self._socket:
                    heart = asyncio.create_task(self._beat())
                    try:
                        await self._join()
                        async for text in self._socket:
                            await self._take(*json.loads(text))
                    finally:
                        heart.cancel()
            except (OSError, WebSocketException) as error:
                print(f"cut off: {error}", file=sys.stderr)
            finally:
                self.joined.clear()
                for ref in list(self._replies):
                    self._answer(ref, None)
            self._failures += 1
            pause_s = min(FIRST_PAUSE_S * 2**self._failures, LONGEST_PAUSE_S)
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))

    async def send(self, content: str) -> Any:
        """Return the place of the message once it has one, however often the connection is cut meanwhile.

        Raises `Refused`, or `TimeoutError` where it may be there or not and it is too late to ask again; where it is
        refused with `epoch_changed`, it may be there as well.
        """
        message = {"content": content, "key": str(uuid.uuid4())}  # one key for all attempts
        async with asyncio.timeout(KEY_S):
            while True:
                await self.joined.wait()
                epoch = self.seen["epoch"]
                reply = await self._ask(self.topic, "new_message", message)
                if reply is not None and reply["status"] == "ok":
                    return reply["response"]
                if reply is None or reply["response"]["code"] == "room_unavailable":
                    # Nobody knows whether it was published. The key makes it safe to ask again, in its own epoch.
                    message.setdefault("epoch", epoch)
                await asyncio.sleep(_pause_s(reply["response"]) if reply is not None else 0)

    async def _ask(self, topic: str, event: str, payload: Any) -> Any:
        """Return the reply, or None where the connection was cut before it came."""
        ref = str(next(self._refs))
        self._replies[ref] = reply = asyncio.get_running_loop().create_future()
        join_ref = self._join_ref if topic == self.topic else None
        try:
            await self._socket.send(json.dumps([join_ref, ref, topic, event, payload]))
            return await reply
        except ConnectionClosed:
            return None

    async def _join(self) -> None:
        self.joined.clear()
        self._join_ref = str(next(self._refs))
        await self._socket.send(json.dumps([self._join_ref, self._join_ref, self.topic, "phx_join", self.seen]))

    async def _beat(self) -> None:
        # This tells the server that somebody is here. Whether the server is, the library asks with its own pings.
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._ask("phoenix", "heartbeat", {})

    async def _take(self, join_ref: str | None, ref: str | None, topic: str, event: str, payload: Any) -> None:
        if event == "phx_reply" and ref in self._replies:
            self._answer(ref, payload)
        elif topic != self.topic or join_ref not in (None, self._join_ref):
            pass  # of a membership that is over
        elif event == "phx_reply" and ref == self._join_ref:
            await self._join_answered(payload["status"], payload["response"])
        elif event == "new_message":
            self.seen = {"epoch": payload["epoch"], "offset": payload["offset"]}
            self.show(payload)
        elif event == "phx_error":
            await self._join()

    async def _join_answered(self, status: str, response: Any) -> None:
        if status == "error":
            await asyncio.sleep(_pause_s(response))
            await self._join()
            return
        if not response["recovered"]:  # else the missed messages follow, and each moves `seen`
            self.seen = {"epoch": response["epoch"], "offset": response["offset"]}
            if "reason" in response:
                self.missed(response["reason"])
        self._failures = 0
        self.joined.set()

    def _answer(self, ref: str, payload: Any) -> None:
        reply = self._replies.pop(ref)
        if not reply.done():
            reply.set_result(payload)


def _pause_s(refusal: Any) -> float:
    """Return how long to wait before asking again; raise `Refused` where that is of no use."""
    # These two are not retryable as they are, but fine after the next join.
    if not refusal["retryable"] and refusal["code"] not in ("unmatched_topic", "closed"):
        raise Refused(f"{refusal['code']}: {refusal['reason']}")
    return float(refusal.get("retry_after_ms", 1000)) / 1000


async def main(address: str, room_id: str) -> None:
    client = Client(
        lambda: address,
        room_id,
        show=lambda message: print(f"{message['user_id']}: {message['content']}"),
        missed=lambda reason: print(f"some messages are missing here: {reason}"),
    )
    running = asyncio.create_task(client.run())
    while line := await asyncio.to_thread(sys.stdin.readline):
        await client.send(line.rstrip("\n"))
    running.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
