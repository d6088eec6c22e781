"""Several processes with a chat each: one line of the log says so where it can be known, and none where it is alone."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest

from chatx import Chat
from chatx.adapters.sqlite import SQLitePersistence
from chatx.runtime import siblings
from tests.process import ENVIRONMENT, Served, module

APP = Path(__file__).with_name("workers_app.py")
UVICORN = ("uvicorn", "workers_app:app", "--port", "{port}")
HYPERCORN = ("hypercorn", "workers_app:app", "--bind", "localhost:{port}")
GRANIAN = ("granian", "--interface", "asgi", "--port", "{port}", "workers_app:app")
GUNICORN = (
    "gunicorn",
    "--worker-class",
    "uvicorn_worker.UvicornWorker",
    "--bind",
    "localhost:{port}",
    "workers_app:app",
)
SEVERAL = "one of several workers of"
REFUSED = "Another chat writes to"


def until_they_run(server: Served, many: int) -> str:
    """Return what the server has printed when so many chats run; each says what it has to say before that."""
    assert server.process.stdout is not None
    printed = ""
    while printed.count(" runs\n") < many:
        line = server.process.stdout.readline()
        assert line, printed
        printed += line
    return printed


@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [
        (*UVICORN, "--workers", "2"),
        (*UVICORN, "--workers", "2", "--loop", "uvloop"),
        (*HYPERCORN, "--workers", "2"),
        (*HYPERCORN, "--workers", "2", "--worker-class", "uvloop"),
        (*GRANIAN, "--workers", "2"),
        (*GUNICORN, "--workers", "2"),
    ],
    ids=["uvicorn", "uvicorn uvloop", "hypercorn", "hypercorn uvloop", "granian", "gunicorn"],
)
def test_of_several_workers_one_says_so(command: tuple[str, ...]) -> None:
    with module(*command, cwd=APP.parent) as server:
        printed = until_they_run(server, 2)

    assert printed.count(f"{SEVERAL} {command[0]}, and each has a chat of its own") == 1
    assert "or make them nodes of one chat with cluster_strategy 'horde' or 'pg' and a cluster_url." in printed


@pytest.mark.process
@pytest.mark.parametrize("command", [UVICORN, GUNICORN], ids=["uvicorn", "gunicorn"])
def test_the_number_of_workers_may_come_from_the_environment(command: tuple[str, ...]) -> None:
    with module(*command, cwd=APP.parent, WEB_CONCURRENCY="2") as server:
        assert until_they_run(server, 2).count(SEVERAL) == 1


@pytest.mark.process
@pytest.mark.parametrize(
    "command, environment",
    [
        (UVICORN, {}),
        ((*UVICORN, "--workers", "1"), {}),
        ((*UVICORN, "--reload"), {}),
        ((*UVICORN, "--reload"), {"WEB_CONCURRENCY": "4"}),
        (HYPERCORN, {}),
        ((*HYPERCORN, "--reload"), {}),
        (GRANIAN, {}),
        (GUNICORN, {}),
    ],
    ids=[
        "uvicorn",
        "one worker",
        "reload",
        "reload and WEB_CONCURRENCY",
        "hypercorn",
        "hypercorn reload",
        "granian",
        "gunicorn",
    ],
)
def test_one_worker_says_nothing(command: tuple[str, ...], environment: dict[str, str], tmp_path: Path) -> None:
    with module(*command, cwd=APP.parent, STORE=str(tmp_path / "chat.db"), **environment) as server:
        printed = until_they_run(server, 1)

    assert SEVERAL not in printed
    assert REFUSED not in printed


@pytest.mark.process
def test_a_chat_that_is_never_stopped_leaves_no_warning_of_what_it_holds(tmp_path: Path) -> None:
    program = """
import asyncio, gc
from chatx import Chat
from chatx.adapters.sqlite import SQLitePersistence
store = SQLitePersistence("chat.db")
chat = Chat(persistence=store)
asyncio.run(chat.start())
del chat
gc.collect()
store.close()
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not known who holds a name")
def test_a_name_is_held_by_one_until_it_lets_go() -> None:
    first, second = siblings.Claim("a name"), siblings.Claim("a name")
    assert (first.held, second.held, siblings.Claim("another").held) == (True, False, True)
    second.release()
    assert siblings.Claim("a name").held is False
    first.release()
    assert siblings.Claim("a name").held is True


class NoSockets:
    """What a system that lets a process have no more sockets says to each."""

    def __init__(self, *arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")


async def test_a_system_that_lets_nothing_be_held_keeps_no_chat_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = SQLitePersistence(tmp_path / "chat.db")
    with monkeypatch.context() as limited:
        limited.setattr(socket, "socket", NoSockets)
        assert siblings.Claim("a name").held is None
        async with Chat(persistence=store) as chat:
            assert (await chat.send_message("room", "ada", "hello")).offset == 1
    store.close()
    assert caplog.records == []


# At the foot of a stack, as a server has it there.


def wrapped(worker_id: object) -> Any:
    return siblings._server_of_several()


def spawn_worker(self: object) -> Any:
    return siblings._server_of_several()


def subprocess_started(config: object) -> Any:
    return siblings._server_of_several()


def as_in(named: str, function: Callable[[Any], Any], argument: object) -> Any:
    return FunctionType(function.__code__, {**globals(), "__name__": named})(argument)


def uvicorns(workers: int, should_reload: bool) -> SimpleNamespace:
    return SimpleNamespace(workers=workers, should_reload=should_reload)


@pytest.mark.parametrize(
    "named, function, argument, expected",
    [
        ("gunicorn.arbiter", spawn_worker, SimpleNamespace(num_workers=2), "gunicorn"),
        ("gunicorn.arbiter", spawn_worker, SimpleNamespace(num_workers=1), None),
        ("granian.server.mp", wrapped, 2, "granian"),
        ("granian.server.mp", wrapped, 1, None),
        ("uvicorn._subprocess", subprocess_started, uvicorns(4, False), "uvicorn"),
        ("uvicorn._subprocess", subprocess_started, uvicorns(4, True), None),
    ],
)
def test_a_server_says_how_many_workers_it_has(
    named: str, function: Callable[[Any], Any], argument: object, expected: str | None
) -> None:
    assert as_in(named, function, argument) == expected


@pytest.mark.parametrize(
    "named, argument",
    [
        ("gunicorn.arbiter", object()),
        ("gunicorn.arbiter", SimpleNamespace(num_workers="two")),
        ("another.server", SimpleNamespace(num_workers=2)),
    ],
    ids=["changed", "changed its kind", "unknown"],
)
def test_a_server_that_is_unknown_or_has_changed_is_not_asked(named: str, argument: object) -> None:
    assert as_in(named, spawn_worker, argument) is None
