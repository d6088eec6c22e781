"""One worker: `chatx serve` on sockets that were given to it, which ends with the supervisor that gave them."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys

from chatx.cli.command import fail
from chatx.cli.ending import Ending
from chatx.cli.logs import log_to
from chatx.cli.workers.channel import Assignment, NotUnderstood, first_line, read_line
from chatx.cli.workers.loads import Loads
from chatx.cli.workers.orphan import end_with
from chatx.errors import ChatError


def main(arguments: list[str]) -> int:
    """Do what the supervisor says at the other end of the descriptor that is named, and return the exit status."""
    channel = socket.socket(fileno=int(arguments[0]))
    try:
        assignment = read_line(first_line(channel))
    except NotUnderstood as error:
        return fail(f"this is no worker of a supervisor: {error}", 1)
    if not isinstance(assignment, Assignment):
        return fail("this is no worker of a supervisor.", 1)
    end_with(channel, assignment.patience_s)
    try:
        return _serve(channel, assignment)
    except KeyboardInterrupt:
        return 130


def _serve(channel: socket.socket, assignment: Assignment) -> int:
    from chatx.cli.serve import serve
    from chatx.cli.settings import served
    from chatx.cli.workers.company import AmongWorkers

    options = argparse.Namespace(**assignment.options)
    log_to(style=assignment.style, level=options.log_level, worker=assignment.node, colours=assignment.colours)
    ending = Ending()
    loads = Loads(assignment.loads, assignment.workers)
    os.close(assignment.loads)
    sockets = [socket.socket(fileno=each) for each in assignment.sockets]
    # What the options are warned about was said by the supervisor, which has looked at them too.
    logging.disable(logging.WARNING)
    try:
        what = served(options, {})
    except ChatError as error:
        return fail(error)
    finally:
        logging.disable(logging.NOTSET)
    return serve(what, sockets, ending, AmongWorkers(assignment.node, channel, loads, assignment.number))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
