"""`chatx cluster`: the nodes that are there, as somebody sees them who is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatx.cli import main
from tests import process
from tests.nats import NatsServer, no_such_server, server


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with server("current", tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture
def options(broker: NatsServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables of a node, which are set here too."""
    variables = {
        "CHATX_CLUSTER_STRATEGY": "pg",
        "CHATX_CLUSTER_URL": f"nats://{broker.user}:{broker.password}@127.0.0.1:{broker.port}",
        "CHATX_CLUSTER_NAME": "staging",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.mark.process
def test_the_nodes_that_are_there_are_listed_and_each_room_has_one_of_them(
    options: dict[str, str], broker: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        process.serve("--insecure-user-param", **options, CHATX_NODE_NAME="one") as first,
        process.serve("--insecure-user-param", **options, CHATX_NODE_NAME="two") as second,
    ):
        first.wait_until_it_answers()
        second.wait_until_it_answers()
        assert main(["cluster", "status", "--json"]) == 0
        status = json.loads(capsys.readouterr().out)
        assert [(each["node"], each["state"], each["strategy"]) for each in status["nodes"]] == [
            ("one", "up", "pg"),
            ("two", "up", "pg"),
        ]
        assert status["agree"] is True
        assert main(["cluster", "status"]) == 0
        text = capsys.readouterr().out
        assert broker.password not in text
        assert text.startswith(f"staging at nats://...@127.0.0.1:{broker.port}: 2 nodes\nnode  state  rooms  strategy")
        owners = set()
        for number in range(8):
            assert main(["cluster", "owner", f"room-{number}"]) == 0
            owners.add(capsys.readouterr().out)
        assert owners <= {"one\n", "two\n"}
        assert main(["cluster", "owner", "general", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["node"] in {"one", "two"}


@pytest.mark.process
@pytest.mark.parametrize("action", [["status"], ["owner", "general"]])
def test_where_no_node_is_there_that_is_said(
    options: dict[str, str], action: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cluster", *action]) == 1
    assert "cluster_name" in capsys.readouterr().err


@pytest.mark.process
def test_a_broker_that_cannot_be_reached_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHATX_CLUSTER_STRATEGY", "pg")
    monkeypatch.setenv("CHATX_CLUSTER_URL", no_such_server().replace("//", "//user:hidden@"))
    assert main(["cluster", "status"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "cannot be reached" in printed.err
    assert "hidden" not in printed.err


@pytest.mark.parametrize(
    "arguments, variables, named",
    [
        (["status"], {}, "'local'"),
        (["status"], {"CHATX_CLUSTER_STRATEGY": "pg"}, "cluster_url"),
        (["owner", "a\nb"], {"CHATX_CLUSTER_STRATEGY": "pg", "CHATX_CLUSTER_URL": "nats://127.0.0.1"}, "room"),
        (["status", "--config", "nowhere.toml"], {}, "nowhere.toml"),
    ],
)
def test_wrong_options_end_with_2_and_say_which(
    arguments: list[str],
    variables: dict[str, str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["cluster", *arguments]) == 2
    assert named in capsys.readouterr().err
