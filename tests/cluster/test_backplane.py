"""What holds of every link between nodes: in memory, and over each NATS server."""

from __future__ import annotations

import asyncio
import gc
import secrets
from collections.abc import Awaitable

import pytest

from chatx.cluster.answers import Answers
from chatx.cluster.backplane import (
    PAYLOAD_BYTES,
    PENDING_BYTES,
    BackplaneAway,
    BackplaneFull,
    NobodyThere,
    NodeBusy,
    NoReply,
    PayloadTooLarge,
    RequestFailed,
)
from tests.cluster.links import WITHIN_S, Make, Told, hears, linked, new_boot, until


def new_topic() -> str:
    return f"live.{secrets.token_hex(8)}"


async def echo(payload: bytes) -> bytes:
    return b"echo " + payload


async def test_what_is_published_arrives_in_order_everywhere_it_is_subscribed(make: Make) -> None:
    topic = new_topic()
    async with linked(make, 3) as (one, two, three):
        got: list[list[bytes]] = [[], [], []]
        for link, heard in zip((one, two, three), got, strict=True):
            await link.subscribe(topic, heard.append)
        sent = [b"%d" % number for number in range(500)]
        for payload in sent:
            one.publish(topic, payload)
        await until(lambda: all(len(heard) >= 500 for heard in got))
        assert got == [sent] * 3
        two.publish(new_topic(), b"elsewhere")
        two.publish(topic, b"\x00\r\n\xff")
        await until(lambda: all(len(heard) > 500 for heard in got))
        assert {heard[500] for heard in got} == {b"\x00\r\n\xff"}


async def test_what_is_asked_as_a_node_ends_is_not_begun_and_leaves_nothing() -> None:
    answers = Answers(echo, 1)
    answers.take(b"x", lambda _: pytest.fail("it was answered"))
    await answers.end()
    gc.collect()  # a coroutine that was never awaited would warn, and fail this


async def test_the_broker_says_who_it_is(make: Make) -> None:
    async with linked(make, 1) as (link,):
        broker = await link.broker()
        assert broker.name
        assert not broker.keeps
        assert 0 <= broker.round_trip_s < WITHIN_S
    with pytest.raises(BackplaneAway):
        await link.broker()


async def test_a_link_that_is_made_anew_hears_all_that_it_heard_and_says_so(make: Make) -> None:
    async with linked(make, 2) as (one, two):
        told, topic, heard = Told(one), new_topic(), list[bytes]()
        await one.subscribe(topic, heard.append)
        await one.serve(echo)
        one.renew("it is deaf")
        await told.until(lambda: told.states == ["away", "connected"])
        assert told.missed == [None]
        await hears(two, topic, heard)
        assert await two.request(one.boot, b"x", WITHIN_S) == b"echo x"
    one.renew("it is closed")
    assert one.state == "away"


async def test_a_subscription_that_has_ended_is_called_no_more_and_others_go_on(make: Make) -> None:
    topic = new_topic()
    async with linked(make, 2) as (one, two):
        ended: list[bytes] = []
        heard: list[bytes] = []
        subscribed = await two.subscribe(topic, ended.append)
        await two.subscribe(topic, heard.append)
        one.publish(topic, b"first")
        await until(lambda: ended == heard == [b"first"])
        subscribed.end()
        subscribed.end()
        one.publish(topic, b"second")
        await until(lambda: heard == [b"first", b"second"])
        assert ended == [b"first"]
        again: list[bytes] = []
        await two.subscribe(topic, again.append)
        one.publish(topic, b"third")
        await until(lambda: again == [b"third"])


async def test_many_subscriptions_end_at_once(make: Make) -> None:
    async with linked(make, 1) as (one,):
        heard: list[bytes] = []
        topic = new_topic()
        for each in [await one.subscribe(f"{topic}.{number}", heard.append) for number in range(1500)]:
            each.end()
        await one.subscribe(topic, heard.append)
        one.publish(f"{topic}.7", b"unheard")
        one.publish(topic, b"heard")
        await until(lambda: heard == [b"heard"])


async def test_a_callback_that_raises_makes_nobody_deaf(make: Make, quiet: None) -> None:
    topic = new_topic()
    async with linked(make, 2) as (one, two):
        heard: list[bytes] = []

        def poisoned(payload: bytes) -> None:
            heard.append(payload)
            raise ValueError("poison")

        await two.subscribe(topic, poisoned)
        for payload in (b"a", b"b"):
            one.publish(topic, payload)
        await until(lambda: heard == [b"a", b"b"])
        assert two.state == "connected"


async def test_a_request_is_answered_by_the_boot_that_it_names(make: Make) -> None:
    async with linked(make, 3) as (one, two, three):
        await two.serve(echo)
        await three.serve(lambda payload: _say(b"three"))
        assert await one.request(two.boot, b"\x00hi", WITHIN_S) == b"echo \x00hi"
        assert await one.request(three.boot, b"", WITHIN_S) == b"three"
        assert await two.request(two.boot, b"self", WITHIN_S) == b"echo self"
        answers = await asyncio.gather(*(one.request(two.boot, b"%d" % number, WITHIN_S) for number in range(200)))
        assert answers == [b"echo %d" % number for number in range(200)]
        with pytest.raises(ValueError, match="once"):
            await two.serve(echo)


async def test_a_boot_that_nobody_serves_is_told_at_once(make: Make) -> None:
    async with linked(make, 2) as (one, two):
        with pytest.raises(NobodyThere, match="Nobody serves"):
            await one.request(new_boot(), b"x", 3600)
        with pytest.raises(NobodyThere):
            await one.request(two.boot, b"x", 3600)
        await two.serve(echo)
        assert await one.request(two.boot, b"x", WITHIN_S) == b"echo x"
        await two.close()
        with pytest.raises(NobodyThere):
            await one.request(two.boot, b"x", 3600)


async def test_a_node_handles_so_many_requests_at_once_and_refuses_more(make: Make) -> None:
    async with linked(make, 2) as (one, two):
        begun: list[bytes] = []
        go_on = asyncio.Event()

        async def slow(payload: bytes) -> bytes:
            begun.append(payload)
            await go_on.wait()
            return payload

        await two.serve(slow, at_once=2)
        waiting = [asyncio.ensure_future(one.request(two.boot, b"%d" % number, WITHIN_S)) for number in range(2)]
        await until(lambda: len(begun) == 2)
        with pytest.raises(NodeBusy, match="again later"):
            await one.request(two.boot, b"third", WITHIN_S)
        go_on.set()
        assert await asyncio.gather(*waiting) == [b"0", b"1"]
        assert await one.request(two.boot, b"fourth", WITHIN_S) == b"fourth"
        assert begun == [b"0", b"1", b"fourth"]


async def test_a_handler_says_that_it_is_busy_with_what_it_is_asked(make: Make, quiet: None) -> None:
    async with linked(make, 2) as (one, two):

        def busy(payload: bytes) -> Awaitable[bytes]:
            if payload == b"slow":
                raise NodeBusy("as much of this as may be; ask again later")
            if payload == b"raise":
                raise RuntimeError("a secret")
            return echo(payload)

        await two.serve(busy)
        with pytest.raises(NodeBusy, match="again later"):
            await one.request(two.boot, b"slow", WITHIN_S)
        with pytest.raises(RequestFailed):
            await one.request(two.boot, b"raise", WITHIN_S)
        assert await one.request(two.boot, b"quick", WITHIN_S) == b"echo quick"


async def test_a_handler_that_fails_tells_only_that(make: Make, quiet: None) -> None:
    async with linked(make, 2) as (one, two):

        async def fails(payload: bytes) -> bytes:
            if payload == b"raise":
                raise RuntimeError("a secret")
            return "text" if payload == b"text" else b"x" * (PAYLOAD_BYTES + (payload == b"large"))  # type: ignore[return-value]

        await two.serve(fails)
        for payload in (b"raise", b"text", b"large"):
            with pytest.raises(RequestFailed) as caught:
                await one.request(two.boot, payload, WITHIN_S)
            assert "secret" not in str(caught.value)
        assert len(await one.request(two.boot, b"largest", WITHIN_S)) == PAYLOAD_BYTES


async def test_a_reply_that_does_not_come_is_told_in_time(make: Make) -> None:
    async with linked(make, 2) as (one, two):
        begun: list[bytes] = []

        async def hangs(payload: bytes) -> bytes:
            begun.append(payload)
            await asyncio.Event().wait()
            return b""

        await two.serve(hangs)
        with pytest.raises(NoReply, match="perhaps"):
            await one.request(two.boot, b"x", 0.2)
        # Whoever gives up asking disturbs nobody.
        asking = asyncio.ensure_future(one.request(two.boot, b"y", 3600))
        await until(lambda: len(begun) == 2)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        waiting = asyncio.ensure_future(one.request(two.boot, b"z", 3600))
        await until(lambda: len(begun) == 3)
        await one.close()
        with pytest.raises(NoReply, match="lost"):
            await waiting


async def test_what_is_too_large_is_refused_and_the_largest_arrives(make: Make) -> None:
    topic = new_topic()
    async with linked(make, 2) as (one, two):
        heard: list[bytes] = []
        await two.subscribe(topic, heard.append)
        with pytest.raises(PayloadTooLarge, match=str(PAYLOAD_BYTES)):
            one.publish(topic, b"x" * (PAYLOAD_BYTES + 1))
        with pytest.raises(PayloadTooLarge):
            await one.request(two.boot, b"x" * (PAYLOAD_BYTES + 1), 1)
        one.publish(topic, b"x" * PAYLOAD_BYTES)
        await until(lambda: len(heard) == 1)
        assert len(heard[0]) == PAYLOAD_BYTES


@pytest.mark.parametrize("topic", ["", ".", "a.", ".a", "a..b", "a.*", "a.>", "a b", "a\r\nb", "ü", "a" * 201])
async def test_a_topic_that_is_none_is_refused(make: Make, topic: str) -> None:
    async with linked(make, 1) as (one,):
        with pytest.raises(ValueError, match="no topic"):
            one.publish(topic, b"")
        with pytest.raises(ValueError, match="no topic"):
            await one.subscribe(topic, print)


@pytest.mark.parametrize("boot", ["", "a.b", "*", "A" * 20, "a" * 33])
async def test_a_boot_id_that_is_none_is_refused(make: Make, boot: str) -> None:
    with pytest.raises(ValueError, match="no boot id"):
        make(boot)
    async with linked(make, 1) as (one,):
        with pytest.raises(ValueError, match="no boot id"):
            await one.request(boot, b"", 1)


async def test_a_link_that_is_not_connected_refuses(make: Make) -> None:
    link = make(new_boot())
    told = Told(link)
    heard: list[bytes] = []
    await link.subscribe("early", heard.append)
    assert link.state == "away"
    with pytest.raises(BackplaneAway):
        link.publish("early", b"")
    with pytest.raises(BackplaneAway):
        await link.request(link.boot, b"", 1)
    await link.connect(WITHIN_S)
    link.publish("early", b"now")
    await until(lambda: heard == [b"now"])
    await link.close()
    await link.close()
    assert (told.states, told.missed) == (["connected", "away"], [])
    with pytest.raises(BackplaneAway):
        link.publish("early", b"")


async def test_a_watcher_that_raises_holds_nothing_up(make: Make, quiet: None) -> None:
    link = make(new_boot())

    def raises(_: object) -> None:
        raise RuntimeError("of the watcher")

    link.watch(raises, raises)
    told = Told(link)
    await link.connect(WITHIN_S)
    await link.close()
    assert told.states == ["connected", "away"]


async def test_a_flood_is_refused_at_the_bound_and_what_was_taken_arrives(make_nats: Make) -> None:
    topic = new_topic()
    async with linked(make_nats, 2) as (one, two):
        heard: list[bytes] = []
        await two.subscribe(topic, heard.append)
        taken = 0
        with pytest.raises(BackplaneFull, match=str(PENDING_BYTES)):
            while True:
                one.publish(topic, b"x" * 10_000)
                taken += 1
        assert PENDING_BYTES - 20_000 < one.pending_bytes <= PENDING_BYTES + 10_000
        await until(lambda: len(heard) == taken)
        assert one.pending_bytes == 0
        one.publish(topic, b"again")
        await until(lambda: heard[-1] == b"again")


async def _say(answer: bytes) -> bytes:
    return answer
