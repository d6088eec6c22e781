"""The rooms of this node that others follow: their replicas are told what is placed, and who is in.

Rules:
1. What a room places within a turn is told together, numbered without a hole. A replica that misses one attaches anew,
   and so does one that a `Follow` shows to be behind.
2. A room tells nobody before the first replica attaches, and when the last one is gone.
3. A node's memberships in a room are what that node says; they go with the node, or when it has followed the room no
   more for `FOLLOWED_S`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from chatx.cluster.entries import ENTRIES_AT_ONCE, Placed
from chatx.cluster.fields import Place
from chatx.cluster.memberships import MEMBERSHIPS_AT_ONCE, Membership
from chatx.cluster.rpc import Attach, Attached, Detach, Differ, Done, Follow, Members, Told
from chatx.core.fanout import Subscriber
from chatx.core.message import ENTRIES, Entry, Event, Position, PresenceDiff, Presences
from chatx.errors import ChatError
from chatx.runtime.nodes.fitting import TOLD_BYTES, newest_that_fit, oldest_that_fit
from chatx.runtime.nodes.peers import Peers
from chatx.runtime.process import RoomProcess
from chatx.runtime.turn import Turn

T = TypeVar("T")

FOLLOWED_S = 5.0
"""Seconds after which a node that says nothing of a room follows it no longer."""


class Owned:
    """The rooms of this node that other nodes follow.

    Args:
        peers: The other nodes.
        turn: The turn of the chat's loop.
    """

    def __init__(self, peers: Peers, turn: Turn) -> None:
        self._peers = peers
        self._turn = turn
        self._rooms: dict[str, FollowedRoom] = {}

    def __len__(self) -> int:
        """Return how many rooms are followed."""
        return len(self._rooms)

    def attach(self, process: RoomProcess, ask: Attach, now: float) -> Attached:
        """Let a node follow a room from now on."""
        room = self._rooms.get(process.room_id)
        if room is None or room.process is not process:
            room = self._rooms[process.room_id] = FollowedRoom(process, self._peers, self._turn, self._ended)
        return room.attach(ask, now)

    def members(self, ask: Members) -> Done | Differ:
        """Take what a node says of its memberships in a room that it follows."""
        room = self._rooms.get(ask.room_id)
        if room is None or not room.change(ask):
            return Differ((ask.room_id,))
        return Done()

    def follow(self, ask: Follow, now: float) -> Differ:
        """Take note that a node follows rooms still; answer with those in which it is behind."""
        behind = []
        for room_id, number in ask.rooms.items():
            room = self._rooms.get(room_id)
            if room is None or not room.follows(ask.boot, number, now):
                behind.append(room_id)
        return Differ(tuple(behind))

    def detach(self, ask: Detach) -> Done:
        """Let a node follow a room no longer."""
        room = self._rooms.get(ask.room_id)
        if room is not None:
            room.drop(ask.boot)
        return Done()

    def gone(self, process: RoomProcess) -> None:
        """Take note that a room is here no longer."""
        room = self._rooms.get(process.room_id)
        if room is not None and room.process is process:
            del self._rooms[process.room_id]

    def node_gone(self, boot: str) -> None:
        """Take note that a node is gone: its memberships end."""
        for room in list(self._rooms.values()):
            room.drop(boot)

    def look(self, now: float) -> None:
        """Let go of who has not followed for too long; to be called every second."""
        for room in list(self._rooms.values()):
            room.look(now)

    def _ended(self, room: FollowedRoom) -> None:
        if self._rooms.get(room.process.room_id) is room:
            del self._rooms[room.process.room_id]


class FollowedRoom:
    """One room, and the nodes that follow it."""

    def __init__(self, process: RoomProcess, peers: Peers, turn: Turn, ended: Callable[[FollowedRoom], object]) -> None:
        self.process: RoomProcess = process
        self._peers = peers
        self._turn = turn
        self._on_ended = ended
        self._number = 0
        self._a_while_ago = 0  # the number as it was at the last look
        self._followers: dict[str, float] = {}  # boot id -> when it said so last
        self._members: dict[str, dict[str, str]] = {}  # boot id -> ref -> user id
        self._unsaid: dict[str, dict[str, str]] = {}  # the same, of what an `Attach` has not named yet
        # What this turn has left to be told.
        self._entries: deque[Entry] = deque()
        self._joins: deque[Membership] = deque()
        self._leaves: deque[Membership] = deque()
        self._subscriber = Subscriber(True, callback=self._collect, on_closed=self._closed)
        process.attach(self._subscriber)

    def attach(self, ask: Attach, now: float) -> Attached:
        """Let a node follow from now on, and return what brings its replica up to date."""
        boot = ask.boot
        self._followers[boot] = now
        self._unsaid[boot] = dict(self._members.get(boot, {}))
        self._change(boot, ask.members, (), more=ask.more)
        self.process.settle()
        self.flush()
        head = self.process.head
        found, whole = self._behind(ask.after, min(ask.most, ENTRIES_AT_ONCE))
        own = self._members.get(boot, {})
        others = [each for each in in_order(self.process.presences()) if each.ref not in own]
        return Attached(
            Place(*head),
            self._number,
            tuple(Placed.of(each) for each in found),
            whole,
            tuple(others[:MEMBERSHIPS_AT_ONCE]),
            len(others) > MEMBERSHIPS_AT_ONCE,
        )

    def change(self, ask: Members) -> bool:
        """Take memberships of a node that have begun and ended; return whether the node follows the room."""
        if ask.boot not in self._followers:
            return False
        self._change(ask.boot, ask.joins, ask.leaves, more=ask.more)
        return True

    def follows(self, boot: str, number: int, now: float) -> bool:
        """Take note that a node follows still; return whether it does, and is not behind."""
        if boot not in self._followers:
            return False
        self._followers[boot] = now
        return self._a_while_ago <= number <= self._number

    def drop(self, boot: str) -> None:
        """Let a node follow no longer; its memberships end."""
        if self._followers.pop(boot, None) is None:
            return
        self._unsaid.pop(boot, None)
        for ref, user_id in self._members.pop(boot, {}).items():
            self.process.left_elsewhere(user_id, ref)
        if not self._followers:
            self.process.detach(self._subscriber)
            self._subscriber.on_closed = None
            self._on_ended(self)

    def look(self, now: float) -> None:
        """Let go of who has not followed for `FOLLOWED_S`."""
        self._a_while_ago = self._number
        for boot in [boot for boot, at in self._followers.items() if now - at > FOLLOWED_S]:
            self.drop(boot)

    def flush(self) -> None:
        """Tell the replicas what this turn has left."""
        while self._entries or self._joins or self._leaves:
            entries = self._next_entries()
            joins = _taken(self._joins, MEMBERSHIPS_AT_ONCE)
            # One that began must not end ahead of that.
            leaves = () if self._joins else _taken(self._leaves, MEMBERSHIPS_AT_ONCE)
            self._number += 1
            # One that does not get out is missed, which each replica notices by the number of the next, or by `Follow`.
            self._peers.tell(
                Told(self.process.room_id, self._peers.boot, self._number, entries, joins, leaves),
            )

    def _behind(self, after: Place | None, most: int) -> tuple[Sequence[Entry], bool]:
        """Return what follows a replica's place, as much as goes at once, and whether nothing is missing between.

        Where something is, it is the newest.
        """
        if after is not None and after.epoch == self.process.head.epoch:
            found = self.process.page(Position(after.epoch, after.offset), most)
            if not isinstance(found, str):
                return oldest_that_fit(found), True
        return newest_that_fit(self.process.newest(most)), False

    def _change(self, boot: str, joins: Iterable[Membership], leaves: Iterable[Membership], *, more: bool) -> None:
        members = self._members.setdefault(boot, {})
        unsaid = self._unsaid.get(boot, {})
        own = f"{boot}."
        for each in joins:
            if not each.ref.startswith(own):
                continue  # of another node, which says so itself
            members[each.ref] = each.user_id
            unsaid.pop(each.ref, None)
            self.process.joined_elsewhere(each.user_id, each.meta)
        for each in leaves:
            if members.pop(each.ref, None) is None:
                continue
            unsaid.pop(each.ref, None)
            self.process.left_elsewhere(each.user_id, each.ref)
        if not more:
            for ref, user_id in self._unsaid.pop(boot, {}).items():
                members.pop(ref, None)
                self.process.left_elsewhere(user_id, ref)

    def _next_entries(self) -> tuple[Placed, ...]:
        count = len(oldest_that_fit(self._entries, TOLD_BYTES))
        return tuple(Placed.of(each) for each in _taken(self._entries, count))

    def _collect(self, event: Event) -> None:
        if isinstance(event, ENTRIES):
            self._entries.append(event)
        elif isinstance(event, PresenceDiff):
            self._joins += in_order(event.joins)
            self._leaves += in_order(event.leaves)
        self._turn.touch(self)

    def _closed(self, error: ChatError) -> None:
        self._on_ended(self)


def in_order(presences: Presences) -> list[Membership]:
    """Return memberships as they travel, in the order of their refs."""
    found = [Membership(user_id, meta.ref, meta.online_at) for user_id, metas in presences.items() for meta in metas]
    return sorted(found, key=lambda each: each.ref)


def _taken(queue: deque[T], most: int) -> tuple[T, ...]:
    return tuple(queue.popleft() for _ in range(min(most, len(queue))))
