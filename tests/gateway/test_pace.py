"""How much of one client's flood is taken before everybody else has a turn of the loop."""

from __future__ import annotations

import asyncio
import itertools
from itertools import pairwise

import pytest

from chatx.chat import Chat
from chatx.gateway.asgi.app import ChatApp
from chatx.gateway.session.pace import FLOOD_S, FLOODS_A_TURN, MESSAGES_A_TURN, SIZE_A_TURN, Pace, Rota
from chatx.gateway.wire.posts import MAX_POST_MESSAGES
from tests.gateway.fakes import FakeServer, settle
from tests.gateway.phoenix_peer import raw_frame
from tests.limits import UNLIMITED
from tests.longpoll.polling import NDJSON, Call, PollingClient, inside
from tests.virtual import virtual


def app_of(chat: Chat) -> ChatApp:
    return chat.asgi(authenticate=lambda handshake: handshake.params.get("user_id"))


async def connected(app: ChatApp, user: str) -> FakeServer:
    server = FakeServer(app, query=f"vsn=2.0.0&user_id={user}")
    await settle()
    ref = server.text("own", "room:a", "phx_join")
    await settle()
    assert server.reply(ref)[0] == "ok"
    server.sent.clear()
    return server


def published(server: FakeServer) -> list[tuple[str, str]]:
    """Return who said what, in the order in which it was published."""
    messages = [each.payload for each in server.received if each.event == "new_message"]
    return [(each["user_id"], each["content"]) for each in messages]


@pytest.mark.parametrize("padding", ["", "x" * 2_000], ids=["short", "long"])
@virtual
async def test_what_came_before_it_in_other_sockets_holds_up_a_message_for_a_turn_at_most(padding: str) -> None:
    async with Chat(rate_limit=UNLIMITED) as chat:
        app = app_of(chat)
        flooding = [await connected(app, f"flood-{number}") for number in range(3)]
        innocent, reader = await connected(app, "ada"), await connected(app, "bob")
        for server in flooding:
            for number in range(200):
                server.text(None, "room:a", "new_message", {"content": f"{number} {padding}"})
        innocent.text(None, "room:a", "new_message", {"content": "hello"})
        await settle()
        heard = published(reader)
        assert len(heard) == 601
        a_turn = min(MESSAGES_A_TURN, SIZE_A_TURN // len(padding) + 1) if padding else MESSAGES_A_TURN
        assert heard.index(("ada", "hello")) <= len(flooding) * a_turn
        # And none of those that flood is ahead of another by more than its turn.
        for place in range(len(flooding) * a_turn * 2, 500):
            counts = [sum(user == f"flood-{number}" for user, _ in heard[:place]) for number in range(3)]
            assert max(counts) - min(counts) <= a_turn
        for server in (*flooding, innocent, reader):
            server.disconnect()
        await settle()


@virtual
async def test_a_post_of_many_messages_gives_way_as_a_socket_does() -> None:
    async with Chat(rate_limit=UNLIMITED) as chat:
        app = app_of(chat)
        ada = PollingClient(inside(app))
        await ada.open()
        await ada.join("room:a")
        reader = await connected(app, "bob")
        frames = [
            raw_frame(2, None, str(number), "room:a", "new_message", {"content": str(number)})
            for number in range(MAX_POST_MESSAGES)
        ]
        heard: list[int] = []
        query = f"vsn=2.0.0&user_id=ada&token={ada.token}"
        call = Call(app, "POST", query, body="\n".join(frames).encode(), headers={"content-type": NDJSON})
        while not call.task.done():
            heard.append(chat.statistics().sent)
            await asyncio.sleep(0)
        assert (await call.reply()).http == 200
        assert chat.statistics().sent == MAX_POST_MESSAGES
        steps = [after - before for before, after in pairwise(heard)]
        assert max(steps) == MESSAGES_A_TURN
        reader.disconnect()
        await settle()


@virtual
async def test_of_many_floods_a_few_go_on_in_each_turn_of_the_loop() -> None:
    async with Chat(rate_limit=UNLIMITED) as chat:
        app = app_of(chat)
        flooding = [await connected(app, f"flood-{number}") for number in range(40)]
        for server in flooding:
            for number in range(200):
                server.text(None, "room:a", "new_message", {"content": str(number)})
        sent = [chat.statistics().sent]
        for _ in range(500):
            await asyncio.sleep(0)
            sent.append(chat.statistics().sent)
        assert sent[-1] == len(flooding) * 200
        steps = [after - before for before, after in pairwise(sent)]
        # All have their first turn in one, since none of them has had one.
        assert max(steps[3:]) == FLOODS_A_TURN * MESSAGES_A_TURN < len(flooding) * MESSAGES_A_TURN
        for server in flooding:
            server.disconnect()
        await settle()


async def turns_for(pace: Pace, *sizes: int) -> list[int]:
    """Return for each message of these sizes how many turns of the loop passed until the next one could be taken."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        for number in itertools.count():
            turns = number
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    counted = []
    for size in sizes:
        before = turns
        await pace.taken(size)
        counted.append(turns - before)
    counting.cancel()
    return counted


@virtual
async def test_a_turn_is_over_by_number_or_by_size() -> None:
    pace = Pace(Rota(asyncio.get_running_loop()))
    waited = await turns_for(pace, *[1] * MESSAGES_A_TURN * 2)
    assert [number for number, turns in enumerate(waited, 1) if turns] == [MESSAGES_A_TURN, MESSAGES_A_TURN * 2]
    assert [turns > 0 for turns in await turns_for(pace, *[SIZE_A_TURN // 2] * 4)] == [False, True, False, True]
    assert (await turns_for(pace, SIZE_A_TURN * 9))[0] > 0


@virtual
async def test_who_sends_now_and_then_does_not_wait_for_those_who_flood() -> None:
    rota = Rota(asyncio.get_running_loop())
    quiet = Pace(rota)
    floods = [asyncio.create_task(rota.turn()) for _ in range(100)]
    await asyncio.sleep(FLOOD_S)
    floods += [asyncio.create_task(rota.turn()) for _ in range(100)]
    await asyncio.sleep(0)
    assert max(await turns_for(quiet, *[1] * MESSAGES_A_TURN)) <= 2
    assert not all(flood.done() for flood in floods)
    await asyncio.gather(*floods)


@virtual
async def test_a_client_that_goes_while_it_waits_for_its_turn_takes_no_other_ones() -> None:
    rota = Rota(asyncio.get_running_loop())
    waiting = [asyncio.create_task(rota.turn()) for _ in range(30)]
    await asyncio.sleep(0)
    for each in waiting[::2]:
        each.cancel()
    await asyncio.wait(waiting)
    assert [each.cancelled() for each in waiting] == [True, False] * 15
