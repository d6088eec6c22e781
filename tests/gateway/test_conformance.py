"""Autobahn's cases against the native server's own framing: an echo behind the real greeting, handshake and stream."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
from pathlib import Path

import pytest

from chatx.chat import Chat
from chatx.gateway.native import protocol, reading
from chatx.gateway.native.limits import MessageBound
from tests.gateway.echo import EchoEntrance
from tests.gateway.fakes import chatx_tasks
from tests.gateway.real_client import until
from tests.gateway.servers import native

pytestmark = pytest.mark.process

CASES = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*")
NUMBER = 247
OK = ("OK", "OK")

EXCEPTIONS: dict[str, tuple[str, str, int]] = {
    # Text is decoded when its message is whole, so that text which is not UTF-8 is closed then, not at its first octet.
    **{f"6.4.{number}": ("NON-STRICT", "OK", 1007) for number in (1, 2, 3, 4)},
    # 256 KiB are four times what a message may have.
    "7.1.6": ("INFORMATIONAL", "INFORMATIONAL", 1009),
    # Codes that nobody may send: what follows is not laid down. They are answered as other wrong codes are.
    **{f"7.13.{number}": ("INFORMATIONAL", "INFORMATIONAL", 1002) for number in (1, 2)},
}
"""Behaviour, behaviour at the close, and our close code; the same table is in docs/server.md."""

LONG = bool(os.environ.get("TEST_LONG"))
LARGE = ("9.*",) if LONG else ("9.1.6", "9.2.1", "9.3.1", "9.5.1", "9.8.1")

WIDE = 2**25
"""Bytes of a message, where the cases of section 9 are to be let through; their messages have up to 16 MiB."""


async def results(at_once: int, *cases: str) -> dict[str, tuple[str, str, int]]:
    async with Chat(max_connections_per_user=0, mailbox_bytes=2 * WIDE) as chat, native(chat) as (server, port):
        server.entrance = EchoEntrance(chat)
        url = f"ws://127.0.0.1:{port}/socket/websocket?vsn=2.0.0&user_id=autobahn"
        program = Path(__file__).with_name("autobahn.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(program), url, str(at_once), *cases, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await process.communicate()
        assert process.returncode == 0
        await until(lambda: not server.connections and not server.greetings)
        assert chatx_tasks() == []
        return {case: (behaviour, close, code) for case, behaviour, close, code in json.loads(said)}


async def test_the_framing_is_as_the_cases_of_autobahn_want_it() -> None:
    found = await results(16, *CASES)
    assert len(found) == NUMBER
    assert {case: result for case, result in found.items() if result[:2] != OK} == EXCEPTIONS


async def test_messages_of_16_mib_and_of_65536_fragments_are_framed_well_where_the_bounds_let_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "MAX_FRAME_BYTES", WIDE)
    monkeypatch.setattr(reading, "MessageBound", functools.partial(MessageBound, WIDE, 2**20))
    found = await results(4, *LARGE)
    assert len(found) == (54 if LONG else len(LARGE))
    assert {case: result for case, result in found.items() if result[:2] != OK} == {}


async def test_within_the_bounds_the_large_cases_are_closed_with_the_code_that_says_so() -> None:
    found = await results(4, "9.1.1", "9.1.6", "9.3.1", "9.4.9", "9.5.1", "9.7.1")
    assert {case: result[2] for case, result in found.items() if result[:2] != OK} == {
        "9.1.6": 1009,  # 16 MiB
        "9.3.1": 1008,  # 65,536 fragments
        "9.4.9": 1009,
        "9.5.1": 1009,
    }
