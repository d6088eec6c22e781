"""`chatx cluster`: which nodes are there, and which of them has a room; it listens, and takes part in nothing."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING, Any

from chatx.cli.command import command, configuration, fail
from chatx.cluster.backplane import BackplaneAway
from chatx.cluster.placement import Placement, Seat, View
from chatx.cluster.records import BadRecord, Heartbeat, Records
from chatx.config import ChatConfig
from chatx.config_checks import without_passwords
from chatx.core.validation import valid_id
from chatx.errors import ChatError, ConfigError
from chatx.runtime.nodes.link import link_of
from chatx.runtime.nodes.node import HEARTBEATS, new_boot

if TYPE_CHECKING:
    from chatx.cli.command import Commands

HELP = """
examples:
  chatx cluster status --config chatx.toml
  chatx cluster status --json         of the broker that CHATX_CLUSTER_URL names
  chatx cluster status --watch        anew every second, until Ctrl+C
  chatx cluster owner general         the node that has the room

It listens for the nodes' heartbeats for a moment. The options are those of the nodes: cluster_strategy, cluster_url,
cluster_name and the credentials.

exit status: 0 done, 1 the broker cannot be reached, or no node is there, 2 wrong options
"""

LISTENED_S = 1.2
"""How long it is listened, in seconds: two heartbeats."""

_COLUMNS = ("node", "state", "rooms", "strategy", "boot")


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "cluster",
        summary="which nodes are there, and whose a room is",
        description="Look at the nodes of a chat that runs on many.",
        epilog=HELP,
        run=run,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    status = actions.add_parser("status", help="print the nodes", description="Print the nodes that are there.")
    status.add_argument("--watch", action="store_true", help="print them anew every second, until Ctrl+C")
    owner = actions.add_parser("owner", help="print whose a room is", description="Print which node has a room.")
    owner.add_argument("room", metavar="ROOM", help="the room's id")
    for each in (status, owner):
        each.add_argument("--config", metavar="FILE", help="a TOML file with the options (default: the environment)")
        each.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Look at the nodes, and return the exit status."""
    try:
        config = configuration(options.config)
        if config.cluster_strategy == "local":
            return fail("cluster_strategy is 'local': this chat has one node. Give the options that the nodes have.")
        if options.action == "owner":
            valid_id(options.room, "room")
        while True:
            status = asyncio.run(_look(config, options))
            if status or options.action == "owner" or not options.watch:
                return status
            print(flush=True)
    except ConfigError as error:
        return fail(error)
    except ChatError as error:
        return fail(error, 2)


async def _look(config: ChatConfig, options: argparse.Namespace) -> int:
    try:
        nodes = await heard(config)
    except BackplaneAway as error:
        return fail(f"The broker {without_passwords(config.cluster_url or '')} cannot be reached: {error}", 1)
    if options.action == "owner":
        return _print_owner(nodes, options)
    print(json.dumps(_status(config, nodes), indent=2) if options.json else _table(config, nodes))
    return 0 if nodes else fail("No node is there; is cluster_name theirs?", 1)


async def heard(config: ChatConfig) -> list[Heartbeat]:
    """Return the newest heartbeat of each node that is heard, by name.

    Raises:
        BackplaneAway: The broker cannot be reached.
        ConfigError: The options do not fit together.
    """
    link, records = link_of(config, new_boot()), Records()
    newest: dict[str, Heartbeat] = {}

    def receive(payload: bytes) -> None:
        try:
            record = records.decode(payload)
        except BadRecord:
            return  # of another version, which the nodes themselves tell
        if isinstance(record, Heartbeat):
            newest[record.boot] = record

    await link.connect()
    try:
        await link.subscribe(HEARTBEATS, receive)
        await asyncio.sleep(LISTENED_S)
    finally:
        await link.close()
    return sorted(newest.values(), key=lambda each: (each.node, each.boot))


def _print_owner(nodes: list[Heartbeat], options: argparse.Namespace) -> int:
    seats = {each.node: Seat(each.node, each.boot, each.weight) for each in nodes if each.state == "up"}
    seat = Placement(View.of(seats.values())).owner(options.room)
    if seat is None:
        return fail("No node is up, so nobody has the room; is cluster_name theirs?", 1)
    print(json.dumps({"room": options.room, "node": seat.node, "boot": seat.boot}) if options.json else seat.node)
    return 0


def _status(config: ChatConfig, nodes: list[Heartbeat]) -> dict[str, Any]:
    return {
        "cluster": config.cluster_name,
        "broker": without_passwords(config.cluster_url or ""),
        "agree": _agree(nodes),
        "nodes": [
            {name: getattr(each, name) for name in (*_COLUMNS, "version", "view", "config", "weight")} for each in nodes
        ],
    }


def _agree(nodes: list[Heartbeat]) -> bool:
    """Return whether all nodes that are up see the same nodes, and have the same options."""
    return len({(each.view, each.config) for each in nodes if each.state == "up"}) <= 1


def _table(config: ChatConfig, nodes: list[Heartbeat]) -> str:
    rows = [_COLUMNS, *(tuple(str(getattr(each, name)) for name in _COLUMNS) for each in nodes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = f"{config.cluster_name} at {without_passwords(config.cluster_url or '')}: {len(nodes)} nodes"
    if not _agree(nodes):
        head += ", which do not see the same nodes, or have other options; their logs say which"
    return "\n".join((head, *lines))
