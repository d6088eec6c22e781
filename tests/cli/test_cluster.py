"""`chatx cluster`: the nodes that are there, as somebody sees them who is none."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from chatx.cli import cluster, main
from chatx.cli.cluster_drain import drained
from chatx.cli.cluster_status import shown
from chatx.cli.onlooker import Onlooker
from chatx.cluster.memory_backplane import MemoryBackplane, MemoryHub
from chatx.cluster.operating import Looked
from chatx.cluster.records import Heartbeat, Records
from chatx.cluster.rpc import Answer, Done, Moved, Refused
from chatx.config import ChatConfig
from chatx.runtime.nodes.node import HEARTBEATS
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
def test_the_nodes_that_are_there_are_listed_each_room_has_one_of_them_and_one_is_drained(
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
        assert [(each["node"], each["state"], each["strategy"], each["answers"]) for each in status["nodes"]] == [
            ("one", "up", "pg", True),
            ("two", "up", "pg", True),
        ]
        assert status["agree"] is True
        assert (status["broker"]["jetstream"], status["broker"]["version"][:2]) == (False, "2.")
        assert main(["cluster", "status"]) == 0
        text = capsys.readouterr().out
        assert broker.password not in text
        head, _, *table = text.splitlines()
        assert head == f"staging at nats://...@127.0.0.1:{broker.port}: 2 nodes, pg"
        assert table[0].split() == ["node", "state", "rooms", "followed", "clients", "lag", "heard"]
        assert [line.split()[:6] for line in table[1:]] == [
            [name, "up", "0", "0", "0", "0.0s"] for name in ("one", "two")
        ]
        owners = set()
        for number in range(3):
            assert main(["cluster", "owner", f"room-{number}"]) == 0
            owners.add(capsys.readouterr().out)
        assert owners <= {"one\n", "two\n"}
        assert main(["cluster", "owner", "general", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["node"] in {"one", "two"}

        assert main(["cluster", "drain", "three"]) == 1
        assert "No node 'three' is there; these are: one, two." in capsys.readouterr().err
        assert main(["cluster", "drain", "one", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["node"], told["gone"]) == ("one", True)
        status_of_first, log = first.wait()
        assert (status_of_first, "An operator has this node drained." in log) == (0, True)
        assert main(["cluster", "status", "--json"]) == 0
        assert [each["node"] for each in json.loads(capsys.readouterr().out)["nodes"]] == ["two"]


class Unwilling:
    """A node that hears that it is to drain, and does not go.

    Attributes:
        answers: What it answers, by kind of what it is asked.
    """

    def __init__(self, hub: MemoryHub, **answers: Answer) -> None:
        self.hub = hub
        self.link = MemoryBackplane(hub, "b" * 16)
        self.answers: dict[str, Answer] = {"Drain": Done(), **answers}
        self._records = Records()

    async def begin(self) -> None:
        await self.link.connect()
        await self.link.serve(self._answer)

    def beat(self, number: int, state: Literal["up", "draining", "gone"] = "up") -> None:
        beat = Heartbeat("slow", self.link.boot, number, state, "pg", 1, "view", "config")
        self.link.publish(HEARTBEATS, self._records.encode(beat))

    async def _answer(self, payload: bytes) -> bytes:
        return self._records.encode(self.answers[type(self._records.decode(payload)).__name__])


@asynccontextmanager
async def unwilling(**answers: Answer) -> AsyncIterator[tuple[Unwilling, Onlooker]]:
    """Have such a node, and an onlooker who has heard it once."""
    hub = MemoryHub()
    node, link = Unwilling(hub, **answers), MemoryBackplane(hub, "a" * 16)
    await node.begin()
    await link.connect()
    onlooker = Onlooker(link)
    await link.subscribe(HEARTBEATS, onlooker.receive)
    node.beat(1)
    await asyncio.sleep(0.01)
    yield node, onlooker
    await link.close()
    await node.link.close()


async def test_a_node_that_is_not_gone_in_time_is_named_with_what_it_has_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with unwilling(Look=Looked("slow", "draining", 2, 0, 0, 0, 1, 5, 0)) as (node, onlooker):
        assert await drained(onlooker, "slow", 0.5, as_json=False) == 1
        said = capsys.readouterr().err
        assert "Node 'slow' is not gone after 0.5 s, and goes on draining; left are 3 rooms and 5 clients." in said
        assert await drained(onlooker, "slow", 0.5, as_json=True) == 1
        told = json.loads(capsys.readouterr().out)
        assert (told["gone"], told["rooms"], told["clients"]) == (False, 3, 5)
        node.beat(2, "gone")
        await asyncio.sleep(0.01)
        assert await drained(onlooker, "slow", 5, as_json=False) == 1  # nobody of this name is there any more
        assert "No node 'slow' is there" in capsys.readouterr().err


async def test_a_node_is_gone_when_it_says_so_and_where_nobody_is_there_any_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for word in (True, False):
        async with unwilling(Look=Looked("slow", "draining", 2, 0, 0, 0, 1, 5, 0)) as (node, onlooker):
            waiting = asyncio.ensure_future(drained(onlooker, "slow", 60, as_json=False))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            if word:
                node.beat(2, "gone")
            else:
                await node.link.close()
            assert await waiting == 0
            assert capsys.readouterr().out.startswith("slow is gone, after ")


@pytest.mark.parametrize(
    "answers, said",
    [
        ({"Drain": Refused("starting", "Not yet.")}, "was not drained: Not yet."),
        ({"Drain": Moved()}, "answered with Moved"),
        ({}, "does not answer, and may drain nevertheless"),
    ],
)
async def test_a_node_that_does_not_drain_says_why(
    answers: dict[str, Answer], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with unwilling(**answers) as (node, onlooker):
        if not answers:
            del node.answers["Drain"]
        assert await drained(onlooker, "slow", 5, as_json=False) == 1
        assert said in capsys.readouterr().err


async def test_a_watch_goes_on_where_the_broker_is_away_for_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "BETWEEN_S", 0.02)
    config = ChatConfig(cluster_strategy="pg", cluster_url="nats://in.memory:4222")
    async with unwilling(Look=Looked("slow", "up", 2, 0, 0, 0, 1, 5, 0)) as (node, onlooker):
        watching = asyncio.ensure_future(cluster._status(config, onlooker, Namespace(json=True, watch=True)))
        printed = ["", ""]

        async def prints(stream: int) -> None:
            """Wait until more is printed there."""
            printed[stream] = ""
            while not printed[stream]:
                await asyncio.sleep(0.01)
                printed[:] = [before + more for before, more in zip(printed, capsys.readouterr(), strict=True)]

        for _ in range(2):
            await prints(0)
            assert json.loads(printed[0].splitlines()[0])["nodes"][0]["node"] == "slow"
            node.hub.stop()
            await prints(1)
            assert "The broker is away" in printed[1]
            node.hub.start()
        watching.cancel()


def test_what_is_not_as_it_should_be_stands_below_the_table_which_fits_a_terminal() -> None:
    node = {
        "node": "n" * 64,
        "state": "draining",
        "strategy": "pg",
        "rooms": 100_000,
        "heard_ms": 9999,
        "answers": False,
    }
    answers = {"answers": True, "followed": 99_999, "clients": 10_000, "lag_ms": 3_600_000, "behind": 3, "left": 2}
    status = {
        "cluster": "shop",
        "broker": {"url": "u", "name": "N" * 56, "version": "2.15.0", "jetstream": True, "round_trip_ms": 0.42},
        "agree": False,
        "nodes": [node, node | answers | {"node": "b", "suspects": ["c", "d"]}],
    }
    text = shown(status, as_json=False, one_line=False)
    assert max(map(len, text.splitlines())) <= 80
    assert "N..." in text
    assert text.splitlines()[-5:] == [
        "the nodes do not see the same nodes, or have other options; their logs say which",
        "n" * 64 + " does not answer",
        "b does not hear c, d",
        "b is behind in 3 of the rooms that it follows",
        "b has 2 rooms that nobody has taken over yet",
    ]


@pytest.mark.process
@pytest.mark.parametrize("action", [["status"], ["owner", "general"], ["drain", "one"]])
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
        (["drain", "a b"], {"CHATX_CLUSTER_STRATEGY": "pg", "CHATX_CLUSTER_URL": "nats://127.0.0.1"}, "node_name"),
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
