"""The link between nodes over core NATS.

Rules:
1. The client never reconnects by itself. What it does then cannot be told apart from outside: it replays what was
   published meanwhile, and some errors of a server close it for ever. Here each connection is a client of its own.
2. Connected means that every subscription is there, and that the server has said so.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from chatx.cluster.answers import Answers, read_answer
from chatx.cluster.backplane import (
    PENDING_BYTES,
    SERVED_AT_ONCE,
    BackplaneAway,
    Broker,
    Handle,
    LinkState,
    NobodyThere,
    NoReply,
    Receive,
    check_asked,
    check_boot,
    check_published,
    check_sent,
    check_topic,
)
from chatx.cluster.nats_options import NatsOptions, shown
from chatx.extras import needs

with needs("cluster", "chatx.cluster.nats"):
    from nats import errors
    from nats.aio.msg import Msg

    from chatx.cluster.nats_connection import (
        CONNECTS_WITHIN_S,
        ENDING_S,
        SUBSCRIBES_WITHIN_S,
        Connection,
        Subscription,
        take_now,
        unless_lost,
    )

logger: logging.Logger = logging.getLogger("chatx")

SHORTEST_PAUSE_S = 0.05
"""The pause behind a connection that is lost, in seconds; it doubles where the next one fails, or does not last."""

LONGEST_PAUSE_S = 1.0
"""The longest pause between two attempts to connect, in seconds."""


class NatsBackplane:
    """A `Backplane` over core NATS.

    Args:
        boot: The id of this life of the node.
        options: Where NATS is.

    Raises:
        ConfigError: The options make no sense, or a file of TLS or credentials cannot be read.
        ValueError: The boot id is none.
    """

    def __init__(self, boot: str, options: NatsOptions) -> None:
        check_boot(boot)
        options.check()
        options.tls()
        options.signs_with()
        self._boot = boot
        self._options = options
        self._prefix = f"cx.{options.cluster}."
        self._subscriptions: dict[Subscription, None] = {}
        self._connection: Connection | None = None
        self._opening: Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        self._was_connected = False
        self._reason = "it was not tried yet"
        self._answers: Answers | None = None
        self._requests = 0
        self._on_state: list[Callable[[LinkState], object]] = []
        self._on_missed: list[Callable[[str | None], object]] = []

    @property
    def boot(self) -> str:
        """The id of this life of the node."""
        return self._boot

    @property
    def state(self) -> LinkState:
        """Whether the broker is reached."""
        return "away" if self._connection is None else "connected"

    @property
    def pending_bytes(self) -> int:
        """How much waits to be sent, in bytes."""
        return 0 if self._connection is None else self._connection.pending_bytes

    def watch(
        self,
        on_state: Callable[[LinkState], object] | None = None,
        on_missed: Callable[[str | None], object] | None = None,
    ) -> None:
        """Tell of what happens to the link; see `Backplane.watch`."""
        if on_state is not None:
            self._on_state.append(on_state)
        if on_missed is not None:
            self._on_missed.append(on_missed)

    async def connect(self, timeout_s: float = 5.0) -> None:
        """Reach the broker, and keep doing so until `close`.

        Raises:
            BackplaneAway: It was not reached in time.
        """
        if self._keeper is None:
            self._first = asyncio.Event()
            self._keeper = asyncio.get_running_loop().create_task(self._keep())
        try:
            async with asyncio.timeout(timeout_s):
                await self._first.wait()
        except TimeoutError:
            raise BackplaneAway(f"NATS was not reached within {timeout_s} s: {self._reason}") from None
        finally:
            if not self._first.is_set():
                await self.close()

    def renew(self, reason: str) -> None:
        """Make another connection; see `Backplane.renew`."""
        if self._connection is not None:
            self._connection.said = errors.Error(reason)
            self._connection.give_up()

    async def close(self) -> None:
        """Send what waits, for a second at most, and end."""
        connection, keeper = self._connection, self._keeper
        if connection is not None and connection.usable:
            with suppress(Exception):
                async with asyncio.timeout(ENDING_S):
                    # The server confirms it, so that whoever asks this boot from here on is told that nobody is there.
                    for each in list(connection.made):
                        connection.unsubscribe(each)
                    await connection.confirm(ENDING_S)
        self._keeper = None
        self._reason = "the link was closed"
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        if self._answers is not None:
            await self._answers.end()

    async def broker(self) -> Broker:
        """Ask the server who it is; see `Backplane.broker`.

        Raises:
            BackplaneAway: The link is away, or the server does not answer.
        """
        return await self._ready().ask()

    def publish(self, topic: str, payload: bytes) -> None:
        """Send to all who are subscribed; see `Backplane.publish`.

        Raises:
            BackplaneAway: The link is away.
            BackplaneFull: Too much waits.
            PayloadTooLarge: The payload is too large.
            ValueError: The topic is none.
        """
        check_published(topic, payload, self.pending_bytes)
        take_now(self._ready().client.publish(self._prefix + topic, payload))

    async def subscribe(self, topic: str, receive: Receive) -> NatsSubscribed:
        """Receive what is published on a topic; see `Backplane.subscribe`.

        Raises:
            ValueError: The topic is none.
        """
        check_topic(topic)
        subscription = Subscription(topic, self._prefix + topic, lambda message: receive(message.data))
        await self._subscribe(subscription)
        return NatsSubscribed(lambda: self._end(subscription))

    async def serve(self, handle: Handle, *, at_once: int = SERVED_AT_ONCE) -> None:
        """Answer what this boot is asked; see `Backplane.serve`."""
        if self._answers is not None:
            raise ValueError("This boot is served already; serve may be called once.")
        answers = self._answers = Answers(handle, at_once)

        def take(message: Msg) -> None:
            if message.reply:
                answers.take(message.data, lambda answer: self._reply(message.reply, answer))

        await self._subscribe(Subscription(None, self._subject_of(self._boot), take))

    async def request(self, boot: str, payload: bytes, timeout_s: float) -> bytes:
        """Ask a node; see `Backplane.request` for what it raises."""
        check_asked(boot, payload, self.pending_bytes, self._requests)
        try:
            reply = await self._asked(self._subject_of(boot), payload, timeout_s, None, f"node {boot}")
        except errors.NoRespondersError:
            raise NobodyThere(f"Nobody serves node {boot}; it has ended, or has not begun.") from None
        return read_answer(boot, reply)

    async def ask_broker(
        self, subject: str, payload: bytes, timeout_s: float, headers: dict[str, str] | None = None
    ) -> bytes:
        """Ask the server itself; see `AsksBroker.ask_broker` for what it raises."""
        check_sent(payload, self.pending_bytes, self._requests)
        try:
            return await self._asked(subject, payload, timeout_s, headers, "the server")
        except errors.NoRespondersError:
            raise NobodyThere("The server has nobody who answers this; is JetStream enabled?") from None

    async def _asked(
        self, subject: str, payload: bytes, timeout_s: float, headers: dict[str, str] | None, whom: str
    ) -> bytes:
        connection = self._ready()
        self._requests += 1
        asking = asyncio.get_running_loop().create_task(
            connection.client.request(subject, payload, timeout=timeout_s, headers=headers)
        )
        try:
            both: list[asyncio.Future[Any]] = [asking, connection.lost]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                reason = connection.said or "it did not answer"
                raise NoReply(f"The link to NATS was lost while {whom} was asked: {reason}; perhaps it was done.")
            content: bytes = asking.result().data
        except errors.NoRespondersError:
            raise
        except errors.TimeoutError:
            raise NoReply(f"No answer of {whom} came within {timeout_s} s; perhaps it was done.") from None
        except errors.Error as error:
            raise BackplaneAway(f"NATS is away: {error}") from error
        finally:
            self._requests -= 1
            asking.cancel()
        return content

    def _subject_of(self, boot: str) -> str:
        return f"{self._prefix}n.{boot}.rpc"

    def _ready(self) -> Connection:
        connection = self._connection
        if connection is None or not connection.usable:
            raise BackplaneAway(f"NATS is away: {self._reason}")
        return connection

    def _reply(self, subject: str, answer: bytes) -> None:
        connection = self._connection
        if connection is None or not connection.usable:
            return  # who asked hears that there was no reply
        if connection.pending_bytes + len(answer) > PENDING_BYTES + 1:
            logger.warning("a reply to another node was dropped: too much waits to be sent")
            return
        take_now(connection.client.publish(subject, answer))

    async def _subscribe(self, subscription: Subscription) -> None:
        self._subscriptions[subscription] = None
        for connection in (self._connection, self._opening):
            if connection is not None and connection.usable:
                # Where the connection goes meanwhile the next one has it.
                with suppress(errors.Error, OSError, TimeoutError):
                    await connection.subscribe(subscription)
                    async with asyncio.timeout(SUBSCRIBES_WITHIN_S):
                        await unless_lost(connection, connection.confirm(SUBSCRIBES_WITHIN_S))
                if subscription.ended:
                    connection.unsubscribe(subscription)

    def _end(self, subscription: Subscription) -> None:
        subscription.end()
        self._subscriptions.pop(subscription, None)
        for connection in (self._connection, self._opening):
            if connection is not None:
                connection.unsubscribe(subscription)

    async def _keep(self) -> None:
        """Have a connection, one after the other, until this is cancelled."""
        turn = 0
        pause = SHORTEST_PAUSE_S
        dropping: asyncio.Task[None] | None = None
        try:
            while True:
                url = self._options.servers[turn % len(self._options.servers)]
                turn += 1
                connection = await self._opened(url)
                if connection is None:
                    pause = await _paused(pause)
                    continue
                began = asyncio.get_running_loop().time()
                self._connected(connection)
                try:
                    await connection.until_lost()
                    self._reason = f"{shown(url)}: {connection.said or 'it did not answer'}"
                finally:
                    self._connection = None
                    connection.give_up()
                    self._tell_state("away")
                    if dropping is not None:
                        await dropping
                    dropping = asyncio.get_running_loop().create_task(connection.drop())
                if asyncio.get_running_loop().time() - began > LONGEST_PAUSE_S:
                    pause = SHORTEST_PAUSE_S
                pause = await _paused(pause)
        finally:
            if dropping is not None:
                await dropping

    async def _opened(self, url: str) -> Connection | None:
        """Return a connection on which everything is subscribed, or None; the reason is kept."""
        connection = self._opening = Connection(self._tell_missed)
        try:
            async with asyncio.timeout(CONNECTS_WITHIN_S):
                await connection.open(url, self._boot, self._options)
            async with asyncio.timeout(SUBSCRIBES_WITHIN_S):
                # Others may come, and go, while this waits.
                while missing := [each for each in self._subscriptions if each not in connection.made]:
                    for each in missing:
                        if not each.ended:
                            await connection.subscribe(each)
                # A server that refuses one of them may say nothing more.
                await unless_lost(connection, connection.confirm(SUBSCRIBES_WITHIN_S))
            if not connection.usable:
                raise errors.ConnectionClosedError
        except BaseException as error:
            self._reason = f"{shown(url)}: {connection.said or error or 'no answer in time'}"
            if "authori" in self._reason.lower() or "authenti" in self._reason.lower():
                self._reason += "; look at the user in cluster_url, or at cluster_credentials"
            await connection.drop()
            if not isinstance(error, Exception):
                raise
            logger.debug("NATS was not reached at %s", self._reason)
            return None
        finally:
            self._opening = None
        return connection

    def _connected(self, connection: Connection) -> None:
        self._connection = connection
        again, self._was_connected = self._was_connected, True
        self._tell_state("connected")
        if again:
            self._tell_missed(None)
        self._first.set()

    def _tell_state(self, state: LinkState) -> None:
        if state == "connected":
            logger.info("the link to NATS is connected", extra={"code": "link_connected"})
        else:
            level = logging.INFO if self._keeper is None else logging.WARNING  # closed by this node itself, or lost
            logger.log(level, "the link to NATS is away: %s", self._reason, extra={"code": "link_away"})
        for told in self._on_state:
            _contained(told, state)

    def _tell_missed(self, topic: str | None) -> None:
        for told in self._on_missed:
            _contained(told, topic)


class NatsSubscribed:
    """A subscription that was made.

    Args:
        end: Ends it.
    """

    def __init__(self, end: Callable[[], object]) -> None:
        self._ended = end

    def end(self) -> None:
        """End it; twice is harmless."""
        self._ended()


async def _paused(pause: float) -> float:
    """Wait about so long, since all nodes lose a server at once; return how long to wait the next time."""
    await asyncio.sleep(pause * random.uniform(0.5, 1))
    return min(LONGEST_PAUSE_S, 2 * pause)


def _contained(told: Callable[[Any], object], what: object) -> None:
    try:
        told(what)
    except Exception:
        logger.exception("a callback of the link between nodes raised; the link goes on")
