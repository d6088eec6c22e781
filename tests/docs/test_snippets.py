"""Every snippet of the documentation runs, prints what it says, and passes the linters."""

import ast
import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import CodeType

import pytest

from chatx import ChatConfig, ConfigError, cli
from chatx.adapters.stores import shown
from tests.docs.checkers import assert_both_pass
from tests.docs.markdown import PAGES, ROOT, Block, all_blocks, blocks

PYTHON = all_blocks("python")
TOML = all_blocks("toml")
SHELL = all_blocks("sh")

# What a page shows as the output of a line: `print(...)  # -> this`.
_PRINTS = re.compile(r"# -> (.*)$", re.MULTILINE)

_GIVE_UP_S = 20.0


def _names(found: Sequence[Block]) -> list[str]:
    return [block.name for block in found]


def _tests_something(block: Block) -> bool:
    return re.search(r"^(?:async )?def test_", block.code, re.MULTILINE) is not None


def _awaits_at_top_level(code: str) -> bool:
    try:
        compile(code, "snippet", "exec", dont_inherit=True)
    except SyntaxError:
        return True
    return False


async def _run_awaiting(code: CodeType, namespace: dict[str, object]) -> None:
    async with asyncio.timeout(_GIVE_UP_S):
        await eval(code, namespace)


@pytest.mark.parametrize("block", [each for each in PYTHON if not _tests_something(each)], ids=lambda each: each.name)
def test_python_snippets_run_and_print_what_they_say(
    block: Block, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Tracebacks then point at the page.
    source = "\n" * (block.line - 1) + block.code
    code = compile(source, block.page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    namespace: dict[str, object] = {"__name__": "snippet"}
    if _awaits_at_top_level(block.code):
        asyncio.run(_run_awaiting(code, namespace))
    else:
        exec(code, namespace)
    assert capsys.readouterr().out.splitlines() == _PRINTS.findall(block.code)


@pytest.mark.process
@pytest.mark.parametrize("block", [each for each in PYTHON if _tests_something(each)], ids=lambda each: each.name)
def test_snippets_that_are_tests_pass(block: Block, tmp_path: Path) -> None:
    (tmp_path / "test_snippet.py").write_text(block.code, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    # With chatx's own plugin and no other, as a reader may have it.
    plugins = ["-p", "chatx.testing.pytest_plugin", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", *plugins, "test_snippet.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.process
@pytest.mark.slow
def test_python_snippets_pass_the_linters_and_the_type_checker(tmp_path: Path) -> None:
    for block in PYTHON:
        code = block.code
        if _awaits_at_top_level(code):
            code = "async def snippet() -> None:\n" + textwrap.indent(code, "    ")
        name = re.sub(r"\W", "_", block.name)
        (tmp_path / f"{name}.py").write_text(f'"""{block.name}."""\n\n{code}', encoding="utf-8")
    # A snippet shows one thing: it has no docstrings, prints, asserts, and keeps no blank lines that the page wraps.
    assert_both_pass(tmp_path, "snippets", "D,I001,INP,PT,S101,T20")


@pytest.mark.parametrize("block", TOML, ids=lambda each: each.name)
def test_toml_snippets_are_valid_configurations(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "chatx.toml"
    path.write_text(block.code, encoding="utf-8")
    table = tomllib.loads(block.code)
    given = table.get("chatx") or table["tool"]["chatx"]
    effective = ChatConfig.load(path, env={}).effective()
    for name, value in given.items():
        # Who logs in there is not shown.
        assert effective[name] == (shown(value) if name == "store" else value), name


def test_shell_snippets_say_what_exists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quiet_logging: None) -> None:
    """`make` targets are there, `chatx` commands work, extras and modules exist."""
    toml = blocks(ROOT / "docs" / "configuration.md", "toml")
    (tmp_path / "chatx.toml").write_text(toml[0].code, encoding="utf-8")
    # The demo gets as far as it does before it serves a port.
    monkeypatch.setattr("chatx.cli.demo.listening", lambda host, port: nullcontext([]))
    monkeypatch.setattr("chatx.cli.serve.listening", lambda host, port: nullcontext([]))
    monkeypatch.setattr("chatx.cli.workers.supervisor.listening", lambda host, port: nullcontext([]))
    monkeypatch.setattr("chatx.cli.serve._serve", _served)
    monkeypatch.setattr("chatx.cli.workers.supervisor.Supervisor.run", _served)
    monkeypatch.setattr("chatx.cli.bench._measure", _served)
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: setattr(server, "started", True))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    npm = json.loads((ROOT / "tests" / "npm" / "package.json").read_text(encoding="utf-8"))["dependencies"]
    seen = set()
    for block in SHELL:
        for line in block.code.splitlines():
            words = shlex.split(line, comments=True)
            setting = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
            words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
            if not words:
                continue
            seen.add(words[0])
            match words:
                case ["make", *targets]:
                    for target in targets:
                        assert re.search(rf"^(?:[\w.]+ )*{target}(?: [\w.]+)*:", makefile, re.MULTILINE), line
                case ["chatx", *arguments]:
                    _chatx(arguments, setting, monkeypatch, tmp_path, line)
                case ["pip", "install", *wanted]:
                    for extra in re.findall(r"\[([\w,-]+)\]", " ".join(wanted)):
                        assert set(extra.split(",")) <= set(extras), line
                case ["uvicorn", *arguments]:
                    assert any(re.fullmatch(r"\w+:\w+", each) for each in arguments), line
                case ["npm", "install", *wanted]:
                    assert set(wanted) <= set(npm), line
                case ["curl" | "pg_dump" | "pg_restore", *_]:
                    pass  # the page's own test does the same
                case _:
                    pytest.fail(f"{block.name}: nothing here knows how to check {line!r}")
    assert {"make", "chatx"} <= seen


async def _served(*arguments: object) -> int:
    """Take the place of a server that runs until a signal."""
    return 0


def _chatx(
    arguments: list[str], setting: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str
) -> None:
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        for name, value in setting.items():
            patch.setenv(name, value)
        try:
            status: object = cli.main(arguments)
        except SystemExit as end:
            status = end.code
        assert status == 0, line


def test_nobody_is_told_to_install_the_other_package() -> None:
    for block in SHELL:
        for line in block.code.splitlines():
            if "pip install" in line:
                assert not re.search(r"install (?:-\w+ )*['\"]?chatx(?!-engine)", line), block.name


_NAMES_ITSELF = re.compile(r"""\bparams(?:\.get\(|\[)["']user|params: .*user|[?&]user_id=""")


def _unexplained(text: str) -> list[int]:
    """The lines of a text on which a query parameter says who it is, and nothing near says what that is for."""
    lines = text.splitlines()
    return [
        number
        for number, line in enumerate(lines, 1)
        if _NAMES_ITSELF.search(line)
        # The paragraph before a snippet, or a comment in it.
        and "trying it out" not in " ".join(lines[max(0, number - 14) : number + 2]).casefold()
    ]


@pytest.mark.parametrize("path", [*PAGES, *sorted((ROOT / "examples").glob("*.py"))], ids=lambda path: path.name)
def test_where_people_name_themselves_the_page_says_that_it_is_for_trying_it_out(path: Path) -> None:
    assert _unexplained(path.read_text(encoding="utf-8")) == []


def test_a_page_that_does_not_say_so_is_found() -> None:
    """The check above can fail."""
    code = 'socket = chat.asgi(authenticate=lambda handshake: handshake.params.get("user_id"))'
    assert _unexplained(f"Mount it:\n\n{code}") == [3]
    assert _unexplained(f"Mount it, for\n trying it out:\n\n{code}") == []


def test_a_configuration_that_the_pages_do_not_show_would_be_refused(tmp_path: Path) -> None:
    """The check above can fail."""
    path = tmp_path / "chatx.toml"
    path.write_text("[chatx]\nroom_queue_limits = 1\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        ChatConfig.load(path, env={})
