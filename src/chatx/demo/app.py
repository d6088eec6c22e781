"""The demo as a FastAPI application: a channel page over a WebSocket, and a live page that the server renders.

People name themselves: it is a demo, and there is nothing to protect. The channel page says its name in the address of
its socket, so that two tabs can be two people; the live page keeps it in a cookie. An application asks its own session
in `_name_in_socket` and `_name_in_cookie`, and changes nothing else.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatx.chat import Chat
from chatx.core.message import Event
from chatx.core.validation import valid_id
from chatx.demo.nodes import Nodes, add_nodes, page_with_nodes
from chatx.errors import Blocked, ChatError
from chatx.gateway.entry.handshake import Handshake
from chatx.integrations import html
from chatx.integrations.starlette import SCRIPT, http_status, snapshot

HERE = Path(__file__).parent
PAGE = HERE / "page"
NAME_PAGE = Template((HERE / "name.html").read_text(encoding="utf-8"))
LIVE_PAGE = Template((HERE / "live.html").read_text(encoding="utf-8"))

COOKIE = "chatx_name"
FORM_BYTES = 262_144
LINE_BREAK = re.compile("\r\n|[\v\f\r\x85\u2028\u2029]")

TRIES = {
    "shouting": ["WHY IS NOBODY ANSWERING?"],
    "flooding": [f"A flood of messages, {number} of 30" for number in range(1, 31)],
}
"""What buttons of the page send: a text that the moderation refuses, and more at once than the rate limit allows."""

POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    # The pages are small and change with the version: always ask whether it still is the newest.
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


def demo_app(store: str | None, nodes: Nodes | None = None, **options: Any) -> FastAPI:
    """Return the demo as an application. Its chat is `app.state.chat`.

    Args:
        store: Where messages are kept, as the option of this name.
        nodes: What is shown of the nodes, where this is one of several.
        options: Further options of the chat.

    Raises:
        ConfigError: There is no such store.
    """
    chat = Chat(store=store, moderation=NoShouting(), **options)
    app = FastAPI(lifespan=chat.lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.chat = chat
    app.add_middleware(_Headers)
    app.mount("/socket", chat.asgi(authenticate=_name_in_socket))
    app.mount("/static", StaticFiles(directory=PAGE))

    # The page itself asks with HEAD whether the server is back.
    @app.head("/")
    @app.get("/")
    def channel_page() -> Response:
        page = PAGE / "index.html"
        return FileResponse(page) if nodes is None else page_with_nodes(page.read_text(encoding="utf-8"))

    @app.get("/live.js")
    def live_script() -> FileResponse:
        return FileResponse(SCRIPT)

    @app.get("/live")
    async def live_page(request: Request, room: str = "general") -> Response:
        name = _name_in_cookie(request)
        return await _live_page(chat, name, room) if name else _name_page("", room)

    @app.get("/live/events")
    async def live_events(request: Request, room: str = "general") -> Response:
        name = _name_in_cookie(request)
        return chat.live(room, _renders_for(name), user_id=name) if name else Response(status_code=403)

    @app.post("/live")
    async def live_message(request: Request, room: str = "general") -> Response:
        name, form = _name_in_cookie(request), await _form(request)
        if not name:
            return _name_page("", room, "You have left. Pick a name to write again.", 403)
        content = form.get("content", "")
        try:
            if tried := TRIES.get(form.get("try", "")):
                for text in tried:
                    await chat.send_message(room, name, text)
            else:
                await chat.send_message(room, name, content, idempotency_key=form.get("key"))
        except ChatError as error:
            return await _live_page(chat, name, room, error, content)
        return RedirectResponse(_live_address(room), 303)

    @app.post("/live/name")
    async def live_name(request: Request) -> Response:
        form = await _form(request)
        name, room = _shown(form.get("name", "")), _shown(form.get("room", ""))
        try:
            valid_id(name, "Your name")
            valid_id(room, "The room")
        except ChatError as error:
            return _name_page(name, room, error.reason)
        response = RedirectResponse(_live_address(room), 303)
        # Lax: another site can link here, but a form of its own comes without the name.
        response.set_cookie(COOKIE, quote(name, safe=""), path="/live", httponly=True, samesite="lax")
        return response

    @app.post("/live/leave")
    def live_leave(room: str = "general") -> Response:
        response = RedirectResponse(_live_address(room), 303)
        response.delete_cookie(COOKIE, path="/live", httponly=True, samesite="lax")
        return response

    if nodes is not None:
        add_nodes(app, nodes)
    return app


# A form that is shown again is a page like any other, with status 200: a browser would log another one as a failure.


async def _live_page(chat: Chat, name: str, room: str, error: ChatError | None = None, draft: str = "") -> HTMLResponse:
    try:
        shown = await snapshot(chat, room, _renders_for(name), user_id=name)
    except ChatError as problem:
        return _name_page(name, room, problem.reason, http_status(problem))
    page = LIVE_PAGE.substitute(
        room=html.text(room),
        query=html.text(urlencode({"room": room})),
        me=html.text(name),
        messages=shown.messages,
        people=shown.people,
        count=shown.count,
        after=html.text(shown.after),
        notice=_notice(error, draft) if error is not None else "",
        draft=html.text(draft),
        key=uuid.uuid4().hex,
    )
    return HTMLResponse(page, headers={"cache-control": "no-store"})


def _name_page(name: str, room: str, problem: str = "", status: int = 200) -> HTMLResponse:
    query = html.text(urlencode({"room": room}))
    page = NAME_PAGE.substitute(name=html.text(name), room=html.text(room), query=query, problem=html.text(problem))
    return HTMLResponse(page, status, {"cache-control": "no-store"})


def _notice(error: ChatError, draft: str) -> str:
    """Return in a person's words, as HTML, why a message was refused."""
    words = {
        "blocked": f"This message was not let through by the room's moderation. {error.reason}",
        "rate_limited": "You are sending faster than this room allows.",
        "message_too_large": f"This message is too long ({len(draft.encode()):,} bytes). Please shorten it.",
        "room_overloaded": "The room is very busy right now.",
    }.get(error.code, error.reason)
    still = "Your text is still here" if draft else ""
    again = "try again in a moment" if error.retry_after is not None else ""
    rest = "; ".join(filter(None, (still, again)))
    rest = f"<p>{rest[0].upper()}{rest[1:]}.</p>" if rest else ""
    return f'<div class="notice-body"><p class="notice-words">{html.text(words)}</p>{rest}</div>'


def _renders_for(name: str) -> Callable[[Event], str]:
    return partial(html.render, me=name)


def _live_address(room: str) -> str:
    return f"/live?{urlencode({'room': room})}"


def _shown(name: str) -> str:
    # Names are shown to people: two that look alike must be one.
    return unicodedata.normalize("NFKC", name).strip()


def _name_in_socket(handshake: Handshake) -> str | None:
    return _shown(handshake.params.get("user_id", "")) or None


def _name_in_cookie(request: Request) -> str:
    return _shown(unquote(request.cookies.get(COOKIE, "")))


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form; each line break in them is one newline, those of office programs too."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > FORM_BYTES:
            raise HTTPException(413)
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=10, errors="strict")
    except ValueError:
        raise HTTPException(400) from None
    return {name: LINE_BREAK.sub("\n", values[0]) for name, values in fields.items()}


class _Headers:
    """A middleware that adds the security headers to each HTTP response, but for those that it has already."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(each for each in HEADERS if each[0] not in own)]
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)
