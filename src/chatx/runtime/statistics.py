"""One look at a running chat."""

from __future__ import annotations

from msgspec import Struct

from chatx.runtime.engine import Engine


class Statistics(Struct, frozen=True):
    """Counters since the chat was started, and gauges of the moment.

    Attributes:
        running: Whether the chat takes work.
        cluster_strategy: The strategy in effect.
        rooms: Rooms in memory.
        members: Users present, summed over the rooms.
        subscriptions: Subscribers, summed over the rooms.
        connections: Open mailboxes: connections and iterating subscriptions.
        unread: Events unread in them; exact up to 100 connections, beyond that as they were when looked at last.
        admitted: Messages admitted and not yet sequenced, summed over the rooms.
        token_buckets: (room, user) pairs whose bucket is not full.
        idempotency_keys: Keys remembered.
        sent: Messages published.
        duplicates: Repeats of an idempotency key answered.
        refused: Refused sends, by code.
        room_crashes: Crashes of the rooms in memory.
        rooms_closed_by_crashes: Rooms that crashed too often and were closed.
        adapter_failures: Failed adapter calls, by adapter name.
        delivery_waiting: Messages that wait to be saved.
        notifications_waiting: Messages that wait for the notifier in memory, or that it is told of from the outbox.
        outbox: Notifications that the log keeps and that are to be told still, about.
        outbox_dead: Dead notifications that the log keeps, about.
        rooms_unsaved: Rooms of which a store behind the nodes' log lacks the end.
        delivered: Deliveries that succeeded.
        delivery_retries: Failed deliveries that were tried again.
        dead_letters: Deliveries given up.
        nodes: Nodes that this one knows, itself included, by state: `up`, `joining`, `draining`, `suspect`, `ignored`.
        rooms_owned: Rooms of this node, where there are several.
        rooms_followed: Replicas of rooms that other nodes own; they count as `rooms` too.
        rooms_left: Rooms that have moved from this node, and that nobody has taken over yet.
        replicas_behind: Replicas that do not have everything, as of the last second.
        replica_lag_ms: For how long the one of them has been behind that is so longest, in ms.
        link_connected: 1 where the nodes' broker is reached, else 0.
        link_pending_bytes: What waits to be sent to it, in bytes.
        sends_waiting: Sends that wait for their turn to go to the node that has their room.
        requests_asking: Questions to other nodes that wait for their answer.
        requests_answering: Questions of other nodes that are being answered.
        records_refused: Records of other nodes that could not be read.
        isolations: How often this node's heartbeats did not come back.
        deafnesses: How often it found out that it does not hear all that is said to it.
        links_lost: How often the broker was lost.
    """

    running: bool
    cluster_strategy: str
    rooms: int = 0
    members: int = 0
    subscriptions: int = 0
    connections: int = 0
    unread: int = 0
    admitted: int = 0
    token_buckets: int = 0
    idempotency_keys: int = 0
    sent: int = 0
    duplicates: int = 0
    refused: dict[str, int] = {}
    room_crashes: int = 0
    rooms_closed_by_crashes: int = 0
    adapter_failures: dict[str, int] = {}
    delivery_waiting: int = 0
    notifications_waiting: int = 0
    outbox: int = 0
    outbox_dead: int = 0
    rooms_unsaved: int = 0
    delivered: int = 0
    delivery_retries: int = 0
    dead_letters: int = 0
    nodes: dict[str, int] = {}
    rooms_owned: int = 0
    rooms_followed: int = 0
    rooms_left: int = 0
    replicas_behind: int = 0
    replica_lag_ms: int = 0
    link_connected: int = 0
    link_pending_bytes: int = 0
    sends_waiting: int = 0
    requests_asking: int = 0
    requests_answering: int = 0
    records_refused: int = 0
    isolations: int = 0
    deafnesses: int = 0
    links_lost: int = 0


def statistics_of(engine: Engine) -> Statistics:
    """Return the engine's counters and gauges; takes the same time however many rooms and connections there are."""
    sending = engine.sending
    delivery = engine.delivery
    totals = engine.rooms.totals
    if engine.here:
        engine.consumers.look()
    return Statistics(
        running=engine.open,
        cluster_strategy=engine.config.cluster_strategy,
        rooms=len(engine.rooms),
        members=totals.members,
        subscriptions=totals.subscriptions,
        connections=len(engine.consumers),
        unread=engine.consumers.unread,
        admitted=totals.admitted,
        token_buckets=len(sending.buckets),
        idempotency_keys=len(sending.window),
        sent=sending.sent,
        duplicates=sending.duplicates,
        refused=dict(sending.refused),
        room_crashes=totals.crashes,
        rooms_closed_by_crashes=engine.rooms.closed_by_crashes,
        adapter_failures=dict(engine.boundary.failures),
        delivery_waiting=delivery.size,
        notifications_waiting=delivery.notifications,
        outbox=delivery.outbox[0],
        outbox_dead=delivery.outbox[1],
        rooms_unsaved=getattr(engine.config.persistence, "rooms_unsaved", 0),
        delivered=delivery.delivered,
        delivery_retries=delivery.retried,
        dead_letters=delivery.letters.count,
        **({} if engine.overview is None else engine.overview.figures()),
    )
