"""The official client of Phoenix Channels, unmodified, in Node and in Chromium, against both shells."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from chatx import Identity
from chatx.chat import Chat
from chatx.core.rate_limit import RateLimit
from chatx.gateway.entry.handshake import Handshake
from tests.clients.peers import OpenPeer, Peer
from tests.gateway.real_client import until
from tests.gateway.servers import SHELLS, served
from tests.limits import UNLIMITED

pytestmark = [
    pytest.mark.process,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.parametrize("shell", SHELLS),
]

# The client encodes it with `btoa`, whose alphabet is not that of URLs: this one has a plus sign in it.
TOKEN = "so~secret"


async def come(open_peer: OpenPeer, port: int, user: str, topic: str | None = None, **options: Any) -> Peer:
    """Open a client that connects, and joins where there is a topic."""
    peer = await open_peer(port)
    await peer.connect(port, user, **options)
    await peer.expect("open")
    if topic is not None:
        await peer.join(topic)
    return peer


@pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
async def test_what_is_said_is_answered_and_reaches_everybody(shell: str, open_peer: OpenPeer, vsn: str) -> None:
    async with served(shell, Chat()) as port:
        ada = await come(open_peer, port, "ada", vsn=vsn)
        head = await ada.join("room:a")
        bob = await come(open_peer, port, "bob", "room:a")

        sent = await ada.say("Hello <é𝄞>")

        assert head == {"epoch": sent["epoch"], "offset": 0, "recovered": False}
        expected = {"room_id": "a", "user_id": "ada", "content": "Hello <é𝄞>", **sent}
        for peer in (ada, bob):
            assert (await peer.expect("message"))["message"] == expected
        await bob.say("Hi")
        assert await ada.has_seen(2) == await bob.has_seen(2) == ["Hello <é𝄞>", "Hi"]
        status, history = await ada.push("history")
        assert (status, [each["content"] for each in history["messages"]]) == ("ok", ["Hello <é𝄞>", "Hi"])


async def test_a_refused_push_is_told_why_and_the_channel_stays_up(shell: str, open_peer: OpenPeer) -> None:
    chat = Chat(rate_limit=RateLimit(messages_per_sec=0.001, burst=2))
    async with served(shell, chat) as port:
        ada = await come(open_peer, port, "ada", "room:a")
        for event, payload, code in [
            ("new_message", {"content": ""}, "invalid_message"),
            ("new_message", {"text": "x"}, "invalid_message"),
            ("new_message", {"content": "x" * 4097}, "message_too_large"),
            ("no_such_event", {}, "invalid_message"),
        ]:
            status, response = await ada.push(event, payload)
            assert (status, response["code"], response["retryable"]) == ("error", code, False)
        await ada.say("one")
        await ada.say("two")
        status, response = await ada.push("new_message", {"content": "three"})
        assert (status, response["code"], response["retryable"]) == ("error", "rate_limited", True)
        assert 900_000 < response["retry_after_ms"] <= 1_000_000
        assert await ada.has_seen(2) == ["one", "two"]
        assert ada.told("failed") == ada.told("closed") == ada.told("close") == []


async def test_a_binary_push_is_refused_and_the_channel_stays_up(shell: str, open_peer: OpenPeer) -> None:
    async with served(shell, Chat()) as port:
        ada = await come(open_peer, port, "ada", "room:a")

        status, response = await ada.push("new_message", bytes=[0, 1, 255])

        assert (status, response["code"]) == ("error", "invalid_message")
        await ada.say("text")
        assert await ada.has_seen(1) == ["text"]


async def test_whoever_leaves_hears_no_more_and_may_come_back(shell: str, open_peer: OpenPeer) -> None:
    chat = Chat()
    async with served(shell, chat) as port:
        ada = await come(open_peer, port, "ada", "room:a")
        await ada.do("leave", channel="main")
        # The client takes itself for gone at once; the server has heard of it when it answers what came behind it.
        await ada.expect("closed", channel="main")
        await ada.join("room:b", "other")
        assert await chat.presence("a") == {}

        await chat.send_message("a", "bob", "unheard")
        await chat.send_message("b", "bob", "heard")
        assert await ada.has_seen(1, "other") == ["heard"]
        assert ada.contents() == []
        assert (await ada.join("room:a", "again"))["offset"] == 1
        await ada.say("back", "again")
        assert await ada.has_seen(1, "again") == ["back"]


async def test_a_second_channel_of_a_topic_takes_the_place_of_the_first(shell: str, open_peer: OpenPeer) -> None:
    chat = Chat()
    async with served(shell, chat) as port:
        ada = await come(open_peer, port, "ada")
        # Neither waits for the other: the client leaves the first while it is still joining.
        await ada.do("join", topic="room:a", channel="first")
        await ada.do("join", topic="room:a", channel="second")
        await ada.expect("closed", channel="first")
        await ada.expect("joined", channel="second")
        await ada.join("room:a", "third")
        await ada.expect("closed", channel="second")

        await ada.say("once", "third")

        assert await ada.has_seen(1, "third") == ["once"]
        assert ada.contents("first") == ada.contents("second") == []
        assert len((await chat.presence("a"))["ada"]) == 1
        await ada.expect("synced", channel="third", here={"ada": 1})
        assert ada.told("closed", channel="third") == ada.told("failed") == []


async def test_presence_counts_tabs_and_tells_of_people(shell: str, open_peer: OpenPeer) -> None:
    async with served(shell, Chat()) as port:
        bob = await come(open_peer, port, "bob", "room:a")
        await bob.expect("synced", here={"bob": 1})
        first = await come(open_peer, port, "ada", "room:a")
        await bob.expect("came", user="ada", first=True)
        await first.expect("synced", here={"ada": 1, "bob": 1})

        second = await come(open_peer, port, "ada", "room:a")
        await bob.expect("came", user="ada", first=False)
        for peer in (bob, first, second):
            await peer.expect("synced", here={"ada": 2, "bob": 1})

        await first.do("leave", channel="main")
        await bob.expect("went", user="ada", last=False)
        await second.do("disconnect")
        await bob.expect("went", user="ada", last=True)
        await bob.until(lambda: bob.told("synced")[-1]["here"] == {"bob": 1})
        # Its own coming is told too, once; and what is there already is not told as coming.
        assert [(each["user"], each["first"]) for each in bob.told("came")] == [
            ("bob", True),
            ("ada", True),
            ("ada", False),
        ]


@pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
async def test_however_often_a_socket_is_cut_nothing_is_missed_and_nothing_comes_twice(
    shell: str, open_peer: OpenPeer, vsn: str
) -> None:
    chat = Chat(rate_limit=UNLIMITED)
    async with served(shell, chat) as port:
        ada = await come(open_peer, port, "ada", "room:a", vsn=vsn, reconnect_ms=1)
        for cut in range(5):
            for number in range(20):
                await chat.send_message("a", "bob", f"{cut}-{number}")
                if number == 10:
                    # It closes the sockets, and `authenticate` lets them in again.
                    assert await chat.revoke("ada") == 1
            await ada.expect("close", code=4003)
            await ada.expect("joined")
        expected = [f"{cut}-{number}" for cut in range(5) for number in range(20)]
        assert await ada.has_seen(len(expected)) == expected
        assert all(each["head"]["recovered"] for each in ada.told("joined")[1:])


async def test_what_is_pushed_while_there_is_no_socket_goes_out_once_when_there_is(
    shell: str, open_peer: OpenPeer
) -> None:
    async with served(shell, Chat()) as port:
        ada = await come(open_peer, port, "ada", "room:a")
        bob = await come(open_peer, port, "bob", "room:a")
        await ada.do("disconnect")
        await ada.expect("disconnected")
        for number in range(3):
            await bob.say(f"bob {number}")
            payload = {"content": f"ada {number}"}
            await ada.do("push", channel="main", event="new_message", payload=payload, id=-number)

        await ada.do("reconnect")

        for number in range(3):
            await ada.expect("reply", id=-number, status="ok")
        expected = [f"{name} {number}" for name in ("bob", "ada") for number in range(3)]
        assert await ada.has_seen(6) == await bob.has_seen(6) == expected


async def test_a_refused_join_is_tried_again_until_it_is_allowed(shell: str, open_peer: OpenPeer) -> None:
    allowed = {"b"}

    class Doorkeeper:
        def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            return room_id in allowed

    async with served(shell, Chat(auth=Doorkeeper())) as port:
        ada = await come(open_peer, port, "ada", rejoin_ms=20)
        await ada.do("join", topic="room:a", channel="main")
        for _ in range(3):
            refusal = (await ada.expect("refused"))["refusal"]
            assert (refusal["code"], refusal["retryable"]) == ("unauthorized", False)
        await ada.join("room:b", "other")
        allowed.add("a")
        await ada.expect("joined", channel="main")
        await ada.say("at last")
        assert await ada.has_seen(1) == ["at last"]
        assert ada.told("close") == []


async def test_a_join_that_takes_too_long_is_given_up_and_asked_for_anew(shell: str, open_peer: OpenPeer) -> None:
    class Slow:
        def __init__(self) -> None:
            self.ready = asyncio.Event()

        async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            await self.ready.wait()
            return True

    slow = Slow()
    chat = Chat(auth=slow)
    async with served(shell, chat) as port:
        ada = await come(open_peer, port, "ada", timeout_ms=500, rejoin_ms=1)
        await ada.do("join", topic="room:a", channel="main")
        await ada.expect("timeout")
        slow.ready.set()
        await ada.expect("joined")
        await ada.say("here now")
        assert await ada.has_seen(1) == ["here now"]
        assert len((await chat.presence("a"))["ada"]) == 1


async def test_a_membership_that_the_server_ends_is_asked_for_again(shell: str, open_peer: OpenPeer) -> None:
    def authenticate(handshake: Handshake) -> Identity:
        rooms = tuple((handshake.token or "a b").split())
        return Identity("ada", expires_at=time.time() + 3600, rooms=rooms)

    chat = Chat()
    async with served(shell, chat, authenticate) as port:
        ada = await come(open_peer, port, "ada", "room:a", rejoin_ms=20)
        await ada.join("room:b", "other")
        assert (await ada.push("access_token", {"token": "b"}, "other"))[0] == "ok"
        await ada.expect("failed", channel="main")
        assert (await ada.expect("refused", channel="main"))["refusal"]["code"] == "unauthorized"
        await chat.send_message("a", "bob", "meanwhile")
        assert (await ada.push("access_token", {"token": "a b"}, "other"))[0] == "ok"
        assert (await ada.expect("joined", channel="main"))["head"]["recovered"] is True
        assert await ada.has_seen(1) == ["meanwhile"]
        assert ada.told("failed", channel="other") == ada.told("close") == []


async def test_a_refused_handshake_is_tried_again_with_new_params(shell: str, open_peer: OpenPeer) -> None:
    asked: list[str] = []

    def authenticate(handshake: Handshake) -> str | None:
        asked.append(handshake.params["token"])
        return "ada" if handshake.params["token"] == "new & valid" else None

    async with served(shell, Chat(), authenticate) as port:
        ada = await open_peer(port)
        await ada.connect(port, "", params={"token": "old"})
        await ada.do("join", topic="room:a", channel="main")
        await ada.expect("error")
        await ada.expect("error")
        assert ada.told("open") == []
        await ada.do("become", params={"token": "new & valid"})
        await ada.expect("joined")
        await ada.say("healed")
        assert set(asked[:-1]) == {"old"}


async def test_the_auth_token_travels_as_a_subprotocol_and_is_not_echoed(shell: str, open_peer: OpenPeer) -> None:
    asked: list[tuple[str | None, tuple[str, ...]]] = []

    def authenticate(handshake: Handshake) -> str | None:
        asked.append((handshake.token, tuple(handshake.params)))
        return "ada" if handshake.token == TOKEN else None

    async with served(shell, Chat(), authenticate) as port:
        ada = await open_peer(port)
        await ada.connect(port, "", params={}, token="stale")
        await ada.expect("error")
        await ada.do("become", params={}, token=TOKEN)
        assert (await ada.expect("open"))["protocol"] == "phoenix"
        await ada.join("room:a")
        assert (await ada.say("known"))["offset"] == 1
        assert asked[-1] == (TOKEN, ("vsn",))


async def test_a_client_that_sends_no_heartbeat_is_closed_and_one_that_does_is_not(
    shell: str, open_peer: OpenPeer
) -> None:
    chat = Chat()
    async with served(shell, chat, idle_timeout_s=1.5) as port:
        silent = await come(open_peer, port, "ada", "room:a", heartbeat_ms=60_000)
        beating = await come(open_peer, port, "bob", "room:a", heartbeat_ms=300)
        await silent.expect("close", code=1001)
        await chat.send_message("a", "carol", "meanwhile")
        await silent.expect("joined")
        assert await silent.has_seen(1) == await beating.has_seen(1) == ["meanwhile"]
        # On a machine that stalls it may miss an answer and come back by itself; the server has no part in that.
        assert beating.told("close", code=1001) == []


async def test_a_client_that_goes_leaves_nothing_behind(shell: str, open_peer: OpenPeer) -> None:
    chat = Chat()
    async with served(shell, chat) as port:
        ada = await come(open_peer, port, "ada", "room:a")
        await asyncio.gather(ada.join("room:b", "b"), ada.join("room:c", "c"))
        await ada.do("disconnect")
        await ada.expect("disconnected")
        await until(lambda: chat.statistics().connections == 0)
        assert [await chat.presence(room) for room in "abc"] == [{}, {}, {}]
