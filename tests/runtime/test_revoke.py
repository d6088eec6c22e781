"""`Chat.revoke`: what a user holds ends at once; what others hold does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chatx import Chat, Closed, Event, InvalidMessage, Revoked
from chatx.core.message import Message
from tests.virtual import virtual


async def nothing_left(chat: Chat) -> None:
    await asyncio.sleep(0.001)
    statistics = chat.statistics()
    assert (statistics.members, statistics.subscriptions, statistics.connections) == (0, 0, 0)
    assert chat.engine.callbacks == {}


@virtual
async def test_a_connection_ends_with_the_error_and_without_what_is_unread_and_the_user_is_gone() -> None:
    async with Chat() as chat:
        async with chat.connect("eve") as connection, chat.connect("bob") as other:
            for each in (connection, other):
                await each.join("a")
                await each.subscribe("a")
            await chat.send_message("a", "bob", "secret")
            assert await chat.revoke("eve") == 1

            with pytest.raises(Revoked):
                await anext(connection)
            assert set(await chat.presence("a")) == {"bob"}
            assert isinstance(await anext(other), Message)
            for call in (connection.join("b"), connection.subscribe("b"), connection.send_message("a", "x")):
                with pytest.raises(Revoked):
                    await call
        await nothing_left(chat)


@virtual
async def test_a_pending_read_ends() -> None:
    async with Chat() as chat, chat.connect("eve") as connection:
        await connection.subscribe("a")
        reading = asyncio.ensure_future(anext(connection))
        await asyncio.sleep(1)
        await chat.revoke("eve")
        with pytest.raises(Revoked):
            await reading


@virtual
async def test_subscriptions_of_the_user_end_and_those_of_trusted_code_and_of_others_go_on() -> None:
    async with Chat() as chat:
        async with (
            chat.subscribe("a", user_id="eve") as eves,
            chat.subscribe("a", user_id="bob") as bobs,
            chat.subscribe("a") as trusted,
        ):
            await chat.send_message("a", "bob", "secret")
            assert await chat.revoke("eve") == 1
            assert chat.statistics().subscriptions == 2
            await chat.send_message("a", "bob", "more")

            with pytest.raises(Revoked):
                await anext(eves)
            for each in (bobs, trusted):
                assert [(await anext(each)).offset for _ in range(2)] == [1, 2]  # type: ignore[union-attr]
        await nothing_left(chat)


@virtual
async def test_a_callback_of_the_user_ends_and_is_told_why() -> None:
    async with Chat() as chat:
        seen: list[Event] = []
        ends: list[str] = []
        async with (
            chat.subscribe_callback("a", seen.append, user_id="eve", on_closed=lambda error: ends.append(error.code)),
            chat.subscribe_callback("a", lambda event: None, user_id="bob"),
            chat.subscribe_callback("a", lambda event: None),
        ):
            await chat.send_message("a", "bob", "one")
            assert await chat.revoke("eve") == 1
            await chat.send_message("a", "bob", "two")
            assert ([each.offset for each in seen], ends) == ([1], ["revoked"])  # type: ignore[union-attr]
            assert await chat.revoke("eve") == 0
        await nothing_left(chat)


@virtual
async def test_plain_memberships_end_in_every_room() -> None:
    async with Chat() as chat:
        for room in ("a", "b", "c"):
            await chat.join(room, "eve")
        await chat.join("a", "bob")
        assert await chat.revoke("eve") == 3
        assert [set(await chat.presence(room)) for room in ("a", "b", "c")] == [{"bob"}, set(), set()]
        await chat.leave("a", "bob")
        await nothing_left(chat)


class Slow:
    async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        await asyncio.sleep(1)
        return True


@pytest.mark.parametrize("call", ["join", "connection.join", "connection.subscribe", "subscribe", "callback"])
@virtual
async def test_what_is_under_way_when_the_user_is_revoked_is_refused(call: str) -> None:
    async with Chat(auth=Slow()) as chat:
        async with chat.connect("eve") as connection, chat.connect("bob") as other:
            begin: dict[str, Any] = {
                "join": lambda: chat.join("a", "eve"),
                "connection.join": lambda: connection.join("a"),
                "connection.subscribe": lambda: connection.subscribe("a"),
                "subscribe": lambda: chat.subscribe("a", user_id="eve").__aenter__(),
                "callback": lambda: chat.subscribe_callback("a", print, user_id="eve").__aenter__(),
            }
            under_way = asyncio.ensure_future(begin[call]())
            others = asyncio.ensure_future(other.join("a"))
            await asyncio.sleep(0.5)
            await chat.revoke("eve")
            with pytest.raises(Revoked):
                await under_way
            await others
            assert set(await chat.presence("a")) == {"bob"}
        await nothing_left(chat)


@virtual
async def test_whoever_comes_back_is_let_in_as_the_auth_adapter_says() -> None:
    async with Chat() as chat:
        await chat.revoke("eve")
        async with chat.connect("eve") as connection:
            await connection.join("a")
            assert set(await chat.presence("a")) == {"eve"}


@virtual
async def test_a_callback_may_revoke_its_own_user() -> None:
    async with Chat() as chat:
        cut: list[int] = []
        async with (
            chat.subscribe_callback("a", lambda event: cut.append(chat.engine.revoke("eve")), user_id="eve"),
            chat.subscribe("a") as other,
        ):
            await chat.send_message("a", "bob", "one")
            await chat.send_message("a", "bob", "two")
            assert cut == [1]
            assert [(await anext(other)).offset for _ in range(2)] == [1, 2]  # type: ignore[union-attr]
        await nothing_left(chat)


@virtual
async def test_revoking_nobody_an_id_that_is_none_or_on_a_stopped_chat() -> None:
    chat = Chat()
    with pytest.raises(Closed):
        await chat.revoke("eve")
    async with chat:
        assert await chat.revoke("nobody") == 0
        for user_id in ("", "a\u202eb", "x" * 129):
            with pytest.raises(InvalidMessage):
                await chat.revoke(user_id)


@virtual
async def test_revocations_are_remembered_only_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.runtime.revocations.REVOKED_KEPT", 100)
    async with Chat() as chat:
        for number in range(500):
            await chat.revoke(f"user{number}")
        assert len(chat.engine.revocations._revoked) == 100
        assert list(chat.engine.revocations._revoked)[-1] == "user499"
