"""One room of another node, as it is here: given what its owner has placed, and brought up to date where some is lost.

| state | what is told | becomes |
|---|---|---|
| opening | waits, in order | current, when the owner has answered and the room has begun here |
| current | is applied, if it follows what was told last | behind, where something is missing or the owner says so |
| behind | waits, in order | current, when the owner has answered with what was missed |
| ended | is nothing to it | – |

Rules:
1. What cannot be applied without a hole is not applied: the room is closed here and may be opened anew, so that whoever
   reads it comes back from the place that they have.
2. This node's own memberships are what this node says. What the owner tells of them is passed over.
3. At most `WAITING` words wait, in `WAITING_BYTES`; what comes beyond that is dropped, and the replica attaches anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from chatx.cluster.entries import Placed
from chatx.cluster.fields import Place
from chatx.cluster.memberships import MEMBERSHIPS_AT_ONCE, Membership
from chatx.cluster.rpc import Attach, Attached, Done, Members, Presence, Present, Refused, Told
from chatx.core.message import Position, PresenceMeta
from chatx.errors import ChatError, RoomUnavailable
from chatx.runtime.nodes.fitting import MEMBERSHIP_BYTES, size_of_all
from chatx.runtime.nodes.owned import in_order
from chatx.runtime.nodes.peers import Peers, Unreachable
from chatx.runtime.process import RoomProcess

logger: logging.Logger = logging.getLogger("chatx")

WAITING = 1024
"""Words that wait for the owner's answer, at most."""

WAITING_BYTES = 1_048_576
"""Bytes that these have together, at most but for a single one."""

DEAF = 2
"""How often an owner says that words were missed, without one coming between, before the room is subscribed to anew."""

AGAIN_S = (0.05, 1.0)
"""Seconds after which an owner that cannot be asked is asked again: at first, and at most."""


class _Hole(Exception):
    """An entry does not follow the head."""


class OwnerRefuses(Unreachable):
    """The owner of a room refuses to have it followed now.

    Attributes:
        retry_after: In seconds, or None.
    """

    def __init__(self, answer: Refused) -> None:
        super().__init__(f"it refuses: {answer.reason}", surely=True)
        self.retry_after: float | None = answer.retry_after


class Replica:
    """One room of another node.

    Args:
        room_id: The room.
        peers: The other nodes.
        most: Entries that are kept here.
        closes: Called with the room where it cannot go on here.

    Attributes:
        owner: The boot id of the owner.
        process: The room here, once it has begun.
        number: Of what was told and applied last.
    """

    def __init__(self, room_id: str, peers: Peers, most: int, closes: Callable[[RoomProcess], object]) -> None:
        self.room_id: str = room_id
        self.owner: str = peers.owner(room_id)
        self.process: RoomProcess | None = None
        self.number: int = 0
        self._peers = peers
        self._most = most
        self._closes = closes
        self._first: tuple[Attached, list[Membership]] | None = None
        self._waiting: deque[tuple[Told, int]] = deque()  # with their bytes
        self._waiting_bytes = 0
        self._dropped = False
        self._joins: dict[str, Membership] = {}  # by ref; not told to the owner yet
        self._leaves: dict[str, Membership] = {}
        self._task: asyncio.Task[None] | None = None  # that attaches anew, or tells of memberships
        self._behind = False
        self._again = False  # fell behind while it was attaching, so that the answer may be older than that
        # Who waits to be told that all is here which the owner had when they came: by the answer that is under way, or,
        # where they came behind the question, by the one after it.
        self._waits_now: list[asyncio.Event] = []
        self._waits_next: list[asyncio.Event] = []
        self._missed = 0  # how often the owner said so, without a word from it between
        self._listens_anew = False
        self._ended = False
        self._stop_listening: Callable[[], object] | None = None

    @property
    def current(self) -> bool:
        """Whether it has everything, as far as it knows."""
        return self.process is not None and not self._behind

    async def open(self) -> Position:
        """Attach for the first time, and return the place at which the room begins here.

        Raises:
            Unreachable: The owner cannot be reached, or refuses.
        """
        if self.owner == self._peers.boot:
            # It would wait for itself: the room is not open here, and is opened as what another node has.
            raise Unreachable("this node has given the room up a moment ago", surely=True)
        # From before the owner is asked: what it tells meanwhile waits.
        stop = await self._peers.listen(self.room_id, self._heard)
        if self._ended:
            stop()
        self._stop_listening = stop
        self._first = attached, _ = await self._attach(None)
        return Position(attached.head.epoch, attached.head.offset - len(attached.entries))

    def begin(self, process: RoomProcess) -> None:
        """Fill the room, which has begun here at the place that `open` returned."""
        first, self._first = self._first, None
        self.process = process
        if first is not None:
            self._bring_up(process, *first)

    def joined(self, user_id: str, meta: PresenceMeta) -> None:
        """Tell the owner of a membership that has begun here."""
        self._joins[meta.ref] = Membership(user_id, meta.ref, meta.online_at)
        self._go_on()

    def left(self, user_id: str, ref: str) -> None:
        """Tell the owner of a membership that has ended here."""
        if self._joins.pop(ref, None) is None:
            self._leaves[ref] = Membership(user_id, ref, 0)
            self._go_on()

    def fall_behind(self) -> None:
        """Attach anew: something was missed, or may have been."""
        self._behind = self._again = True
        self._go_on()

    def missed(self) -> None:
        """Attach anew, since the owner says that words were missed; and subscribe anew where none come at all."""
        self._missed += 1
        if self._missed >= DEAF and not self._listens_anew:
            self._listens_anew = True
            text = "Nothing comes of what is told of room %r, which is subscribed to anew."
            logger.warning(text, self.room_id, extra=self._logged | {"code": "deaf"})
        self.fall_behind()

    async def catch_up(self) -> None:
        """Ask the owner for what it has placed by now, and wait until that is here, or the replica has ended."""
        if self._ended:
            return
        self.fall_behind()
        caught_up = asyncio.Event()
        self._waits_next.append(caught_up)
        await caught_up.wait()

    def end(self) -> None:
        """Follow the room no longer."""
        self._ended = True
        self._waits_now += self._waits_next
        self._tell_caught_up()
        stop, self._stop_listening = self._stop_listening, None
        if stop is not None:
            stop()
        if self._task is not None:
            self._task.cancel()
        self._waiting.clear()
        self._waiting_bytes = 0

    # What is told

    def _heard(self, told: Told | None) -> None:
        if self._ended:
            return
        if told is None:
            self._missed = 0
            self.fall_behind()
            return
        if told.room_id != self.room_id or told.boot != self.owner:
            return  # by a node that does not know yet, or knows already, that the room has moved
        self._missed = 0
        if self.current:
            self._take(told)
        else:
            self._let_wait(told)

    def _let_wait(self, told: Told) -> None:
        size = size_of_all(told.entries) + MEMBERSHIP_BYTES * (len(told.joins) + len(told.leaves))
        if self._waiting and (len(self._waiting) >= WAITING or self._waiting_bytes + size > WAITING_BYTES):
            self._dropped = True
            return
        self._waiting.append((told, size))
        self._waiting_bytes += size

    def _take(self, told: Told) -> None:
        process = self.process
        if process is None or told.number <= self.number:
            return
        if told.number != self.number + 1:
            self._let_wait(told)
            self.fall_behind()
            return
        try:
            self._apply(process, told.entries)
            for each in self._others(told.joins):
                process.joined_elsewhere(each.user_id, each.meta)
            for each in self._others(told.leaves):
                process.left_elsewhere(each.user_id, each.ref)
        except (_Hole, RoomUnavailable) as error:
            logger.warning("The replica of room %r attaches anew: %s", self.room_id, error, extra=self._logged)
            self.fall_behind()
            return
        self.number = told.number

    def _apply(self, process: RoomProcess, entries: Iterable[Placed]) -> None:
        for each in entries:
            head = process.head
            if each.place.epoch != head.epoch or each.place.offset > head.offset + 1:
                raise _Hole(f"{each.place.epoch}:{each.place.offset} does not follow {head.epoch}:{head.offset}")
            if each.place.offset == head.offset + 1:
                process.commit(each.entry(self.room_id))

    # What is done in the background, one thing at a time

    def _go_on(self) -> None:
        if self._task is None and not self._ended:
            self._task = asyncio.get_running_loop().create_task(self._work(), name=f"chatx replica {self.room_id}")
            self._task.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            text = "The replica of room %r failed and is closed."
            logger.error(text, self.room_id, exc_info=task.exception(), extra=self._logged)
            self._close()
        elif self.process is not None and (self._behind or self._joins or self._leaves):
            self._go_on()  # it came when the task had ended, and nobody knew yet

    async def _work(self) -> None:
        again_s = AGAIN_S[0]
        while not self._ended and (self._behind or self._joins or self._leaves):
            process = self.process
            if process is None:
                return
            try:
                if self._listens_anew:
                    await self._listen_anew()
                if self._behind:
                    self._again = False
                    self._waits_now += self._waits_next
                    self._waits_next = []
                    attached, present = await self._attach(process)
                    if attached.head.epoch != process.head.epoch or not attached.whole:
                        self._close()
                        return
                    self._bring_up(process, attached, present)
                else:
                    await self._tell_members()
                again_s = AGAIN_S[0]
            except Unreachable:
                # Where the node is gone, the nodes' view changes soon, and the room is closed here.
                await asyncio.sleep(again_s)
                again_s = min(2 * again_s, AGAIN_S[1])

    async def _listen_anew(self) -> None:
        self._listens_anew, self._missed = False, 0
        before, self._stop_listening = self._stop_listening, None
        if before is not None:
            before()
        stop = await self._peers.listen(self.room_id, self._heard)
        if self._ended:
            stop()
        else:
            self._stop_listening = stop

    async def _attach(self, process: RoomProcess | None) -> tuple[Attached, list[Membership]]:
        """Return what the owner answers, and everybody who is in the room on other nodes."""
        own: list[Membership] = []
        if process is not None:
            own = [each for each in in_order(process.presences()) if self._is_own(each.ref)]
        first, rest = own[:MEMBERSHIPS_AT_ONCE], own[MEMBERSHIPS_AT_ONCE:]
        self._joins = {each.ref: each for each in rest}
        self._leaves.clear()
        place = None if process is None else Place(*process.head)
        answer = await self._peers.ask(
            self.owner, Attach(self.room_id, self._peers.boot, place, self._most, tuple(first), bool(rest))
        )
        if isinstance(answer, Refused):
            raise OwnerRefuses(answer)
        if not isinstance(answer, Attached):
            raise Unreachable(f"it answered {type(answer).__name__}", surely=True)
        present, more = list(answer.present), answer.more
        while more and present:
            page = await self._peers.ask(self.owner, Present(self.room_id, present[-1].ref))
            if not isinstance(page, Presence):
                raise Unreachable(f"it answered {type(page).__name__}", surely=True)
            present += page.present
            more = page.more and bool(page.present)
        return answer, present

    def _bring_up(self, process: RoomProcess, attached: Attached, present: list[Membership]) -> None:
        try:
            self._apply(process, attached.entries)
            there = {each.ref for each in present}
            for each in self._others(in_order(process.presences())):
                if each.ref not in there:
                    process.left_elsewhere(each.user_id, each.ref)
            for each in self._others(present):
                process.joined_elsewhere(each.user_id, each.meta)
        except (_Hole, ChatError) as error:
            logger.warning("The replica of room %r is closed: %s", self.room_id, error, extra=self._logged)
            self._close()
            return
        if process.head.offset < attached.head.offset:
            if not attached.entries:
                logger.warning(
                    "The replica of room %r is closed: its owner has not what leads to its head.",
                    self.room_id,
                    extra=self._logged,
                )
                self._close()
                return
            self._behind = True  # more than goes at once
            self._go_on()
            return
        self.number = attached.number
        self._tell_caught_up()
        self._behind, self._dropped = self._dropped or self._again, False
        while self._waiting and not self._behind:
            told, size = self._waiting.popleft()
            self._waiting_bytes -= size
            self._take(told)
        if self._behind:
            self._go_on()

    def _tell_caught_up(self) -> None:
        for each in self._waits_now:
            each.set()
        self._waits_now = []

    async def _tell_members(self) -> None:
        joins = tuple(islice(self._joins.values(), MEMBERSHIPS_AT_ONCE))
        leaves = tuple(islice(self._leaves.values(), MEMBERSHIPS_AT_ONCE))
        for each in joins:
            del self._joins[each.ref]
        for each in leaves:
            del self._leaves[each.ref]
        ask = Members(self.room_id, self._peers.boot, joins, leaves, bool(self._joins))
        try:
            answer = await self._peers.ask(self.owner, ask)
        except Unreachable:
            self._behind = True  # whether it was heard is not known: attaching tells all of them
            raise
        if not isinstance(answer, Done):
            self._behind = True

    def _others(self, members: Iterable[Membership]) -> list[Membership]:
        return [each for each in members if not self._is_own(each.ref)]

    def _is_own(self, ref: str) -> bool:
        return ref.startswith(f"{self._peers.boot}.")

    @property
    def _logged(self) -> dict[str, str]:
        return {"room": self.room_id, "node": self.owner}

    def _close(self) -> None:
        process = self.process
        self.end()
        if process is not None:
            self._closes(process)
