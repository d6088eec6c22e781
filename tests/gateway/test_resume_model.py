"""Clients that come, are cut off and resume, over the real engine: nothing missed, nothing doubled, or told of.

A client here takes the frames of its socket in order, and a cut loses those it has not taken yet. It moves its cursor
by messages, as the protocol says, and by the reply of a join that was not recovered. Whatever the interleaving, each
stretch it has seen is contiguous and equal to what was published, and a stretch begins anew only where a reply said so.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from chatx.chat import Chat
from chatx.core.rate_limit import RateLimit
from chatx.gateway.session.gateway import Gateway
from chatx.testing import VirtualLoop
from tests.gateway.fakes import Client, chatx_tasks

TOPIC = "room:a"
HISTORY = 200
MOST = 150
"""Below HISTORY, so that each reason for a gap comes up."""


class Reader:
    """A person's client through all its connections."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client: Client | None = None
        self.taken = 0
        self.join_ref = ""
        self.joined = False
        self.cursor: dict[str, Any] | None = None
        self.seen: list[tuple[str, int]] = []
        self.gaps: list[tuple[int, str]] = []

    def connect(self, gateway: Gateway) -> None:
        self.client = Client(gateway, self.name)
        self.taken = 0
        self.rejoin()

    def rejoin(self) -> None:
        assert self.client is not None
        self.joined = False
        self.join_ref = self.client.ask(TOPIC, **(self.cursor or {}))

    def cut(self) -> None:
        assert self.client is not None
        self.client.session.end()
        self.client = None

    def take(self, at_most: int) -> None:
        """Read so many frames of the socket."""
        assert self.client is not None
        frames = self.client.socket.frames[self.taken : self.taken + at_most]
        self.taken += len(frames)
        for frame in frames:
            join_ref, ref, topic, event, payload = msgspec.json.decode(frame)
            assert topic == TOPIC
            if event == "phx_reply":
                assert payload["status"] == "ok", payload
                if ref == self.join_ref:
                    self.on_join(payload["response"])
            elif event == "phx_close":
                # Of a membership that the join under way has ended.
                assert join_ref != self.join_ref
            elif event == "phx_error":
                assert join_ref == self.join_ref
                self.rejoin()
            elif event == "new_message" and self.joined:
                self.on_message(payload)

    def on_join(self, response: dict[str, Any]) -> None:
        self.joined = True
        if response["recovered"]:
            assert self.cursor is not None
            return
        if self.cursor is not None:
            assert response["reason"] in ("epoch_changed", "too_old", "too_many")
            self.gaps.append((len(self.seen), response["reason"]))
        self.cursor = {"epoch": response["epoch"], "offset": response["offset"]}

    def on_message(self, message: dict[str, Any]) -> None:
        assert self.cursor is not None
        assert message["epoch"] == self.cursor["epoch"]
        assert message["offset"] == self.cursor["offset"] + 1
        assert message["content"] == f"m{message['offset']}"
        self.cursor = {"epoch": message["epoch"], "offset": message["offset"]}
        self.seen.append((message["epoch"], message["offset"]))


readers = st.integers(0, 3)


class Resuming(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.chat = Chat(
            rate_limit=RateLimit(messages_per_sec=1e9, burst=10**9),
            history_size=HISTORY,
            resume_max_messages=MOST,
        )
        self.runner.run(self.chat.start())
        self.gateway = Gateway(self.chat.engine)
        self.readers = [Reader(f"user{number}") for number in range(4)]
        self.published = 0

    def turn(self, seconds: float = 0) -> None:
        self.runner.run(asyncio.sleep(seconds))

    @rule(who=readers)
    def connect(self, who: int) -> None:
        if self.readers[who].client is None:
            self.in_loop(self.readers[who].connect, self.gateway)

    @rule(who=readers)
    def cut(self, who: int) -> None:
        if self.readers[who].client is not None:
            self.in_loop(self.readers[who].cut)

    @rule(who=readers)
    def rejoin(self, who: int) -> None:
        if self.readers[who].client is not None:
            self.in_loop(self.readers[who].rejoin)

    @rule(who=readers, at_most=st.integers(1, 300))
    def take(self, who: int, at_most: int) -> None:
        if self.readers[who].client is not None:
            self.in_loop(self.readers[who].take, at_most)

    @rule(who=readers, stalled=st.booleans())
    def stall(self, who: int, stalled: bool) -> None:
        client = self.readers[who].client
        if client is not None:
            (client.socket.stall if stalled else client.socket.flow)()

    @rule(count=st.sampled_from([1, 2, 5, 63, 64, 65, 130]))
    def publish(self, count: int) -> None:
        async def send() -> None:
            for _ in range(count):
                self.published += 1
                await self.chat.send_message("a", "server", f"m{self.published}")

        self.runner.run(send())

    @rule(who=readers)
    def publish_while_a_join_is_under_way(self, who: int) -> None:
        reader = self.readers[who]

        async def send() -> None:
            if reader.client is None:
                reader.connect(self.gateway)
            for _ in range(3):
                self.published += 1
                await self.chat.send_message("a", "server", f"m{self.published}")
                await asyncio.sleep(0)

        self.runner.run(send())

    @rule()
    def let_time_pass(self) -> None:
        self.turn(0.01)

    @precondition(lambda self: any(reader.client for reader in self.readers))
    @rule()
    def everybody_catches_up(self) -> None:
        self.catch_up()

    def in_loop(self, step: Any, *args: Any) -> None:
        async def run() -> None:
            step(*args)

        self.runner.run(run())

    def catch_up(self) -> None:
        """Let every connected reader read all there is, joining again where it is told to."""
        connected = [reader for reader in self.readers if reader.client is not None]
        for reader in connected:
            assert reader.client is not None
            reader.client.socket.flow()
        for _ in range(3):
            self.turn(0.01)
            for reader in connected:
                self.in_loop(reader.take, 10**9)
        for reader in connected:
            assert reader.joined
            assert reader.cursor is not None
            assert reader.cursor["offset"] == self.published

    def teardown(self) -> None:
        for reader in self.readers:
            if reader.client is None:
                self.in_loop(reader.connect, self.gateway)
        self.catch_up()
        for reader in self.readers:
            self.in_loop(reader.cut)
        self.turn(0.01)
        self.in_loop(self.check_nothing_is_left)
        self.runner.run(self.chat.stop())
        self.runner.close()

    def check_nothing_is_left(self) -> None:
        assert chatx_tasks() == []
        statistics = self.chat.statistics()
        assert (statistics.members, statistics.subscriptions) == (0, 0)


Resuming.TestCase.settings = settings(stateful_step_count=40)
TestResuming = Resuming.TestCase
