"""What Phoenix's long-polling owes its clients, and what a stranger may send to it: the same for both shells.

The obligations are those that Phoenix's own tests of this transport check, written anew; see also docs/wire.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from chatx import Identity, Position
from chatx.adapters.memory_log import MemoryLog
from chatx.chat import Chat
from chatx.gateway.entry.handshake import Authenticate, Handshake
from chatx.gateway.longpoll import app as longpoll
from chatx.gateway.longpoll.exchange import WRITE_STALL_S
from chatx.gateway.longpoll.held import POST_S
from chatx.gateway.native.http import BODY_BYTES, EXCHANGE_S
from chatx.gateway.wire.frames import Version
from chatx.gateway.wire.posts import MAX_POST_BYTES, MAX_POST_MESSAGES
from tests.gateway.fakes import chatx_tasks
from tests.gateway.phoenix_peer import EXCESS, UNMATCHED
from tests.gateway.real_client import real_client, until
from tests.gateway.servers import SHELLS, named, served
from tests.limits import UNLIMITED
from tests.longpoll.polling import NDJSON, PollingClient, over

pytestmark = [pytest.mark.process, pytest.mark.parametrize("shell", SHELLS)]

VERSIONS: tuple[Version, ...] = (1, 2)


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longpoll, "POLL_S", 0.05)


@asynccontextmanager
async def polled(
    shell: str, chat: Chat | None = None, authenticate: Authenticate = named, **options: Any
) -> AsyncIterator[Any]:
    """Serve a chat; the value makes a client from a user's name. Nothing is left at the end."""
    chat = chat if chat is not None else Chat()
    async with served(shell, chat, authenticate, **options) as port, httpx2.AsyncClient(timeout=20) as http:

        def client(user: str = "ada", version: Version = 2, **params: str) -> PollingClient:
            return PollingClient(over(http, port), user, version, **params)

        client.port = port  # type: ignore[attr-defined]
        yield client
        await chat.stop()
        await until(lambda: not chatx_tasks())
        await chat.start()


@pytest.mark.parametrize("version", VERSIONS)
async def test_joins_and_polls_and_a_poll_without_news_is_a_204(shell: str, version: Version) -> None:
    async with polled(shell) as client:
        ada = client("ada", version)
        await ada.open()
        ref, join = ada.frame("room:lobby", "phx_join")
        assert (await ada.post(join)).body == {"status": 200}
        reply = await ada.poll_for(lambda frame: frame.event == "phx_reply")
        assert (reply.ref, reply.topic, reply.payload["status"]) == (ref, "room:lobby", "ok")
        assert reply.join_ref == (ref if version == 2 else None)
        state = await ada.poll_for(lambda frame: frame.event == "presence_state")
        assert list(state.payload) == ["ada"]
        assert await ada.poll() == (204, [])


async def test_the_join_beyond_a_hundred_is_refused(shell: str) -> None:
    async with polled(shell) as client:
        ada = client()
        await ada.open()
        refs, frames = zip(*(ada.frame(f"room:{number}", "phx_join") for number in range(100)), strict=True)
        assert (await ada.post(*frames)).status == 200
        for ref in refs:
            assert (await ada.answer(ref))[0] == "ok"
        assert await ada.answer(await ada.push("room:100", "phx_join")) == ("error", EXCESS)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_push_is_published_and_one_to_a_room_that_is_not_joined_is_an_error(
    shell: str, version: Version
) -> None:
    async with polled(shell) as client:
        ada = client("ada", version)
        await ada.open()
        async with real_client(client.port, "bob") as bob:
            await ada.join("room:lobby")
            await bob.ask("room:lobby", "phx_join")
            status, sent = await ada.answer(await ada.push("room:lobby", "new_message", {"content": "hi!"}))
            assert (status, sent["offset"]) == ("ok", 1)
            assert (await bob.wait_for_messages(1))[0]["content"] == "hi!"
            own = await ada.poll_for(lambda frame: frame.event == "new_message")
            assert (own.join_ref, own.ref, own.payload["content"]) == (None, None, "hi!")
            await bob.ask("room:lobby", "new_message", {"content": "hi, ada"})
            await ada.poll_for(lambda frame: frame.payload.get("content") == "hi, ada")
        assert await ada.answer(await ada.push("room:private", "new_message", {"content": "x"})) == ("error", UNMATCHED)


async def test_a_batch_is_done_in_order_and_what_is_stale_in_it_is_dropped(shell: str) -> None:
    async with polled(shell) as client:
        ada = client()
        await ada.open()
        await ada.join("room:lobby")
        frames = [ada.frame("room:lobby", "new_message", {"content": f"hi{number}"})[1] for number in range(3)]
        stale = '["stale","stale","room:lobby","new_message",{"content":"stale"}]'
        without = '[null,"9","room:lobby","new_message",{"content":"no join_ref"}]'
        binary = bytes((0, 1, 1, 10, 3)) + b"18room:lobbybin" + bytes((1, 2, 3))
        assert (await ada.post(*frames, stale, without, binary)).status == 200
        assert (await ada.answer("8"))[1]["code"] == "invalid_message"  # a room takes no binary, and says so
        assert [frame.payload["content"] for frame in ada.frames if frame.event == "new_message"] == [
            *("hi0", "hi1", "hi2"),
            "no join_ref",
        ]


@pytest.mark.parametrize("content", [b'"cut \\ud83d"', b'"\xff"', b"NaN"])
async def test_a_message_that_cannot_be_read_is_answered_and_the_others_of_its_post_are_not_lost(
    shell: str, content: bytes
) -> None:
    async with polled(shell) as client:
        ada = client()
        await ada.open()
        await ada.join("room:lobby")
        broken = b'[null,"18","room:lobby","new_message",{"content":' + content + b"}]"
        whole = b'[null,"19","room:lobby","new_message",{"content":"whole"}]'
        body = b"\n".join((broken, whole))
        reply = await ada.request("POST", {"content-type": NDJSON}, body)
        assert reply.status == 200
        assert (await ada.answer("18"))[1]["code"] == "invalid_message"
        assert (await ada.answer("19"))[0] == "ok"


async def test_one_message_may_be_posted_as_any_other_type(shell: str) -> None:
    async with polled(shell) as client:
        for version, kind in ((1, "application/json"), (2, ""), (2, "text/plain")):
            ada = client("ada", version)
            await ada.open()
            ref, join = ada.frame("room:lobby", "phx_join")
            assert (await ada.request("POST", {"content-type": kind}, join.encode())).body == {"status": 200}
            assert (await ada.answer(ref))[0] == "ok"


async def test_a_leave_without_a_join_ref_counts_and_a_stale_one_does_not(shell: str) -> None:
    async with polled(shell) as client:
        ada = client()
        await ada.open()
        await ada.join("room:lobby")
        assert (await ada.post('["stale","7","room:lobby","phx_leave",{}]')).status == 200
        assert (await ada.post('[null,"8","room:lobby","phx_leave",{}]')).status == 200
        await ada.poll_for(lambda frame: frame.event == "phx_close")
        assert [frame.ref for frame in ada.frames if frame.event == "phx_reply"] == ["1", "8"]
        closing = ada.frames[-1]
        assert (closing.join_ref, closing.ref, closing.event) == ("1", "1", "phx_close")


async def test_who_may_not_connect_is_told_403_and_so_is_a_foreign_page_and_an_unknown_version(shell: str) -> None:
    def authenticate(handshake: Handshake) -> str | None:
        if handshake.params.get("fails"):
            raise LookupError("injected")
        return handshake.params.get("user_id")

    async with polled(shell, authenticate=authenticate, origins=("https://example.org",)) as client:
        for stranger in (client(fails="yes"), client(vsn="123.1.1")):
            reply = await stranger.request("GET")
            assert (reply.http, reply.body) == (200, {"status": 403})
        ada = client()
        foreign = await ada.request("GET", {"origin": "http://evil.example"})
        assert (foreign.body, "access-control-allow-origin" in foreign.headers) == ({"status": 403}, False)
        allowed = await ada.request("GET", {"origin": "https://example.org"})
        assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (410, "https://example.org")
        ada.token = allowed.body["token"]
        # Each request is looked at, not only the first one.
        for method in ("GET", "POST", "OPTIONS"):
            foreign = await ada.request(method, {"origin": "http://evil.example", "content-type": NDJSON}, b"")
            assert foreign.body == {"status": 403}
        assert (await ada.poll()).status == 204


async def test_a_page_of_an_allowed_origin_may_send_what_it_asks_about(shell: str) -> None:
    async with polled(shell, origins=("https://example.org",)) as client:
        asked = {"origin": "https://example.org", "access-control-request-method": "POST"}
        reply = await client().request(
            "OPTIONS", {**asked, "access-control-request-headers": "content-type, x-phoenix-authtoken"}
        )
        assert reply.http == 200
        assert reply.headers["access-control-allow-origin"] == "https://example.org"
        assert reply.headers["access-control-allow-headers"] == "content-type, x-phoenix-authtoken"
        assert {"GET", "POST"} <= set(reply.headers["access-control-allow-methods"].split(", "))
        assert "access-control-allow-credentials" not in reply.headers
        odd = await client().request("OPTIONS", {**asked, "access-control-request-headers": "x: y; z"})
        assert odd.headers["access-control-allow-headers"] == ""


async def test_a_request_without_an_origin_shows_otherwise_whose_page_it_is(shell: str) -> None:
    async with polled(shell) as client:
        for headers, status in (
            ({"cookie": "a=1"}, 403),
            ({"cookie": "a=1", "sec-fetch-site": "cross-site"}, 403),
            ({"sec-fetch-site": "cross-site"}, 403),
            ({"cookie": "a=1", "sec-fetch-site": "same-origin"}, 410),
            ({"cookie": "a=1", "referer": "http://evil.example/http://localhost"}, 403),
            ({"cookie": "a=1", "referer": "nonsense"}, 403),
            ({"cookie": "a=1", "referer": f"http://localhost:{client.port}/some/page?x"}, 410),
            ({}, 410),
        ):
            assert (await client().request("GET", headers)).status == status, headers


async def test_the_tokens_of_both_kinds_arrive(shell: str) -> None:
    tokens: list[str | None] = []

    def authenticate(handshake: Handshake) -> str:
        tokens.append(handshake.token)
        return "ada"

    async with polled(shell, authenticate=authenticate) as client:
        ada = client(token="the user's own, which is no session's")
        opened = await ada.request("GET", {"x-phoenix-authtoken": "s3cret"})
        assert (opened.status, tokens) == (410, ["s3cret"])
        # phoenix.js sends the session's token as a parameter, and newer versions as a header.
        reply = await ada.request("GET", {"x-phoenix-longpoll-token": opened.body["token"]})
        assert (reply.status, tokens) == (204, ["s3cret"])


async def test_a_token_that_nobody_knows_is_gone_and_costs_no_question(shell: str) -> None:
    asked: list[str] = []

    def authenticate(handshake: Handshake) -> str:
        asked.append("who?")
        return "ada"

    async with polled(shell, authenticate=authenticate) as client:
        ada = client()
        ada.token = f"chatx-lp.{'x' * 43}.0"
        assert (await ada.request("GET")).body == {"status": 410, "token": None, "messages": []}
        assert (await ada.post("[]")).body == {"status": 410}
        ada.token = None
        assert (await ada.post("[]")).body == {"status": 410}
        assert asked == []


async def test_a_revoked_user_and_one_whose_token_expires_must_begin_anew(shell: str) -> None:
    def authenticate(handshake: Handshake) -> Identity:
        user = handshake.params["user_id"]
        return Identity(user, expires_at=time.time() + 0.5 if user == "ada" else None)

    chat = Chat()
    async with polled(shell, chat, authenticate) as client:
        ada, eve = client("ada"), client("eve")
        await asyncio.gather(ada.open(), eve.open())
        await eve.join("room:a")
        assert await chat.revoke("eve") == 1
        assert await eve.poll() == (410, [])
        while (status := (await ada.poll()).status) == 204:
            pass
        assert status == 410


async def test_other_methods_are_told_which_there_are(shell: str) -> None:
    async with polled(shell) as client:
        for method in ("PUT", "DELETE", "HEAD", "PATCH"):
            reply = await client().request(method)
            assert (reply.http, reply.headers["allow"]) == (405, "GET, POST, OPTIONS")


WRONG_POSTS = [
    (NDJSON, b"\xff\xfe", 200, 410),  # neither JSON nor base64
    (NDJSON, b"[\xff]", 200, 410),  # not UTF-8
    ("application/json", b"\xff", 200, 410),
    (NDJSON, b"not json", 200, 410),
    (NDJSON, b"[]", 200, 410),  # JSON, and no frame
    (NDJSON, b"AAAA", 200, 410),  # base64, and no frame
    (NDJSON, b"\n" * 100_000, 413, 413),
    (NDJSON, b"{}\n" * (MAX_POST_MESSAGES + 1), 413, 413),
    ("application/json", b'["' + b"x" * 70_000 + b'"]', 200, 410),  # a message over its bound
]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_post_that_is_wrong_or_too_much_ends_its_session_and_no_other(shell: str, version: Version) -> None:
    async with polled(shell) as client:
        bob = client("bob")
        await bob.open()
        await bob.join("room:lobby")
        for kind, body, http, status in WRONG_POSTS:
            ada = client("ada", version)
            await ada.open()
            reply = await ada.request("POST", {"content-type": kind}, body)
            assert (reply.http, reply.body) == (http, {"status": status}), body[:20]
            assert await ada.poll() == (410, [])
        assert (await bob.post("")).body == {"status": 200}
        while (await bob.poll()).status != 204:
            pass


async def test_a_body_over_its_bound_is_not_read(shell: str) -> None:
    async with polled(shell) as client:
        ada = client()
        await ada.open()
        url = f"http://localhost:{client.port}/socket/longpoll?token={ada.token}"
        async with httpx2.AsyncClient() as http:
            reply = await http.post(url, content=b"x" * (MAX_POST_BYTES + 1), headers={"content-type": NDJSON})
        assert reply.status_code == 413


async def test_a_post_may_hold_as_much_as_it_may(shell: str) -> None:
    async with polled(shell, Chat(rate_limit=UNLIMITED)) as client:
        ada = client()
        await ada.open()
        await ada.join("room:lobby")
        frames = [ada.frame("room:lobby", "new_message", {"content": "x" * 2500})[1] for _ in range(MAX_POST_MESSAGES)]
        body = "\r\n".join(frames).encode() + b"\n"
        assert len(body) < MAX_POST_BYTES
        assert (await ada.request("POST", {"content-type": "application/x-ndjson; charset=utf-8"}, body)).status == 200
        await ada.poll_for(lambda frame: frame.payload.get("offset") == MAX_POST_MESSAGES)


async def test_whoever_does_not_poll_is_closed_as_slow_and_resumes(shell: str) -> None:
    chat = Chat(rate_limit=UNLIMITED, mailbox_bytes=100_000)
    async with polled(shell, chat) as client:
        slow = client("slow")
        await slow.open()
        start = await slow.join("room:a")
        for number in range(1, 101):
            await chat.send_message("a", "bob", f"{number:03}" + "x" * 4000)
            await asyncio.sleep(0)
        assert await slow.poll() == (410, [])
        assert await chat.presence("a") == {}
        await slow.open()
        # More than fits at once: it comes at the pace of the polls.
        assert (await slow.join("room:a", epoch=start["epoch"], offset=0))["recovered"] is True
        await slow.poll_for(lambda frame: frame.payload.get("offset") == 100)
        numbers = [frame.payload["offset"] for frame in slow.frames if frame.event == "new_message"]
        assert numbers == list(range(1, 101))


async def test_what_was_stored_is_caught_up_with_and_is_the_history_in_the_next_life_of_the_chat(shell: str) -> None:
    log = MemoryLog()
    async with Chat(persistence=log, durability="stored", rate_limit=UNLIMITED) as crashes:
        for number in range(100):
            await crashes.send_message("a", "bob", f"{number}")
        async with polled(shell, Chat(persistence=log, history_size=4)) as client:
            ada = client()
            await ada.open()
            epoch = log.records("a")[0].entry.epoch
            head = await ada.join("room:a", epoch=epoch, offset=10)
            assert (head["epoch"], head["offset"], head["recovered"]) == (epoch, 100, True)
            await ada.poll_for(lambda frame: frame.payload.get("offset") == 100)
            offsets = [frame.payload["offset"] for frame in ada.frames if frame.event == "new_message"]
            assert offsets == list(range(11, 101))
            place = {"epoch": epoch, "offset": 94}
            for name, expected, more in (("after", range(95, 98), True), ("before", range(91, 94), True)):
                status, page = await ada.answer(await ada.push("room:a", "history", {"limit": 3, name: place}))
                assert (status, page["more"]) == ("ok", more)
                assert [each["offset"] for each in page["messages"]] == list(expected)
            log.forget("a", Position(epoch, 97))
            status, refused = await ada.answer(await ada.push("room:a", "history", {"after": place}))
            assert (status, refused["code"]) == ("error", "too_old")


async def test_a_place_is_held_until_the_session_ends_and_at_a_bound_nobody_is_let_in(shell: str) -> None:
    chat = Chat(max_connections_per_user=1)
    async with polled(shell, chat) as client:
        ada, again = client("ada"), client("ada")
        await ada.open()
        reply = await again.request("GET")
        # phoenix.js knows no 429: at 500 it comes back, more and more slowly.
        assert (reply.http, reply.body, reply.headers["retry-after"]) == (429, {"status": 500}, "5")
        assert chat.statistics().connections == 1
        await ada.post("nonsense")
        await again.open()


async def test_the_number_of_sessions_is_bounded(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longpoll, "MAX_SESSIONS", 1)
    async with polled(shell) as client:
        await client("ada").open()
        reply = await client("bob").request("GET")
        assert (reply.http, reply.body) == (503, {"status": 500})


async def test_a_stopped_chat_ends_every_session_at_once_and_lets_nobody_in(shell: str) -> None:
    chat = Chat()
    async with polled(shell, chat) as client:
        ada = client()
        await ada.open()
        await ada.join("room:a")
        while (await ada.poll()).status != 204:
            pass
        waiting = asyncio.create_task(ada.poll())
        await until(lambda: any(task.get_name() == "chatx poll" for task in asyncio.all_tasks()))
        await chat.stop()
        assert await waiting == (410, [])
        reply = await client().request("GET")
        assert (reply.http, reply.body) == (503, {"status": 500})
        await chat.start()
        await ada.open()
        assert chat.statistics().connections == 1


def test_a_poll_and_a_post_fit_into_what_the_native_server_gives_a_request(shell: str) -> None:
    # phoenix.js gives a poll up after 20 s.
    assert longpoll.POLL_S < 20 < POST_S + WRITE_STALL_S + 20 < EXCHANGE_S
    assert MAX_POST_BYTES <= BODY_BYTES
