"""The faults of the memory backplane: each happens as ordered, and runs from a seed are the same again."""

from __future__ import annotations

import asyncio
import random

import pytest

from chatx.cluster.backplane import PENDING_BYTES, BackplaneAway, BackplaneFull, NobodyThere, NoReply
from chatx.cluster.memory_backplane import Chances, MemoryBackplane, MemoryHub
from chatx.testing import run_seeded, run_virtual
from tests.cluster.links import Told

BOOTS = ["a" * 16, "b" * 16, "c" * 16]


async def nodes(hub: MemoryHub) -> list[MemoryBackplane]:
    links = [MemoryBackplane(hub, boot) for boot in BOOTS]
    for each in links:
        await each.connect()
    return links


async def echo(payload: bytes) -> bytes:
    return payload


async def flood(seed: int) -> list[tuple[int, bytes]]:
    """Have two nodes publish under every chance, and return what the third received, and when in ms."""
    hub = MemoryHub(seed, Chances(delay_s=1, drop=0.1, duplicate=0.1))
    one, two, three = await nodes(hub)
    heard: list[tuple[int, bytes]] = []
    loop = asyncio.get_running_loop()
    await three.subscribe("t", lambda payload: heard.append((round(loop.time() * 1000), payload)))
    for number in range(50):
        one.publish("t", b"1 %d" % number)
        two.publish("t", b"2 %d" % number)
        await asyncio.sleep(0.01)
    await asyncio.sleep(5)
    return heard


@pytest.mark.parametrize("seed", range(20))
def test_one_nodes_messages_keep_their_order_and_a_seed_its_run(seed: int) -> None:
    heard = run_seeded(seed, flood(seed))
    for node in b"1", b"2":
        numbers = [int(payload.split()[1]) for _, payload in heard if payload.startswith(node)]
        assert numbers == sorted(numbers)
        assert 30 < len(set(numbers)) < 50
        assert len(set(numbers)) < len(numbers)
    assert [payload for _, payload in heard] != sorted(
        (payload for _, payload in heard), key=lambda payload: int(payload.split()[1])
    )
    assert run_seeded(seed, flood(seed)) == heard


def test_a_cut_is_one_way_and_a_partition_is_both() -> None:
    async def main() -> None:
        hub = MemoryHub()
        one, two, three = links = await nodes(hub)
        heard: list[list[bytes]] = [[], [], []]
        for link, each in zip(links, heard, strict=True):
            await link.subscribe("t", each.append)
            await link.serve(echo)
        hub.cut(one.boot, two.boot)
        one.publish("t", b"1")
        two.publish("t", b"2")
        with pytest.raises(NoReply):
            await one.request(two.boot, b"", 1)
        # The other way the question arrives, and its answer does not.
        with pytest.raises(NoReply):
            await two.request(one.boot, b"", 1)
        assert [sorted(each) for each in heard] == [[b"1", b"2"], [b"2"], [b"1", b"2"]]
        hub.heal()
        assert await one.request(two.boot, b"x", 1) == b"x"
        for each in heard:
            each.clear()
        with hub.partition(three.boot):
            for link, payload in zip(links, (b"1", b"2", b"3"), strict=True):
                link.publish("t", payload)
            await asyncio.sleep(1)
        assert [sorted(each) for each in heard] == [[b"1", b"2"], [b"1", b"2"], [b"3"]]
        one.publish("t", b"healed")
        await asyncio.sleep(1)
        assert all(each[-1] == b"healed" for each in heard)
        assert all(link.state == "connected" for link in links)

    run_virtual(main())


def test_a_paused_node_neither_says_nor_hears_and_does_both_afterwards() -> None:
    async def main() -> None:
        one, two, _ = await nodes(MemoryHub())
        heard: tuple[list[bytes], list[bytes]] = [], []
        for link, each in zip((one, two), heard, strict=True):
            await link.subscribe("t", each.append)
            await link.serve(echo)
        with two.paused():
            one.publish("t", b"1")
            two.publish("t", b"2")
            with pytest.raises(NoReply):
                await one.request(two.boot, b"", 10)
            assert heard == ([b"1"], [])
            assert two.pending_bytes == 1
            with pytest.raises(BackplaneFull):
                while True:
                    two.publish("elsewhere", b"x" * (PENDING_BYTES // 3))
        await asyncio.sleep(1)
        assert heard == ([b"1", b"2"], [b"1", b"2"])
        assert two.pending_bytes == 0

    run_virtual(main())


def test_a_broker_that_goes_is_told_to_everybody_and_what_was_on_its_way_is_lost() -> None:
    async def main() -> None:
        hub = MemoryHub(chances=Chances(delay_s=1))
        links = await nodes(hub)
        one, two, three = links
        told = [Told(link) for link in links]
        heard: list[bytes] = []
        await two.subscribe("t", heard.append)
        await two.serve(echo)
        one.publish("t", b"lost")
        waiting = asyncio.ensure_future(one.request(two.boot, b"", 3600))
        await asyncio.sleep(0)
        hub.stop()
        with pytest.raises(NoReply, match="lost"):
            await waiting
        with pytest.raises(BackplaneAway):
            one.publish("t", b"refused")
        with pytest.raises(BackplaneAway):
            await MemoryBackplane(hub, "d" * 16).connect()
        hub.start()
        await asyncio.sleep(5)
        assert heard == []
        assert [each.states for each in told] == [["away", "connected"]] * 3
        assert [each.missed for each in told] == [[None]] * 3
        one.publish("t", b"heard")
        await asyncio.sleep(1)
        assert heard == [b"heard"]
        two.cut_off()
        with pytest.raises(NobodyThere):
            await one.request(two.boot, b"", 3600)
        hub.stop()
        hub.start()
        assert [link.state for link in links] == ["connected", "away", "connected"]
        two.come_back()
        assert await three.request(two.boot, b"x", 3600) == b"x"
        two.slow("t")
        assert told[1].missed == [None, None, "t"]
        with pytest.raises(ValueError, match="there already"):
            await MemoryBackplane(hub, one.boot).connect()

    run_virtual(main())


def test_nobody_stays_deaf_whatever_is_drawn() -> None:
    async def main(seed: int) -> None:
        draw = random.Random(seed)
        hub = MemoryHub(seed, Chances(delay_s=0.5, drop=0.2))
        links = await nodes(hub)
        heard: list[list[bytes]] = [[], [], []]
        for link, each in zip(links, heard, strict=True):
            await link.subscribe("t", each.append)
        for _ in range(10):
            await draw.choice([_broker_away, _cut, _cut_off, _pause])(hub, draw.choice(links), draw)
        hub.chances = Chances()
        for link in links:
            link.publish("t", b"end of " + link.boot.encode())
        await asyncio.sleep(2)
        for each in heard:
            assert {b"end of " + boot.encode() for boot in BOOTS} <= set(each)

    for seed in range(50):
        run_seeded(seed, main(seed))


async def _broker_away(hub: MemoryHub, _link: MemoryBackplane, draw: random.Random) -> None:
    hub.stop()
    await asyncio.sleep(draw.random())
    hub.start()


async def _cut(hub: MemoryHub, link: MemoryBackplane, draw: random.Random) -> None:
    hub.cut(link.boot, draw.choice(BOOTS))
    await asyncio.sleep(draw.random())
    hub.heal()


async def _cut_off(_hub: MemoryHub, link: MemoryBackplane, draw: random.Random) -> None:
    link.cut_off()
    await asyncio.sleep(draw.random())
    link.come_back()


async def _pause(_hub: MemoryHub, link: MemoryBackplane, draw: random.Random) -> None:
    with link.paused():
        link.publish("t", b"held")
        await asyncio.sleep(draw.random())
