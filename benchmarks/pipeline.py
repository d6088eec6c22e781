"""The whole way of one message without subscribers, as a multiple of one msgspec JSON encode of it.

python -m benchmarks.pipeline SECONDS
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import msgspec

from benchmarks.fanout import CONTENT, UNLIMITED
from chatx import Chat


class Allow:
    """Auth and moderation that say yes, so that all three middlewares run."""

    def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        """Say yes."""
        return True

    def check(self, content: str) -> bool:
        """Say yes."""
        return True


async def measure(seconds: float) -> dict[str, float]:
    """Return seconds per message and per encode, measured in turn."""
    sent = encoded = 0
    sending = encoding = 0.0
    encode = msgspec.json.Encoder().encode
    async with Chat(auth=Allow(), moderation=Allow(), rate_limit=UNLIMITED) as chat:
        message = await chat.send_message("lobby", "user-0001", CONTENT)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            for _ in range(1000):
                await chat.send_message("lobby", "user-0001", CONTENT)
            between = time.perf_counter()
            for _ in range(1000):
                encode(message)
            sending += between - began
            encoding += time.perf_counter() - between
            sent += 1000
            encoded += 1000
    return {"send": sending / sent, "encode": encoding / encoded}


def main() -> None:
    """Measure and print JSON."""
    print(json.dumps(asyncio.run(measure(float(sys.argv[1])))))


if __name__ == "__main__":
    main()
