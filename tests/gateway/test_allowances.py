"""What one user may do over all of their sockets, which a new connection or another room does not renew."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from chatx.chat import Chat
from chatx.config import ChatConfig
from chatx.core.rate_limit import RateLimit
from chatx.errors import RateLimited
from chatx.gateway.session.allowances import Allowances
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.wire.bounds import JOIN_BURSTS, MESSAGE_ROOMS, ROOM_SECONDS
from tests.gateway.fakes import Client, settle
from tests.virtual import virtual


async def outcomes(client: Client, refs: list[str]) -> Counter[str]:
    """Return how often each code came, `ok` among them."""
    await settle()
    replies = [client.reply(ref) for ref in refs]
    return Counter("ok" if status == "ok" else response["code"] for status, response in replies)


async def join_on_new_sockets(
    gateway: Gateway, user: str, sockets: int, joins: int, room: str, rooms: int = 10**6
) -> Counter[str]:
    """Join so often on each of so many sockets, one after another, in as many rooms; `{}` is a room's number."""
    total: Counter[str] = Counter()
    for number in range(sockets):
        client = Client(gateway, user)
        refs = [client.ask(f"room:{room.format((number * joins + each) % rooms)}") for each in range(joins)]
        total += await outcomes(client, refs)
        client.session.end()
    return total


@virtual
async def test_a_new_connection_does_not_renew_what_a_user_may_join() -> None:
    async with Chat(max_connections_per_user=2) as chat:
        gateway = Gateway(chat.engine)
        most = JOIN_BURSTS * 100 * 2
        flood = await join_on_new_sockets(gateway, "eve", 15, 100, "a{}", 50)
        assert flood == {"ok": most, "rate_limited": 500}
        assert await join_on_new_sockets(gateway, "bob", 1, 100, "a{}", 50) == {"ok": 100}
        await asyncio.sleep(1)
        assert await join_on_new_sockets(gateway, "eve", 1, 100, "a{}", 50) == {"ok": 20, "rate_limited": 80}


@virtual
async def test_a_new_connection_does_not_renew_how_many_rooms_a_user_may_begin() -> None:
    async with Chat(max_connections_per_user=2) as chat:
        gateway = Gateway(chat.engine)
        flood = await join_on_new_sockets(gateway, "eve", 10, 100, "r{}")
        assert flood == {"ok": 200, "rate_limited": 800}
        assert chat.statistics().rooms == 200
        eve = Client(gateway, "eve")
        # Whether a room is there cannot be told from the refusal.
        refs = [eve.ask("room:r1"), eve.ask("room:never")]
        assert await outcomes(eve, refs) == {"rate_limited": 2}
        assert await join_on_new_sockets(gateway, "bob", 1, 100, "b{}") == {"ok": 100}
        wait = eve.reply(refs[1])[1]["retry_after_ms"] / 1000
        assert 0 < wait <= ROOM_SECONDS / 200
        await asyncio.sleep(wait)
        assert await outcomes(eve, [eve.ask("room:never")]) == {"ok": 1}
        eve.session.end()


@virtual
async def test_rooms_that_are_there_are_joined_again_without_end() -> None:
    async with Chat(max_connections_per_user=1, max_joins_per_connection=1) as chat:
        gateway = Gateway(chat.engine)
        assert await join_on_new_sockets(gateway, "ada", 1, 100, "r{}") == {"ok": 1, "too_many_joins": 99}
        for _ in range(30):
            assert await join_on_new_sockets(gateway, "ada", 5, 1, "r0") == {"ok": 5}
            await asyncio.sleep(1)


@virtual
async def test_who_comes_back_with_all_sockets_and_all_rooms_is_never_too_fast() -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        # As phoenix.js tries again where each join is refused, or each socket cut, four times within 8 s.
        for pause in (1, 2, 5, 10):
            tabs = [Client(gateway, "ada") for _ in range(10)]
            asked = [(tab, [tab.ask(f"room:t{n}-{room}") for room in range(100)]) for n, tab in enumerate(tabs)]
            for tab, refs in asked:
                assert await outcomes(tab, refs) == {"ok": 100}
            for tab in tabs:
                tab.session.end()
            await asyncio.sleep(pause)


@virtual
async def test_a_user_may_send_as_fast_as_in_some_rooms_over_all_rooms_and_sockets() -> None:
    limit = RateLimit(messages_per_sec=1, burst=2)
    rooms = MESSAGE_ROOMS + 10
    async with Chat(rate_limit=limit) as chat:
        gateway = Gateway(chat.engine)
        eves, bob = [Client(gateway, "eve") for _ in range(2)], Client(gateway, "bob")
        for client in (*eves, bob):
            for room in range(rooms):
                await client.join(f"room:r{room}")
        said: Counter[str] = Counter()
        refs = []
        for eve in eves:
            refs = [eve.say(f"room:r{room}", "hi") for room in range(rooms)]
            said += await outcomes(eve, refs)
        assert said == {"ok": MESSAGE_ROOMS * 2, "rate_limited": 20}
        assert await outcomes(bob, [bob.say("room:r1", "hi")]) == {"ok": 1}
        await asyncio.sleep(eves[1].reply(refs[-1])[1]["retry_after_ms"] / 1000)
        assert await outcomes(eves[1], [eves[1].say(f"room:r{rooms - 1}", "hi")]) == {"ok": 1}
        for client in (*eves, bob):
            client.session.end()


def test_what_sockets_take_in_portions_is_the_total_and_is_refused_exactly_until_there_is_more() -> None:
    allowances = Allowances(ChatConfig())
    total, now = MESSAGE_ROOMS * 20, 7.0
    taken = []
    with pytest.raises(RateLimited) as refused:
        while True:
            taken.append(allowances.messages("eve", now))
    assert sum(taken) == total
    assert max(taken) <= total // 32
    with pytest.raises(RateLimited):
        allowances.messages("eve", now)
    assert refused.value.retry_after == pytest.approx(1 / (MESSAGE_ROOMS * 10))
    assert allowances.messages("eve", now + (refused.value.retry_after or 0)) == 1
    assert allowances.messages("ada", now) == taken[0]


@pytest.mark.parametrize(
    "options", [{"middlewares": ()}, {"max_connections_per_user": 0}], ids=["no rate limit", "sockets without a bound"]
)
@virtual
async def test_there_is_no_total_of_messages_where_what_it_is_made_of_has_no_bound(options: dict[str, object]) -> None:
    allowances = Allowances(ChatConfig(**options))  # type: ignore[arg-type]  # one of several options
    assert all(allowances.messages("ada", 1.0) for _ in range(10_000))
    assert len(allowances) == 0


def test_a_user_id_of_many_people_has_no_totals_at_all() -> None:
    allowances = Allowances(ChatConfig(max_connections_per_user=0))
    for _ in range(10_000):
        assert allowances.join("guest", 1.0) == 0.0
        allowances.began("guest", 1.0)
    assert len(allowances) == 0


def test_what_is_whole_again_is_forgotten() -> None:
    allowances = Allowances(ChatConfig())
    for number in range(1000):
        user_id = f"user{number}"
        allowances.join(user_id, number)
        allowances.began(user_id, number)
        allowances.messages(user_id, number)
    assert len(allowances) <= 6
