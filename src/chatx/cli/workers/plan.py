"""What `chatx serve --workers` is to run: which strategy, which broker, what the nodes are called."""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from chatx.cli.workers.broker import program
from chatx.cli.workers.data_folder import DEFAULT
from chatx.config import options_given
from chatx.core.node_names import valid_node_name
from chatx.errors import ConfigError

STRATEGY: Final = "horde"
"""What several workers mean where the options do not say it."""

_NOT_BEGUN_YET: Final = "nats://private-broker.invalid"


class Plan(NamedTuple):
    """What is to be run.

    Attributes:
        nodes: What the workers are called.
        variables: What takes the place of variables of the environment; of a private broker the URL is none yet.
        server: The program of a private broker, or None where the options name one.
        data: The folder of the private broker.
    """

    nodes: list[str]
    variables: dict[str, str]
    server: Path | None
    data: Path


def plan_of(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Plan:
    """Return what the options ask for.

    Raises:
        ConfigError: It cannot be done.
    """
    given = options_given(options.config, environment)
    if given.get("cluster_strategy") == "local":
        raise ConfigError(
            f"--workers is {options.workers} and cluster_strategy is 'local': each worker would have a chat of its "
            "own. Leave cluster_strategy out, or give --workers 1."
        )
    variables = {} if "cluster_strategy" in given else {"CHATX_CLUSTER_STRATEGY": STRATEGY}
    private = "cluster_url" not in given
    if not private and options.data is not None:
        raise ConfigError("--data is where a private broker is kept, and cluster_url names another; give one of them.")
    if private:
        variables["CHATX_CLUSTER_URL"] = _NOT_BEGUN_YET
    name = given.get("node_name", f"{_host()}-{options.port}")
    nodes = [f"{name}-{number}" for number in range(1, options.workers + 1)]
    if isinstance(name, str):  # else it is a problem of its own
        valid_node_name(name)
        valid_node_name(nodes[-1])
    return Plan(nodes, variables, program() if private else None, Path(options.data or DEFAULT))


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", socket.gethostname()).strip(".-")[:48] or "node"
