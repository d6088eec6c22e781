"""`chatx demo`: a chat page to try in two browser tabs."""

from __future__ import annotations

import argparse
import socket
from typing import TYPE_CHECKING

from chatx.cli.command import add_store_to, command, fail, port
from chatx.cli.listening import CannotListen, listening
from chatx.errors import ChatError, ConfigError
from chatx.extras import needs

if TYPE_CHECKING:
    from chatx.cli.command import Commands

NODES = 9
"""Nodes of the demo, at most."""

STRATEGIES = ("horde", "pg")
"""What the nodes of the demo may have; the first is theirs where nothing is said."""

HELP = """
examples:
  chatx demo                      http://localhost:4000, messages kept in ./chatx-demo.db
  chatx demo --port 4001
  chatx demo --store sqlite:///mychat.db
  chatx demo --nodes 3            three processes and a broker of their own, and a button that kills one
  chatx demo --host 0.0.0.0       for the phones in your network; anybody there can name themselves as they like

exit status: 0 stopped by Ctrl+C, SIGTERM or a hangup, 1 could not run, 2 wrong options, 130 stopped before it served
"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "demo",
        summary="run a chat page to try in two browser tabs",
        description="Run a chat page on this machine; stop it with Ctrl+C. It needs no other service.",
        epilog=HELP,
        run=run,
    )
    parser.add_argument("--host", default="localhost", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port, default=4000, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--nodes",
        type=_nodes,
        metavar="N",
        help=f"run as so many processes that are one chat, at most {NODES}; what is said is in memory then",
    )
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default=STRATEGIES[0],
        help="with --nodes: cluster_strategy (default: %(default)s)",
    )
    add_store_to(parser, otherwise="chatx-demo.db")


def run(options: argparse.Namespace) -> int:
    """Serve the demo's pages until a signal, and return the exit status."""
    try:
        with needs("fastapi", "chatx demo"):
            from chatx.cli.demo_serving import serve
            from chatx.demo.app import demo_app
    except ConfigError as error:
        return fail(error, 1)
    try:
        with listening(options.host, options.port) as sockets:
            if options.nodes:
                return _run_nodes(options, sockets)
            app = demo_app("chatx-demo.db" if options.store is None else options.store)
            return serve(app, sockets, lambda: _tell(options, "in two tabs"))
    except CannotListen as error:
        return fail(str(error), 1)
    except ConfigError as error:
        return fail(error)
    except ChatError as error:
        return fail(error, 1)


def _run_nodes(options: argparse.Namespace, sockets: list[socket.socket]) -> int:
    if options.store is not None:
        return fail("--store and --nodes do not go together: the nodes of the demo keep what is said in memory.")
    try:
        with needs("cluster", "chatx demo --nodes"):
            import nats  # noqa: F401  # asked for here, so that it is said once and not by each node

            from chatx.cli.demo_nodes import run_nodes
    except ConfigError as error:
        return fail(error, 1)
    return run_nodes(options.nodes, sockets, options.strategy, lambda: _tell(options, "in two tabs, and kill a node"))


def _tell(options: argparse.Namespace, how: str) -> None:
    shown = "localhost" if options.host in ("0.0.0.0", "127.0.0.1", "::", "::1") else options.host
    print(f"chatx demo: open http://{shown}:{options.port} {how}; stop it with Ctrl+C", flush=True)


def _nodes(text: str) -> int:
    if not text.isdecimal() or not 2 <= int(text) <= NODES:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of nodes; give 2 to {NODES}")
    return int(text)
