"""`Backplane`: the link between nodes, and what holds of it.

It promises little, so that a broker that forgets everything can keep it: what is published is received at most once,
and whoever relies on having received all of it is told when that may not be so. Nothing waits in it for a broker that
is away: what cannot be sent now is refused now.

Words: a *boot* is one life of a node, and its id is random, so that a restart never gets what its predecessor was
asked. The link is *connected*, or *away* from its broker. What a call cannot do it raises:

| raised | the request was handled |
|---|---|
| `BackplaneAway`, `BackplaneFull`, `PayloadTooLarge`, `NobodyThere`, `NodeBusy` | surely not |
| `NoReply`, `RequestFailed` | perhaps |
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final, Literal, Protocol, TypeAlias

from msgspec import Struct

from chatx.core.node_names import BOOT_ID

PAYLOAD_BYTES: Final = 1_048_576 - 4_096
"""The largest payload, in bytes: a MiB, which a NATS server takes unless it is told otherwise, without the envelope."""

PENDING_BYTES: Final = 1_048_576
"""How much may wait to be sent, in bytes; what goes beyond it is refused."""

TOPIC_LIMIT: Final = 200
"""The longest topic, in characters."""

REQUESTS_AT_ONCE: Final = 4_096
"""Requests of one node that wait for their reply, at most; more are refused as `BackplaneFull`."""

SERVED_AT_ONCE: Final = 256
"""Requests that a node handles at once, unless it says otherwise; more are answered `NodeBusy`."""

LinkState: TypeAlias = Literal["connected", "away"]
"""Whether the broker is reached."""

Receive: TypeAlias = Callable[[bytes], object]
"""What a subscription calls with each payload. It only enqueues; what it raises is logged and goes no further."""

Handle: TypeAlias = Callable[[bytes], Awaitable[bytes]]
"""What answers a request. What it raises is logged here, and the asker gets `RequestFailed` without its text; but where
the call itself, and not what it returns, raises `NodeBusy`, nothing was done, and the asker gets that."""

_TOPIC: Final = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_BOOT: Final = re.compile(BOOT_ID)


class BackplaneError(Exception):
    """The link between nodes did not do what was asked of it."""


class BackplaneAway(BackplaneError):
    """The broker is not reached now; nothing was sent."""


class BackplaneFull(BackplaneError):
    """As much waits as may wait, in bytes or in requests; nothing was sent."""


class PayloadTooLarge(BackplaneError):
    """The payload has more than `PAYLOAD_BYTES`; nothing was sent."""


class NobodyThere(BackplaneError):
    """No process serves this boot, as far as the broker knows; told at once, and a sign of its death."""


class NodeBusy(BackplaneError):
    """The node handles as many requests as it does at once; it did not look at this one."""


class RequestFailed(BackplaneError):
    """The node's handler raised, or its answer was none."""


class NoReply(BackplaneError):
    """No reply came in time, or the link was lost meanwhile."""


class Broker(Struct, frozen=True):
    """What is between the nodes, as it was when it was asked.

    Attributes:
        name: What it calls itself.
        version: Its version.
        keeps: Whether it can keep what is said: with NATS, whether it has JetStream.
        round_trip_s: From here to there and back, in seconds.
    """

    name: str
    version: str
    keeps: bool
    round_trip_s: float


class Subscribed(Protocol):
    """A subscription that was made."""

    def end(self) -> None:
        """End it: its callback is not called again, also not with what has come already; twice is harmless."""
        ...


class Backplane(Protocol):
    """The link of one node to all others. Its methods belong to one event loop."""

    @property
    def boot(self) -> str:
        """The id of this life of the node, under which it is asked."""
        ...

    @property
    def state(self) -> LinkState:
        """Whether the broker is reached, as far as is known: one that freezes is noticed within 4 s."""
        ...

    @property
    def pending_bytes(self) -> int:
        """How much of what was published or asked is still here, in bytes; at most `PENDING_BYTES`."""
        ...

    def watch(
        self,
        on_state: Callable[[LinkState], object] | None = None,
        on_missed: Callable[[str | None], object] | None = None,
    ) -> None:
        """Tell of what happens to the link, for as long as it is there; before `connect`, at most a few times.

        Args:
            on_state: Called at each change of `state`, when it has changed.
            on_missed: Called where something may not have been received: with the topic where one subscription was too
                slow, and with None where it may be any, which is after every `connected` but the first. All that
                is subscribed is there again by then, so whoever compares now finds all that was missed.
        """
        ...

    async def connect(self, timeout_s: float = 5.0) -> None:
        """Reach the broker, and keep doing so until `close`, however often it goes.

        Raises:
            BackplaneAway: It was not reached in time; the reason says why, without secrets. It may be called again.
        """
        ...

    def renew(self, reason: str) -> None:
        """Give up what there is of the link and make it anew, as where it was lost: somebody knows that it is deaf.

        Where it is away, that is done already.
        """
        ...

    async def close(self) -> None:
        """Send what waits, for a second at most, and end; twice is harmless.

        Whoever waits for a reply gets `NoReply`.
        """
        ...

    async def broker(self) -> Broker:
        """Ask the broker who it is.

        Raises:
            BackplaneAway: The link is away, or the broker does not answer within 4 s.
        """
        ...

    def publish(self, topic: str, payload: bytes) -> None:
        """Send to all who are subscribed, this node included.

        Each gets it once or not at all. What one node publishes on one topic arrives in this order while both stay
        connected.

        Raises:
            BackplaneAway: The link is away.
            BackplaneFull: More than `PENDING_BYTES` would wait.
            PayloadTooLarge: It has more than `PAYLOAD_BYTES`.
            ValueError: The topic is none.
        """
        ...

    async def subscribe(self, topic: str, receive: Receive) -> Subscribed:
        """Receive what is published on a topic.

        When this returns, what anyone publishes from here on arrives while the link stays connected. While it is away
        this returns at once, and the subscription begins with the link. Callers bound how many there are.

        Raises:
            ValueError: The topic is none.
        """
        ...

    async def serve(self, handle: Handle, *, at_once: int = SERVED_AT_ONCE) -> None:
        """Answer what this boot is asked, at most so many at once; may be called once.

        A reply that cannot be sent is lost, and its asker gets `NoReply`.
        """
        ...

    async def request(self, boot: str, payload: bytes, timeout_s: float) -> bytes:
        """Ask a node, this one included, and return its reply.

        Raises:
            NobodyThere: No such boot.
            NodeBusy: It handles as much as it does at once.
            RequestFailed: Its handler raised.
            NoReply: None came in time, or the link was lost: perhaps it was handled.
            BackplaneAway: The link is away.
            BackplaneFull: More than `PENDING_BYTES` or `REQUESTS_AT_ONCE` would wait.
            PayloadTooLarge: It has more than `PAYLOAD_BYTES`.
            ValueError: The boot id is none.
        """
        ...


def check_topic(topic: str) -> None:
    """Check that a topic is one: words of letters, digits, `-` and `_`, with dots between them.

    Raises:
        ValueError: It is none.
    """
    if len(topic) > TOPIC_LIMIT or not _TOPIC.fullmatch(topic):
        raise ValueError(
            f"{topic[: TOPIC_LIMIT + 1]!r} is no topic; give words of letters, digits, '-' and '_' with dots between "
            f"them, at most {TOPIC_LIMIT} characters."
        )


def check_boot(boot: str) -> None:
    """Check that a boot id is one.

    Raises:
        ValueError: It is none.
    """
    if not _BOOT.fullmatch(boot):
        raise ValueError(f"{boot[:80]!r} is no boot id; give what a node tells of itself.")


def check_published(topic: str, payload: bytes, pending: int) -> None:
    """Check what is to be published, where so many bytes wait to be sent already.

    Raises:
        ValueError: The topic is none.
        PayloadTooLarge: The payload has more than `PAYLOAD_BYTES`.
        BackplaneFull: More than `PENDING_BYTES` would wait.
    """
    check_topic(topic)
    check_sent(payload, pending)


def check_asked(boot: str, payload: bytes, pending: int, requests: int) -> None:
    """Check what a node is to be asked, where so many bytes, and so many requests, wait already.

    Raises:
        ValueError: The boot id is none.
        PayloadTooLarge: The payload has more than `PAYLOAD_BYTES`.
        BackplaneFull: More than `PENDING_BYTES` or `REQUESTS_AT_ONCE` would wait.
    """
    check_boot(boot)
    check_sent(payload, pending, requests)


def check_sent(payload: bytes, pending: int, requests: int = 0) -> None:
    """Check what is to be sent, where so many bytes, and so many requests, wait already; raises as `check_asked`."""
    if requests >= REQUESTS_AT_ONCE:
        raise BackplaneFull(f"{REQUESTS_AT_ONCE} requests wait for their reply, which is the bound; try again later.")
    if len(payload) > PAYLOAD_BYTES:
        raise PayloadTooLarge(f"A payload has {len(payload)} bytes; at most {PAYLOAD_BYTES} go over the backplane.")
    if pending + len(payload) > PENDING_BYTES:
        raise BackplaneFull(
            f"{pending} bytes wait to be sent, and {len(payload)} more would go beyond {PENDING_BYTES}; try again "
            "when `pending_bytes` has fallen."
        )
