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
    """People name themselves here; yours returns the user of handshake.cookies or handshake.token, None to refuse."""
    return handshake.params.get("user_id")


app.mount("/socket", chat.asgi(authenticate=who))
app.mount("/static", StaticFiles(directory=PAGE))


@app.get("/")
def page() -> FileResponse:
    return FileResponse(PAGE / "index.html")
