"""The clients of chatx lose, double and reorder nothing, whatever the network and the server do, nor tell a gap.

`SEED=` draws the same faults again, and `TEST_LONG=1` ten minutes of them, on several workers too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.clients.proof.play import play
from tests.gateway.servers import SHELLS

LONG = bool(os.environ.get("TEST_LONG"))
SECONDS = 600.0 if LONG else 60.0
CLIENTS = 8
"""Of each kind."""

LATE = 2
"""Of these, how many come when others have said something."""

KINDS = ("node", "chromium", "python")

pytestmark = [pytest.mark.process, pytest.mark.browser, pytest.mark.timeout(SECONDS + 400)]


@pytest.mark.parametrize("shell", [*SHELLS, *(["workers"] if LONG else [])])
async def test_what_is_sent_while_all_is_cut_reaches_everybody_once_and_in_order(shell: str, tmp_path: Path) -> None:
    async with play(shell, tmp_path, KINDS) as playing:
        print(f"SEED={playing.seed}")
        for kind in KINDS:
            await playing.join(kind, CLIENTS - LATE)
        await playing.talk(SECONDS, late=LATE)
        wrong = await playing.calm()
        print(playing.met, sum(len(each.sends) for each in playing.witnesses.values()), "sends")
        # The log knows each key for longer than a run takes, so there is no reason to give up a send either.
        assert (wrong, playing.failed) == ([], [])


SPOILED = {"keyless": "doubled: '{name}-", "forgetful": " {name}-\\d: lost: ", "disorderly": " {name}-\\d: reordered: "}
"""Clients that break a promise, and how it shows."""


async def test_a_client_that_breaks_a_promise_is_found_and_those_beside_it_are_not(tmp_path: Path) -> None:
    kinds = ("node", "python")  # what runs in Chromium is what runs in Node
    async with play("native", tmp_path, kinds) as playing:
        print(f"SEED={playing.seed}")
        for kind in kinds:
            await playing.join(kind, 2)
            for spoiled in SPOILED:
                await playing.join(kind, 4, spoiled)
        expected = [text.format(name=f"{kind}-{spoiled}") for kind in kinds for spoiled, text in SPOILED.items()]
        wrong: list[str] = []
        for _ in range(4):
            await playing.talk(15, cuts_per_s=12.0)
            wrong = await playing.calm()
            print(playing.met, sum(len(each.sends) for each in playing.witnesses.values()), "sends")
            assert not [each for each in wrong if re.match(r"\w: (doubled: ')?\w+-sound", each)]
            if all(any(re.search(text, each) for each in wrong) for text in expected):
                return
        pytest.fail(f"not found: {[text for text in expected if not any(re.search(text, each) for each in wrong)]}")
