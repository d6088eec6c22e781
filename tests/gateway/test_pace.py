"""How much of one client's flood is taken before everybody else has a turn of the loop."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from chatx.chat import Chat
from chatx.core.rate_limit import RateLimit
from chatx.gateway.asgi.app import ChatApp
from chatx.gateway.session.pace import MESSAGES_A_TURN, SIZE_A_TURN, Pace
from chatx.gateway.wire.posts import MAX_POST_MESSAGES
from tests.gateway.fakes import FakeServer, settle
from tests.gateway.phoenix_peer import raw_frame
from tests.longpoll.polling import NDJSON, Call, PollingClient, inside
from tests.virtual import virtual

UNLIMITED = RateLimit(messages_per_sec=1e6, burst=10**6)


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


def test_a_turn_is_over_by_number_or_by_size() -> None:
    pace = Pace()
    counted = [pace.over(1) for _ in range(MESSAGES_A_TURN * 2)]
    assert [number for number, over in enumerate(counted, 1) if over] == [MESSAGES_A_TURN, MESSAGES_A_TURN * 2]
    assert [pace.over(SIZE_A_TURN // 2) for _ in range(4)] == [False, True, False, True]
    assert pace.over(SIZE_A_TURN * 9)
