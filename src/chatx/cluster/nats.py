"""The link between nodes over core NATS; the one file that knows which client it is, `nats-py`.

Rules:
1. The client never reconnects by itself. What it does then cannot be told apart from outside: it replays what was
   published meanwhile, and some errors of a server close it for ever. Here each connection is a client of its own.
2. A connection is believed while the server answers: one question is out at a time, and after two seconds without its
   answer the connection is given up. Seconds are counted by turns of the loop, so that a process which stood still does
   not blame the server.
3. Connected means that every subscription is there, and that the server has said so.
4. Nothing raises into the client's tasks.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from chatx.cluster.answers import Answers, read_answer
from chatx.cluster.backplane import (
    PAYLOAD_BYTES,
    PENDING_BYTES,
    REQUESTS_AT_ONCE,
    SERVED_AT_ONCE,
    BackplaneAway,
    BackplaneFull,
    Handle,
    LinkState,
    NobodyThere,
    NoReply,
    Receive,
    check_boot,
    check_payload,
    check_topic,
    full,
    full_of_requests,
)
from chatx.cluster.nats_options import NatsOptions, shown
from chatx.extras import needs

with needs("cluster", "chatx.cluster.nats"):
    from nats import errors
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription as ClientSubscription

logger: logging.Logger = logging.getLogger("chatx")

ASKED_EVERY_S = 1.0
"""How often the server is asked whether it is there, in seconds."""

UNANSWERED = 2
"""How many such turns without an answer end a connection."""

CONNECTS_WITHIN_S = 2
"""How long one attempt to connect may take, in seconds."""

SUBSCRIBES_WITHIN_S = 10
"""How long the server may take to confirm what is subscribed, in seconds."""

ENDING_S = 1
"""How long the end of a connection is waited for, in seconds."""

SHORTEST_PAUSE_S = 0.05
"""The pause behind a connection that is lost, in seconds; it doubles where the next one fails, or does not last."""

LONGEST_PAUSE_S = 1.0
"""The longest pause between two attempts to connect, in seconds."""

WAITING_MESSAGES = 65_536
"""How much of one subscription may wait for its callback, in messages. What comes beyond is dropped, and told."""

WAITING_BYTES = 8_388_608
"""How much of one subscription may wait for its callback, in bytes. What comes beyond is dropped, and told."""


class _Subscription:
    """One that is to be there on each connection."""

    def __init__(self, topic: str | None, subject: str, receive: Callable[[Msg], object]) -> None:
        self.topic = topic
        self.subject = subject
        self._receive: Callable[[Msg], object] | None = receive
        self.ended = False

    async def received(self, message: Msg) -> None:
        """What the client calls."""
        if self._receive is None:
            return
        try:
            self._receive(message)
        except Exception:
            logger.exception("a message on %s was not taken; the subscription goes on", self.subject)

    def end(self) -> None:
        """Receive nothing more."""
        self._receive = None
        self.ended = True


class _Connection:
    """One connection to one server, from its first byte to its end."""

    def __init__(self, missed: Callable[[str | None], object]) -> None:
        self.client = Client()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.said: Exception | None = None  # what the client told last
        self.made: dict[_Subscription, ClientSubscription] = {}
        self._missed = missed
        self._told_of_refusal = False

    async def open(self, url: str, boot: str, options: NatsOptions) -> None:
        """Connect and log in; raises what the client raises."""
        given: dict[str, Any] = {
            "user": options.user,
            "password": options.password,
            "token": options.token,
            "user_credentials": options.credentials,
            "nkeys_seed": options.nkey,
            "tls": options.tls(),
        }
        await self.client.connect(
            [url],
            name=f"chatx-{boot}",
            inbox_prefix=f"cx.{options.cluster}.in.{boot}",
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=CONNECTS_WITHIN_S,
            # No bound of the client's, which would stop it to wait in the middle of a call: ours is asked before.
            pending_size=0,
            flusher_queue_size=0,
            skip_subject_validation=True,  # each is checked before
            error_cb=self._on_error,
            disconnected_cb=self._on_end,
            closed_cb=self._on_end,
            **{name: value for name, value in given.items() if value is not None},
        )
        if self.client.max_payload < PAYLOAD_BYTES + 1:
            raise errors.Error(
                f"its max_payload is {self.client.max_payload} bytes; chatx needs 1MB, which is NATS's default"
            )

    async def subscribe(self, subscription: _Subscription) -> None:
        """Tell the server of a subscription."""
        if subscription in self.made:
            return
        made = await self.client.subscribe(
            subscription.subject,
            cb=subscription.received,
            pending_msgs_limit=WAITING_MESSAGES,
            pending_bytes_limit=WAITING_BYTES,
        )
        self.made[subscription] = made

    def unsubscribe(self, subscription: _Subscription) -> None:
        """Tell the server that a subscription has ended."""
        made = self.made.pop(subscription, None)
        if made is not None and self.usable:
            _at_once(made.unsubscribe())

    @property
    def usable(self) -> bool:
        """Whether something may be sent."""
        return self.client.is_connected and not self.lost.done()

    @property
    def pending_bytes(self) -> int:
        """What the client holds, and what its socket has not taken."""
        held: int = self.client.pending_data_size
        socket = self._socket()
        return held if socket is None else held + socket.get_write_buffer_size()

    async def confirm(self, within_s: int) -> None:
        """Return when the server has taken all that the client was given before; raises what the client raises."""
        # The client's question overtakes what it holds, and has it written meanwhile: only a second one is behind it.
        await self.client.flush(within_s)
        await self.client.flush(within_s)

    async def until_lost(self) -> None:
        """Return when the server does not answer, or the connection has ended."""
        asked: asyncio.Task[None] | None = None
        unanswered = 0
        try:
            while self.usable and unanswered < UNANSWERED:
                if asked is None or asked.done():
                    if asked is not None and asked.exception() is not None:
                        return
                    asked = asyncio.get_running_loop().create_task(self.client.flush(3600))
                    unanswered = 0
                await asyncio.wait([self.lost], timeout=ASKED_EVERY_S)
                if not asked.done():
                    unanswered += 1
        finally:
            if asked is not None:
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)

    async def drop(self) -> None:
        """End it, whatever the server does."""
        self.give_up()
        socket = self._socket()
        with suppress(Exception):
            async with asyncio.timeout(ENDING_S):
                await self.client.close()
        if socket is not None:
            # Whatever still waits to be written would keep it open for as long as a frozen server does.
            socket.abort()

    def _socket(self) -> asyncio.WriteTransport | None:
        # The client has no public way to it. Where another version keeps it elsewhere, what is there is not counted.
        writer = getattr(getattr(self.client, "_transport", None), "_io_writer", None)
        return None if writer is None else writer.transport

    def give_up(self) -> None:
        """Use it no more; whoever waits for something on it hears of that."""
        if not self.lost.done():
            self.lost.set_result(None)

    async def _on_end(self) -> None:
        self.give_up()

    async def _on_error(self, error: Exception) -> None:
        self.said = error
        if isinstance(error, errors.SlowConsumerError):
            slow = next((each for each, made in self.made.items() if made is error.sub), None)
            # A reply that was dropped is waited for in vain, which is told by itself.
            if slow is not None:
                self._missed(slow.topic)
        elif isinstance(error, errors.UnexpectedEOF) or "violation for subscription" in str(error).lower():
            # A subscription that the server refuses would be deaf on a link that seems well.
            self.give_up()
        elif "violation for publish" in str(error).lower() and not self._told_of_refusal:
            self._told_of_refusal = True
            logger.error("NATS does not let this node publish, and what it does is lost: %s", error)


class NatsBackplane:
    """A `Backplane` over core NATS.

    Args:
        boot: The id of this life of the node.
        options: Where NATS is.

    Raises:
        ConfigError: The options make no sense, or a TLS file cannot be read.
        ValueError: The boot id is none.
    """

    def __init__(self, boot: str, options: NatsOptions) -> None:
        check_boot(boot)
        options.check()
        options.tls()
        self._boot = boot
        self._options = options
        self._prefix = f"cx.{options.cluster}."
        self._subscriptions: dict[_Subscription, None] = {}
        self._connection: _Connection | None = None
        self._opening: _Connection | None = None
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

    def publish(self, topic: str, payload: bytes) -> None:
        """Send to all who are subscribed; see `Backplane.publish`.

        Raises:
            BackplaneAway: The link is away.
            BackplaneFull: Too much waits.
            PayloadTooLarge: The payload is too large.
            ValueError: The topic is none.
        """
        check_topic(topic)
        self._send(self._prefix + topic, payload)

    async def subscribe(self, topic: str, receive: Receive) -> NatsSubscribed:
        """Receive what is published on a topic; see `Backplane.subscribe`.

        Raises:
            ValueError: The topic is none.
        """
        check_topic(topic)
        subscription = _Subscription(topic, self._prefix + topic, lambda message: receive(message.data))
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

        await self._subscribe(_Subscription(None, self._subject_of(self._boot), take))

    async def request(self, boot: str, payload: bytes, timeout_s: float) -> bytes:
        """Ask a node; see `Backplane.request` for what it raises."""
        check_boot(boot)
        connection = self._ready(payload)
        if self._requests >= REQUESTS_AT_ONCE:
            raise full_of_requests()
        self._requests += 1
        asking = asyncio.get_running_loop().create_task(
            connection.client.request(self._subject_of(boot), payload, timeout=timeout_s)
        )
        try:
            both: list[asyncio.Future[Any]] = [asking, connection.lost]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise NoReply(f"The link to NATS was lost while node {boot} was asked; perhaps it has done it.")
            reply = asking.result()
        except errors.NoRespondersError:
            raise NobodyThere(f"Nobody serves node {boot}; it has ended, or has not begun.") from None
        except errors.TimeoutError:
            raise NoReply(f"Node {boot} did not answer within {timeout_s} s; perhaps it has done it.") from None
        except errors.Error as error:
            raise BackplaneAway(f"NATS is away: {error}") from error
        finally:
            self._requests -= 1
            asking.cancel()
        return read_answer(boot, reply.data)

    def _subject_of(self, boot: str) -> str:
        return f"{self._prefix}n.{boot}.rpc"

    def _ready(self, payload: bytes) -> _Connection:
        check_payload(payload)
        connection = self._connection
        if connection is None or not connection.usable:
            raise BackplaneAway(f"NATS is away: {self._reason}")
        pending = connection.pending_bytes
        if pending + len(payload) > PENDING_BYTES:
            raise full(pending, len(payload))
        return connection

    def _send(self, subject: str, payload: bytes) -> None:
        connection = self._ready(payload)
        _at_once(connection.client.publish(subject, payload))

    def _reply(self, subject: str, answer: bytes) -> None:
        connection = self._connection
        if connection is None or not connection.usable:
            return  # who asked hears that there was no reply
        if connection.pending_bytes + len(answer) > PENDING_BYTES + 1:
            logger.warning("a reply to another node was dropped: too much waits to be sent")
            return
        _at_once(connection.client.publish(subject, answer))

    async def _subscribe(self, subscription: _Subscription) -> None:
        self._subscriptions[subscription] = None
        for connection in (self._connection, self._opening):
            if connection is not None and connection.usable:
                # Where the connection goes meanwhile the next one has it.
                with suppress(errors.Error, OSError, TimeoutError):
                    await connection.subscribe(subscription)
                    async with asyncio.timeout(SUBSCRIBES_WITHIN_S):
                        await _unless_lost(connection, connection.confirm(SUBSCRIBES_WITHIN_S))
                if subscription.ended:
                    connection.unsubscribe(subscription)

    def _end(self, subscription: _Subscription) -> None:
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

    async def _opened(self, url: str) -> _Connection | None:
        """Return a connection on which everything is subscribed, or None; the reason is kept."""
        connection = self._opening = _Connection(self._tell_missed)
        try:
            async with asyncio.timeout(CONNECTS_WITHIN_S):
                await connection.open(url, self._boot, self._options)
            async with asyncio.timeout(SUBSCRIBES_WITHIN_S):
                # Others may come, and go, while this waits.
                while missing := [each for each in self._subscriptions if each not in connection.made]:
                    for each in missing:
                        if not each.ended:
                            await connection.subscribe(each)
                await connection.confirm(SUBSCRIBES_WITHIN_S)
            if not connection.usable:
                raise errors.ConnectionClosedError
        except BaseException as error:
            self._reason = f"{shown(url)}: {connection.said or error or 'no answer in time'}"
            await connection.drop()
            if not isinstance(error, Exception):
                raise
            logger.debug("NATS was not reached at %s", self._reason)
            return None
        finally:
            self._opening = None
        return connection

    def _connected(self, connection: _Connection) -> None:
        self._connection = connection
        again, self._was_connected = self._was_connected, True
        self._tell_state("connected")
        if again:
            self._tell_missed(None)
        self._first.set()

    def _tell_state(self, state: LinkState) -> None:
        if state == "connected":
            logger.info("the link to NATS is connected")
        else:
            logger.warning("the link to NATS is away: %s", self._reason)
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


async def _unless_lost(connection: _Connection, asked: Coroutine[Any, Any, None]) -> None:
    """Await an answer of the server for as long as there is a connection to it."""
    task = asyncio.get_running_loop().create_task(asked)
    try:
        await asyncio.wait([task, connection.lost], return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _at_once(sending: Coroutine[Any, Any, object]) -> None:
    """Have the client take what it is given, in this very step.

    It is a coroutine for the sake of a full buffer, which is refused here before.
    """
    try:
        sending.send(None)
    except StopIteration:
        return
    except errors.Error as error:
        raise BackplaneAway(f"NATS is away: {error}") from error
    sending.close()
    raise BackplaneFull("The client of NATS takes nothing now; try again later.")
