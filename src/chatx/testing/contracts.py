"""What chatx relies on in an adapter, as checks to run on your own.

    async def test_my_persistence_keeps_the_contract():
        await check_persistence(MyPersistence)

Each raises `AssertionError` with what was wrong, what was expected and what to do. The adapter is called the way the
engine calls it: through the same boundary, plain persistence and notifier methods in threads, async ones within a
timeout. Run them on a real loop; on virtual time a timeout comes at once where the adapter waits for a socket.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, get_args

from chatx.adapters.boundary import AdapterFailure, Boundary, adapter_name, is_async
from chatx.adapters.protocols import Action, Auth, Moderation, Notifier, Persistence
from chatx.config import ChatConfig
from chatx.core.message import Message
from chatx.errors import Blocked, ChatError, ConfigError, Unauthorized
from chatx.runtime.ids import MessageIds
from chatx.telemetry import Telemetry

# What text may look like: an adapter that encodes, escapes, trims, folds or normalises it shows on one of these.
CONTENTS = (
    "hello",
    " spaces around ",
    "tab\tand\r\nlines\n",
    '\'; DROP TABLE messages; -- "quoted" \\ %s {} $1',
    "<b>&amp;</b>",
    "e\u0301 is not \u00e9",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "日本語 \U0001f469\u200d\U0001f469\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308",
    "\ufeff\u00a0\u200b",
    "0",
    "null",
    "x" * 4096,
)
# Ids are 1 to 128 bytes of UTF-8 without control and format characters.
USER_IDS = ("alice", "Alice", "a b/c:d?e#f%20", "50%' OR '1'='1", "Zoë", "用户", "\U0001f600", "ü" * 64)


async def check_auth(
    adapter: Auth,
    *,
    allowed: Iterable[tuple[str, str, Action]] = (),
    refused: Iterable[tuple[str, str, Action]] = (),
    timeout_s: float = 5.0,
) -> None:
    """Check that an auth adapter answers exactly True or False, or raises `Unauthorized`, whoever asks for whatever.

    Args:
        adapter: The adapter.
        allowed: (user id, room id, action) that it must answer with True.
        refused: (user id, room id, action) that it must answer with False or `Unauthorized`.
        timeout_s: Bound of each call that awaits.

    Raises:
        AssertionError: It does not.
    """
    async with _calls("auth", adapter, timeout_s) as calls:

        async def allows(question: tuple[str, str, str]) -> bool:
            return await _allows(calls, "authorize", Unauthorized, *question)

        # All at once: the engine asks for different users concurrently.
        await asyncio.gather(*(allows((each, each, action)) for each in USER_IDS for action in get_args(Action)))
        for question in allowed:
            calls.expect(await allows(question), f"authorize{question!r} refused; it must answer True")
        for question in refused:
            calls.expect(not await allows(question), f"authorize{question!r} answered True; it must refuse")


async def check_moderation(
    adapter: Moderation,
    *,
    allowed: Iterable[str] = (),
    refused: Iterable[str] = (),
    timeout_s: float = 5.0,
) -> None:
    """Check that a moderation adapter answers exactly True or False, or raises `Blocked`, whatever the text.

    Args:
        adapter: The adapter.
        allowed: Contents that it must answer with True.
        refused: Contents that it must answer with False or `Blocked`.
        timeout_s: Bound of each call that awaits.

    Raises:
        AssertionError: It does not.
    """
    async with _calls("moderation", adapter, timeout_s) as calls:

        async def allows(content: str) -> bool:
            return await _allows(calls, "check", Blocked, content)

        await asyncio.gather(*map(allows, CONTENTS))
        for content in allowed:
            calls.expect(await allows(content), f"check({content!r}) refused; it must answer True")
        for content in refused:
            calls.expect(not await allows(content), f"check({content!r}) answered True; it must refuse")


async def check_notifier(adapter: Notifier, *, users: Sequence[str] = USER_IDS, timeout_s: float = 5.0) -> None:
    """Check that a notifier takes every message, twice too, and that `recipients`, if it has it, names users.

    Args:
        adapter: The adapter.
        users: Whom it can notify.
        timeout_s: Bound of each call.

    Raises:
        AssertionError: It does not.
    """
    async with _calls("notifier", adapter, timeout_s) as calls:
        stream = _Stream()
        messages = [stream.message(content) for content in CONTENTS]

        async def notify(user: str) -> None:
            # The last one a second time: a delivery whose outcome was not known is tried again.
            for message in [*messages, messages[-1]]:
                await calls.call("notify", user, message)

        await asyncio.gather(*map(notify, users))
        if not hasattr(adapter, "recipients"):
            return
        for message in messages:
            answer = await calls.call("recipients", message)
            named = isinstance(answer, Iterable) and all(isinstance(user, str) for user in tuple(answer))
            calls.expect(named, f"recipients(message) answered {answer!r}; it must answer with user ids, as text")


async def check_persistence(
    make: Callable[[], Persistence | Awaitable[Persistence]], *, timeout_s: float = 5.0
) -> None:
    """Check that a persistence adapter saves, and if it serves history or marks streams that it does so rightly.

    Args:
        make: A function without arguments, plain or async, that returns an adapter: the class, or one that always
            returns the same. It is called once per check. The checks use rooms of their own, so the adapters may share
            a store that holds other messages; what is to be closed in the end is the caller's.
        timeout_s: Bound of each call.

    Raises:
        AssertionError: It does not.
    """
    for check in (
        _saved_messages_come_back_equal,
        _saving_again_changes_nothing,
        _late_messages_take_their_place,
        _rooms_are_kept_apart,
        _after_gives_the_first_ones_past_a_place,
        _before_gives_the_last_ones_ahead_of_a_place,
        _a_failed_batch_leaves_nothing,
        _calls_at_once_do_not_disturb_each_other,
        _the_last_position_is_proven,
        _marks_give_and_withdraw_the_proof,
    ):
        made = make()
        adapter = await made if inspect.isawaitable(made) else made
        async with _calls("persistence", adapter, timeout_s) as calls:
            await check(_Store(calls, adapter))


class _Calls:
    """Calls one adapter as the engine does; a failure is an assertion that names the call."""

    def __init__(self, role: str, adapter: object, boundary: Boundary) -> None:
        self._adapter = adapter
        self._boundary = boundary
        self._role = role
        self._name = adapter_name(adapter)

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method that may block."""
        function = getattr(self._adapter, method)
        try:
            return await self._boundary.call(self._name, function, *args, **kwargs)
        except (AdapterFailure, ChatError) as error:
            raise self.broken(f"{_shown(method, args, kwargs)} failed: {_cause(error)}; it must not") from error

    async def succeeds(self, method: str, *args: Any) -> bool:
        """Call a method that may fail; return whether it did not."""
        try:
            await self._boundary.call(self._name, getattr(self._adapter, method), *args)
        except (AdapterFailure, ChatError):
            return False
        return True

    async def ask(self, method: str, *args: Any) -> Any:
        """Call a method that must not block; a `ChatError` is the caller's."""
        function = getattr(self._adapter, method)
        try:
            if is_async(function):
                return await self._boundary.awaiting(self._name, function, *args)
            return self._boundary.plain(self._name, function, *args)
        except AdapterFailure as failure:
            raise self.broken(f"{_shown(method, args, {})} failed: {_cause(failure)}; it must answer") from failure

    def expect(self, holds: bool, otherwise: str) -> None:
        """Raise what is broken unless it holds."""
        if not holds:
            raise self.broken(otherwise)

    def broken(self, what: str) -> AssertionError:
        """Return the failure."""
        return AssertionError(f"The {self._role} adapter {self._name} breaks its contract: {what}.")


@asynccontextmanager
async def _calls(role: str, adapter: object, timeout_s: float) -> AsyncIterator[_Calls]:
    options: dict[str, Any] = {role: adapter}
    boundary = Boundary(round(timeout_s * 1000), Telemetry())
    calls = _Calls(role, adapter, boundary)
    try:
        ChatConfig(**options)
    except ConfigError as error:
        raise calls.broken(f"a Chat refuses it: {error.reason.rstrip('.')}") from error
    try:
        yield calls
    finally:
        await boundary.close(timeout_s)


async def _allows(calls: _Calls, method: str, refusal: type[ChatError], *args: str) -> bool:
    try:
        answer = await calls.ask(method, *args)
    except refusal:
        return False
    except ChatError as error:
        raise calls.broken(
            f"{_shown(method, args, {})} raised {type(error).__name__}; it may raise {refusal.__name__} only"
        ) from error
    if inspect.iscoroutine(answer):
        answer.close()
    calls.expect(
        answer is True or answer is False,
        f"{_shown(method, args, {})} answered {answer!r} ({type(answer).__name__}); it must answer exactly True or "
        f"False, or raise {refusal.__name__}(reason): anything else refuses",
    )
    return answer is True


class _Stream:
    """Makes the messages of one room, epoch by epoch, as a room would."""

    _ids = MessageIds()

    def __init__(self) -> None:
        # Rooms that no other check and no earlier run has used.
        self.room_id = f"contract {secrets.token_hex(8)} ü"
        self._now = time.time_ns() // 1_000_000
        self._lives = 0
        self.begin()

    def begin(self) -> None:
        """Begin a new epoch; their texts sort against their order."""
        self.epoch = f"{0xFFFF - self._lives:x}-{secrets.token_hex(4)}"
        self._lives += 1
        self._offset = 0

    def message(self, content: str = "hello", user_id: str = "alice") -> Message:
        """Return the next message."""
        self._offset += 1
        self._now += 1
        return Message(self._ids.next(self._now), self.room_id, user_id, content, self._now, self.epoch, self._offset)

    def messages(self, count: int) -> list[Message]:
        """Return the next messages."""
        return [self.message(f"message {n}") for n in range(count)]


class _Store:
    """A persistence adapter under test."""

    def __init__(self, calls: _Calls, adapter: object) -> None:
        self.calls = calls
        self.batches = hasattr(adapter, "save_messages")
        self.serves_history = hasattr(adapter, "load_messages")
        self.marks = hasattr(adapter, "mark_open")

    async def save(self, *messages: Message) -> None:
        """Save messages as the engine does: a batch, or one after another."""
        if self.batches:
            await self.calls.call("save_messages", list(messages))
            return
        for message in messages:
            await self.calls.call("save_message", message)

    async def begin(self, stream: _Stream) -> None:
        """Say that the stream's current epoch is open, where the adapter wants to know."""
        if self.marks:
            await self.calls.call("mark_open", stream.room_id, stream.epoch)

    async def expect_loaded(
        self, expected: Sequence[Message], room_id: str, *, limit: int = 100, **place: tuple[str, int]
    ) -> None:
        """Load messages and compare."""
        answer = await self.calls.call("load_messages", room_id, **place, limit=limit)
        asked = _shown("load_messages", (room_id,), {**place, "limit": limit})
        self.calls.expect(
            isinstance(answer, Sequence) and all(isinstance(each, Message) for each in answer),
            f"{asked} answered {_brief(repr(answer))}; it must answer a sequence of chatx.Message",
        )
        if list(answer) == list(expected):
            return
        differing = [
            f"{field} {getattr(got, field)!r} where {getattr(want, field)!r} was saved"
            for got, want in zip(answer, expected, strict=False)
            for field in Message.__struct_fields__
            if (got.epoch, got.offset) == (want.epoch, want.offset) and getattr(got, field) != getattr(want, field)
        ]
        if differing:
            raise self.calls.broken(f"{asked} changed a message: {_brief(differing[0])}; it must come back equal")
        raise self.calls.broken(
            f"{asked} answered the places {_places(answer)}; it must answer {_places(expected)}, oldest first"
        )

    async def position(self, room_id: str) -> tuple[str, int] | None:
        """Ask for the last position and check its form."""
        answer = await self.calls.call("last_position", room_id)
        match answer:
            case None:
                return None
            case (str() as epoch, int() as offset) if epoch and offset >= 0 and not isinstance(offset, bool):
                return epoch, offset
        raise self.calls.broken(f"last_position answered {answer!r}; it must answer (epoch, offset) or None")


async def _saved_messages_come_back_equal(store: _Store) -> None:
    stream = _Stream()
    await store.begin(stream)
    by_content = [stream.message(content) for content in CONTENTS]
    by_user = [stream.message("hello", user) for user in USER_IDS]
    await store.save(*by_content)
    await store.save(*by_user)
    if store.serves_history:
        await store.expect_loaded(by_content + by_user, stream.room_id)


async def _saving_again_changes_nothing(store: _Store) -> None:
    stream = _Stream()
    await store.begin(stream)
    messages = stream.messages(3)
    await store.save(*messages)
    # After a timeout nobody knows the outcome: the message comes again, alone or beside new ones.
    await store.save(messages[1])
    more = stream.messages(2)
    await store.save(messages[2], *more)
    if store.serves_history:
        await store.expect_loaded([*messages, *more], stream.room_id)


async def _late_messages_take_their_place(store: _Store) -> None:
    if not store.serves_history:
        return
    stream = _Stream()
    await store.begin(stream)
    first, second, third, fourth = stream.messages(4)
    await store.save(first, fourth)
    await store.save(third)
    await store.save(second)
    await store.expect_loaded([first, second, third, fourth], stream.room_id)
    await store.expect_loaded([second, third], stream.room_id, after=(stream.epoch, 1), limit=2)


async def _rooms_are_kept_apart(store: _Store) -> None:
    one, other = _Stream(), _Stream()
    # The same place in both: a key that leaves out the room shows.
    other.epoch = one.epoch
    await store.begin(one)
    await store.begin(other)
    mine, theirs = one.messages(3), other.messages(3)
    await store.save(mine[0], theirs[0], theirs[1], mine[1], mine[2], theirs[2])
    if not store.serves_history:
        return
    await store.expect_loaded(mine, one.room_id)
    await store.expect_loaded(theirs, other.room_id)
    await store.expect_loaded([], _Stream().room_id)
    await store.expect_loaded([], one.room_id.upper(), after=(one.epoch, 0))


async def _after_gives_the_first_ones_past_a_place(store: _Store) -> None:
    if not store.serves_history:
        return
    stream = _Stream()
    await store.begin(stream)
    earlier, old_epoch = stream.messages(3), stream.epoch
    await store.save(*earlier)
    stream.begin()
    await store.begin(stream)
    # More than ten: offsets that are compared as text show.
    later, room_id = stream.messages(12), stream.room_id
    await store.save(*later)
    await store.expect_loaded(later, room_id, after=(stream.epoch, 0))
    await store.expect_loaded(later[9:], room_id, after=(stream.epoch, 9))
    await store.expect_loaded(later[4:6], room_id, after=(stream.epoch, 4), limit=2)
    await store.expect_loaded([], room_id, after=(stream.epoch, 12))
    # Only that epoch: what follows in the next is not known to follow without a hole.
    await store.expect_loaded(earlier[1:], room_id, after=(old_epoch, 1))
    await store.expect_loaded([], room_id, after=(old_epoch, 3))
    await store.expect_loaded([], room_id, after=("an epoch nobody has seen", 0))


async def _before_gives_the_last_ones_ahead_of_a_place(store: _Store) -> None:
    if not store.serves_history:
        return
    stream = _Stream()
    await store.begin(stream)
    earlier, old_epoch = stream.messages(3), stream.epoch
    await store.save(*earlier)
    stream.begin()
    await store.begin(stream)
    later, room_id = stream.messages(12), stream.room_id
    await store.save(*later)
    await store.expect_loaded(earlier + later, room_id)
    await store.expect_loaded(later[-2:], room_id, limit=2)
    await store.expect_loaded(later[7:9], room_id, before=(stream.epoch, 10), limit=2)
    await store.expect_loaded(earlier[1:] + later[:2], room_id, before=(stream.epoch, 3), limit=4)
    await store.expect_loaded(earlier, room_id, before=(stream.epoch, 1))
    await store.expect_loaded(earlier[:1], room_id, before=(old_epoch, 2))
    await store.expect_loaded([], room_id, before=(old_epoch, 1))


async def _a_failed_batch_leaves_nothing(store: _Store) -> None:
    if not (store.batches and store.serves_history):
        return
    stream = _Stream()
    await store.begin(stream)
    good, after = stream.message(), stream.message()
    # No encoder takes a lone surrogate. The engine never saves one; an adapter that can is not wrong.
    poison = stream.message("\ud800")
    if await store.calls.succeeds("save_messages", [good, poison, after]):
        return
    # After a failure the engine saves each alone: a half-saved batch would be there before its time.
    await store.expect_loaded([], stream.room_id)
    await store.save(good, after)
    await store.expect_loaded([good, after], stream.room_id)


async def _calls_at_once_do_not_disturb_each_other(store: _Store) -> None:
    streams = [_Stream() for _ in range(8)]
    await asyncio.gather(*map(store.begin, streams))
    saved = [stream.messages(5) for stream in streams]

    async def use(stream: _Stream, messages: list[Message]) -> None:
        for message in messages:
            await store.save(message)
        if store.serves_history:
            await store.expect_loaded(messages, stream.room_id)

    await asyncio.gather(*map(use, streams, saved))


async def _the_last_position_is_proven(store: _Store) -> None:
    if not store.serves_history:
        return
    stream = _Stream()
    store.calls.expect(
        await store.position(stream.room_id) is None,
        "last_position of a room without messages is not None; it must be",
    )
    await store.begin(stream)
    await store.save(*stream.messages(3))
    position = await store.position(stream.room_id)
    store.calls.expect(
        position is None or (position[0] == stream.epoch and position[1] >= 3),
        f"last_position answered {position!r} after offset 3 of epoch {stream.epoch!r} was saved; it must answer a "
        "place that no message is past, or None",
    )


async def _marks_give_and_withdraw_the_proof(store: _Store) -> None:
    if not (store.marks and store.serves_history):
        return
    stream, other = _Stream(), _Stream()
    room_id, expect = stream.room_id, store.calls.expect
    other.epoch = stream.epoch
    await store.begin(other)
    await store.begin(stream)
    await store.save(*stream.messages(3))
    expect(
        await store.position(room_id) is None,
        "last_position is not None while the stream is open; a crash now could hide messages that were seen",
    )

    async def closed_at(offset: int) -> None:
        await store.calls.call("mark_closed", room_id, stream.epoch, offset)
        position = await store.position(room_id)
        expect(
            position == (stream.epoch, offset),
            f"last_position answered {position!r} after mark_closed(room, {stream.epoch!r}, {offset}); it must answer "
            "with that place",
        )

    await closed_at(3)
    expect(await store.position(other.room_id) is None, "mark_closed of one room closed another too")
    await store.begin(stream)
    expect(
        await store.position(room_id) is None,
        "last_position is not None after mark_open; it must withdraw the proof of mark_closed",
    )
    await store.save(*stream.messages(2))
    await closed_at(5)
    stream.begin()
    await store.begin(stream)
    expect(
        await store.position(room_id) is None,
        "last_position answers for an old epoch while a newer one is open; it must be None",
    )
    await store.save(*stream.messages(1))
    await closed_at(1)


def _shown(method: str, args: Sequence[object], kwargs: dict[str, Any]) -> str:
    parts = [*(_brief(repr(each)) for each in args), *(f"{name}={value!r}" for name, value in kwargs.items())]
    return f"{method}({', '.join(parts)})"


def _brief(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."


def _places(messages: Sequence[Message]) -> str:
    return "[" + ", ".join(f"{each.epoch}:{each.offset}" for each in messages) + "]"


def _cause(error: AdapterFailure | ChatError) -> str:
    return repr(error.__cause__) if error.__cause__ is not None else repr(error)
