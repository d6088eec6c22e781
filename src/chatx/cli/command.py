"""What every command of `chatx` does alike: how it is added, what its options may be, how it says that it failed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]


def command(
    commands: Commands, name: str, *, summary: str, description: str, epilog: str, run: Callable[..., int]
) -> argparse.ArgumentParser:
    """Return the parser of a new command; `run` is called with the options and returns the exit status."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def port(text: str) -> int:
    """Return a port to listen on."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a whole number from 1 to 65535")
    return int(text)


def fail(reason: str, status: int = 2) -> int:
    """Say what is wrong, and return the exit status: 1 where it could not run, 2 where what was given is wrong."""
    print(f"chatx: {reason}", file=sys.stderr)
    return status
