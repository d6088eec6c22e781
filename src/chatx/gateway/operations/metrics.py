"""A chat's figures in Prometheus' text format.

They are read from `Chat.statistics` when somebody asks, which costs the same however many rooms there are; until then
they cost nothing. No user and no room is named, which also bounds the number of series.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from chatx.chat import Chat

__all__ = ["CONTENT_TYPE", "GAUGES", "NODE_COUNTERS", "NODE_GAUGES", "Metrics", "Sockets"]

GAUGES: Mapping[str, str] = {
    "rooms": "Rooms in memory.",
    "members": "Users present, summed over the rooms.",
    "subscriptions": "Subscribers, summed over the rooms; a room's sockets are one.",
    "connections": "Open mailboxes and sockets.",
    "room_crashes": "Crashes of the rooms in memory.",
    "unread": "Events and writes that wait for their readers.",
    "admitted": "Messages admitted and not yet sequenced.",
    "token_buckets": "Pairs of room and user whose bucket is not full.",
    "idempotency_keys": "Keys remembered.",
    "delivery_waiting": "Messages that wait to be saved.",
    "notifications_waiting": "Messages that wait for the notifier in memory, or that it is told of from the outbox.",
    "outbox": "Notifications that the log keeps and that are to be told still, about.",
    "outbox_dead": "Dead notifications that the log keeps, about.",
    "rooms_unsaved": "Rooms of which a store behind the nodes' log lacks the end.",
}
NODE_GAUGES: Mapping[str, tuple[str, str]] = {
    "rooms_owned": ("rooms_owned", "Rooms of this node."),
    "rooms_followed": ("rooms_followed", "Replicas of rooms that other nodes own."),
    "rooms_left": ("rooms_left", "Rooms that have moved from this node, and that nobody has taken over yet."),
    "replicas_behind": ("replicas_behind", "Replicas that do not have everything."),
    "replica_lag_ms": ("replica_lag_ms", "For how long the replica has been behind that is so longest, in ms."),
    "link_connected": ("node_link_connected", "1 where the nodes' broker is reached, else 0."),
    "link_pending_bytes": ("node_link_pending_bytes", "What waits to be sent to the broker, in bytes."),
    "sends_waiting": ("node_sends_waiting", "Sends that wait for their turn to go to the node that has their room."),
    "requests_asking": ("node_requests_asking", "Questions to other nodes that wait for their answer."),
    "requests_answering": ("node_requests_answering", "Questions of other nodes that are being answered."),
}
NODE_COUNTERS: Mapping[str, tuple[str, str]] = {
    "records_refused": ("node_records_refused", "Records of other nodes that could not be read."),
    "isolations": ("node_isolations", "How often this node's heartbeats did not come back."),
    "deafnesses": ("node_deafnesses", "How often it found out that it does not hear all that is said to it."),
    "links_lost": ("node_links_lost", "How often the nodes' broker was lost."),
}
_COUNTERS: Mapping[str, tuple[str, str]] = {
    "sent": ("messages_sent", "Messages published."),
    "duplicates": ("duplicates", "Repeats of an idempotency key answered."),
    "rooms_closed_by_crashes": ("rooms_closed_by_crashes", "Rooms that crashed too often and were closed."),
    "delivered": ("deliveries", "Deliveries that succeeded."),
    "delivery_retries": ("delivery_retries", "Failed deliveries that were tried again."),
    "dead_letters": ("dead_letters", "Deliveries given up."),
}
_LABELLED: Mapping[str, tuple[str, str, str]] = {
    "refused": ("messages_refused", "code", "Refused sends, by error code."),
    "adapter_failures": ("adapter_failures", "adapter", "Failed adapter calls, by adapter."),
}


class Sockets(Protocol):
    """What a server knows of its sockets."""

    @property
    def connections(self) -> int:
        """How many sockets are open."""
        ...

    @property
    def polling(self) -> int:
        """How many clients poll instead."""
        ...

    @property
    def refused(self) -> Mapping[int, int]:
        """How many connections were refused before they were served, by HTTP status."""
        ...

    @property
    def sockets_closed(self) -> Mapping[int, int]:
        """How many sockets this side closed, by close code."""
        ...


class Metrics:
    """The figures of one chat, of its server where there is one, and of the process.

    Args:
        chat: The chat; it need not run yet.
        sockets: The server; None leaves its figures out.
    """

    def __init__(self, chat: Chat, sockets: Sockets | None = None) -> None:
        self._chat = chat
        self._sockets = sockets
        self._registry = CollectorRegistry()
        self._registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    def text(self) -> bytes:
        """Return all figures as of now; its type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the chat's and the server's figures; for a registry of your own."""
        statistics = self._chat.statistics()
        yield _gauge("up", "1 where the chat takes work, else 0.", int(statistics.running))
        yield _gauge("tasks", "Tasks of the event loop that is asked, the application's own too.", _tasks())
        for field, meaning in GAUGES.items():
            yield _gauge(field, meaning, getattr(statistics, field))
        for field, (name, meaning) in _COUNTERS.items():
            yield CounterMetricFamily(f"chatx_{name}", meaning, value=getattr(statistics, field))
        for field, (name, label, meaning) in _LABELLED.items():
            yield _labelled(name, meaning, label, getattr(statistics, field))
        if statistics.nodes:
            nodes = GaugeMetricFamily("chatx_nodes", "Nodes that this one knows, by state.", labels=["state"])
            for state, count in statistics.nodes.items():
                nodes.add_metric([state], count)
            yield nodes
            strategy = GaugeMetricFamily("chatx_cluster_strategy", "1 for the strategy in effect.", labels=["strategy"])
            strategy.add_metric([statistics.cluster_strategy], 1)
            yield strategy
            for field, (name, meaning) in NODE_GAUGES.items():
                yield _gauge(name, meaning, getattr(statistics, field))
            for field, (name, meaning) in NODE_COUNTERS.items():
                yield CounterMetricFamily(f"chatx_{name}", meaning, value=getattr(statistics, field))
        if self._sockets is not None:
            yield _gauge("sockets", "Open sockets.", self._sockets.connections)
            yield _gauge("polling_sessions", "Clients that poll instead.", self._sockets.polling)
            yield _labelled(
                "connections_refused",
                "Connections refused before they were served, by HTTP status.",
                "status",
                self._sockets.refused,
            )
            yield _labelled(
                "sockets_closed", "Sockets that the server closed, by close code.", "code", self._sockets.sockets_closed
            )


def _tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # asked in a thread, where no loop is
        return 0


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"chatx_{name}", meaning, value=value)


def _labelled(name: str, meaning: str, label: str, values: Mapping[str, int] | Mapping[int, int]) -> Metric:
    family = CounterMetricFamily(f"chatx_{name}", meaning, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([str(value)], count)
    return family
