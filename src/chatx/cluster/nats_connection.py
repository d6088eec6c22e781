"""One connection to one NATS server, on the client `nats-py`, which this file and `nats.py` alone know.

Rules:
1. It is believed while the server answers: one question is out at a time, and after two seconds without its answer the
   connection is given up. Seconds are counted by turns of the loop, so that a process which stood still does not blame
   the server.
2. Nothing raises into the client's tasks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from chatx.cluster.backplane import PAYLOAD_BYTES, BackplaneAway, BackplaneFull, Broker
from chatx.cluster.nats_options import NatsOptions
from chatx.extras import needs

with needs("cluster", "chatx.cluster.nats_connection"):
    from nats import errors
    from nats.aio.client import Client, RawCredentials
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription as ClientSubscription

logger: logging.Logger = logging.getLogger("chatx")

ASKED_EVERY_S: Final = 1.0
"""How often the server is asked whether it is there, in seconds."""

UNANSWERED: Final = 2
"""How many such turns without an answer end a connection."""

CONNECTS_WITHIN_S: Final = 2
"""How long one attempt to connect may take, in seconds."""

SUBSCRIBES_WITHIN_S: Final = 10
"""How long the server may take to confirm what is subscribed, in seconds."""

ANSWERS_WITHIN_S: Final = 4
"""How long the server may take to answer who it is, in seconds."""

ENDING_S: Final = 1
"""How long the end of a connection is waited for, in seconds."""

WAITING_MESSAGES: Final = 65_536
"""How much of one subscription may wait for its callback, in messages. What comes beyond is dropped, and told."""

WAITING_BYTES: Final = 8_388_608
"""How much of one subscription may wait for its callback, in bytes. What comes beyond is dropped, and told."""


class Subscription:
    """One that is to be there on each connection."""

    def __init__(self, topic: str | None, subject: str, receive: Callable[[Msg], object]) -> None:
        self.topic: str | None = topic
        self.subject: str = subject
        self._receive: Callable[[Msg], object] | None = receive
        self.ended: bool = False

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


class _Client(Client):
    """A client that shows nobody who it is in clear where TLS is asked for.

    The library's goes on without TLS where the server does not demand it, or somebody in between says so.
    """

    def _connect_command(self) -> bytes:
        self.check_tls()
        return super()._connect_command()

    def check_tls(self) -> None:
        """Raise the library's error unless the connection is encrypted, or need not be."""
        socket = _socket_of(self)
        if "tls" in self.options and (socket is None or socket.get_extra_info("ssl_object") is None):
            raise errors.Error("it does not speak TLS, which tls:// or a TLS file asks for; nothing was said to it")


class Connection:
    """One connection to one server, from its first byte to its end."""

    def __init__(self, missed: Callable[[str | None], object]) -> None:
        self.client: _Client = _Client()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.said: Exception | None = None  # what the client told last
        self.made: dict[Subscription, ClientSubscription] = {}
        self._missed = missed
        self._told_of_refusal = False

    async def open(self, url: str, boot: str, options: NatsOptions) -> None:
        """Connect and log in; raises what the client raises."""
        given: dict[str, Any] = {
            "user": options.user,
            "password": options.password,
            "token": options.token,
            "tls": options.tls(),
        }
        match options.signs_with():
            case "creds", text:
                given["user_credentials"] = RawCredentials(text)
            case "nkey", text:
                given["nkeys_seed_str"] = text
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
        self.client.check_tls()  # where another version of the library does not ask it before it says who this is
        if self.client.max_payload < PAYLOAD_BYTES + 1:
            raise errors.Error(
                f"its max_payload is {self.client.max_payload} bytes; chatx needs 1MB, which is NATS's default"
            )

    async def ask(self) -> Broker:
        """Return who the server is, and how far away.

        Raises:
            BackplaneAway: It does not answer.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                await unless_lost(self, self.client.flush(ANSWERS_WITHIN_S))
                if not self.usable:
                    raise errors.ConnectionClosedError
        except (errors.Error, TimeoutError, OSError) as error:
            raise BackplaneAway(f"NATS does not answer: {error}") from error
        # The client has no public way to what the server said of itself. Another version may have none at all.
        said = getattr(self.client, "_server_info", {})
        name, version = str(said.get("server_name", ""))[:128], str(said.get("version", ""))[:64]
        return Broker(name, version, bool(said.get("jetstream", False)), loop.time() - began)

    async def subscribe(self, subscription: Subscription) -> None:
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

    def unsubscribe(self, subscription: Subscription) -> None:
        """Tell the server that a subscription has ended."""
        made = self.made.pop(subscription, None)
        if made is not None and self.usable:
            take_now(made.unsubscribe())

    @property
    def usable(self) -> bool:
        """Whether something may be sent."""
        return self.client.is_connected and not self.lost.done()

    @property
    def pending_bytes(self) -> int:
        """What the client holds, and what its socket has not taken."""
        held: int = self.client.pending_data_size
        socket = _socket_of(self.client)
        return held if socket is None else held + socket.get_write_buffer_size()

    async def confirm(self, within_s: int) -> None:
        """Return when the server has taken all that the client was given before; raises what the client raises."""
        # The client's question overtakes what it holds, and has it written meanwhile: only a second one is behind it.
        await self.client.flush(within_s)
        if not self.usable:
            # Python 3.11 loses a cancellation that comes together with the answer; the second one would not come.
            raise errors.ConnectionClosedError
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
        socket = _socket_of(self.client)
        with suppress(Exception):
            async with asyncio.timeout(ENDING_S):
                await self.client.close()
        if socket is not None:
            # Whatever still waits to be written would keep it open for as long as a frozen server does.
            socket.abort()

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


def _socket_of(client: Client) -> asyncio.WriteTransport | None:
    # The client has no public way to it. Where another version keeps it elsewhere, what is there is not counted.
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    return None if writer is None else writer.transport


async def unless_lost(connection: Connection, asked: Coroutine[Any, Any, None]) -> None:
    """Await an answer of the server for as long as there is a connection to it; raises what `asked` raises."""
    task = asyncio.get_running_loop().create_task(asked)
    try:
        await asyncio.wait([task, connection.lost], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def take_now(sending: Coroutine[Any, Any, object]) -> None:
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
