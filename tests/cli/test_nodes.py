"""`chatx serve` and `chatx check` with the options of nodes: what is wrong is told, and no password."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from chatx.cli import main
from tests.nats import no_such_server, server
from tests.process import ENVIRONMENT, Served, free_port, serve
from tests.test_extras import BLOCKER

WITHOUT_CLIENT = (sys.executable, "-c", f"MISSING = ['nats']\n{BLOCKER}\nfrom chatx.cli import main\nsys.exit(main())")
NO_CLIENT = (
    "chatx: cluster_strategy 'pg' needs nats, which is not installed; install the extra: "
    "pip install 'chatx-engine[cluster]'."
)
PG = {"CHATX_CLUSTER_STRATEGY": "pg"}
URL = "nats://node:hidden@broker.example"


def told(status: int, output: str) -> tuple[int, str]:
    """Return the exit status and what was said last: a line for people, or the text of a line of the log."""
    last = output.splitlines()[-1]
    return status, json.loads(last)["message"] if last.startswith("{") else last


def served(stack: ExitStack, *command: str, **options: str) -> Served:
    """Start a server that is to end by itself."""
    more = {"command": command} if command else {}
    ended = Served("serve", free_port(), "--insecure-user-param", **more, **PG, **options)  # type: ignore[arg-type]
    assert ended.process.stdout is not None
    stack.callback(ended.process.stdout.close)
    return ended


@pytest.mark.process
def test_a_server_that_cannot_be_a_node_says_why_and_ends(tmp_path: Path) -> None:
    with ExitStack() as stack:
        broker = stack.enter_context(server("current", tmp_path))
        url = f"nats://{broker.user}:{broker.password}@127.0.0.1:{broker.port}"
        away = no_such_server()
        # Side by side: a broker is tried for as long as a rolling restart of it may take.
        nobody = served(stack, CHATX_CLUSTER_URL=away.replace("//", "//node:hidden@"))
        stranger = served(stack, CHATX_CLUSTER_URL=broker.url.replace("//", "//node:hidden@"))
        no_client = served(stack, *WITHOUT_CLIENT, CHATX_CLUSTER_URL=url)
        no_file = served(stack, CHATX_CLUSTER_URL=broker.url, CHATX_CLUSTER_CREDENTIALS="none.creds")
        stack.enter_context(serve("--insecure-user-param", **PG, CHATX_CLUSTER_URL=url, CHATX_NODE_NAME="a"))
        second = served(stack, CHATX_CLUSTER_URL=url, CHATX_NODE_NAME="a")
        outcomes = [each.wait() for each in (nobody, stranger, no_client, no_file, second)]

    assert [told(*each) for each in outcomes[2:]] == [
        (2, NO_CLIENT),
        (2, "chatx: cluster_credentials cannot be read: [Errno 2] No such file or directory: 'none.creds'."),
        (
            2,
            (
                "chatx: This node cannot be one of the others. Its name, 'a', is that of a node which is there; give "
                "each node a node_name of its own."
            ),
        ),
    ]
    status, said = told(*outcomes[0])
    assert (status, said.startswith("The chat was not started: The nodes' broker cannot be reached: ")) == (1, True)
    assert f"{away}: " in said
    status, said = told(*outcomes[1])
    assert (status, said.endswith("look at the user in cluster_url, or at cluster_credentials")) == (1, True)
    assert "Authorization Violation" in said
    for _, output in outcomes:
        assert "hidden" not in output
        assert broker.password not in output


@pytest.mark.process
def test_check_says_that_the_client_is_missing() -> None:
    run = subprocess.run(
        [*WITHOUT_CLIENT, "check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=ENVIRONMENT | PG | {"CHATX_CLUSTER_URL": URL},
    )
    assert told(run.returncode, run.stderr) == (2, NO_CLIENT)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "chatx.toml"
    path.write_text(f'[chatx]\ncluster_strategy = "pg"\ncluster_url = "{URL}"\ncluster_name = "shop"\n')
    return path


def test_check_shows_the_options_of_nodes_and_no_password(
    toml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHATX_NODE_NAME", "a")
    monkeypatch.setenv("CHATX_CLUSTER_NAME", "42")
    assert main(["check", "--json", str(toml)]) == 0
    shown = capsys.readouterr().out
    effective = json.loads(shown)
    assert {
        name: effective[name] for name in effective if name.startswith(("cluster_", "node_")) and effective[name]
    } == {
        "cluster_strategy": "pg",
        "cluster_url": "nats://...@broker.example",
        "cluster_name": "42",
        "cluster_replicas": 1,
        "node_name": "a",
    }
    assert main(["check", str(toml)]) == 0
    assert "hidden" not in shown + capsys.readouterr().out


@pytest.mark.parametrize(
    "given, said",
    [
        ({"CHATX_CLUSTER_URL": "nats://node:hidden/x@host"}, ["cluster_url is '...@host'; give nats://host:port"]),
        ({"CHATX_CLUSTER_STRATEGY": "local"}, ["cluster_url is given, and cluster_strategy 'local' has no use for it"]),
        ({"CHATX_CLUSTER_STRATEGY": "redis"}, ["it must be one of local, pg, horde."]),
        ({"CHATX_STORE": "sqlite:///chat.db"}, ["one writer"]),
        ({"CHATX_CLUSTER_CREDENTIALS": "node.creds"}, ["cluster_url names a user, and cluster_credentials is given"]),
        (
            {"CHATX_CLUSTER_NAME": "a.b", "CHATX_NODE_NAME": "a b", "CHATX_CLUSTER_KEY": "key.pem"},
            ["cluster_name is 'a.b'", "node_name is 'a b'", "cluster_cert and cluster_key belong together"],
        ),
        ({"CHATX_CLUSTER_CA": "none.pem"}, ["expected PEM files in cluster_ca (none.pem)"]),
        (
            {"CHATX_CLUSTER_URL": "nats://host", "CHATX_CLUSTER_CREDENTIALS": "none.creds"},
            ["cluster_credentials cannot be read: [Errno 2] No such file or directory: 'none.creds'."],
        ),
    ],
)
def test_check_says_what_is_wrong_with_them(
    given: dict[str, str],
    said: list[str],
    toml: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["check", str(toml)]) == 2
    printed = capsys.readouterr()
    problems = printed.err.strip().splitlines()
    assert len(problems) == len(said)
    assert all(wanted in problem for wanted, problem in zip(said, problems, strict=True))
    assert "hidden" not in printed.out + printed.err
    assert main(["check", "--json", str(toml)]) == 2
    assert len(json.loads(capsys.readouterr().out)["error"]["problems"]) == len(said)
