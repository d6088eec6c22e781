"""A chat in somebody's ASGI application, for uvicorn; `PROOF_STORE` is where it keeps its messages."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route

from chatx import Chat
from tests.gateway.servers import named

chat = Chat(store=os.environ["PROOF_STORE"], durability="stored")


def page(request: object) -> HTMLResponse:
    return HTMLResponse("<!doctype html><title>proof</title>")


app = Starlette(
    routes=[Route("/", page), Mount("/socket", chat.asgi(authenticate=named))],
    lifespan=chat.lifespan,
)
