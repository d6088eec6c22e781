"""Who is in a room: whatever the interleaving, replayed diffs on a snapshot equal a fresh snapshot."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from chatx.core.message import PresenceMeta, Presences
from chatx.core.presence import Presence


def replayed(state: Presences, joins: Presences, leaves: Presences) -> Presences:
    """Apply a diff as strictly as can be: what begins is new, what ends is there."""
    result = {user_id: list(metas) for user_id, metas in state.items()}
    for user_id, metas in joins.items():
        assert metas
        for meta in metas:
            assert meta not in result.get(user_id, [])
            result.setdefault(user_id, []).append(meta)
    for user_id, metas in leaves.items():
        assert metas
        for meta in metas:
            result[user_id].remove(meta)
        if not result[user_id]:
            del result[user_id]
    return result


def sets(presences: Presences) -> dict[str, set[PresenceMeta]]:
    return {user_id: set(metas) for user_id, metas in presences.items()}


class PresenceMachine(RuleBasedStateMachine):
    memberships = Bundle("memberships")

    def __init__(self) -> None:
        super().__init__()
        self.presence = Presence()
        self.current: dict[str, str] = {}  # ref -> user
        self.refs = 0
        # Each watcher began with a snapshot at some time, and replays every diff since.
        self.watchers: list[Presences] = []

    @rule(target=memberships, user=st.sampled_from(["alice", "bob", "carol"]))
    def join(self, user: str) -> tuple[str, str]:
        self.refs += 1
        ref = str(self.refs)
        self.presence.add(user, PresenceMeta(ref, self.refs))
        self.current[ref] = user
        return user, ref

    @rule(membership=consumes(memberships))
    def leave(self, membership: tuple[str, str]) -> None:
        user, ref = membership
        assert self.presence.remove(user, ref)
        assert not self.presence.remove(user, ref)
        del self.current[ref]

    @rule(user=st.sampled_from(["alice", "nobody"]))
    def leave_what_is_not_there(self, user: str) -> None:
        before = self.presence.snapshot()
        assert not self.presence.remove(user, "no such ref")
        assert self.presence.snapshot() == before

    @rule()
    def tell(self) -> None:
        changed = self.presence.changed
        joins, leaves = self.presence.take_diff()
        assert changed == bool(joins or leaves)
        assert not self.presence.changed
        self.watchers = [replayed(state, joins, leaves) for state in self.watchers]
        for state in self.watchers:
            assert sets(state) == sets(self.presence.snapshot())

    @rule()
    def watch(self) -> None:
        self.tell()
        self.watchers.append(self.presence.snapshot())

    @rule()
    def rebuild(self) -> None:
        self.presence = self.presence.rebuilt()

    @invariant()
    def it_knows_who_is_there(self) -> None:
        users = set(self.current.values())
        assert set(self.presence.users()) == set(self.presence.snapshot()) == users
        assert len(self.presence) == len(users)
        assert all(user in self.presence for user in users)
        assert "nobody" not in self.presence
        refs = {meta.ref: user for user, metas in self.presence.snapshot().items() for meta in metas}
        assert refs == self.current


TestPresenceMachine = PresenceMachine.TestCase
TestPresenceMachine.settings = settings(max_examples=100, stateful_step_count=40)


def test_what_began_and_ended_between_two_diffs_is_in_neither() -> None:
    presence = Presence()
    presence.add("alice", PresenceMeta("1", 0))
    presence.remove("alice", "1")
    assert not presence.changed
    assert presence.take_diff() == ({}, {})


def test_a_user_who_goes_and_comes_back_is_told_as_both() -> None:
    presence = Presence()
    first, second = PresenceMeta("1", 0), PresenceMeta("2", 5)
    presence.add("alice", first)
    presence.take_diff()
    presence.remove("alice", "1")
    presence.add("alice", second)
    assert presence.take_diff() == ({"alice": [second]}, {"alice": [first]})
    assert presence.take_diff() == ({}, {})


def test_a_snapshot_is_a_copy() -> None:
    presence = Presence()
    presence.add("alice", PresenceMeta("1", 0))
    snapshot = presence.snapshot()
    snapshot["alice"].clear()
    del snapshot["alice"]
    assert presence.snapshot() == {"alice": [PresenceMeta("1", 0)]}


def test_a_rebuilt_one_shares_nothing_with_the_old() -> None:
    presence = Presence()
    presence.add("alice", PresenceMeta("1", 0))
    fresh = presence.rebuilt()
    presence.remove("alice", "1")
    assert fresh.snapshot() == {"alice": [PresenceMeta("1", 0)]}
    assert fresh.take_diff() == ({"alice": [PresenceMeta("1", 0)]}, {})


def test_the_list_of_users_is_the_same_tuple_until_it_changes() -> None:
    presence = Presence()
    presence.add("alice", PresenceMeta("1", 0))
    listed = presence.users()
    presence.add("alice", PresenceMeta("2", 0))
    presence.remove("alice", "1")
    assert presence.users() is listed
    presence.add("bob", PresenceMeta("3", 0))
    assert presence.users() == ("alice", "bob")
