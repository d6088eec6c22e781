"""`chatx check`: the configuration in effect, or what is wrong with it."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from chatx.cli.command import add_store_to, command, configuration, fail
from chatx.errors import ConfigError
from chatx.runtime.nodes.link import link_of
from chatx.runtime.nodes.node import new_boot

if TYPE_CHECKING:
    from chatx.cli.command import Commands

HELP = """
examples:
  chatx check                     CHATX_* variables and defaults
  chatx check chatx.toml          a file with a table [chatx]
  chatx check pyproject.toml      or one with [tool.chatx]
  CHATX_ROOM_QUEUE_LIMIT=100 chatx check --json chatx.toml
  chatx check --store postgresql://chatx@db.example/chat      whether it can be a store; nothing is opened
  CHATX_CLUSTER_STRATEGY=pg CHATX_CLUSTER_URL=nats://broker.example chatx check

Of nodes it says also whether their client is installed, and whether the files that the options name can be used; no
broker is asked.

exit status: 0 valid, 2 not valid
"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "check",
        summary="check a configuration",
        description="Print the configuration in effect, from variables and a file, or all that is wrong with it.",
        epilog=HELP,
        run=run,
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="TOML file (default: none, only CHATX_* variables)")
    add_store_to(parser, otherwise="what the configuration says")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print the configuration in effect, or what is wrong with it, and return the exit status."""
    try:
        config = configuration(options.config, options.store)
        if config.cluster_strategy != "local":
            link_of(config, new_boot())
    except ConfigError as error:
        if options.json:
            print(json.dumps({"error": {"code": error.code, "reason": error.reason, "problems": error.problems}}))
            return 2
        return fail(error)
    effective = config.effective()
    if options.json:
        print(json.dumps(effective, indent=2))
    else:
        width = max(map(len, effective))
        for name, value in effective.items():
            print(f"{name:{width}}  {_shown(value)}")
    return 0


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} = {each}" for name, each in value.items())
    return str(value)
