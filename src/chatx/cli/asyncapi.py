"""`chatx asyncapi`: the wire, described for tools."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from chatx.cli.command import command

if TYPE_CHECKING:
    from chatx.cli.command import Commands

HELP = """
examples:
  chatx asyncapi                  to the terminal
  chatx asyncapi > asyncapi.json  into a file
  chatx asyncapi | jq .channels   or to a program

exit status: 0
"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    command(
        commands,
        "asyncapi",
        summary="describe the wire for tools",
        description="Print what goes over the socket as an AsyncAPI 3.0.0 document, in JSON.",
        epilog=HELP,
        run=run,
    )


def run(options: argparse.Namespace) -> int:
    """Print the AsyncAPI document, and return the exit status."""
    from chatx.gateway.describe.asyncapi import text

    print(text(), end="")
    return 0
