"""The demo as an ASGI application: one page, its files, and the socket."""

from __future__ import annotations

import unicodedata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatx.adapters.sqlite import SQLitePersistence
from chatx.chat import Chat
from chatx.errors import Blocked
from chatx.gateway.handshake import Handshake

PAGE = Path(__file__).parent / "page"

HEADERS = [
    (
        b"content-security-policy",
        (
            b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
            b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    # The page is small and changes with the version: always ask whether it still is the newest.
    (b"cache-control", b"no-cache"),
]


class NoShouting:
    """The demo's moderation: it refuses what is written in capitals only, to show what a refusal looks like."""

    def check(self, content: str) -> bool:
        """Refuse capitals."""
        letters = [character for character in content if character.isalpha()]
        if len(letters) > 10 and content.upper() == content and content.lower() != content:
            raise Blocked("No shouting, please: write it in small letters.")
        return True


def demo_app(store: str) -> Starlette:
    """Return the demo, with its messages in the SQLite file `store`; it runs once.

    People name themselves: it is a demo, and there is nothing to protect. An application asks its own session.

    Raises:
        ConfigError: The file cannot be used.
    """
    persistence = SQLitePersistence(store)
    chat = Chat(persistence=persistence, moderation=NoShouting())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with closing(persistence):
            async with chat:
                yield

    return Starlette(
        routes=[
            Route("/", _page),
            Mount("/static", StaticFiles(directory=PAGE)),
            Mount("/socket", chat.asgi(authenticate=_named_by_itself)),
        ],
        middleware=[Middleware(_Headers)],
        lifespan=lifespan,
    )


async def _page(request: Request) -> Response:
    return FileResponse(PAGE / "index.html")


def _named_by_itself(handshake: Handshake) -> str | None:
    # Names are shown to people: two that look alike must be one.
    return unicodedata.normalize("NFKC", handshake.params.get("user_id", "")).strip() or None


class _Headers:
    """Adds the security headers to every HTTP response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)
