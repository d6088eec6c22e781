"""The clients of chatx lose, double and reorder nothing, whatever the network and the server do, nor tell a gap.

`SEED=` draws the same faults again, and `TEST_LONG=1` ten minutes of them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.clients.proof.play import CLIENTS, play
from tests.gateway.servers import SHELLS

SECONDS = 600.0 if os.environ.get("TEST_LONG") else 60.0
KINDS = ("python",)

pytestmark = [pytest.mark.process, pytest.mark.browser, pytest.mark.timeout(SECONDS + 400)]


@pytest.mark.parametrize("shell", SHELLS)
async def test_what_is_sent_while_all_is_cut_reaches_everybody_once_and_in_order(shell: str, tmp_path: Path) -> None:
    async with play(shell, tmp_path, KINDS) as playing:
        print(f"SEED={playing.seed}")
        for kind in KINDS:
            await playing.join(kind, CLIENTS)
        await playing.talk(SECONDS)
        found = await playing.calm()
        print(playing.met, sum(len(each.sends) for each in playing.witnesses.values()))
        assert (found, playing.failed) == ({"a": [], "b": []}, [])
