"""The hardened boundary: each adapter with each fault; whatever one does, nobody else notices."""

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVarTuple

import pytest

from chatx import AdapterError, Blocked, Chat, Message, Unauthorized
from chatx.adapters.boundary import (
    LOGGED_PER_MINUTE,
    TEXT_CHARACTERS,
    AdapterFailure,
    Boundary,
    is_async,
)
from chatx.adapters.threads import THREADS, WAITING_CALLS, AdapterThreads, Busy
from chatx.telemetry import Telemetry
from chatx.testing.loop import VirtualLoop
from tests.faults import (
    ANSWERING,
    RAISING,
    SECRET,
    Act,
    AsyncFaultyAuth,
    AsyncFaultyMiddleware,
    AsyncFaultyModeration,
    AsyncFaultyNotifier,
    AsyncFaultyPersistence,
    Block,
    Broken,
    FaultyAuth,
    FaultyMiddleware,
    FaultyModeration,
    FaultyNotifier,
    FaultyPersistence,
    Hang,
    HangDeaf,
    SendsToItsRoom,
    awaited,
    interrupt,
    raises,
)
from tests.virtual import turns, virtual


def named(value: object) -> str:
    return getattr(value, "__name__", type(value).__name__)


Options = Callable[[Any], dict[str, Any]]


def auth(act: Any) -> dict[str, Any]:
    return {"auth": FaultyAuth(act)}


def async_auth(act: Any) -> dict[str, Any]:
    return {"auth": AsyncFaultyAuth(act)}


def moderation(act: Any) -> dict[str, Any]:
    return {"moderation": FaultyModeration(act)}


def async_moderation(act: Any) -> dict[str, Any]:
    return {"moderation": AsyncFaultyModeration(act)}


def middleware(act: Any) -> dict[str, Any]:
    return {"middlewares": (FaultyMiddleware(act),)}


def async_middleware(act: Any) -> dict[str, Any]:
    return {"middlewares": (AsyncFaultyMiddleware(act),)}


PLAIN = (auth, moderation, middleware)
ASYNC = (async_auth, async_moderation, async_middleware)

# A middleware may refuse with any `ChatError`, so a foreign one is no fault of it.
PLAIN_FAULTS = [
    (options, act)
    for options in PLAIN
    for act in RAISING + ANSWERING
    if not (options is middleware and act.__name__ == "raises_a_foreign_refusal")
]
ASYNC_FAULTS = [
    (options, awaited(act))
    for options in ASYNC
    for act in RAISING + ANSWERING
    if not (options is async_middleware and act.__name__ == "raises_a_foreign_refusal")
]


async def refused_for_the_victim_only(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    """Send as the victim among others; the victim is refused, with nothing of the fault's text, and nobody else."""
    failures: list[Any] = []
    chat.telemetry.attach("adapter_failure", lambda event, measurements, metadata: failures.append(metadata))
    async with chat, chat.subscribe("room") as subscription:
        faulty, other, third = await asyncio.gather(
            chat.send_message("room", "victim", "from the victim"),
            chat.send_message("room", "alice", "one"),
            chat.send_message("room", "bob", "two"),
            return_exceptions=True,
        )
        assert isinstance(faulty, AdapterError), faulty
        assert SECRET not in str(faulty)
        assert faulty.__cause__ is None
        assert isinstance(other, Message)
        assert isinstance(third, Message)
        assert {(await anext(subscription)).content for _ in range(2)} == {"one", "two"}  # type: ignore[union-attr]
        assert sum(chat.statistics().adapter_failures.values()) == len(failures) == 1
        assert chat.statistics().refused == {"adapter_error": 1}
        assert chat.statistics().admitted == 0
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert failures[0]["adapter"] in errors[0].getMessage()


@pytest.mark.parametrize("options,act", PLAIN_FAULTS, ids=named)
@virtual
async def test_a_plain_adapters_fault_refuses_the_one_send_it_was_asked_about(
    options: Options, act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    await refused_for_the_victim_only(Chat(**options(act)), caplog)


@pytest.mark.parametrize("options,act", ASYNC_FAULTS, ids=named)
@virtual
async def test_an_async_adapters_fault_refuses_the_one_send_it_was_asked_about(
    options: Options, act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    await refused_for_the_victim_only(Chat(**options(act)), caplog)


@pytest.mark.parametrize("options", ASYNC, ids=named)
@virtual
async def test_an_adapter_that_hangs_is_cancelled_at_the_timeout_and_nobody_else_waits(options: Options) -> None:
    hang = Hang()
    loop = asyncio.get_running_loop()
    async with Chat(**options(hang), adapter_timeout_ms=700) as chat:
        stuck = asyncio.create_task(chat.send_message("room", "victim", "from the victim"))
        await asyncio.sleep(0)
        began = loop.time()
        await chat.send_message("room", "alice", "at once")
        assert loop.time() == began
        with pytest.raises(AdapterError, match="failed") as caught:
            await stuck
        assert loop.time() - began == pytest.approx(0.7)
        assert caught.value.retryable
        await asyncio.sleep(0)
        assert (hang.begun, hang.cancelled) == (1, 1)


@pytest.mark.parametrize("options", ASYNC, ids=named)
@virtual
async def test_an_adapter_that_swallows_its_cancellation_is_left_behind_at_the_timeout(options: Options) -> None:
    deaf = HangDeaf()
    loop = asyncio.get_running_loop()
    async with Chat(**options(deaf), adapter_timeout_ms=700) as chat:
        began = loop.time()
        with pytest.raises(AdapterError):
            await chat.send_message("room", "victim", "from the victim")
        assert loop.time() - began == pytest.approx(0.7)
        # The late answer of the one left behind publishes nothing.
        deaf.release()
        await asyncio.sleep(1)
        assert chat.statistics().sent == 0
        assert (await chat.send_message("room", "alice", "hello")).offset == 1


@virtual
async def test_a_join_and_a_subscription_fail_closed_too() -> None:
    async with Chat(auth=FaultyAuth(raises), middlewares=()) as chat:
        with pytest.raises(AdapterError):
            await chat.join("room", "victim")
        with pytest.raises(AdapterError):
            async with chat.subscribe("room", user_id="victim"):
                raise AssertionError("must not open")
        async with chat.connect("victim") as connection:
            with pytest.raises(AdapterError):
                await connection.join("room")
            with pytest.raises(AdapterError):
                await connection.subscribe("room")
        assert await chat.presence("room") == {}
        assert chat.statistics().subscriptions == 0
        assert chat.statistics().connections == 0


@virtual
async def test_an_answer_of_false_and_a_refusal_with_a_reason_are_no_faults() -> None:
    def refuse() -> bool:
        raise Unauthorized("Alice is on holiday.")

    def block() -> bool:
        raise Blocked("No poems.")

    async with Chat(auth=FaultyAuth(refuse), moderation=FaultyModeration(block)) as chat:
        with pytest.raises(Unauthorized, match=r"Alice is on holiday\."):
            await chat.send_message("room", "victim", "hello")
        with pytest.raises(Blocked, match=r"No poems\."):
            await chat.send_message("room", "alice", "victim")
        assert chat.statistics().adapter_failures == {}
    async with Chat(auth=FaultyAuth(lambda: False), moderation=FaultyModeration(lambda: False)) as chat:
        with pytest.raises(Unauthorized):
            await chat.send_message("room", "victim", "hello")
        with pytest.raises(Blocked):
            await chat.send_message("room", "alice", "victim")
        assert chat.statistics().adapter_failures == {}


@pytest.mark.parametrize("act", [*RAISING, Hang()], ids=named)
@virtual
async def test_async_persistence_that_fails_for_one_user_saves_everybody_elses(act: Any) -> None:
    persistence = AsyncFaultyPersistence(act if isinstance(act, Hang) else awaited(act))
    chat = Chat(persistence=persistence, delivery_max_retries=2, adapter_timeout_ms=50)
    async with chat:
        for number in range(3):
            await chat.send_message("room", "victim", f"victim {number}")
            await chat.send_message("room", "alice", f"alice {number}")
    assert sorted(each.content for each in persistence.saved) == ["alice 0", "alice 1", "alice 2"]
    assert sorted(each.message.content for each in chat.dead_letters) == ["victim 0", "victim 1", "victim 2"]
    assert {(each.adapter, each.user_id, each.attempts) for each in chat.dead_letters} == {("persistence", None, 3)}
    assert {each.reason for each in chat.dead_letters} == {"timeout" if isinstance(act, Hang) else "raised"}


@pytest.mark.parametrize("act", [*RAISING, Hang()], ids=named)
@virtual
async def test_an_async_notifier_that_fails_for_one_user_notifies_everybody_else(act: Any) -> None:
    notifier = AsyncFaultyNotifier(act if isinstance(act, Hang) else awaited(act))
    chat = Chat(notifier=notifier, delivery_max_retries=1, adapter_timeout_ms=50)
    async with chat:
        for user in ("victim", "bob", "carol"):
            await chat.join("room", user)
        await chat.send_message("room", "alice", "hello")
    assert sorted(notifier.notified) == [("bob", "hello"), ("carol", "hello")]
    assert [(each.adapter, each.user_id, each.attempts) for each in chat.dead_letters] == [("notifier", "victim", 2)]


async def test_plain_persistence_and_notifiers_run_in_threads_and_are_contained_there() -> None:
    seen: list[int] = []
    for act in (*RAISING, returns_an_unawaited_coroutine):
        persistence = FaultyPersistence(act)
        notifier = FaultyNotifier(act)
        chat = Chat(
            persistence=persistence,
            notifier=notifier,
            delivery_tick_ms=1,
            delivery_max_retries=1,
            delivery_retry_base_ms=1,
        )
        async with chat:
            await chat.join("room", "victim")
            await chat.join("room", "bob")
            await chat.send_message("room", "victim", "from the victim")
            await chat.send_message("room", "alice", "from alice")
            seen.append(threading.active_count())
        assert [each.content for each in persistence.saved] == ["from alice"], act
        assert sorted(notifier.notified) == [("bob", "from alice"), ("bob", "from the victim")], act
        assert sorted((each.adapter, each.message.content) for each in chat.dead_letters) == [
            ("notifier", "from alice"),
            ("persistence", "from the victim"),
        ], act


def returns_an_unawaited_coroutine() -> Any:
    """Answer as an async function does that was wrapped by a plain one: nothing was saved."""
    return asyncio.sleep(0)


async def test_a_thread_that_outlives_its_timeout_is_not_given_the_same_message_until_it_returns() -> None:
    block = Block()
    persistence = FaultyPersistence(block)
    chat = Chat(
        persistence=persistence,
        adapter_timeout_ms=20,
        delivery_tick_ms=1,
        delivery_retry_base_ms=1,
        delivery_max_retries=3,
    )
    retried = asyncio.Event()
    chat.telemetry.attach("delivery_retry", lambda *_: retried.set())
    async with chat:
        await chat.send_message("room", "victim", "blocks")
        async with asyncio.timeout(5):
            await retried.wait()
        await chat.send_message("room", "alice", "goes on")
        async with asyncio.timeout(5):
            await persistence.wait_saved()
        # Several backoffs long: were it tried again, the attempts would tell.
        await asyncio.sleep(0.05)
        assert block.begun == 1
        block.release()
    assert block.begun == 2
    assert [each.content for each in persistence.saved] == ["goes on"]
    assert chat.dead_letters == ()
    assert not [thread for thread in threading.enumerate() if thread.name == "chatx-adapter"]


Ts = TypeVarTuple("Ts")


class TimingLoop(VirtualLoop):
    """Keeps the timers that were set on it."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: list[asyncio.TimerHandle] = []

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self.timers.append(super().call_at(when, callback, *args, context=context))
        return self.timers[-1]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_call_that_is_over_leaves_no_timer(cancelled: bool) -> None:
    answer = asyncio.Event()

    async def call() -> None:
        calling = asyncio.create_task(Boundary(1000, Telemetry()).awaiting("a", answer.wait))
        await turns()
        calling.cancel() if cancelled else answer.set()
        await asyncio.wait([calling])

    loop = TimingLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(call())
    assert [timer.cancelled() for timer in loop.timers] == [True]


@virtual
async def test_a_call_that_ends_after_its_timeout_or_its_caller_disturbs_nobody() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    ended: list[str] = []

    async def deaf(caller: str) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(5)
        ended.append(caller)

    boundary = Boundary(1000, Telemetry())
    given_up = asyncio.create_task(boundary.awaiting("a", deaf, "given up"))
    await turns()
    given_up.cancel()
    with pytest.raises(AdapterFailure, match="no answer within"):
        await boundary.awaiting("a", deaf, "timed out")
    await asyncio.sleep(10)
    assert sorted(ended) == ["given up", "timed out"]
    assert told == []


async def test_a_call_that_no_thread_began_within_the_timeout_is_taken_back_and_is_no_timeout() -> None:
    block = Block()
    boundary = Boundary(1000, Telemetry())  # within which all of its threads begin, on whatever machine
    calls = [boundary.in_thread("a", block) for _ in range(THREADS)]
    late: list[int] = []
    results = await asyncio.gather(*calls, boundary.in_thread("late", late.append, 1), return_exceptions=True)
    block.release()
    await boundary.close(2)
    failures = [each for each in results if isinstance(each, AdapterFailure)]
    assert [each.failure for each in failures] == ["timeout"] * THREADS + ["busy"]
    assert [each.running is not None for each in failures] == [True] * THREADS + [False]
    assert late == []


async def test_the_time_that_a_call_waits_for_a_thread_is_not_the_adapters() -> None:
    """Each call takes most of the timeout, and twice as many come at once as there are threads."""
    boundary = Boundary(2000, Telemetry())
    calls = (boundary.in_thread("slow", time.sleep, 1.2) for _ in range(2 * THREADS))
    assert await asyncio.gather(*calls) == [None] * (2 * THREADS)
    assert boundary.failures == {}
    await boundary.close(2)


async def test_calls_of_one_kind_that_hang_leave_the_threads_of_another_alone() -> None:
    block = Block()
    boundary = Boundary(60_000, Telemetry())
    hanging = [asyncio.create_task(boundary.caller("one")("a", block)) for _ in range(3 * THREADS)]
    async with asyncio.timeout(30):
        assert await boundary.caller("another")("b", pow, 2, 3) == 8
        assert await boundary.call("c", pow, 3, 2) == 9
    block.release()
    await asyncio.gather(*hanging)
    await boundary.close(2)


async def test_so_many_calls_wait_for_a_thread_and_the_next_one_fails_at_once() -> None:
    block = Block()
    threads = AdapterThreads()
    waiting: list[asyncio.Future[Any]] = []
    with pytest.raises(Busy, match="wait for its threads already"):
        waiting.extend(threads.run(block) for _ in range(THREADS + WAITING_CALLS + 1))
    assert len(waiting) >= WAITING_CALLS
    # Taken back in the order that a search from the front would suffer from most.
    assert sum(threads.withdraw(each) for each in reversed(waiting)) == len(waiting) - block.begun
    _ = threads.run(block)
    block.release()
    assert await threads.close(5) == 0


async def test_a_call_for_which_there_is_no_room_is_a_failure_of_its_own_kind() -> None:
    class Full(AdapterThreads):
        def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
            raise Busy("too many")

    boundary = Boundary(1000, Telemetry())
    boundary._threads[""] = Full()
    with pytest.raises(AdapterFailure, match="too many") as caught:
        await boundary.in_thread("a", print)
    assert caught.value.failure == "busy"


async def test_a_call_whose_caller_was_cancelled_before_a_thread_began_it_is_never_made() -> None:
    block = Block()
    boundary = Boundary(5000, Telemetry())
    running = [asyncio.create_task(boundary.in_thread("a", block)) for _ in range(THREADS)]
    late: list[int] = []
    caller = asyncio.create_task(boundary.in_thread("late", late.append, 1))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    block.release()
    await asyncio.gather(*running)
    await boundary.close(2)
    assert late == []


async def test_a_hung_thread_does_not_keep_close_from_returning(caplog: pytest.LogCaptureFixture) -> None:
    block = Block()
    boundary = Boundary(10, Telemetry())
    with pytest.raises(AdapterFailure):
        await boundary.in_thread("a", block)
    try:
        async with asyncio.timeout(5):
            await boundary.close(0.02)
        assert "1 adapter calls did not end within 0.0 s and were left behind." in caplog.text
        assert all(thread.daemon for thread in threading.enumerate() if thread.name == "chatx-adapter")
    finally:
        block.release()


@pytest.mark.parametrize("method", ["awaiting", "in_thread"])
async def test_after_close_no_call_is_begun(method: str) -> None:
    boundary = Boundary(5000, Telemetry())
    await boundary.close(0.1)
    begun: list[int] = []

    async def begin() -> None:
        begun.append(1)

    function: Any = begin if method == "awaiting" else (lambda: begun.append(1))
    with pytest.raises(AdapterFailure):
        await getattr(boundary, method)("a", function)
    await asyncio.sleep(0.01)
    assert begun == []
    assert not [thread for thread in threading.enumerate() if thread.name == "chatx-adapter"]


async def test_threads_serve_more_calls_than_there_are_threads_and_then_end() -> None:
    threads = AdapterThreads()
    answers = await asyncio.gather(*(threads.run(pow, number, 2) for number in range(THREADS * 10)))
    assert answers == [number**2 for number in range(THREADS * 10)]
    assert await threads.close(2) == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "chatx-adapter"]
    with pytest.raises(RuntimeError, match="closed"):
        _ = threads.run(pow, 2, 2)


async def test_what_a_signal_raises_amid_an_adapter_goes_through(caplog: pytest.LogCaptureFixture) -> None:
    boundary = Boundary(5000, Telemetry())
    with pytest.raises(KeyboardInterrupt):
        boundary.plain("a", interrupt)
    async with Chat(auth=FaultyAuth(interrupt), moderation=FaultyModeration(interrupt)) as chat:
        chat.telemetry.attach("message_sent", lambda *_: interrupt())
        for user, content in (("victim", "hello"), ("alice", "victim"), ("alice", "hello")):
            with pytest.raises(KeyboardInterrupt):
                await chat.send_message("room", user, content)
    assert boundary.failures == {}
    assert caplog.records == []


async def test_what_a_thread_cannot_hand_over_as_it_is_comes_as_a_failure() -> None:
    def exits() -> None:
        raise SystemExit(3)

    boundary = Boundary(5000, Telemetry())
    with pytest.raises(AdapterFailure, match="SystemExit was raised in a thread"):
        await boundary.in_thread("a", exits)
    assert await boundary.in_thread("a", pow, 2, 3) == 8
    await boundary.close(2)


@virtual
async def test_a_caller_that_is_cancelled_cancels_its_call_and_is_not_a_failure() -> None:
    hang = Hang()
    boundary = Boundary(5000, Telemetry())
    caller = asyncio.create_task(boundary.awaiting("a", hang))
    await asyncio.sleep(0.1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.sleep(0)
    assert hang.cancelled == 1
    assert boundary.failures == {}


@pytest.mark.parametrize("as_user", [None, "bot"])
@virtual
async def test_an_adapter_that_sends_to_its_own_room_gets_its_message_through_first(as_user: str | None) -> None:
    adapter = SendsToItsRoom(as_user)
    loop = asyncio.get_running_loop()
    async with Chat(auth=adapter) as chat:
        adapter.chat = chat
        message = await chat.send_message("room", "alice", "hello")
        assert [(adapter.sent[0].user_id, adapter.sent[0].offset), (message.user_id, message.offset)] == [
            (as_user or "alice", 1),
            ("alice", 2),
        ]
        assert loop.time() == 0
        assert chat.statistics().admitted == 0


@virtual
async def test_what_an_adapter_starts_in_the_background_does_not_overtake_later_sends_of_that_user() -> None:
    """Only what the adapter itself awaits goes ahead of the send that waits for it."""
    background: list[asyncio.Task[None]] = []
    order: list[str] = []

    async def middleware(draft: Any) -> Any:
        if draft.content == "first":
            background.append(asyncio.create_task(later()))
        await asyncio.sleep(1 if draft.content == "second" else 0.1)
        order.append(draft.content)
        return draft

    async def later() -> None:
        await asyncio.sleep(0.5)
        await chat.send_message("room", "alice", "third")

    async with Chat(middlewares=(middleware,)) as chat:
        await chat.send_message("room", "alice", "first")
        await chat.send_message("room", "alice", "second")
        await asyncio.gather(*background)
        assert order == ["first", "second", "third"]


@virtual
async def test_an_adapter_of_one_chat_that_sends_through_another_keeps_that_ones_order() -> None:
    order: list[str] = []

    async def slow(draft: Any) -> Any:
        await asyncio.sleep(1 if draft.content == "early" else 0)
        order.append(draft.content)
        return draft

    async def forwards(draft: Any) -> Any:
        await other.send_message("room", "alice", "late")
        return draft

    async with Chat(middlewares=(slow,)) as other, Chat(middlewares=(forwards,)) as chat:
        early = asyncio.create_task(other.send_message("room", "alice", "early"))
        await asyncio.sleep(0)
        await chat.send_message("room", "alice", "hello")
        await early
        assert order == ["early", "late"]


@virtual
async def test_an_adapter_that_sends_without_end_is_refused_in_the_end_and_harms_nobody() -> None:
    async def again(draft: Any) -> Any:
        if draft.user_id == "victim":
            await chat.send_message("room", "victim", "again")
        return draft

    async with Chat(middlewares=(again,), room_queue_limit=50) as chat:
        with pytest.raises(Exception, match="wait in this room already"):
            await chat.send_message("room", "victim", "begin")
        assert chat.statistics().admitted == 0
        assert (await chat.send_message("room", "alice", "hello")).offset == 1


def test_is_async_sees_through_partials_and_callable_objects() -> None:
    async def function(number: int, other: int) -> int:
        return number

    class Called:
        async def __call__(self) -> None: ...

    class CalledPlainly:
        def __call__(self) -> None: ...

    assert is_async(function)
    assert is_async(functools.partial(functools.partial(function, 1), 2))
    assert is_async(Called())
    assert not is_async(CalledPlainly())
    assert not is_async(len)


@virtual
async def test_failures_beyond_so_many_a_minute_are_counted_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with Chat(auth=FaultyAuth(raises), middlewares=("auth",)) as chat:
        for _ in range(3 * LOGGED_PER_MINUTE):
            with pytest.raises(AdapterError):
                await chat.send_message("room", "victim", "hello")
        assert chat.statistics().adapter_failures == {"FaultyAuth": 3 * LOGGED_PER_MINUTE}
    assert len([each for each in caplog.records if "FaultyAuth failed" in each.getMessage()]) == LOGGED_PER_MINUTE


def test_a_failures_text_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    def verbose() -> None:
        raise ValueError("x" * 100_000)

    with pytest.raises(AdapterFailure) as caught:
        Boundary(5000, Telemetry()).plain("a", verbose)
    assert len(str(caught.value)) == TEXT_CHARACTERS + 1
    assert len(caplog.records[0].getMessage()) < 2 * TEXT_CHARACTERS
    assert (vars(caplog.records[0])["adapter"], vars(caplog.records[0])["code"]) == ("a", "raised")


def test_an_exception_without_text_is_contained() -> None:
    boundary = Boundary(5000, Telemetry())

    def call() -> None:
        from tests.faults import Unprintable

        raise Unprintable

    with pytest.raises(AdapterFailure) as caught:
        boundary.plain("a", call)
    assert caught.value.failure == "raised"
    assert boundary.failures == {"a": 1}


def test_a_plain_call_returns_its_answer_and_keeps_a_refusal_as_it_is() -> None:
    boundary = Boundary(5000, Telemetry())
    assert boundary.plain("a", pow, 2, 3) == 8

    def refuse() -> None:
        raise Blocked("no")

    with pytest.raises(Blocked, match="no"):
        boundary.plain("a", refuse)

    def breaks() -> None:
        raise Broken

    with pytest.raises(AdapterFailure, match=SECRET):
        boundary.plain("a", breaks)
    assert boundary.failures == {"a": 1}
