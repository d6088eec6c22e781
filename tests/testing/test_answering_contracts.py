"""`check_auth`, `check_moderation` and `check_notifier`."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from chatx import Blocked, Closed, Message, Unauthorized
from chatx.testing import check_auth, check_moderation, check_notifier
from chatx.testing.contracts import CONTENTS, USER_IDS
from tests.virtual import virtual


class Answers:
    """Auth and moderation in one, that answers always the same."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def authorize(self, user_id: str, room_id: str, action: str) -> Any:
        return self.check(user_id)

    def check(self, content: str) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class AnswersLater(Answers):
    async def authorize(self, user_id: str, room_id: str, action: str) -> Any:
        await asyncio.sleep(0.01)
        return super().check(user_id)

    async def check(self, content: str) -> Any:
        await asyncio.sleep(0.01)
        return super().check(content)


class Returns:
    """A plain method that gives an awaitable: nobody awaits it."""

    def authorize(self, user_id: str, room_id: str, action: str) -> Any:
        return AnswersLater(True).check(user_id)

    def check(self, content: str) -> Any:
        return AnswersLater(True).check(content)


@pytest.mark.parametrize("kind", [Answers, AnswersLater])
@virtual
async def test_exactly_true_exactly_false_and_the_refusal_pass(kind: type[Answers]) -> None:
    for answer in (True, False):
        await check_auth(kind(answer))
        await check_moderation(kind(answer))
    await check_auth(kind(Unauthorized("members only")))
    await check_moderation(kind(Blocked("be kind")))


@pytest.mark.parametrize("kind", [Answers, AnswersLater])
@pytest.mark.parametrize(
    "answer,what",
    [
        (None, r"answered None \(NoneType\); it must answer exactly True or False"),
        (1, r"answered 1 \(int\); it must answer exactly True or False"),
        (0, r"answered 0 \(int\)"),
        ("yes", r"answered 'yes' \(str\)"),
        (LookupError("no such user"), r"failed: LookupError\('no such user'\); it must answer"),
        (asyncio.CancelledError(), "failed: .*CancelledError"),
        (Closed("mine"), "raised Closed; it may raise (Unauthorized|Blocked) only"),
    ],
)
@virtual
async def test_any_other_answer_is_found_and_named(kind: type[Answers], answer: object, what: str) -> None:
    with pytest.raises(
        AssertionError, match=rf"The auth adapter {kind.__name__} breaks its contract: authorize.*{what}"
    ):
        await check_auth(kind(answer))
    with pytest.raises(AssertionError, match=rf"The moderation adapter {kind.__name__} .*: check\('hello'\) {what}"):
        await check_moderation(kind(answer))


@virtual
async def test_a_coroutine_that_nobody_awaits_is_found() -> None:
    with pytest.raises(AssertionError, match=r"answered <coroutine .*\(coroutine\); it must answer exactly True"):
        await check_auth(Returns())
    with pytest.raises(AssertionError, match=r"answered <coroutine .*\(coroutine\); it must answer exactly True"):
        await check_moderation(Returns())


@virtual
async def test_an_adapter_that_fails_for_one_text_or_id_is_found() -> None:
    class AsciiOnly:
        def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            return bool(user_id.encode("ascii"))

        def check(self, content: str) -> bool:
            return bool(content.encode("latin-1"))

    with pytest.raises(AssertionError, match="UnicodeEncodeError"):
        await check_auth(AsciiOnly())
    with pytest.raises(AssertionError, match="UnicodeEncodeError"):
        await check_moderation(AsciiOnly())


@virtual
async def test_an_adapter_that_fails_for_one_action_is_found() -> None:
    class KnowsTwo:
        def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            return {"join": True, "send": True}[action]

    with pytest.raises(AssertionError, match=r"authorize\('alice', 'alice', 'subscribe'\) failed: KeyError"):
        await check_auth(KnowsTwo())


@virtual
async def test_an_adapter_that_mixes_up_questions_asked_at_once_is_found() -> None:
    class OneAtATime:
        asked = 0

        async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            self.asked += 1
            await asyncio.sleep(0.01)
            self.asked -= 1
            if self.asked:
                raise RuntimeError("another operation is in progress")
            return True

    with pytest.raises(AssertionError, match="another operation is in progress"):
        await check_auth(OneAtATime())


@virtual
async def test_an_adapter_that_hangs_is_found_and_left_behind() -> None:
    class Hangs:
        async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            return bool(await asyncio.Event().wait())

    loop = asyncio.get_running_loop()
    with pytest.raises(AssertionError, match=r"failed: .*no answer within 2\.0 s"):
        await check_auth(Hangs(), timeout_s=2)
    assert loop.time() == 2
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual
async def test_what_must_be_allowed_and_refused_is_checked() -> None:
    class Members:
        def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            if action == "send" and user_id == "muted":
                raise Unauthorized("muted")
            return user_id in ("alice", "muted")

        async def check(self, content: str) -> bool:
            return "spam" not in content

    await check_auth(
        Members(),
        allowed=[("alice", "general", "send"), ("muted", "general", "join")],
        refused=[("muted", "general", "send"), ("bob", "general", "join")],
    )
    with pytest.raises(AssertionError, match=r"authorize\('bob', 'general', 'join'\) refused; it must answer True"):
        await check_auth(Members(), allowed=[("bob", "general", "join")])
    with pytest.raises(AssertionError, match=r"authorize\('alice', 'general', 'join'\) answered True; it must refuse"):
        await check_auth(Members(), refused=[("alice", "general", "join")])
    await check_moderation(Members(), allowed=["ham"], refused=["spam!"])
    with pytest.raises(AssertionError, match=r"check\('spam'\) refused; it must answer True"):
        await check_moderation(Members(), allowed=["spam"])
    with pytest.raises(AssertionError, match=r"check\('ham'\) answered True; it must refuse"):
        await check_moderation(Members(), refused=["ham"])


class Nothing:
    pass


class TooFew:
    def authorize(self, user_id: str) -> bool:
        return True

    def check(self) -> bool:
        return True

    def notify(self, user_id: str) -> None: ...


@pytest.mark.parametrize(
    "role,check", [("auth", check_auth), ("moderation", check_moderation), ("notifier", check_notifier)]
)
@virtual
async def test_a_signature_that_a_chat_refuses_is_found(role: str, check: Any) -> None:
    with pytest.raises(AssertionError, match=f"The {role} adapter Nothing breaks .*a Chat refuses it.*has no method"):
        await check(Nothing())
    with pytest.raises(AssertionError, match=f"The {role} adapter TooFew breaks .*a Chat refuses it.*must take"):
        await check(TooFew())


class Notes:
    """A notifier that keeps its contract, with plain methods."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Message]] = []

    def notify(self, user_id: str, message: Message) -> None:
        self.told.append((user_id, message))


class NotesLater:
    """The same, with async methods and recipients."""

    def __init__(self, recipients: object = ("alice",)) -> None:
        self.answer = recipients

    async def notify(self, user_id: str, message: Message) -> None:
        await asyncio.sleep(0.01)

    async def recipients(self, message: Message) -> Any:
        return self.answer


async def test_a_notifier_that_takes_every_message_twice_passes() -> None:
    notes = Notes()
    await check_notifier(notes)
    assert {user for user, _ in notes.told} == set(USER_IDS)
    assert {message.content for _, message in notes.told} == set(CONTENTS)
    for user in USER_IDS:
        messages = [message.id for told, message in notes.told if told == user]
        assert len(messages) == len(set(messages)) + 1
    notes = Notes()
    await check_notifier(notes, users=["only"])
    assert {user for user, _ in notes.told} == {"only"}


@pytest.mark.parametrize("recipients", [(), ("alice",), ["alice", "bob"], {"alice"}])
@virtual
async def test_recipients_may_be_any_collection_of_ids(recipients: object) -> None:
    await check_notifier(NotesLater(recipients))


@pytest.mark.parametrize("recipients", [None, 7, [b"alice"], [None], ["alice", 1]])
@virtual
async def test_recipients_that_are_no_ids_are_found(recipients: object) -> None:
    with pytest.raises(AssertionError, match=r"recipients\(message\) answered .*; it must answer with user ids"):
        await check_notifier(NotesLater(recipients))


async def test_a_notifier_that_fails_is_found() -> None:
    class Once(Notes):
        def notify(self, user_id: str, message: Message) -> None:
            if any(message.id == each.id and user_id == user for user, each in self.told):
                raise ValueError("told already")
            super().notify(user_id, message)

    class Fails:
        def notify(self, user_id: str, message: Message) -> None:
            raise OSError("no network")

        def recipients(self, message: Message) -> Sequence[str]:
            return ()

    with pytest.raises(AssertionError, match=r"notify\(.*, Message\(.*failed: ValueError\('told already'\)"):
        await check_notifier(Once())
    with pytest.raises(AssertionError, match=r"notify\(.*failed: OSError\('no network'\); it must not"):
        await check_notifier(Fails())
