"""The demo on three nodes: what its page shows of them, that a chat goes on when one is killed, and how it counts."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.demo.browsing import COMES_BACK_MS, PHONE, Channel, Visitors
from tests.demo.test_for_everybody import axe, findings, width_and_height
from tests.process import Served, free_port

__all__ = ["axe"]

pytestmark = [pytest.mark.browser, pytest.mark.process, pytest.mark.timeout(180)]

OWNER = ".node:has-text('owns the room')"


def started(count: int) -> Served:
    """Start the demo on so many nodes, and wait until all of them serve."""
    running = Served("demo", free_port(), "--nodes", str(count))
    assert running.process.stdout is not None
    # Its sockets are there before its nodes, and what comes meanwhile waits.
    said = running.process.stdout.readline()
    assert said.startswith("chatx demo: open http://localhost"), said
    return running


@pytest.fixture(scope="module")
def nodes() -> Iterator[Served]:
    running = started(3)
    yield running
    assert running.stop(signal.SIGTERM)[0] == 0


@pytest.fixture
def visitors(browser: Browser, nodes: Served) -> Iterator[Visitors]:
    visitors = Visitors(browser, nodes)
    yield visitors
    visitors.close()
    assert visitors.errors == []


def figures(screen: Channel) -> dict[str, int]:
    """Return what the page has counted, at a moment at which no number that it sent is still to be answered."""
    screen.page.wait_for_function(
        """() => {
            const value = (name) => Number(document.querySelector(`[data-figure=${name}]`).dataset.value);
            return value("sent") > 5 && value("acknowledged") === value("sent");
        }""",
        timeout=COMES_BACK_MS,
    )
    found: dict[str, str] = screen.locate("[data-figure]").evaluate_all(
        "all => Object.fromEntries(all.map(each => [each.dataset.figure, each.dataset.value]))"
    )
    return {name: int(value) for name, value in found.items()}


def test_a_chat_goes_on_when_the_owner_of_its_room_is_killed(visitors: Visitors, axe: str) -> None:
    ada, bob = visitors.join(Channel, "Ada"), visitors.join(Channel, "Bob", **PHONE)
    ada.say("before")
    for screen in (ada, bob):
        screen.shows("before")
        screen.locate(OWNER).wait_for()
        expect(screen.locate(".node[data-state=up]")).to_have_count(3)
        expect(screen.locate(".node:has-text('serves this page')")).to_have_count(1)
        assert width_and_height(screen) == (True, True)
        assert findings(screen, axe) == []

    ada.locate("#kill").click()
    # Whoever owns the room when its node is killed: a slow machine may have moved it meanwhile.
    killed = ada.locate(".node:has-text('killed')").get_attribute("data-node", timeout=COMES_BACK_MS)
    ada.locate(f".node[data-node={killed}]:not([data-state=up])").wait_for(timeout=COMES_BACK_MS)
    # Axe looks at what is there while a node is not.
    assert findings(ada, axe) == []
    bob.say("while it is away")
    ada.locate("#node-news").filter(has_text=f"{killed} is back.").wait_for(timeout=COMES_BACK_MS)
    ada.locate("#kill:enabled").wait_for()
    bob.say("after")
    for screen in (ada, bob):
        screen.messages.filter(has_text="after").wait_for(timeout=COMES_BACK_MS)
        expect(screen.messages.locator(".message-text")).to_have_text(["before", "while it is away", "after"])
        screen.locate(".divider-note").filter(has_text="numbered message").first.wait_for()
    counted = figures(ada)
    assert (counted["lost"], counted["doubled"]) == (0, 0)
    expect(ada.locate(".divider-hole")).to_have_count(0)


def test_only_the_page_itself_kills(visitors: Visitors) -> None:
    page = visitors.join(Channel, "Ada").page
    url = f"{visitors.server.url}/nodes"
    assert page.request.post(f"{url}/kill?room=general").status == 403
    assert page.request.get(f"{url}?room={'x' * 129}").status == 400


def test_the_count_knows_what_is_lost_doubled_and_late(visitors: Visitors) -> None:
    counted = visitors.open(Channel).page.evaluate(
        """async () => {
            const { Tally } = await import("/static/tally.js");
            const at = (offset, epoch = "e") => ({ id: `${epoch}${offset}`, epoch, offset });
            const anew = { epoch: "f", offset: 0, recovered: false };
            const play = (steps) => {
                const tally = new Tally();
                tally.joined({ epoch: "e", offset: 0 });
                steps(tally);
                return [tally.seen, tally.lost, tally.doubled, tally.epochs];
            };
            return [
                play((t) => { t.answered(at(1), 5); t.received(at(1)); t.received(at(2)); t.answered(at(2), 5); }),
                play((t) => { t.received(at(1)); t.received(at(4)); }),
                play((t) => { t.received(at(1)); t.received(at(4)); t.received(at(3)); }),
                play((t) => { t.received(at(1), 7); t.received(at(1), 7); t.received(at(2), 7); }),
                play((t) => { t.answered(at(1), 5); t.joined(anew); t.received(at(1, "f")); }),
                play((t) => { t.answered(at(1), 5); t.joined({ ...at(1), recovered: true }); t.received(at(1)); }),
                play((t) => { t.received(at(1)); t.joined({ ...at(3), recovered: false }); }),
                play((t) => { t.received(at(2)); t.answered(at(1), 5); }),
                play((t) => { t.received(at(5000)); }),
            ];
        }"""
    )
    assert counted == [
        [2, 0, 0, 0],
        [2, 2, 0, 0],
        [3, 1, 0, 0],
        [2, 0, 2, 0],
        [1, 1, 0, 1],
        [1, 0, 0, 0],
        [1, 2, 0, 0],
        [1, 1, 0, 0],
        [1, 4999, 0, 0],
    ]


def test_the_nodes_end_with_the_one_that_keeps_them() -> None:
    running = started(2)
    nodes, broker = _children(running.process.pid, "demo_node"), _children(running.process.pid, "nats-server")
    assert (len(nodes), len(broker)) == (2, 1)
    running.process.kill()
    running.process.wait()
    assert running.process.stdout is not None
    running.process.stdout.close()
    deadline = time.monotonic() + 60
    while alive := [each for each in (*nodes, *broker) if _alive(each)]:
        assert time.monotonic() < deadline, f"{alive} go on"
        time.sleep(0.05)


def _children(pid: int, program: str) -> list[int]:
    """Return the processes that this one has begun, of those whose command names a program."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may have ended meanwhile
            parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and program.encode() in (each / "cmdline").read_bytes():
                found.append(int(each.name))
    return found


def _alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended does not, also where nobody has waited for it yet."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
