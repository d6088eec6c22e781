"""`chatx outbox`: what a store keeps for the notifier: look at it, let what is dead be tried again, drop it."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatx.adapters.outbox import LISTED_AT_ONCE, NOTIFICATION_STATES, Notification
from chatx.adapters.room_log import LogUnavailable
from chatx.adapters.store_versions import versions_of
from chatx.adapters.stores import IN_MEMORY, check_store, kind_of, open_store, path_of, shown
from chatx.cli.command import add_store_to, command, fail
from chatx.errors import ConfigError

if TYPE_CHECKING:
    from chatx.cli.command import Commands

HELP = """
examples:
  chatx outbox list --store sqlite:///chat.db
  chatx outbox list --state dead --limit 1000 --json      of the store that CHATX_STORE names
  chatx outbox retry 0192f0c1-2a3b-7000-8000-000000000001 --store sqlite:///chat.db
  chatx outbox retry --all      every dead one
  chatx outbox drop --all --store postgresql://chatx@db.example/chat

The notifier is told of what is stored from here, by the running chat. It may run meanwhile: within 5 s it takes up what
is to be tried again. A dead notification has failed too often; it stays until it is tried again or dropped.

exit status: 0 done, 1 the store cannot be used, or one of the ids is none that this can be done with, 2 wrong options
"""

_OTHERS = {
    "none": "The store {} has no tables of chatx; name the store that the chat has.",
    "older": "The tables of the store {} have version {}, and this chatx uses version {}; have chatx db upgrade take "
    "them up first, or use the chatx that made them.",
    "newer": "The tables of the store {} have version {}, and this chatx uses version {}; use the chatx that made "
    "them.",
}
"""What is said of a store whose tables are not those of this chatx."""

# Users that a line shows of a notification; the rest is counted.
_SHOWN_USERS = 5


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "outbox",
        summary="what is stored and the notifier was not told of",
        description="List what a store keeps for the notifier, let what is dead be tried again, or drop it.",
        epilog=HELP,
        run=run,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    listing = actions.add_parser("list", help="print it, oldest first", description="Print the outbox, oldest first.")
    listing.add_argument("--state", choices=NOTIFICATION_STATES, help="only these (default: all)")
    listing.add_argument("--after", metavar="ID", help="begin behind this one")
    listing.add_argument("--limit", type=_limit, default=100, metavar="N", help="how many at most (default: 100)")
    retry = actions.add_parser(
        "retry",
        help="let dead ones be tried again",
        description="Let dead notifications be tried again, as if for the first time.",
    )
    drop = actions.add_parser("drop", help="take some out", description="Take notifications out; nobody is told then.")
    for each in (retry, drop):
        each.add_argument("ids", nargs="*", metavar="ID", help="of the message that it is about")
        each.add_argument("--all", action="store_true", help="every dead one")
    for each in (listing, retry, drop):
        add_store_to(each, otherwise="CHATX_STORE")
        each.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Do what was asked with the outbox of a store, and return the exit status."""
    url = options.store if options.store is not None else os.environ.get("CHATX_STORE")
    if url is None:
        return fail("No store was named; give --store sqlite:///chat.db, or set CHATX_STORE.")
    if options.action != "list" and bool(options.ids) is options.all:
        return fail(f"Give the ids of what to {options.action}, or --all for every dead one; not both.")
    try:
        if kind_of(url) == "sqlite" and (path_of(url) == IN_MEMORY or not Path(path_of(url)).exists()):
            return fail(f"There is no file {shown(url)}; name the store that the chat has.", 1)
        check_store(url)
    except ConfigError as error:
        return fail(error)
    try:
        # Whoever only looks makes no tables, and takes none up.
        found = versions_of(url)
        if (said := _OTHERS.get(found.state)) is not None:
            return fail(said.format(shown(url), found.found, found.written), 1)
        store: Any = open_store(url)
    except ConfigError as error:
        return fail(error, 1)
    except LogUnavailable as error:
        return fail(f"The store {shown(url)}: {error}", 1)
    return asyncio.run(_act(store, options, shown(url)))


async def _act(store: Any, options: argparse.Namespace, name: str) -> int:
    try:
        if options.action == "list":
            return await _list(store, options)
        return await _change(store, options)
    except ConfigError as error:
        return fail(error, 1)
    except LogUnavailable as error:
        return fail(f"The store {name}: {error}", 1)
    except Exception as error:  # whatever a database says of itself
        return fail(f"The store {name} cannot be used now: {type(error).__name__}: {error}", 1)
    finally:
        await _answer(store.close())


async def _list(store: Any, options: argparse.Namespace) -> int:
    rows = await _answer(store.list_notifications(options.state, options.after, options.limit))
    if options.json:
        print(json.dumps({"notifications": [_fields(each) for each in rows]}, indent=2))
    else:
        for each in rows:
            print(_line(each))
        if len(rows) == options.limit:
            print(f"There may be more: --after {rows[-1].id}")
        elif not rows:
            print("There is nothing.")
    return 0


async def _change(store: Any, options: argparse.Namespace) -> int:
    change = store.retry_notifications if options.action == "retry" else store.drop_notifications
    wanted = list(dict.fromkeys(options.ids))
    pages = _dead(store) if options.all else _pages(wanted)
    count = 0
    async for ids in pages:
        count += await _answer(change(ids))
    done = "retried" if options.action == "retry" else "dropped"
    if options.json:
        print(json.dumps({done: count}))
    else:
        print(f"{count} {done}.")
    if not options.all and count < len(wanted):
        kind = "dead" if options.action == "retry" else "in the outbox"
        return fail(f"{len(wanted) - count} of {len(wanted)} ids are not {kind}; `chatx outbox list` has those.", 1)
    return 0


async def _dead(store: Any) -> AsyncIterator[list[str]]:
    """Give the ids of all that are dead, many at a time."""
    after = None
    while rows := await _answer(store.list_notifications("dead", after, LISTED_AT_ONCE)):
        after = rows[-1].id
        yield [each.id for each in rows]


async def _pages(ids: list[str]) -> AsyncIterator[list[str]]:
    for first in range(0, len(ids), LISTED_AT_ONCE):
        yield ids[first : first + LISTED_AT_ONCE]


async def _answer(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer


def _fields(row: Notification) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__struct_fields__}


def _line(row: Notification) -> str:
    if row.users is None:
        users = "whom the notifier says"
    else:
        users = ", ".join(row.users[:_SHOWN_USERS])
        if len(row.users) > _SHOWN_USERS:
            users += f" and {len(row.users) - _SHOWN_USERS} more"
    if row.state == "dead":
        when = f"{row.reason} after {row.attempts} attempts"
    else:
        word = "due" if row.state == "waiting" else "until"
        # What is tried again is due since always.
        time = datetime.fromtimestamp(max(0, row.due_at) / 1000, UTC).isoformat(timespec="seconds")
        when = f"{word} {time}, {row.attempts} attempts" if row.due_at else f"due now, {row.attempts} attempts"
    return f"{row.id}  {row.state}  {row.room_id}  to {users}  ({when})"


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LISTED_AT_ONCE:
        raise argparse.ArgumentTypeError(f"{text!r} is no limit; give a whole number from 1 to {LISTED_AT_ONCE}")
    return int(text)
