"""What the commands of `chatx` share: how one is added, what its options may be, how it says that it failed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from chatx.config import ChatConfig
from chatx.errors import ChatError, ConfigError

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

_NONE: Mapping[str, str] = MappingProxyType({})


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


def add_store_to(
    parser: argparse.ArgumentParser, *, default: str | None = None, otherwise: str = "%(default)s"
) -> None:
    """Add the option `--store`; `otherwise` says what is so without it."""
    parser.add_argument(
        "--store",
        default=default,
        metavar="URL",
        help=f"where messages are kept, as sqlite:///chat.db or postgresql://user@host/database (default: {otherwise})",
    )


def configuration(path: str | None, store: str | None = None, variables: Mapping[str, str] = _NONE) -> ChatConfig:
    """Return the options in effect; errors as `ChatConfig.load`.

    What import strings name is looked for in the current folder as well, as `python -m chatx` does and servers do.

    Args:
        path: A TOML file, or None.
        store: What `--store` gave, which goes before all else.
        variables: What takes the place of variables of the environment, by name.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a file here is not to take the place of a module that is installed
    given = {} if store is None else {"CHATX_STORE": store}
    return ChatConfig.load(path, {**os.environ, **variables, **given})


def fail(reason: str | ChatError, status: int = 2) -> int:
    """Print what is wrong, a line for each problem, and return the exit status.

    Args:
        reason: What is wrong, as a sentence or as the error that says so.
        status: 1 where the command could not run, 2 where what it was given is wrong.
    """
    if isinstance(reason, ConfigError):
        reasons: tuple[str, ...] = reason.problems
    else:
        reasons = (reason.reason if isinstance(reason, ChatError) else reason,)
    for each in reasons:
        print(f"chatx: {each}", file=sys.stderr)
    return status
