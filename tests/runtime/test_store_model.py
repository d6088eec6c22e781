"""A store under any schedule of outages, and of messages that it will not have: what becomes of each message."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chatx import Chat, Message, RoomOverloaded
from chatx.testing import run_virtual
from tests.faults import Hang

steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 2)),
        st.tuples(st.just("poison"), st.integers(0, 2)),
        st.tuples(
            st.just("store"),
            st.sampled_from(["well", "well", "refuses", "breaks", "hangs", "is deaf", "forgets to answer"]),
        ),
        st.tuples(st.just("wait"), st.sampled_from([0.01, 0.11, 0.3, 2.0, 7.0])),
    ),
    max_size=60,
)


class Store:
    """Saves batches as well as it is now; never takes poison."""

    def __init__(self) -> None:
        self.state = "well"
        self.saved: list[Message] = []
        self._under_way: set[str] = set()

    async def save_messages(self, messages: Sequence[Message]) -> None:
        assert not self._under_way & {each.id for each in messages}, "the same message twice at a time"
        self._under_way |= {each.id for each in messages}
        try:
            await self._save(messages)
        finally:
            self._under_way -= {each.id for each in messages}

    async def _save(self, messages: Sequence[Message]) -> None:
        match self.state:
            case "refuses":
                raise ConnectionRefusedError
            case "breaks":
                raise RuntimeError("It is not said why.")
            case "hangs":
                await Hang()()
            case "is deaf":
                while self.state == "is deaf":
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(0.05)
        await asyncio.sleep(0.001)
        if any(each.content == "poison" for each in messages):
            raise ValueError("Not this.")
        self.saved += messages
        if self.state == "forgets to answer":
            await Hang()()


class EachOnly:
    """Hands on to a store what comes one by one."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def save_message(self, message: Message) -> None:
        await self._store.save_messages([message])


@given(steps=steps, retries=st.integers(0, 3), batch=st.integers(1, 5), limit=st.integers(1, 40), each=st.booleans())
def test_what_the_store_can_have_is_saved_and_only_what_it_cannot_is_given_up(
    steps: list[tuple[str, Any]], retries: int, batch: int, limit: int, each: bool
) -> None:
    store = Store()
    chat = Chat(
        persistence=EachOnly(store) if each else store,
        middlewares=(),
        delivery_max_retries=retries,
        delivery_batch_size=batch,
        delivery_queue_limit=limit,
        adapter_timeout_ms=500,
    )
    accepted: list[Message] = []

    async def main() -> None:
        async with chat:
            for step, value in steps:
                if step == "wait":
                    await asyncio.sleep(value)
                elif step == "store":
                    store.state = value
                else:
                    try:
                        accepted.append(await chat.send_message(f"room {value}", "alice", step))
                    except RoomOverloaded:
                        assert chat.statistics().delivery_waiting == limit
                assert chat.statistics().delivery_waiting <= limit
            store.state = "well"
            # Good messages go on coming, as they do.
            for _ in range(60):
                await asyncio.sleep(10)
                try:
                    accepted.append(await chat.send_message("room 3", "alice", "send"))
                except RoomOverloaded:
                    assert chat.statistics().delivery_waiting == limit
            await asyncio.sleep(60)
            if sum(message.content == "poison" for message in accepted) < limit:
                assert chat.statistics().delivery_waiting == 0, "the queue empties by itself"

    run_virtual(main())
    saved = {each.id for each in store.saved}
    dead = {each.message.id: each for each in chat.dead_letters}
    assert saved | set(dead) == {each.id for each in accepted}
    assert {each.id for each in accepted if each.content == "poison"} <= set(dead)
    for letter in chat.dead_letters:
        if sum(message.content == "poison" for message in accepted) >= limit:
            continue  # nothing else fits in, so that nothing shows that the store is well
        assert letter.reason != "stopped"
        assert letter.attempts > retries
        # A store that breaks without a word looks like its one message's fault, and so does one that is away each
        # time when that message is tried, and there for the others.
        troubles = [value for step, value in steps if step == "store" and value != "well"]
        assert letter.message.content == "poison" or "breaks" in troubles or len(troubles) > 1, letter
