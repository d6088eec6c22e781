"""`chatx db`: which version the tables of a store have, and taking them up to this one's."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from chatx.adapters.room_log import LogUnavailable
from chatx.adapters.store_versions import Versions, upgrade, versions_of
from chatx.adapters.stores import shown
from chatx.cli.command import add_store_to, command, configuration, fail
from chatx.errors import ChatError, ConfigError

if TYPE_CHECKING:
    from chatx.cli.command import Commands

HELP = """
examples:
  chatx db current --store sqlite:///chat.db
  chatx db current --store postgresql://chatx@db.example/chat --json
  chatx db upgrade --config chatx.toml      the store that it names, or CHATX_STORE

A chat that starts makes the tables of its store, or takes them up, by itself. `upgrade` does that ahead of it: in one
transaction, and safely while a chat runs. Where one of an earlier version writes, it is refused: end that one first.
`current` changes nothing.

exit status: 0 the tables are those of this chatx, 1 the store cannot be used now, 2 wrong options, or no such store,
3 `current` found others, or none
"""

_SAID = {
    "none": "There are no tables yet; a chat makes them when it starts, and so does chatx db upgrade.",
    "older": "A chat takes them up when it starts, and so does chatx db upgrade.",
    "current": "They are those of this chatx.",
    "newer": "A later chatx made them, and this one does not use them: use that one, or another store.",
}

OTHERS = 3
"""The exit status of a look that found other tables than this chatx writes."""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "db",
        summary="look at the tables of a store, or take them up to this version",
        description="Say which version the tables of a store have, or take them up to the one that this chatx writes.",
        epilog=HELP,
        run=run,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    for name, summary in (
        ("current", "say which version the tables have, and change nothing"),
        ("upgrade", "take the tables up to this version, or make them"),
    ):
        action = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        add_store_to(action, otherwise="what the configuration says")
        action.add_argument(
            "--config", metavar="FILE", help="TOML file with a table [chatx]; CHATX_* variables go first"
        )
        action.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Look at the tables or take them up, and return the exit status."""
    url: str | None = None
    try:
        url = configuration(options.config, options.store).store
        if url is None:
            return fail("No store was named; give --store sqlite:///chat.db, or set CHATX_STORE.")
        if options.action == "current":
            found = versions_of(url)
            _print(options, shown(url), found, _SAID[found.state])
            return 0 if found.state == "current" else OTHERS
        found = upgrade(url)
    except ConfigError as error:
        return fail(error)
    except ChatError as error:
        return fail(error, 1)
    except LogUnavailable as error:
        return fail(f"The store {shown(url or '')}: {error}", 1)
    did = "made" if found.state == "none" else "taken up" if found.state == "older" else "left as they are"
    _print(options, shown(url), found, f"They were {did}, and are those of this chatx.")
    return 0


def _print(options: argparse.Namespace, store: str, found: Versions, said: str) -> None:
    if options.json:
        state = found.state if options.action == "current" else "current"
        version = found.found if options.action == "current" else found.written
        before = {} if options.action == "current" else {"before": found.found}
        print(json.dumps({"store": store, "state": state, "version": version, **before, "writes": found.written}))
    else:
        tables = f"version {found.found}" if found.found else "none"
        print(f"store   {store}\ntables  {tables}; this chatx writes version {found.written}\n{said}")
