"""Laws of the run's machine over any sequence of events, of agents that may say anything at any time."""

from typing import Any, get_args

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from run_support import (
    RUN,
    Drive,
    aggregated,
    begin,
    evaluated,
    failed,
    name_of,
    planned,
    ref,
    scored,
    survey,
    trained,
)

from fedpipe_coordinator.runs.membership import OFFLINE_GRACE_S
from fedpipe_coordinator.runs.resume import resume
from fedpipe_coordinator.runs.run_events import (
    AgentOffline,
    AgentOnline,
    Aggregate,
    Aggregated,
    Export,
    Exported,
    Fetch,
    MakePlans,
    Planned,
    RunAction,
    RunEvent,
    Send,
    StopAsked,
    Ticked,
    UpdateDelayed,
    UpdateRejected,
    UpdatesRefused,
    UpdateStored,
    WorkDelayed,
    WorkFailed,
)
from fedpipe_coordinator.runs.run_state import STANDINGS, TRANSITIONS, Phase, RunState, Standing
from fedpipe_wire.agent_messages import Refused
from fedpipe_wire.coordinator_messages import Ack
from fedpipe_wire.messages import encode

AGENTS = st.sampled_from("abc")
ROUNDS = st.integers(1, 3)
SALTS = st.sampled_from(("", "other"))
REPORTS = st.one_of(
    st.builds(survey, st.sampled_from((("east", "north", "west"), ("east", "west"), ("up",))), st.sampled_from("001")),
    st.builds(scored, st.integers(1, 9), st.floats(0, 1e9), weights=st.sampled_from((("up", "down", "out"), ("up",)))),
    st.builds(evaluated, ROUNDS, st.floats(0, 9)),
    st.builds(
        failed,
        st.integers(0, 4),
        st.sampled_from(("out-of-memory", "time", "transfer")),
        st.just("out of <memory>\x1b[0m"),
    ),
    st.builds(lambda round_: Refused(run=RUN, round=round_, reason="not <now>\x00"), st.integers(0, 4)),
)
STRAY = st.one_of(
    st.builds(Aggregated, ROUNDS, st.just(ref(name_of("stray"))), st.just(0.0)),
    st.builds(Exported, st.just({})),
    st.builds(Planned, ROUNDS, st.just(9.0), st.just({}), st.just({}), st.just(ref(name_of("stray")))),
)
JOBS = st.fixed_dictionaries(
    {
        "min_agents": st.integers(1, 2),
        "number": st.integers(2, 6),
        "fraction": st.sampled_from((0.5, 1.0)),
        "patience": st.sampled_from((None, 1)),
        "late_weight": st.sampled_from((0.0, 0.5)),
        "labels": st.sampled_from((None, ("east", "north", "west"))),
    }
)


class AnyRun(RuleBasedStateMachine):
    """Agents come, go, report whatever they like, in any order; the service's work answers late, twice, or never."""

    @initialize(settings_=JOBS, steps=st.integers(0, 7))
    def start(self, settings_: dict[str, Any], steps: int) -> None:
        self.drive = Drive(begin(**settings_))
        self.work: list[RunEvent] = []
        self.fetches: dict[tuple[str, int, str], Fetch] = {}
        self.stored: set[tuple[str, int, str]] = set()
        self.aggregated: dict[int, Aggregate] = {}
        self.refused: set[str] = set()
        self.ever_refused: set[str] = set()
        for _ in range(steps):
            self.all_goes_well()

    def _let(self, event: RunEvent, after_s: float = 0.0) -> None:
        self._take(self.drive(event, after_s))

    def _take(self, actions: tuple[RunAction, ...]) -> None:
        state = self.drive.state
        for action in actions:
            match action:
                case MakePlans():
                    self.work.append(planned(state, action))
                case Aggregate():
                    self._check_aggregate(action)
                    self.work.append(aggregated(state, action))
                case Export():
                    self.work.append(Exported({}))
                case Fetch(agent, round_, blob):
                    self.fetches[agent, round_, blob.sha256] = action
                case Send(agent, message):
                    encode(message)
                    if isinstance(message, Ack) and message.accepted:
                        assert (agent, message.round, message.sha256) in self.stored
                case _:
                    pass

    def _check_aggregate(self, action: Aggregate) -> None:
        # A restarted coordinator asks again, for the same but for what the gate has refused meanwhile.
        before = self.aggregated.get(action.round, action)
        assert action == Aggregate(action.round, self._unrefused(before.updates), self._unrefused(before.late))
        self.aggregated[action.round] = action
        assert action.updates
        for agent, sha256 in action.updates.items():
            assert (agent, action.round, sha256) in self.stored
        for agent, sha256 in action.late.items():
            assert (agent, action.round - 1, sha256) in self.stored
            assert self.drive.state.job.rounds.late_weight > 0
            assert self.aggregated[action.round - 1].updates.get(agent) is None
        assert list(action.updates) == sorted(action.updates)
        assert list(action.late) == sorted(action.late)

    def _store(self, key: tuple[str, int, str]) -> None:
        self.stored.add(key)
        self.refused.discard(key[2])  # in a round that is begun again it may come again, and is judged again
        self._let(UpdateStored(*key))

    def _unrefused(self, updates: dict[str, str]) -> dict[str, str]:
        return {agent: sha256 for agent, sha256 in updates.items() if sha256 not in self.refused}

    @precondition(lambda self: self.drive.state.phase == "aggregating")
    @rule(data=st.data())
    def the_closing_gate_refuses(self, data: st.DataObject) -> None:
        """What it refused is in no aggregation any more, and its agent is told; said twice, it changes nothing."""
        action = self.aggregated[self.drive.state.round]
        present = sorted({*action.updates.items(), *action.late.items()})
        out = data.draw(st.lists(st.sampled_from(present), min_size=1, unique=True))
        event = UpdatesRefused(action.round, tuple((*each, "far off") for each in out))
        self.refused |= {sha256 for _, sha256 in out}
        self.ever_refused |= self.refused
        self.aggregated[action.round] = Aggregate(
            action.round, self._unrefused(action.updates), self._unrefused(action.late)
        )
        if not self.aggregated[action.round].updates:
            del self.aggregated[action.round]
        self.work = [each for each in self.work if not isinstance(each, Aggregated) or each.round != action.round]
        actions = self.drive(event)
        declined = {(a.agent, a.message.sha256) for a in actions if isinstance(a, Send) and isinstance(a.message, Ack)}
        assert declined >= set(out)
        if self.drive.state.phase != "aggregating":  # too few are left: the round is planned again, and may get others
            self.aggregated.pop(action.round, None)
        self._take(actions)
        after = self.drive.state
        self._take(self.drive(event))
        assert self.drive.state == after

    @precondition(lambda self: self.drive.state.open)
    @rule(agent=AGENTS, session=st.integers(1, 2))
    def comes(self, agent: str, session: int) -> None:
        self._let(AgentOnline(agent, f"{agent}-{session}"))

    @precondition(lambda self: self.drive.state.open)
    @rule(agent=AGENTS)
    def goes(self, agent: str) -> None:
        self._let(AgentOffline(agent))

    @precondition(lambda self: self.drive.state.open)
    @rule(seconds=st.sampled_from((0.5, 15.0, 130.0)))
    def time_passes(self, seconds: float) -> None:
        self._let(Ticked(), seconds)

    @precondition(lambda self: self.drive.state.open)
    @rule(agent=AGENTS, report=REPORTS)
    def says(self, agent: str, report: Any) -> None:
        self._twice(agent, report)

    @precondition(lambda self: self.drive.state.open)
    @rule(agent=AGENTS, ago=st.sampled_from((0, 0, 0, 1)), salt=SALTS)
    def offers(self, agent: str, ago: int, salt: str) -> None:
        self._twice(agent, trained(agent, max(1, self.drive.state.round - ago), salt))

    @precondition(lambda self: self.drive.state.open)
    @rule()
    def all_goes_well(self) -> None:
        """One step of a run in which nothing goes wrong, so that sequences get to all phases."""
        for agent in "abc":
            self.does_as_asked(agent)
        for key in sorted(self.fetches):
            self._store(key)
        if self.work:
            self._let(self.work[-1])

    @precondition(lambda self: self.drive.state.open)
    @rule(agent=AGENTS)
    def does_as_asked(self, agent: str) -> None:
        """Answer as an honest agent would, so that runs get somewhere."""
        state = self.drive.state
        member = state.members.get(agent)
        if member is None:
            self._let(AgentOnline(agent, f"{agent}-1"))
        elif member.survey is None:
            self._twice(agent, survey())
        elif member.contribution is None:
            self._twice(agent, scored())
        elif state.phase == "evaluating":
            self._twice(agent, evaluated(state.round + 1))
        elif state.phase == "training" and member.standing == "asked":
            self._twice(agent, trained(agent, state.round))

    def _twice(self, agent: str, message: Any) -> None:
        """A message that is sent again changes nothing."""
        self._take(self.drive.hear(agent, message))
        after = self.drive.state
        self._take(self.drive.hear(agent, message))
        assert self.drive.state == after

    @precondition(lambda self: self.fetches)
    @rule(data=st.data(), how=st.sampled_from(("well", "badly", "not now")))
    def fetch_ends(self, data: st.DataObject, how: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.fetches)))
        if how == "well":
            self._store(key)
        elif how == "badly":
            self._let(UpdateRejected(*key, "a value is not finite"))
        else:
            self._let(UpdateDelayed(*key, "the transfer died"))

    @precondition(lambda self: self.work)
    @rule(data=st.data())
    def work_ends(self, data: st.DataObject) -> None:
        """Also work that was done before: its end must not count twice."""
        self._let(self.work[-1 - data.draw(st.sampled_from((0, 0, 0, 1))) % len(self.work)])

    @rule(event=STRAY)
    def work_that_nobody_awaits_ends(self, event: RunEvent) -> None:
        state = self.drive.state
        awaited = {Aggregated: "aggregating", Exported: "exporting", Planned: "planning"}
        if state.phase != awaited[type(event)]:
            self._let(event)
            assert self.drive.state.phase == state.phase

    @rule()
    def coordinator_restarts(self) -> None:
        state = RunState.model_validate_json(self.drive.state.model_dump_json())
        assert state == self.drive.state
        self.fetches.clear()  # they ended with the process
        self.drive.state, actions = resume(state, self.drive.now)
        self.drive.actions.extend(actions)
        self._take(actions)

    @rule(name=st.sampled_from(("planning", "aggregating", "exporting")), really=st.integers(0, 19))
    def work_fails(self, name: str, really: int) -> None:
        if really == 0:
            self._let(WorkFailed(name, "no space left"))

    @rule(name=st.sampled_from(("planning", "aggregating", "exporting")))
    def work_lacks_room(self, name: str) -> None:
        phase = self.drive.state.phase
        self._let(WorkDelayed(name, "no space left"))
        assert self.drive.state.phase == phase

    @rule(really=st.integers(0, 19))
    def a_person_stops_it(self, really: int) -> None:
        if really == 0:
            self._let(StopAsked())

    @invariant()
    def what_was_acknowledged_is_aggregated_or_waits_for_it(self) -> None:
        """While the run is open; every accepted update of a closed round is in exactly one aggregation."""
        if not hasattr(self, "drive") or not self.drive.state.open:
            return
        used = [sha256 for each in self.aggregated.values() for sha256 in (*each.updates.values(), *each.late.values())]
        assert len(used) == len(set(used))
        waiting = {entry.trained.update.sha256 for m in self.drive.state.members.values() for entry in m.late}
        present = {m.trained.update.sha256 for m in self.drive.state.members.values() if m.trained is not None}
        for action in self.drive.all(Send):
            if isinstance(action.message, Ack) and action.message.accepted:
                assert action.message.sha256 in {*used, *waiting, *present, *self.ever_refused}
        assert not self.refused & {*used, *waiting}

    @invariant()
    def enough_agents_do_not_wait_longer_than_the_grace(self) -> None:
        """For whom, is told by nobody who comes and goes meanwhile."""
        if not hasattr(self, "drive") or self.drive.state.phase != "planning":
            return
        state = self.drive.state
        ready = sum(m.online and m.contribution is not None for m in state.members.values())
        since = max(state.phase_began, state.resumed_at or 0.0)
        if ready >= state.job.rounds.min_agents and self.drive.now - since > OFFLINE_GRACE_S:
            assert state.planning_asked

    @invariant()
    def a_stored_run_is_the_run(self) -> None:
        if hasattr(self, "drive"):
            assert RunState.model_validate_json(self.drive.state.model_dump_json()) == self.drive.state

    def teardown(self) -> None:
        """With nothing but time, and the end of work that was asked for, every run ends, and says why."""
        if not hasattr(self, "drive"):
            return
        for _ in range(60):
            if not self.drive.state.open:
                break
            phase = self.drive.state.phase
            self._let(Ticked(), 400.0)
            if phase in ("planning", "aggregating", "exporting") and self.work:
                self._let(self.work[-1])
            for key in sorted(self.fetches):
                self._let(UpdateRejected(*key, "the transfer died"))
        state = self.drive.state
        assert not state.open, f"{state.phase} waits for ever"
        assert state.phase == "done" or state.note or state.phase == "stopped"


TestAnyRun = AnyRun.TestCase
TestAnyRun.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), examples=st.lists(st.integers(1, 99), min_size=3, max_size=3))
def test_the_order_of_arrival_changes_no_byte_of_what_is_decided(data: st.DataObject, examples: list[int]) -> None:
    outcomes = []
    for _ in range(2):
        drive = Drive(begin(number=1))
        order = data.draw(st.permutations("abc"))
        for agent in order:
            drive(AgentOnline(agent, f"{agent}-1"))
        for agent in data.draw(st.permutations("abc")):
            drive.hear(agent, survey(labels=("east", agent)))
        for agent in data.draw(st.permutations("abc")):
            at = "abc".index(agent)
            drive.hear(agent, scored(examples[at], height=0.1 * 7.0 ** (9 * at)))
        drive.plan()
        for agent in data.draw(st.permutations("abc")):
            drive.hear(agent, evaluated(1, loss=0.1 * 3.0 ** (9 * "abc".index(agent))))
        offers = {agent: trained(agent, 1) for agent in "abc"}
        for agent in data.draw(st.permutations("abc")):
            drive.hear(agent, offers[agent])
        for agent in data.draw(st.permutations("abc")):
            drive(UpdateStored(agent, 1, offers[agent].update.sha256))
        (aggregate,) = drive.all(Aggregate)
        curves = list(drive.state.curves.items())
        outcomes.append((drive.state.labels, curves, list(aggregate.updates.items()), drive.state.initial_metric))
    assert outcomes[0] == outcomes[1]


def test_the_tables_name_every_phase_and_standing_and_leave_no_way_back_from_an_end() -> None:
    assert {phase for pair in TRANSITIONS for phase in pair} == set(get_args(Phase))
    assert {standing for pair in STANDINGS for standing in pair} - {None} == set(get_args(Standing)) - {"late"}
    assert not [pair for pair in TRANSITIONS if pair[0] in ("done", "failed", "stopped")]
    assert ("accepted", "offered") not in STANDINGS
    assert ("accepted", "refused") not in STANDINGS


@given(agents=st.permutations("ab"))
def test_an_aggregation_counts_once(agents: list[str]) -> None:
    drive = Drive(begin(number=3))
    for agent in agents:
        drive(AgentOnline(agent, f"{agent}-1"))
    for agent in agents:
        drive.hear(agent, survey())
    for agent in agents:
        drive.hear(agent, scored())
    drive.plan()
    for agent in agents:
        drive.hear(agent, trained(agent, 1))
        drive(UpdateStored(agent, 1, trained(agent, 1).update.sha256))
    drive.aggregate()
    assert drive.state.round == 2
    late = Aggregated(1, ref(name_of("something else")), 0.0)
    before = drive.state
    assert drive(late) == ()
    assert drive.state == before
