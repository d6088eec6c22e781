"""The application that the start page builds in eight steps works: signing in, sending, refusals, a restart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.docs.markdown import ROOT, blocks, prose

START = ROOT / "docs" / "start.md"
# A blank line or two between the parts, as whoever types them in would leave.
CODE = "\n\n".join(block.code for block in blocks(START, "py"))


def _application() -> Any:
    namespace: dict[str, Any] = {"__name__": "app"}
    exec(compile(CODE, "app.py", "exec", dont_inherit=True), namespace)
    return namespace["app"]


def _key(page: str) -> str:
    (key,) = re.findall(r'name="key" value="(\w+)"', page)
    return str(key)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_there_are_eight_steps_in_order() -> None:
    steps = re.findall(r"^### (\d)\. ", prose(START), re.MULTILINE)
    assert steps == [str(number) for number in range(1, 9)]


def test_people_sign_in_and_chat() -> None:
    with TestClient(_application()) as client:
        assert "Your name" in client.get("/").text
        page = client.post("/name", data={"name": "ada"}).text
        answer = client.post("/", data={"content": "<b>hi</b>", "key": _key(page)})

        assert answer.history[0].status_code == 303
        assert "&lt;b&gt;hi&lt;/b&gt;" in answer.text
        assert "ada" in answer.text
        assert "javascript" in client.get("/live.js").headers["content-type"]


@pytest.mark.parametrize(
    "content, reason", [("see https://example.org", "Links are not allowed"), ("a" * 1001, "1,?000")]
)
def test_a_refused_message_comes_back_with_the_reason(content: str, reason: str) -> None:
    with TestClient(_application(), cookies={"name": "ada"}) as client:
        page = client.post("/", data={"content": content, "key": "k1"}).text

        assert re.search(rf"data-live-notice>[^<]*{reason}", page)
        assert f">{content}</textarea>" in page
        assert "data-live-messages></div>" in page


def test_a_name_that_is_no_id_is_asked_for_again() -> None:
    with TestClient(_application()) as client:
        page = client.post("/name", data={"name": "a" * 129}).text

        assert re.search(r'role="alert">[^<]+128', page)
        assert "Your name" in page


def test_messages_outlive_a_restart() -> None:
    with TestClient(_application(), cookies={"name": "ada"}) as client:
        client.post("/", data={"content": "still here", "key": "k1"})
    with TestClient(_application(), cookies={"name": "ada"}) as client:
        assert "still here" in client.get("/").text


@pytest.mark.process
@pytest.mark.slow
def test_the_application_passes_the_linter_and_the_type_checker(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(f'"""A chat."""\n\n{CODE}', encoding="utf-8")
    config = ROOT / "pyproject.toml"
    # A reader's file has no docstrings yet.
    lint = ["ruff", "check", "--no-cache", "--config", str(config), "--extend-ignore", "D,INP", "app.py"]
    types = ["mypy", "--config-file", str(config), "--cache-dir", str(ROOT / ".mypy_cache" / "start"), "app.py"]
    for command in (lint, types):
        run = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=os.environ | {"MYPYPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
