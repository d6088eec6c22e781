"""The readers of a chat are ended some at a time, ahead of a stop that is in no hurry.

Clients come back at once. Were all of them ended together, they would be at the next node together.
"""

from __future__ import annotations

import asyncio
import math
import random
from typing import Final

from chatx.errors import ChatError
from chatx.runtime.readers import Readers

BATCH: Final = 50
"""Readers that are ended together, where the time is enough for that."""

STEP_S: Final = 0.05
"""Seconds between two batches, ± 50 %."""


async def send_away(readers: Readers, error: ChatError, within_s: float) -> None:
    """End all readers that are there, in an order that is drawn, within so many seconds."""
    waiting = list(readers)
    random.shuffle(waiting)
    steps = max(1, min(math.ceil(len(waiting) / BATCH), int(within_s / STEP_S)))
    size = max(1, math.ceil(len(waiting) / steps))
    for first in range(0, len(waiting), size):
        for each in waiting[first : first + size]:
            each.end(error)
        await asyncio.sleep(random.uniform(0.5, 1.5) * STEP_S)
