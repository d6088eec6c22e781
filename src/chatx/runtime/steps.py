"""The steps of a send's chain: auth, moderation and the rate limit, as configured, and the application's own.

Rules:
1. Where a step's adapter fails or answers wrongly, the send is refused, and the text of its exception goes to nobody.
2. What a step changed is checked like what a sender sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from chatx.adapters.boundary import AdapterFailure, Boundary, Guard, adapter_name, is_async
from chatx.config import ChatConfig
from chatx.core.data import valid_data
from chatx.core.message import Draft
from chatx.core.middleware import AwaitingStep, Chain, Check, PlainStep, Step
from chatx.core.validation import valid_content
from chatx.errors import AdapterError, Blocked, Closed, Unauthorized


def chain_of(config: ChatConfig, boundary: Boundary, take_token: Callable[[Draft], Draft]) -> Chain:
    """Return the chain of the configured middlewares.

    Args:
        config: Says which middlewares, in which order, and how large a message may be.
        boundary: Calls the application's own.
        take_token: The rate limit's step.
    """
    steps: list[Step] = []
    middleware: Any  # one of the names below, or a callable: so says the configuration
    for middleware in config.middlewares:
        if middleware == "rate_limit":
            steps.append(PlainStep(take_token))
        elif middleware == "auth":
            if (auth := guard_of(config, boundary, "auth")) is not None:
                steps.append(_auth_step(auth))
        elif middleware == "moderation":
            if (moderation := guard_of(config, boundary, "moderation")) is not None:
                steps.append(_moderation_step(moderation, whole=hasattr(config.moderation, "check_message")))
        else:
            steps.append(_own_step(boundary, middleware))
    return Chain(steps, _check_of(config.message_size_limit, config.message_data_limit, boundary))


def guard_of(config: ChatConfig, boundary: Boundary, role: str) -> Guard | None:
    """Return the guard around the auth or moderation adapter, or None where there is none."""
    if role == "auth":
        return None if config.auth is None else Guard(boundary, role, config.auth, "authorize", Unauthorized)
    if config.moderation is None:
        return None
    method = "check_message" if hasattr(config.moderation, "check_message") else "check"
    return Guard(boundary, role, config.moderation, method, Blocked)


def _auth_step(auth: Guard) -> Step:
    ask, ask_awaiting = auth.ask, auth.ask_awaiting

    def run(draft: Draft) -> Draft:
        ask(draft.user_id, draft.room_id, "send")
        return draft

    async def run_awaiting(draft: Draft) -> Draft:
        await ask_awaiting(draft.user_id, draft.room_id, "send")
        return draft

    return AwaitingStep(run_awaiting) if auth.awaits else PlainStep(run)


def _moderation_step(moderation: Guard, *, whole: bool) -> Step:
    ask, ask_awaiting = moderation.ask, moderation.ask_awaiting

    def run(draft: Draft) -> Draft:
        ask(draft if whole else draft.content)
        return draft

    async def run_awaiting(draft: Draft) -> Draft:
        await ask_awaiting(draft if whole else draft.content)
        return draft

    return AwaitingStep(run_awaiting) if moderation.awaits else PlainStep(run)


def _own_step(boundary: Boundary, middleware: Callable[[Draft], Any]) -> Step:
    name = adapter_name(middleware)
    if not is_async(middleware):

        def run(draft: Draft) -> Draft:
            try:
                return boundary.plain(name, middleware, draft)  # type: ignore[no-any-return]  # checked after
            except AdapterFailure:
                raise _middleware_failed(name) from None

        return PlainStep(run)

    async def run_awaiting(draft: Draft) -> Draft:
        try:
            return await boundary.awaiting(name, middleware, draft)  # type: ignore[no-any-return]  # checked after
        except AdapterFailure as failure:
            if failure.failure == "stopped":
                raise Closed("The chat was stopped before the middleware answered.") from None
            raise _middleware_failed(name) from None

    return AwaitingStep(run_awaiting)


def _middleware_failed(name: str) -> AdapterError:
    return AdapterError(f"The middleware {name} failed, so the message was refused; try again later.")


def _check_of(size_limit: int, data_limit: int, boundary: Boundary) -> Check:
    def check(before: Draft, after: object) -> Draft:
        if isinstance(after, Draft):
            if after.room_id == before.room_id and after.user_id == before.user_id:
                data = valid_data(after.data, data_limit)
                content = valid_content(after.content, size_limit, may_be_empty=bool(data))
                if content is after.content and data is after.data and after.epoch is before.epoch:
                    return after
                return replace(after, content=content, data=data, epoch=before.epoch)
            wrong = "a draft of another room or user"
        else:
            wrong = f"{type(after).__name__}, not a draft"
            if asyncio.iscoroutine(after):
                after.close()
        try:
            boundary.failed("middleware", "wrong_answer", f"it returned {wrong}")
        except AdapterFailure:
            raise AdapterError("A middleware gave a wrong answer, so the message was refused.") from None

    return check
