"""Every curl on the page about the API does what the page says, against `chatx serve`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.docs.markdown import ROOT, Block, blocks
from tests.process import Served, free_port

PAGE = ROOT / "docs" / "api.md"
SHOWN = blocks(PAGE, "bash", "json")
ASKED = [(block, answer) for block, answer in zip(SHOWN, [*SHOWN[1:], None], strict=True) if "curl" in block.code]
TOKEN = "0123456789abcdef0123456789abcdef"

DRAWN = {"id", "inserted_at", "epoch"}
"""What is another at each run."""


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    server = Served("serve", free_port(), CHATX_ADMIN_TOKEN=TOKEN, CHATX_SECRET=TOKEN)
    try:
        server.wait_until_it_answers()
        yield server
    finally:
        status, output = server.stop()
        assert status == 0, output


def settled(value: Any) -> Any:
    """Return an answer without what is another at each run; an id that is no message's is the page's own."""
    if isinstance(value, dict):
        drawn = DRAWN if "content" in value else DRAWN - {"id"}
        return {name: None if name in drawn else settled(each) for name, each in value.items()}
    return [settled(each) for each in value] if isinstance(value, list) else value


@pytest.mark.process
def test_each_request_is_answered_as_the_page_shows(server: Served) -> None:
    assert len(ASKED) >= 7
    for block, answer in ASKED:
        said = _run(block, server)
        if isinstance(answer, Block) and answer.language == "json":
            assert settled(json.loads(said)) == settled(json.loads(answer.code)), block.name
        elif "openapi.json" in block.code:
            assert json.loads(said)["openapi"] == "3.1.1"
        else:
            assert said == "", block.name


def _run(block: Block, server: Served) -> str:
    code = block.code.replace("http://localhost:4000", server.url)
    assert code != block.code
    ran = subprocess.run(
        ["bash", "-euc", code.replace("curl ", "curl -sS --max-time 20 ")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": os.environ["PATH"], "CHATX_ADMIN_TOKEN": TOKEN},
    )
    assert (ran.returncode, ran.stderr) == (0, ""), block.name
    return ran.stdout
