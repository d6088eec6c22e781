"""A seeded order of steps."""

import asyncio
import hashlib
import os
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.testing import SeededLoop, VirtualLoop, run_seeded, run_virtual

SEEDS = st.integers(min_value=0, max_value=2**32)


async def workers(count: int, steps: int) -> list[int]:
    """Return who took each step, where each worker yields between its own."""
    order: list[int] = []

    async def work(number: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
            order.append(number)

    await asyncio.gather(*(work(number) for number in range(count)))
    return order


async def program(seed: int) -> str:
    """Use most of what asyncio has, and return a hash of what happened when."""
    loop = asyncio.get_running_loop()
    chance = random.Random(seed)
    trace = hashlib.sha256()
    queue: asyncio.Queue[int] = asyncio.Queue(3)
    lock, event, slots = asyncio.Lock(), asyncio.Event(), asyncio.Semaphore(2)

    def saw(*what: object) -> None:
        trace.update(repr((loop.time(), *what)).encode())

    async def produce(number: int) -> None:
        for each in range(20):
            await queue.put(number * 100 + each)
            await asyncio.sleep(int(chance.random() * 3) / 4)
            saw("put", number, each)

    async def consume(number: int) -> None:
        while True:
            item = await queue.get()
            async with lock, slots:
                saw("got", number, item)
                await asyncio.sleep(0)
            queue.task_done()

    async def impatient(number: int) -> None:
        for _ in range(10):
            try:
                async with asyncio.timeout(0.75):
                    await event.wait()
            except TimeoutError:
                saw("late", number)
            else:
                saw("told", number)
                event.clear()
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        consumers = [group.create_task(consume(number)) for number in range(3)]
        waiting = [group.create_task(impatient(number)) for number in range(3)]
        await asyncio.gather(*(produce(number) for number in range(4)))
        event.set()
        await queue.join()
        await asyncio.wait(waiting)
        for consumer in consumers:
            consumer.cancel()
    return trace.hexdigest()[:16]


@given(SEEDS)
def test_a_seed_takes_the_same_steps_again(seed: int) -> None:
    assert run_seeded(seed, workers(5, 5)) == run_seeded(seed, workers(5, 5))


def test_every_order_of_what_is_ready_comes_up() -> None:
    assert len({tuple(run_seeded(seed, workers(4, 1))) for seed in range(500)}) == 4 * 3 * 2


def test_a_seed_takes_the_same_steps_on_every_python() -> None:
    assert [run_seeded(seed, program(seed)) for seed in range(3)] == [
        "09d9f04ddd0b8950",
        "2dfb293ae82f6149",
        "e4ca22a8d4a22061",
    ]


@given(SEEDS)
def test_what_one_step_hands_in_runs_in_its_order(seed: int) -> None:
    async def main() -> list[tuple[int, int]]:
        loop = asyncio.get_running_loop()
        ran: list[tuple[int, int]] = []

        async def hand_in(number: int) -> None:
            for each in range(5):
                loop.call_soon(ran.append, (number, each))

        await asyncio.gather(*(hand_in(number) for number in range(3)))
        await asyncio.sleep(0)
        return ran

    ran = run_seeded(seed, main())
    assert len(ran) == 15
    for number in range(3):
        assert [each for by, each in ran if by == number] == [0, 1, 2, 3, 4]


@given(SEEDS)
def test_nothing_that_is_ready_waits_for_more_than_a_round(seed: int) -> None:
    steps = run_seeded(seed, workers(6, 10))
    rounds = [set(steps[at : at + 6]) for at in range(0, len(steps), 6)]
    assert rounds == [set(range(6))] * 10


@given(SEEDS, st.lists(st.integers(min_value=0, max_value=3), max_size=20))
def test_timers_fire_in_the_order_of_their_times(seed: int, delays: list[int]) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        fired: list[int] = []
        for delay in delays:
            loop.call_later(delay, fired.append, delay)
        await asyncio.sleep(5)
        assert loop.time() == 5
        return fired

    assert run_seeded(seed, main()) == sorted(delays)


def test_timers_due_at_the_same_time_fire_in_any_order() -> None:
    async def main() -> tuple[int, ...]:
        loop = asyncio.get_running_loop()
        fired: list[int] = []
        for number in range(3):
            loop.call_at(1, fired.append, number)
        await asyncio.sleep(2)
        return tuple(fired)

    assert len({run_seeded(seed, main()) for seed in range(100)}) == 6


def test_a_cancelled_callback_does_not_run() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(pytest.fail, "it ran").cancel()
        await asyncio.sleep(0)

    run_seeded(1, main())


def test_files_and_threads_are_waited_for() -> None:
    reading, writing = os.pipe()

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        readable, written = asyncio.Event(), asyncio.Event()
        loop.add_reader(reading, readable.set)

        def write() -> None:
            os.write(writing, b"x")
            loop.call_soon_threadsafe(written.set)

        thread = threading.Thread(target=write)
        thread.start()
        await readable.wait()
        await written.wait()
        loop.remove_reader(reading)
        thread.join()
        return os.read(reading, 10)

    try:
        assert run_seeded(1, main()) == b"x"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_failure_names_its_seed() -> None:
    async def failing() -> None:
        assert isinstance(asyncio.get_running_loop(), VirtualLoop)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as failure:
        run_seeded(42, failing())
    assert "run_seeded(42, ...)" in failure.value.__notes__[0]


def test_a_loop_knows_its_seed_and_closes_with_work_left() -> None:
    loop = SeededLoop(7)
    assert loop.seed == 7
    loop.call_soon(pytest.fail, "it ran")
    loop.close()


def test_a_plain_virtual_loop_keeps_to_one_order() -> None:
    assert run_virtual(workers(3, 2)) == [0, 1, 2] * 2
