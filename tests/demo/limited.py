"""`chatx` whose demo refuses for sending too fast, however slow the machine is.

Run: python -m tests.demo.limited patient|stumbling demo ...
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import chatx.demo.app
from chatx import Draft, RateLimit, RateLimited
from chatx.cli import main


class Stumbling:
    """A middleware that refuses the eighth message of each room once, as the rate limit does."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def __call__(self, draft: Draft) -> Draft:
        seen = self._seen[draft.room_id] = self._seen.get(draft.room_id, 0) + 1
        if seen == 8:
            raise RateLimited("Too fast.", retry_after=0.2)
        return draft


OPTIONS: dict[str, dict[str, Any]] = {
    # Fifty seconds for a token.
    "patient": {"rate_limit": RateLimit(messages_per_sec=0.02, burst=20)},
    "stumbling": {
        "rate_limit": RateLimit(messages_per_sec=1e6, burst=10**6),
        "middlewares": ("auth", Stumbling(), "moderation"),
    },
}

if __name__ == "__main__":
    chatx.demo.app.demo_app = partial(chatx.demo.app.demo_app, **OPTIONS[sys.argv.pop(1)])
    sys.exit(main())
