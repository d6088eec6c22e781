"""A `Backplane` in memory: several nodes in one process, and a broker between them with faults that are ordered.

It runs on the loop's clock and draws its chances from a seed, so that a run on a `SeededLoop` can be had again. What
one node sends to another arrives in order; between different pairs anything may overtake.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec import Struct

from chatx.cluster.answers import Answers, read_answer
from chatx.cluster.backplane import (
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
    check_topic,
)

logger: logging.Logger = logging.getLogger("chatx")


class Chances(Struct):
    """What happens to each message on its way from one node to one other; may be changed at any time.

    Attributes:
        delay_s: At most so long, drawn evenly, in seconds.
        drop: How probably it is lost, from 0 to 1.
        duplicate: How probably it comes twice, from 0 to 1. No broker should; whoever receives must bear it.
    """

    delay_s: float = 0.0
    drop: float = 0.0
    duplicate: float = 0.0


class MemoryHub:
    """The broker between `MemoryBackplane`s, with its faults.

    Args:
        seed: What its chances are drawn from.
        chances: What happens to messages.

    Attributes:
        chances: What happens to messages.
    """

    def __init__(self, seed: int = 0, chances: Chances | None = None) -> None:
        self.chances: Chances = chances or Chances()
        self._random = random.Random(seed)
        self._nodes: dict[str, MemoryBackplane] = {}
        self._cut: set[tuple[str, str]] = set()
        self._away = False
        # By sender and receiver: what is on its way, and when the last of it arrives.
        self._way: dict[tuple[str, str], deque[Callable[[], object]]] = {}
        self._arrives: dict[tuple[str, str], float] = {}

    def stop(self) -> None:
        """Have the broker go: every link is away, and what is on its way is lost."""
        self._away = True
        for node in list(self._nodes.values()):
            node._lose()

    def start(self) -> None:
        """Have the broker back: links come back in an order that is drawn."""
        self._away = False
        nodes = [node for node in self._nodes.values() if not node._cut_off]
        self._random.shuffle(nodes)
        for node in nodes:
            node._reach()

    def cut(self, sender: str, receiver: str) -> None:
        """Lose silently what one node sends to another, until `heal`; call it twice for both ways."""
        self._cut.add((sender, receiver))

    def heal(self) -> None:
        """Undo every `cut`."""
        self._cut.clear()

    @contextmanager
    def partition(self, *boots: str) -> Iterator[None]:
        """Cut these nodes from all others within the block, both ways."""
        cuts = {
            pair
            for one in self._nodes
            for other in self._nodes
            if (one in boots) is not (other in boots)
            for pair in ((one, other), (other, one))
        }
        self._cut |= cuts
        try:
            yield
        finally:
            self._cut -= cuts

    def _register(self, node: MemoryBackplane) -> None:
        if node.boot in self._nodes:
            raise ValueError(f"Node {node.boot} is there already; a boot id is one life of one node.")
        if self._away:
            raise BackplaneAway("The broker in memory is stopped.")
        self._nodes[node.boot] = node

    def _forget(self, node: MemoryBackplane) -> None:
        if self._nodes.get(node.boot) is node:
            del self._nodes[node.boot]

    def _carry(self, sender: str, receiver: str, arrive: Callable[[], object]) -> None:
        """Have something arrive at a node, or not, behind what the sender sent it before."""
        chances, draw = self.chances, self._random.random
        if (sender, receiver) in self._cut or draw() < chances.drop:
            return
        loop = asyncio.get_running_loop()
        for _ in range(2 if draw() < chances.duplicate else 1):
            at = max(loop.time() + draw() * chances.delay_s, self._arrives.get((sender, receiver), 0.0))
            self._arrives[sender, receiver] = at
            node = self._nodes.get(receiver)
            if node is not None:
                way = self._way.setdefault((sender, receiver), deque())
                way.append(node._arriving(arrive))
                # Whichever of the timers that are due at one time runs first, what was sent first arrives.
                loop.call_at(at, lambda way=way: way.popleft()())  # type: ignore[misc]


class MemoryBackplane:
    """One node's link to a `MemoryHub`; a `Backplane`.

    Args:
        hub: The broker.
        boot: The id of this life of the node.
    """

    def __init__(self, hub: MemoryHub, boot: str) -> None:
        check_boot(boot)
        self._hub = hub
        self._boot = boot
        self._state: LinkState = "away"
        self._link = 0  # which connection this is: what was on its way on another one is lost
        self._cut_off = False
        self._paused: deque[Callable[[], object]] | None = None
        self._paused_bytes = 0
        self._topics: dict[str, dict[MemorySubscribed, Receive]] = {}
        self._answers: Answers | None = None
        self._waiting: set[asyncio.Future[bytes]] = set()
        self._deaf: set[MemorySubscribed] = set()
        self._deaf_to_questions = self._deaf_to_answers = False
        self._on_state: list[Callable[[LinkState], object]] = []
        self._on_missed: list[Callable[[str | None], object]] = []

    @property
    def boot(self) -> str:
        """The id of this life of the node."""
        return self._boot

    @property
    def state(self) -> LinkState:
        """Whether the broker is reached."""
        return self._state

    @property
    def pending_bytes(self) -> int:
        """How much waits to be sent, in bytes: nothing, but in a node that is paused."""
        return self._paused_bytes

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
        """Reach the broker.

        Raises:
            BackplaneAway: It is stopped.
        """
        self._hub._register(self)
        self._reach(first=True)

    def renew(self, reason: str) -> None:
        """Make another connection; see `Backplane.renew`."""
        if self._state == "connected":
            self._lose()
            self._reach()

    async def close(self) -> None:
        """End; twice is harmless."""
        self._hub._forget(self)
        self._lose()
        if self._answers is not None:
            await self._answers.end()

    async def broker(self) -> Broker:
        """Say that it is in memory; see `Backplane.broker`.

        Raises:
            BackplaneAway: The link is away.
        """
        if self._state == "away":
            raise BackplaneAway("The broker in memory is away.")
        return Broker("memory", "", False, 0.0)

    def publish(self, topic: str, payload: bytes) -> None:
        """Send to all who are subscribed; see `Backplane.publish`.

        Raises:
            BackplaneAway: The link is away.
            BackplaneFull: Too much waits.
            PayloadTooLarge: The payload is too large.
            ValueError: The topic is none.
        """
        check_published(topic, payload, self.pending_bytes)
        self._check_there()
        self._leave(len(payload), lambda: self._spread(topic, payload))

    async def subscribe(self, topic: str, receive: Receive) -> MemorySubscribed:
        """Receive what is published on a topic; see `Backplane.subscribe`.

        Raises:
            ValueError: The topic is none.
        """
        check_topic(topic)
        subscribed = MemorySubscribed(self._topics, topic)
        self._topics.setdefault(topic, {})[subscribed] = receive
        await asyncio.sleep(0)
        return subscribed

    async def serve(self, handle: Handle, *, at_once: int = SERVED_AT_ONCE) -> None:
        """Answer what this boot is asked; see `Backplane.serve`."""
        if self._answers is not None:
            raise ValueError("This boot is served already; serve may be called once.")
        self._answers = Answers(handle, at_once)

    async def request(self, boot: str, payload: bytes, timeout_s: float) -> bytes:
        """Ask a node; see `Backplane.request` for what it raises."""
        check_asked(boot, payload, self.pending_bytes, len(self._waiting))
        self._check_there()
        asked = self._hub._nodes.get(boot)
        if asked is None or asked._answers is None or asked._state == "away" or asked._deaf_to_questions:
            await asyncio.sleep(0)
            raise NobodyThere(f"Nobody serves node {boot}; it has ended, or has not begun.")
        waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        self._leave(
            len(payload), lambda: self._hub._carry(self._boot, boot, lambda: asked._asked(self._boot, payload, waiting))
        )
        try:
            async with asyncio.timeout(timeout_s):
                answer = await waiting
        except TimeoutError:
            raise NoReply(f"Node {boot} did not answer within {timeout_s} s; perhaps it has done it.") from None
        finally:
            self._waiting.discard(waiting)
        return read_answer(boot, answer)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have nothing come in or go out within the block, as in a process that is stopped; it all does afterwards.

        What goes out is bounded by `PENDING_BYTES`, what comes in by nothing: it is a fault for tests.
        """
        self._paused = deque()
        try:
            yield
        finally:
            held, self._paused, self._paused_bytes = self._paused, None, 0
            for each in held:
                each()

    def cut_off(self) -> None:
        """Have this link alone go away, noticed at once."""
        self._cut_off = True
        self._lose()

    def come_back(self) -> None:
        """Undo `cut_off`."""
        self._cut_off = False
        self._reach()

    def deafen(self, topics: str = "", *, questions: bool = False, answers: bool = False) -> None:
        """Have words lost on their way in, until the link is made anew, with nothing that tells of it.

        Args:
            topics: What is published on topics that begin so, for what is subscribed now; nothing where this is empty.
            questions: What this boot is asked: whoever asks is told that nobody is there.
            answers: What others answer to this one.
        """
        for topic in self._topics:
            if topics and topic.startswith(topics):
                self._deaf |= self._topics[topic].keys()
        self._deaf_to_questions |= questions
        self._deaf_to_answers |= answers

    def slow(self, topic: str) -> None:
        """Tell that a subscription was too slow, as a client does that has dropped something."""
        self._tell_missed(topic)

    def _check_there(self) -> None:
        if self._state == "away":
            raise BackplaneAway("The broker in memory is away.")

    def _leave(self, size: int, send: Callable[[], object]) -> None:
        if self._paused is None:
            send()
            return
        self._paused_bytes += size
        link = self._link
        self._paused.append(lambda: send() if link == self._link else None)

    def _spread(self, topic: str, payload: bytes) -> None:
        for node in list(self._hub._nodes.values()):
            if topic in node._topics and node._state == "connected":
                self._hub._carry(self._boot, node._boot, lambda node=node: node._received(topic, payload))  # type: ignore[misc]

    def _arriving(self, arrive: Callable[[], object]) -> Callable[[], object]:
        """Return what is to be called when something arrives here: it is lost where the link went away meanwhile."""
        link = self._link

        def arrived() -> None:
            if link != self._link:
                return
            if self._paused is None:
                arrive()
            else:
                self._paused.append(arrived)

        return arrived

    def _received(self, topic: str, payload: bytes) -> None:
        for subscribed, receive in list(self._topics.get(topic, {}).items()):
            if not subscribed.ended and subscribed not in self._deaf:
                _contained(receive, payload)

    def _asked(self, asker: str, payload: bytes, waiting: asyncio.Future[bytes]) -> None:
        if self._answers is not None:
            self._answers.take(payload, lambda answer: self._replied(asker, answer, waiting))

    def _replied(self, asker: str, answer: bytes, waiting: asyncio.Future[bytes]) -> None:
        if self._state == "away":
            return
        node = self._hub._nodes.get(asker)
        if node is not None and not node._deaf_to_answers:
            self._leave(len(answer), lambda: self._hub._carry(self._boot, asker, lambda: _set(waiting, answer)))

    def _reach(self, *, first: bool = False) -> None:
        if self._state == "connected" or self._cut_off or self._hub._away:
            return
        self._state = "connected"
        for told in self._on_state:
            _contained(told, self._state)
        if not first:
            self._tell_missed(None)

    def _lose(self) -> None:
        if self._state == "away":
            return
        self._state = "away"
        self._link += 1
        self._deaf.clear()
        self._deaf_to_questions = self._deaf_to_answers = False
        self._paused_bytes = 0
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(NoReply("The link was lost while a node was asked; perhaps it has done it."))
        for told in self._on_state:
            _contained(told, self._state)

    def _tell_missed(self, topic: str | None) -> None:
        for told in self._on_missed:
            _contained(told, topic)


class MemorySubscribed:
    """A subscription in memory.

    Attributes:
        ended: Whether it has ended.
    """

    def __init__(self, topics: dict[str, dict[MemorySubscribed, Receive]], topic: str) -> None:
        self.ended: bool = False
        self._topics = topics
        self._topic = topic

    def end(self) -> None:
        """End it; twice is harmless."""
        if self.ended:
            return
        self.ended = True
        of_topic = self._topics[self._topic]
        del of_topic[self]
        if not of_topic:
            del self._topics[self._topic]


def _contained(told: Callable[..., object], *what: object) -> None:
    try:
        told(*what)
    except Exception:
        logger.exception("a callback of the link between nodes raised; the link goes on")


def _set(waiting: asyncio.Future[bytes], answer: bytes) -> None:
    if not waiting.done():
        waiting.set_result(answer)
