"""What a line of the log says about a room, a user or a reason is in fields too, for logs that machines read."""

import ast
import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

import chatx
from chatx import AdapterError, Chat, ChatError, Event, Message, RoomUnavailable
from chatx.core.message import Draft
from chatx.runtime.turn import Turn
from tests.faults import Broken
from tests.virtual import turns, unlimited, virtual

PACKAGE = Path(chatx.__file__).parent


def fields(caplog: pytest.LogCaptureFixture, part: str) -> dict[str, Any]:
    """Return the fields of the one line that has this text."""
    (record,) = [each for each in caplog.records if part in each.getMessage()]
    return {name: getattr(record, name) for name in ("room", "user", "code", "adapter") if hasattr(record, name)}


@pytest.mark.parametrize(
    "path", [*sorted(PACKAGE.glob("runtime/*.py")), *sorted(PACKAGE.glob("adapters/*.py"))], ids=str
)
def test_every_line_has_fields(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            logs = isinstance(node.func.value, ast.Name) and node.func.value.id == "logger"
            named = {keyword.arg for keyword in node.keywords}
            assert not logs or "extra" in named, f"{path.name}:{node.lineno} logs without fields"


def repr_of(each: object) -> str:
    return each if isinstance(each, str) else type(each).__name__


class Auth:
    def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        raise Broken


class AsyncAuth:
    async def authorize(self, user_id: str, room_id: str, action: str) -> Any:
        return None


class SlowAuth:
    async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        await asyncio.sleep(60)
        return True


@pytest.mark.parametrize(
    "auth, code",
    [(Auth(), "raised"), (AsyncAuth(), "wrong_answer"), (SlowAuth(), "timeout")],
    ids=repr_of,
)
@virtual
async def test_a_failing_auth_adapter_names_the_room_and_the_user(
    auth: Any, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Chat(auth=auth) as chat:
        with pytest.raises(AdapterError):
            await chat.join("general", "alice")
        found = fields(caplog, "The adapter")
        assert found == {"room": "general", "user": "alice", "code": code, "adapter": type(auth).__name__}


class Notifier:
    async def notify(self, user_id: str, message: Message) -> None:
        raise Broken


@virtual
async def test_a_failing_notifier_names_whom_it_did_not_tell_and_of_which_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Chat(notifier=Notifier(), delivery_max_retries=0) as chat:
        await chat.join("general", "bob")
        await chat.send_message("general", "alice", "hi")
        await asyncio.sleep(1)
        found = fields(caplog, "The adapter")
        assert found == {"room": "general", "user": "bob", "code": "raised", "adapter": "Notifier"}


@virtual
async def test_a_failing_middleware_names_the_room_and_who_sent(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(draft: Draft) -> Draft:
        raise Broken

    async with Chat(middlewares=(fails,)) as chat:
        with pytest.raises(AdapterError):
            await chat.send_message("general", "alice", "a secret")
        found = fields(caplog, "The adapter")
        assert (found["room"], found["user"], found["code"]) == ("general", "alice", "raised")


class Moderation:
    def check(self, content: str) -> bool:
        raise Broken


@virtual
async def test_what_somebody_wrote_is_no_field(caplog: pytest.LogCaptureFixture) -> None:
    async with Chat(moderation=Moderation()) as chat:
        with pytest.raises(AdapterError):
            await chat.send_message("general", "alice", "a secret")
        assert fields(caplog, "The adapter") == {"code": "raised", "adapter": "Moderation"}
        assert not any("a secret" in str(record.__dict__) for record in caplog.records)


@virtual
async def test_a_crash_and_a_callback_that_raises_name_the_room(caplog: pytest.LogCaptureFixture) -> None:
    async with unlimited() as chat:

        def fails(_: Event) -> None:
            raise Broken

        def fails_at_its_end(_: ChatError) -> None:
            raise Broken

        await chat.subscribe_callback("general", fails, on_closed=fails_at_its_end)  # type: ignore[unused-awaitable]
        await chat.send_message("general", "alice", "hi")
        assert fields(caplog, "is out") == {"room": "general", "code": "subscriber_failed"}
        assert fields(caplog, "at its end raised") == {"room": "general", "code": "subscriber_failed"}
        process = chat.engine.rooms.find("general")
        assert process is not None
        with pytest.raises(RoomUnavailable):
            process._contained(lambda: 1 / 0)
        assert fields(caplog, "crashed and") == {"room": "general", "code": "room_unavailable"}


@virtual
async def test_a_telemetry_handler_that_raises_names_what_it_was_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async with unlimited() as chat:

        def fails(*event: object) -> None:
            raise Broken

        chat.telemetry.attach("room_join", fails)
        await chat.join("general", "alice")
        await turns()
        found = fields(caplog, "telemetry handler")
        assert (found["room"], found["user"]) == ("general", "alice")


class Room:
    """Raises when it is flushed."""

    room_id = "general"

    def flush(self) -> None:
        raise Broken


@virtual
async def test_a_flush_that_raises_names_the_room(caplog: pytest.LogCaptureFixture) -> None:
    turn = Turn(asyncio.get_running_loop())
    with caplog.at_level(logging.ERROR, "chatx"):
        turn.touch(Room())
        turn.end()
    assert fields(caplog, "A flush raised")["room"] == "general"
