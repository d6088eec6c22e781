"""`Chat`: composes the engine, starts it and stops it. Everything an application calls is here."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from chatx.adapters.outbox import Notification, NotificationState
from chatx.config import ChatConfig
from chatx.core.mailbox import OverflowPolicy
from chatx.core.message import Event, Message, Presences
from chatx.errors import AlreadyStarted, ChatError, Closed, ConfigError, WrongLoop
from chatx.extras import needs
from chatx.runtime.chat_store import ChatStore
from chatx.runtime.connection import Connection
from chatx.runtime.dead_letters import DeadLetter
from chatx.runtime.engine import Engine
from chatx.runtime.nodes.horde import Ground
from chatx.runtime.nodes.link import link_of
from chatx.runtime.nodes.node import Node, new_boot
from chatx.runtime.outbox_page import outbox_page
from chatx.runtime.plain_members import join_plain, leave_plain
from chatx.runtime.siblings import Siblings
from chatx.runtime.statistics import Statistics, statistics_of
from chatx.runtime.subscription import CallbackSubscription, Subscription
from chatx.telemetry import Telemetry

if TYPE_CHECKING:
    from chatx.gateway.api.access import ApiAuthenticate
    from chatx.gateway.api.app import ApiApp
    from chatx.gateway.asgi.app import ChatApp
    from chatx.gateway.entry.handshake import Authenticate
    from chatx.integrations.starlette import LiveResponse


_STORE_ENDS_S = 0.25
"""How long the end of the store is waited for where the time of the drain is over, in s."""


class Chat:
    """A chat engine embedded in an asyncio program.

    May be built at import time, with no loop running; every option is checked there and then. It works between
    `start` and `stop`, for which `async with chat` and `chat.lifespan` are the usual forms; after `stop` it can be
    started again, and begins empty but for what persistence keeps.

    It belongs to the event loop that it was started on. A call from another thread or loop raises `WrongLoop` and does
    nothing; `asyncio.run_coroutine_threadsafe(chat.send_message(...), loop)` and, in a plain `def` endpoint,
    `anyio.from_thread.run(chat.send_message, ...)` go there. What only reads a moment's state or takes apart may be
    called anywhere: `statistics`, `dead_letters`, `unread`, and closing what was opened.

    A room id is what follows `room:` in a topic of the wire protocol: `"general"` here is `room:general` there.

    Attributes:
        config: The options in effect.
        telemetry: `chat.telemetry.attach(event, handler)`.
        on_drain: Called, without arguments, where an operator has this node drained (`chatx cluster drain`): for an
            application that ends then. None stops the chat, when its clients were sent away; the application goes on.
        drained: Whether an operator had this node drained since the chat was started last.
    """

    def __init__(self, *, config: ChatConfig | None = None, **options: Any) -> None:
        """Check the options.

        Args:
            config: All options at once.
            options: Or single ones, by name; see `ChatConfig`.

        Raises:
            ConfigError: An option is unknown, out of range or of the wrong type, or both forms are given.
        """
        if config is not None and options:
            raise ConfigError(f"Both config and {', '.join(options)} were given; give one or the other.")
        if config is not None and not isinstance(config, ChatConfig):
            raise ConfigError(f"config is {config!r}; it must be a ChatConfig.")
        self.config: ChatConfig = config if config is not None else ChatConfig(**options)
        self.telemetry: Telemetry = Telemetry()
        self.on_drain: Callable[[], object] | None = None
        self.drained: bool = False
        self._dead_letters: deque[DeadLetter] = deque(maxlen=self.config.dead_letter_limit)
        self._engine: Engine | None = None
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._siblings: Siblings | None = None
        self._store: ChatStore | None = None
        self._node: Node | None = None
        self._ground: Ground | None = None

    async def start(self) -> None:
        """Start on the running loop.

        Where it can be known that another process serves the same clients, with a chat of its own, the log says so.
        A store has one writer: while another chat writes to it, this one waits for up to `drain_timeout_ms`. A stop
        meanwhile, or a cancellation, ends the wait.

        Raises:
            AlreadyStarted: It is running, or being started or stopped, already.
            StoreInUse: Another chat writes to its store still.
            ConfigError: The store cannot be used, or the nodes' broker; or other nodes have another strategy.
            AdapterError: The store is away, or the broker of the nodes.
            Closed: It was stopped while it started.
            WrongLoop: It runs in another thread or loop, as from all that follow.
        """
        if self._engine is not None:
            self._engine.check_here()
        if self._engine is not None or self._starting is not None:
            raise AlreadyStarted("The chat is started already; stop it first, or start it in one place only.")
        self.drained = False
        siblings, store = Siblings(self.config), ChatStore(self.config)
        try:
            if store.is_to_begin:
                await self._begin(store.begin())
            if self.config.cluster_strategy == "local":
                self._engine = Engine(store.config, self.telemetry, self._dead_letters)
            else:
                await self._join_nodes(store)
        except BaseException:
            siblings.release()
            raise
        self._siblings, self._store = siblings, store

    async def _join_nodes(self, store: ChatStore) -> None:
        node = engine = ground = link = None
        try:
            link = link_of(store.config, new_boot())
            ground = Ground(store.config, link, self.telemetry)
            await self._begin(ground.begin())
            node = Node(ground.config, link)
            engine = Engine(ground.config, self.telemetry, self._dead_letters, elsewhere=node.abroad)
            await self._begin(node.join(engine, self._drain))
        except BaseException:
            if engine is not None:
                await engine.stop(1)
            if ground is not None:
                await ground.end(0)
            if node is not None:
                await node.close()
            elif link is not None:
                await link.close()
            await store.end(_STORE_ENDS_S)
            raise
        self._engine, self._node, self._ground = engine, node, ground

    async def _begin(self, begins: Coroutine[Any, Any, None]) -> None:
        self._starting = starting = asyncio.get_running_loop().create_task(begins, name="chatx start")
        try:
            await starting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Closed("The chat was stopped while it started.") from None
        finally:
            self._starting = None

    async def stop(self, *, drain_timeout_ms: int | None = None) -> None:
        """Drain and end; no task, timer or thread is left.

        New work is refused at once. Sends under way finish, deliveries are made, and subscribers get `Closed` after
        what they have not read. Stopping a chat that is stopped does nothing; stopping one that is being stopped waits
        for that. Cancelling the call does not cut the drain short.

        Args:
            drain_timeout_ms: Milliseconds within which it drains, at least 1; None is the option of this name. For
                whoever has spent some of them on sending clients away.

        Raises:
            ConfigError: `drain_timeout_ms` is not at least 1.
            WrongLoop: It is called from another thread or loop.
        """
        given = drain_timeout_ms
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            raise ConfigError(f"drain_timeout_ms is {given!r}; give a whole number of milliseconds, at least 1.")
        engine = self._engine
        if engine is None:
            if (starting := self._starting) is not None:
                if starting.get_loop() is not asyncio.get_running_loop():
                    raise WrongLoop("The chat is being started on another event loop; stop it there.")
                starting.cancel()
                await asyncio.wait((starting,))
            return
        engine.check_here()
        await asyncio.shield(self._begin_to_stop(engine, given))

    def _begin_to_stop(
        self, engine: Engine, drain_timeout_ms: int | None, *, gently: bool = False
    ) -> asyncio.Task[None]:
        if self._stopping is None or self._stopping.done():
            stopping = self._stop(engine, drain_timeout_ms, gently=gently)
            self._stopping = engine.loop.create_task(stopping, name="chatx stop")
        return self._stopping

    def _drain(self) -> None:
        self.drained = True
        if self.on_drain is not None:
            self.on_drain()
        elif self._engine is not None:
            _ = self._begin_to_stop(self._engine, None, gently=True)

    async def _stop(self, engine: Engine, drain_timeout_ms: int | None, *, gently: bool) -> None:
        timeout_ms = self.config.drain_timeout_ms if drain_timeout_ms is None else drain_timeout_ms
        deadline = engine.loop.time() + timeout_ms / 1000
        try:
            if gently:
                await engine.send_away((deadline - engine.loop.time()) / 2)
            if self._node is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        await self._node.drain()
            await engine.stop(timeout_ms)
        except asyncio.CancelledError:  # as when a loop is shut down: nothing is waited for any more
            deadline = engine.loop.time()
            raise
        finally:
            try:
                if self._ground is not None:
                    await self._ground.end(max(_STORE_ENDS_S, deadline - engine.loop.time()))
                if self._node is not None:
                    await self._node.close()
                if self._store is not None:
                    await self._store.end(max(_STORE_ENDS_S, deadline - engine.loop.time()))
            finally:
                self._engine = self._store = self._node = self._ground = None
                self._stopping = None
                if self._siblings is not None:
                    self._siblings.release()

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """Run the chat for as long as an ASGI application does: `FastAPI(lifespan=chat.lifespan)`."""
        async with self:
            yield

    async def join(self, room_id: str, user_id: str) -> None:
        """Make a user a member of a room, until `leave`; twice is harmless. It does not subscribe.

        Raises:
            InvalidMessage: An id is not valid.
            Unauthorized: The auth adapter said no; `AdapterError`: it failed.
            RoomUnavailable: The room has just failed.
            Closed: The chat is not running.
        """
        await join_plain(self.engine, room_id, user_id, time.time_ns() // 1_000_000)

    async def leave(self, room_id: str, user_id: str) -> None:
        """End the membership that `join` began, if there is one; those of connections stay.

        Raises:
            InvalidMessage: An id is not valid.
            Closed: The chat is not running.
        """
        await leave_plain(self.engine, room_id, user_id)

    async def send_message(
        self,
        room_id: str,
        user_id: str,
        content: str | bytes,
        *,
        idempotency_key: str | None = None,
        trusted: bool = False,
        durability: Literal["sequenced", "stored"] | None = None,
        data: Mapping[str, Any] | None = None,
        epoch: str | None = None,
    ) -> Message:
        """Send a message to a room; when this returns it is `sequenced`: it has its place and is on its way to all.

        With `stored` the log has it too, and nobody has seen it before; `Message.stored` says so.

        A single send in which nothing awaits does not yield to the loop.

        Args:
            room_id: The room; begun if it is not there.
            user_id: Who sends it; needs not be a member.
            content: Text, or bytes of UTF-8, of at most `message_size_limit` bytes.
            idempotency_key: 1 to 128 bytes, scoped by room and user and remembered for 5 minutes, within
                `idempotency_bytes` over all rooms. With a key seen before, the answer is the original message with
                `duplicate=True`, and nothing is sent.
            trusted: True sends what the application itself says: no middleware is asked, not auth, rate limit,
                moderation or one of yours. Everything else holds, the order of this user's sends too. Clients cannot
                set it.
            durability: `sequenced` or `stored`; None is the option of this name. With `cluster_strategy="horde"` each
                is stored.
            data: A JSON object that travels with it, of at most `message_data_limit` bytes: attachments, mentions, what
                your clients need. `content` may be empty where this is not.
            epoch: The only epoch in which it may be published. With a key whose earlier send was left open, give the
                epoch of that time: where the room begins anew its keys may be gone, and the message is not doubled.

        Raises:
            ConfigError: `stored`, and persistence is no log.
            InvalidMessage: The content, an id or an option is not valid; `MessageTooLarge`: too many bytes.
            Unauthorized: The auth adapter said no.
            RateLimited: Too fast; `retry_after` says when.
            Blocked: The moderation said no.
            RoomOverloaded: Too many messages wait; `retry_after` estimates when.
            RoomUnavailable: The room failed; whether the message was published is not known, so retry with a key.
            AdapterError: An adapter or a middleware failed, so it was refused.
            EpochChanged: The key is not known, and the room is in another epoch than `epoch`.
            Closed: The chat is not running.
        """
        engine = self._engine
        if engine is None or not engine.open:
            # Whoever tries again at once must not keep the loop from the stop, or from the next start.
            await asyncio.sleep(0)
            engine = self._running()
        return await engine.send(room_id, user_id, content, idempotency_key, trusted, durability, data, epoch)

    def subscribe(
        self,
        room_id: str,
        *,
        after: Message | Event | tuple[str, int] | None = None,
        presence: bool = False,
        user_id: str | None = None,
        overflow: OverflowPolicy = "disconnect",
    ) -> Subscription:
        """Subscribe to a room: `async with chat.subscribe(...) as subscription`, then iterate it for events.

        Args:
            room_id: The room; begun if it is not there.
            after: Where the reader stands: a `Message`, a `Gap`, or (epoch, offset). What it missed since comes
                first, read page by page as the reader takes it, or a `Gap` says what is missing and why. None begins
                with what is published from now on.
            presence: Whether to get one `PresenceState` first, and then each `PresenceDiff`.
            user_id: Ask the auth adapter whether this user may; None is trusted code.
            overflow: What happens when `mailbox_size` or `mailbox_bytes` is left unread: `disconnect` ends the
                subscription with `SlowConsumer`, `drop_oldest` drops the oldest and says so with a `Gap`.

        Raises:
            InvalidMessage: An id or `after` is not valid (when it is opened, as all that follow).
            Unauthorized: The auth adapter said no; `AdapterError`: it failed, or persistence cannot be read
                now: come back with the same `after`.
            RoomUnavailable: The room has just failed.
            Closed: The chat is not running.
        """
        return Subscription(self._running, room_id, after=after, presence=presence, user_id=user_id, overflow=overflow)

    def subscribe_callback(
        self,
        room_id: str,
        callback: Callable[[Event], object],
        *,
        after: Message | Event | tuple[str, int] | None = None,
        presence: bool = False,
        user_id: str | None = None,
        on_closed: Callable[[ChatError], object] | None = None,
    ) -> CallbackSubscription:
        """Subscribe a plain function: it is called with each event at once, without a task or a mailbox.

        Open it like `subscribe`. The callback runs inside the send: it must not block. One that raises is logged and
        its subscription ends.

        Args:
            room_id: As in `subscribe`; errors too.
            callback: Called with each event.
            after: As in `subscribe`.
            presence: As in `subscribe`.
            user_id: As in `subscribe`.
            on_closed: Called with the reason, once, when the engine ends the subscription.
        """
        return CallbackSubscription(
            self._running,
            room_id,
            callback,
            after=after,
            presence=presence,
            user_id=user_id,
            on_closed=on_closed,
        )

    def connect(self, user_id: str, *, overflow: OverflowPolicy = "disconnect") -> Connection:
        """Connect as a user: one mailbox for all the rooms of one client; see `Connection`."""
        return Connection(self._running, user_id, overflow=overflow)

    async def revoke(self, user_id: str) -> int:
        """Cut everything off that a user holds here, at once, and return how many things that was.

        Sockets are closed with 4003, connections and subscriptions of the user end with `Revoked`, without what they
        have not read, and memberships end. Forbid the user first, in `authenticate` and the auth adapter: clients come
        back, and what they may then is what those say. What is under way and has not been allowed yet is refused.

        Raises:
            InvalidMessage: The user id is not valid.
            Closed: The chat is not running.
        """
        return self.engine.revoke(user_id)

    async def presence(self, room_id: str) -> Presences:
        """Return who is in a room: user id to that user's memberships. A room that is not there is empty.

        Raises:
            InvalidMessage: The room id is not valid.
            Closed: The chat is not running.
        """
        return await self.engine.presences(room_id)

    async def history(
        self,
        room_id: str,
        *,
        before: Message | tuple[str, int] | None = None,
        after: Message | tuple[str, int] | None = None,
        limit: int = 50,
    ) -> list[Message]:
        """Return messages of a room, oldest first; at most `limit`, 1 to 10,000.

        They are the newest ahead of `before`, the oldest behind `after`, or, with neither, the newest. What memory no
        longer has comes from persistence where that serves history. Fewer than `limit` are all that there are. What was
        given up to the dead letters is not among them; the offsets show that.

        Raises:
            InvalidMessage: The room id, `before`, `after` or `limit` is not valid, or both places are given.
            EpochChanged: `after` is not in the room's newest stream.
            TooOld: What follows `after` is no longer kept.
            AdapterError: Persistence cannot be read now.
            Closed: The chat is not running.
        """
        return await self.engine.history(room_id, before, after, limit)

    async def outbox(
        self,
        *,
        state: NotificationState | None = None,
        after: Notification | str | None = None,
        limit: int = 100,
    ) -> tuple[Notification, ...]:
        """Return what the log keeps for the notifier, oldest first: what was stored and is not told, or was given up.

        `chatx outbox` lets dead ones be tried again, and drops them.

        Args:
            state: `waiting`, `claimed` or `dead`; None is all of them.
            after: The last one of the page before, or its id.
            limit: How many at most, 1 to 1,000.

        Raises:
            ConfigError: Persistence keeps no outbox.
            InvalidMessage: An argument is none of these.
            AdapterError: The log cannot be read now.
            Closed: The chat is not running.
        """
        engine = self.engine
        return await outbox_page(engine.config.persistence, engine.boundary, state, after, limit)

    @property
    def dead_letters(self) -> tuple[DeadLetter, ...]:
        """The newest deliveries that were given up, oldest first; at most `dead_letter_limit`. Kept after a stop."""
        return tuple(self._dead_letters)

    def statistics(self) -> Statistics:
        """Return counters and gauges as of now, to any thread; all zero when the chat is not running."""
        if self._engine is None:
            return Statistics(running=False, cluster_strategy=self.config.cluster_strategy)
        return statistics_of(self._engine)

    def asgi(self, *, authenticate: Authenticate, **options: Any) -> ChatApp:
        """Return an ASGI application that speaks the wire protocol, to be mounted; see `chatx.gateway.ChatApp`.

        Args:
            authenticate: `authenticate(handshake)` → the user id or an `Identity`, or None to refuse; plain or async.
            options: As in `chatx.gateway.ChatApp`.
        """
        # The façade's one step up: whoever does not serve sockets does not load the gateway.
        with needs("gateway", "chat.asgi()"):
            from chatx.gateway.asgi.app import ChatApp

        return ChatApp(self, authenticate=authenticate, **options)

    def api(self, *, authenticate: ApiAuthenticate | None = None, **options: Any) -> ApiApp:
        """Return an ASGI application for backends, to be mounted: messages, presence, rooms over HTTP.

        Args:
            authenticate: `authenticate(headers)` → True for a request that may say anything in anybody's name, and
                False for any other; plain or async. There is no default.
            options: As in `chatx.gateway.ApiApp`.

        Raises:
            ConfigError: `authenticate` is not given or cannot be called so, or an option is not what it should be.
        """
        # A façade like `asgi`.
        with needs("gateway", "chat.api()"):
            from chatx.gateway.api.app import ApiApp

        return ApiApp(self, authenticate=authenticate, **options)

    def live(self, room_id: str, render: Callable[[Event], str], *, user_id: str, history: int = 50) -> LiveResponse:
        """Return a Starlette response that pushes a room as HTML, by server-sent events, to one reader.

        The reader is in the room while the stream is open. `chatx.integrations.starlette` has the events of the
        stream, and `snapshot` for the page that it begins with; `chatx.integrations.html` has a `render`.

        Args:
            room_id: The room; begun if it is not there.
            render: `render(event)` → the HTML of a `Message`, a `Gap` or a `PresenceState`, or "" for what is not
                shown. Plain; called once for each reader. Escaping is its business.
            user_id: Who reads; the auth adapter is asked for `join` and `subscribe`. A refusal is the response.
            history: How many messages a reader without a place gets, at most; at least 1.

        Raises:
            ConfigError: `render` cannot be called so, or `history` is out of range.
        """
        # A façade like `asgi`: whoever does not use it needs no Starlette.
        with needs("gateway", "chat.live()"):
            from chatx.integrations.starlette import LiveResponse

        return LiveResponse(self, room_id, render, user_id=user_id, history=history)

    @property
    def engine(self) -> Engine:
        """The running engine, for what is built on top of the chat in this package.

        Raises:
            Closed: The chat is not running.
        """
        return self._running()

    def _running(self) -> Engine:
        if self._engine is None:
            raise Closed("The chat is not running; use it inside `async with chat`, or between start() and stop().")
        self._engine.check_here()
        self._engine.check_open()
        return self._engine
