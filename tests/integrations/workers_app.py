"""An application whose every process says when its chat runs; with `STORE` it keeps messages in that file."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette

from chatx import Chat

chat = Chat(store=os.environ.get("STORE"))


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with chat:
        print(f"the chat of {os.getpid()} runs", flush=True)
        yield


app = Starlette(lifespan=lifespan)
