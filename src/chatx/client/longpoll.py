"""Long-polling, where no WebSocket gets through: plain requests, by the library `httpx2`.

That library, not a few lines over a socket, since a network that lets no WebSocket through mostly has a proxy, and a
proxy has its own ways. It is loaded when it is needed first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, Final

from msgspec import DecodeError, Struct, json

from chatx.client.wire import Cut, NotOpened, seconds_of
from chatx.extras import needs
from chatx.gateway.wire.posts import MAX_POST_BYTES, MAX_POST_MESSAGES

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

_POLL_S: Final = 25.0
"""How long a poll may take; the server holds one for 10 s."""

_TRIES: Final = 3
"""How often a poll is made whose response was lost: the server has the same for it again, four times."""

_PAUSE_S: Final = 0.3


class _Answer(Struct):
    status: int
    token: str | None = None
    messages: list[str] = []


class LongPoll:
    """A session of polls."""

    def __init__(self, http: AsyncClient, url: str, token: str) -> None:
        self._http = http
        self._url = url
        self._token = token
        self._read: deque[str] = deque()  # one response at most, which the server bounds
        self._polling: asyncio.Task[_Answer] | None = None
        self._cut: Cut | None = None

    async def read(self) -> str:
        """Return the next frame; raise `Cut` where the session has ended."""
        while not self._read:
            if self._cut is not None:
                raise self._cut
            self._polling = asyncio.get_running_loop().create_task(self._poll())
            try:
                await asyncio.wait([self._polling])
                if self._polling.cancelled():
                    continue  # it was aborted
                answer = self._polling.result()
            finally:
                self._polling.cancel()
            if answer.token is not None:
                self._token = answer.token
            self._read.extend(answer.messages)
        return self._read.popleft()

    async def write(self, frames: Sequence[str]) -> None:
        """Write frames, in posts of as many as the server takes; raise `Cut` where the session has ended."""
        lines: list[bytes] = []
        size = 0
        for frame in frames:
            line = frame.encode()
            if lines and (size + len(line) + 1 > MAX_POST_BYTES or len(lines) == MAX_POST_MESSAGES):
                await self._post(lines)
                lines, size = [], 0
            lines.append(line)
            size += len(line) + 1
        if lines:
            await self._post(lines)

    async def close(self) -> None:
        """Break off the poll, at which the server ends the session soon."""
        self.abort()
        await self._http.aclose()

    def abort(self) -> None:
        """End it at once: who reads is told."""
        self._cut = self._cut or Cut(1006, "the polling ended")
        if self._polling is not None:
            self._polling.cancel()

    async def _poll(self) -> _Answer:
        for tries_left in reversed(range(_TRIES)):
            try:
                return await self._asked("GET", timeout=_POLL_S)
            except _Lost as lost:
                if not tries_left:
                    raise Cut(1006, f"a poll failed: {lost}") from lost
                await asyncio.sleep(_PAUSE_S)
        raise AssertionError("unreachable")

    async def _post(self, lines: list[bytes]) -> None:
        try:
            await self._asked("POST", content=b"\n".join(lines), headers={"Content-Type": "application/x-ndjson"})
        except _Lost as lost:  # whether it was taken is not known: the next connection finds out
            cut = self._cut = Cut(1006, f"a post failed: {lost}")
            self.abort()
            raise cut from lost

    async def _asked(self, method: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> _Answer:
        response = await _request(
            self._http, method, self._url, headers={"X-Phoenix-Longpoll-Token": self._token, **(headers or {})}, **more
        )
        answer = _answer(response)
        if answer.status not in {200, 204}:
            cut = self._cut = Cut(1006, f"the polling session ended ({answer.status})")
            self.abort()
            raise cut
        return answer


class _Lost(Exception):
    """A request has no response, or one that cannot be read."""


async def open_longpoll(
    url: str, token: str | None, headers: Mapping[str, str], within_s: float, tls: SSLContext | None
) -> LongPoll:
    """Begin to poll.

    Args:
        url: The whole of it, with its query.
        token: What travels as a header, as phoenix.js has it.
        headers: Further ones.
        within_s: How long each request may take that is no poll.
        tls: What to trust, or None for what the system does.

    Raises:
        NotOpened: The server refused, or there was none; it says why.
        ConfigError: `httpx2` is not installed.
    """
    with needs("client", "long-polling of chatx.client"):
        from httpx2 import AsyncClient
    every = dict(headers) if token is None else {**headers, "X-Phoenix-AuthToken": token}
    http = AsyncClient(headers=every, timeout=within_s, verify=True if tls is None else tls)
    try:
        response = await _request(http, "GET", url)
        answer = _answer(response)
        if answer.status == 410 and answer.token is not None:
            return LongPoll(http, url, answer.token)
        raise NotOpened(f"the server answered {answer.status} to a poll", retry_after=seconds_of(response.headers))
    except _Lost as error:
        await http.aclose()
        raise NotOpened(f"a poll failed: {error}") from error
    except BaseException:
        await http.aclose()
        raise


async def _request(http: AsyncClient, method: str, url: str, **more: Any) -> Response:
    from httpx2 import HTTPError

    try:
        return await http.request(method, url, **more)
    except HTTPError as error:
        raise _Lost(f"{type(error).__name__}: {error}") from error


def _answer(response: Response) -> _Answer:
    try:
        return json.decode(response.content, type=_Answer)
    except DecodeError as error:
        raise _Lost(f"HTTP {response.status_code}, and no answer of a chat") from error
