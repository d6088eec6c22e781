"""Telemetry: each event of the table, once per what it counts, and handlers that misbehave."""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from chatx import Chat, ChatError, ConfigError, RateLimit, SlowConsumer, Telemetry, telemetry
from chatx.telemetry import EVENTS
from tests.faults import RAISING, Batches, CrashingChat, FaultyAuth, Gate, raises
from tests.virtual import virtual

Seen = list[tuple[str, Mapping[str, float], Mapping[str, Any]]]


def watch(chat: Chat, *events: str) -> Seen:
    """Return the list in which these events are kept from now on."""
    seen: Seen = []
    for event in events:
        chat.telemetry.attach(event, lambda *told: seen.append(told))
    return seen


def table() -> dict[str, tuple[set[str], set[str]]]:
    """Return the docstring's table: event to (measurements, metadata)."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|([^|]*)\|$", telemetry.__doc__ or "", re.MULTILINE)
    return {name: (set(re.findall(r"`(\w+)`", one)), set(re.findall(r"`(\w+)`", two))) for name, one, two in rows}


def test_the_table_of_the_docstring_has_every_event() -> None:
    assert set(table()) == EVENTS


def test_the_names_that_chatx_has_are_there() -> None:
    chatx = {"message_sent", "room_join", "room_leave", "broadcast", "queue_size", "queue_overflow", "rate_limit_hit"}
    assert chatx <= EVENTS


@virtual
async def test_every_event_is_emitted_with_the_fields_of_the_table() -> None:
    persistence = Batches("poison")
    chat = CrashingChat(
        persistence=persistence,
        auth=FaultyAuth(raises),
        middlewares=("auth", "rate_limit", Gate().__call__),
        mailbox_size=1,
        room_queue_limit=1,
        room_idle_ms=1000,
        delivery_max_retries=1,
        rate_limit=RateLimit(1, 2),
    )
    gate: Any = chat.config.middlewares[2].__self__  # type: ignore[union-attr]
    seen = watch(chat, *EVENTS)
    async with chat:
        slow = await chat.subscribe("room")
        failing = chat.subscribe_callback("failing", lambda event: 1 / 0)
        _ = await failing
        await chat.join("room", "alice")
        await chat.leave("room", "alice")
        first = asyncio.create_task(chat.send_message("room", "alice", "poison"))
        await asyncio.sleep(0.01)
        results = [await asyncio.gather(chat.send_message("room", "bob", "hello"), return_exceptions=True)]
        gate.open()
        await first
        await asyncio.sleep(0.01)
        for user, room in (("alice", "room"), ("alice", "room"), ("victim", "room"), ("bob", "failing")):
            sending = chat.send_message(room, user, "hello")
            results.append(await asyncio.gather(sending, return_exceptions=True))
        assert [getattr(each[0], "code", "sent") for each in results] == [
            "room_overloaded",
            "sent",
            "rate_limited",
            "adapter_error",
            "sent",
        ]
        chat.crash("publish: before")
        with pytest.raises(ChatError):
            await chat.send_message("room", "carol", "crash")
        await asyncio.sleep(0.01)
        with pytest.raises(SlowConsumer):
            for _ in range(5):
                await anext(slow)
        await asyncio.sleep(60)
        persistence.down = True
        await chat.send_message("room", "dave", "one")
        await chat.send_message("room", "eve", "two")
        await asyncio.sleep(1)
        persistence.down = False
        await asyncio.sleep(60)
    expected = table()
    assert {event for event, _, _ in seen} == EVENTS
    for event, measurements, metadata in seen:
        assert (set(measurements), set(metadata)) == expected[event], event
        assert all(isinstance(each, (int, float)) for each in measurements.values())


@virtual
async def test_broadcast_fires_once_a_message_with_recipients_or_without() -> None:
    chat = Chat()
    seen = watch(chat, "broadcast", "message_sent")
    async with chat:
        await chat.send_message("room", "alice", "to nobody")
        async with chat.subscribe("room"), chat.subscribe("room"):
            message = await chat.send_message("room", "alice", "é")
            await chat.send_message("room", "alice", "é", idempotency_key="k")
            await chat.send_message("room", "alice", "é", idempotency_key="k")
    broadcasts = [measured["recipients"] for event, measured, _ in seen if event == "broadcast"]
    assert broadcasts == [0, 2, 2]
    sent = [(measured, about) for event, measured, about in seen if event == "message_sent"]
    assert len(sent) == 3, "a repeat is not sent again"
    assert sent[1][0]["bytes"] == 2
    assert sent[1][1] == {"room_id": "room", "user_id": "alice", "message_id": message.id, "offset": 2}


@virtual
async def test_room_join_and_leave_fire_when_a_users_first_and_last_membership_does() -> None:
    chat = Chat()
    seen = watch(chat, "room_join", "room_leave")
    async with chat:
        await chat.join("room", "bob")
        await chat.join("room", "bob")
        async with chat.connect("alice") as one, chat.connect("alice") as two:
            await one.join("room")
            await two.join("room")
            await one.leave("room")
        await chat.leave("room", "bob")
        await chat.leave("room", "bob")
    assert [(event, measured["members"], about["user_id"]) for event, measured, about in seen] == [
        ("room_join", 1, "bob"),
        ("room_join", 2, "alice"),
        ("room_leave", 1, "alice"),
        ("room_leave", 0, "bob"),
    ]


@virtual
async def test_rate_limit_hit_tells_the_wait() -> None:
    chat = Chat(rate_limit=RateLimit(2, 1))
    seen = watch(chat, "rate_limit_hit", "message_refused")
    async with chat:
        await chat.send_message("room", "alice", "hello")
        with pytest.raises(ChatError):
            await chat.send_message("room", "alice", "hello")
    assert seen == [
        ("rate_limit_hit", {"retry_after_ms": 500.0}, {"room_id": "room", "user_id": "alice"}),
        ("message_refused", {}, {"room_id": "room", "user_id": "alice", "code": "rate_limited"}),
    ]


@virtual
async def test_no_event_holds_the_content_of_a_message() -> None:
    chat = Chat(persistence=Batches("do not tell"), delivery_max_retries=1)
    seen = watch(chat, *EVENTS)
    async with chat, chat.subscribe("room"):
        await chat.join("room", "alice")
        await chat.send_message("room", "alice", "do not tell")
        await asyncio.sleep(10)
    assert seen
    assert "do not tell" not in repr(seen)


# Handlers


@pytest.mark.parametrize("name", ["broadcast", "chatx.broadcast"])
@virtual
async def test_a_handler_gets_the_name_as_it_attached_it_until_it_is_detached(name: str) -> None:
    chat = Chat()
    seen: list[str] = []
    detach = chat.telemetry.attach(name, lambda event, measurements, metadata: seen.append(event))
    async with chat:
        await chat.send_message("room", "alice", "one")
        assert seen == [name]
        detach()
        detach()
        await chat.send_message("room", "alice", "two")
        assert seen == [name]


@pytest.mark.parametrize("event", ["unknown", "chatx.", "", "chatx.chatx.broadcast", None, 5, ["broadcast"]])
def test_an_unknown_event_is_refused_with_the_ones_there_are(event: Any) -> None:
    with pytest.raises(ConfigError, match="there are adapter_failure, broadcast"):
        Telemetry().attach(event, print)


def test_a_handler_that_is_not_callable_is_refused() -> None:
    with pytest.raises(ConfigError, match="plain function of three arguments"):
        Telemetry().attach("broadcast", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("act", RAISING, ids=lambda act: act.__name__)
@virtual
async def test_a_handler_that_raises_is_detached_and_logged_and_harms_nothing(
    act: Callable[[], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    chat = Chat()
    calls: list[int] = []

    def broken(*event: Any) -> None:
        calls.append(1)
        act()

    chat.telemetry.attach("broadcast", broken)
    seen = watch(chat, "broadcast")
    async with chat, chat.subscribe("room") as subscription:
        for content in ("one", "two"):
            await chat.send_message("room", "alice", content)
        assert [(await anext(subscription)).content for _ in range(2)] == ["one", "two"]  # type: ignore[union-attr]
    assert (len(calls), len(seen)) == (1, 2)
    assert "handler for broadcast raised and was detached" in caplog.text.replace("telemetry ", "")


def test_handlers_are_told_in_the_order_of_attaching_and_one_may_attach_twice() -> None:
    chat = Telemetry()
    seen: list[str] = []

    def first(*event: Any) -> None:
        seen.append("first")

    detach = chat.attach("broadcast", first)
    chat.attach("broadcast", lambda *event: seen.append("second"))
    chat.attach("broadcast", first)
    chat.emit("broadcast", {}, {})
    assert seen == ["first", "second", "first"]
    detach()
    seen.clear()
    chat.emit("broadcast", {}, {})
    assert seen == ["second", "first"]


def test_a_handler_may_detach_itself_and_others_while_it_is_told() -> None:
    chat = Telemetry()
    seen: list[str] = []

    def once(*event: Any) -> None:
        seen.append("once")
        detach()

    detach = chat.attach("broadcast", once)
    chat.attach("broadcast", lambda *event: seen.append("always"))
    chat.emit("broadcast", {}, {})
    chat.emit("broadcast", {}, {})
    assert seen == ["once", "always", "always"]
    assert chat.watched("broadcast")
    assert not chat.watched("room_join")


@virtual
async def test_handlers_stay_attached_across_a_restart() -> None:
    chat = Chat()
    seen = watch(chat, "broadcast")
    for _ in range(2):
        async with chat:
            await chat.send_message("room", "alice", "hello")
    assert len(seen) == 2
