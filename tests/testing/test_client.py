"""`ChatClient`: what it expects, and how it says that it did not come."""

import asyncio

import pytest

from chatx import Chat, Closed, Gap, Message, PresenceDiff, PresenceState, RateLimit, RateLimited, Unauthorized
from chatx.testing import ChatClient
from tests.virtual import virtual


@virtual
async def test_a_client_gets_what_others_and_itself_send_to_a_room_it_joined() -> None:
    async with Chat() as chat, ChatClient(chat, "alice") as alice, ChatClient(chat, "bob") as bob:
        await alice.join("general")
        await bob.join("general")
        sent = await bob.send("general", "hello")
        assert await alice.expect_message("hello", user_id="bob", room_id="general") == sent
        assert await bob.expect_message() == sent
        assert set(await chat.presence("general")) == {"alice", "bob"}


@virtual
async def test_an_expectation_takes_the_first_that_fits_and_leaves_the_others() -> None:
    async with Chat() as chat, ChatClient(chat, "alice") as alice:
        await alice.join("general")
        for content in ("one", "two", "one"):
            await chat.send_message("general", "bob", content)
        assert (await alice.expect_message("two")).offset == 2
        assert (await alice.expect_message("one")).offset == 1
        assert (await alice.expect_message("one")).offset == 3
        await alice.expect_nothing()


@virtual
async def test_an_expectation_waits_for_as_long_as_it_was_told() -> None:
    loop = asyncio.get_running_loop()
    async with Chat() as chat, ChatClient(chat, "alice") as alice:
        await alice.join("general")
        late = loop.create_task(_send_later(chat, 59.5, "late"))
        with pytest.raises(AssertionError):
            await alice.expect_message("late", within=59)
        assert loop.time() == 59
        await alice.expect_message("late", within=1)
        assert loop.time() == 59.5
        await late


@virtual
async def test_what_was_sent_before_arrives_without_any_wait() -> None:
    async with Chat() as chat, ChatClient(chat, "alice") as alice:
        await alice.join("general")
        await chat.send_message("general", "bob", "this turn")
        await alice.expect_message("this turn", within=0)
        await chat.send_message("general", "bob", "this turn too")
        assert len(await alice.arrived()) == 1


@virtual
async def test_what_is_published_in_the_turn_of_the_deadline_arrives() -> None:
    loop = asyncio.get_running_loop()
    async with Chat() as chat, ChatClient(chat, "alice") as alice:
        await alice.join("general")
        sending = chat.send_message("general", "bob", "just in time")

        def send_now() -> None:
            # A send in which nothing awaits needs no task.
            with pytest.raises(StopIteration):
                sending.send(None)

        loop.call_at(1.0, send_now)
        await alice.expect_message("just in time", within=1.0)


@virtual
async def test_a_failed_expectation_shows_what_did_arrive() -> None:
    async with Chat() as chat, ChatClient(chat, "alice") as alice:
        await alice.join("general")
        with pytest.raises(AssertionError, match=r"alice: expected Message\(content='x'\) within 2 s.\nNothing else"):
            await alice.expect_message("x", within=2)
        await chat.send_message("general", "bob", "something else")
        with pytest.raises(AssertionError, match=r"not taken \(1\):\n  Message\(.*content='something else'"):
            await alice.expect_message("x")
        # And it is still there.
        await alice.expect_message("something else")


@virtual
async def test_an_expectation_of_a_field_that_is_none_is_a_mistake_of_the_test() -> None:
    async with Chat() as chat, ChatClient(chat, "alice") as alice:
        with pytest.raises(TypeError, match="Message has no contents; it has id, room_id"):
            await alice.expect_message(contents="x")


@virtual
async def test_expect_nothing_fails_for_what_comes_and_for_what_was_left() -> None:
    async with Chat() as chat, ChatClient(chat, "alice") as alice:
        await alice.join("general")
        late = asyncio.create_task(_send_later(chat, 5, "late"))
        await alice.expect_nothing(within=4)
        with pytest.raises(AssertionError, match="expected nothing for 2 s"):
            await alice.expect_nothing(within=2)
        with pytest.raises(AssertionError, match="content='late'"):
            await alice.expect_nothing(within=0)
        assert [event.content for event in await alice.arrived() if isinstance(event, Message)] == ["late"]
        await alice.expect_nothing()
        await late


@virtual
async def test_expect_nothing_waits_the_whole_time() -> None:
    loop = asyncio.get_running_loop()
    async with Chat() as chat, ChatClient(chat, "alice") as alice:
        await alice.expect_nothing(within=30)
        assert loop.time() == 30


@virtual
async def test_presence_is_followed_by_state_and_diffs() -> None:
    async with Chat() as chat, ChatClient(chat, "alice") as alice:
        await chat.join("general", "zoe")
        await alice.join("general", presence=True)
        await alice.expect_presence("general", {"alice", "zoe"})
        async with ChatClient(chat, "bob") as bob, ChatClient(chat, "bob") as second:
            await bob.join("general")
            await second.join("general")
            await alice.expect_presence("general", {"alice", "bob", "zoe"})
            bob.disconnect()
            await alice.expect(PresenceDiff)
            await alice.expect_presence("general", {"alice", "bob", "zoe"})
        await alice.expect_presence("general", {"alice", "zoe"})
        # Taken with the expectations: nothing is left of them.
        await alice.expect_nothing()
        with pytest.raises(AssertionError, match=r"within 1 s, but there are \['alice', 'zoe'\]"):
            await alice.expect_presence("general", {"alice"})


@virtual
async def test_presence_that_was_not_asked_for_is_said_to_be() -> None:
    async with Chat() as chat, ChatClient(chat, "alice") as alice:
        await alice.join("general")
        with pytest.raises(AssertionError, match="was told nothing; join it with presence=True"):
            await alice.expect_presence("general", {"alice"})
        # Not even an empty room is known to be one.
        with pytest.raises(AssertionError, match="join it with presence=True"):
            await alice.expect_presence("general", ())


@virtual
async def test_a_client_resumes_and_expects_any_kind_of_event() -> None:
    async with Chat(history_size=2) as chat, ChatClient(chat, "alice") as alice, ChatClient(chat, "bob") as bob:
        sent = [await chat.send_message("general", "zoe", str(number)) for number in range(4)]
        await alice.join("general", after=sent[1], presence=True)
        await alice.expect(PresenceState, room_id="general")
        assert [await alice.expect_message(), await alice.expect_message()] == sent[2:]
        await bob.join("general", after=sent[0])
        assert (await bob.expect(Gap, reason="too_old")).missed == 3


@virtual
async def test_leaving_ends_membership_subscription_and_what_is_unread() -> None:
    async with Chat() as chat, ChatClient(chat, "alice") as alice:
        await alice.join("general", presence=True)
        await alice.join("other")
        await chat.send_message("general", "bob", "unread")
        await chat.send_message("other", "bob", "kept")
        await alice.expect(PresenceState)
        await alice.leave("general")
        await chat.send_message("general", "bob", "not for alice")
        await alice.expect_message("kept")
        await alice.expect_nothing()
        assert await chat.presence("general") == {}
        assert set(await chat.presence("other")) == {"alice"}


@virtual
async def test_leaving_forgets_what_has_arrived_from_the_room() -> None:
    async with Chat() as chat, ChatClient(chat, "alice") as alice:
        await alice.join("general", presence=True)
        await alice.join("other")
        await chat.send_message("general", "bob", "not taken")
        await chat.send_message("other", "bob", "taken")
        await alice.expect_message("taken")
        await alice.expect_presence("general", {"alice"})
        await alice.leave("general")
        await alice.expect_nothing()
        with pytest.raises(AssertionError, match="was told nothing"):
            await alice.expect_presence("general", {"alice"})


@virtual
async def test_leaving_the_block_leaves_every_room() -> None:
    async with Chat() as chat:
        with pytest.raises(LookupError):
            async with ChatClient(chat, "alice") as alice:
                await alice.join("general")
                raise LookupError
        assert await chat.presence("general") == {}
        alice.disconnect()
        with pytest.raises(Closed):
            await alice.send("general", "too late")


@virtual
async def test_refusals_come_out_as_they_are() -> None:
    class OnlyAlice:
        def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            return user_id == "alice"

    rate = RateLimit(messages_per_sec=1, burst=1)
    chat = Chat(auth=OnlyAlice(), rate_limit=rate)
    async with chat, ChatClient(chat, "alice") as alice, ChatClient(chat, "bob") as bob:
        await alice.send("general", "one")
        with pytest.raises(RateLimited):
            await alice.send("general", "two")
        with pytest.raises(Unauthorized):
            await bob.join("general")


@virtual
async def test_a_repeated_key_is_answered_and_not_broadcast() -> None:
    async with Chat() as chat, ChatClient(chat, "alice") as alice:
        await alice.join("general")
        first = await alice.send("general", "once", idempotency_key="k")
        assert (await alice.send("general", "once", idempotency_key="k")).duplicate
        assert await alice.expect_message() == first
        await alice.expect_nothing()


@virtual
async def test_the_end_of_a_connection_can_be_expected() -> None:
    async with Chat(mailbox_size=2) as chat, ChatClient(chat, "alice") as alice, ChatClient(chat, "bob") as bob:
        await alice.join("general")
        await bob.join("other")
        for number in range(5):
            await chat.send_message("general", "zoe", str(number))
            await asyncio.sleep(0.1)
        assert (await alice.expect_end("slow_consumer")).retryable
        # What the mailbox held is there, and it is no surprise that no more comes.
        assert (await alice.expect_message()).offset == 1
        with pytest.raises(AssertionError, match="The connection ended with slow_consumer"):
            await alice.expect_message("4")
        with pytest.raises(AssertionError, match="ended with slow_consumer"):
            await alice.expect_nothing()
        with pytest.raises(AssertionError, match="expected the connection to end with 'closed'"):
            await alice.expect_end("closed")
        with pytest.raises(AssertionError, match="expected the connection to end with 'closed' within 1 s"):
            await bob.expect_end("closed")
        await chat.stop()
        began = asyncio.get_running_loop().time()
        await bob.expect_end("closed")
        assert asyncio.get_running_loop().time() == began
        with pytest.raises(AssertionError, match=r"expected nothing for 1 s\.\nThe connection ended with closed"):
            await bob.expect_nothing()


@virtual
async def test_a_client_may_be_told_to_drop_the_oldest() -> None:
    async with Chat(mailbox_size=2) as chat, ChatClient(chat, "alice", overflow="drop_oldest") as alice:
        await alice.join("general")
        for number in range(5):
            await chat.send_message("general", "zoe", str(number))
            await asyncio.sleep(0.1)
        assert (await alice.expect(Gap)).missed == 3
        await alice.expect_message("4")


async def _send_later(chat: Chat, delay: float, content: str) -> None:
    await asyncio.sleep(delay)
    await chat.send_message("general", "bob", content)
