"""Clients that talk while connections are cut and the server dies and comes back; then calm, and what they told.

`SEED=` draws a run's faults again; what they meet depends on the moment.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tests.clients.proof.checking import Acknowledged, Failed, Missed, Said, Witness, faults
from tests.clients.proof.drivers import KINDS, Drivers
from tests.clients.proof.proxy import CuttingProxy, Passage, cutting_proxy
from tests.clients.proof.served import Server, said, server
from tests.seeds import Chance

ROOMS = ("a", "b")
LATE_S = 15.0
HISTORY = 1000
"""When some come who are to tell what was said before them, and how much that may be: as much as the clients load."""

JOINED = "joined "

PATIENCE_S = 120.0
"""A client pauses for 30 s, and takes 20 s to see that nobody is there; on a machine that has other things to do."""


class Play:
    """One run.

    Attributes:
        witnesses: By client and room.
        met: How often each fault was drawn.
    """

    def __init__(self, seed: str, served: Server, proxy: CuttingProxy) -> None:
        self.seed = seed
        self.witnesses: dict[tuple[str, str], Witness] = {}
        self.met: Counter[str] = Counter()
        self.drivers: dict[str, Drivers] = {}
        self.states: dict[tuple[str, str], list[str]] = {}
        self._chances: dict[str, Chance] = {}
        self._server = served
        self._proxy = proxy
        self._more = asyncio.Event()

    def chance(self, name: str) -> Chance:
        """Return the source of chances of one who is named so."""
        return self._chances.setdefault(name, Chance(f"{self.seed} {name}"))

    def report(self, report: dict[str, Any]) -> None:
        """Take down what a client tells."""
        who = report["client"], report["room"]
        witness = self.witnesses[who]
        match report:
            case {"message": message}:
                witness.told.append(said(message))
            case {"gap": gap}:
                witness.told.append(Missed(*(gap[each] for each in ("reason", "epoch", "offset", "missed"))))
            case {"sent": sent}:
                witness.outcomes[sent["content"]].append(Acknowledged(sent["epoch"], sent["offset"], sent["id"]))
            case {"failed": failed}:
                witness.outcomes[failed["content"]].append(Failed(failed["code"], failed["published"]))
            case {"state": state}:
                self.states[who].append(f"{state} {report.get('why') or ''}")
            case _:
                self.states[who].append(f"{report}")
        self._more.set()

    async def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for reports that make a condition true; return whether they came in time."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    assert all(each.runs for each in self.drivers.values()), "the clients' process has ended"
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            return False
        return True

    async def join(self, kind: str, clients: int, spoiled: str | None = None) -> None:
        """Let clients of a kind into the rooms."""
        for number in range(clients):
            # One of them may only poll.
            await self._enter(
                f"{kind}-{spoiled or 'sound'}-{number}", polls=number == 1 and not spoiled, spoiled=spoiled
            )
        assert await self.until(self._all_joined), self.states

    async def _enter(self, name: str, *, history: int = 0, polls: bool = False, spoiled: str | None = None) -> None:
        for room in ROOMS:
            self.witnesses[name, room] = Witness(name, history or None)
            self.states[name, room] = []
        url = f"http://127.0.0.1:{self._proxy.port}/socket"
        await self._do("join", name, url=url, rooms=ROOMS, history=history, polls=polls, spoiled=spoiled)

    async def _do(self, command: str, name: str, **fields: Any) -> None:
        await self.drivers[name.partition("-")[0]].do(command=command, client=name, **fields)

    def _all_joined(self) -> bool:
        return all(each and each[-1] == JOINED for each in self.states.values())

    async def talk(self, seconds: float, *, late: int = 0, cuts_per_s: float = 3.0) -> None:
        """Let everybody send numbered messages for so long, while connections are cut and the server dies.

        Args:
            seconds: How long.
            late: So many of each kind come late, and have to tell the whole history nevertheless.
            cuts_per_s: Faults of connections, on the average.
        """
        until = asyncio.get_running_loop().time() + seconds
        names = {name for name, _ in self.witnesses}
        async with asyncio.TaskGroup() as tasks:
            cutting = tasks.create_task(self._cut(cuts_per_s))
            tasks.create_task(self._disturb(until))
            for name in names:
                tasks.create_task(self._send(name, until))
            await asyncio.sleep(min(seconds / 3, LATE_S))
            for name in (f"{kind}-late-{number}" for kind in self.drivers for number in range(late)):
                await self._enter(name, history=HISTORY)
                tasks.create_task(self._send(name, until))
            await asyncio.sleep(until - asyncio.get_running_loop().time())
            cutting.cancel()

    async def _send(self, name: str, until: float) -> None:
        chance = self.chance(name)
        assert await self.until(lambda: all(self.states[name, room] for room in ROOMS)), self.states
        while asyncio.get_running_loop().time() < until:
            # Now and then several at once, or more than a user may send.
            for _ in range(25 if chance.once_in(50) else chance.upto(4) if chance.once_in(5) else 1):
                room = chance.pick(ROOMS)
                witness = self.witnesses[name, room]
                content = f"{name} {room} {len(witness.sends) + 1}"
                witness.sends.append(content)
                await self._do("send", name, room=room, content=content)
            await asyncio.sleep(chance.random() * 2)

    async def _cut(self, cuts_per_s: float) -> None:
        chance = self.chance("proxy")
        while True:
            await asyncio.sleep(chance.expovariate(cuts_per_s))
            if chance.once_in(20):
                self.met["refuse"] += 1
                self._proxy.refuse()
                await asyncio.sleep(chance.random() * 2)
                await self._proxy.accept()
            passages = [*self._proxy.passages]
            if passages:
                self._draw(chance, chance.pick(passages))

    def _draw(self, chance: Chance, passage: Passage) -> None:
        fault = chance.pick(("reset", "close", "lose answer", "lose answer", "silence", "delay", "tear"))
        self.met[fault] += 1
        match fault:
            case "reset":
                passage.reset()
            case "close":
                passage.close()
            case "lose answer":
                passage.lose_answer(chance.random())
            case "silence":
                up, down = chance.pick(((True, True), (True, False), (False, True)))
                passage.silence(up=up, down=down, reset_after_s=chance.pick((1, 5, 45)) * chance.random())
            case "tear":
                passage.tear(up=chance.once_in(2))
            case "delay":
                passage.delay(chance.random() * 2)

    async def _disturb(self, until: float) -> None:
        chance = self.chance("server")
        while True:
            await asyncio.sleep(4 + chance.random() * 12)
            if asyncio.get_running_loop().time() > until:
                return
            self.met[await self._server.disturb(chance)] += 1

    async def calm(self) -> list[str]:
        """End every fault, wait until everybody has told the last message, and return what is wrong."""
        await self._proxy.accept()
        for passage in [*self._proxy.passages]:
            passage.reset()
        found: list[str] = []
        if not await self.until(lambda: self._all_joined() and all(each.settled for each in self.witnesses.values())):
            found += (
                f"{who} is not there: {states[-5:]}" for who, states in self.states.items() if states[-1] != JOINED
            )
        for room in ROOMS:
            await self._server.say(room, "the last")
            history = await self._server.history(room)
            witnesses = [witness for (_, its), witness in self.witnesses.items() if its == room]
            await self.until(lambda: all(_reached(each, history) for each in witnesses))  # noqa: B023  # awaited here
            found += (f"{room}: {each}" for each in faults(history, witnesses))
        return found

    @property
    def failed(self) -> list[str]:
        """The sends that were given up."""
        return [
            f"{witness.name}: {content!r}: {each}"
            for witness in self.witnesses.values()
            for content, outcomes in witness.outcomes.items()
            for each in outcomes
            if isinstance(each, Failed)
        ]


def _reached(witness: Witness, history: Sequence[Said]) -> bool:
    return not history or any(each.offset >= history[-1].offset for each in reversed(witness.told))


@asynccontextmanager
async def play(shell: str, folder: Path, kinds: Sequence[str]) -> AsyncIterator[Play]:
    """Run a server, a proxy in front of it and drivers for these kinds; what is raised within tells the seed."""
    seed = os.environ.get("SEED") or secrets.token_hex(4)
    try:
        async with AsyncExitStack() as stack:
            served = await stack.enter_async_context(server(shell, folder))
            proxy = await stack.enter_async_context(cutting_proxy(served.port))
            playing = Play(seed, served, proxy)
            for kind in kinds:
                drivers = KINDS[kind](playing.report, f"http://127.0.0.1:{proxy.port}")
                playing.drivers[kind] = await stack.enter_async_context(drivers)
            yield playing
    except BaseException as error:
        error.add_note(f"Draw its faults again: SEED={seed}")
        raise
