"""The command `chatx`."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from chatx import __version__
from chatx.config import ChatConfig
from chatx.errors import ChatError

if TYPE_CHECKING:
    from starlette.applications import Starlette

DEMO_HELP = """
examples:
  chatx demo                      http://localhost:4000, messages kept in ./chatx-demo.db
  chatx demo --port 4001
  chatx demo --store mychat.db
  chatx demo --host 0.0.0.0       for the phones in your network; anybody there can name themselves as they like

exit status: 0 stopped by Ctrl+C or SIGTERM, 1 could not run, 2 wrong options
"""

CHECK_HELP = """
examples:
  chatx check chatx.toml          a file with a table [chatx]
  chatx check pyproject.toml      or one with [tool.chatx]
  CHATX_ROOM_QUEUE_LIMIT=100 chatx check --json chatx.toml

exit status: 0 valid, 2 not valid
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 where it failed, 2 where its arguments are wrong."""
    parser = argparse.ArgumentParser(
        prog="chatx",
        description="A realtime chat engine for Python web applications.",
        epilog="Each command has its own --help with examples.",
    )
    parser.add_argument("--version", action="version", version=f"chatx {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="run a chat page to try in two browser tabs",
        description="Run a chat page on this machine; stop it with Ctrl+C. It needs no other service.",
        epilog=DEMO_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("--host", default="localhost", help="address to listen on (default: %(default)s)")
    demo.add_argument("--port", type=_port, default=4000, help="port to listen on (default: %(default)s)")
    demo.add_argument(
        "--store", default="chatx-demo.db", metavar="FILE", help="SQLite file for the messages (default: %(default)s)"
    )
    demo.set_defaults(run=_demo)

    check = commands.add_parser(
        "check",
        help="check a configuration file",
        description="Print the configuration in effect, from the file and CHATX_* variables, or what is wrong with it.",
        epilog=CHECK_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("config", metavar="CONFIG", help="TOML file")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=_check)

    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, `head` say, has what it wanted. Python writes out once more when it ends, and must not fail then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _demo(options: argparse.Namespace) -> int:
    try:
        import uvicorn

        from chatx.demo.app import demo_app
    except ModuleNotFoundError as error:
        return _fail(
            f"chatx demo needs {error.name}, which is not installed; install the extra: "
            "pip install 'chatx-engine[fastapi]'.",
            1,
        )
    try:
        sockets = _listening(options.host, options.port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = f"port {options.port} is taken; stop what listens there, or give another, such as --port 4001"
        else:
            problem = f"{error.strerror}; give an address of this machine and a port that you may use"
        return _fail(f"cannot listen on --host {options.host} --port {options.port}: {problem}.", 1)
    try:
        return _serve(uvicorn, demo_app(options.store), sockets, options)
    except ChatError as error:
        return _fail(f"--store {options.store}: {error.reason}")
    finally:
        for each in sockets:
            each.close()


def _serve(uvicorn: ModuleType, app: Starlette, sockets: list[socket.socket], options: argparse.Namespace) -> int:
    shown = "localhost" if options.host in ("0.0.0.0", "127.0.0.1", "::", "::1") else options.host
    print(f"chatx demo: open http://{shown}:{options.port} in two tabs; stop it with Ctrl+C", flush=True)
    config = uvicorn.Config(
        app,
        log_level="warning",
        # The protocol's own bound, with room for the frame around it.
        ws_max_size=65_536 + 1,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    shut_down = server.shutdown

    async def stop_first(sockets: list[socket.socket] | None = None) -> None:
        # uvicorn waits for every response to end, and a live page's does when the chat stops.
        await app.state.chat.stop()
        await shut_down(sockets)

    server.shutdown = stop_first
    # uvicorn raises each signal again once it has stopped; the default of this one would be a death by signal.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.run(sockets)
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0 if server.started else 1


def _listening(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen on every address of a host that this machine has.

    Raises:
        OSError: The host has no such address, or the port is taken on one of them.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    error: OSError | None = None
    for family, address in dict.fromkeys((each[0], each[4]) for each in found):
        try:
            sockets.append(socket.create_server(address, family=family))
        except OSError as problem:
            error = OSError(problem.errno, os.strerror(problem.errno or 0))
            # A machine may know ::1 by name and not have it.
            if problem.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break
    else:
        if sockets:
            return sockets
    for each in sockets:
        each.close()
    raise error or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def _check(options: argparse.Namespace) -> int:
    try:
        config = ChatConfig.load(options.config)
    except ChatError as error:
        if options.json:
            print(json.dumps({"error": {"code": error.code, "reason": error.reason}}))
            return 2
        return _fail(error.reason)
    effective = config.effective()
    if options.json:
        print(json.dumps(effective, indent=2))
    else:
        width = max(map(len, effective))
        for name, value in effective.items():
            print(f"{name:{width}}  {_shown(value)}")
    return 0


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} = {each}" for name, each in value.items())
    return str(value)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a whole number from 1 to 65535")
    return int(text)


def _fail(reason: str, status: int = 2) -> int:
    print(f"chatx: {reason}", file=sys.stderr)
    return status
