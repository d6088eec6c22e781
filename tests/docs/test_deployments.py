"""What the page on many nodes gives to systemd, containers and Kubernetes: it is read, and names only what there is."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import yaml

from chatx import ChatConfig, cli
from tests.docs.markdown import ROOT, blocks

PAGE = ROOT / "docs" / "scaling.md"
COMPOSE, MANIFESTS = (list(yaml.safe_load_all(block.code)) for block in blocks(PAGE, "yaml"))
(UNIT,) = [block.code for block in blocks(PAGE, "ini")]
DRAIN_S = ChatConfig().drain_timeout_ms / 1000
VARIABLES = {f"CHATX_{each.name.upper()}" for each in fields(ChatConfig)} | {"CHATX_SECRET"}


def manifest(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in MANIFESTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return dict(found)


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # systemd's names have capitals
    parser.read_string(re.sub(r"^Environment=(\w+)=", r"\1=", UNIT, flags=re.MULTILINE))
    return parser


def container() -> dict[str, Any]:
    (found,) = manifest("Deployment", "chat")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def commands() -> Iterator[tuple[str, list[str]]]:
    program, *arguments = shlex.split(unit()["Service"]["ExecStart"].replace("%i", "4001"))
    assert program.endswith("/bin/chatx")
    yield "systemd", arguments
    yield "compose", COMPOSE[0]["services"]["chat"]["command"]
    yield "kubernetes", container()["args"]


@pytest.mark.parametrize("where, arguments", list(commands()))
def test_each_command_is_one_that_is_taken(where: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr("chatx.cli.serve.run", lambda options: taken.append(options) or 0)  # type: ignore[func-returns-value]
    assert cli.main(arguments) == 0
    (options,) = taken
    assert options.host == ("localhost" if where == "systemd" else "0.0.0.0")


def test_each_variable_is_an_option() -> None:
    named = [each["name"] for each in container()["env"]]
    named += COMPOSE[0]["services"]["chat"]["environment"]
    named += [each for each in unit()["Service"] if each.isupper()]
    assert {each for each in named if each.startswith("CHATX_")} <= VARIABLES
    assert {each for each in named if not each.startswith("CHATX_")} == {"NATS_PASSWORD"}
    url = "nats://chatx:password@broker:4222"
    ChatConfig(cluster_strategy="pg", cluster_url=url)
    assert (
        COMPOSE[0]["services"]["chat"]["environment"]["CHATX_CLUSTER_URL"].replace("${NATS_PASSWORD:?}", "password")
        == url
    )


def test_each_waits_longer_than_a_drain_takes() -> None:
    assert int(unit()["Service"]["TimeoutStopSec"]) > DRAIN_S
    assert int(COMPOSE[0]["services"]["chat"]["stop_grace_period"].removesuffix("s")) > DRAIN_S
    spec = manifest("Deployment", "chat")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > DRAIN_S


def test_what_is_asked_for_is_there_and_names_lead_somewhere() -> None:
    asked = container()
    assert asked["ports"] == [{"name": "http", "containerPort": 4000}]  # the default of `chatx serve`
    assert asked["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert asked["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    for name in ("chat", "broker"):
        workload = manifest("Deployment" if name == "chat" else "StatefulSet", name)["spec"]
        labels = workload["template"]["metadata"]["labels"]
        assert labels == workload["selector"]["matchLabels"] == manifest("Service", name)["spec"]["selector"]
    broker = manifest("StatefulSet", "broker")["spec"]
    assert broker["serviceName"] == "broker"
    assert manifest("Service", "broker")["spec"]["clusterIP"] == "None"
    assert ":4000/readyz" in COMPOSE[0]["services"]["chat"]["healthcheck"]["test"][-1]
    assert COMPOSE[0]["services"]["chat"]["depends_on"] == ["broker"]
