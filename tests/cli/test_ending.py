"""How `chatx serve` ends, whatever adapters leave running and whenever signals come."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatx.cli import main
from chatx.cli.ending import Ending, close_loop
from tests import process
from tests.cli.conftest import imported_anew
from tests.gateway.real_client import real_client

ADAPTERS = """
import asyncio
import time


class Deaf:
    async def save_message(self, message):
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass


class InThread:
    async def save_message(self, message):
        await asyncio.to_thread(time.sleep, 3600)


class Blocks:
    async def save_message(self, message):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            time.sleep(3600)


async def hung_letter(letter):
    await asyncio.sleep(3600)


class Fails:
    def save_message(self, message):
        raise OSError("down")
"""


@contextlib.asynccontextmanager
async def serving_with(folder: Path, adapter: str, **options: object) -> AsyncIterator[process.Served]:
    """Serve with one of these adapters, which has been called."""
    (folder / "mine.py").write_text(ADAPTERS)
    lines = [f'persistence = "mine:{adapter}"', *(f"{name} = {json.dumps(value)}" for name, value in options.items())]
    (folder / "chatx.toml").write_text("\n".join(["[chatx]", *lines]))
    with process.serve("--insecure-user-param", "--config", "chatx.toml", cwd=folder) as server:
        async with real_client(server.port, "ada", close_timeout=0.1) as ada:
            await ada.ask("room:a", "phx_join")
            await ada.ask("room:a", "new_message", {"content": "hello"})
            yield server


@pytest.mark.process
@pytest.mark.parametrize("adapter, status", [("Deaf", 0), ("InThread", 0), ("Blocks", 1)])
async def test_an_adapter_that_hangs_does_not_keep_it_from_ending(adapter: str, status: int, tmp_path: Path) -> None:
    async with serving_with(tmp_path, adapter, drain_timeout_ms=2000) as server:
        server.process.send_signal(signal.SIGTERM)
        ended, output = await asyncio.to_thread(server.wait)

    assert ended == status
    assert ("Stopped." in output) == (status == 0)
    assert ("ended hard" in output) == (status == 1)
    assert "is a dead letter" in output or status == 1


@pytest.mark.process
async def test_a_second_signal_does_not_wait_for_what_hangs(tmp_path: Path) -> None:
    async with serving_with(
        tmp_path,
        "Fails",
        on_dead_letter="mine:hung_letter",
        drain_timeout_ms=600_000,
        adapter_timeout_ms=600_000,
        delivery_max_retries=0,
    ) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.stdout is not None
        while "Draining" not in await asyncio.to_thread(server.process.stdout.readline):
            pass
        ended, output = await asyncio.to_thread(server.stop)

    assert ended == 1
    assert "second signal" in output


@pytest.mark.process
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_as_soon_as_it_listens_drains_it(how: signal.Signals) -> None:
    server = process.Served("serve", process.free_port(), "--insecure-user-param")
    assert server.process.stdout is not None
    with server.process.stdout as lines:
        while "Listening" not in lines.readline():
            assert server.process.poll() is None
        status, output = server.stop(how)

    assert status == 0
    assert "Stopped." in output


@pytest.fixture
def signals_restored() -> Iterator[None]:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    # Not as what runs in the background is begun.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def test_within_a_program_it_returns_its_status_leaves_no_thread_and_swallows_no_further_signal(
    signals_restored: None, quiet_logging: None
) -> None:
    port = process.free_port()

    def stop_it() -> None:
        while True:
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/readyz", timeout=5):
                    break
            except OSError:
                continue
        os.kill(os.getpid(), signal.SIGTERM)

    threads = set(threading.enumerate())
    stopping = threading.Thread(target=stop_it, daemon=True)
    stopping.start()
    status = main(["serve", "--insecure-user-param", "--port", str(port)])
    stopping.join()

    assert status == 0
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        assert signal.getsignal(each) is signal.SIG_DFL
    left = set(threading.enumerate()) - threads
    for thread in left:  # the one that would have ended it hard needs a moment to see that it is not needed
        thread.join(10)
    assert not any(thread.is_alive() for thread in left)


@pytest.mark.parametrize("missing", ["prometheus_client", "starlette.requests"])
def test_whatever_is_not_installed_is_named_with_its_extra(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with imported_anew("chatx.gateway.operations", "chatx.cli.settings", "chatx.cli.workers"):
        monkeypatch.setitem(sys.modules, missing, None)
        assert main(["serve", "--insecure-user-param"]) == 1
    said = capsys.readouterr().err
    assert missing in said
    assert "pip install 'chatx-engine[gateway]'" in said


# Its parts


def test_a_loop_is_closed_though_a_task_does_not_heed_its_cancellation() -> None:
    loop = asyncio.new_event_loop()
    ended: list[str] = []

    async def deaf() -> None:
        with contextlib.suppress(GeneratorExit):
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await loop.create_future()

    async def generator() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            ended.append("generator")

    async def well_behaved() -> None:
        try:
            async for _ in generator():
                await loop.create_future()
        finally:
            ended.append("task")

    async def begin() -> list[Any]:
        tasks = [loop.create_task(each()) for each in (deaf, well_behaved)]
        await asyncio.sleep(0)
        return tasks

    tasks = loop.run_until_complete(begin())

    assert close_loop(loop, 0.1) == 1
    assert loop.is_closed()
    assert sorted(ended) == ["generator", "task"]
    assert [task.done() for task in tasks] == [False, True]
    # Both loops say of such a task only that it was never done; here that is known.
    tasks[0]._log_destroy_pending = False


def test_threads_begun_since_that_python_would_wait_for_are_counted() -> None:
    go = threading.Event()
    own = threading.Thread(target=go.wait)
    own.start()
    ending = Ending()
    threads = [threading.Thread(target=go.wait, daemon=daemon) for daemon in (True, False, False)]
    for each in threads:
        each.start()

    assert ending.threads_left(0.01) == 2
    go.set()
    assert ending.threads_left(10) == 0
    for each in (own, *threads):
        each.join()


def test_a_process_that_hangs_is_ended_with_the_status_that_was_set() -> None:
    for status in (0, 1):
        code = (
            f"import chatx.cli.ending as e, time; w = e.Ending(); w.status = {status}; w.within(0.01); time.sleep(60)"
        )
        assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == status
