"""An async client of a chat, for services, bots and tests, that loses nothing: it resumes, and sends again.

from chatx.client import Client, Message

async with Client("wss://example.org/socket", token=token) as client, client.room("general", history=50) as room:
    await room.send("Hello")
    async for event in room:
        if isinstance(event, Message):
            print(event.user, event.content)

It needs the extra `client`.
"""

from chatx.client.client import Client
from chatx.client.errors import (
    ClientClosed,
    ClientError,
    HistoryRefused,
    JoinRefused,
    OutboxFull,
    SendRefused,
    SendUnknown,
)
from chatx.client.events import Event, Gap, Message, NotSent, Presence, Sent, State
from chatx.client.options import Options
from chatx.client.room import Room
from chatx.client.storage import OutboxStorage, SQLiteOutbox, StoredSend

__all__ = [
    "Client",
    "ClientClosed",
    "ClientError",
    "Event",
    "Gap",
    "HistoryRefused",
    "JoinRefused",
    "Message",
    "NotSent",
    "Options",
    "OutboxFull",
    "OutboxStorage",
    "Presence",
    "Room",
    "SQLiteOutbox",
    "SendRefused",
    "SendUnknown",
    "Sent",
    "State",
    "StoredSend",
]
