"""The contracts of those who answer one question at a time: auth, moderation, the notifier."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Sequence
from typing import get_args

from chatx.adapters.protocols import Action, Auth, Moderation, Notifier
from chatx.errors import Blocked, ChatError, Unauthorized
from chatx.testing.contracts.calls import Calls, calls_of, shown
from chatx.testing.contracts.stream import Stream
from chatx.testing.contracts.texts import CONTENTS, USER_IDS


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
        AssertionError: The adapter does not.
    """
    async with calls_of("auth", adapter, timeout_s) as calls:

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
        AssertionError: The adapter does not.
    """
    async with calls_of("moderation", adapter, timeout_s) as calls:

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
        AssertionError: The adapter does not.
    """
    async with calls_of("notifier", adapter, timeout_s) as calls:
        stream = Stream()
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


async def _allows(calls: Calls, method: str, refusal: type[ChatError], *args: str) -> bool:
    try:
        answer = await calls.ask(method, *args)
    except refusal:
        return False
    except ChatError as error:
        raise calls.broken(
            f"{shown(method, args, {})} raised {type(error).__name__}; it may raise {refusal.__name__} only"
        ) from error
    if inspect.iscoroutine(answer):
        answer.close()
    calls.expect(
        answer is True or answer is False,
        f"{shown(method, args, {})} answered {answer!r} ({type(answer).__name__}); it must answer exactly True or "
        f"False, or raise {refusal.__name__}(reason): anything else refuses",
    )
    return answer is True
