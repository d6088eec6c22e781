"""A session that is polled, on virtual time: who waits, who is superseded, what is lost on the way, when it ends."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from typing import Any

import pytest

from chatx import Identity
from chatx.chat import Chat
from chatx.core.rate_limit import RateLimit
from chatx.errors import Unauthorized
from chatx.gateway.longpoll.app import POLL_S, LongPoll
from chatx.gateway.longpoll.exchange import WRITE_STALL_S
from chatx.gateway.longpoll.held import MAX_POSTS, POST_S
from chatx.gateway.longpoll.outbox import MAX_REPEATS
from chatx.gateway.longpoll.poller import ABANDONED_S, CUT_OFF_S
from chatx.gateway.session.reading import PAGE_MESSAGES
from chatx.gateway.wire.bounds import PENDING_PUSHES
from tests.gateway import hostile
from tests.gateway.fakes import chatx_tasks, settle
from tests.gateway.servers import named
from tests.longpoll.polling import NDJSON, Call, Poll, PollingClient, inside
from tests.virtual import virtual

QUERY = "vsn=2.0.0&user_id=ada"


def app_of(chat: Chat) -> Any:
    return chat.asgi(authenticate=named)


def sessions(app: Any) -> int:
    longpoll: LongPoll = app._longpoll
    return len(longpoll)


def query(client: PollingClient) -> str:
    return f"{QUERY}&token={client.token}"


async def quiet(client: PollingClient) -> None:
    """Poll until there is nothing."""
    while (await client.poll()).status != 204:
        pass


async def joined(app: Any) -> PollingClient:
    """Return a client that has joined the room `a` and taken all there is."""
    client = PollingClient(inside(app))
    await client.open()
    await client.join("room:a")
    await quiet(client)
    return client


@virtual
async def test_a_poll_waits_for_a_message_and_else_for_its_time() -> None:
    loop = asyncio.get_running_loop()
    async with Chat() as chat:
        ada = await joined(app_of(chat))
        began = loop.time()
        assert await ada.poll() == (204, [])
        assert loop.time() - began == POLL_S
        poll = asyncio.create_task(ada.poll())
        await asyncio.sleep(POLL_S / 2)
        # What is published within one turn is one response.
        await chat.send_message("a", "bob", "1")
        await chat.send_message("a", "bob", "2")
        assert (await poll).contents == ["1", "2"]
        assert loop.time() - began == POLL_S * 1.5


@virtual
async def test_a_second_poll_supersedes_the_first_and_gets_the_messages() -> None:
    async with Chat() as chat:
        ada = await joined(app_of(chat))
        first = asyncio.create_task(ada.poll())
        await settle()
        second = asyncio.create_task(ada.poll())
        async with asyncio.timeout(POLL_S / 2):
            assert (await first).status == 204
        await chat.send_message("a", "bob", "hello")
        assert (await second).contents == ["hello"]


@virtual
async def test_what_a_lost_response_held_comes_with_the_next_poll_of_the_same_token() -> None:
    async with Chat() as chat:
        app = app_of(chat)
        ada = await joined(app)
        lost = Call(app, "GET", query(ada))
        await settle()
        await chat.send_message("a", "bob", "1")
        assert (await lost.reply()).status == 200  # and it does not arrive
        await chat.send_message("a", "bob", "2")
        assert (await ada.poll()).contents == ["1"]
        assert (await ada.poll()).contents == ["2"]
        # An echo of a request of long ago takes nothing from the client.
        assert (await Call(app, "GET", query(ada).rpartition(".")[0] + ".0").reply()).status == 410
        await chat.send_message("a", "bob", "3")
        assert (await ada.poll()).contents == ["3"]


@virtual
async def test_a_long_resume_waits_for_the_polls_of_its_client() -> None:
    async with Chat(rate_limit=RateLimit(1e6, 10**6)) as chat:
        epoch = ""
        for number in range(1, 201):
            epoch = (await chat.send_message("a", "bob", str(number))).epoch
        ada = PollingClient(inside(app_of(chat)))
        await ada.open()
        await ada.push("room:a", "phx_join", {"epoch": epoch, "offset": 0})
        await settle()
        assert chat.statistics().unread == 1 + PAGE_MESSAGES  # the reply, and as many messages as go at once
        while (await ada.poll()).status == 200:
            assert chat.statistics().unread <= 2 * PAGE_MESSAGES
        offsets = [frame.payload["offset"] for frame in ada.frames if frame.event == "new_message"]
        assert offsets == list(range(1, 201))


@virtual
async def test_a_client_that_acknowledges_nothing_must_begin_anew() -> None:
    async with Chat() as chat:
        app = app_of(chat)
        ada = await joined(app)
        await chat.send_message("a", "bob", "1")
        await settle()
        first = query(ada)
        for _ in range(1 + MAX_REPEATS):
            assert (await Call(app, "GET", first).reply()).status == 200
        assert (await Call(app, "GET", first).reply()).body == {"status": 410, "token": None, "messages": []}
        assert (sessions(app), await chat.presence("a")) == (0, {})


@virtual
async def test_a_client_that_goes_while_it_polls_is_gone_soon_and_takes_no_message_along() -> None:
    async with Chat() as chat:
        app = app_of(chat)
        ada = await joined(app)
        call = Call(app, "GET", query(ada))
        await settle()
        call.disconnect()
        # Nobody reads it, and there is nothing in it; a middleware around would take no response for a failure.
        assert (await call.reply()).body is None
        await chat.send_message("a", "bob", "1")
        await asyncio.sleep(CUT_OFF_S - 0.5)
        # A browser asks again by itself where a connection broke.
        assert (await ada.poll()).contents == ["1"]
        call = Call(app, "GET", query(ada))
        await settle()
        call.disconnect()
        await asyncio.sleep(CUT_OFF_S + 1.5)
        assert (await chat.presence("a"), sessions(app), chat.statistics().connections) == ({}, 0, 0)
        assert await ada.poll() == (410, [])


@virtual
async def test_a_session_that_nobody_polls_ends() -> None:
    async with Chat(max_connections_per_user=1) as chat:
        app = app_of(chat)
        ada = PollingClient(inside(app))
        await ada.open()
        await ada.join("room:a")
        for _ in range(10):  # longer than a session lives without polls
            await asyncio.sleep(ABANDONED_S - 1)
            await quiet(ada)
        assert set(await chat.presence("a")) == {"ada"}
        # What it pushes does not count: it is not there to hear of anything.
        await asyncio.sleep(ABANDONED_S - 1)
        await ada.push("room:a", "new_message", {"content": "x"})
        await asyncio.sleep(2.5)
        assert (await chat.presence("a"), sessions(app), chat.statistics().connections) == ({}, 0, 0)
        assert (await ada.post("[]")).body == {"status": 410}
        await ada.open()
        # One that was never polled, too.
        await asyncio.sleep(ABANDONED_S + 1.5)
        assert sessions(app) == 0
    assert chatx_tasks() == []


@virtual
async def test_a_response_that_nobody_takes_is_given_up_and_its_messages_are_kept() -> None:
    async with Chat() as chat:
        app = app_of(chat)
        ada = await joined(app)
        call = Call(app, "GET", query(ada))
        call.flowing.clear()
        await settle()
        await chat.send_message("a", "bob", "1")
        await asyncio.sleep(WRITE_STALL_S + 0.5)
        assert (call.task.done(), call.sent) == (True, [])
        assert (await ada.poll()).contents == ["1"]


class FailingSend(Call):
    async def _send(self, message: Any) -> None:
        raise OSError("the client is gone")


@virtual
async def test_a_session_whose_token_did_not_arrive_ends_at_once() -> None:
    async with Chat() as chat:
        app = app_of(chat)
        await FailingSend(app, "GET").task
        await settle()
        assert (sessions(app), chat.statistics().connections) == (0, 0)


@virtual
async def test_a_request_that_is_cancelled_leaves_nothing() -> None:
    async def authenticate(handshake: Any) -> str:
        await asyncio.sleep(2)
        return "ada"

    async with Chat() as chat:
        app = chat.asgi(authenticate=authenticate)
        call = Call(app, "GET")
        await asyncio.sleep(1)
        call.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.task
        assert len(app._entrance.begin(None)[0].admission) == 1  # the one that was begun here
        ada = PollingClient(inside(app))
        await ada.open()
        call = Call(app, "GET", query(ada))
        await settle()
        call.task.cancel()
        await asyncio.sleep(CUT_OFF_S + 1.5)
        assert sessions(app) == 0


class SlowAuth:
    """Lets everybody in, as soon as it is told to."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.asked = 0

    async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        self.asked += 1
        if action == "send":
            await self.open.wait()
        return True


@virtual
async def test_a_post_waits_while_its_session_is_busy_and_only_so_many_may() -> None:
    auth = SlowAuth()
    async with Chat(auth=auth, adapter_timeout_ms=100_000, rate_limit=RateLimit(1e6, 10**6)) as chat:
        app = app_of(chat)
        ada = PollingClient(inside(app))
        await ada.open()
        await ada.join("room:a")
        body = "\n".join(ada.frame("room:a", "new_message", {"content": str(n)})[1] for n in range(PENDING_PUSHES + 5))
        headers = {"content-type": NDJSON}
        waiting = Call(app, "POST", query(ada), headers=headers, body=body.encode())
        await settle()
        assert not waiting.task.done()
        more = [Call(app, "POST", query(ada), headers=headers, body=b"[]") for _ in range(MAX_POSTS - 1)]
        await settle()
        reply = await Call(app, "POST", query(ada), headers=headers, body=b"").reply()
        assert (reply.http, reply.body) == (429, {"status": 500})
        for call in more:
            call.task.cancel()
        auth.open.set()
        assert (await waiting.reply()).body == {"status": 200}
        await ada.poll_for(lambda frame: frame.payload.get("offset") == PENDING_PUSHES + 5)


@virtual
async def test_a_post_that_is_not_taken_in_time_says_so_and_ends_its_session() -> None:
    auth = SlowAuth()
    async with Chat(auth=auth, adapter_timeout_ms=100_000, rate_limit=RateLimit(1e6, 10**6)) as chat:
        app = app_of(chat)
        ada = PollingClient(inside(app))
        await ada.open()
        await ada.join("room:a")
        frames = [ada.frame("room:a", "new_message", {"content": str(n)})[1] for n in range(PENDING_PUSHES + 5)]
        began = asyncio.get_running_loop().time()
        assert (await ada.post(*frames)).body == {"status": 408}
        assert asyncio.get_running_loop().time() - began == POST_S
        assert await ada.poll() == (410, [])
        await settle()
        assert (sessions(app), chatx_tasks()) == (0, [])
        # A body that does not come is not waited for either.
        await ada.open()
        call = Call(app, "POST", query(ada), headers={"content-type": NDJSON})
        call.inbox.get_nowait()
        assert (await call.reply()).body == {"status": 408}


@virtual
async def test_a_body_that_comes_in_pieces_is_bounded_over_all_of_them_and_may_break_off() -> None:
    async with Chat() as chat:
        app = app_of(chat)
        for piece, end, status in ((b"[1,", True, 410), (b"x" * 100_000, False, 413)):
            ada = PollingClient(inside(app))
            await ada.open()
            call = Call(app, "POST", query(ada), headers={"content-type": NDJSON})
            call.inbox.get_nowait()
            for last in (False, False, end):
                call.inbox.put_nowait({"type": "http.request", "body": piece, "more_body": not last})
            assert (await call.reply()).status == status
        ada = PollingClient(inside(app))
        await ada.open()
        call = Call(app, "POST", query(ada), headers={"content-type": NDJSON})
        call.inbox.get_nowait()
        call.inbox.put_nowait({"type": "http.request", "body": b"[1,", "more_body": True})
        call.disconnect()
        # Nobody reads it, and there is nothing in it; a middleware around would take no response for a failure.
        assert (await call.reply()).body is None
        assert (await ada.post("")).status == 200


@virtual
async def test_a_new_token_is_asked_about_and_puts_the_end_off() -> None:
    users = {"first": "ada", "second": "ada", "foreign": "eve"}
    times = iter((60.0, 600.0, 600.0))

    def authenticate(handshake: Any) -> Identity:
        return Identity(users[handshake.token or ""], expires_at=time.time() + next(times))

    async with Chat() as chat:
        app = chat.asgi(authenticate=authenticate)
        ada = PollingClient(inside(app))
        reply = await ada.ask("GET", QUERY, {"x-phoenix-authtoken": "first"}, b"")
        ada.token = reply.body["token"]
        await ada.join("room:a")
        assert (await ada.answer(await ada.push("room:a", "access_token", {"token": "second"})))[0] == "ok"
        status, refusal = await ada.answer(await ada.push("room:a", "access_token", {"token": "foreign"}))
        assert (status, refusal["code"]) == ("error", Unauthorized().code)
        for _ in range(20):
            assert (await ada.poll()).status in (200, 204)


@virtual
async def test_messages_reach_a_poll_that_waits_when_its_session_is_closed() -> None:
    async with Chat() as chat:
        app = app_of(chat)
        ada = await joined(app)
        poll = asyncio.create_task(ada.poll())
        await settle()
        assert (await ada.post('[null,"7","phoenix","heartbeat",{}]', "[]")).status == 410
        last: Poll = await poll
        assert [frame.ref for frame in last.frames] == ["7"]
        assert await ada.poll() == (410, [])


@virtual
async def test_a_poll_starts_the_chat_where_nobody_else_does() -> None:
    chat = Chat()
    app = chat.asgi(authenticate=named, autostart=True)
    await PollingClient(inside(app)).open()
    assert chat.statistics().connections == 1
    await chat.stop()


@virtual
async def test_hostile_requests_by_the_hundred_raise_nothing_and_leave_nothing() -> None:
    draw = random.Random(5)
    async with Chat() as chat:
        app = app_of(chat)
        bystander = PollingClient(inside(app), "bystander")
        await bystander.open()
        await bystander.join("room:a")
        ada = PollingClient(inside(app))
        for _ in range(600):
            if ada.token is None or draw.random() < 0.2:
                opened = await Call(app, "GET").reply()
                # She may have as many sessions as a user may.
                ada.token = opened.body.get("token", ada.token)
            lines = [hostile.message(draw) for _ in range(draw.choice((0, 1, 1, 2, 5, 150)))]
            data = [line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass") for line in lines]
            encoded = [base64.b64encode(line) if draw.random() < 0.3 else line for line in data]
            token = draw.choice((ada.token, ada.token, ada.token, f"{ada.token}9", "x", "", f"{ada.token}\x00"))
            call = Call(
                app,
                draw.choice(("POST", "POST", "POST", "GET", "OPTIONS", "TRACE", "")),
                f"vsn={draw.choice(('2.0.0', '1.0.0', '9'))}&user_id=ada&token={token}",
                headers={
                    "content-type": draw.choice((NDJSON, "application/json", "\xff", "")),
                    **draw.choice(
                        ({}, {}, {}, {"x-phoenix-authtoken": "\xff"}, {"referer": "://"}, {"origin": "null"})
                    ),
                },
                body=b"\n".join(encoded),
            )
            await settle()
            if draw.random() < 0.2:
                call.disconnect()
            await call.task
            assert len(call.sent) in (0, 2)
        await asyncio.sleep(ABANDONED_S + 1)
        await settle()
        assert (sessions(app), chatx_tasks()) == (0, [])
        assert len(app._entrance.begin(None)[0].admission) == 1  # the one that was begun here
