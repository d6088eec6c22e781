"""What one node makes of the others' heartbeats, of their silence, and of its own."""

import re
from typing import Any

import pytest
from msgspec.structs import replace

from chatx.cluster.membership import DEPARTED, NODES, Membership
from chatx.cluster.peers import Me
from chatx.cluster.records import Heartbeat
from tests.cluster.nodes import Cluster, Process

ME = Me("me", "5" * 16, "pg", "c")
UP = Heartbeat("other", "6" * 16, 1, "up", "pg", 1, "view", "c")


def kinds(changes: list[Any]) -> list[str]:
    return [change.kind for change in changes]


def own(membership: Membership, sent: float, heard: float) -> list[str]:
    """Send a heartbeat, hear it, and return what came of it."""
    return kinds(membership.heard(membership.beat(sent), heard))


def up(now: float = 0.0) -> Membership:
    """A node that is up, alone."""
    membership = Membership(ME, now - 1)
    for sent in (now - 1, now - 0.5, now):
        own(membership, sent, sent)
    membership.tick(now)
    assert membership.serving
    return membership


# Coming


def test_node_joins_for_two_heartbeats() -> None:
    membership = Membership(ME, 0)
    assert own(membership, 0.0, 0.01) == []
    assert own(membership, 0.5, 0.51) == []
    assert membership.beat(0.6).state == "joining"
    assert not membership.serving
    assert not membership.view.seats
    assert own(membership, 1.0, 1.01) == ["joined"]
    assert membership.beat(1.1).state == "up"
    assert membership.serving
    assert [seat.node for seat in membership.view.seats] == ["me"]
    assert membership.beat(1.5).view == membership.view.hash


def test_nodes_that_start_together_have_one_view() -> None:
    cluster = Cluster()
    processes = cluster.started("a", "b", "c")
    assert {process.membership.view.hash for process in processes} == {processes[0].membership.view.hash}
    assert all(process.sees() == ["a", "b", "c"] for process in processes)
    assert all(sorted(process.kinds()) == ["joined"] * 3 for process in processes)


def test_node_that_joins_is_not_in_the_view() -> None:
    membership = up()
    assert membership.heard(replace(UP, state="joining"), 0) == []
    assert kinds(membership.heard(replace(UP, number=2), 0.5)) == ["joined"]
    assert membership.heard(replace(UP, number=3), 1.0) == []


def test_weight_that_changes_is_in_the_view() -> None:
    membership = up()
    membership.heard(UP, 0)
    before = membership.view.hash
    assert membership.heard(replace(UP, number=2, weight=3), 0.5) == []
    assert [seat.weight for seat in membership.view.seats] == [1, 3]
    assert membership.view.hash != before


# Going


def test_silence_makes_suspect_and_then_takes_down() -> None:
    membership = up()
    membership.heard(UP, 0)
    told: list[tuple[float, str]] = []
    for tick in range(1, 40):
        now = tick / 10
        own(membership, now, now)
        told += [(now, change.kind) for change in membership.tick(now)]
        assert membership.suspects(now) == (("other",) if 1.5 <= now < 2.5 else ()), now
    assert told == [(2.5, "left")]


def test_last_word_takes_down_at_once() -> None:
    membership = up()
    membership.heard(UP, 0)
    assert kinds(membership.heard(replace(UP, number=2, state="gone"), 0.1)) == ["left"]
    assert membership.heard(replace(UP, number=3), 0.2) == [], "a last word is the last"
    assert membership.peers() == ()


def test_draining_node_leaves_the_view_and_stays_known() -> None:
    membership = up()
    membership.heard(UP, 0)
    assert kinds(membership.heard(replace(UP, number=2, state="draining"), 0.1)) == ["left"]
    assert [peer.heartbeat.state for peer in membership.peers()] == ["draining"]


def test_own_drain_leaves_the_view_and_serves_on() -> None:
    membership = up()
    assert kinds(membership.drain()) == ["left"]
    assert membership.drain() == []
    assert membership.serving
    assert membership.beat(1).state == "draining"
    assert membership.leave() == []
    assert not membership.serving
    assert membership.beat(2).state == "gone"
    assert membership.tick(100) == []


@pytest.mark.parametrize("apart, down", [(0.0, False), (0.05, False), (0.1, True), (1.0, True)])
def test_two_questions_without_responder_take_down(apart: float, down: bool) -> None:
    membership = up()
    membership.heard(UP, 0)
    assert membership.no_responders(UP.boot, 0.1) == []
    assert kinds(membership.no_responders(UP.boot, 0.1 + apart)) == ["left"] * down


def test_heartbeat_between_two_questions_starts_them_anew() -> None:
    membership = up()
    membership.heard(UP, 0)
    membership.no_responders(UP.boot, 0.1)
    membership.heard(replace(UP, number=2), 0.5)
    assert membership.no_responders(UP.boot, 0.6) == []
    assert membership.no_responders("7" * 16, 0.6) == [], "nobody of that name is known"


def test_node_that_is_back_after_a_silence_joins_again() -> None:
    membership = up()
    membership.heard(UP, 0)
    for now in (0.5, 1.0, 1.5, 2.0, 2.5):
        own(membership, now, now)
        membership.tick(now)
    assert membership.peers() == ()
    assert membership.heard(UP, 2.6) == [], "a late one does not count"
    assert kinds(membership.heard(replace(UP, number=2), 2.7)) == ["joined"]


def test_heartbeats_count_once_and_in_order() -> None:
    membership = up()
    membership.heard(replace(UP, number=5), 0)
    for number in (5, 4, 1):
        assert membership.heard(replace(UP, number=number, state="draining"), 1) == []
    assert [peer.heard_at for peer in membership.peers()] == [0]


# Stalls and isolation


def frozen_for(seconds: float) -> tuple[Cluster, Process, Process]:
    cluster = Cluster()
    one, other = cluster.started("a", "b")
    cluster.freeze(one)
    cluster.run(seconds)
    cluster.freeze(one, False)
    one.changes.clear()
    return cluster, one, other


@pytest.mark.parametrize("seconds", [0.5, 1.2, 2, 3, 30])
def test_node_that_stalled_takes_nobody_down_who_was_there(seconds: float) -> None:
    cluster, one, _ = frozen_for(seconds)
    cluster.run(4)
    assert one.kinds("b") == []
    assert one.sees() == ["a", "b"]
    assert one.membership.serving


@pytest.mark.parametrize("waited", [False, True])
def test_node_that_stalled_judges_when_its_socket_is_drained(waited: bool) -> None:
    membership = up()
    membership.heard(UP, 0)
    for now in (0.5, 1.0, 1.5):
        own(membership, now, now)
        membership.tick(now)
    assert membership.tick(2.6) == [], "a stall of 1.1 s, and silence of 2.6 s"
    assert membership.stalled
    barrier = membership.beat(2.6)
    assert membership.tick(2.7) == []
    if waited:
        membership.heard(replace(UP, number=2), 2.7)
    membership.heard(barrier, 2.7)
    assert not membership.stalled
    assert kinds(membership.tick(2.7)) == ["left"] * (not waited)


def test_own_heartbeat_of_before_the_stall_does_not_end_it() -> None:
    membership = up()
    early = membership.beat(0.1)
    membership.tick(1.2)
    membership.heard(early, 1.2)
    assert membership.stalled
    membership.heard(membership.beat(1.2), 1.2)
    assert not membership.stalled


def test_node_that_does_not_hear_itself_is_isolated_and_takes_nobody_down() -> None:
    cluster = Cluster()
    one, other = cluster.started("a", "b")
    one.changes.clear()
    cluster.cut(one)
    cluster.run(2.2)
    assert one.kinds() == ["isolated"]
    assert not one.membership.serving
    assert other.membership.suspects(cluster.now) == ("a",)
    cluster.run(20)
    assert one.kinds() == ["isolated"]
    assert one.sees() == ["a", "b"]
    assert other.sees() == ["b"]


def test_short_isolation_heals_at_once() -> None:
    cluster = Cluster()
    one, other = cluster.started("a", "b")
    cluster.cut(one)
    cluster.run(1.8)
    cluster.cut(one, False)
    one.changes.clear()
    cluster.run(0.7)
    assert one.kinds() == ["healed"]
    assert one.membership.serving
    assert one.sees() == other.sees() == ["a", "b"]


def test_node_that_was_away_for_so_long_that_it_is_down_joins_anew() -> None:
    cluster = Cluster()
    one, other = cluster.started("a", "b")
    cluster.cut(one)
    cluster.run(10)
    cluster.crash(other)
    third = cluster.start("c")
    cluster.run(3)
    one.changes.clear()
    cluster.cut(one, False)
    cluster.run(0.7)
    assert one.kinds("a") == ["healed", "left"]
    assert not one.membership.serving
    cluster.run(5)
    assert one.sees() == third.sees() == ["a", "c"]


def test_node_that_never_hears_itself_is_isolated_while_it_joins() -> None:
    cluster = Cluster()
    process = cluster.start("a")
    cluster.cut(process)
    cluster.run(3)
    assert process.kinds() == ["isolated"]
    cluster.cut(process, False)
    cluster.run(3)
    assert process.kinds() == ["isolated", "healed", "joined"]


def test_heartbeat_that_was_on_its_way_for_long_does_not_heal() -> None:
    membership = up()
    sent = membership.beat(0.1)
    assert [kinds(membership.tick(now)) for now in (0.5, 1.0, 1.5)] == [[], [], ["isolated"]]
    assert membership.heard(sent, 1.7) == []
    assert membership.isolated


def test_node_whose_heartbeats_were_held_up_for_long_joins_anew() -> None:
    membership = up()
    beats = []
    for tick in range(1, 60):
        if tick % 5 == 0:
            beats.append(membership.beat(tick / 10))
        membership.tick(tick / 10)
    assert membership.isolated
    told = [change for beat in beats[:-1] for change in membership.heard(beat, 5.9)]
    assert kinds(told) == ["healed", "left"]
    assert "after 5.9 s" in told[0].reason
    assert not membership.serving


def test_own_heartbeat_that_was_never_sent_or_comes_twice_proves_nothing() -> None:
    membership = up()
    real = membership.beat(0.5)
    assert membership.heard(replace(real, number=10**9), 0.5) == []
    membership.heard(real, 0.5)
    assert membership.heard(real, 1.9) == []
    assert membership.tick(1.9) == []
    assert kinds(membership.tick(2.0)) == ["isolated"]


def test_silence_of_the_others_begins_anew_when_isolation_heals() -> None:
    membership = up()
    membership.heard(UP, 0)
    for now in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0):
        membership.tick(now)
    assert own(membership, 3.0, 3.0) == ["healed", "left"], "it is down for the others, and joins anew"
    for now in (3.5, 4.0, 4.5, 5.0):
        own(membership, now, now)
        membership.tick(now)
        assert len(membership.peers()) == 1, now
    own(membership, 5.5, 5.5)
    assert kinds(membership.tick(5.5)) == ["left"]


def test_isolation_ends_the_joining_that_was_under_way() -> None:
    membership = Membership(ME, 0)
    own(membership, 0.0, 0.0)
    own(membership, 0.5, 0.5)
    for now in (1.0, 1.5, 2.0):
        membership.tick(now)
    assert own(membership, 2.1, 2.1) == ["healed"]
    assert own(membership, 2.6, 2.6) == []
    assert own(membership, 3.1, 3.1) == ["joined"]


# One name


def test_new_life_takes_the_place_of_the_one_before_when_a_heartbeat_does_not_come() -> None:
    cluster = Cluster()
    one, other = cluster.started("a", "b")
    cluster.crash(one)
    again = cluster.start("a")
    cluster.run(0.9)
    assert other.kinds("a") == ["joined", "left"]
    cluster.run(1.2)
    assert other.kinds("a") == ["joined", "left", "joined"]
    assert other.membership.view == again.membership.view


def test_second_node_of_a_name_is_refused_and_the_first_keeps_its_rooms() -> None:
    cluster = Cluster()
    one, other = cluster.started("a", "b")
    second = cluster.start("a")
    cluster.run(5)
    assert not second.alive
    assert "Its name, 'a', is that of a node which is there; give each node" in str(second.membership.refused)
    assert one.kinds("a") == ["joined", "ignored"]
    assert other.kinds("a") == ["joined"]
    assert one.sees() == other.sees() == ["a", "b"]


def test_of_two_that_join_at_once_under_one_name_the_first_stays() -> None:
    cluster = Cluster()
    first, second = cluster.start("a"), cluster.start("a")
    cluster.run(5)
    assert (first.alive, second.alive) == (True, False)
    assert first.sees() == ["a"]


def test_node_that_was_replaced_while_it_was_frozen_gives_way() -> None:
    cluster = Cluster()
    one, other = cluster.started("a", "b")
    cluster.freeze(one)
    cluster.run(3)
    again = cluster.start("a")
    cluster.run(3)
    cluster.freeze(one, False)
    cluster.run(5)
    assert not one.alive
    assert again.alive
    assert other.sees() == again.sees() == ["a", "b"]
    assert other.kinds("a") == ["joined", "left", "joined"]


def test_new_life_waits_for_one_that_drains() -> None:
    cluster = Cluster()
    (one,) = cluster.started("a")
    again = cluster.start("a")
    one.membership.drain()
    cluster.run(10)
    assert again.membership.state == "joining"
    cluster.stop(one)
    cluster.run(2)
    assert again.sees() == ["a"]


def test_node_that_drains_sees_the_one_that_has_its_name_now() -> None:
    membership = up()
    membership.drain()
    assert kinds(membership.heard(replace(UP, node="me"), 0.1)) == ["joined"]
    assert membership.serving


def test_late_heartbeat_of_the_life_before_refuses_nobody() -> None:
    membership = Membership(ME, 0)
    own(membership, 0.0, 0.0)
    assert kinds(membership.heard(replace(UP, node="me", boot="4" * 16), 0.1)) == ["joined"]
    own(membership, 0.5, 0.5)
    membership.tick(0.5)
    assert kinds(membership.tick(0.9)) == ["left"]
    assert own(membership, 1.0, 1.0) == ["joined"]


def test_of_two_that_are_up_under_one_name_the_later_one_stays() -> None:
    membership = up()
    assert kinds(membership.heard(replace(UP, node="me", boot="4" * 16), 0)) == ["ignored"]
    assert [seat.boot for seat in membership.view.seats] == [ME.boot]
    assert kinds(membership.heard(replace(UP, node="me"), 0)) == ["refused", "left", "joined"]
    assert "A later node was given the name 'me'" in str(membership.refused)
    assert not membership.serving
    assert [seat.boot for seat in membership.view.seats] == [UP.boot]
    assert membership.heard(replace(UP, node="me", number=2), 0.5) == [], "it is told once"
    assert kinds(membership.heard(replace(UP, node="me", number=3, state="gone"), 0.6)) == ["left"]
    assert not membership.view.seats, "who is refused does not come back"


@pytest.mark.parametrize("order", [("6", "7"), ("7", "6")])
def test_view_has_the_later_of_two_others_of_one_name(order: tuple[str, str]) -> None:
    membership = up()
    for digit in order:
        membership.heard(replace(UP, boot=digit * 16), 0)
    assert [seat.boot for seat in membership.view.seats] == [ME.boot, "7" * 16]


def test_node_that_was_ignored_for_its_name_counts_when_the_name_is_free() -> None:
    membership = up()
    other = replace(UP, node="me", state="joining")
    assert kinds(membership.heard(other, 0)) == ["ignored"]
    membership.drain()
    assert kinds(membership.heard(replace(other, number=2, state="up"), 0.5)) == ["joined"]


# Who may not be in


@pytest.mark.parametrize(
    "differs, reason",
    [
        ({"strategy": "horde"}, r"has the cluster strategy 'horde'.*has 'pg'; give all nodes the same"),
        ({"version": 3}, r"speaks version 3 .* version 1; upgrade one version at a time"),
    ],
)
def test_node_that_cannot_be_in_is_refused_by_itself_and_ignored_by_the_others(
    differs: dict[str, Any], reason: str
) -> None:
    cluster = Cluster()
    (one,) = cluster.started("a")
    other = cluster.start("b", config="d", **differs)
    cluster.run(5)
    assert one.kinds("b") == ["ignored"]
    [told] = [change.reason for change in one.changes if change.kind == "ignored"]
    assert re.search(reason, told)
    assert one.sees() == ["a"]
    assert not other.alive
    assert other.membership.refused is not None
    assert other.kinds("b") == ["refused"]


def test_of_two_that_differ_and_join_at_once_the_first_stays() -> None:
    cluster = Cluster()
    first, second = cluster.start("a"), cluster.start("b", strategy="horde")
    cluster.run(5)
    assert (first.alive, second.alive) == (True, False)
    assert first.sees() == ["a"]


def test_heartbeat_of_an_unknown_version_refuses_who_joins_only() -> None:
    membership = Membership(ME, 0)
    assert kinds(membership.cannot_read("A record has version 3.")) == ["refused"]
    assert "A record has version 3." in str(membership.refused)
    for now in (0.1, 0.6, 1.1, 1.6):
        assert own(membership, now, now) == []
    assert membership.state == "joining"
    assert kinds(up().cannot_read("A record has version 3.")) == ["ignored"]


def test_different_configuration_is_told_once() -> None:
    membership = up()
    told = [
        change
        for number in range(1, 5)
        for change in membership.heard(replace(UP, number=number, config="d"), number / 2)
        if change.kind == "differs"
    ]
    assert [change.node for change in told] == ["other"]
    assert "hash is d, and this node's is c; give all nodes the same options" in told[0].reason
    assert [seat.node for seat in membership.view.seats] == ["me", "other"]


def test_node_writes_the_newest_version_that_all_read() -> None:
    membership = Membership(replace(ME, version=5), 0)
    assert (membership.speaks, membership.hails) == (5, 4)
    membership.heard(replace(UP, version=6), 0)
    assert membership.speaks == 5
    membership.heard(replace(UP, boot="7" * 16, node="old", version=4), 0)
    assert membership.speaks == 4
    membership.heard(replace(UP, boot="8" * 16, node="older", version=3), 0)
    assert membership.speaks == 4, "who is ignored does not count"
    assert (up().speaks, up().hails) == (1, 1)


# Bounds


def test_flood_of_lives_is_bounded_and_told_once() -> None:
    membership = up()
    membership.heard(UP, 0)
    told = []
    for number in range(3 * NODES):
        fake = replace(UP, boot=f"{number:016d}", node=f"fake-{number}", state="joining")
        told += membership.heard(fake, 0)
    assert len(membership.peers()) == NODES
    assert kinds(told) == ["full"]
    assert f"{NODES} nodes are known" in told[0].reason
    membership.heard(replace(UP, number=2), 2)
    own(membership, 2, 2)
    membership.tick(2.0)
    own(membership, 2.5, 2.5)
    membership.tick(2.5)
    assert [peer.heartbeat.node for peer in membership.peers()] == ["other"], "who is known stays known"
    assert kinds(membership.heard(replace(UP, boot="7" * 16, node="late"), 2.6)) == ["joined"]
    for number in range(2 * NODES):
        told += membership.heard(replace(UP, boot=f"1{number:015d}", node=f"fake-{number}", state="joining"), 2.6)
    assert kinds(told) == ["full", "full"], "once more, since there was room between"


def test_last_words_of_a_flood_are_bounded() -> None:
    membership = up()
    for number in range(2 * DEPARTED):
        assert membership.heard(replace(UP, boot=f"{number:016d}", state="gone"), 0) == []
    assert len(membership._departed) == DEPARTED
    assert membership.peers() == ()


def test_flood_of_own_heartbeats_is_bounded() -> None:
    membership = up()
    for number in range(1_000):
        membership.beat(number / 1_000)
    assert len(membership._under_way) <= 16


def test_time_that_goes_back_takes_nobody_down() -> None:
    membership = up(100)
    membership.heard(UP, 100)
    for now in (99, 0, -5, 100.1):
        assert membership.tick(now) == []
    assert not membership.stalled
    assert [seat.node for seat in membership.view.seats] == ["me", "other"]


def test_node_that_is_down_for_the_others_does_not_say_that_it_is_up_before_it_knows() -> None:
    membership = up()
    membership.tick(0.5)
    assert membership.serves(1.4)
    # Frozen, and nothing of that is known before the next tick.
    assert membership.serving
    assert not membership.serves(5.0)
    membership.tick(5.0)
    assert membership.isolated
    assert membership.beat(5.0).state == "joining"


def test_node_that_was_isolated_for_a_moment_says_that_it_is_up() -> None:
    membership = up()
    for now in (0.5, 1.0, 1.6):
        membership.tick(now)
    assert membership.isolated
    assert membership.beat(1.7).state == "up"
