"""The command `chatx`: what it prints, where, and its exit status."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette

from chatx import Chat, __version__
from chatx.cli import main
from chatx.config import ChatConfig
from tests.cli.conftest import imported_anew
from tests.process import ENVIRONMENT, demo, free_port, run

COMMANDS = ("demo", "serve", "token", "check", "db", "outbox", "cluster", "bench")
WITHOUT_OPTIONS = ("asyncapi", "openapi")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "chatx.toml"
    file.write_text("[chatx]\nroom_queue_limit = 100\nrate_limit = { messages_per_sec = 2.5, burst = 7 }\n")
    return file


@pytest.mark.parametrize("command", [[], *([name] for name in (*COMMANDS, *WITHOUT_OPTIONS))])
def test_help_is_printed_with_status_0(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    printed = capsys.readouterr()

    assert ended.value.code == 0
    assert printed.out.startswith("usage: chatx")
    assert printed.err == ""
    for named in (*COMMANDS, *WITHOUT_OPTIONS) if not command else ():
        assert f"    {named} " in printed.out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_commands_help_shows_examples_that_its_parser_takes(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out.partition("examples:\n")[2].partition("\n\n")[0]
    # `chatx ARGUMENTS...  what it does`, the two apart by at least two spaces.
    examples = [shlex.split(line.partition(f"chatx {command}")[2].partition("  ")[0]) for line in text.splitlines()]
    taken: list[object] = []

    def take(options: object) -> int:
        taken.append(options)
        return 0

    monkeypatch.setattr(f"chatx.cli.{command}.run", take)

    assert len(examples) >= 3
    assert [main([command, *example]) for example in examples] == [0] * len(examples)
    assert len(taken) == len(examples)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"chatx {__version__}\n"


@pytest.mark.parametrize(
    "arguments, named",
    [
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["demo", "--port", "0"], "--port: '0' is no port; give a whole number from 1 to 65535"),
        (["demo", "--port", "65536"], "65535"),
        (["demo", "--port", "http"], "'http' is no port"),
        (["demo", "--colour", "red"], "--colour"),
    ],
)
def test_wrong_arguments_end_with_2_and_say_which(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()

    assert ended.value.code == 2
    assert printed.out == ""
    assert named in printed.err


# check


def test_check_prints_every_option_with_its_value_in_effect(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(config)]) == 0
    printed = capsys.readouterr()
    shown = dict(line.split(maxsplit=1) for line in printed.out.splitlines())

    assert printed.err == ""
    assert list(shown) == list(ChatConfig().effective())
    assert shown["room_queue_limit"] == "100"
    assert shown["rate_limit"] == "messages_per_sec = 2.5, burst = 7"
    assert shown["middlewares"] == "auth, rate_limit, moderation"
    assert shown["persistence"] == "-"


def test_check_prints_json_that_equals_the_configuration(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", str(config)]) == 0

    assert json.loads(capsys.readouterr().out) == ChatConfig.load(config, env={}).effective()


def test_check_takes_the_environment_first(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATX_ROOM_QUEUE_LIMIT", "55")
    monkeypatch.setenv("CHATX_SECRET", "s3cret")

    assert main(["check", "--json", str(config)]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["room_queue_limit"] == 55
    assert "s3cret" not in printed


@pytest.mark.parametrize(
    "text, named",
    [
        ("[chatx]\nroom_queue_limit = 0", ["room_queue_limit", "0", "at least 1"]),
        ("[chatx]\nroom_queue_limit = true", ["room_queue_limit", "True", "at least 1"]),
        ("[chatx]\nroom_queue_limits = 5", ["room_queue_limits", "5", "did you mean room_queue_limit?"]),
        ("[chatx]\nrate_limit = { burst = 0 }", ["rate_limit.burst", "0", "at least 1"]),
        ('[chatx]\ncluster_strategy = "redis"', ["cluster_strategy", "redis", "local"]),
        ('[chatx]\nauth = "nowhere:Auth"', ["auth", "nowhere:Auth"]),
        ("[other]\nx = 1", ["no table [chatx]"]),
        ("not toml", ["not valid TOML"]),
    ],
)
def test_check_ends_with_2_and_names_the_option_the_value_and_the_bound(
    text: str, named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chatx.toml"
    file.write_text(text)

    assert main(["check", str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("chatx: ")
    for each in named:
        assert each in printed.err

    assert main(["check", "--json", str(file)]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "config_error"
    assert f"chatx: {error['reason']}\n" == printed.err


def test_check_says_that_a_file_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none.toml")]) == 2
    assert "none.toml cannot be read: No such file" in capsys.readouterr().err


def test_check_without_a_file_checks_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATX_HISTORY_SIZE", "9")
    assert main(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["history_size"] == 9


def test_check_tells_all_that_is_wrong_a_line_for_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATX_HISTORY_SIZE", "0")
    monkeypatch.setenv("CHATX_MAILBOXSIZE", "9")
    assert main(["check"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "chatx: CHATX_MAILBOXSIZE ('9') sets no option; did you mean mailbox_size?"
    assert second.startswith("chatx: history_size is 0; ")
    assert main(["check", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert [f"chatx: {problem}" for problem in error["problems"]] == [first, second]


# store


@pytest.mark.parametrize("store", ["a.db", "sqlite:///a.db", "sqlite://", "postgresql://me@db/chat"])
def test_the_demo_the_server_and_check_take_the_same_forms_of_a_store(
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quiet_logging: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    served: list[str | None] = []

    def serve_demo(app: Starlette, *_: object) -> int:
        served.append(app.state.chat.config.store)
        return 0

    monkeypatch.setattr("chatx.cli.demo_serving.serve", serve_demo)

    async def serve(chat: Chat, *rest: object) -> int:
        served.append(chat.config.store)
        return 0

    monkeypatch.setattr("chatx.cli.serve._serve", serve)
    port = str(free_port())
    assert main(["demo", "--port", port, "--store", store]) == 0
    assert main(["serve", "--insecure-user-param", "--port", port, "--store", store]) == 0
    assert served == [store] * 2
    capsys.readouterr()
    # What is given goes before the environment, and that before a file.
    monkeypatch.setenv("CHATX_STORE", "other.db")
    assert main(["check", "--json", "--store", store]) == 0
    assert json.loads(capsys.readouterr().out)["store"] == store.replace("me@", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["check"], ["serve", "--insecure-user-param"]])
def test_a_store_may_come_from_the_environment_or_a_file(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quiet_logging: None,
) -> None:
    file = tmp_path / "chatx.toml"
    file.write_text('[chatx]\nstore = "mongodb://me:hunter2@db/x"\n')
    config = [str(file)] if command[0] == "check" else ["--config", str(file)]
    assert main([*command, *config]) == 2
    assert "There is no store mongodb://db/x" in capsys.readouterr().err
    monkeypatch.setenv("CHATX_STORE", "mysql://me:hunter2@db/x")
    assert main([*command, *config]) == 2
    assert "There is no store mysql://db/x" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["pg://me:hunter2@db/x", "sqlite://me:hunter2@db/x", ""])
def test_the_demo_refuses_a_store_as_the_server_does(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--port", str(free_port()), "--store", url]) == 2
    said = capsys.readouterr().err
    assert said.startswith("chatx: ")
    assert "sqlite:///chat.db" in said
    assert "hunter2" not in said


# asyncapi


def test_asyncapi_prints_the_document_that_is_in_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["asyncapi"]) == 0
    printed = capsys.readouterr()

    assert printed.out == (ROOT / "docs" / "asyncapi.json").read_text(encoding="utf-8")
    assert printed.err == ""


@pytest.mark.process
@pytest.mark.parametrize("name, version", [("asyncapi", "3.0.0"), ("openapi", "3.1.1")])
def test_a_description_needs_no_extra(name: str, version: str) -> None:
    missing = "".join(f"sys.modules[{name!r}] = None; " for name in ("starlette", "uvicorn", "websockets", "h11"))
    code = f"import sys; {missing}from chatx.cli import main; main(['{name}'])"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False, env=ENVIRONMENT
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)[name] == version


# demo


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_taken_port_is_a_clear_error_and_opens_no_store(
    taken_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "demo.db"

    assert main(["demo", "--port", str(taken_port), "--store", str(store)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("chatx: ")
    assert f"--port {taken_port}: port {taken_port} is taken" in printed.err
    assert "--port 4001" in printed.err
    assert not store.exists()


def test_an_address_of_another_machine_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 192.0.2.0/24 is for documentation and never anybody's.
    assert main(["demo", "--host", "192.0.2.1", "--store", str(tmp_path / "demo.db")]) == 1
    assert "--host 192.0.2.1 --port 4000" in capsys.readouterr().err


def test_a_store_that_cannot_be_used_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "notes.txt"
    store.write_text("not a database, but somebody's notes" * 100)

    assert main(["demo", "--port", str(free_port()), "--store", str(store)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"chatx: The store {store}: ")
    assert store.read_text().startswith("not a database")


@pytest.mark.parametrize("missing", ["uvicorn", "starlette"])
def test_a_missing_extra_is_named_with_how_to_install_it(
    missing: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == missing:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)

    with imported_anew("chatx.demo.app", "chatx.cli.demo_serving"):
        assert main(["demo"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "pip install 'chatx-engine[fastapi]'" in printed.err
    assert missing in printed.err


@pytest.mark.process
def test_the_module_is_the_command() -> None:
    ended = run("--version")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"chatx {__version__}\n", "")


@pytest.mark.process
def test_a_reader_that_goes_away_is_no_error(config: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "chatx", "check", str(config)],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
            env=ENVIRONMENT,
        )
    finally:
        os.close(writing)

    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.process
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_demo_serves_its_page_until_it_is_stopped(how: signal.Signals, tmp_path: Path) -> None:
    with demo(tmp_path / "demo.db") as server:
        with urllib.request.urlopen(server.url) as response:
            assert response.status == 200
            assert "script-src 'self'" in response.headers["content-security-policy"]
            assert response.headers["x-content-type-options"] == "nosniff"
            page = response.read().decode()
        for path in ("/static/main.js", "/static/chat.css"):
            assert path in page
            with urllib.request.urlopen(server.url + path) as response:
                assert response.status == 200
        # The page asks so whether the server is back.
        with urllib.request.urlopen(urllib.request.Request(server.url, method="HEAD")) as response:
            assert (response.status, response.read()) == (200, b"")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(server.url + "/socket/websocket")
        assert refused.value.code == 426
        refused.value.close()
        with pytest.raises(urllib.error.HTTPError) as hidden:
            urllib.request.urlopen(server.url + "/static/../app.py")
        assert hidden.value.code == 404
        hidden.value.close()
        status, printed = server.stop(how)

    assert status == 0
    # One line, and no traceback.
    assert printed == f"chatx demo: open {server.url} in two tabs; stop it with Ctrl+C\n"
