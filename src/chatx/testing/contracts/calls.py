"""Calls of one adapter as the engine makes them; a failure is an assertion that names the call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from chatx.adapters.boundary import AdapterFailure, Boundary, adapter_name, is_async
from chatx.config import ChatConfig
from chatx.errors import ChatError, ConfigError
from chatx.telemetry import Telemetry


class Calls:
    """Calls one adapter as the engine does; a failure is an assertion that names the call."""

    def __init__(self, role: str, adapter: object, boundary: Boundary) -> None:
        self._adapter = adapter
        self._boundary = boundary
        self._role = role
        self._name = adapter_name(adapter)

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method that may block, and must not fail."""
        function = getattr(self._adapter, method)
        try:
            return await self._boundary.call(self._name, function, *args, **kwargs)
        except (AdapterFailure, ChatError) as error:
            raise self.broken(f"{shown(method, args, kwargs)} failed: {cause(error)}; it must not") from error

    async def succeeds(self, method: str, *args: Any) -> bool:
        """Call a method that may fail; return whether it succeeded."""
        try:
            await self._boundary.call(self._name, getattr(self._adapter, method), *args)
        except (AdapterFailure, ChatError):
            return False
        return True

    async def ask(self, method: str, *args: Any) -> Any:
        """Call a method that must not block; a `ChatError` that it raises goes through to the caller."""
        function = getattr(self._adapter, method)
        try:
            if is_async(function):
                return await self._boundary.awaiting(self._name, function, *args)
            return self._boundary.plain(self._name, function, *args)
        except AdapterFailure as failure:
            raise self.broken(f"{shown(method, args, {})} failed: {cause(failure)}; it must answer") from failure

    def expect(self, holds: bool, otherwise: str) -> None:
        """Raise that the contract is broken, as `otherwise` says, unless `holds`."""
        if not holds:
            raise self.broken(otherwise)

    def broken(self, what: str) -> AssertionError:
        """Return the failed assertion that says how the adapter breaks its contract."""
        return AssertionError(f"The {self._role} adapter {self._name} breaks its contract: {what}.")


@asynccontextmanager
async def calls_of(
    role: str, adapter: object, timeout_s: float, check: Callable[[object], None] | None = None
) -> AsyncIterator[Calls]:
    """Check an adapter, by default by building a chat's configuration with it, and give its calls until the end."""
    boundary = Boundary(round(timeout_s * 1000), Telemetry())
    calls = Calls(role, adapter, boundary)
    try:
        if check is not None:
            check(adapter)
        else:
            options: dict[str, Any] = {role: adapter}
            ChatConfig(**options)
    except ConfigError as error:
        raise calls.broken(f"a Chat refuses it: {error.reason.rstrip('.')}") from error
    try:
        yield calls
    finally:
        await boundary.close(timeout_s)


def shown(method: str, args: Sequence[object], kwargs: dict[str, Any]) -> str:
    """Return a call as one would write it."""
    parts = [*(brief(repr(each)) for each in args), *(f"{name}={value!r}" for name, value in kwargs.items())]
    return f"{method}({', '.join(parts)})"


def brief(text: str) -> str:
    """Return a text, cut after 300 characters."""
    return text if len(text) <= 300 else f"{text[:300]}..."


def cause(error: AdapterFailure | ChatError) -> str:
    """Return what the adapter raised."""
    return repr(error.__cause__) if error.__cause__ is not None else repr(error)
