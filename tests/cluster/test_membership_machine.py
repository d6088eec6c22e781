"""Nodes that crash, freeze, are cut off, drain and come again: who is there is known, and nobody else."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from chatx.cluster.membership import DOWN_S, SUSPECT_S, TICK_S
from tests.cluster.nodes import Cluster, Process

NAMES = ("a", "b", "c", "d")
PICK = st.integers(0, 9)

# A node that nothing happened to for so long is known to whoever nothing happened to either.
CALM_S = 5.0


class Members(RuleBasedStateMachine):
    """What happens to four nodes and their successors."""

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.cluster = Cluster(seed)

    def picked(self, pick: int) -> Process | None:
        live = self.cluster.live()
        return live[pick % len(live)] if live else None

    @rule(name=st.sampled_from(NAMES))
    def start(self, name: str) -> None:
        if len(self.cluster.live()) < 6:
            self.cluster.start(name)

    @rule(pick=PICK)
    def crash(self, pick: int) -> None:
        if process := self.picked(pick):
            self.cluster.crash(process)

    @rule(pick=PICK)
    def stop(self, pick: int) -> None:
        process = self.picked(pick)
        if process and not process.frozen:
            self.cluster.stop(process)

    @rule(pick=PICK)
    def drain(self, pick: int) -> None:
        process = self.picked(pick)
        if process and not process.frozen:
            process.changes += process.membership.drain()
            process.disturbed_at = self.cluster.now

    @rule(pick=PICK)
    def freeze(self, pick: int) -> None:
        if process := self.picked(pick):
            self.cluster.freeze(process, not process.frozen)

    @rule(pick=PICK)
    def cut(self, pick: int) -> None:
        if process := self.picked(pick):
            self.cluster.cut(process, not process.cut)

    @rule(ticks=st.integers(1, 40))
    def pass_time(self, ticks: int) -> None:
        for _ in range(ticks):
            self.cluster.run(TICK_S)
            self.check()

    def check(self) -> None:
        now = self.cluster.now
        for one in self.cluster.live():
            membership = one.membership
            view = {seat.boot for seat in membership.view.seats}
            assert len(view) == len({seat.node for seat in membership.view.seats})
            if one.cut and now - one.disturbed_at > SUSPECT_S + TICK_S and not one.frozen:
                assert not membership.serving, "a node that is cut off serves nothing"
            if one.cut or one.frozen or now - one.disturbed_at < CALM_S:
                continue
            for other in self.cluster.processes:
                calm = now - other.disturbed_at
                if not other.alive or other.frozen or other.cut:
                    if calm > DOWN_S + 3 * TICK_S:
                        assert other.me.boot not in view, "who is away is down"
                elif calm > CALM_S and now - other.up_at > 1 and other.membership.state == "up":
                    assert other.me.boot in view, "who is there is in the view"

    @precondition(lambda self: self.cluster.live())
    @rule()
    def settle(self) -> None:
        for process in self.cluster.live():
            self.cluster.freeze(process, False)
            self.cluster.cut(process, False)
            if process.membership.state == "draining":
                self.cluster.stop(process)
        names = {process.me.node for process in self.cluster.live()}
        self.cluster.run(10)
        live = self.cluster.live()
        assert {process.me.node for process in live} == names, "one of each name is there"
        assert len(live) == len(names), "and no second one"
        for process in live:
            assert {seat.boot for seat in process.membership.view.seats} == {each.me.boot for each in live}
            assert process.membership.serving
            assert process.membership.suspects(self.cluster.now) == ()

    def teardown(self) -> None:
        for process in self.cluster.processes if hasattr(self, "cluster") else ():
            there: set[str] = set()
            for change in process.changes:
                if change.kind == "joined":
                    assert change.boot not in there
                    there.add(change.boot)
                elif change.kind == "left":
                    there.remove(change.boot)
            assert there == {seat.boot for seat in process.membership.view.seats}, "what was told is what is"
            healed = [kind for kind in process.kinds() if kind in {"isolated", "healed"}]
            assert healed == (["isolated", "healed"] * len(healed))[: len(healed)]


TestMembers = Members.TestCase
TestMembers.settings = settings(stateful_step_count=30)
