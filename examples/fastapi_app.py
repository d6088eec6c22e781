"""The smallest FastAPI application that chats. Run: uvicorn --app-dir examples fastapi_app:app --port 4000"""

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from chatx import Chat
from chatx.demo.app import PAGE
from chatx.gateway import Handshake

chat = Chat()
app = FastAPI(lifespan=chat.lifespan)


def who(handshake: Handshake) -> str | None:
    """For trying it out, people name themselves; yours looks into handshake.cookies or .token, and None refuses."""
    return handshake.params.get("user_id")


app.mount("/socket", chat.asgi(authenticate=who))
app.mount("/static", StaticFiles(directory=PAGE))


@app.get("/")
def page() -> FileResponse:
    return FileResponse(PAGE / "index.html")
