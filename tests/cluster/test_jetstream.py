"""What is made of what JetStream says: nothing was written, perhaps it was, and what it must not be taken for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from chatx.adapters.room_log import FENCED, Append, LogUnavailable, Record
from chatx.cluster import jetstream
from chatx.cluster.backplane import BackplaneAway, BackplaneError, Broker, LinkState, NobodyThere, NoReply
from chatx.cluster.jetstream import JetStream, NoJetStream, Refusal, WrongNumber
from chatx.cluster.jetstream_log import JetStreamLog
from chatx.core.message import Message, Position
from chatx.errors import ConfigError
from tests.cluster.memory_stream import MemoryStream

KEPT = {"subjects": ["cx.test.log.>"], "storage": "file", "retention": "limits", "discard": "new", "num_replicas": 1}


class Server:
    """A link to a server that answers as it is told to.

    Attributes:
        says: What it answers, by what it is asked ends with, or what asking it raises.
        asked: What it was asked.
        at_once: How much it was asked at once, at most.
    """

    boot = "a" * 16

    def __init__(self, says: dict[str, Any], version: str = "2.10.0") -> None:
        self.version = version
        self.keeps = True
        self.says: dict[str, Any] = {"INFO": {}} | says
        self.asked: list[str] = []
        self.at_once = self._now = 0
        self.told: list[Callable[[LinkState], object]] = []

    async def broker(self) -> Broker:
        return Broker("n1", self.version, self.keeps, 0.0)

    def watch(self, on_state: Callable[[LinkState], object] | None = None) -> None:
        assert on_state is not None
        self.told.append(on_state)

    async def ask_broker(
        self, subject: str, payload: bytes, timeout_s: float, headers: dict[str, str] | None = None
    ) -> bytes:
        name = subject.removeprefix("$JS.API.").removesuffix(".CHATX_test")
        self.asked.append(name)
        self._now += 1
        self.at_once = max(self.at_once, self._now)
        try:
            await asyncio.sleep(0)
        finally:
            self._now -= 1
        answer = self.says[name]
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()


def error(code: int, description: str = "no") -> dict[str, Any]:
    return {"error": {"code": 400, "err_code": code, "description": description}}


@pytest.mark.parametrize(
    "option, value",
    [
        ("discard", "old"),
        ("retention", "workqueue"),
        ("storage", "memory"),
        ("subjects", ["cx.test.>"]),
        ("max_age", 1),
        ("max_msgs", 5),
        ("max_msgs_per_subject", 1),
        ("no_ack", True),
        ("sealed", True),
    ],
)
async def test_a_stream_that_keeps_no_log_is_refused(option: str, value: object) -> None:
    server = Server({"STREAM.INFO": {"config": {**KEPT, option: value}}})
    with pytest.raises(ConfigError, match=f"CHATX_test is none that keeps a log: it has {option} "):
        await JetStream(server, "test").ensure()


async def test_a_stream_with_a_bound_in_bytes_is_one_that_keeps_a_log() -> None:
    await JetStream(Server({"STREAM.INFO": {"config": {**KEPT, "max_bytes": 1000}}}), "test").ensure()


async def test_a_stream_that_another_node_has_made_meanwhile_is_taken_as_it_is() -> None:
    info = [error(10059), {"config": {**KEPT, "num_replicas": 3}}]
    server = Server({"STREAM.INFO": info, "STREAM.CREATE": error(10058)})
    await JetStream(server, "test").ensure()
    assert server.asked == ["INFO", "STREAM.INFO", "STREAM.CREATE", "STREAM.INFO"]


@pytest.mark.parametrize("info", [error(10059), {"config": {**KEPT, "num_replicas": 3}}], ids=["new", "there"])
async def test_servers_that_lose_the_order_of_replicas_are_refused(info: dict[str, Any]) -> None:
    server = Server({"STREAM.INFO": info}, "2.9.10")
    with pytest.raises(ConfigError, match=r"on 3 servers of NATS 2\.9\.10.*Upgrade"):
        await JetStream(server, "test", replicas=3).ensure()
    assert "STREAM.CREATE" not in server.asked


@pytest.mark.parametrize("answers", [{"STREAM.INFO": {"config": KEPT}}, {"STREAM.CREATE": error(10074)}])
async def test_a_log_on_fewer_servers_than_was_asked_for_is_refused(answers: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cluster_replicas is 3"):
        await JetStream(Server({"STREAM.INFO": error(10059), **answers}), "test", replicas=3).ensure()


@pytest.mark.parametrize("says", [NobodyThere("no"), error(10039), error(10076)])
async def test_only_an_answer_says_that_there_is_no_jetstream(says: Any) -> None:
    server = Server({"INFO": says})
    server.keeps = False
    with pytest.raises(NoJetStream):
        await JetStream(server, "test").ensure()


@pytest.mark.parametrize("says", [NobodyThere("not yet"), NoReply("late"), BackplaneAway("away"), b"{", error(10008)])
async def test_what_is_no_answer_does_not_say_so(says: Any) -> None:
    with pytest.raises(BackplaneError) as caught:
        await JetStream(Server({"INFO": says}), "test").ensure()
    assert not isinstance(caught.value, NoJetStream)


@pytest.mark.parametrize(
    "says, raised",
    [
        (error(10071), WrongNumber),
        (error(10164), WrongNumber),
        (error(10077, "maximum bytes exceeded"), Refusal),
        (error(10023), Refusal),
        (error(10047), Refusal),
        (error(10054), Refusal),
        (error(10077, "write failed: no space left on device"), NoReply),
        (error(10008), NoReply),
        (error(4711), NoReply),
        ({}, NoReply),
        ({"seq": 0}, NoReply),
        (b"", NoReply),
        (b"\xff", NoReply),
    ],
)
async def test_an_append_of_which_it_is_not_sure_that_nothing_was_written_has_no_reply(
    says: Any, raised: type[Exception]
) -> None:
    server = Server({"STREAM.INFO": {"config": KEPT}, "cx.test.log.proom": says})
    stream = JetStream(server, "test")
    await stream.ensure()
    with pytest.raises(raised):
        await stream.append("cx.test.log.proom", b"x", 0)


async def test_one_full_server_of_several_says_nothing_of_the_others() -> None:
    server = Server({"STREAM.INFO": {"config": {**KEPT, "num_replicas": 3}}, "cx.test.log.proom": error(10023)})
    stream = JetStream(server, "test")
    await stream.ensure()
    with pytest.raises(NoReply):
        await stream.append("cx.test.log.proom", b"x", 0)


@pytest.mark.parametrize("says", [{}, {"message": None}, b"[]", error(10059), error(10003)])
async def test_an_answer_without_a_record_is_not_taken_for_a_room_without_one(says: Any) -> None:
    stream = JetStream(Server({"STREAM.MSG.GET": says}), "test")
    with pytest.raises(BackplaneError):
        await stream.newest("cx.test.log.proom")


async def test_a_server_is_asked_so_much_at_once_and_the_rest_waits() -> None:
    server = Server({"STREAM.MSG.GET": error(10037)})
    stream = JetStream(server, "test")
    assert await asyncio.gather(*map(stream.numbered, range(1, 1001))) == [None] * 1000
    assert server.at_once == jetstream.ASKED_AT_ONCE


async def test_who_gives_up_ahead_of_an_append_holds_no_bytes() -> None:
    server = Server({"cx.test.log.proom": {"seq": 1}})
    stream = JetStream(server, "test")
    content = b"x" * (jetstream.UNDER_WAY_BYTES // 2 + 1)
    tasks = [asyncio.ensure_future(stream.append("cx.test.log.proom", content, 0)) for _ in range(6)]
    await asyncio.sleep(0)
    for each in tasks[1], tasks[3], tasks[0]:
        each.cancel()
    assert [await each for each in (tasks[2], tasks[4], tasks[5])] == [1, 1, 1]
    assert server.at_once == 1
    assert (stream._under_way, len(stream._waiting)) == (0, 0)


async def test_who_gives_up_just_when_it_is_let_in_holds_no_bytes_either() -> None:
    stream = JetStream(Server({}), "test")
    await stream._enter(jetstream.UNDER_WAY_BYTES)
    waiting = asyncio.ensure_future(stream.append("cx.test.log.proom", b"x", 0))
    await asyncio.sleep(0)
    stream._leave(jetstream.UNDER_WAY_BYTES)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert stream._under_way == 0


# The log over it


class Faulty(MemoryStream):
    """A stream in memory, of which calls fail.

    Attributes:
        fails: What the next calls raise, by name.
        late: Appends that raise have been taken all the same.
        goes: The link is lost when an append is answered.
    """

    def __init__(self, boot: str) -> None:
        super().__init__(boot)
        self.fails: dict[str, list[Exception]] = {}
        self.late = False
        self.goes = False

    def of(self, boot: str) -> Faulty:
        other = Faulty(boot)
        other.__dict__ |= self.__dict__ | {"boot": boot, "fails": {}}
        return other

    async def append(self, subject: str, content: bytes, expected: int) -> int:
        if self.fails.get("append"):
            failure = self.fails["append"].pop(0)
            if self.late:
                await super().append(subject, content, expected)
            raise failure
        number = await super().append(subject, content, expected)
        self.losses += self.goes
        return number

    async def newest(self, subject: str) -> Any:
        if self.fails.get("newest"):
            raise self.fails["newest"].pop(0)
        return await super().newest(subject)

    async def numbered(self, number: int) -> Any:
        if self.fails.get("numbered"):
            raise self.fails["numbered"].pop(0)
        return await super().numbered(number)


def said(room: str, term: int, after: int, *names: str, key: str | None = None, proven: bool = True) -> Append:
    records = tuple(
        Record(Message(name, room, "ann", name, offset, "e", offset, stored=True), key)
        for offset, name in enumerate(names, after + 1)
    )
    return Append(room, term, Position("e", after), records, True, proven)


async def names(log: JetStreamLog, room: str = "room") -> list[str]:
    return [each.id for each in (await log.read(room, limit=100)).entries]


@pytest.fixture
def stream() -> Faulty:
    return Faulty("a" * 16)


async def test_no_answer_is_from_memory(stream: Faulty) -> None:
    log, other = JetStreamLog(stream), JetStreamLog(stream.of("b" * 16))
    term = (await log.take_over("room")).term
    assert await log.append([said("room", term, 0, "one")]) == [None]
    assert await log.unproven("room", term, Position("e", 1))
    await other.take_over("room")
    assert not await log.unproven("room", term, Position("e", 1))
    assert await log.append([said("room", term, 0, "one")]) == [FENCED]
    term = (await log.take_over("room")).term
    assert await log.append([said("room", term, 1, "two")]) == [None]
    await other.take_over("room")
    assert await log.close_rooms({"room": (term, Position("e", 2))}) == {"room": False}
    assert await names(other) == ["one", "two"]


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_server_that_comes_back_with_less_is_not_appended_to_by_what_is_remembered(
    stream: Faulty, at_once: bool
) -> None:
    log, other = JetStreamLog(stream), JetStreamLog(stream.of("b" * 16))
    term = (await log.take_over("room")).term
    assert await log.append([said("room", term, 0, "one")]) == [None]
    stream.goes = at_once
    assert await log.append([said("room", term, 1, "lost")]) == [None]
    stream.goes = False
    # Its last record is lost, and what another node appends is given the same number.
    del stream._messages[3]
    await other.take_over("room")
    assert max(stream._messages) == 3
    stream.losses += not at_once
    assert await log.append([said("room", term, 2, "two")]) == [FENCED]
    assert await names(other) == ["one"]


@pytest.mark.parametrize("late", [False, True])
async def test_an_append_of_which_nobody_knows_comes_again_and_is_there_once(stream: Faulty, late: bool) -> None:
    log = JetStreamLog(stream)
    term = (await log.take_over("room")).term
    stream.late, stream.fails = late, {"append": [NoReply("late")]}
    with pytest.raises(NoReply):
        await log.append([said("room", term, 0, "one", "two")])
    assert await log.append([said("room", term, 0, "one", "two")]) == [None]
    assert await names(log) == ["one", "two"]


@pytest.mark.parametrize("failure", [NoReply("late"), BackplaneAway("away"), Refusal("no")])
async def test_a_read_that_fails_ahead_of_an_append_has_written_nothing(stream: Faulty, failure: Exception) -> None:
    log = JetStreamLog(stream)
    stream.fails = {"newest": [failure] * 4}
    with pytest.raises(LogUnavailable):
        await log.append([said("room", 1, 0, "one")])
    with pytest.raises(LogUnavailable):
        await log.take_over("room")
    with pytest.raises(LogUnavailable):
        await log.read("room", limit=1)
    with pytest.raises(LogUnavailable):
        await log.unproven("room", 1, Position("e", 0))


async def test_a_read_that_fails_behind_the_record_of_a_take_over_leaves_it_open(stream: Faulty) -> None:
    log = JetStreamLog(stream)
    term = (await log.take_over("room")).term
    assert await log.append([said("room", term, 0, "one", key="k")]) == [None]
    stream.fails = {"numbered": [BackplaneAway("away")]}
    with pytest.raises(BackplaneAway):
        await log.take_over("room")
    assert (await log.look("room")).term == term + 1


async def test_of_several_rooms_surely_nothing_is_said_of_all_or_none(stream: Faulty) -> None:
    log = JetStreamLog(stream)
    terms = [(await log.take_over(room)).term for room in ("a", "b")]
    both = [said("a", terms[0], 0, "one"), said("b", terms[1], 0, "two")]
    stream.fails = {"append": [BackplaneAway("away")]}
    with pytest.raises(NoReply, match="A part of the rooms"):
        await log.append(both)
    assert await log.append(both) == [None, None]
    assert (await names(log, "a"), await names(log, "b")) == (["one"], ["two"])
    both = [said("a", terms[0], 1, "three"), said("b", terms[1], 1, "four")]
    stream.fails = {"append": [BackplaneAway("away")] * 2}
    with pytest.raises(LogUnavailable):
        await log.append(both)
    ends = {room: (term, Position("e", 1)) for room, term in zip("ab", terms, strict=True)}
    assert [await log.unproven(room, *end) for room, end in ends.items()] == [True, True]
    stream.fails = {"append": [NoReply("late")]}
    with pytest.raises(NoReply):
        await log.close_rooms(ends)
    assert [(await log.look(room)).proven for room in "ab"] == [False, True]


async def test_a_room_that_is_given_up_on_in_the_middle_of_an_append_is_read_anew(stream: Faulty) -> None:
    log = JetStreamLog(stream)
    term = (await log.take_over("room")).term
    for steps in range(4):
        appending = asyncio.ensure_future(log.append([said("room", term, 0, "one")]))
        for _ in range(steps):
            await asyncio.sleep(0)
        appending.cancel()
        await asyncio.gather(appending, return_exceptions=True)
    assert await log.append([said("room", term, 0, "one")]) == [None]
    assert await names(log) == ["one"]
