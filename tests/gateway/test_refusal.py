"""Refusals as an operator reads them: each kind once a minute, whole, bounded, and the same from every shell."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from chatx import Chat, Identity
from chatx.gateway.entry.handshake import Handshake
from chatx.gateway.entry.refusal import MAX_KINDS, MAX_LINE, PAUSE_S, RefusalLog, Refused
from tests.gateway.fakes import FakeServer, settle
from tests.gateway.raw_peer import raw
from tests.gateway.servers import SHELLS, named, served
from tests.longpoll.polling import Call
from tests.virtual import virtual


def scope(origin: str | None = None) -> dict[str, Any]:
    headers = [] if origin is None else [(b"Origin", origin.encode("latin-1"))]
    return {"type": "websocket", "headers": headers, "client": ("192.0.2.7", 40_001)}


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "chatx"]


def test_each_kind_is_told_once_a_minute_with_how_many_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    log = RefusalLog()
    for second in range(100):
        log.tell(Refused(403, "origin", "it is foreign."), scope("https://a.example"), 1000.0 + second)
    assert lines(caplog) == [
        "A client was refused with 403: it is foreign.",
        "A client was refused with 403: it is foreign. (59 more were refused since the last such line.)",
    ]


def test_reasons_and_origins_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    log = RefusalLog()
    for code in ("origin", "full"):
        for origin in ("https://a.example", "https://b.example", None):
            for _ in range(3):
                log.tell(Refused(403, code, f"{code} {origin}"), scope(origin), 0.0)
    assert len(lines(caplog)) == 6
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_flood_of_origins_is_no_flood_of_lines_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    log = RefusalLog()
    for number in range(10_000):
        log.tell(Refused(403, "origin", "it is foreign."), scope(f"https://{number}.example"), number / 1000)
    assert len(lines(caplog)) == MAX_KINDS + 1
    assert len(log) == MAX_KINDS + 1
    log.tell(Refused(403, "origin", "it is foreign."), scope("https://new.example"), 10 + PAUSE_S)
    assert "9934 more" in lines(caplog)[-1] or "9935 more" in lines(caplog)[-1]
    assert len(log) == 1


def test_no_line_and_no_field_is_longer_than_its_bound(caplog: pytest.LogCaptureFixture) -> None:
    RefusalLog().tell(Refused(403, "origin", "x" * 100_000), scope("y" * 100_000), 0.0)
    (record,) = caplog.records
    assert len(record.getMessage()) <= MAX_LINE
    assert len(vars(record)["origin"]) <= 200


def test_one_refusal_is_one_line_whatever_is_in_it(caplog: pytest.LogCaptureFixture) -> None:
    RefusalLog().tell(Refused(403, "x", "a\nb\x1b[2Jc\u2028d" * 300), scope("a\nb"), 0.0)
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) <= MAX_LINE


def test_a_line_has_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    RefusalLog().tell(Refused(403, "full", "no more", user_id="ada"), scope("https://a.example"), 0.0)
    (record,) = caplog.records
    fields = {name: vars(record)[name] for name in ("code", "origin", "address", "user")}
    assert fields == {"code": "full", "origin": "https://a.example", "address": "192.0.2.7", "user": "ada"}


def raises(handshake: Handshake) -> str:
    raise ZeroDivisionError("a fault of the application's")


def expired(handshake: Handshake) -> Identity:
    return Identity("ada", expires_at=1.0)


async def refused_status(port: int, path: str, query: str, headers: dict[str, str]) -> int:
    """Ask to be let in, and return the status: that of HTTP, or for who polls that in the body."""
    asked = {"Host": f"localhost:{port}", **headers}
    if path == "websocket":
        asked |= {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        asked["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    else:
        asked["Connection"] = "close"
    async with raw(port) as (reader, writer):
        lines = [f"GET /socket/{path}?{query} HTTP/1.1", *(f"{name}: {value}" for name, value in asked.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    if path == "websocket":
        return int(head.split()[1])
    status: int = json.loads(body)["status"]
    return status


CASES: list[tuple[dict[str, str], str, Callable[[Handshake], Any], tuple[str, ...]]] = [
    (
        {"Origin": "https://evil.example"},
        "user_id=ada",
        named,
        ("'https://evil.example'", "'http://localhost", "https://listed.example", "--origin", "X-Forwarded-Proto"),
    ),
    ({"Cookie": "session=s3cret"}, "user_id=ada", named, ("cookies", "no Origin")),
    ({}, "vsn=9.0.0&user_id=ada", named, ("9.0.0", "vsn=2.0.0")),
    ({}, "", named, ("authenticate said no", "None")),
    ({}, "user_id=ada", raises, ("authenticate failed (raised): ZeroDivisionError: a fault of the application's",)),
    ({}, "user_id=ada", expired, ("'ada' expired", "new token")),
    ({}, "user_id=ada", lambda handshake: 7, ("authenticate answered a int",)),
]


@pytest.mark.parametrize("headers, query, authenticate, told", CASES)
@pytest.mark.parametrize("path", ["websocket", "longpoll"])
@pytest.mark.parametrize("shell", SHELLS)
async def test_a_refusal_says_what_was_compared_with_what_and_is_the_same_everywhere(
    shell: str,
    path: str,
    headers: dict[str, str],
    query: str,
    authenticate: Callable[[Handshake], Any],
    told: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(shell, Chat(), authenticate, origins=("https://listed.example",)) as port:
        for _ in range(3):
            assert await refused_status(port, path, query, headers) == 403
    (line,) = [record for record in caplog.records if record.getMessage().startswith("A client was refused with 403")]
    assert line.levelno == logging.WARNING
    assert all(each in line.getMessage() for each in told), line.getMessage()
    assert "s3cret" not in caplog.text
    assert "said no" not in line.getMessage() or "said no" in told[0]
    if authenticate is raises:
        assert [record for record in caplog.records if record.exc_info]


@virtual
async def test_a_chat_that_does_not_run_says_once_a_minute_how_to_start_it(caplog: pytest.LogCaptureFixture) -> None:
    app = Chat().asgi(authenticate=named)
    for _ in range(50):
        await FakeServer(app).task
        assert (await Call(app, "GET", "vsn=2.0.0").reply()).http == 503
    (line,) = lines(caplog)
    assert "lifespan=chat.lifespan" in line
    assert "autostart=True" in line


@virtual
async def test_a_chat_that_is_being_stopped_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Slow:
        async def check(self, content: str) -> bool:
            await asyncio.sleep(3)
            return True

    caplog.set_level(logging.INFO, "chatx")
    chat = Chat(moderation=Slow())
    await chat.start()
    sending = asyncio.create_task(chat.send_message("a", "bob", "hi"))
    await settle()
    stopping = asyncio.create_task(chat.stop())
    await settle()
    await FakeServer(chat.asgi(authenticate=named)).task
    await sending
    await stopping
    (record,) = [each for each in caplog.records if "refused" in each.getMessage()]
    assert (record.levelno, "being stopped" in record.getMessage()) == (logging.INFO, True)


class Own(BaseException):
    """What an application may derive from anything."""


@pytest.mark.parametrize(
    "error", [SystemExit, GeneratorExit, KeyboardInterrupt, Own, asyncio.CancelledError, StopIteration, MemoryError]
)
@pytest.mark.parametrize("later", [False, True])
@virtual
async def test_whatever_authenticate_raises_is_its_own_fault(error: type[BaseException], later: bool) -> None:
    asked: list[Handshake] = []

    def answer(handshake: Handshake) -> Identity:
        asked.append(handshake)
        if len(asked) > 1:
            raise error
        return Identity("ada", expires_at=2e10)

    async def answer_later(handshake: Handshake) -> Identity:
        await asyncio.sleep(0)
        return answer(handshake)

    async with Chat(max_connections_per_address=3) as chat:
        app = chat.asgi(authenticate=answer_later if later else answer)
        inside = FakeServer(app, client="192.0.2.7")
        inside.text("own", "room:a", "phx_join")
        await settle()
        ref = inside.text(None, "room:a", "access_token", {"token": "t"})
        await settle()
        status, response = inside.reply(ref)
        assert (status, response["code"], response["retryable"]) == ("error", "adapter_error", True)
        assert inside.closed is None
        for _ in range(5):  # more than there are places, so each was given back
            outside = FakeServer(app, client="192.0.2.7")
            await outside.task
            assert [each["type"] for each in outside.sent] == ["websocket.close"]
        assert len(asked) == 7
        inside.disconnect()
        await inside.task


@pytest.mark.parametrize("autostart", [False, True])
def test_a_server_on_another_loop_than_the_chats_refuses_and_says_so(
    autostart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    chat, home = Chat(), asyncio.new_event_loop()
    home.run_until_complete(chat.start())

    async def elsewhere() -> list[str]:
        server = FakeServer(chat.asgi(authenticate=named, autostart=autostart))
        await server.task
        return [each["type"] for each in server.sent]

    assert asyncio.run(elsewhere()) == ["websocket.close"]
    home.run_until_complete(chat.stop())
    home.close()
    (line,) = lines(caplog)
    assert "the server runs elsewhere than the chat" in line
