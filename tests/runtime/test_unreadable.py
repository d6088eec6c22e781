"""A store that cannot be read is an error that can be tried again; a gap is there only where the store said so."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from chatx import AdapterError, Chat, ChatError, Gap, Message
from chatx.gateway.session.gateway import Gateway
from tests.faults import Stored
from tests.gateway.fakes import Client, settle
from tests.virtual import virtual


class WrongAnswers(Stored):
    """Reads with what a test makes of the right answer."""

    def __init__(self) -> None:
        super().__init__()
        self.twist: Callable[[list[Message]], Any] | None = None

    async def load_messages(self, room_id: str, **place: Any) -> Any:
        answer = await super().load_messages(room_id, **place)
        return answer if self.twist is None else self.twist(answer)


def raises(store: WrongAnswers) -> None:
    store.fail.add("load_messages")


def hangs(store: WrongAnswers) -> None:
    store.hang.add("load_messages")


def twists(twist: Callable[[list[Message]], Any]) -> Callable[[WrongAnswers], None]:
    def fault(store: WrongAnswers) -> None:
        store.twist = twist

    return fault


FAULTS = {
    "raises": raises,
    "hangs": hangs,
    "answers None": twists(lambda _: None),
    "answers a number": twists(lambda _: 7),
    "answers rows": twists(lambda messages: [(each.id, each.content) for each in messages]),
    "answers a generator": twists(iter),
    "answers another room's": twists(lambda messages: [replace(each, room_id="other") for each in messages]),
}

OF_AFTER = {
    "answers another epoch's": twists(lambda messages: [replace(each, epoch="other") for each in messages]),
    "answers backwards": twists(lambda messages: messages[::-1]),
    "answers one twice": twists(lambda messages: [messages[0], *messages]),
    "answers what was seen": twists(lambda messages: [replace(messages[0], offset=1), *messages]),
}


async def chat_with(store: WrongAnswers, count: int = 10) -> tuple[Chat, Sequence[Message]]:
    """Return a running chat that has all but two messages in the store only."""
    chat = Chat(persistence=store, history_size=2, middlewares=(), adapter_timeout_ms=1000)
    await chat.start()
    messages = [await chat.send_message("room", "alice", f"{number}") for number in range(count)]
    await asyncio.sleep(1)
    return chat, messages


@pytest.mark.parametrize("fault", [*FAULTS.values(), *OF_AFTER.values()], ids=[*FAULTS, *OF_AFTER])
@virtual
async def test_a_reader_who_comes_back_is_refused_and_later_misses_nothing(fault: Callable[[Stored], None]) -> None:
    store = WrongAnswers()
    chat, messages = await chat_with(store)
    fault(store)
    async with chat.connect("bob") as connection:
        for opening in (
            chat.subscribe("room", after=messages[0]).__aenter__(),
            chat.subscribe_callback("room", print, after=messages[0]).__aenter__(),
            connection.subscribe("room", after=messages[0]),
        ):
            with pytest.raises(AdapterError) as refused:
                await opening
            assert refused.value.retryable
        assert chat.statistics().subscriptions == 0
        # What memory has needs no store.
        async with chat.subscribe("room", after=messages[7]) as subscription:
            assert [await anext(subscription) for _ in range(2)] == list(messages[8:])
    store.fail.clear()
    store.hang.clear()
    store.twist = None
    async with chat.subscribe("room", after=messages[0]) as subscription:
        assert [await anext(subscription) for _ in range(9)] == list(messages[1:])
    await chat.stop()


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@virtual
async def test_history_that_cannot_be_read_is_refused(fault: Callable[[Stored], None]) -> None:
    store = WrongAnswers()
    chat, messages = await chat_with(store)
    fault(store)
    for asked in ({}, {"before": messages[5]}):
        with pytest.raises(AdapterError):
            await chat.history("room", **asked)  # type: ignore[arg-type]
    assert await chat.history("room", limit=2) == list(messages[8:])
    await chat.stop()


@virtual
async def test_a_store_that_answers_with_what_is_not_before_the_place_is_at_fault() -> None:
    """Whoever pages backwards through it would never come to an end."""
    store = WrongAnswers()
    chat, messages = await chat_with(store)
    store.twist = lambda _: messages[-2:]
    with pytest.raises(AdapterError):
        await chat.history("room", before=messages[5], limit=2)
    await chat.stop()


@virtual
async def test_an_empty_answer_is_the_stores_word_and_a_gap() -> None:
    store = WrongAnswers()
    chat, messages = await chat_with(store)
    store.twist = lambda _: []
    async with chat.subscribe("room", after=messages[0]) as subscription:
        gap = await anext(subscription)
        assert gap == Gap("room", "missing", messages[0].epoch, 8, 7)
    await chat.stop()


# Where the stream stood


@pytest.mark.parametrize("fault", ["fail", "hang", ("", 1), ("e", -1), "e1"], ids=str)
@virtual
async def test_nobody_is_told_of_another_stream_while_the_store_cannot_say(fault: Any) -> None:
    store = WrongAnswers()
    chat, messages = await chat_with(store)
    await chat.stop()
    proven = store.proven["room"]
    if isinstance(fault, str) and fault in ("fail", "hang"):
        getattr(store, fault).add("last_position")
    else:
        store.proven["room"] = fault
    async with Chat(persistence=store, history_size=2, adapter_timeout_ms=1000) as again:
        async with again.connect("bob") as connection:
            for opening in (
                again.subscribe("room", after=messages[0]).__aenter__(),
                connection.subscribe("room", after=messages[0]),
            ):
                with pytest.raises(AdapterError):
                    await opening
        assert again.statistics().rooms == 0
        store.fail.clear()
        store.hang.clear()
        store.proven["room"] = proven
        async with again.subscribe("room", after=messages[0]) as subscription:
            assert [await anext(subscription) for _ in range(9)] == list(messages[1:])


@virtual
async def test_who_waits_with_one_at_a_place_is_let_in_though_that_one_is_refused() -> None:
    store = Stored()
    store.hang.add("last_position")
    async with Chat(persistence=store, adapter_timeout_ms=1000) as chat:
        at_a_place = chat.subscribe("room", after=("before", 3)).__aenter__()
        results = await asyncio.gather(
            at_a_place, chat.join("room", "bob"), chat.send_message("room", "bob", "hello"), return_exceptions=True
        )
        assert isinstance(results[0], AdapterError)
        assert isinstance(results[2], Message)
        assert list(await chat.presence("room")) == ["bob"]
        # There is another stream now, and that is so whatever the store would have said.
        async with chat.subscribe("room", after=("before", 3)) as subscription:
            gap = await anext(subscription)
            assert isinstance(gap, Gap)
            assert gap.reason == "epoch_changed"


# On the wire


@pytest.mark.parametrize("method", ["load_messages", "last_position"])
@virtual
async def test_a_resume_on_the_wire_is_refused_and_can_be_tried_again(method: str) -> None:
    store = WrongAnswers()
    chat, messages = await chat_with(store)
    await chat.stop()
    store.fail.add(method)
    async with Chat(persistence=store, history_size=2, adapter_timeout_ms=1000) as again:
        client = Client(Gateway(again.engine), "ada")
        client.ask("room:room", epoch=messages[0].epoch, offset=1)
        await settle()
        (reply,) = [each for each in client.received if each.event == "phx_reply"]
        assert reply.payload["status"] == "error"
        assert (reply.payload["response"]["code"], reply.payload["response"]["retryable"]) == ("adapter_error", True)
        assert await again.presence("room") == {}
        store.fail.clear()
        client.ask("room:room", epoch=messages[0].epoch, offset=1)
        await settle()
        reply = [each for each in client.received if each.event == "phx_reply"][-1]
        assert (reply.payload["status"], reply.payload["response"]["recovered"]) == ("ok", True)
        assert client.offsets() == list(range(2, 11))
        client.session.end()


# Writes that fail


@virtual
async def test_where_somebody_reads_nothing_is_published_before_the_proof_is_withdrawn() -> None:
    store = WrongAnswers()
    chat, messages = await chat_with(store)
    await chat.stop()
    store.fail.add("mark_open")
    async with Chat(persistence=store, history_size=2) as again, again.subscribe("room") as subscription:
        sends = [again.send_message("room", user, "hello") for user in ("alice", "bob")]
        refused = await asyncio.gather(*sends, return_exceptions=True)
        assert [isinstance(each, ChatError) and (each.code, each.retryable) for each in refused] == [
            ("adapter_error", True)
        ] * 2
        store.fail.clear()
        message = await again.send_message("room", "alice", "hello")
        assert (message.epoch, message.offset) == (messages[0].epoch, 11)
        assert await anext(subscription) == message
        assert again.statistics().admitted == 0
