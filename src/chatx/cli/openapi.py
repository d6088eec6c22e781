"""`chatx openapi`: the API, described for tools."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from chatx.cli.command import command

if TYPE_CHECKING:
    from chatx.cli.command import Commands

HELP = """
examples:
  chatx openapi                 to the terminal
  chatx openapi > openapi.json  into a file
  chatx openapi | jq .paths     or to a program

exit status: 0
"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    command(
        commands,
        "openapi",
        summary="describe the API for tools",
        description="Print what backends ask over HTTP as an OpenAPI 3.1 document, in JSON.",
        epilog=HELP,
        run=run,
    )


def run(options: argparse.Namespace) -> int:
    """Print the OpenAPI document, and return the exit status."""
    from chatx.gateway.api.openapi import text

    print(text(), end="")
    return 0
