"""One message's way in: the order of the steps, the chain of middlewares, and idempotency."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from chatx import (
    AdapterError,
    Blocked,
    Chat,
    ChatError,
    Closed,
    InvalidMessage,
    Message,
    MessageTooLarge,
    RateLimit,
    RateLimited,
    Unauthorized,
)
from chatx.core.idempotency import WINDOW_S
from chatx.core.message import Draft
from tests.faults import Broken, FaultyAuth, FaultyModeration, Gate, Stored
from tests.virtual import virtual

BUILT_IN = ("auth", "rate_limit", "moderation")


class Recorder:
    """Auth and moderation that note when they are asked, and refuse on order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refuse: set[str] = set()

    def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        self.asked.append(f"auth {user_id} {room_id} {action}")
        return "auth" not in self.refuse

    def check(self, content: str) -> bool:
        self.asked.append(f"moderation {content}")
        return "moderation" not in self.refuse


class AsyncRecorder(Recorder):
    """The same, awaiting."""

    async def authorize(self, user_id: str, room_id: str, action: str) -> bool:  # type: ignore[override]
        await asyncio.sleep(0.01)
        return super().authorize(user_id, room_id, action)

    async def check(self, content: str) -> bool:  # type: ignore[override]
        await asyncio.sleep(0.01)
        return super().check(content)


async def refused(sending: Coroutine[Any, Any, Message]) -> str:
    """Return the code with which a send is refused, or "" where it is not."""
    try:
        await sending
    except ChatError as error:
        return error.code
    return ""


# The order of the steps


@virtual
async def test_validation_comes_first_and_costs_nothing() -> None:
    recorder = Recorder()
    async with Chat(auth=recorder, moderation=recorder) as chat:
        for room, user, content, code in (
            ("", "alice", "hello", "invalid_message"),
            ("room", "a\nb", "hello", "invalid_message"),
            ("room", "alice", "", "invalid_message"),
            ("room", "alice", b"\xff", "invalid_message"),
            ("room", "alice", 5, "invalid_message"),
            ("room", "alice", "x" * 4097, "message_too_large"),
        ):
            assert await refused(chat.send_message(room, user, content, idempotency_key="k")) == code  # type: ignore[arg-type]
        for key in ("", "x" * 129, 7):
            sending = chat.send_message("room", "alice", "hello", idempotency_key=key)  # type: ignore[arg-type]
            assert await refused(sending) == "invalid_message"
        assert recorder.asked == []
        assert chat.statistics().rooms == 0
        assert chat.statistics().token_buckets == 0
        assert chat.statistics().refused == {"invalid_message": 8, "message_too_large": 1}


@pytest.mark.parametrize("recorder_class", [Recorder, AsyncRecorder])
@pytest.mark.parametrize(
    "middlewares",
    [
        order
        for size in range(4)
        for subset in itertools.combinations(BUILT_IN, size)
        for order in itertools.permutations(subset)
    ],
    ids=lambda order: "+".join(order) or "none",
)
@virtual
async def test_middlewares_run_in_the_configured_order_and_the_first_refusal_ends_the_chain(
    middlewares: tuple[str, ...], recorder_class: type[Recorder]
) -> None:
    recorder = recorder_class()
    limit = RateLimit(messages_per_sec=0.001, burst=1)
    codes = {"auth": "unauthorized", "rate_limit": "rate_limited", "moderation": "blocked"}
    async with Chat(auth=recorder, moderation=recorder, middlewares=middlewares, rate_limit=limit) as chat:
        asked = {"auth": "auth alice room send", "moderation": "moderation hello"}
        await chat.send_message("room", "alice", "hello")
        assert recorder.asked == [asked[each] for each in middlewares if each in asked]
        # With every refusal on order, the first middleware speaks, and no later one is asked.
        recorder.refuse = {"auth", "moderation"}
        recorder.asked.clear()
        first = middlewares[0] if middlewares else None
        assert await refused(chat.send_message("room", "alice", "hello")) == (codes[first] if first else "")
        assert recorder.asked == ([asked[first]] if first in asked else [])


@virtual
async def test_a_refusal_after_the_rate_limit_costs_a_token_and_one_before_it_does_not() -> None:
    recorder = Recorder()
    limit = RateLimit(messages_per_sec=0.001, burst=2)
    async with Chat(auth=recorder, moderation=recorder, rate_limit=limit) as chat:
        recorder.refuse = {"auth"}
        for _ in range(5):
            assert await refused(chat.send_message("room", "alice", "hello")) == "unauthorized"
        recorder.refuse = {"moderation"}
        assert await refused(chat.send_message("room", "alice", "hello")) == "blocked"
        recorder.refuse = set()
        await chat.send_message("room", "alice", "hello")
        assert await refused(chat.send_message("room", "alice", "hello")) == "rate_limited"


@virtual
async def test_the_rate_limit_is_per_user_and_room_and_its_retry_after_is_exact() -> None:
    limit = RateLimit(messages_per_sec=3, burst=2)
    async with Chat(rate_limit=limit) as chat:
        for _ in range(2):
            await chat.send_message("room", "alice", "hello")
        for _ in range(30):
            with pytest.raises(RateLimited) as caught:
                await chat.send_message("room", "alice", "hello")
            assert caught.value.retryable
            assert caught.value.retry_after is not None
            await asyncio.sleep(caught.value.retry_after)
            await chat.send_message("room", "alice", "hello")
        for _ in range(2):
            await chat.send_message("room", "bob", "hello")
            await chat.send_message("other", "alice", "hello")


@virtual
async def test_without_middlewares_nothing_refuses() -> None:
    never = Recorder()
    never.refuse = {"auth", "moderation"}
    async with Chat(auth=never, moderation=never, middlewares=()) as chat:
        for _ in range(100):
            await chat.send_message("room", "alice", "hello")
        assert never.asked == []
        # `middlewares` governs sends; a join is always authorized.
        with pytest.raises(Unauthorized):
            await chat.join("room", "alice")


# The middlewares of users


def plainly(function: Callable[[Draft], Any]) -> Callable[[Draft], Any]:
    return function


def awaiting(function: Callable[[Draft], Any]) -> Callable[[Draft], Any]:
    async def run(draft: Draft) -> Any:
        await asyncio.sleep(0)
        return function(draft)

    return run


both = pytest.mark.parametrize("form", [plainly, awaiting])

Form = Callable[[Callable[[Draft], Any]], Callable[[Draft], Any]]


@both
@virtual
async def test_a_middleware_passes_a_draft_on_or_changes_it(form: Form) -> None:
    seen: list[Draft] = []

    def note(draft: Draft) -> Draft:
        seen.append(draft)
        return draft

    def shout(draft: Draft) -> Draft:
        return replace(draft, content=draft.content.upper())

    chain = (form(note), form(shout), "moderation", form(note))
    moderation = Recorder()
    async with Chat(middlewares=chain, moderation=moderation) as chat, chat.subscribe("room") as subscription:
        message = await chat.send_message("room", "alice", "hello")
        assert message.content == "HELLO"
        assert (await anext(subscription)) == message
        assert moderation.asked == ["moderation HELLO"]
        assert seen == [Draft("room", "alice", "hello"), Draft("room", "alice", "HELLO")]


@pytest.mark.parametrize(
    "content,error",
    [
        ("", InvalidMessage),
        ("\x00", InvalidMessage),
        ("\ud800", InvalidMessage),
        ("é" * 6, MessageTooLarge),
        (5, InvalidMessage),
    ],
    ids=repr,
)
@both
@virtual
async def test_changed_content_is_validated_again(form: Form, content: Any, error: type[ChatError]) -> None:
    def change(draft: Draft) -> Draft:
        return replace(draft, content=content) if draft.user_id == "alice" else draft

    async with Chat(middlewares=(form(change),), message_size_limit=11) as chat:
        with pytest.raises(error):
            await chat.send_message("room", "alice", "hello")
        assert (await chat.send_message("room", "bob", "hello")).offset == 1
        assert chat.statistics().admitted == 0


@virtual
async def test_a_middleware_may_put_bytes_and_text_comes_out() -> None:
    async with Chat(middlewares=(lambda draft: replace(draft, content="é".encode()),)) as chat:
        assert (await chat.send_message("room", "alice", "hello")).content == "é"


@pytest.mark.parametrize("field", ["room_id", "user_id"])
@both
@virtual
async def test_a_middleware_cannot_change_room_or_sender(form: Form, field: str) -> None:
    async with Chat(middlewares=(form(lambda draft: replace(draft, **{field: "other"})),)) as chat:
        with pytest.raises(AdapterError):
            await chat.send_message("room", "alice", "hello")
        assert await chat.history("room") == await chat.history("other") == []


@both
@virtual
async def test_a_middleware_refuses_with_any_error_of_the_tree_and_its_words_arrive(form: Form) -> None:
    class Sleeping(ChatError):
        code = "sleeping"

    def refuse(draft: Draft) -> Draft:
        raise Sleeping("Come back tomorrow.", retry_after=60.0)

    async with Chat(middlewares=(form(refuse),)) as chat:
        with pytest.raises(Sleeping, match=r"Come back tomorrow\.") as caught:
            await chat.send_message("room", "alice", "hello")
        assert caught.value.retry_after == 60.0
        assert chat.statistics().refused == {"sleeping": 1}
        assert chat.statistics().adapter_failures == {}


@virtual
async def test_async_middlewares_of_several_users_run_at_the_same_time_and_of_one_user_in_turn() -> None:
    running: dict[str, int] = {}
    most: dict[str, int] = {}
    together = 0

    async def slow(draft: Draft) -> Draft:
        nonlocal together
        running[draft.user_id] = running.get(draft.user_id, 0) + 1
        most[draft.user_id] = max(most.get(draft.user_id, 0), running[draft.user_id])
        together = max(together, sum(running.values()))
        await asyncio.sleep(1)
        running[draft.user_id] -= 1
        return draft

    loop = asyncio.get_running_loop()
    async with Chat(middlewares=(slow,)) as chat:
        sends = [chat.send_message("room", user, str(n)) for n in range(3) for user in ("alice", "bob", "carol")]
        await asyncio.gather(*sends)
        assert loop.time() == 3.0
        assert most == {"alice": 1, "bob": 1, "carol": 1}
        assert together == 3
        # The same user in another room waits for nothing either.
        await asyncio.gather(chat.send_message("a", "alice", "x"), chat.send_message("b", "alice", "x"))
        assert loop.time() == 4.0


@virtual
async def test_gathered_sends_of_one_user_keep_their_order_whatever_their_chains_take() -> None:
    async def uneven(draft: Draft) -> Draft:
        await asyncio.sleep(int(draft.content) % 3 / 10)
        return draft

    async with Chat(middlewares=(uneven,)) as chat:
        sends = [chat.send_message("room", user, str(n)) for n in range(20) for user in ("alice", "bob")]
        messages = await asyncio.gather(*sends)
        for user in ("alice", "bob"):
            own = sorted((each for each in messages if each.user_id == user), key=lambda each: each.offset)
            assert [each.content for each in own] == [str(n) for n in range(20)]
        assert sorted(each.offset for each in messages) == list(range(1, 41))


@virtual
async def test_a_message_takes_its_place_when_its_chain_ends() -> None:
    async def slow_for_alice(draft: Draft) -> Draft:
        await asyncio.sleep(1 if draft.user_id == "alice" else 0)
        return draft

    async with Chat(middlewares=(slow_for_alice,)) as chat:
        first, second = await asyncio.gather(
            chat.send_message("room", "alice", "came first"), chat.send_message("room", "bob", "was ready first")
        )
        assert (first.offset, second.offset) == (2, 1)


@pytest.mark.parametrize("victim", range(4))
@virtual
async def test_a_send_cancelled_anywhere_in_its_lane_lets_the_others_go_on_in_order(victim: int) -> None:
    gate = Gate()
    async with Chat(middlewares=(gate,)) as chat:
        sends = [asyncio.create_task(chat.send_message("room", "alice", str(n))) for n in range(4)]
        await asyncio.sleep(0.01)
        assert gate.waiting == 1
        sends[victim].cancel()
        await asyncio.sleep(0.01)
        gate.open()
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert isinstance(results[victim], asyncio.CancelledError)
        assert [each.content for each in await chat.history("room")] == [str(n) for n in range(4) if n != victim]
        assert chat.statistics().admitted == 0


@virtual
async def test_a_send_cancelled_in_the_very_turn_it_may_go_lets_the_next_one_go() -> None:
    gate = Gate()
    async with Chat(middlewares=(gate,)) as chat:
        sends = [asyncio.create_task(chat.send_message("room", "alice", str(n))) for n in range(3)]
        # The second has been let go, and has not woken yet.
        chat.telemetry.attach("message_sent", lambda *_: sends[1].cancel())
        await asyncio.sleep(0.01)
        gate.open()
        await asyncio.gather(*sends, return_exceptions=True)
        assert [each.content for each in await chat.history("room")] == ["0", "2"]
        assert (await chat.send_message("room", "alice", "3")).offset == 3


@virtual
async def test_a_cancelled_send_cancels_its_adapter() -> None:
    cancelled = asyncio.Event()

    async def wait(draft: Draft) -> Draft:
        try:
            await asyncio.sleep(1000)
        finally:
            cancelled.set()
        return draft

    async with Chat(middlewares=(wait,), adapter_timeout_ms=10_000_000) as chat:
        sending = asyncio.create_task(chat.send_message("room", "alice", "hello"))
        await asyncio.sleep(1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await asyncio.sleep(0)
        assert cancelled.is_set()
        assert await chat.history("room") == []


# Idempotency


@both
@virtual
async def test_a_repeat_answers_with_the_original_takes_no_token_and_is_not_sent_again(form: Form) -> None:
    limit = RateLimit(messages_per_sec=0.001, burst=1)
    asked = 0

    def count(draft: Draft) -> Draft:
        nonlocal asked
        asked += 1
        return draft

    broadcasts: list[Any] = []
    async with Chat(middlewares=("rate_limit", form(count)), rate_limit=limit) as chat:
        chat.telemetry.attach("broadcast", lambda *event: broadcasts.append(event))
        async with chat.subscribe("room") as subscription:
            first = await chat.send_message("room", "alice", "hello", idempotency_key="k")
            assert not first.duplicate
            for _ in range(5):
                # What is sent again need not even be equal: the key decides.
                again = await chat.send_message("room", "alice", "something else", idempotency_key="k")
                assert again == replace(first, duplicate=True)
            assert asked == 1
            assert len(broadcasts) == 1
            assert (await anext(subscription)) == first
            await asyncio.sleep(0.01)
            assert subscription.unread == 0
        assert (chat.statistics().sent, chat.statistics().duplicates) == (1, 5)


@virtual
async def test_a_key_is_scoped_by_room_and_user() -> None:
    async with Chat() as chat:
        scopes = [("room", "alice"), ("room", "bob"), ("other", "alice")]
        messages = [await chat.send_message(*scope, "hello", idempotency_key="k") for scope in scopes]
        assert not any(each.duplicate for each in messages)
        assert len({each.id for each in messages}) == 3


async def repeated(chat: Chat, first: Message, content: str) -> Message:
    """Return the answer to a repeat of the key `k` that is the first message but for its content."""
    repeat = await chat.send_message(first.room_id, first.user_id, content, idempotency_key="k")
    assert repeat == replace(first, content=repeat.content, duplicate=True)
    return repeat


@virtual
async def test_a_repeat_has_the_content_of_the_first_also_where_memory_has_it_no_more() -> None:
    async with Chat(history_size=1) as chat:
        first = await chat.send_message("room", "alice", "hello", idempotency_key="k")
        assert (await repeated(chat, first, "other")).content == "hello"
        await chat.send_message("room", "bob", "next")
        assert (await repeated(chat, first, "hello")).content == "hello"
        # Nobody knows any more what was said first; its place stands.
        assert (await repeated(chat, first, "other")).content == "other"
        assert (chat.statistics().sent, chat.statistics().duplicates) == (2, 3)


@virtual
async def test_what_a_middleware_made_of_the_first_is_what_a_repeat_is_answered_with() -> None:
    async with Chat(middlewares=(lambda draft: replace(draft, content=draft.content.upper()),)) as chat:
        first = await chat.send_message("room", "alice", "hello", idempotency_key="k")
        assert first.content == "HELLO"
        assert (await repeated(chat, first, "hello")).content == "HELLO"


@virtual
async def test_a_repeat_that_says_something_else_is_answered_from_storage_where_memory_has_it_no_more() -> None:
    stored = Stored()
    limit = RateLimit(messages_per_sec=1, burst=3)
    async with Chat(persistence=stored, history_size=1, rate_limit=limit) as chat:
        first = await chat.send_message("room", "alice", "hello", idempotency_key="k")
        await chat.send_message("room", "bob", "next")
        await asyncio.sleep(1)
        assert (await repeated(chat, first, "other")).content == "hello"
        # What reads from storage takes a token, so that nobody has it read without end.
        for _ in range(2):
            await repeated(chat, first, "other")
        assert await refused(chat.send_message("room", "alice", "other", idempotency_key="k")) == "rate_limited"
        assert (await repeated(chat, first, "hello")).content == "hello"
        trusted = await chat.send_message("room", "alice", "other", idempotency_key="k", trusted=True)
        assert trusted == replace(first, duplicate=True)


@virtual
async def test_a_repeat_is_answered_also_where_storage_cannot_be_read() -> None:
    stored = Stored()
    async with Chat(persistence=stored, history_size=1) as chat:
        first = await chat.send_message("room", "alice", "hello", idempotency_key="k")
        await chat.send_message("room", "bob", "next")
        await asyncio.sleep(1)

        def away(*_: Any, **__: Any) -> Any:
            raise Broken

        stored.load_messages = away  # type: ignore[method-assign]
        assert (await repeated(chat, first, "other")).content == "other"


@virtual
async def test_a_repeat_that_reads_from_storage_while_the_chat_stops_is_refused() -> None:
    stored = Stored()
    async with Chat(persistence=stored, history_size=1, drain_timeout_ms=1000) as chat:
        await chat.send_message("room", "alice", "hello", idempotency_key="k")
        await chat.send_message("room", "bob", "next")
        await asyncio.sleep(1)
        stored.hang.add("load_messages")
        repeat = asyncio.create_task(chat.send_message("room", "alice", "other", idempotency_key="k"))
        await asyncio.sleep(0.1)
    # Its own words would be taken for those that everybody saw.
    with pytest.raises(Closed):
        await repeat


@virtual
async def test_nobody_shortens_the_window_of_another_users_key() -> None:
    async with Chat(idempotency_bytes=2**20, middlewares=()) as chat:
        first = await chat.send_message("room", "alice", "pay bob 5", idempotency_key="k")
        for user, key in itertools.product(range(500), range(20)):
            await chat.send_message("room", f"user {user}", "hello", idempotency_key=f"{key}")
        # Nor do many rooms of one user, or many connections.
        for number in range(3000):
            async with chat.connect("mallory") as connection:
                await connection.send_message(f"room {number}", "hello", idempotency_key="k" * 128)
        assert (await repeated(chat, first, "pay bob 5")).duplicate
        assert chat.statistics().idempotency_keys < 3000


@virtual
async def test_a_repeat_is_not_published_while_the_first_waits_for_the_room_to_open() -> None:
    stored = Stored()
    stored.wait_ms = 100
    async with Chat(persistence=stored, middlewares=()) as chat, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(chat.send_message("room", "alice", "hello", idempotency_key="k"))
        repeats = []
        while not first.done():
            repeats.append(tasks.create_task(chat.send_message("room", "alice", "hello", idempotency_key="k")))
            await asyncio.sleep(0)
            if len(repeats) > 50:
                await asyncio.sleep(0.01)
    assert all([(await each).duplicate for each in repeats])
    assert len(stored.rows) == 1


@virtual
async def test_a_key_is_remembered_for_the_window_and_outlives_its_idle_room() -> None:
    async with Chat(room_idle_ms=1000) as chat:
        first = await chat.send_message("room", "alice", "hello", idempotency_key="k")
        await asyncio.sleep(WINDOW_S - 1)
        assert chat.statistics().rooms == 0
        assert (await chat.send_message("room", "alice", "hello", idempotency_key="k")).id == first.id
        await asyncio.sleep(2)
        assert not (await chat.send_message("room", "alice", "hello", idempotency_key="k")).duplicate
        await asyncio.sleep(WINDOW_S + 3)
        assert chat.statistics().idempotency_keys == 0


@both
@virtual
async def test_a_refusal_records_nothing(form: Form) -> None:
    refusing = True

    def refuse(draft: Draft) -> Draft:
        if refusing:
            raise Blocked("not now")
        return draft

    async with Chat(middlewares=(form(refuse),)) as chat:
        for _ in range(3):
            assert await refused(chat.send_message("room", "alice", "hello", idempotency_key="k")) == "blocked"
        assert chat.statistics().idempotency_keys == 0
        refusing = False
        assert not (await chat.send_message("room", "alice", "hello", idempotency_key="k")).duplicate


@virtual
async def test_repeats_while_the_first_is_under_way_wait_for_its_outcome() -> None:
    gate = Gate()
    async with Chat(middlewares=(gate,)) as chat, chat.subscribe("room") as subscription:
        sends = [
            asyncio.create_task(chat.send_message("room", "alice", "hello", idempotency_key="k")) for _ in range(5)
        ]
        await asyncio.sleep(1)
        assert gate.waiting == 1
        gate.open()
        messages = await asyncio.gather(*sends)
        assert [each.duplicate for each in messages] == [False, True, True, True, True]
        assert len({each.id for each in messages}) == 1
        await asyncio.sleep(0.01)
        assert subscription.unread == 1
        assert (chat.statistics().sent, chat.statistics().duplicates) == (1, 4)


@virtual
async def test_a_refusal_is_shared_by_the_repeats_that_waited_for_it() -> None:
    asked = 0

    async def refuse(draft: Draft) -> Draft:
        nonlocal asked
        asked += 1
        await asyncio.sleep(1)
        raise Blocked("No poems.", retry_after=3.0)

    async with Chat(middlewares=(refuse,)) as chat:
        sends = [
            asyncio.create_task(chat.send_message("room", "alice", "hello", idempotency_key="k")) for _ in range(3)
        ]
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert asked == 1
        assert [(type(each), str(each), each.retry_after) for each in results] == [(Blocked, "No poems.", 3.0)] * 3  # type: ignore[union-attr]
        assert len({id(each) for each in results}) == 3, "each caller gets an exception of its own"
        # It was no record: the next one is asked anew.
        assert await refused(chat.send_message("room", "alice", "hello", idempotency_key="k")) == "blocked"
        assert asked == 2


@pytest.mark.parametrize("cancelled", [1, 2, 4])
@virtual
async def test_when_the_first_is_cancelled_the_next_repeat_sends_it(cancelled: int) -> None:
    gate = Gate()
    async with Chat(middlewares=(gate,)) as chat:
        sends = [asyncio.create_task(chat.send_message("room", "alice", str(n), idempotency_key="k")) for n in range(5)]
        for number in range(cancelled):
            await asyncio.sleep(0.01)
            sends[number].cancel()
        await asyncio.sleep(0.01)
        gate.open()
        results = await asyncio.gather(*sends, return_exceptions=True)
        messages = [each for each in results if isinstance(each, Message)]
        assert [each.duplicate for each in messages] == [False] + [True] * (4 - cancelled)
        assert {each.content for each in messages} == {str(cancelled)}
        assert len(await chat.history("room")) == 1


@virtual
async def test_a_waiting_repeat_can_be_cancelled_alone() -> None:
    gate = Gate()
    async with Chat(middlewares=(gate,)) as chat:
        first = asyncio.create_task(chat.send_message("room", "alice", "hello", idempotency_key="k"))
        repeat = asyncio.create_task(chat.send_message("room", "alice", "hello", idempotency_key="k"))
        await asyncio.sleep(0.01)
        repeat.cancel()
        await asyncio.sleep(0.01)
        assert not first.done()
        gate.open()
        assert not (await first).duplicate
        assert repeat.cancelled()


@virtual
async def test_repeats_while_the_room_opens_are_one_message() -> None:
    stored = Stored()
    stored.wait_ms = 100
    async with Chat(persistence=stored) as chat:
        sends = [chat.send_message("room", "alice", "hello", idempotency_key="k") for _ in range(4)]
        messages = await asyncio.gather(*sends)
        assert [each.duplicate for each in messages] == [False, True, True, True]
    assert len(stored.rows) == 1


@virtual
async def test_a_refusal_for_a_broken_adapter_can_be_repeated_with_the_key() -> None:
    broken = True

    def act() -> bool:
        if broken:
            raise Broken
        return True

    async with Chat(auth=FaultyAuth(act), moderation=FaultyModeration(act, "hello")) as chat:
        assert await refused(chat.send_message("room", "victim", "hello", idempotency_key="k")) == "adapter_error"
        broken = False
        assert not (await chat.send_message("room", "victim", "hello", idempotency_key="k")).duplicate
