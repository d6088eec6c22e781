"""The hardened boundary: whatever an adapter does, a room and other users' sends do not notice.

An adapter can raise (also `SystemExit`, `CancelledError` or `KeyboardInterrupt`), hang, answer wrongly, return None,
swallow cancellation, or send to the room itself. Here each becomes one of two things: an answer, or a contained
`AdapterFailure` that is logged with the adapter's name and counted. Auth and moderation fail closed.

Rules:
1. Whether a method is plain or async is decided once, when the chat is built; so is whether it takes the right number
   of arguments.
2. Every call that awaits runs in a task of its own, bounded by the timeout; one that ignores its cancellation is left
   behind, and the caller goes on.
3. A plain persistence or notifier method runs in a thread; a thread that outlives the timeout is reported as still
   running by `AdapterFailure.running`, so that the same message is not given to it twice at a time. A coroutine as its
   answer is a wrong one: what it was asked for has not been done.
4. Saving, reading, notifying and dead letters have threads of their own (`caller`). While a call waits for a thread the
   adapter's time does not run; one that waits as long as a call may take is not made (`busy`).
5. What a signal's handler raises, such as a real Ctrl+C, goes through: it ends the process, whatever code it meets.
6. A call whose caller was cancelled before it began is not made, and after `close` none is begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn, TypeAlias

from chatx.adapters.threads import AdapterThreads, Busy
from chatx.core.interrupts import from_signal
from chatx.core.log_limit import LogLimit
from chatx.core.message import Draft, Message
from chatx.errors import AdapterError, Blocked, ChatError, Closed, ConfigError, Unauthorized
from chatx.telemetry import Telemetry

logger: logging.Logger = logging.getLogger("chatx")


Caller: TypeAlias = Callable[..., Coroutine[Any, Any, Any]]
"""`(name, function, *args, **kwargs)` -> the answer; what `Boundary.caller` returns."""

LOGGED_PER_MINUTE = 10
"""Failures of one adapter and kind that are logged within a minute; the next line says how many were not."""

TEXT_CHARACTERS = 500
"""The longest text of a failure in a log or an error, in characters; the rest is left out."""


class AdapterFailure(Exception):
    """A call of an adapter failed. Contained: it is no `ChatError` and never reaches a user.

    Attributes:
        failure: `raised`, `timeout` or `wrong_answer`; where it was not called, `busy` (earlier calls have its threads)
            or `stopped`.
        running: A future that ends when the call that timed out does, or None.
    """

    def __init__(self, failure: str, cause: str, running: asyncio.Future[Any] | None = None) -> None:
        super().__init__(cause)
        self.failure = failure
        self.running = running


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether calling the function gives a coroutine: `async def`, a partial of one, an object with one."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # asks for the method itself, not whether it is callable
    )


def check_method(role: str, adapter: object, name: str, *args: object, **kwargs: object) -> None:
    """Check that an adapter has a method that can be called so.

    Raises:
        ConfigError: It has not, or the method does not take these arguments.
    """
    method = getattr(adapter, name, None)
    if not callable(method):
        raise ConfigError(
            f"The {role} adapter {adapter_name(adapter)} has no method {name}(); see chatx.adapters.protocols."
        )
    if inspect.isclass(adapter):
        raise ConfigError(
            f"The {role} adapter is the class {adapter.__name__}; give an instance: {adapter.__name__}()."
        )
    check_arguments(f"{name}() of the {role} adapter {adapter_name(adapter)}", method, *args, **kwargs)


def check_arguments(what: str, function: Callable[..., Any], *args: object, **kwargs: object) -> None:
    """Check that a function can be called so.

    Raises:
        ConfigError: It does not take these arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables written in C have no signature; they show it when called
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        expected = ", ".join([*("<" + str(arg) + ">" for arg in args), *(f"{name}=" for name in kwargs)])
        raise ConfigError(f"{what} must take ({expected}), but it is {signature}: {error}.") from None


def adapter_name(adapter: object) -> str:
    """Return what to call an adapter in logs and errors."""
    return getattr(adapter, "__qualname__", None) or type(adapter).__qualname__


class Boundary:
    """Calls adapters for one chat and contains what they do. Needs a running loop for calls that await.

    Attributes:
        failures: How many calls failed, by adapter name.
    """

    def __init__(self, timeout_ms: int, telemetry: Telemetry) -> None:
        self.timeout_s: float = timeout_ms / 1000
        self._telemetry = telemetry
        self._running: dict[
            asyncio.Future[Any], asyncio.Future[None]
        ] = {}  # what is called, and what its caller awaits
        self._threads: dict[str, AdapterThreads] = {}
        self._closed = False
        self._logged: dict[tuple[str, str], LogLimit] = {}
        self.failures: dict[str, int] = {}

    def plain(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call an adapter's plain function here and now; return its answer.

        Raises:
            ChatError: As the function raised it.
            AdapterFailure: It raised anything else.
        """
        try:
            return function(*args)
        except ChatError:
            raise
        # Whatever an adapter raises, CancelledError and SystemExit too, is its own failure and not its caller's end.
        except BaseException as error:
            if from_signal(error):
                raise
            return self.failed(name, "raised", error, args=args)

    async def awaiting(self, name: str, function: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """Await a call of an async function, within the timeout; errors as `plain`."""
        self._check_open()

        # Whatever calling it does, it does within the task. A task hands SystemExit and the like on to the loop, which
        # would end: so they leave it as an answer.
        async def run() -> Any:
            try:
                return await function(*args, **kwargs)
            except (Exception, asyncio.CancelledError):
                raise
            except BaseException as error:
                if from_signal(error):
                    raise
                return _Raised(error)

        return await self._bounded(name, asyncio.get_running_loop().create_task(run()), None, args)

    async def in_thread(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Await a call of a plain function in a thread, within the timeout; errors as `plain`."""
        return await self._in_thread("", name, function, *args, **kwargs)

    async def call(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Await a call of an adapter that may block: in a task if it is async, else in a thread."""
        return await self._call("", name, function, *args, **kwargs)

    def caller(self, kind: str) -> Caller:
        """Return a `call` whose threads only calls of this kind share, so that other kinds are not held up."""
        return functools.partial(self._call, kind)

    def failed(
        self,
        name: str,
        failure: str,
        cause: object,
        running: asyncio.Future[Any] | None = None,
        *,
        args: tuple[object, ...] = (),
    ) -> NoReturn:
        """Count and log a failure of a call with these arguments, and raise it as `AdapterFailure`."""
        self.failures[name] = self.failures.get(name, 0) + 1
        error = cause if isinstance(cause, BaseException) else None
        text = _text(cause)
        logged = self._logged.setdefault((name, failure), LogLimit(LOGGED_PER_MINUTE))
        if (left_out := logged.due(time.monotonic())) is not None:
            logger.error(
                "The adapter %s failed (%s): %s%s",
                name,
                failure,
                text,
                f" ({left_out} failures like it were not logged)" if left_out else "",
                exc_info=error,
                extra={"adapter": name, "code": failure, **_about(args)},
            )
        if self._telemetry.watched("adapter_failure"):
            self._telemetry.emit("adapter_failure", {}, {"adapter": name, "failure": failure})
        raise AdapterFailure(failure, text, running) from error

    async def close(self, timeout_s: float) -> None:
        """Cancel the calls under way and end the threads; a call that ignores it for `timeout_s` is left and logged."""
        self._closed = True
        running = set(self._running)
        for future in running:
            future.cancel()
        if running:
            await asyncio.wait(running, timeout=timeout_s)
        hung = sum(not future.done() for future in running)
        hung += sum(await asyncio.gather(*(each.close(timeout_s) for each in self._threads.values())))
        self._threads.clear()
        if hung:
            logger.error(
                "%d adapter calls did not end within %.1f s and were left behind.",
                hung,
                timeout_s,
                extra={"code": "timeout", "calls": hung},
            )

    def _check_open(self) -> None:
        if self._closed:
            raise AdapterFailure("stopped", "The chat was stopped, so the adapter was not called.")

    async def _call(self, kind: str, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if is_async(function):
            return await self.awaiting(name, function, *args, **kwargs)
        return await self._in_thread(kind, name, function, *args, **kwargs)

    async def _in_thread(self, kind: str, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._check_open()
        threads = self._threads.get(kind)
        if threads is None:
            threads = self._threads[kind] = AdapterThreads()
        try:
            future = threads.run(function, *args, **kwargs)
        except Busy as busy:
            self.failed(name, "busy", str(busy), args=args)
        answer = await self._bounded(name, future, threads, args)
        if inspect.iscoroutine(answer):
            answer.close()
            wrong = "it is a plain function and answered a coroutine; make it `async def`"
            self.failed(name, "wrong_answer", wrong, args=args)
        return answer

    async def _bounded(
        self, name: str, future: asyncio.Future[Any], threads: AdapterThreads | None, args: tuple[object, ...]
    ) -> Any:
        future.add_done_callback(self._ended)
        try:
            await self._wait(future, self.timeout_s)
            if threads is not None and not future.done():
                if threads.withdraw(future):
                    had = f"earlier calls have had all of its threads for {self.timeout_s} s"
                    self.failed(name, "busy", had, args=args)
                # The time that it waited for a thread is not the adapter's.
                began = threads.begun_at(future)
                now = future.get_loop().time()
                # None: it has just returned, and the answer is on its way here.
                left = self.timeout_s - (0.0 if began is None else now - began)
                if left > 0:
                    await self._wait(future, left)
        except asyncio.CancelledError:
            if threads is not None:
                threads.withdraw(future)
            future.cancel()
            raise
        if not future.done():
            if threads is None:
                future.cancel()
            self.failed(name, "timeout", f"no answer within {self.timeout_s} s", future, args=args)
        if future.cancelled():
            if self._closed:
                raise AdapterFailure("stopped", "The chat was stopped before the adapter answered.")
            self.failed(name, "raised", "it raised CancelledError", args=args)
        error = future.exception()
        if error is None:
            answer = future.result()
            if isinstance(answer, _Raised):
                self.failed(name, "raised", answer.error, args=args)
            return answer
        try:
            if isinstance(error, ChatError):
                raise error
            return self.failed(name, "raised", error, args=args)
        finally:
            del error, future  # its traceback has this frame: together they would wait for the collector

    async def _wait(self, future: asyncio.Future[Any], seconds: float) -> None:
        """Wait until a call has ended, so many seconds at most.

        As `asyncio.wait` does, with which a message that an adapter is asked about would cost a quarter more.
        """
        loop = future.get_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._running[future] = waiter
        timer = loop.call_later(seconds, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()

    def _ended(self, future: asyncio.Future[Any]) -> None:
        _wake(self._running.pop(future))
        if not future.cancelled():
            future.exception()  # seen, so that asyncio does not report it as never retrieved


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Raised:
    """What an async adapter raised that a task must not."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Guard:
    """One question to auth or moderation, answered True or refused.

    Attributes:
        awaits: Whether `ask_awaiting` must be used.
    """

    def __init__(
        self,
        boundary: Boundary,
        role: str,
        adapter: object,
        method: str,
        refusal: type[Unauthorized | Blocked],
    ) -> None:
        self._boundary = boundary
        self._name = adapter_name(adapter)
        self._role = role
        self._ask = getattr(adapter, method)
        self._refusal = refusal
        self.awaits: bool = is_async(self._ask)

    def ask(self, *args: Any) -> None:
        """Ask a plain adapter.

        Raises:
            Unauthorized: Or `Blocked`: the adapter said no.
            AdapterError: It failed, so the answer is no.
        """
        # Inline rather than through `Boundary.plain`: this is on every message's way.
        try:
            answer = self._ask(*args)
        except self._refusal:
            raise
        # Whatever an adapter raises, CancelledError and SystemExit too, is its own failure and not its caller's end.
        except BaseException as error:
            if from_signal(error):
                raise
            raise self._failed("raised", error, args) from None
        if answer is not True:
            raise self._no(answer, args)

    async def ask_awaiting(self, *args: Any) -> None:
        """Ask an async adapter; errors as `ask`."""
        try:
            answer = await self._boundary.awaiting(self._name, self._ask, *args)
        except self._refusal:
            raise
        except ChatError as error:
            raise self._failed("raised", error, args) from None
        except AdapterFailure as failure:
            if failure.failure == "stopped":
                raise Closed("The chat was stopped before the adapter answered.") from None
            raise self._refused() from None
        if answer is not True:
            raise self._no(answer, args)

    def _no(self, answer: object, args: tuple[str, ...]) -> ChatError:
        if answer is False:
            return self._refusal()
        if inspect.iscoroutine(answer):
            answer.close()
        wrong = f"it answered {type(answer).__name__}, and must answer True or False"
        return self._failed("wrong_answer", wrong, args)

    def _failed(self, failure: str, cause: object, args: tuple[str, ...]) -> AdapterError:
        with contextlib.suppress(AdapterFailure):
            self._boundary.failed(self._name, failure, cause, args=args)
        return self._refused()

    def _refused(self) -> AdapterError:
        return AdapterError(f"The {self._role} adapter {self._name} failed, so this was refused; try again later.")


def _about(args: tuple[object, ...]) -> dict[str, str]:
    """Return as fields of the log which user and room a call was about, where its arguments say so."""
    match args:
        case (str() as user_id, str() as room_id, "join" | "subscribe" | "send"):
            return {"user": user_id, "room": room_id}
        case (str() as user_id, Message() as message):
            return {"user": user_id, "room": message.room_id}
        case (Draft() | Message() as sent,):
            return {"user": sent.user_id, "room": sent.room_id}
    return {}  # a text alone may be what somebody wrote, which is not for the log


def _text(cause: object) -> str:
    """Return the text of a failure; of an exception whose text cannot be had, its class."""
    try:
        text = f"{type(cause).__name__}: {cause}" if isinstance(cause, BaseException) else str(cause)
    except BaseException as error:
        if from_signal(error):
            raise
        return type(cause).__name__
    return text if len(text) <= TEXT_CHARACTERS else text[:TEXT_CHARACTERS] + "…"
