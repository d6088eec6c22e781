"""`chatx cluster`: which nodes are there, which of them has a room, and to have one drained."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

from chatx.cli.cluster_drain import drained
from chatx.cli.cluster_status import look, shown
from chatx.cli.command import command, configuration, fail
from chatx.cli.onlooker import Onlooker, onlooking
from chatx.cli.workers.data_folder import OPTIONS
from chatx.cluster.backplane import BackplaneAway
from chatx.cluster.placement import Placement, Seat, View
from chatx.cluster.records import Heartbeat
from chatx.config import ChatConfig
from chatx.config_checks import without_passwords
from chatx.core.node_names import valid_node_name
from chatx.core.validation import valid_id
from chatx.errors import ChatError, ConfigError

if TYPE_CHECKING:
    from chatx.cli.command import Commands

HELP = """
examples:
  chatx cluster status --config chatx.toml
  chatx cluster status --data chatx-data          the workers of a chatx serve --workers
  chatx cluster status --json         of the broker that CHATX_CLUSTER_URL names
  chatx cluster status --watch        anew every second, until Ctrl+C
  chatx cluster owner general         the node that has the room
  chatx cluster drain web-1           hand its rooms over, send its clients away, end it, and wait for that

It listens for the nodes' heartbeats for a moment. The options are those of the nodes: cluster_strategy, cluster_url,
cluster_name and the credentials. Whoever may use the broker may ask a node to drain.

exit status: 0 done, 1 the broker cannot be reached, no such node is there, or it was not drained in time,
2 wrong options, 130 stopped by Ctrl+C
"""

BETWEEN_S = 1.0
"""Seconds between two looks with `--watch`."""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "cluster",
        summary="which nodes are there, whose a room is, and to drain one",
        description="Look at the nodes of a chat that runs on many, or have one of them drained.",
        epilog=HELP,
        run=run,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    status = actions.add_parser("status", help="print the nodes", description="Print the nodes that are there.")
    status.add_argument("--watch", action="store_true", help="print them anew every second, until Ctrl+C")
    owner = actions.add_parser("owner", help="print whose a room is", description="Print which node has a room.")
    owner.add_argument("room", metavar="ROOM", help="the room's id")
    drain = actions.add_parser(
        "drain",
        help="have a node hand its rooms over, send its clients away and end",
        description="Have a node drain as at SIGTERM, and wait until it is gone. chatx serve ends then; an application "
        "goes on without its chat, unless it does something else when it is told.",
    )
    drain.add_argument("node", metavar="NODE", help="the node's name")
    drain.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="how long to wait; the node goes on all the same (default: drain_timeout_ms and 5 s)",
    )
    for each in (status, owner, drain):
        source = each.add_mutually_exclusive_group()
        source.add_argument("--config", metavar="FILE", help="a TOML file with the options (default: the environment)")
        source.add_argument("--data", metavar="DIR", help="the folder of a chatx serve --workers, for its nodes")
        each.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Look at the nodes, or drain one, and return the exit status."""
    try:
        config = configuration(options.config if options.data is None else str(Path(options.data, OPTIONS)))
        if config.cluster_strategy == "local":
            return fail("cluster_strategy is 'local': this chat has one node. Give the options that the nodes have.")
        if options.action == "owner":
            valid_id(options.room, "room")
        if options.action == "drain":
            valid_node_name(options.node)
        return asyncio.run(_run(config, options))
    except ConfigError as error:
        return fail(error)
    except ChatError as error:
        return fail(error, 2)
    except KeyboardInterrupt:
        return 130


async def heard(config: ChatConfig) -> list[Heartbeat]:
    """Return the newest heartbeat of each node that is heard, by name.

    Raises:
        BackplaneAway: The broker cannot be reached.
        ConfigError: The options do not fit together.
    """
    async with onlooking(config) as onlooker:
        await onlooker.listen()
        return [each.heartbeat for each in onlooker.nodes()]


async def _run(config: ChatConfig, options: argparse.Namespace) -> int:
    try:
        async with onlooking(config) as onlooker:
            await onlooker.listen()
            match options.action:
                case "owner":
                    return _print_owner(onlooker, options)
                case "drain":
                    timeout_s = options.timeout or config.drain_timeout_ms / 1000 + 5
                    return await drained(onlooker, options.node, timeout_s, as_json=options.json)
                case _:
                    return await _status(config, onlooker, options)
    except BackplaneAway as error:
        return fail(f"The broker {without_passwords(config.cluster_url or '')} cannot be reached: {error}", 1)


async def _status(config: ChatConfig, onlooker: Onlooker, options: argparse.Namespace) -> int:
    while True:
        try:
            status = await look(config, onlooker)
        except BackplaneAway as error:
            if not options.watch:
                raise
            fail(f"The broker is away: {error}", 1)  # it may come back
            await asyncio.sleep(BETWEEN_S)
            continue
        print(shown(status, as_json=options.json, one_line=options.watch), flush=True)
        if not options.watch:
            return 0 if status["nodes"] else fail("No node is there; is cluster_name theirs?", 1)
        if not options.json:
            print(flush=True)
        await asyncio.sleep(BETWEEN_S)


def _print_owner(onlooker: Onlooker, options: argparse.Namespace) -> int:
    nodes = [each.heartbeat for each in onlooker.nodes()]
    seats = {each.node: Seat(each.node, each.boot, each.weight) for each in nodes if each.state == "up"}
    seat = Placement(View.of(seats.values())).owner(options.room)
    if seat is None:
        return fail("No node is up, so nobody has the room; is cluster_name theirs?", 1)
    print(json.dumps({"room": options.room, "node": seat.node, "boot": seat.boot}) if options.json else seat.node)
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no time to wait; give seconds above 0, at most 86400")
    return seconds
