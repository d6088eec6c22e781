"""An application's own `ChatError`s, whose constructors take what they like: they are refusals like any other."""

import asyncio
from typing import Any

import pytest

from chatx import Blocked, Chat, ChatError
from chatx.core.message import Draft
from tests.virtual import virtual


class Keyword(ChatError):
    """Takes keywords only."""

    code = "keyword"
    summary = "Takes keywords only."

    def __init__(self, *, word: str, place: int) -> None:
        super().__init__(f"{word} at {place}", retry_after=2.5)
        self.word = word


class Silent(Blocked):
    """Passes nothing on."""

    summary = "Says nothing."

    def __init__(self, first: int, second: int) -> None:
        self.numbers = [first, second]


class Slotted(ChatError):
    """Has a slot."""

    __slots__ = ("user",)

    def __init__(self, user: str) -> None:
        super().__init__("slotted")
        self.user = user


class Made(ChatError):
    """Has a `__new__` that wants something."""

    def __new__(cls, one: int, two: int) -> "Made":
        return super().__new__(cls)

    def __init__(self, one: int, two: int) -> None:
        super().__init__("made")


class Mixed(ChatError, OSError):
    """Is an `OSError` too."""

    def __init__(self, path: str) -> None:
        super().__init__(path)


class MixedTheOtherWay(LookupError, ChatError):
    """Is a `LookupError` first."""

    def __init__(self, path: str, more: object) -> None:
        self.path = path


class NeverEqual(ChatError):
    """Has an `again` of its own, which is another thing."""

    def again(self, *, times: int) -> Any:  # type: ignore[override]
        raise NotImplementedError


ERRORS = [
    Keyword(word="poem", place=3),
    Silent(1, 2),
    Slotted("alice"),
    Made(1, 2),
    Mixed("a file"),
    MixedTheOtherWay("a", "b"),
    NeverEqual("other"),
]


def named(error: ChatError) -> str:
    return type(error).__name__


@pytest.mark.parametrize("error", ERRORS, ids=named)
def test_again_is_an_equal_error_of_its_own_whatever_the_constructor_takes(error: ChatError) -> None:
    try:
        raise error
    except ChatError:
        again = ChatError.again(error)
    assert again is not error
    assert type(again) is type(error)
    assert (again.code, again.reason, again.retry_after, again.args) == (
        error.code,
        error.reason,
        error.retry_after,
        error.args,
    )
    assert vars(again) == vars(error)
    assert getattr(again, "user", None) == getattr(error, "user", None)
    assert again.__traceback__ is None


def test_an_error_that_passes_no_reason_on_has_its_summary() -> None:
    assert (Silent(1, 2).reason, Silent(1, 2).retry_after) == ("Says nothing.", None)


def test_an_error_that_cannot_be_copied_is_the_same_again() -> None:
    class Rigid(ChatError):
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("no")

    error = Rigid("rigid")
    assert error.again() is error


@pytest.mark.parametrize("error", ERRORS, ids=named)
@virtual
async def test_repeats_of_a_key_get_an_applications_own_refusal_as_the_first_sender_does(error: ChatError) -> None:
    async def refuses(draft: Draft) -> Draft:
        await asyncio.sleep(0.1)
        raise error

    async with Chat(middlewares=(refuses,)) as chat, asyncio.timeout(10):
        sends = (chat.send_message("room", "alice", "hello", idempotency_key="k") for _ in range(3))
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
        assert [type(each) for each in outcomes] == [type(error)] * 3
        assert outcomes[0] is error
        assert chat.statistics().admitted == 0
