"""`chat.live`: what is pushed, to whom, and what is left when it ends. The clock is not waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from json import loads
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx import (
    Chat,
    ConfigError,
    Gap,
    Message,
    PresenceDiff,
    PresenceState,
    RoomUnavailable,
    Unauthorized,
)
from chatx.core.message import Event
from chatx.integrations.starlette import (
    KEEP_ALIVE_S,
    REPLAYED,
    WRITE_STALL_S,
    LiveResponse,
    _frame,
    snapshot,
)
from tests.faults import CrashingChat, Stored
from tests.integrations.live_reader import Reader, parsed, settle
from tests.limits import UNLIMITED
from tests.virtual import virtual


def plain(event: Event) -> str:
    """Render so that a test can read it."""
    match event:
        case Message():
            return event.content
        case Gap():
            return f"{event.reason} {event.missed}"
        case PresenceState():
            return ",".join(sorted(event.presences)) or "nobody"
    raise AssertionError(f"asked to render {event!r}")


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Chat]:
    async with Chat(**{"rate_limit": UNLIMITED, **options}) as chat:
        yield chat
    watchers = [task for task in asyncio.all_tasks() if task.get_name() == "chatx live watcher"]
    assert watchers == []


async def opened(chat: Chat, user: str = "ada", *, history: int = 50, render: Any = plain, **request: Any) -> Reader:
    reader = Reader(chat.live("a", render, user_id=user, history=history), **request)
    await settle()
    return reader


async def say(chat: Chat, *contents: str) -> list[Message]:
    sent = [await chat.send_message("a", "bob", content) for content in contents]
    await settle()
    return sent


async def gone(reader: Reader, chat: Chat) -> None:
    """Check that nothing of a reader is left."""
    await settle()
    assert reader.task.done()
    await reader.task
    statistics = chat.statistics()
    assert (statistics.members, statistics.subscriptions, statistics.connections) == (0, 0, 0)


# What is pushed


@virtual
async def test_a_new_reader_gets_the_newest_messages_then_who_is_here_then_what_is_said() -> None:
    async with running() as chat:
        await say(chat, "one", "two", "three")
        reader = await opened(chat, history=2)
        (last,) = await say(chat, "four")

        assert [(each.name, each.data) for each in reader.pushed] == [
            ("reset", "twothree"),
            ("people", "ada"),
            ("message", "four"),
        ]
        assert [each.id for each in reader.pushed] == [f"{last.epoch}:3", "", f"{last.epoch}:4"]
        reader.disconnect()
        await gone(reader, chat)


@virtual
async def test_the_response_is_a_stream_that_nothing_on_the_way_keeps_or_holds_back() -> None:
    async with running() as chat:
        reader = await opened(chat)

        assert reader.status == 200
        assert reader.headers == {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store",
            "x-accel-buffering": "no",
        }
        assert reader.text.startswith("retry: 1000\n\n")
        reader.disconnect()
        await gone(reader, chat)


@virtual
async def test_a_head_request_gets_the_headers_and_ends() -> None:
    async with running() as chat:
        reader = await opened(chat, method="HEAD")

        assert reader.status == 200
        assert reader.text == ""
        assert reader.complete
        await gone(reader, chat)


@given(st.text())
def test_no_text_breaks_out_of_its_event(html: str) -> None:
    (pushed,) = parsed(_frame("message", html, None))

    assert pushed.name == "message"
    assert pushed.data == html.replace("\r\n", "\n").replace("\r", "\n")


@virtual
async def test_people_are_pushed_as_a_whole_and_once_for_many_who_come_together() -> None:
    async with running() as chat:
        reader = await opened(chat)
        before = len(reader.named("people"))
        async with chat.connect("bob") as bob, chat.connect("bob") as bob_again, chat.connect("eve") as eve:
            for each in (bob, bob_again, eve):
                await each.join("a")
            await settle()
            assert [each.data for each in reader.named("people")[before:]] == ["ada,bob,eve"]
            eve.close()
            bob.close()
            await settle()
            assert reader.named("people")[-1].data == "ada,bob"
        await settle()
        assert reader.named("people")[-1].data == "ada"
        reader.disconnect()
        await gone(reader, chat)


@virtual
async def test_an_empty_rendering_pushes_nothing() -> None:
    async with running() as chat:
        reader = await opened(chat, render=lambda event: plain(event) if isinstance(event, Message) else "")
        await say(chat, "hi")

        assert [(each.name, each.data) for each in reader.pushed] == [("reset", ""), ("message", "hi")]
        reader.disconnect()
        await gone(reader, chat)


@virtual
async def test_a_silent_stream_is_kept_alive_by_comments_which_are_no_events() -> None:
    async with running() as chat:
        reader = await opened(chat)
        before = reader.pushed
        await asyncio.sleep(3 * KEEP_ALIVE_S + 1)

        assert reader.text.count(": still here\n\n") == 3
        assert reader.pushed == before
        reader.disconnect()
        await gone(reader, chat)


# Coming back


@pytest.mark.parametrize("way", ["header", "query"])
@virtual
async def test_a_reader_that_comes_back_gets_what_it_missed_and_nothing_twice(way: str) -> None:
    async with running() as chat:
        first = await opened(chat)
        await say(chat, "one", "two")
        place = first.place
        first.disconnect()
        await gone(first, chat)
        await say(chat, "three", "four")
        back: dict[str, Any] = {"last_event_id": place} if way == "header" else {"query": f"after={place}"}
        second = await opened(chat, **back)
        await say(chat, "five")

        assert second.named("reset") == []
        assert second.messages == ["three", "four", "five"]
        second.disconnect()
        await gone(second, chat)


@virtual
async def test_the_header_of_a_reader_that_comes_back_counts_more_than_the_address_it_began_with() -> None:
    async with running() as chat:
        one, two, _ = await say(chat, "one", "two", "three")
        reader = await opened(chat, query=f"after={one.epoch}:1", last_event_id=f"{two.epoch}:2")

        assert reader.messages == ["three"]
        reader.disconnect()
        await gone(reader, chat)


@pytest.mark.parametrize(
    "place", ["", "x", ":", ":1", "e:", "e:-1", "e:1.5", "e:٣", "e:1e3", "e:" + "9" * 19, "\xff", "e:1:"]
)
@virtual
async def test_a_place_that_is_none_begins_anew(place: str) -> None:
    async with running() as chat:
        await say(chat, "one")
        if place.isascii() or place == "\xff":
            reader = await opened(chat, last_event_id=place)
        else:
            reader = await opened(chat, query=f"after={place}")

        assert reader.named("reset")[0].data == "one"
        assert reader.named("gap") == []
        reader.disconnect()
        await gone(reader, chat)


@virtual
async def test_a_place_in_another_epoch_is_an_explicit_gap_and_then_begins_anew() -> None:
    async with running() as chat:
        (sent,) = await say(chat, "one")
        reader = await opened(chat, last_event_id="elsewhere:7")
        await say(chat, "two")

        assert [(each.name, each.data) for each in reader.pushed if each.name != "people"] == [
            ("gap", "epoch_changed None"),
            ("reset", "one"),
            ("message", "two"),
        ]
        assert reader.place == f"{sent.epoch}:2"
        reader.disconnect()
        await gone(reader, chat)


@virtual
async def test_a_place_that_memory_has_forgotten_is_a_gap_that_says_how_much() -> None:
    async with running(history_size=2) as chat:
        sent = await say(chat, *map(str, range(1, 6)))
        reader = await opened(chat, last_event_id=f"{sent[0].epoch}:1")

        assert [each.data for each in reader.named("gap")] == ["too_old 4"]
        assert reader.named("reset")[0].data == "45"
        reader.disconnect()
        await gone(reader, chat)


@virtual
async def test_a_reader_who_missed_more_than_a_page_shows_is_told_how_much_and_begins_anew() -> None:
    async with running(history_size=2 * REPLAYED) as chat:
        sent = await say(chat, *map(str, range(REPLAYED + 2)))
        for missed in (REPLAYED, REPLAYED + 1):
            head = chat.engine.rooms.find("a").head.offset  # type: ignore[union-attr]  # it is there
            reader = await opened(chat, last_event_id=f"{sent[0].epoch}:{head - missed}")
            whole = missed <= REPLAYED
            assert len(reader.named("message")) == (REPLAYED if whole else 0)
            assert [each.data for each in reader.named("gap")] == ([] if whole else [f"too_many {missed}"])
            assert len(reader.named("reset")) == (0 if whole else 1)
            (last,) = await say(chat, "live")
            assert reader.place == f"{last.epoch}:{last.offset}"
            reader.disconnect()
            await gone(reader, chat)


@virtual
async def test_a_reader_with_a_place_is_refused_while_the_store_cannot_say_where_its_stream_stood() -> None:
    stored = Stored()
    async with running(persistence=stored) as chat:
        sent = await say(chat, "one", "two")
        await asyncio.sleep(1)
    stored.fail = {"last_position"}
    async with running(persistence=stored) as chat:
        reader = await opened(chat, last_event_id=f"{sent[0].epoch}:1")
        assert reader.status == 503
        stored.fail = set()
        again = await opened(chat, last_event_id=f"{sent[0].epoch}:1")
        assert [each.data for each in again.named("message")] == ["two"]
        again.disconnect()
        await settle()


@virtual
async def test_a_hole_in_what_is_stored_is_a_gap_in_its_place() -> None:
    stored = Stored()
    async with running(persistence=stored, history_size=1) as chat:
        sent = await say(chat, *map(str, range(1, 6)))
        await asyncio.sleep(1)
        del stored.rows["a", sent[2].epoch, 3]
        reader = await opened(chat, last_event_id=f"{sent[0].epoch}:1")

        assert [each.data for each in reader.pushed if each.name in ("message", "gap", "reset")] == [
            "2",
            "missing 1",
            "4",
            "5",
        ]
        reader.disconnect()
        await gone(reader, chat)

        shown = await snapshot(chat, "a", plain, user_id="ada")
        assert shown.messages == "12missing 145"


@virtual
async def test_what_is_said_while_the_newest_messages_are_read_is_there_once() -> None:
    stored = Stored()
    async with running(persistence=stored) as chat:
        await say(chat, "one")
        stored.wait_ms = 100
        reader = await opened(chat)
        await say(chat, "two")
        assert reader.named("reset") == []
        await asyncio.sleep(1)

        # The gap of a lost place is read in the same way, with messages waiting in the mailbox.
        lost = await opened(chat, last_event_id="elsewhere:1")
        await say(chat, "three")
        await asyncio.sleep(1)
        for each in (reader, lost):
            shown = each.named("reset")[-1].data + "".join(each.messages)
            assert shown == "onetwothree"
            each.disconnect()
        await gone(reader, chat)


@pytest.mark.parametrize("place", [None, "elsewhere:1"])
@virtual
async def test_what_is_said_while_the_response_begins_is_there_once(place: str | None) -> None:
    async with running() as chat:
        await say(chat, "one")
        reader = Reader(chat.live("a", plain, user_id="ada"), last_event_id=place)
        reader.stall()
        await settle()
        # In the room's history and in the reader's mailbox.
        await say(chat, "two")
        reader.flow()
        await settle()
        await say(chat, "three")

        assert reader.named("reset")[-1].data == "onetwo"
        assert reader.messages == ["three"]
        reader.disconnect()
        await gone(reader, chat)


@virtual
async def test_an_epoch_with_characters_of_the_stream_in_it_comes_back_whole() -> None:
    stored = Stored()
    stored.proven["a"] = ("odd\n epoch:1 ü%", 4)
    async with running(persistence=stored) as chat:
        first = await opened(chat)
        await say(chat, "five")
        assert first.place.isascii()
        assert first.place.isprintable()
        first.disconnect()
        await gone(first, chat)
        await say(chat, "six")
        second = await opened(chat, last_event_id=first.place)

        assert second.messages == ["six"]
        second.disconnect()
        await gone(second, chat)


@virtual
async def test_a_page_and_its_stream_join_without_a_seam() -> None:
    async with running() as chat:
        await say(chat, "one")
        page = await snapshot(chat, "a", plain, user_id="ada")
        await say(chat, "two")
        reader = await opened(chat, query=f"after={page.after}")
        await say(chat, "three")

        assert (page.messages, page.people) == ("one", "nobody")
        assert [each.data for each in reader.pushed if each.name != "people"] == ["two", "three"]
        reader.disconnect()
        await gone(reader, chat)


@virtual
async def test_the_page_of_an_empty_room_leads_up_to_its_first_message() -> None:
    async with running() as chat:
        page = await snapshot(chat, "a", plain, user_id="ada")
        await say(chat, "one")
        reader = await opened(chat, query=f"after={page.after}")

        assert page.messages == ""
        assert [each.data for each in reader.pushed if each.name != "people"] == ["one"]
        reader.disconnect()
        await gone(reader, chat)


# The end


@virtual
async def test_a_reader_is_here_while_its_stream_is_open_and_leaves_no_ghost() -> None:
    async with running() as chat:
        reader = await opened(chat)
        again = await opened(chat)
        assert {user: len(metas) for user, metas in (await chat.presence("a")).items()} == {"ada": 2}

        again.disconnect()
        await settle()
        assert len((await chat.presence("a"))["ada"]) == 1
        reader.task.cancel()
        await settle()
        assert reader.task.cancelled()
        assert await chat.presence("a") == {}


@virtual
async def test_a_server_that_raises_when_the_client_is_gone_leaves_no_ghost() -> None:
    async with running() as chat:
        reader = await opened(chat)
        reader.send_error = OSError("gone")
        await say(chat, "hi")

        await gone(reader, chat)


@virtual
async def test_a_render_that_raises_ends_the_stream_and_is_the_servers_to_tell() -> None:
    def fails(event: Event) -> str:
        if isinstance(event, Message):
            raise ZeroDivisionError
        return "x"

    async with running() as chat:
        reader = await opened(chat, render=fails)
        await say(chat, "hi")

        with pytest.raises(ZeroDivisionError):
            await reader.task
        assert await chat.presence("a") == {}


@virtual
async def test_a_render_that_forgets_its_return_is_told_so() -> None:
    async with running() as chat:
        reader = await opened(chat, render=lambda event: None)

        with pytest.raises(TypeError, match="render returned NoneType for a PresenceState; it must return HTML"):
            await reader.task


@virtual
async def test_a_slow_reader_is_cut_off_and_resumes_with_nothing_missing() -> None:
    async with running(mailbox_size=4) as chat:
        slow = await opened(chat)
        quick = await opened(chat, "eve")
        await say(chat, "0")
        slow.stall()
        for number in range(1, 10):
            await say(chat, str(number))
        slow.flow()
        await settle()
        assert slow.task.done()
        assert slow.complete
        back = await opened(chat, last_event_id=slow.place)

        assert slow.messages + back.messages == quick.messages == [str(number) for number in range(10)]
        for each in (quick, back):
            each.disconnect()
        await gone(back, chat)


@virtual
async def test_a_reader_that_takes_nothing_is_given_up() -> None:
    async with running() as chat:
        reader = await opened(chat)
        reader.stall()
        await say(chat, "hi")
        await asyncio.sleep(WRITE_STALL_S - 1)
        assert not reader.task.done()
        await asyncio.sleep(1.1)

        await gone(reader, chat)


@virtual
async def test_a_chat_that_stops_ends_its_streams_whole() -> None:
    async with running() as chat:
        reader = await opened(chat)
        await say(chat, "last")
        await chat.stop()
        await settle()

        assert reader.task.done()
        assert reader.complete
        assert reader.messages == ["last"]


@virtual
async def test_a_room_that_fails_for_good_ends_its_streams() -> None:
    async with CrashingChat(rate_limit=UNLIMITED) as chat:
        reader = await opened(chat)
        chat.crash("publish: before", "a", times=50)
        for _ in range(50):
            with pytest.raises(RoomUnavailable):
                await chat.send_message("a", "bob", "hi")
        await settle()

        assert reader.task.done()
        await reader.task
        assert reader.complete


# Refusals


class Doorman:
    """Lets nobody in but ada."""

    def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        if user_id != "ada":
            raise Unauthorized("Members only.")
        return True


@virtual
async def test_who_may_not_read_gets_a_refusal_and_no_page() -> None:
    async with running(auth=Doorman()) as chat:
        reader = await opened(chat, "eve")

        assert reader.status == 403
        assert reader.headers["content-type"] == "application/json"
        assert loads(reader.text) == {"code": "unauthorized", "reason": "Members only.", "retryable": False}
        await gone(reader, chat)
        with pytest.raises(Unauthorized):
            await snapshot(chat, "a", plain, user_id="eve")


@pytest.mark.parametrize("room, user", [("", "ada"), ("a", ""), ("a", "x" * 129)])
@virtual
async def test_an_id_that_is_none_is_a_bad_request(room: str, user: str) -> None:
    async with running() as chat:
        reader = Reader(chat.live(room, plain, user_id=user))
        await settle()

        assert reader.status == 400
        await gone(reader, chat)


@virtual
async def test_a_chat_that_does_not_run_is_a_503() -> None:
    reader = Reader(Chat().live("a", plain, user_id="ada"))
    await settle()

    assert reader.status == 503
    assert reader.complete


async def _awaits(event: Event) -> str:
    return ""


@pytest.mark.parametrize(
    "render, history, named",
    [
        (_awaits, 50, "render"),
        ("<p>", 50, "render"),
        (lambda: "", 50, "render"),
        (plain, 0, "history"),
        (plain, True, "history"),
        (plain, 1.5, "history"),
    ],
)
def test_what_cannot_work_is_refused_when_the_response_is_made(render: Any, history: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        LiveResponse(Chat(), "a", render, user_id="ada", history=history)


def test_a_diff_is_never_asked_to_be_rendered() -> None:
    """What `plain` above relies on to fail."""
    with pytest.raises(AssertionError):
        plain(PresenceDiff("a", {}, {}))
