"""The Python client on virtual time: pauses, hints of the server, heartbeats, bounds, what is cancelled or restored."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from chatx.client import (
    Client,
    ClientClosed,
    Gap,
    Message,
    NotSent,
    OutboxFull,
    Presence,
    SendRefused,
    SendUnknown,
    Sent,
    SQLiteOutbox,
    State,
    StoredSend,
)
from chatx.client.wire import Cut, NotOpened
from chatx.core.message import PresenceMeta
from tests.clients.pretend import Pretend
from tests.clients.pretended import Pretended, next_of
from tests.gateway.real_client import until
from tests.seeds import Chance
from tests.virtual import turns, virtual


@virtual
async def test_the_pauses_grow_are_random_and_begin_anew_when_something_is_joined() -> None:
    client = Pretended()
    client.refuses = [NotOpened("nobody is there") for _ in range(12)]
    async with client, client.room("a"):
        pauses = [after - before for before, after in zip(client.dialled, client.dialled[1:], strict=False)]
        assert len(pauses) == 12
        assert all(pause <= min(2**number, 30) for number, pause in enumerate(pauses))
        assert max(pauses) > 4
        assert len(set(pauses)) == 12
        client.wire.cut(1012)
        before = asyncio.get_running_loop().time()
        await asyncio.sleep(1)
        assert before <= client.dialled[-1] <= before + 1


@virtual
async def test_it_waits_as_long_as_the_server_says() -> None:
    client = Pretended()
    client.refuses = [NotOpened("the server answered 503", retry_after=20.0)]
    async with client, client.room("a"):
        assert 20 <= client.dialled[1] - client.dialled[0] <= 21


@virtual
async def test_with_an_expired_token_it_comes_back_at_once_but_not_for_ever() -> None:
    client = Pretended()
    async with client, client.room("a") as room:
        await asyncio.sleep(60)
        client.wire.cut(4001)
        await turns(9)
        assert client.dialled == [0, 60]
        assert room.state.state == "joined"
        client.wire.cut(4001)
        await turns(9)
        assert client.dialled == [0, 60]


@virtual
async def test_a_user_who_is_shut_out_stays_away() -> None:
    client = Pretended()
    async with client, client.room("a") as room:
        client.wire.cut(4003)
        with pytest.raises(ClientClosed, match="revoked"):
            await next_of(room, Message)
        await asyncio.sleep(100)
        assert client.dialled == [0]


@virtual
async def test_a_code_that_a_server_could_not_send_as_it_is_is_known() -> None:
    assert [Cut(code, "").code for code in (4113, 4112, 4003, 4100, 4116, 1013)] == [1013, 1012, 4003, 4100, 4116, 1013]


@virtual
async def test_it_shows_that_it_is_there_and_finds_a_server_that_is_not() -> None:
    client = Pretended()
    async with client, client.room("a") as room:
        await asyncio.sleep(3600)
        assert client.dialled == [0]
        client.wire.swallows = True
        assert (await next_of(room, State)).state == "joined"
        away = await next_of(room, State)
        assert (away.state, away.reason) == ("away", "nothing was heard for 10 s")
        # A heartbeat is due within 30 s, and its answer 10 s later.
        assert asyncio.get_running_loop().time() <= 3640


@virtual
async def test_while_something_waits_for_its_answer_a_dead_connection_is_found_sooner() -> None:
    client = Pretended()
    async with client, client.room("a") as room:
        client.wire.swallows = True
        message = await room.send("Hello")
        assert message.offset == 1
        assert asyncio.get_running_loop().time() <= 21.5


@virtual
async def test_a_full_outbox_refuses_at_once_and_a_send_that_is_too_old_is_refused_then() -> None:
    client = Pretended(outbox_messages=2, outbox_age_s=100, answer_s=1000, heartbeat_s=1000)
    async with client, client.room("a") as room:
        client.refuses = [NotOpened("nobody is there") for _ in range(1000)]
        client.wire.cut()
        await turns()
        waiting = [asyncio.create_task(room.send(f"m{number}")) for number in range(2)]
        await turns()
        with pytest.raises(OutboxFull, match="outbox_full: 2 messages of"):
            await room.send("one more")
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [(type(each), getattr(each, "code", "")) for each in results] == [(SendRefused, "expired")] * 2
        assert asyncio.get_running_loop().time() == 100
        assert not client.server.rooms["a"].said


@virtual
async def test_what_was_on_its_way_is_unknown_when_its_key_may_be_forgotten() -> None:
    client = Pretended()
    async with client, client.room("a") as room:
        client.wire.holds = True
        sending = asyncio.create_task(room.send("Hello"))
        await turns()
        client.refuses = [NotOpened("nobody is there") for _ in range(1000)]
        client.wire.cut()
        with pytest.raises(SendUnknown, match="may be published"):
            await sending
        assert asyncio.get_running_loop().time() == 240


@virtual
async def test_an_answer_that_comes_after_it_was_given_up_harms_nothing() -> None:
    client = Pretended(answer_s=1000, heartbeat_s=1000)
    async with client, client.room("a") as room:
        client.wire.holds = True
        with pytest.raises(SendUnknown):
            await room.send("late")
        client.wire.holds = False
        client.wire.look()
        assert (await room.send("on")).offset == 2
        assert client.dialled == [0]


@virtual
async def test_a_membership_that_the_server_does_not_know_is_made_anew() -> None:
    client = Pretended()
    async with client, client.room("a") as room:
        client.server.say("a", "bob", "one", None, 0)
        client.server.forget()
        assert [each.content for each in await room.history()] == ["one"]
        client.server.forget()
        assert (await room.send("two")).offset == 2
        assert client.dialled == [0]


@virtual
async def test_more_rooms_than_may_wait_for_answers_all_get_their_turn() -> None:
    names = [f"r{number}" for number in range(80)]
    client = Pretended(Pretend(Chance("server"), names))
    async with client, AsyncExitStack() as stack:
        rooms = [await stack.enter_async_context(client.room(name)) for name in names]
        client.wire.swallows = True
        first = client.server
        sends = [asyncio.create_task(room.send("Hello")) for room in rooms]
        await turns()
        assert client.conversation.sends._unanswered == 32
        sends[0].cancel()
        client.wire.cut()
        assert [each.offset for each in await asyncio.gather(*sends[1:])] == [1] * 79
        assert first.rooms["r79"].head == 1


@virtual
async def test_what_waits_is_bounded_in_bytes_and_none_of_it_is_lost() -> None:
    client = Pretended(queue_bytes=4000, outbox_bytes=200)
    async with client, client.room("a") as room:
        for number in range(100):
            client.say("a", f"{number} " + "x" * 100)
        await turns(300)
        assert len(room._stream) < 20
        said = [(await next_of(room, Message)).content.split()[0] for _ in range(100)]
        assert said == [str(number) for number in range(100)]
        with pytest.raises(OutboxFull, match="200"):
            await room.send("x" * 200)


@virtual
async def test_of_gaps_behind_each_other_that_nobody_reads_one_waits() -> None:
    client = Pretended()
    async with client, client.room("a") as room:
        for _ in range(50):
            client.server.rooms["a"].begin_anew()
            client.server.fail("a")
            client.wire.look()
            await asyncio.sleep(40)
        assert len(room._stream) == 2
        assert (await next_of(room, Gap)).epoch == "a 50"


@virtual
async def test_a_join_that_is_refused_for_a_while_is_asked_again_as_late_as_the_server_says() -> None:
    client = Pretended()
    client.server.refuses = 1
    async with client:
        entering = asyncio.create_task(client.room("a").__aenter__())
        await asyncio.sleep(5.4)
        client.server.refuses = 0
        assert client.server.answered == 11  # at once, and each half second
        await entering
        assert asyncio.get_running_loop().time() == 5.5


@virtual
async def test_what_the_server_closes_the_connection_for_twice_does_not_go_again() -> None:
    client = Pretended()
    client.poison = "poison"
    async with client, client.room("a") as room:
        waiting = asyncio.create_task(room.send("poison")), asyncio.create_task(room.send("well"))
        with pytest.raises(SendUnknown, match="closed with it twice: too large"):
            await waiting[0]
        assert (await waiting[1]).offset == 1
        assert len(client.dialled) == 3


@virtual
async def test_what_cannot_be_read_breaks_the_connection_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    client = Pretended()
    async with client, client.room("a") as room:
        client.server.to_client.append('{"neither": "a frame"}')
        client.say("a", "Hello")
        assert (await next_of(room, Message)).content == "Hello"
        assert len(client.dialled) == 2
    assert "the server sent what cannot be read" in caplog.text


class Odd(Pretend):
    """A server that does not keep to its own word.

    Attributes:
        behind_a_join: What it says behind each answer to a join.
        joins: How often it was asked to let somebody in.
        later_ms: When to come back, to whoever joins first.
    """

    behind_a_join = ""
    joins = 0
    later_ms = 0

    def _join(self, name: str, ref: str, place: dict[str, Any]) -> None:
        self.joins += 1
        if self.later_ms and self.joins == 1:
            self._refuse(ref, ref, f"room:{name}", "rate_limited", retryable=True, retry_after_ms=self.later_ms)
            return
        super()._join(name, ref, place)
        if self.behind_a_join:
            self.to_client.append(self.behind_a_join)

    def _history(self, room: Any, join_ref: str, ref: str, topic: str, asked: dict[str, Any]) -> None:
        self._answer(join_ref, ref, topic, {"messages": [], "more": True}, ok=True)


@virtual
@pytest.mark.parametrize(
    "frame", ['{"neither": "a frame"}', "[" * 100_000, '[null,null,"room:a","new_message",{"id":"\\ud800"}]']
)
async def test_what_can_never_be_read_is_asked_for_ever_more_slowly_and_told_as_an_error(
    frame: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = Odd(Chance("odd"), ["a"])
    client = Pretended(server)
    async with client, client.room("a") as room:
        server.behind_a_join = frame
        client.wire.cut()
        await asyncio.sleep(600)
        assert 20 < len(client.dialled) < 60
        assert [record.levelname for record in caplog.records].count("ERROR") == 1
        server.behind_a_join = ""
        client.say("a", "Hello")
        assert (await next_of(room, Message)).content == "Hello"
        client.wire.cut()
        tried = len(client.dialled)
        await asyncio.sleep(1)
        assert len(client.dialled) == tried + 1


@virtual
async def test_a_server_that_contradicts_itself_is_not_asked_without_end() -> None:
    server = Odd(Chance("odd"), ["a"])
    server.behind_a_join = (
        '[null,null,"room:a","new_message",{"id":"1","room_id":"a","user_id":"bob","content":"Hello","inserted_at":1,'
        '"epoch":"another","offset":1}]'
    )
    client = Pretended(server)
    async with client:
        entering = asyncio.create_task(client.room("a").__aenter__())
        await asyncio.sleep(9.5)
        assert server.joins == 11  # at once, once more at once, and each second
        server.behind_a_join = ""
        await entering
        assert client.dialled == [0]


@virtual
async def test_a_page_that_is_empty_ends_the_search_whatever_it_says_of_more() -> None:
    client = Pretended(Odd(Chance("odd"), ["a"]))
    async with client, client.room("a") as room:
        client.wire.holds = True
        for content in "first", "second":
            client.say("a", content)
        client.server.to_client.popleft()
        client.wire.holds = False
        client.wire.look()
        assert (await next_of(room, Gap)).missed == 1
        assert (await next_of(room, Message)).content == "second"


@virtual
async def test_however_late_a_server_says_it_is_asked_again_within_minutes() -> None:
    server = Odd(Chance("odd"), ["a"])
    server.later_ms = 10**15
    client = Pretended(server)
    client.refuses = [NotOpened("the server answered 503", retry_after=float("inf"))]
    async with client, client.room("a"):
        assert 300 <= client.dialled[1] <= 301
        assert 600 <= asyncio.get_running_loop().time() <= 601


@virtual
async def test_what_a_newer_server_tells_is_passed_over() -> None:
    client = Pretended()
    async with client, client.room("a") as room:
        for frame in ('[null,null,"room:a","reaction",{}]', '[null,null,"room:z","new_message",{}]', '[null,"77",1]'):
            if "77" not in frame:
                client.server.to_client.append(frame)
        client.say("a", "Hello")
        assert (await next_of(room, Message)).content == "Hello"
        assert client.dialled == [0]


@virtual
async def test_a_membership_that_fails_is_made_anew_and_who_is_there_with_it() -> None:
    client = Pretended()
    async with client, client.room("a", presence=True) as room:
        client.server.tell("a", "presence_state", {"bob": {"metas": [{"phx_ref": "1", "online_at": 5}]}})
        joins = {
            "bob": {"metas": [{"phx_ref": "2", "online_at": 6}]},
            "eve": {"metas": [{"phx_ref": "3", "online_at": 7}]},
        }
        client.server.tell("a", "presence_diff", {"joins": joins, "leaves": {}})
        leaves = {"bob": {"metas": [{"phx_ref": "1", "online_at": 5}, {"phx_ref": "2", "online_at": 6}]}}
        client.server.tell("a", "presence_diff", {"joins": {}, "leaves": leaves})
        client.wire.look()
        await turns(9)
        # What was not taken is told once, as it is now.
        assert (await next_of(room, Presence)).members == {"eve": (PresenceMeta("3", 7),)}
        client.server.fail("a")
        client.wire.look()
        assert (await next_of(room, State)).state == "away"
        assert (await next_of(room, State)).state == "joined"
        assert client.dialled == [0]


@virtual
async def test_a_history_tells_of_the_holes_in_it_and_where_a_stream_ends() -> None:
    client = Pretended()
    stream = client.server.rooms["a"]
    for number in range(4):
        stream.say("bob", f"m{number}", None, 0)
    stream.holes = {2, 4}
    async with client, client.room("a", history=10) as room:
        client.say("a", "live")
        await asyncio.sleep(1)
        events = [await anext(room) for _ in range(6)]
        assert [getattr(each, "offset", each) for each in events[1:]] == [1, 2, 3, 4, 5]
        assert [type(each) for each in events[1:]] == [Message, Gap, Message, Gap, Message]


@virtual
async def test_what_is_cancelled_while_it_waits_is_not_sent_and_on_its_way_it_is_told_of() -> None:
    client = Pretended()
    async with client, client.room("a") as room:
        client.wire.swallows = True
        first, second = (asyncio.create_task(room.send(content, key=content)) for content in ("first", "second"))
        await turns()
        first.cancel()
        second.cancel()
        sent = await next_of(room, Sent)
        assert (sent.key, sent.message.content) == ("first", "first")
        await asyncio.sleep(10)
        assert [each["content"] for each in client.server.rooms["a"].said] == ["first"]


@virtual
async def test_what_is_not_awaited_and_fails_is_told() -> None:
    client = Pretended()
    async with client, client.room("a") as room:
        client.wire.swallows = True
        sending = asyncio.create_task(room.send("bad words", {"a": 1}, key="k"))
        await turns()
        sending.cancel()
        failed = await next_of(room, NotSent)
        assert (failed.key, failed.content, failed.data, failed.error.code) == ("k", "bad words", {"a": 1}, "blocked")


@virtual
async def test_a_key_that_is_on_its_way_is_refused() -> None:
    client = Pretended()
    async with client, client.room("a") as room:
        client.wire.swallows = True
        first = asyncio.create_task(room.send("Hello", key="k"))
        await turns()
        with pytest.raises(SendRefused, match="draw one for each"):
            await room.send("Hello", key="k")
        await first


@pytest.mark.parametrize(
    "content, data",
    [(3, None), ("\ud83d", None), ("", {"a": object()}), ("", {"a": float("nan")}), ("x" * 70_000, None)],
)
@virtual
async def test_what_no_server_would_take_is_refused_here(content: Any, data: Any) -> None:
    client = Pretended()
    async with client, client.room("a") as room:
        with pytest.raises(SendRefused, match=r"invalid_message|message_too_large"):
            await room.send(content, data)
        assert (await room.send("well")).offset == 1


@virtual
async def test_what_is_closed_says_so() -> None:
    client = Pretended()
    room = client.room("a")
    with pytest.raises(ClientClosed, match="async with"):
        await room.send("Hello")
    with pytest.raises(ClientClosed, match="async with"):
        await room.__aenter__()
    with pytest.raises(ClientClosed, match="async with"):
        await anext(client.room("a"))
    async with client:
        room = client.room("a")
        async with room:
            client.wire.swallows = True
            sending = asyncio.create_task(room.send("Hello"))
            waiting = asyncio.create_task(room.send("more"))
            await turns()
        with pytest.raises(SendUnknown):
            await sending
        with pytest.raises(ClientClosed, match="was left"):
            await waiting
        assert [event async for event in room if not isinstance(event, State)] == []
        async with client.room("b"):
            pass
    with pytest.raises(ClientClosed, match="was left"):
        await room.send("Hello")
    assert client.wire.closed


@virtual
async def test_another_event_loop_than_its_own_is_a_clear_error() -> None:
    client = Pretended()

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await room.send("Hello")
        with pytest.raises(RuntimeError, match="another event loop"):
            await client.room("b").__aenter__()

    async with client, client.room("a") as room:
        thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
        thread.start()
        thread.join(20)
        assert not thread.is_alive()


@virtual
async def test_two_readers_of_a_room_or_two_of_a_room_are_a_mistake() -> None:
    client = Pretended()
    async with client, client.room("a") as room:
        with pytest.raises(ValueError, match="already"):
            await client.room("a").__aenter__()
        await next_of(room, State)
        reader = asyncio.ensure_future(anext(room))
        await turns()
        with pytest.raises(RuntimeError, match="one reader"):
            await anext(room)
        client.say("a", "Hello")
        message = await reader
        assert isinstance(message, Message)
        assert message.content == "Hello"


@virtual
async def test_a_program_that_goes_on_from_a_place_misses_nothing() -> None:
    client = Pretended()
    for number in range(3):
        client.server.say("a", "bob", f"m{number}", None, 0)
    epoch = client.server.rooms["a"].epoch
    client.refuses = [NotOpened("nobody is there")]
    async with client, client.room("a", after=(epoch, 1)) as room:
        assert (await next_of(room, State)).state == "joined"
        assert [(await next_of(room, Message)).offset for _ in range(2)] == [2, 3]
        assert room.cursor == (epoch, 3)


class Restarts:
    """A program that is ended and started anew, with one storage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = Pretend(Chance("server"), ["a"])

    def client(self, **options: Any) -> Pretended:
        return Pretended(self.server, storage=SQLiteOutbox(self.path), **options)


@pytest.mark.parametrize("wrote", [False, True])
async def test_what_was_not_answered_goes_again_in_the_next_program(wrote: bool, tmp_path: Path) -> None:
    restarts = Restarts(tmp_path / "outbox.db")
    async with restarts.client() as client, client.room("a") as room:
        assert (await room.send("before")).offset == 1
        client.wire.holds = wrote  # the server has it, and the program does not hear of that
        client.wire.swallows = not wrote
        sending = [asyncio.create_task(room.send(content, {"n": 1})) for content in ("one", "two")]
        # Both are kept, and the first is written.
        kept = [(True, True), (True, False)]
        outbox = client.conversation.outbox
        await until(lambda: [(each.ready, each.epoch is not None) for each in outbox.of("a")] == kept)
        await until(lambda: client.server.rooms["a"].head == 1 + wrote)
        await client.close()
        results = await asyncio.gather(*sending, return_exceptions=True)
        assert [type(each) for each in results] == [SendUnknown, ClientClosed]
    async with restarts.client() as client, client.room("a") as room:
        sent = [await next_of(room, Sent) for _ in range(2)]
        assert [(each.message.content, each.message.data, each.message.offset) for each in sent] == [
            ("one", {"n": 1}, 2),
            ("two", {"n": 1}, 3),
        ]
    async with restarts.client() as client, client.room("a", history=9) as room:
        await room.send("after")
        said = [(await next_of(room, Message)).content for _ in range(4)]
        assert said == ["before", "one", "two", "after"]


async def test_what_was_written_too_long_ago_is_not_sent_again(tmp_path: Path) -> None:
    restarts = Restarts(tmp_path / "outbox.db")
    storage = SQLiteOutbox(restarts.path)
    await storage.load()
    epoch = restarts.server.rooms["a"].epoch
    now_ms = int(time.time() * 1000)
    await storage.put(StoredSend("a", "old", "old", None, now_ms - 299_000, now_ms - 250_000, epoch))
    await storage.put(StoredSend("a", "of another", "of another", None, now_ms, now_ms, "another"))
    await storage.put(StoredSend("a", "ahead", "ahead", None, now_ms, now_ms + 60_000, epoch))
    await storage.close()
    async with restarts.client() as client, client.room("a") as room:
        failed = [await next_of(room, NotSent) for _ in range(3)]
        assert {each.key: each.error.code for each in failed} == dict.fromkeys(
            ["old", "of another", "ahead"], "unknown"
        )
    async with restarts.client() as client:
        assert client.conversation.outbox.count == 0
    assert not restarts.server.rooms["a"].said


async def test_an_outbox_has_one_client_and_is_a_file_of_its_own(tmp_path: Path) -> None:
    restarts = Restarts(tmp_path / "outbox.db")
    async with restarts.client():
        with pytest.raises(sqlite3.OperationalError, match="one client at a time"):
            await restarts.client().__aenter__()
    (tmp_path / "text").write_text("this is no database, however long it may be" * 50)
    with pytest.raises(sqlite3.DatabaseError):
        await Pretended(storage=SQLiteOutbox(tmp_path / "text")).__aenter__()
    with pytest.raises(sqlite3.ProgrammingError, match="not open"):
        await SQLiteOutbox(tmp_path / "outbox.db").remove("a", "k")


class FullDisk(SQLiteOutbox):
    """A storage that has no place."""

    async def put(self, send: StoredSend) -> None:
        raise OSError("No space left on device")


async def test_what_cannot_be_kept_is_refused_and_not_sent(tmp_path: Path) -> None:
    client = Pretended(storage=FullDisk(tmp_path / "outbox.db"))
    async with client, client.room("a") as room:
        with pytest.raises(SendRefused, match=r"storage_failed: .*No space left"):
            await room.send("Hello")
        assert not client.server.rooms["a"].said


@pytest.mark.parametrize(
    "url, options, said",
    [
        ("example.org/socket", {}, "no address of a socket"),
        ("ftp://example.org/socket", {}, "no address of a socket"),
        ("ws://example.org", {"outbox_message": 3}, "no option outbox_message; there are"),
        ("ws://example.org:99999", {}, "Port out of range"),
        (5, {}, "The URL is 5; give a text"),
        ("ws://example.org", {"token": 5}, "token is of type int; give a text, or a function"),
        ("ws://example.org", {"params": "user=ada"}, "params is of type str; give a mapping, or a function"),
        ("ws://example.org", {"ssl": True}, "ssl is of type bool; give an ssl.SSLContext"),
        ("ws://example.org", {"outbox_messages": 0}, "give a number above 0"),
        ("ws://example.org", {"first_pause_s": float("inf")}, "a finite one"),
        ("ws://example.org", {"outbox_messages": 1.5}, "give a whole number"),
        ("ws://example.org", {"heartbeat_s": "soon"}, "give a number above 0"),
        ("ws://example.org", {"key_window_s": 400}, "at most 280 are allowed"),
    ],
)
def test_what_cannot_be_used_is_refused(url: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Client(url, **options)


@pytest.mark.parametrize(
    "room, options, said",
    [
        ("", {}, "no id of a room"),
        ("\ud800", {}, "no id of a room; give a text of well-formed Unicode"),
        ("a", {"after": ("\ud800", 1)}, "give a Message, a Gap or"),
        ("a", {"after": ("a 0", -1)}, "give a Message, a Gap or"),
        ("a", {"history": 1025}, "0 to 1024"),
        ("a", {"history": True}, "0 to 1024"),
        ("a", {"after": "yesterday"}, "give a Message, a Gap or"),
    ],
)
def test_a_room_that_cannot_be_is_refused(room: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Client("ws://example.org").room(room, **options)
