"""One client's session over the real engine: joins, sends, resumes, refusals and ends."""

from __future__ import annotations

import asyncio
from math import ceil
from typing import Any

import pytest

from chatx.adapters.boundary import AdapterFailure
from chatx.chat import Chat
from chatx.core.message import Draft, PresenceDiff
from chatx.core.rate_limit import RateLimit
from chatx.errors import ERRORS, ChatError, RoomUnavailable
from chatx.gateway.entry.handshake import Identity
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.session.reading import PAGE_MESSAGES
from chatx.gateway.session.socket import Bundle
from chatx.gateway.wire.bounds import PENDING_PUSHES
from chatx.gateway.wire.frames import Version
from chatx.runtime.process import RESTARTS
from tests.gateway.fakes import Client, FakeSocket, chatx_tasks, crashing_engine, settle
from tests.limits import UNLIMITED
from tests.virtual import virtual


class Gate:
    """An auth or moderation adapter, or a middleware, that waits until it is opened."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.calls: list[tuple[str, ...]] = []

    async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        self.calls.append((user_id, room_id, action))
        await self.event.wait()
        return True

    async def check(self, content: str) -> bool:
        self.calls.append((content,))
        await self.event.wait()
        return True


async def publish(chat: Chat, room_id: str, count: int, prefix: str = "m") -> None:
    for number in range(1, count + 1):
        await chat.send_message(room_id, "server", f"{prefix}{number}")


@virtual
async def test_a_session_that_ends_leaves_nothing_in_what_sockets_share() -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        clients = [Client(gateway, f"user{number}") for number in range(20)]
        for client in clients:
            client.ask("room:a")
        await settle()
        assert len(gateway.joins) == len(gateway.wheel) == 20
        for client in clients:
            client.session.end()
        assert (len(gateway.joins), len(gateway.wheel)) == (0, 0)


# Joining


@pytest.mark.parametrize("version", [1, 2])
@virtual
async def test_the_reply_to_a_join_comes_before_everything_else_of_the_topic(version: Version) -> None:
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada", version)
        ref = client.ask("room:a")
        await chat.send_message("a", "bob", "hi")
        await settle()

        topic = [each for each in client.received if each.topic == "room:a"]
        assert (topic[0].event, topic[0].ref) == ("phx_reply", ref)
        client.session.end()


@virtual
async def test_a_fresh_join_tells_the_head_and_live_messages_start_behind_it() -> None:
    async with Chat() as chat:
        await publish(chat, "a", 3)
        client = Client(Gateway(chat.engine), "ada")

        response = await client.join("room:a")
        sent = await chat.send_message("a", "bob", "live")
        await settle()

        assert response == {"epoch": sent.epoch, "offset": 3, "recovered": False}
        assert client.offsets() == [4]
        (frame,) = client.events("new_message")
        assert frame.payload == {
            "id": sent.id,
            "room_id": "a",
            "user_id": "bob",
            "content": "live",
            "inserted_at": sent.inserted_at,
            "epoch": sent.epoch,
            "offset": 4,
        }
        client.session.end()


@virtual
async def test_a_sender_receives_its_own_message_and_an_ok_reply() -> None:
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")

        status, response = client.reply(client.say("room:a", "hello", key="k1"))
        await settle()

        (frame,) = client.events("new_message")
        assert status == "ok"
        assert response == {name: frame.payload[name] for name in ("id", "epoch", "offset", "inserted_at")}
        assert client.reply(client.say("room:a", "hello", key="k1")) == ("ok", {**response, "duplicate": True})
        await settle()
        assert client.contents() == ["hello"]
        again = client.say("room:a", "hello", key="k1", epoch="another")
        assert client.reply(again) == ("ok", {**response, "duplicate": True})
        in_it = client.say("room:a", "in it", key="k2", epoch=response["epoch"])
        await settle()
        assert client.reply(in_it)[0] == "ok"
        assert client.contents() == ["hello", "in it"]
        client.session.end()


@virtual
async def test_leaving_ends_the_broadcasts_and_the_presence() -> None:
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        await settle()
        client.forget()

        ref = client.push("room:a", "phx_leave")
        await chat.send_message("a", "bob", "later")
        await settle()

        assert [each.event for each in client.received] == ["phx_reply", "phx_close"]
        assert client.reply(ref) == ("ok", {})
        assert await chat.presence("a") == {}


@virtual
async def test_a_second_join_ends_the_first_and_nothing_comes_in_between() -> None:
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        await settle()
        client.forget()

        ref = client.ask("room:a")
        await publish(chat, "a", 2)
        await settle()

        events = [each.event for each in client.received if each.topic == "room:a"]
        assert events[:2] == ["phx_close", "phx_reply"]
        assert client.reply(ref)[0] == "ok"
        assert len((await chat.presence("a"))["ada"]) == 1
        client.session.end()


@virtual
async def test_a_join_that_is_refused_leaves_no_trace() -> None:
    class Nobody:
        def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            return action == "join"  # but not "subscribe", which a join on the wire needs too

    async with Chat(auth=Nobody()) as chat:
        client = Client(Gateway(chat.engine), "ada")
        status, response = await refusal(client, client.ask("room:a"))

        assert (status, response["code"]) == ("error", "unauthorized")
        assert await chat.presence("a") == {}
        assert client.reply(client.say("room:a", "x"))[1]["reason"] == "unmatched topic"


@pytest.mark.parametrize(
    "params",
    [
        {"epoch": "e"},
        {"offset": 3},
        {"epoch": "e", "offset": -1},
        {"epoch": "e", "offset": 2**53},
        {"epoch": 5, "offset": 1},
        {"epoch": "e" * 129, "offset": 1},
    ],
)
@virtual
async def test_a_join_with_a_position_that_is_none_is_refused(params: dict[str, Any]) -> None:
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada")
        status, response = await refusal(client, client.ask("room:a", **params))

        assert (status, response["code"], response["retryable"]) == ("error", "invalid_message", False)
        assert await chat.presence("a") == {}


@virtual
async def test_a_room_that_the_identity_does_not_name_is_refused_just_as_the_auth_adapter_refuses() -> None:
    asked: list[str] = []

    class Picky:
        def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            asked.append(room_id)
            return room_id != "forbidden"

    async with Chat(auth=Picky()) as chat:
        client = Client(Gateway(chat.engine), Identity("ada", rooms=("team-*", "forbidden")))
        await client.join("room:team-1")
        asked.clear()
        named = await refusal(client, client.ask("room:forbidden"))
        unnamed = await refusal(client, client.ask("room:other"))

        assert named[1]["code"] == "unauthorized"
        assert unnamed == named
        assert asked == ["forbidden"]
        assert chat.statistics().rooms == 1
        client.session.end()


async def refusal(client: Client, ref: str) -> tuple[str, dict[str, Any]]:
    await settle()
    return client.reply(ref)


# Refusals


@pytest.mark.parametrize("code", sorted(ERRORS))
@virtual
async def test_every_error_reaches_the_wire_with_its_code_and_its_wait(code: str) -> None:
    error = ERRORS[code]

    def refuse(draft: Draft) -> Draft:
        raise error("because", retry_after=None if draft.content == "no wait" else 1.2341)

    async with Chat(middlewares=(refuse,)) as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")

        expected = {"code": code, "reason": "because", "retryable": error.retryable}
        assert client.reply(client.say("room:a", "x")) == ("error", {**expected, "retry_after_ms": 1235})
        assert client.reply(client.say("room:a", "no wait")) == ("error", expected)
        await settle()
        assert client.contents() == []
        client.session.end()


@virtual
async def test_a_middleware_that_fails_is_an_adapter_error_without_its_text() -> None:
    def fail(draft: Draft) -> Draft:
        raise ValueError("the password is xyzzy")

    async with Chat(middlewares=(fail,)) as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        status, response = client.reply(client.say("room:a", "x"))

        assert (status, response["code"], response["retryable"]) == ("error", "adapter_error", True)
        assert "xyzzy" not in response["reason"]
        client.session.end()


@virtual
async def test_a_rate_limited_client_that_waits_as_told_succeeds() -> None:
    async with Chat(rate_limit=RateLimit(messages_per_sec=3, burst=1)) as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        client.say("room:a", "one")

        status, response = client.reply(client.say("room:a", "two"))
        assert (status, response["code"], response["retryable"]) == ("error", "rate_limited", True)
        await asyncio.sleep(response["retry_after_ms"] / 1000)
        assert client.reply(client.say("room:a", "two"))[0] == "ok"
        client.session.end()


@pytest.mark.parametrize(
    "event, payload, code",
    [
        ("dance", {}, "invalid_message"),
        ("new_message", {}, "invalid_message"),
        ("new_message", {"content": 5}, "invalid_message"),
        ("new_message", {"content": None}, "invalid_message"),
        ("new_message", {"content": ""}, "invalid_message"),
        ("new_message", {"content": "a\x00b"}, "invalid_message"),
        ("new_message", {"content": "x", "key": ""}, "invalid_message"),
        ("new_message", {"content": "x", "key": 7}, "invalid_message"),
        ("new_message", {"content": "x", "epoch": 7}, "invalid_message"),
        ("new_message", {"content": "x", "epoch": ""}, "invalid_message"),
        ("new_message", {"content": "x", "epoch": "e" * 129}, "invalid_message"),
        ("new_message", {"content": "x", "key": "k", "epoch": "e"}, "epoch_changed"),
        ("new_message", [1], "invalid_message"),
        ("new_message", {"content": "x" * 4097}, "message_too_large"),
        ("history", {"limit": 0}, "invalid_message"),
        ("history", {"limit": 201}, "invalid_message"),
        ("history", {"before": {"epoch": "e"}}, "invalid_message"),
        ("history", {"after": {"epoch": "e", "offset": -1}}, "invalid_message"),
        ("history", {"after": [1]}, "invalid_message"),
        ("history", {"after": {"epoch": "e", "offset": 1}, "before": {"epoch": "e", "offset": 2}}, "invalid_message"),
        ("history", {"after": {"epoch": "e", "offset": 1}}, "epoch_changed"),
    ],
)
@virtual
async def test_a_bad_push_is_an_error_reply_and_the_channel_stays_up(event: str, payload: Any, code: str) -> None:
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        status, response = await refusal(client, client.push("room:a", event, payload))

        assert (status, response["code"]) == ("error", code)
        assert client.reply(client.say("room:a", "still here"))[0] == "ok"
        assert client.events("phx_error", "phx_close") == []
        client.session.end()


@virtual
async def test_unknown_fields_are_ignored() -> None:
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a", token="x", client="y")

        assert client.reply(client.say("room:a", "x", mood="good"))[0] == "ok"
        client.session.end()


@virtual
async def test_what_is_no_frame_closes_the_socket_and_leaves_every_room() -> None:
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        client.session.receive("{nonsense")

        assert client.socket.closed is not None
        assert client.socket.closed[0] == 1007
        assert await chat.presence("a") == {}


# History


@virtual
async def test_history_gives_pages_backwards_and_says_when_there_is_more() -> None:
    async with Chat(rate_limit=UNLIMITED) as chat:
        await publish(chat, "a", 5)
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")

        status, newest = await refusal(client, client.push("room:a", "history", {"limit": 2}))
        before = {name: newest["messages"][0][name] for name in ("epoch", "offset")}
        _, older = await refusal(client, client.push("room:a", "history", {"limit": 3, "before": before}))

        assert status == "ok"
        assert [each["offset"] for each in newest["messages"]] == [4, 5]
        assert newest["more"] is True
        assert [each["offset"] for each in older["messages"]] == [1, 2, 3]
        assert older["more"] is False
        client.session.end()


@virtual
async def test_history_gives_pages_onwards_and_says_when_there_is_more() -> None:
    async with Chat(rate_limit=UNLIMITED, history_size=5) as chat:
        await publish(chat, "a", 7)
        client = Client(Gateway(chat.engine), "ada")
        head = await client.join("room:a")
        place = {"epoch": head["epoch"], "offset": 2}
        seen: list[tuple[list[int], bool]] = []
        while not seen or seen[-1][1]:
            _, page = await client.call("room:a", "history", {"limit": 2, "after": place})
            seen.append(([each["offset"] for each in page["messages"]], page["more"]))
            place["offset"] = page["messages"][-1]["offset"]
        assert seen == [([3, 4], True), ([5, 6], True), ([7], False)]
        assert await client.call("room:a", "history", {"after": place}) == ("ok", {"messages": [], "more": False})
        for offset, code in ((1, "too_old"), (8, "epoch_changed")):
            status, refused = await client.call("room:a", "history", {"after": place | {"offset": offset}})
            assert (status, refused["code"], refused["retryable"]) == ("error", code, False)
        client.session.end()


@virtual
async def test_whoever_may_no_longer_read_a_room_gets_no_history_of_it() -> None:
    class Auth:
        def __init__(self) -> None:
            self.asked: list[tuple[str, str, str]] = []
            self.answer = True

        async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            self.asked.append((user_id, room_id, action))
            return self.answer

    auth = Auth()
    async with Chat(auth=auth, middlewares=()) as chat:
        await publish(chat, "a", 3)
        client = Client(Gateway(chat.engine), "ada")
        head = await client.join("room:a")
        for answer in (True, False, True):
            for place in ({}, {"after": {"epoch": head["epoch"], "offset": 0}}):
                auth.asked.clear()
                auth.answer = answer
                status, page = await client.call("room:a", "history", place)
                assert auth.asked == [("ada", "a", "subscribe")]
                assert (status, page.get("code")) == (("ok", None) if answer else ("error", "unauthorized"))
                assert len(page.get("messages", [])) == (3 if answer else 0)
        client.session.end()


@virtual
async def test_whoever_is_refused_history_cannot_have_the_adapter_asked_without_end() -> None:
    class Auth:
        asked = 0
        answer = True

        async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            self.asked += 1
            return self.answer

    auth = Auth()
    async with Chat(auth=auth, middlewares=(), history_bytes_per_sec=1000) as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        auth.asked, auth.answer = 0, False
        codes = [(await client.call("room:a", "history", {}))[1]["code"] for _ in range(100)]
        assert set(codes) == {"unauthorized", "rate_limited"}
        assert auth.asked == codes.count("unauthorized") < 50
        client.session.end()


# Resuming


@pytest.mark.parametrize("missed", [1, PAGE_MESSAGES, PAGE_MESSAGES + 1, 5 * PAGE_MESSAGES])
@virtual
async def test_a_resume_gives_what_was_missed_between_the_reply_and_anything_newer(missed: int) -> None:
    async with Chat(rate_limit=UNLIMITED, history_size=1000) as chat:
        await publish(chat, "a", 7)
        head = chat.engine.rooms.find("a").room.history.position  # type: ignore[union-attr]
        await publish(chat, "a", missed)
        client = Client(Gateway(chat.engine), "ada")

        ref = client.ask("room:a", epoch=head.epoch, offset=7)
        await settle()
        await publish(chat, "a", 3)
        await settle()

        assert client.reply(ref) == ("ok", {"epoch": head.epoch, "offset": 7 + missed, "recovered": True})
        assert client.offsets() == list(range(8, 7 + missed + 3 + 1))
        assert client.received[0].event == "phx_reply"
        client.session.end()


@pytest.mark.parametrize("resumes", [False, True])
@virtual
async def test_what_a_callback_publishes_about_a_join_reaches_the_one_who_joins(resumes: bool) -> None:
    # A bot greets whoever comes. With nobody else on this gateway, the greeting falls into the very step of the join.
    async with Chat() as chat:
        engine = chat.engine
        await chat.send_message("a", "bob", "early")
        process = engine.rooms.find("a")
        assert process is not None

        def greet(event: object) -> None:
            if isinstance(event, PresenceDiff) and "ada" in event.joins:
                engine.send_at_once("a", "bot", "welcome", None)

        async with chat.subscribe_callback("a", greet, presence=True):
            client = Client(Gateway(engine), "ada")
            params = {"epoch": process.room.history.epoch, "offset": 0} if resumes else {}
            response = await client.join("room:a", **params)
            await settle()

            assert response["offset"] == 1
            assert client.contents() == (["early", "welcome"] if resumes else ["welcome"])
            client.session.end()


class FullSocket(FakeSocket):
    """Closes itself as slow at the first message, as one does whose client takes nothing."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._session = client.session

    def write(self, bundle: Bundle) -> None:
        super().write(bundle)
        if any("new_message" in text for text in bundle.texts):
            self._session.cut(1013, "too slow")


@virtual
async def test_a_socket_that_is_closed_as_slow_while_it_resumes_leaves_nothing_in_the_room() -> None:
    async with Chat() as chat:
        message = await chat.send_message("a", "server", "missed")
        gateway = Gateway(chat.engine)
        client = Client(gateway, "ada")
        client.session.socket = FullSocket(client)
        client.ask("room:a", epoch=message.epoch, offset=0)
        await settle()
        assert (chat.statistics().subscriptions, await chat.presence("a")) == (0, {})


@virtual
async def test_a_long_resume_is_written_no_faster_than_the_client_reads() -> None:
    async with Chat(rate_limit=UNLIMITED, history_size=1000) as chat:
        await publish(chat, "a", 500)
        epoch = chat.engine.rooms.find("a").room.history.epoch  # type: ignore[union-attr]
        client = Client(Gateway(chat.engine), "ada")
        client.socket.stall_at_write()

        client.ask("room:a", epoch=epoch, offset=0)
        await settle()
        await publish(chat, "a", 100, "live")
        await settle()
        assert client.offsets() == list(range(1, PAGE_MESSAGES + 1))

        client.socket.flow()
        await settle()
        assert client.offsets() == list(range(1, 601))
        assert client.socket.drains == ceil(600 / PAGE_MESSAGES)  # each page is asked about, the first one too
        await publish(chat, "a", 1)
        await settle()
        assert client.offsets() == list(range(1, 602))
        assert [each.event for each in client.events("presence_state")] == ["presence_state"]
        client.session.end()


@virtual
async def test_a_client_that_falls_behind_what_is_kept_while_it_catches_up_must_join_again() -> None:
    async with Chat(rate_limit=UNLIMITED, history_size=100) as chat:
        await publish(chat, "a", 100)
        epoch = chat.engine.rooms.find("a").room.history.epoch  # type: ignore[union-attr]
        client = Client(Gateway(chat.engine), "ada")
        client.socket.stall_at_write()
        client.ask("room:a", epoch=epoch, offset=0)
        await settle()
        await publish(chat, "a", 300)
        client.socket.flow()
        await settle()

        # The messages that came are whole; then it is told, and at its next join it learns why.
        assert client.offsets() == list(range(1, PAGE_MESSAGES + 1))
        assert client.received[-1].event == "phx_error"
        response = await client.join("room:a", epoch=epoch, offset=PAGE_MESSAGES)
        assert response == {"epoch": epoch, "offset": 400, "recovered": False, "reason": "too_old"}
        client.session.end()


@pytest.mark.parametrize("rest", ["leave", "join", "end"])
@pytest.mark.parametrize("when", ["waiting for the reply", "while it is replayed"])
@virtual
async def test_nothing_more_is_replayed_to_a_membership_that_has_ended(rest: str, when: str) -> None:
    gate = Gate()
    async with Chat(rate_limit=UNLIMITED, history_size=1000, auth=gate, middlewares=()) as chat:
        await publish(chat, "a", 300)
        epoch = chat.engine.rooms.find("a").room.history.epoch  # type: ignore[union-attr]
        client = Client(Gateway(chat.engine), "ada")
        client.socket.stall_at_write()
        client.ask("room:a", epoch=epoch, offset=0)
        if when == "while it is replayed":
            gate.event.set()
        await settle()
        head = {"epoch": epoch, "offset": 300}
        if rest == "leave":
            client.push("room:a", "phx_leave")
        elif rest == "join":
            client.ask("room:a", **head)
        else:
            client.session.end()
        gate.event.set()
        await settle()
        client.socket.flow()
        await settle()

        replayed = PAGE_MESSAGES if when == "while it is replayed" else 0
        assert len(client.offsets()) == replayed
        assert len((await chat.presence("a")).get("ada", [])) == (rest == "join")
        await publish(chat, "a", 1)
        await settle()
        assert len(client.offsets()) == replayed + (rest == "join")
        client.session.end()
        await settle()
        assert chatx_tasks() == []


@pytest.mark.parametrize("published", [PAGE_MESSAGES - 1, 2 * PAGE_MESSAGES])
@virtual
async def test_a_membership_that_ends_while_stored_messages_are_read_gets_no_broadcast(published: int) -> None:
    class Stored:
        """Serves its history slowly once `slow` is set."""

        slow = False

        def __init__(self) -> None:
            self.messages: list[Any] = []

        async def save_message(self, message: Any) -> None:
            self.messages.append(message)

        async def load_messages(self, room_id: str, *, after: Any = None, before: Any = None, limit: int) -> list[Any]:
            if self.slow:
                await asyncio.sleep(1)
            return [each for each in self.messages if after is None or each.offset > after.offset][:limit]

        async def last_position(self, room_id: str) -> None:
            return None

    store = Stored()
    async with Chat(rate_limit=UNLIMITED, history_size=1, persistence=store) as chat:
        await publish(chat, "a", 200)
        await asyncio.sleep(1)  # saved
        epoch = chat.engine.rooms.find("a").room.history.epoch  # type: ignore[union-attr]
        client = Client(Gateway(chat.engine), "ada")
        client.socket.stall_at_write()
        client.ask("room:a", epoch=epoch, offset=0)
        await settle()
        await publish(chat, "a", published)
        await asyncio.sleep(1)
        store.slow = True
        client.socket.flow()
        await settle()
        client.push("room:a", "phx_leave")
        seen = len(client.offsets())
        await asyncio.sleep(5)
        await publish(chat, "a", 1)
        await settle()

        assert seen == PAGE_MESSAGES
        assert len(client.offsets()) == seen
        assert client.received[-1].event == "phx_close"
        client.session.end()


@virtual
async def test_an_unrecoverable_resume_names_its_reason_and_is_never_partial() -> None:
    async with Chat(rate_limit=UNLIMITED, history_size=50, resume_max_messages=80) as chat:
        await publish(chat, "a", 100)
        epoch = chat.engine.rooms.find("a").room.history.epoch  # type: ignore[union-attr]
        client = Client(Gateway(chat.engine), "ada")
        for position, reason in [
            ({"epoch": "another", "offset": 1}, "epoch_changed"),
            ({"epoch": epoch, "offset": 101}, "epoch_changed"),
            ({"epoch": epoch, "offset": 40}, "too_old"),
            ({"epoch": epoch, "offset": 10}, "too_many"),
        ]:
            response = await client.join("room:a", **position)
            assert response == {"epoch": epoch, "offset": 100, "recovered": False, "reason": reason}
        assert client.offsets() == []
        await publish(chat, "a", 1)
        await settle()
        assert client.offsets() == [101]
        client.session.end()


@virtual
async def test_permission_is_asked_again_at_a_resume() -> None:
    class Banning:
        banned = False

        def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            return not self.banned

    auth = Banning()
    async with Chat(auth=auth) as chat:
        client = Client(Gateway(chat.engine), "ada")
        head = await client.join("room:a")
        await chat.send_message("a", "bob", "secret")
        client.session.end()
        auth.banned = True

        again = Client(Gateway(chat.engine), "ada")
        ref = again.ask("room:a", epoch=head["epoch"], offset=head["offset"])
        await settle()
        assert again.reply(ref)[1]["code"] == "unauthorized"
        assert again.contents() == []


# Stalls and crashes


@virtual
async def test_stalled_moderation_leaves_heartbeats_answered_until_as_many_pushes_wait_as_may() -> None:
    gate = Gate()
    async with Chat(moderation=gate, rate_limit=UNLIMITED, adapter_timeout_ms=60_000) as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        refs = [client.say("room:a", f"m{number}") for number in range(PENDING_PUSHES - 1)]
        await settle()

        assert not client.session.busy
        assert client.reply(client.push("phoenix", "heartbeat")) == ("ok", {})
        refs.append(client.say("room:a", "one more"))
        assert client.session.busy
        idle = asyncio.create_task(client.session.wait_idle())
        await settle()
        assert not idle.done()

        gate.event.set()
        await settle()
        assert idle.done()
        assert not client.session.busy
        assert [client.reply(ref)[0] for ref in refs] == ["ok"] * PENDING_PUSHES
        assert client.offsets() == list(range(1, PENDING_PUSHES + 1))
        client.session.end()


@virtual
async def test_one_stalled_client_does_not_hold_up_another() -> None:
    class Slow:
        async def check(self, content: str) -> bool:
            if content == "slow":
                await asyncio.sleep(4)
            return True

    async with Chat(moderation=Slow()) as chat:
        gateway = Gateway(chat.engine)
        ada, bob = Client(gateway, "ada"), Client(gateway, "bob")
        await ada.join("room:a")
        await bob.join("room:a")
        slow = ada.say("room:a", "slow")
        quick = bob.say("room:a", "quick")
        await settle()

        assert ada.replies(slow) == []
        assert bob.reply(quick)[0] == "ok"
        await asyncio.sleep(5)
        assert ada.contents() == bob.contents() == ["quick", "slow"]
        for each in (ada, bob):
            each.session.end()


@pytest.mark.parametrize("stage", ["joining", "sending", "idle"])
@virtual
async def test_the_end_of_a_session_leaves_no_member_and_no_task(stage: str) -> None:
    gate = Gate()
    async with Chat(auth=gate, moderation=gate) as chat:
        gateway = Gateway(chat.engine)
        client = Client(gateway, "ada")
        client.ask("room:a")
        if stage != "joining":
            gate.event.set()
        await settle()
        if stage == "sending":
            gate.event.clear()
            client.say("room:a", "never")
        await settle()
        client.session.end()
        client.session.end()
        await settle()

        assert chatx_tasks() == []
        assert await chat.presence("a") == {}
        statistics = chat.statistics()
        assert (statistics.members, statistics.subscriptions, statistics.admitted) == (0, 0, 0)
        before = len(client.received)
        client.say("room:a", "after the end")
        gate.event.set()
        await settle()
        assert len(client.received) == before


@virtual
async def test_a_room_that_crashes_now_and_then_goes_on_and_loses_nothing() -> None:
    engine, room = crashing_engine()
    client = Client(Gateway(engine), "ada")
    await client.join("room:a")
    client.say("room:a", "one", key="k1")
    room.crashes = 1
    status, response = client.reply(client.say("room:a", "two", key="k2"))
    assert (status, response["code"], response["retryable"]) == ("error", "room_unavailable", True)
    assert client.reply(client.say("room:a", "two", key="k2"))[0] == "ok"
    await settle()

    assert client.contents() == ["one", "two"]
    assert client.offsets() == [1, 2]
    assert client.events("phx_error") == []
    client.session.end()
    await engine.stop()


@virtual
async def test_a_room_that_crashes_too_often_fails_its_topic_and_can_be_joined_again() -> None:
    engine, room = crashing_engine()
    gateway = Gateway(engine)
    ada, bob = Client(gateway, "ada"), Client(gateway, "bob")
    first = await ada.join("room:a")
    await bob.join("room:a")
    await bob.join("room:other")
    room.crashes = RESTARTS + 1
    refs = [ada.say("room:a", f"m{number}") for number in range(RESTARTS + 1)]
    await settle()

    assert {ada.reply(ref)[1]["code"] for ref in refs} == {"room_unavailable"}
    for client in (ada, bob):
        assert [each.topic for each in client.events("phx_error")] == ["room:a"]
        assert client.socket.closed is None
    assert bob.reply(bob.say("room:other", "unmoved"))[0] == "ok"
    assert ada.reply(ada.say("room:a", "x"))[1]["code"] == "unmatched_topic"

    again = await ada.join("room:a", epoch=first["epoch"], offset=first["offset"])
    assert (again["recovered"], again["reason"], again["offset"]) == (False, "epoch_changed", 0)
    await bob.join("room:a")
    ada.say("room:a", "back")
    await settle()
    assert bob.contents("room:a") == ["back"]
    assert set(engine.rooms.find("a").room.presence.users()) == {"ada", "bob"}  # type: ignore[union-attr]
    for client in (ada, bob):
        client.session.end()
    await engine.stop()


@virtual
async def test_a_room_that_closes_under_a_join_fails_that_topic_only() -> None:
    engine, room = crashing_engine()
    client = Client(Gateway(engine), "ada")
    await client.join("room:other")
    room.crashes = RESTARTS
    for number in range(RESTARTS):
        with pytest.raises(RoomUnavailable):
            await engine.send("a", "bob", f"m{number}", None)
    room.flush_crashes = 1
    await client.join("room:a")

    assert [each.topic for each in client.events("phx_error")] == ["room:a"]
    assert client.socket.closed is None
    assert client.reply(client.say("room:other", "unmoved"))[0] == "ok"
    await client.join("room:a")
    assert client.reply(client.say("room:a", "back"))[0] == "ok"
    client.session.end()
    await engine.stop()


@virtual
async def test_a_bug_in_a_push_closes_the_socket_instead_of_leaving_it_without_an_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    async with Chat(moderation=gate) as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")

        async def broken(*args: object) -> None:
            raise AdapterFailure("raised", "a bug")

        monkeypatch.setattr(chat.engine.sending, "_send_awaiting", broken)
        client.say("room:a", "x")
        await settle()

        assert client.socket.closed == (1011, "internal error")
        assert "A session failed" in caplog.text
        assert await chat.presence("a") == {}


@virtual
async def test_stopping_the_chat_fails_every_topic() -> None:
    chat = Chat()
    await chat.start()
    client = Client(Gateway(chat.engine), "ada")
    await client.join("room:a")
    await chat.stop()

    assert [each.topic for each in client.events("phx_error")] == ["room:a"]
    ref = client.say("room:a", "x")
    assert client.reply(ref)[1]["code"] == "unmatched_topic"
    status, response = await refusal(client, client.ask("room:a"))
    assert (status, response["code"]) == ("error", "closed")


def test_every_error_that_is_raised_is_in_the_table() -> None:
    def tree(root: type[ChatError]) -> set[type[ChatError]]:
        return {root}.union(*map(tree, root.__subclasses__()))

    assert {error for error in tree(ChatError) if error.__module__.startswith("chatx.")} - {ChatError} == set(
        ERRORS.values()
    )


@virtual
async def test_data_travels_beside_the_content_on_every_way_to_a_client() -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        ada, bob = Client(gateway, "ada"), Client(gateway, "bob")
        joined = await ada.join("room:a")
        status, _ = await ada.call("room:a", "new_message", {"content": "", "data": {"files": ["a.png", {"n": 1}]}})
        assert status == "ok"
        await ada.call("room:a", "new_message", {"content": "plain", "data": None})
        await settle()
        told = [each.payload for each in ada.received if each.event == "new_message"]
        assert [(each["content"], each.get("data")) for each in told] == [
            ("", {"files": ["a.png", {"n": 1}]}),
            ("plain", None),
        ]
        assert "data" not in told[1]
        await bob.join("room:a", epoch=joined["epoch"], offset=0)
        await settle()
        assert [each.payload for each in bob.received if each.event == "new_message"] == told
        _, page = await bob.call("room:a", "history", {"limit": 10})
        assert page["messages"] == told
        for payload in (
            {"content": "", "data": {}},
            {"content": "x", "data": {"a": 2**53}},
            {"content": "x", "data": [1]},
        ):
            status, response = await ada.call("room:a", "new_message", payload)
            assert (status, response["code"]) == ("error", "invalid_message")
        status, response = await ada.call("room:a", "new_message", {"content": "x", "data": {"a": "x" * 5000}})
        assert (status, response["code"]) == ("error", "message_too_large")
        for each in (ada, bob):
            each.session.end()


@virtual
async def test_a_page_with_much_data_is_cut_by_its_bytes() -> None:
    async with Chat(rate_limit=RateLimit(1e6, 10**6)) as chat:
        gateway = Gateway(chat.engine)
        for number in range(60):
            await chat.send_message("a", "ada", "x" * 4000, data={"n": number, "text": "y" * 4000})
        first = (await chat.history("a", limit=60))[0]
        bob = Client(gateway, "bob")
        await bob.join("room:a", epoch=first.epoch, offset=0)
        await settle()
        told = [each.payload for each in bob.received if each.event == "new_message"]
        assert [each["data"]["n"] for each in told] == list(range(60))
        _, page = await bob.call("room:a", "history", {"limit": 60})
        assert page["more"]
        assert 20 <= len(page["messages"]) <= 33
        bob.session.end()
