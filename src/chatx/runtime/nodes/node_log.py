"""What a node writes to the log of the others and of the way to them, and no more of it than somebody can read."""

from __future__ import annotations

import logging
import time
from typing import Final

from chatx.cluster.peers import Change
from chatx.core.log_limit import LogLimit

logger: logging.Logger = logging.getLogger("chatx")

LOGGED_PER_MINUTE: Final = 10
"""Lines of the log in a minute, at most, of each kind that comes with each record or message."""

_SERIOUS: Final = frozenset({"isolated", "refused", "differs", "full", "ignored"})


class NodeLog:
    """The lines of one node."""

    def __init__(self) -> None:
        self._unread = LogLimit(LOGGED_PER_MINUTE)
        self._unsent = LogLimit(LOGGED_PER_MINUTE)
        self._unknown = LogLimit(LOGGED_PER_MINUTE)

    def unread(self, what: str, error: Exception) -> None:
        """Say that a record could not be read."""
        if (left_out := self._unread.due(time.monotonic())) is not None:
            text = "Of the nodes %s cannot be read: %s%s"
            logger.warning(text, what, error, _more(left_out), extra={"code": "malformed"})

    def unsent(self, room_id: str, error: Exception) -> None:
        """Say that the replicas of a room were not told something."""
        if (left_out := self._unsent.due(time.monotonic())) is not None:
            text = "What room %r tells its replicas was not sent, and is caught up: %s%s"
            logger.warning(text, room_id, error, _more(left_out), extra={"room": room_id, "code": "not_sent"})

    def changed(self, change: Change) -> None:
        """Say what happened to a node, this one or another."""
        left_out: int | None = 0
        if change.kind == "ignored" and not change.boot:  # of which each heartbeat tells anew
            left_out = self._unknown.due(time.monotonic())
        if left_out is not None:
            logger.log(
                logging.WARNING if change.kind in _SERIOUS else logging.INFO,
                "Node %s: %s. %s%s",
                change.node or "unknown",
                change.kind,
                change.reason,
                _more(left_out),
                extra={"node": change.node, "code": f"node_{change.kind}"},
            )


def _more(left_out: int) -> str:
    return f" {left_out} lines like this were left out." if left_out else ""
