"""The command `chatx`: one file for each of its commands, which adds its options and runs it."""

import os
import sys

TYPE_CHECKING = False  # nothing is loaded here: an interrupt at this place would be nobody's to catch
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run the command and return its exit status.

    The status is 0, or 1 where the command failed, 2 where its arguments are wrong, 130 where Ctrl+C came before it did
    anything.
    """
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 130


def _run(arguments: "Sequence[str] | None") -> int:
    # All that takes a while, in which Ctrl+C may come.
    import argparse
    import io

    # A descriptor from 0 to 2 that is closed would be given to what is opened first, for which a child, or uvloop, has
    # other plans.
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
    for each in (sys.stdout, sys.stderr):
        if isinstance(each, io.TextIOWrapper):
            each.reconfigure(errors="backslashreplace")  # what a terminal has no letter for is no reason to fail

    from chatx import __version__
    from chatx.cli import asyncapi, bench, check, cluster, db, demo, openapi, outbox, serve, token

    parser = argparse.ArgumentParser(
        prog="chatx",
        description="A realtime chat engine for Python web applications.",
        epilog="Each command has its own --help with examples.",
    )
    parser.add_argument("--version", action="version", version=f"chatx {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (demo, serve, token, check, db, outbox, cluster, bench, asyncapi, openapi):
        command.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, `head` say, has what it wanted. Python writes out once more when it ends, and must not fail then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status
