"""The checks of a log's outbox: what is to be told is there with its entry, and one at a time tells it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from chatx.adapters.outbox import FARTHEST_MS, Claimed, Notification, NotificationState, Outcome
from chatx.adapters.room_log import Append, Recipients
from chatx.testing.contracts.calls import brief
from chatx.testing.contracts.log_calls import LogCalls, Owner

NOW = 1_700_000_000_000
LEASE = 10_000


class _Outbox:
    """The rows of one room. What a claim brings of others is left as it is then: claimed."""

    def __init__(self, log: LogCalls, owner: Owner) -> None:
        self.log = log
        self.owner = owner

    @classmethod
    async def of_a_new_room(cls, log: LogCalls) -> _Outbox:
        return cls(log, await Owner.of_a_new_room(log))

    def append(self, *notify: Recipients | None) -> Append:
        """Return the append of as many messages."""
        append = self.owner.append(self.owner.draw(len(notify)))
        told = zip(append.records, notify, strict=True)
        return replace(append, records=tuple(replace(each, notify=recipients) for each, recipients in told))

    async def say(self, *notify: Recipients | None) -> list[str]:
        """Append as many messages; return their ids."""
        append = self.append(*notify)
        await self.owner.write(append)
        return [each.entry.id for each in append.records]

    async def claim(self, claimer: str, now: int = NOW, *, limit: int = 100) -> list[Claimed]:
        """Claim what is due, call by call until there is nothing; return what is of this room."""
        mine: list[Claimed] = []
        while found := await self.claim_once(claimer, now, limit):
            mine += [each for each in found if each.notification.room_id == self.owner.room_id]
        return mine

    async def claim_once(self, claimer: str, now: int, limit: int) -> list[Claimed]:
        found = await self.log.calls.call("claim_notifications", claimer, limit, now, now + LEASE)
        well = _is_list_of(found, Claimed) and len(found) <= limit
        self.log.expect(well, f"claim_notifications answered {brief(repr(found))}; it must be {limit} rows at most")
        for row in (each.notification for each in found):
            self.log.expect(
                (row.state, row.due_at) == ("claimed", now + LEASE),
                f"claim_notifications answered a row that is {row.state!r} until {row.due_at}; it must be claimed "
                f"until {now + LEASE}",
            )
        return list(found)

    async def expect_claimed(self, ids: Sequence[str], claimer: str, now: int, when: str) -> list[Claimed]:
        found = await self.claim(claimer, now)
        self.log.expect(
            sorted(each.notification.id for each in found) == sorted(ids),
            f"claim_notifications {when} brought {len(found)} of the room's rows, not exactly the {len(ids)} that are "
            "due",
        )
        return found

    async def settle(self, claimer: str, *outcomes: Outcome) -> None:
        await self.log.calls.call("settle_notifications", claimer, list(outcomes))

    async def listed(self, state: NotificationState | None = None) -> list[Notification]:
        """Return the rows of this room, page by page."""
        found: list[Notification] = []
        after = None
        while page := await self.log.calls.call("list_notifications", state, after, 2):
            self.log.expect(
                _is_list_of(page, Notification) and len(page) <= 2,
                f"list_notifications answered {brief(repr(page))}; it must be 2 rows at most",
            )
            ids = [each.id for each in page]
            behind = after is None or ids[0] > after
            self.log.expect(
                behind and ids == sorted(ids), f"list_notifications behind {after!r} answered the ids {ids}"
            )
            found += [each for each in page if each.room_id == self.owner.room_id]
            after = ids[-1]
        return found

    async def expect_listed(self, *rows: Notification) -> None:
        found = await self.listed()
        self.log.expect(
            found == list(rows),
            f"list_notifications answered {brief(repr(found))} of the room; it must be {brief(repr(list(rows)))}",
        )
        for state in ("waiting", "claimed", "dead"):
            some = await self.listed(state)
            self.log.expect(
                some == [each for each in rows if each.state == state],
                f"list_notifications of those that are {state} answered {brief(repr(some))}",
            )


async def _what_is_to_be_told_is_there_with_its_entry(log: LogCalls) -> None:
    box = await _Outbox.of_a_new_room(log)
    users = ("bob", "ü\U0001f600 \"'\\", "carol")
    wanted = (Recipients(users, NOW), None, Recipients(None, NOW + 1))
    append = box.append(*wanted)
    await box.owner.write(append)
    first, _, last = (each.entry for each in append.records)
    rows = [
        Notification(first.id, first.room_id, users, 0, "waiting", NOW),
        Notification(last.id, last.room_id, None, 0, "waiting", NOW + 1),
    ]
    await box.expect_listed(*rows)
    # What was not appended is not told, and what is appended twice is told once.
    fenced = replace(box.append(Recipients(("bob",), NOW)), term=box.owner.term - 1)
    await log.append(fenced)
    await log.append(append)
    await box.expect_listed(*rows)
    found = await box.expect_claimed([first.id, last.id], "one", NOW + 1, "right after the append")
    log.expect(
        [each.entry for each in found] == [first, last],
        f"claim_notifications brought the entries {brief(repr([each.entry for each in found]))}; they must be those "
        "that were appended",
    )


async def _one_claims_a_row_until_its_lease_is_over(log: LogCalls) -> None:
    box = await _Outbox.of_a_new_room(log)
    ids = await box.say(*[Recipients(("bob",), NOW)] * 12)
    found = await asyncio.gather(*(box.claim(f"claimer {n}", limit=2) for n in range(6)))
    got = [each.notification.id for some in found for each in some]
    log.expect(
        sorted(got) == sorted(ids),
        f"six claimers at once were given {len(got)} rows, of {len(ids)}; each must be given to one",
    )
    await box.expect_claimed([], "late", NOW + LEASE - 1, "while the leases last")
    await box.expect_claimed(ids, "late", NOW + LEASE, "when the leases are over")
    await box.settle("claimer 0", *(Outcome(each, "done") for each in ids))
    log.expect(
        len(await box.listed("claimed")) == len(ids),
        "settle_notifications of one whose lease is over, and whose rows another has claimed, changed them",
    )
    await box.settle("late", *(Outcome(each, "done") for each in ids))
    await box.expect_listed()


async def _what_became_of_a_row_is_kept(log: LogCalls) -> None:
    box = await _Outbox.of_a_new_room(log)
    before = await log.calls.call("count_notifications")
    ids = await box.say(*[Recipients(("bob", "carol"), NOW)] * 4)
    await box.claim("one")
    longer = NOW + 2 * LEASE
    outcomes = (
        Outcome(ids[0], "waiting", ("carol",), 1, NOW + 500),
        Outcome(ids[1], "dead", ("bob",), 6, NOW, "raised"),
        Outcome(ids[2], "claimed", None, 2, longer),
        Outcome(ids[3], "done"),
    )
    await box.settle("one", *outcomes, Outcome("no such row", "done"))
    room_id = box.owner.room_id
    kept = [Notification(each.id, room_id, *_fields(each)) for each in outcomes[:3]]
    await box.expect_listed(*kept)
    counted = await log.calls.call("count_notifications")
    # Others may have rows here too.
    more = tuple(now - then for now, then in zip(counted, before, strict=True))
    log.expect(
        more == (2, 1), f"count_notifications counted {more!r} more than before; it must be (2, 1): alive, and dead"
    )
    # It is nobody's now.
    await box.settle("one", Outcome(ids[0], "done"))
    await box.expect_listed(*kept)
    await box.expect_claimed([], "two", NOW + 499, "before a row is due again")
    await box.expect_claimed([ids[0]], "two", NOW + 500, "when a row is due again")
    await box.expect_claimed([ids[0], ids[2]], "two", longer, "when a lease that was made longer is over")
    retried = await log.calls.call("retry_notifications", [ids[0], ids[1], "no such row"])
    log.expect(retried == 1, f"retry_notifications answered {retried!r} for one dead row of three; it must be 1")
    again = await box.expect_claimed([ids[1]], "three", longer, "after retry_notifications of a dead row")
    log.expect(
        (again[0].notification.attempts, again[0].notification.users) == (0, ("bob",)),
        f"a dead row that is tried again is {again[0].notification!r}; it must have 0 attempts and its users",
    )
    dropped = await log.calls.call("drop_notifications", [*ids, "no such row"])
    log.expect(dropped == 3, f"drop_notifications answered {dropped!r} where 3 rows were; it must be 3")
    await box.expect_listed()


async def _those_first_that_have_been_due_longest(log: LogCalls) -> None:
    box = await _Outbox.of_a_new_room(log)
    late, early, future, far = await box.say(
        Recipients(("bob",), NOW),
        Recipients(("bob",), NOW - 10),
        Recipients(("bob",), NOW + FARTHEST_MS),
        Recipients(("bob",), NOW + FARTHEST_MS + 1),
    )
    # The last was written by a clock that has been set back since: it must not wait for that time.
    when = "of rows that are due, due soon, or not for a long time"
    found = await box.expect_claimed([early, late, far], "one", NOW, when)
    log.expect(
        [each.notification.id for each in found] == [early, late, far],
        f"claim_notifications {when} did not bring those first that have been due longest",
    )
    await box.settle("one", *(Outcome(each, "done") for each in (early, late, far)))
    await box.expect_claimed([future], "one", NOW + FARTHEST_MS, "when the last row is due")


def _fields(outcome: Outcome) -> tuple[Any, ...]:
    return outcome.users, outcome.attempts, outcome.state, outcome.due_at, outcome.reason


def _is_list_of(found: object, kind: type) -> bool:
    return isinstance(found, Sequence) and all(isinstance(each, kind) for each in found)


CHECKS = (
    _what_is_to_be_told_is_there_with_its_entry,
    _one_claims_a_row_until_its_lease_is_over,
    _what_became_of_a_row_is_kept,
    _those_first_that_have_been_due_longest,
)
