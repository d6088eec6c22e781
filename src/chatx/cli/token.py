"""`chatx token`: a signed token that lets one user in."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
import warnings
from typing import TYPE_CHECKING

from chatx.cli.command import command, fail
from chatx.errors import ChatError, ConfigError
from chatx.extras import needs

if TYPE_CHECKING:
    from chatx.cli.command import Commands

HELP = """
examples:
  CHATX_SECRET=... chatx token alice
  CHATX_SECRET=... chatx token alice --ttl 15m
  CHATX_SECRET=... chatx token guest-7 --rooms lobby 'help-*' --ttl 1d
  CHATX_SECRET=... chatx token alice --json

The secret is that of the server: `openssl rand -hex 32` makes one. A token cannot be taken back before its time, only
its user's sockets can be closed; so keep the time short.

exit status: 0 printed, 1 an extra is missing, 2 wrong options, or no secret
"""

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "token",
        summary="make a token that lets a user in",
        description="Print a token (JWT, HS256) signed with CHATX_SECRET, which lets a user in to `chatx serve`.",
        epilog=HELP,
        run=run,
    )
    parser.add_argument("user", metavar="USER", help="user id")
    parser.add_argument(
        "--rooms", nargs="+", action="extend", metavar="ROOM", help="rooms it is for: ids, or prefix* (default: all)"
    )
    parser.add_argument(
        "--ttl", type=_seconds, default=3600, help="how long it is valid: seconds, or as 30s, 15m, 1h, 7d (default: 1h)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print a token, and return the exit status."""
    try:
        with needs("gateway", "chatx token"):
            from chatx.gateway.entry.handshake import Identity
            from chatx.gateway.entry.tokens import SECRET_BYTES, sign
    except ConfigError as error:
        return fail(error, 1)
    secret = os.environ.get("CHATX_SECRET", "")
    if not secret:
        return fail("CHATX_SECRET is not set; set it to the secret of the server. `openssl rand -hex 32` makes one.")
    expires_at = int(time.time()) + options.ttl
    try:
        identity = Identity(options.user, expires_at, None if options.rooms is None else tuple(options.rooms))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the secret, which was said
            token = sign(secret, identity)
    except ConfigError as error:
        return fail(f"CHATX_SECRET: {error.reason}")
    except ChatError as error:
        return fail(error.reason)
    if len(secret.encode()) < SECRET_BYTES:
        fail(f"CHATX_SECRET has fewer than {SECRET_BYTES} bytes: it can be guessed by whoever has one token.")
    if options.json:
        print(json.dumps({"token": token, "user_id": options.user, "rooms": options.rooms, "expires_at": expires_at}))
    else:
        print(token)
    return 0


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if found is None or not int(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give seconds above 0, or as 30s, 15m, 1h, 7d")
    return int(found[1]) * _UNITS[found[2]]
