"""`chatx serve --workers`: several processes are one chat on one port, and begin, go on and end as one."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chatx.cli import main
from chatx.cli.workers.data_folder import DataFolder as Data
from tests.cli.supervised import Supervised, chats, runs, supervised, until
from tests.cli.test_serve import ask
from tests.gateway.real_client import real_client
from tests.process import free_port, freeze

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Supervised]:
    """Two workers that all tests share but those that end them; each test leaves them serving."""
    with supervised(folder) as running:
        yield running


async def test_a_message_crosses_from_one_worker_to_the_other(server: Supervised) -> None:
    await chats(server, "general", "hello")


def test_each_line_of_the_one_log_says_whose_it_is(server: Supervised) -> None:
    ready = [each["worker"] for each in server.said("Ready. Clients connect to")]
    name = f"-{server.port}-"
    assert sorted(each[each.index(name) :] for each in ready) == [f"{name}1", f"{name}2"]
    # What is said of all is said once, by who keeps them.
    for text in ("INSECURE", "Listening on", "All 2 workers serve."):
        (said,) = server.said(text)
        assert "worker" not in said


def figures(server: Supervised, name: str) -> dict[str, float]:
    """Return a figure of `/metrics` by the end of the node's name."""
    status, text = ask(server, "/metrics")
    assert status == 200
    (family,) = [each for each in text_string_to_metric_families(text) if each.name == name]
    return {each.labels["node"].rpartition("-")[2]: each.value for each in family.samples}


async def test_figures_are_those_of_all_workers_whichever_is_asked_and_one_that_is_silent_is_told(
    server: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server.client_on("1", "ada"), server.client_on("2", "bob"), server.client_on("2", "eve"):
        for _ in range(5):
            assert figures(server, "chatx_sockets") == {"1": 1, "2": 2}
    assert figures(server, "chatx_up") == {"1": 1, "2": 1}
    freeze(server.children()["2"])
    try:
        assert figures(server, "chatx_up") == {"1": 1, "2": 0}
        assert figures(server, "process_open_fds").keys() == {"1"}
    finally:
        os.kill(server.children()["2"], signal.SIGCONT)
    until(lambda: figures(server, "chatx_up") == {"1": 1, "2": 1})


async def test_a_worker_that_is_killed_is_told_and_begun_again_and_keeps_its_name(server: Supervised) -> None:
    before = server.children()
    os.kill(before["2"], signal.SIGKILL)
    server.wait_for("was ended by SIGKILL, and begins again in 0.5 s.")
    server.wait_for("Ready. Clients connect to", times=3)
    after = server.children()
    assert after["1"] == before["1"]
    assert after["2"] != before["2"]
    await chats(server, "after-a-crash", "still")


async def test_a_broker_that_is_killed_is_begun_again_where_it_was(server: Supervised) -> None:
    os.kill(server.children()["broker"], signal.SIGKILL)
    server.wait_for("The broker was ended by SIGKILL, and begins again in 0 s.")
    linked = len(server.said("the link to NATS is connected"))
    until(lambda: len(server.said("the link to NATS is connected")) >= linked + 2)
    until(lambda: all(_ready(server) for _ in range(20)))
    await chats(server, "after-the-broker", "still")


def _ready(server: Supervised) -> bool:
    return ask(server, "/readyz")[0] == 200


def test_what_reaches_the_broker_is_for_this_user_only_and_the_cluster_can_be_looked_at(
    server: Supervised, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder / "chatx-data"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    for name in ("cluster.toml", "nats.conf"):
        assert stat.S_IMODE((data / name).stat().st_mode) == 0o600
    assert main(["cluster", "status", "--data", str(data)]) == 0
    assert f"-{server.port}-2" in capsys.readouterr().out


async def test_a_worker_that_is_drained_by_its_name_turns_nobody_away_and_begins_again(
    server: Supervised, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = {each["worker"] for each in server.said("Ready. Clients connect to") if each["worker"].endswith("-2")}
    drain = ["cluster", "drain", name, "--data", str(folder / "chatx-data")]
    async with server.client_on("2", "ada") as ada:
        await ada.ask("room:drained", "phx_join")
        ada.connection.transport.pause_reading()  # it does not answer the close, so the drain lasts
        draining = asyncio.create_task(asyncio.to_thread(main, drain))
        await asyncio.to_thread(server.wait_for, "Sockets to send away: 1.")
        for _ in range(10):
            async with real_client(server.port, "bob"):
                pass
        ada.connection.transport.abort()
        assert await draining == 0
    await asyncio.to_thread(server.wait_for, f"Worker {name} was drained, and begins again.")
    until(lambda: figures(server, "chatx_up") == {"1": 1, "2": 1})


def test_nobody_else_has_the_port_or_the_data_meanwhile(
    server: Supervised,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quiet_logging: None,
) -> None:
    monkeypatch.setattr("chatx.cli.workers.data_folder.FREE_WITHIN_S", 0.1)
    monkeypatch.chdir(folder)
    for port, problem in (
        (server.port, f"port {server.port} is taken"),
        (free_port(), "chatx-data is in use: another chatx serve has its broker there"),
    ):
        assert main(["serve", "--insecure-user-param", "--port", str(port), "--workers", "2"]) == 1
        assert problem in capsys.readouterr().err


async def test_they_drain_as_one_and_what_they_kept_is_there_when_they_come_again(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        kept = (tmp_path / "chatx-data" / "cluster.toml").read_text()
        async with real_client(running.port, "ada") as ada:
            await ada.ask("room:kept", "phx_join")
            sent = [await ada.ask("room:kept", "new_message", {"content": str(number)}) for number in range(3)]
        running.process.send_signal(signal.SIGTERM)
        assert running.ends() == 0
        assert len(running.said("Stopped.")) == 3
        assert not running.said("ended")
    with supervised(tmp_path) as again:
        assert (tmp_path / "chatx-data" / "cluster.toml").read_text() == kept
        async with real_client(again.port, "bob") as bob:
            joined = await bob.ask("room:kept", "phx_join", {"epoch": sent[0]["epoch"], "offset": 1})
            assert (joined["recovered"], joined["offset"]) == (True, 3)
        children = again.children()
        assert sorted(children) == ["1", "2", "broker"]
        again.process.kill()
        until(lambda: not any(runs(pid) for pid in children.values()))
        Data(tmp_path / "chatx-data").close()  # and whoever comes next may have the folder
