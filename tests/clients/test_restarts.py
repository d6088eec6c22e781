"""What the official client of Phoenix Channels makes of a server that stops, freezes or is killed, and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.clients.peers import OpenPeer, Peer
from tests.clients.restarts import server
from tests.gateway.real_client import until
from tests.gateway.servers import SHELLS

pytestmark = [
    pytest.mark.process,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.parametrize("shell", SHELLS),
]


async def come(open_peer: OpenPeer, port: int, user: str, **options: Any) -> Peer:
    """Open a client that joins room `a`."""
    peer = await open_peer(port)
    await peer.connect(port, user, reconnect_ms=50, **options)
    await peer.join("room:a")
    return peer


def places(peer: Peer) -> list[tuple[str, int]]:
    return [(each["epoch"], each["offset"]) for each in peer.messages()]


async def test_a_server_that_is_stopped_and_started_again_misses_and_doubles_nothing(
    shell: str, open_peer: OpenPeer, tmp_path: Path
) -> None:
    async with server(shell, tmp_path / "chat.sqlite3") as running:
        ada = await come(open_peer, running.port, "ada")
        bob = await come(open_peer, running.port, "bob")
        expected: list[str] = []
        epochs: set[str] = set()
        for life in range(2):
            said = await ada.say(f"life {life}")
            # The other has gone too, and what is said meanwhile is for both to catch up.
            await running.stop()
            await ada.expect("failed")
            payload = {"content": f"while away {life}", "key": f"key {life}"}
            await ada.do("push", channel="main", event="new_message", payload=payload, id=f"away {life}")
            await running.start(*(f"first {life}-{number}" for number in range(70)))
            for peer in (ada, bob):
                head = (await peer.expect("joined"))["head"]
                assert (head["epoch"], head["recovered"]) == (said["epoch"], True)
            epochs.add(said["epoch"])
            await ada.expect("reply", id=f"away {life}", status="ok")
            expected += [f"life {life}", *(f"first {life}-{number}" for number in range(70)), f"while away {life}"]
            assert sorted(await ada.has_seen(len(expected))) == sorted(expected)
        assert await bob.has_seen(len(expected)) == ada.contents()
        assert [each for each in ada.contents() if "away" not in each] == [
            each for each in expected if "away" not in each
        ]
        assert (
            places(ada) == places(bob) == [(epoch, number + 1) for epoch in epochs for number in range(len(expected))]
        )


async def test_a_server_that_is_killed_says_that_messages_may_be_missing_and_the_history_has_what_was_saved(
    shell: str, open_peer: OpenPeer, tmp_path: Path
) -> None:
    async with server(shell, tmp_path / "chat.sqlite3") as running:
        ada = await come(open_peer, running.port, "ada")
        said = await ada.say("before")
        await until(lambda: running.saved() == 1)
        await running.kill()
        await ada.expect("failed")
        await running.start("meanwhile")
        head = (await ada.expect("joined"))["head"]
        assert (head["recovered"], head["reason"]) == (False, "epoch_changed")
        assert head["epoch"] != said["epoch"]
        # What was said meanwhile is behind the head, or comes live.
        await until(lambda: running.saved() == 2)
        _, history = await ada.push("history")
        assert [each["content"] for each in history["messages"]] == ["before", "meanwhile"]
        await ada.say("after")
        await ada.until(lambda: ada.contents()[-1] == "after")
        assert [each for each in ada.contents() if each != "meanwhile"] == ["before", "after"]
        assert len(set(places(ada))) == len(places(ada))


async def test_a_server_that_is_killed_where_all_is_stored_misses_and_doubles_nothing(
    shell: str, open_peer: OpenPeer, tmp_path: Path
) -> None:
    async with server(shell, tmp_path / "chat.sqlite3", "stored") as running:
        ada = await come(open_peer, running.port, "ada")
        said = await ada.say("before")
        await running.kill()
        await ada.expect("failed")
        meanwhile = [f"meanwhile {number}" for number in range(70)]
        await running.start(*meanwhile)
        head = (await ada.expect("joined"))["head"]
        assert (head["epoch"], head["recovered"]) == (said["epoch"], True)
        await ada.has_seen(71)
        assert ada.contents() == ["before", *meanwhile]
        assert places(ada) == [(said["epoch"], number) for number in range(1, 72)]
        place = {"epoch": said["epoch"], "offset": 1}
        _, history = await ada.push("history", {"after": place, "limit": 60})
        assert [each["content"] for each in history["messages"]] == meanwhile[:60]
        assert history["more"] is True


async def test_a_server_that_is_killed_while_everybody_talks_leaves_no_gap_unannounced(
    shell: str, open_peer: OpenPeer, tmp_path: Path
) -> None:
    async with server(shell, tmp_path / "chat.sqlite3") as running:
        ada = await come(open_peer, running.port, "ada")
        bob = await come(open_peer, running.port, "bob")
        for number in range(200):
            payload = {"content": f"m{number}"}
            await ada.do("push", channel="main", event="new_message", payload=payload, id=number)
            if number == 100:
                await bob.has_seen(1)
                await running.kill()
                await running.start("alive again")
        for peer in (ada, bob):
            await peer.until(lambda: len(peer.told("joined")) > 1)  # noqa: B023
        await ada.say("the last")
        for peer in (ada, bob):
            await peer.until(lambda: peer.contents()[-1] == "the last")  # noqa: B023
            seen = [int(each[1:]) for each in peer.contents() if each.startswith("m")]
            assert seen == sorted(set(seen))
            # What the peers check in the end is that it is whole but for this.
            (_, *rejoined) = peer.told("joined")
            assert [each["head"].get("reason") for each in rejoined] == ["epoch_changed"]


async def test_a_server_that_is_frozen_is_noticed_and_nothing_of_it_is_missed(
    shell: str, open_peer: OpenPeer, tmp_path: Path
) -> None:
    async with server(shell, tmp_path / "chat.sqlite3") as running:
        ada = await come(open_peer, running.port, "ada", heartbeat_ms=500)
        running.freeze()
        running.say("thawed")
        # No heartbeat is answered.
        await ada.expect("failed")
        running.thaw()
        assert (await ada.expect("joined"))["head"]["recovered"] is True
        await ada.say("back")
        assert await ada.has_seen(2) == ["thawed", "back"]
        await ada.until(lambda: ada.told("synced")[-1]["here"] == {"ada": 1})
        await running.stop()
