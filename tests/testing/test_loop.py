"""Virtual time."""

import asyncio
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.testing import VirtualLoop, run_virtual
from tests.virtual import virtual

SECONDS = st.floats(min_value=0, max_value=1e9, allow_nan=False)


@virtual
async def test_an_hour_passes_at_once() -> None:
    loop = asyncio.get_running_loop()
    assert loop.time() == 0
    await asyncio.sleep(3600)
    assert loop.time() == 3600


@virtual
async def test_a_wait_longer_than_a_selector_sleeps_takes_one_step() -> None:
    # asyncio never asks its selector for more than a day at a time.
    await asyncio.sleep(10 * 24 * 3600)
    assert asyncio.get_running_loop().time() == 10 * 24 * 3600


@given(st.lists(SECONDS, max_size=20))
@virtual
async def test_each_timer_fires_at_its_very_time_and_in_order(delays: list[float]) -> None:
    loop = asyncio.get_running_loop()
    fired: list[float] = []

    def fire(when: float) -> None:
        assert loop.time() == when
        fired.append(when)

    for delay in delays:
        loop.call_at(delay, fire, delay)
    await asyncio.sleep(max(delays, default=0) + 1)
    assert fired == sorted(delays)


@given(SECONDS, SECONDS)
@virtual
async def test_a_sleep_is_never_cut_short(start: float, delay: float) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(start)
    began = loop.time()
    await asyncio.sleep(delay)
    assert loop.time() == began + delay


@virtual
async def test_time_stands_still_while_there_is_something_to_do() -> None:
    loop = asyncio.get_running_loop()
    handle = loop.call_later(1e-9, pytest.fail, "a timer fired before the ready callbacks had run")
    for _ in range(1000):
        await asyncio.sleep(0)
    assert loop.time() == 0
    handle.cancel()


@virtual
async def test_what_can_be_read_now_comes_before_any_timer() -> None:
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()
    os.write(writing, b"x")
    readable = loop.create_future()
    loop.add_reader(reading, readable.set_result, None)
    loop.call_later(5, lambda: None)
    await readable
    assert loop.time() == 0
    loop.remove_reader(reading)
    os.close(reading)
    os.close(writing)


@virtual
async def test_a_cancelled_timer_does_not_move_the_clock() -> None:
    loop = asyncio.get_running_loop()
    loop.call_later(5, lambda: None).cancel()
    await asyncio.sleep(9)
    assert loop.time() == 9


@virtual
async def test_a_timeout_expires_at_its_deadline() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(7):
            await loop.create_future()
    assert loop.time() == 7


def test_the_loop_waits_for_a_thread_and_a_real_file() -> None:
    reading, writing = os.pipe()

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        loop.add_reader(reading, readable.set_result, None)
        thread = threading.Thread(target=os.write, args=(writing, b"x"))
        thread.start()
        await readable
        loop.remove_reader(reading)
        thread.join()
        assert loop.time() == 0
        return os.read(reading, 10)

    try:
        assert run_virtual(main()) == b"x"
    finally:
        os.close(reading)
        os.close(writing)


def test_run_virtual_returns_raises_and_cancels_what_is_left() -> None:
    ended: list[str] = []

    async def forgotten() -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            ended.append("cancelled")

    async def main() -> int:
        assert isinstance(asyncio.get_running_loop(), VirtualLoop)
        task = asyncio.create_task(forgotten())
        await asyncio.sleep(0)
        assert not task.done()
        return 42

    async def failing() -> None:
        raise LookupError("mine")

    assert run_virtual(main()) == 42
    assert ended == ["cancelled"]
    with pytest.raises(LookupError, match="mine"):
        run_virtual(failing())
