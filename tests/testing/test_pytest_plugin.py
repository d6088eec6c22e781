"""The fixtures, as a project that uses chatx sees them: in a pytest of its own."""

import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

HEAD = """
import asyncio
import threading

import pytest

from chatx import Chat
from chatx.testing import ChatClient
"""


@pytest.fixture
def pytest_with(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], pytest.RunResult]:
    """Runs a test file in a pytest that has no plugin but ours: the fixtures must bear that."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(test: str) -> pytest.RunResult:
        pytester.makepyfile(HEAD + test)
        return pytester.runpytest_inprocess("-p", "chatx.testing.pytest_plugin", "-p", "no:cacheprovider")

    return run


def test_pytest_finds_the_fixtures_by_an_entry_point() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    plugin = import_module(project["entry-points"]["pytest11"]["chatx"])
    assert {"chatx_run", "chatx_chat"} <= set(vars(plugin))


def test_a_plain_test_runs_a_chat_on_virtual_time(pytest_with: Callable[[str], pytest.RunResult]) -> None:
    pytest_with("""
def test_hello_reaches_bob(chatx_run, chatx_chat):
    async def main():
        async with chatx_chat(message_size_limit=5) as chat, ChatClient(chat, "bob") as bob:
            assert isinstance(chat, Chat) and chat.config.message_size_limit == 5
            await bob.join("general")
            await asyncio.sleep(3600)
            await chat.send_message("general", "alice", "hello")
            await bob.expect_message("hello")
            return asyncio.get_running_loop().time()

    assert chatx_run(main()) == 3600
""").assert_outcomes(passed=1)


def test_every_way_to_stop_a_chat_is_fine(pytest_with: Callable[[str], pytest.RunResult]) -> None:
    pytest_with("""
class Saves:
    async def save_message(self, message):
        await asyncio.sleep(0.1)

class Blocks:
    def save_message(self, message):
        pass

def test_stops(chatx_run, chatx_chat):
    async def main():
        one, two = chatx_chat(persistence=Saves()), chatx_chat(persistence=Saves())
        await one.start()
        await two.start()
        await one.send_message("general", "alice", "hello")
        await asyncio.gather(one.stop(), one.stop())
        await two.stop()
        await two.stop()
        async with two:
            pass

    chatx_run(main())

def test_never_started(chatx_chat):
    chatx_chat()

def test_raises(chatx_run, chatx_chat):
    async def main():
        async with chatx_chat() as chat:
            await chat.join("general", "alice")
            raise LookupError

    with pytest.raises(LookupError):
        chatx_run(main())

def test_on_a_loop_of_its_own(chatx_chat):
    async def main():
        async with chatx_chat(persistence=Blocks()) as chat:
            await chat.send_message("general", "alice", "hello")

    asyncio.run(main())
""").assert_outcomes(passed=4)


def test_a_chat_that_is_not_stopped_fails_the_test(pytest_with: Callable[[str], pytest.RunResult]) -> None:
    result = pytest_with("""
def test_forgets(chatx_run, chatx_chat):
    async def main():
        await chatx_chat().start()

    chatx_run(main())
""")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["1 chat(s) were not stopped; use `async with chat`."])


def test_a_task_that_outlives_the_chat_fails_the_test(pytest_with: Callable[[str], pytest.RunResult]) -> None:
    result = pytest_with("""
def test_leaks(chatx_run, chatx_chat):
    async def main():
        async with chatx_chat():
            task = asyncio.create_task(asyncio.sleep(9), name="chatx delivery")
            mine = asyncio.create_task(asyncio.sleep(9))

    chatx_run(main())
""")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["A chat stopped and left behind: the task 'chatx delivery'."])


def test_a_thread_that_outlives_the_chat_fails_the_test(pytest_with: Callable[[str], pytest.RunResult]) -> None:
    result = pytest_with("""
begun, go = threading.Event(), threading.Event()

class Hangs:
    def save_message(self, message):
        begun.set()
        go.wait()

def test_leaks(chatx_chat):
    async def main():
        chat = chatx_chat(persistence=Hangs(), drain_timeout_ms=1, delivery_tick_ms=1)
        async with chat:
            await chat.send_message("general", "alice", "hello")
            while not begun.is_set():
                await asyncio.sleep(0.001)

    asyncio.run(main())

def test_comes_after(chatx_chat):
    async def main():
        async with chatx_chat():
            pass

    asyncio.run(main())
    go.set()
""")
    # The next test is not blamed for it.
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["A chat stopped and left behind: the thread 'chatx-adapter'."])
