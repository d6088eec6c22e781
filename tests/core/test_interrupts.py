"""Which exceptions a signal raised, and which somebody's own code."""

import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

import pytest

from chatx.core.interrupts import from_signal
from tests.faults import RAISING, interrupt


def raised_by(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except BaseException as error:
        return error
    raise AssertionError("it did not raise")


@pytest.fixture
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("act", RAISING, ids=lambda act: act.__name__)
def test_what_code_raises_itself_is_its_own(act: Callable[[], object]) -> None:
    assert not from_signal(raised_by(act))


def test_what_is_raised_again_by_code_is_still_its_own() -> None:
    def again() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise

    def from_a_block() -> None:
        with memoryview(b""):
            raise KeyboardInterrupt

    assert not from_signal(raised_by(again))
    assert not from_signal(raised_by(from_a_block))


def test_an_interrupt_by_pythons_own_handler_is_the_signals() -> None:
    def again() -> None:
        try:
            interrupt()
        except KeyboardInterrupt:
            raise

    assert from_signal(raised_by(interrupt))
    assert from_signal(raised_by(again))


def handler(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def leaves(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


class Handles:
    def handle(self, extra: int, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("handle", [handler, leaves, partial(Handles().handle, 1)])
def test_what_an_applications_own_handler_raises_is_the_signals(handle: Callable[..., None]) -> None:
    signal.signal(signal.SIGUSR1, handle)
    assert from_signal(raised_by(partial(signal.raise_signal, signal.SIGUSR1)))


def test_without_a_trace_an_interrupt_is_taken_for_a_signals() -> None:
    assert from_signal(KeyboardInterrupt())
    assert not from_signal(SystemExit())
