"""One room's fan-out to sockets: who gets which frame, when, and in what order."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.chat import Chat
from chatx.core.message import Gap, Signal, UnknownEntry
from chatx.core.room import Effects
from chatx.gateway.session import hub
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.session.socket import Bundle
from chatx.gateway.wire.frames import Version
from tests.gateway.fakes import Client, settle
from tests.limits import UNLIMITED
from tests.virtual import virtual

PAUSE_S = hub.PAUSE_MS / 1000


def folded(client: Client) -> dict[str, set[str]]:
    """Return who is here as a client reads it: the last state, and each diff after it."""
    here: dict[str, set[str]] = {}
    for each in client.events("presence_state", "presence_diff"):
        if each.event == "presence_state":
            here = {user: {meta["phx_ref"] for meta in metas["metas"]} for user, metas in each.payload.items()}
            continue
        for user, metas in each.payload["joins"].items():
            refs = {meta["phx_ref"] for meta in metas["metas"]}
            assert not refs & here.get(user, set()), "a membership is told of twice"
            here[user] = here.get(user, set()) | refs
        for user, metas in each.payload["leaves"].items():
            refs = {meta["phx_ref"] for meta in metas["metas"]}
            assert refs <= here.get(user, set()), "a membership ends that nobody was told of"
            here[user] -= refs
            if not here[user]:
                del here[user]
    return here


async def snapshot(chat: Chat, room_id: str) -> dict[str, set[str]]:
    return {user: {meta.ref for meta in metas} for user, metas in (await chat.presence(room_id)).items()}


def named(diff: Any) -> tuple[list[str], list[str]]:
    return sorted(diff.payload["joins"]), sorted(diff.payload["leaves"])


@virtual
async def test_a_newcomer_gets_the_state_and_the_others_get_a_diff() -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        ada, bob = Client(gateway, "ada"), Client(gateway, "bob")
        await ada.join("room:a")
        await settle()
        ada.forget()
        await bob.join("room:a")
        await settle()

        assert [each.event for each in bob.received] == ["phx_reply", "presence_state"]
        state = bob.events("presence_state")[0].payload
        assert set(state) == {"ada", "bob"}
        assert set(state["ada"]["metas"][0]) == {"phx_ref", "online_at"}
        assert [each.event for each in ada.received] == ["presence_diff"]
        assert named(ada.received[0]) == (["bob"], [])

        bob.session.end()
        await settle()
        assert named(ada.received[-1]) == ([], ["bob"])
        ada.session.end()


@virtual
async def test_those_who_come_in_one_turn_get_one_state_each_and_no_diff_of_themselves() -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        clients = [Client(gateway, f"user{number}") for number in range(5)]
        old = Client(gateway, "old")
        await old.join("room:a")
        old.forget()
        for client in clients:
            client.ask("room:a")
        await settle()

        for client in clients:
            assert [each.event for each in client.received] == ["phx_reply", "presence_state"]
            assert folded(client) == await snapshot(chat, "a")
        assert [each.event for each in old.received] == ["presence_diff"]
        assert len(old.received[0].payload["joins"]) == 5
        for client in [old, *clients]:
            client.session.end()


@virtual
async def test_churn_within_a_turn_is_one_diff_and_a_visit_within_a_turn_is_none() -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        ada, bob = Client(gateway, "ada"), Client(gateway, "bob")
        await ada.join("room:a")
        await bob.join("room:a")
        await settle()
        ada.forget()

        for number in range(20):
            await chat.join("a", f"visitor{number}")
            await chat.leave("a", f"visitor{number}")
        await settle()
        assert ada.received == []

        for number in range(20):
            await chat.join("a", f"guest{number}")
        bob.session.end()
        await settle()
        assert [each.event for each in ada.received] == ["presence_diff"]
        assert len(ada.received[0].payload["joins"]) == 20
        assert list(ada.received[0].payload["leaves"]) == ["bob"]
        ada.session.end()


@virtual
async def test_while_the_server_drains_messages_are_written_and_presence_is_not_told() -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        ada, bob, eve = (Client(gateway, name) for name in ("ada", "bob", "eve"))
        for client in (ada, bob):
            await client.join("room:a")
        eve.ask("room:b")
        gateway.drain()
        await settle()
        for client in (ada, bob, eve):
            client.forget()

        bob.session.end()
        await chat.join("b", "guest")
        await chat.send_message("a", "guest", "hello")
        await chat.send_message("b", "guest", "hello")
        await asyncio.sleep(2 * PAUSE_S)
        assert [each.event for client in (ada, eve) for each in client.received] == ["new_message", "new_message"]
        assert set(await chat.presence("a")) == {"ada"}
        ada.session.end()
        eve.session.end()


async def joined(gateway: Gateway, *names: str) -> list[Client]:
    """Return clients of these names that have joined a room, one after another."""
    clients = [Client(gateway, name) for name in names]
    for client in clients:
        await client.join("room:a")
    await settle()
    return clients


async def a_crowd(gateway: Gateway) -> list[Client]:
    """Return as many members of a room as are told of every change at once, after it was quiet for a while."""
    crowd = await joined(gateway, *(f"user{number}" for number in range(hub.SMALL)))
    await asyncio.sleep(2 * PAUSE_S)
    for client in crowd:
        client.forget()
    return crowd


@virtual
async def test_a_change_in_a_large_room_is_told_at_once_and_those_soon_after_it_together() -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        crowd = await a_crowd(gateway)
        first, second, third = (Client(gateway, name) for name in ("first", "second", "third"))
        await first.join("room:a")
        await settle()
        assert [named(each) for each in crowd[0].received] == [(["first"], [])]
        assert folded(first) == await snapshot(chat, "a")

        await asyncio.sleep(0.6 * PAUSE_S)
        await second.join("room:a")
        crowd[1].session.end()
        await asyncio.sleep(0.2 * PAUSE_S)
        await third.join("room:a")
        await settle()
        assert len(crowd[0].received) == 1
        assert third.events("presence_state") == []

        await asyncio.sleep(0.2 * PAUSE_S)
        await settle()
        assert [named(each) for each in crowd[0].received[1:]] == [(["second", "third"], ["user1"])]
        for client in (first, second, third):
            assert folded(client) == await snapshot(chat, "a")
        for client in (second, third):
            assert [each.event for each in client.received] == ["phx_reply", "presence_state"]
        for client in [*crowd, first, second, third]:
            client.session.end()


@virtual
async def test_a_message_does_not_wait_for_presence_not_even_for_one_who_has_just_come() -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        crowd = await a_crowd(gateway)
        newcomers = await joined(gateway, "first", "second")
        await chat.send_message("a", "server", "hi")
        await settle()
        assert newcomers[1].events("presence_state") == []
        for client in [*crowd, *newcomers]:
            assert client.contents() == ["hi"]
            client.session.end()


@virtual
async def test_nobody_is_told_of_one_who_was_there_within_a_pause_only() -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        crowd = await a_crowd(gateway)
        first, passing = Client(gateway, "first"), Client(gateway, "passing")
        await first.join("room:a")
        await settle()
        await passing.join("room:a")
        await settle()
        passing.session.end()
        await asyncio.sleep(2 * PAUSE_S)
        assert [named(each) for each in crowd[0].received] == [(["first"], [])]
        for client in [*crowd, first]:
            client.session.end()


@virtual
async def test_a_pause_ends_with_the_hub() -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        crowd = await a_crowd(gateway)
        late = await joined(gateway, "first", "second")
        held = gateway.hub(chat.engine.rooms.find("a"))  # type: ignore[arg-type]  # it is there
        assert held._timer is not None
        for client in [*crowd, *late]:
            client.session.end()
        assert held._timer is None


@virtual
async def test_each_socket_of_a_user_is_a_meta_and_the_user_stays_until_the_last_goes() -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        watcher, one, two = Client(gateway, "watcher"), Client(gateway, "ada"), Client(gateway, "ada")
        await watcher.join("room:a")
        await one.join("room:a")
        await two.join("room:a")
        await settle()
        assert len(folded(watcher)["ada"]) == 2
        one.session.end()
        await settle()
        assert len(folded(watcher)["ada"]) == 1
        two.session.end()
        await settle()
        assert "ada" not in folded(watcher)
        watcher.session.end()


@virtual
async def test_both_versions_get_the_same_messages_in_the_same_order() -> None:
    async with Chat(rate_limit=UNLIMITED) as chat:
        gateway = Gateway(chat.engine)
        old, new = Client(gateway, "old", 1), Client(gateway, "new", 2)
        await old.join("room:a")
        await new.join("room:a")
        for number in range(10):
            (old if number % 2 else new).say("room:a", f"m{number}")
        await settle()

        assert old.contents() == new.contents() == [f"m{number}" for number in range(10)]
        assert all(each.join_ref is None and each.ref is None for each in new.events("new_message", "presence_diff"))
        old.session.end()
        new.session.end()


@virtual
async def test_a_frame_is_encoded_once_and_shared_by_all_sockets_of_a_version() -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        clients = [Client(gateway, f"user{number}") for number in range(3)]
        for client in clients:
            await client.join("room:a")
            client.forget()
        await settle()
        await chat.send_message("a", "bob", "hi")
        await settle()

        frames = [next(frame for frame in client.socket.frames if "new_message" in frame) for client in clients]
        assert frames[0] is frames[1] is frames[2]
        for client in clients:
            client.session.end()


@virtual
async def test_what_a_turn_publishes_is_one_write_per_socket() -> None:
    async with Chat(rate_limit=UNLIMITED) as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        await settle()
        writes: list[int] = []
        write = client.socket.write

        def counted(bundle: Bundle) -> None:
            writes.append(len(bundle.texts))
            write(bundle)

        client.socket.write = counted  # type: ignore[method-assign]
        for number in range(10):
            await chat.send_message("a", "bob", f"m{number}")
        await settle()

        assert writes == [10]
        client.session.end()


@virtual
async def test_who_leaves_gets_what_was_published_before_and_nothing_after() -> None:
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        await chat.send_message("a", "bob", "before")
        client.push("room:a", "phx_leave")
        await chat.send_message("a", "bob", "after")
        await settle()

        assert client.contents() == ["before"]
        assert [each.event for each in client.received][-2:] == ["phx_reply", "phx_close"]


@virtual
async def test_an_empty_hub_lets_go_of_its_room_so_that_it_can_be_forgotten() -> None:
    async with Chat(room_idle_ms=1000) as chat:
        gateway = Gateway(chat.engine)
        ada, bob = Client(gateway, "ada"), Client(gateway, "bob")
        await ada.join("room:a")
        await bob.join("room:a")
        process = chat.engine.rooms.find("a")
        assert process is not None
        hub = gateway.hub(process)
        assert len(hub) == 2
        ada.session.end()
        await asyncio.sleep(5)
        assert chat.engine.rooms.find("a") is process
        bob.push("room:a", "phx_leave")
        await asyncio.sleep(5)

        assert len(hub) == 0
        assert chat.statistics().subscriptions == 0
        assert chat.engine.rooms.find("a") is None
        # The next life of the room has a hub of its own.
        await ada_again(gateway, chat)


async def ada_again(gateway: Gateway, chat: Chat) -> None:
    client = Client(gateway, "ada")
    response = await client.join("room:a")
    await chat.send_message("a", "bob", "anew")
    await settle()
    assert response["offset"] == 0
    assert client.contents() == ["anew"]
    client.session.end()


@pytest.mark.parametrize("version", [1, 2])
@virtual
async def test_content_comes_out_equal_whatever_it_is(version: Version) -> None:
    texts = ["<script>alert(1)</script>", "\u2028 \u2029", '"\\', "a\nb\tc", "\U0001f600", "e\u0301", "\u202e!"]
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada", version)
        await client.join("room:a")
        for text in texts:
            client.say("room:a", text)
        await settle()

        assert client.contents() == texts
        client.session.end()


steps = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "cut", "plain", "unplain", "send", "turn", "while"]), st.integers(0, 3)
    ),
    max_size=40,
)


@given(steps, st.sampled_from([0, 3, hub.SMALL]))
@virtual
async def test_presence_as_a_client_reads_it_is_presence_as_it_is(script: list[tuple[str, int]], small: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "SMALL", small)
        await play(script)


async def play(script: list[tuple[str, int]]) -> None:
    async with Chat(rate_limit=UNLIMITED, room_idle_ms=3_600_000) as chat:
        gateway = Gateway(chat.engine)
        clients = [Client(gateway, f"user{number % 2}") for number in range(4)]
        witness = Client(gateway, "witness")
        await witness.join("room:a")
        for step, who in script:
            client = clients[who]
            if step == "join":
                client.ask("room:a")
            elif step == "leave":
                client.push("room:a", "phx_leave")
            elif step == "cut":
                client.session.end()
                clients[who] = Client(gateway, f"user{who % 2}")
            elif step == "plain":
                await chat.join("a", f"user{who}")
            elif step == "unplain":
                await chat.leave("a", f"user{who}")
            elif step == "send":
                await chat.send_message("a", "server", "x")
            elif step == "while":
                await asyncio.sleep(0.4 * PAUSE_S)
            else:
                await asyncio.sleep(0)
        await settle()
        await asyncio.sleep(PAUSE_S)

        assert folded(witness) == await snapshot(chat, "a")
        for client in clients:
            events = [each.event for each in client.received if each.topic == "room:a"]
            if events and client.push("room:a", "history"):
                await asyncio.sleep(PAUSE_S)
                status, response = client.reply(str(client._refs))
                if status == "ok":  # it is joined
                    assert folded(client) == await snapshot(chat, "a")
                else:
                    assert response["code"] == "unmatched_topic"
            client.session.end()
        witness.session.end()


@given(st.text(max_size=80))
@virtual
async def test_every_acceptable_text_reaches_a_socket_equal(text: str) -> None:
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        try:
            msgspec.json.encode(text)
        except UnicodeEncodeError:
            return  # no client can write it
        status, response = client.reply(client.say("room:a", text))
        await settle()

        assert client.contents() == ([text] if status == "ok" else [])
        assert status == "ok" or response["code"] == "invalid_message"
        client.session.end()


@virtual
async def test_an_event_without_a_frame_is_an_error_and_nobody_misses_it_silently(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        ada = Client(gateway, "ada")
        await ada.join("room:a")
        await settle()
        ada.forget()
        process = chat.engine.rooms.find("a")
        assert process is not None
        # An event that a later version publishes, and that nobody has given a frame.
        gap = Gap("a", "missing", process.head.epoch, 1, 1)
        process._report(Effects(process.room.fanout.publish(gap), ()))
        await settle()
        assert "Gap is not for sockets" in caplog.text
        assert [each.event for each in ada.received] == ["phx_error"]
        assert process not in gateway
        # It comes back and misses nothing.
        await ada.join("room:a")
        await chat.send_message("a", "bob", "hi")
        await settle()
        assert ada.contents() == ["hi"]
        ada.session.end()


@virtual
async def test_what_this_version_has_no_frame_for_is_said_in_the_log_and_the_stream_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        ada = Client(gateway, "ada")
        await ada.join("room:a")
        await settle()
        ada.forget()
        process = chat.engine.rooms.find("a")
        assert process is not None
        head = process.head
        process.room.apply(UnknownEntry("1", "a", "bob", "", 0, head.epoch, head.offset + 1, "reaction", "0"))
        process.room.signal(Signal("a", "bob", "typing"))
        await chat.send_message("a", "bob", "hi")
        await settle()
        assert ada.contents() == ["hi"]
        assert [each.event for each in ada.received] == ["new_message"]
        assert "'reaction'" in caplog.text
        assert "'typing'" in caplog.text

        # Who comes back to before it is caught up past it.
        bob = Client(gateway, "bob")
        await bob.join("room:a", epoch=head.epoch, offset=head.offset)
        await settle()
        assert bob.contents() == ["hi"]
        for each in (ada, bob):
            each.session.end()
