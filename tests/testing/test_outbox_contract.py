"""`check_room_log` of a log with an outbox: each way to break that is found and named."""

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.outbox import Claimed, Notification, NotificationState, Outcome
from chatx.adapters.room_log import Append, Record
from chatx.testing import check_room_log
from tests.virtual import virtual


class NoRows(MemoryLog):
    def _keep(self, record: Record) -> None:
        pass


class ARowForEveryEntry(MemoryLog):
    async def append(self, appends: Sequence[Append], /) -> Any:
        for each in appends:
            for record in each.records:
                self._keep(record)
        return await super().append(appends)


class NoUsersIsNobody(MemoryLog):
    def _keep(self, record: Record) -> None:
        if record.notify is not None and record.notify.users is None:
            record = replace(record, notify=replace(record.notify, users=()))
        super()._keep(record)


class LosesTheEntry(MemoryLog):
    async def claim_notifications(self, *args: Any) -> list[Claimed]:
        return [replace(each, entry=None) for each in await super().claim_notifications(*args)]


class ClaimsForNobody(MemoryLog):
    async def claim_notifications(self, claimer: str, limit: int, now_ms: int, until_ms: int, /) -> list[Claimed]:
        before = dict(self._rows)
        found = await super().claim_notifications(claimer, limit, now_ms, until_ms)
        for each in found[:1] if len(found) > 1 else []:
            self._rows[each.notification.id] = before[each.notification.id]
        return found


class LeasesForEver(MemoryLog):
    async def claim_notifications(self, claimer: str, limit: int, now_ms: int, until_ms: int, /) -> list[Claimed]:
        held = {each for each, row in self._rows.items() if row.state == "claimed" and row.due_at <= now_ms}
        hidden = {each: self._rows.pop(each) for each in held}
        found = await super().claim_notifications(claimer, limit, now_ms, until_ms)
        self._rows.update(hidden)
        return found


class AnybodySettles(MemoryLog):
    async def settle_notifications(self, claimer: str, outcomes: Sequence[Outcome], /) -> None:
        for each in outcomes:
            await super().settle_notifications(self._claimers.get(each.id, claimer), [each])


class KeepsWhatIsDone(MemoryLog):
    async def settle_notifications(self, claimer: str, outcomes: Sequence[Outcome], /) -> None:
        await super().settle_notifications(claimer, [each for each in outcomes if each.state != "done"])


class ForgetsUsers(MemoryLog):
    async def settle_notifications(self, claimer: str, outcomes: Sequence[Outcome], /) -> None:
        await super().settle_notifications(claimer, [replace(each, users=()) for each in outcomes])


class LetsGoOfALongerLease(MemoryLog):
    async def settle_notifications(self, claimer: str, outcomes: Sequence[Outcome], /) -> None:
        some = [replace(each, state="waiting") if each.state == "claimed" else each for each in outcomes]
        await super().settle_notifications(claimer, some)


class ClaimsTheDead(MemoryLog):
    async def settle_notifications(self, claimer: str, outcomes: Sequence[Outcome], /) -> None:
        some = [replace(each, state="waiting") if each.state == "dead" else each for each in outcomes]
        await super().settle_notifications(claimer, some)


class NewestFirst(MemoryLog):
    async def claim_notifications(self, *args: Any) -> list[Claimed]:
        return (await super().claim_notifications(*args))[::-1]


class ClaimsMore(MemoryLog):
    async def claim_notifications(self, claimer: str, limit: int, now_ms: int, until_ms: int, /) -> list[Claimed]:
        return await super().claim_notifications(claimer, limit + 1, now_ms, until_ms)


class ClaimsWhatIsNotDue(MemoryLog):
    async def claim_notifications(self, claimer: str, limit: int, now_ms: int, until_ms: int, /) -> list[Claimed]:
        return await super().claim_notifications(claimer, limit, now_ms + 1, until_ms)


class WaitsForAClockThatWasSetBack(MemoryLog):
    async def claim_notifications(self, claimer: str, limit: int, now_ms: int, until_ms: int, /) -> list[Claimed]:
        hidden = {each: row for each, row in self._rows.items() if row.due_at > now_ms}
        for each in hidden:
            del self._rows[each]
        found = await super().claim_notifications(claimer, limit, now_ms, until_ms)
        self._rows.update(hidden)
        return found


class ListsEverything(MemoryLog):
    async def list_notifications(
        self, state: NotificationState | None, after: str | None, limit: int, /
    ) -> list[Notification]:
        return await super().list_notifications(None, after, limit)


class ListsFromTheBeginning(MemoryLog):
    async def list_notifications(
        self, state: NotificationState | None, after: str | None, limit: int, /
    ) -> list[Notification]:
        return await super().list_notifications(state, None, limit)


class RetriesWithItsAttempts(MemoryLog):
    async def retry_notifications(self, ids: Sequence[str], /) -> int:
        before = dict(self._rows)
        count = await super().retry_notifications(ids)
        for each in ids:
            if each in before:
                self._rows[each] = replace(self._rows[each], attempts=before[each].attempts)
        return count


class CountsWhatIsNotThere(MemoryLog):
    async def drop_notifications(self, ids: Sequence[str], /) -> int:
        await super().drop_notifications(ids)
        return len(ids)


class CountsTheDeadWithTheLiving(MemoryLog):
    async def count_notifications(self) -> tuple[int, int]:
        return sum(await super().count_notifications()), 0


BROKEN: list[tuple[type[MemoryLog], str]] = [
    (NoRows, "list_notifications answered"),
    (ARowForEveryEntry, "list_notifications answered"),
    (NoUsersIsNobody, "list_notifications answered"),
    (LosesTheEntry, "brought the entries"),
    (ClaimsForNobody, "six claimers at once|brought .* of the room's rows"),
    (LeasesForEver, "when the leases are over"),
    (AnybodySettles, "of one whose lease is over"),
    (KeepsWhatIsDone, "list_notifications answered"),
    (ForgetsUsers, "list_notifications answered"),
    (LetsGoOfALongerLease, "list_notifications answered"),
    (ClaimsTheDead, "list_notifications answered"),
    (NewestFirst, "they must be those that were appended|those first that have been due longest"),
    (ClaimsMore, "rows at most"),
    (ClaimsWhatIsNotDue, "claim_notifications"),
    (WaitsForAClockThatWasSetBack, "due soon, or not for a long time"),
    (ListsEverything, "list_notifications of those that are claimed"),
    (ListsFromTheBeginning, "list_notifications behind"),
    (RetriesWithItsAttempts, "it must have 0 attempts"),
    (CountsTheDeadWithTheLiving, r"counted \(3, 0\) more than before; it must be \(2, 1\)"),
    (CountsWhatIsNotThere, "drop_notifications answered"),
]


@pytest.mark.parametrize("log,what", BROKEN, ids=[each.__name__ for each, _ in BROKEN])
@virtual
async def test_each_way_to_break_an_outbox_is_found_and_named(log: type[MemoryLog], what: str) -> None:
    with pytest.raises(AssertionError, match=what) as failure:
        await check_room_log(log)
    assert str(failure.value).startswith(f"The log adapter {log.__qualname__} breaks its contract: ")


@virtual
async def test_a_log_needs_no_outbox() -> None:
    names = ("claim", "settle", "list", "retry", "drop", "count")
    without = {f"{each}_notifications": property() for each in names}  # reading one raises AttributeError
    await check_room_log(type("NoOutbox", (MemoryLog,), without))


@virtual
async def test_half_an_outbox_is_none() -> None:
    half = type("Half", (MemoryLog,), {"settle_notifications": None})
    with pytest.raises(AssertionError, match=r"a Chat refuses it: .* has no method settle_notifications\(\)"):
        await check_room_log(half)
