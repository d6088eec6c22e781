"""Plain memberships: of a user in a room, without a connection. They live with the room's owner."""

from __future__ import annotations

from chatx.core.validation import valid_id
from chatx.runtime.engine import Engine


async def join_plain(engine: Engine, room_id: str, user_id: str, now_ms: int) -> None:
    """Begin a user's plain membership; errors as `Chat.join`."""
    if engine.elsewhere is None:
        process = await engine.enter(room_id, user_id, "join")
        process.join_plain(user_id, now_ms)
        return
    engine.check_open()
    valid_id(room_id, "room_id")
    valid_id(user_id, "user_id")
    since = engine.revocations.count
    await engine.authorize(user_id, room_id, "join")
    engine.revocations.check(user_id, since)
    if engine.elsewhere.owns(room_id):
        await begin_plain(engine, room_id, user_id, now_ms)
    else:
        await engine.elsewhere.join(room_id, user_id)


async def begin_plain(engine: Engine, room_id: str, user_id: str, now_ms: int) -> None:
    """Begin the plain membership of a user who may, in a room of this node."""
    process = await engine.room(valid_id(room_id, "room_id"))
    process.join_plain(valid_id(user_id, "user_id"), now_ms)


async def leave_plain(engine: Engine, room_id: str, user_id: str) -> None:
    """End a user's plain membership; errors as `Chat.leave`."""
    valid_id(user_id, "user_id")
    process = engine.rooms.find(valid_id(room_id, "room_id"))
    if engine.elsewhere is not None and not engine.elsewhere.owns(room_id):
        await engine.elsewhere.leave(room_id, user_id)
    elif process is not None:
        process.leave_plain(user_id)
