"""An application as its users write one, with a live page's stream and a socket: what holds a request open is in it."""

import asyncio
import os

from fastapi import FastAPI, Request, Response

from chatx import Chat
from chatx.gateway import Handshake
from chatx.integrations.html import render

VERSION = "first"

chat = Chat()
app = FastAPI(lifespan=chat.lifespan)


def who(handshake: Handshake) -> str | None:
    return handshake.params.get("user_id")


app.mount("/socket", chat.asgi(authenticate=who))

if os.environ.get("MIDDLEWARE"):

    @app.middleware("http")
    async def passes_on(request: Request, call_next):  # type: ignore[no-untyped-def]  # as users write it
        return await call_next(request)


@app.get("/version")
async def version() -> str:
    return VERSION


@app.get("/loop")
async def loop() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


@app.get("/events")
async def events() -> Response:
    return chat.live("general", render, user_id="ada")
