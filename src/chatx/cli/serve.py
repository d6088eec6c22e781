"""`chatx serve`: the native server as a command, from its options to its exit status."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Protocol

from chatx.cli.command import add_store_to, command, fail, port
from chatx.cli.ending import LEAST_S, LEFT_S, Ending, close_loop
from chatx.cli.listening import CannotListen, listening
from chatx.cli.logs import FORMATS, LEVELS, log_to
from chatx.errors import ChatError, Closed, ConfigError
from chatx.extras import needs

if TYPE_CHECKING:
    from chatx.chat import Chat
    from chatx.cli.command import Commands
    from chatx.cli.settings import Served
    from chatx.cli.tls import Certificate
    from chatx.gateway.native.http import AsgiApp
    from chatx.gateway.native.server import NativeServer
    from chatx.gateway.operations.metrics import Metrics

logger: logging.Logger = logging.getLogger("chatx")

_API: Final = "/api"

HELP = """
examples:
  chatx serve --insecure-user-param                     to develop: clients name themselves with the parameter user_id
  CHATX_SECRET=... chatx serve --host 0.0.0.0           clients show a token: CHATX_SECRET=... chatx token alice
  CHATX_SECRET=... chatx serve --store sqlite:///chat.db --origin https://example.org
  CHATX_SECRET=... chatx serve --config chatx.toml --tls-cert cert.pem --tls-key key.pem
  CHATX_SECRET=... chatx serve --workers 4 --data chatx-data

The socket is at /socket (clients connect to ws://HOST:PORT/socket/websocket?vsn=2.0.0). Beside it are /healthz, /readyz
and /metrics, and, for whoever shows CHATX_ADMIN_TOKEN as a bearer token, /rooms, /rooms/ID and /api, for backends,
which /api/openapi.json describes.

environment:
  CHATX_SECRET        what tokens are signed with; 32 bytes or more
  CHATX_ADMIN_TOKEN   opens /rooms and /api
  CHATX_...           any option of the configuration, as CHATX_MAX_CONNECTIONS_PER_USER=0, or, for a node of several,
                      CHATX_CLUSTER_STRATEGY=pg with CHATX_CLUSTER_URL=nats://broker.example

--workers above 1 means cluster_strategy 'horde', unless the options say 'pg'. Without a cluster_url they begin a
nats-server of their own, which keeps the messages in --data DIR.

A store has one writer: where another chat writes to it still, this one waits for up to drain_timeout_ms.

SIGTERM and Ctrl+C drain: clients are sent away to come back, messages are saved, within drain_timeout_ms. A second one
ends it at once. SIGHUP reads the certificate anew, for whoever connects then; without one it drains too.

exit status: 0 drained after a signal, 1 could not run or was cut short, 2 wrong options, 130 stopped before it listened
"""

_RESERVED_MS = 1000
"""Ms of the drain timeout that are kept for the process to end in; at most a quarter of the timeout."""

MOST_WORKERS = 128
"""Processes that serve a port together, at most."""

_DRAINING = (signal.SIGINT, signal.SIGTERM)


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "serve",
        summary="run the native server",
        description="Serve the chat on a port: a WebSocket for clients, health and figures for operators.",
        epilog=HELP,
        run=run,
    )
    parser.add_argument("--host", default="localhost", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port, default=4000, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="processes that serve the port together, each a node of one chat (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="where several workers keep the broker between them, where the options name none (default: chatx-data)",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with a table [chatx]; CHATX_* variables go first")
    add_store_to(parser, otherwise="memory")
    parser.add_argument(
        "--origin",
        nargs="+",
        action="extend",
        default=[],
        metavar="ORIGIN",
        help="origins besides the server's own whose pages may connect, as https://example.org",
    )
    parser.add_argument(
        "--idle-timeout",
        type=float,
        metavar="SECONDS",
        help="silence after which a socket is closed; clients send a heartbeat every 30 s (default: 60)",
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate chain, PEM; with --tls-key")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key, PEM")
    parser.add_argument(
        "--forwarded-allow-ips",
        type=lambda text: tuple(filter(None, (each.strip() for each in text.split(",")))),
        default=(),
        metavar="IPS",
        help="proxies whose X-Forwarded-For and X-Forwarded-Proto are believed: addresses and networks, with commas",
    )
    parser.add_argument(
        "--insecure-user-param",
        action="store_true",
        help="let clients name themselves with the parameter user_id; for development, on a loopback address only",
    )
    parser.add_argument(
        "--log-format", choices=FORMATS, default="auto", help="auto is human on a terminal, else json (default: auto)"
    )
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="the least that is logged (default: info)")


def run(options: argparse.Namespace) -> int:
    """Serve the chat until a signal, and return the exit status."""
    try:
        with needs("gateway", "chatx serve"):
            from chatx.cli import settings
            from chatx.cli.workers import supervisor
    except ConfigError as error:
        return fail(error, 1)
    log_to(style=options.log_format, level=options.log_level)
    if options.workers > 1:
        return supervisor.run(options)
    if options.data is not None:
        return fail("--data is where several workers keep their broker, and there is one; give --workers 2, or more.")
    ending = Ending()
    with ExitStack() as stack:
        try:
            served = settings.served(options, {})
            sockets = stack.enter_context(listening(options.host, options.port))
            if options.insecure_user_param:
                check_loopback(sockets)
        except CannotListen as error:
            return fail(str(error), 1)
        except ChatError as error:
            return fail(error)
        return serve(served, sockets, ending, Alone(sockets, tls=served.tls is not None))


class Company(Protocol):
    """Who a server is among: alone on its port, or one of several workers."""

    async def heeds(self, metrics: Metrics) -> None:
        """Take note that a signal drains it from now on."""
        ...

    def serves(self) -> None:
        """Take note that clients are let in."""
        ...

    async def figures(self) -> bytes:
        """Return what `/metrics` answers."""
        ...

    @property
    def gives_way(self) -> Callable[[int], bool] | None:
        """What is asked with the number of connections here whether to leave a newcomer to the others, if there are."""
        ...

    def leaves(self) -> None:
        """Take note that this one alone drains, and takes nobody any more."""
        ...


class Alone:
    """The company of a server that has its port to itself.

    Args:
        sockets: What it listens on.
        tls: Whether it speaks TLS.
    """

    gives_way = None

    def __init__(self, sockets: list[socket.socket], *, tls: bool) -> None:
        self._sockets = sockets
        self._tls = tls
        self._metrics: Metrics | None = None

    async def heeds(self, metrics: Metrics) -> None:
        """Say where it listens."""
        self._metrics = metrics
        say_where(self._sockets, tls=self._tls)

    def serves(self) -> None:
        """Do nothing: nobody else is to be told."""

    def leaves(self) -> None:
        """Do nothing."""

    async def figures(self) -> bytes:
        """Return its own figures."""
        return b"" if self._metrics is None else self._metrics.text()


def serve(served: Served, sockets: list[socket.socket], ending: Ending, company: Company) -> int:
    """Serve on these sockets until a signal, and return the exit status.

    Args:
        served: What is served.
        sockets: They listen already.
        ending: The deadline of this process.
        company: Who it is among.
    """
    from chatx.gateway.api.access import token_shown
    from chatx.gateway.operations.app import operations_app
    from chatx.gateway.operations.metrics import Metrics

    chat, server = served.chat, served.server
    metrics = Metrics(chat, server)
    operations = operations_app(
        chat,
        metrics,
        ready=lambda: not server.draining,
        admin_token=served.operator,
        figures=company.figures,
    )
    server.http = _beside(operations, chat.api(authenticate=token_shown(served.operator)))
    _raise_open_files()
    loop = _loop_factory()()
    try:
        status = loop.run_until_complete(_serve(chat, server, sockets, served.tls, ending, company, metrics))
    finally:
        hung = close_loop(loop, LEFT_S / 2)
    hung += ending.threads_left(LEFT_S / 2)
    if hung:
        logger.error(
            "Tasks and threads of adapters that did not end and are left behind: %d.", hung, extra={"left": hung}
        )
        ending.within(min(LEFT_S, max(0.0, ending.left)))
    else:
        ending.cancel()
    return status


def _beside(operations: AsgiApp, api: AsgiApp) -> AsgiApp:
    """Return what answers beside the socket: the API below `/api`, and operations elsewhere.

    Not by Starlette's mount: that has no path with a newline in it, as one is decoded with `%0A` in an id, so its own
    answer would be had in place of the API's.
    """

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == _API or scope["path"].startswith(f"{_API}/"):
            await api({**scope, "root_path": _API}, receive, send)
        else:
            await operations(scope, receive, send)

    return answer


def say_where(sockets: list[socket.socket], *, tls: bool) -> None:
    """Write to the log where clients find it."""
    for listens in sockets:
        scheme, address = "https" if tls else "http", _shown(listens)
        logger.info("Listening on %s://%s", scheme, address, extra={"scheme": scheme, "address": address})


async def _serve(
    chat: Chat,
    server: NativeServer,
    sockets: list[socket.socket],
    tls: Certificate | None,
    ending: Ending,
    company: Company,
    metrics: Metrics,
) -> int:
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    # What it was begun without, as a shell does to what it runs in the background and `nohup` to all, it goes without.
    heeded = [each for each in (*_DRAINING, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    for each in heeded:
        loop.add_signal_handler(each, signals.put_nowait, each)
    alone = False  # an operator has asked for this one by its name

    def asked() -> None:
        nonlocal alone
        alone = True
        signals.put_nowait(signal.SIGTERM)

    chat.on_drain = asked
    await company.heeds(metrics)
    told = loop.create_task(_told_to_go(signals, tls), name="chatx signal")
    starting = loop.create_task(chat.start(), name="chatx start")
    await asyncio.wait((starting, told), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        logger.info("Stopping after %s, before the chat has started.", told.result().name)
        await chat.stop()
        await asyncio.wait((starting,))
    if (error := starting.exception()) is not None:
        told.cancel()
        return _not_started(error, told)
    await server.start(sockets, gives_way=company.gives_way)
    logger.info("Ready. Clients connect to %s/websocket.", server.path, extra={"path": server.path})
    company.serves()
    given = await told
    logger.info("Draining after %s.", given.name, extra={"signal": given.name})
    if alone and company.gives_way is not None:
        company.leaves()
        await server.listen_no_more()
    draining = loop.create_task(_drain(chat, server, ending), name="chatx drain")
    again = loop.create_task(_told_again(signals), name="chatx second signal")
    await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
    # From here on a signal ends it as it ends any process.
    for each in heeded:
        loop.remove_signal_handler(each)
        signal.signal(each, signal.SIG_DFL)
    cut_short = not draining.done()
    if cut_short:
        logger.error("Ended by a second signal: what was not drained is lost.")
        ending.within(LEFT_S)
        draining.cancel()
        await server.close()  # the end of the loop cancels the chat's stop
    again.cancel()
    await asyncio.gather(draining, again, return_exceptions=True)
    if not cut_short:
        draining.result()
        ending.status = 0
        logger.info("Stopped.")
    return int(cut_short)


def _not_started(error: BaseException, told: asyncio.Task[signal.Signals]) -> int:
    """Say why the chat has not started, and return the exit status."""
    if isinstance(error, Closed) and told.done():
        logger.info("Stopped.")
        return 0
    if isinstance(error, ConfigError):
        return fail(error)
    if isinstance(error, ChatError):
        logger.error("The chat was not started: %s", error.reason, extra={"code": error.code})
        return 1
    raise error


async def _told_to_go(signals: asyncio.Queue[signal.Signals], tls: Certificate | None) -> signal.Signals:
    """Wait for a signal that ends the server, and return it; one that has the certificate read anew does not end it."""
    while (given := await signals.get()) is signal.SIGHUP and tls is not None:
        try:
            tls.read_anew()
        except ConfigError as error:
            logger.error(
                "The certificate was not read anew, and the one before stays: %s",
                error.reason,
                extra={"code": error.code},
            )
        else:
            logger.info("The certificate was read anew, for whoever connects from now on.")
    return given


async def _told_again(signals: asyncio.Queue[signal.Signals]) -> None:
    while await signals.get() is signal.SIGHUP:
        pass


async def _drain(chat: Chat, server: NativeServer, ending: Ending) -> None:
    """Send the clients away, then save what is to be saved; both within the drain timeout."""
    loop = asyncio.get_running_loop()
    timeout_ms = chat.config.drain_timeout_ms
    ending.within(max(LEAST_S, timeout_ms / 1000))
    deadline = loop.time() + (timeout_ms - min(_RESERVED_MS, timeout_ms // 4)) / 1000
    logger.info("Sockets to send away: %d.", server.connections, extra={"sockets": server.connections})
    await server.drain((deadline - loop.time()) / 2)
    await chat.stop(drain_timeout_ms=max(1, int((deadline - loop.time()) * 1000)))
    await server.close()


def _workers(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and 1 <= int(text) <= MOST_WORKERS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of processes; give a whole one from 1 to {MOST_WORKERS}"
        )
    return int(text)


def check_loopback(sockets: list[socket.socket]) -> None:
    """Raise `ConfigError` where clients that name themselves could come from elsewhere."""
    for each in sockets:
        address = each.getsockname()[0]
        if not ip_address(address.partition("%")[0]).is_loopback:
            raise ConfigError(
                f"--insecure-user-param lets anybody be anybody, and {address} is not this machine's own address; "
                "give --host localhost, or set CHATX_SECRET and leave the option out."
            )


def _raise_open_files() -> None:
    """Raise the soft limit of open files to the hard one: each socket is one."""
    try:
        import resource
    except ModuleNotFoundError:  # there is none on Windows, and no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # some systems call their limit infinite, and take a number only
        logger.warning(
            "The limit of open files stays at %d, and so about as many sockets.", soft, extra={"limit": soft}
        )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _shown(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
