"""Laws of the agent's machine over any sequence of tasks, replies, transfers, ends and kills.

An illegal stage raises in the machine itself: that none is ever reached is a law of every sequence below.
"""

from pathlib import Path
from typing import Any

from agent_support import (
    ADAPTER,
    DriveAgent,
    end_task,
    evaluate_task,
    idle_task,
    replies,
    score_task,
    setup,
    survey_task,
    train_task,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from run_support import RUN, device, name_of, ref

from fedpipe_agent.agent_events import (
    Acknowledged,
    AdapterReady,
    AgentAction,
    AgentEvent,
    Ask,
    DropUpdate,
    FetchAdapter,
    Log,
    NameUpdate,
    NotShelved,
    Say,
    ShelveUpdate,
    StopTrainer,
    TaskCame,
    Ticked,
    TrainerEnded,
    TrainerReplied,
    TransferFailed,
    UpdateNamed,
    UpdateShelved,
    Welcomed,
)
from fedpipe_agent.memory import Memory
from fedpipe_agent.outbox_machine import MAX_OUTBOX
from fedpipe_agent.state import AgentState, task_key
from fedpipe_agent.trainer_protocol import (
    ErrorReply,
    EvaluateRequest,
    Opened,
    OpenRequest,
    ProgressReply,
    Reply,
    Request,
    SurveyRequest,
    TrainRequest,
)
from fedpipe_profiles.plan import Prediction
from fedpipe_wire.agent_messages import Failed, Trained
from fedpipe_wire.coordinator_messages import Ack, EndTask, TrainTask
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.messages import encode

RUNS = st.sampled_from((RUN, RUN, RUN, f"{RUN}-2"))
HUGE = Prediction(peak_bytes=1 << 40, round_s=1.0, compute_s=1.0, up_bytes=1, down_bytes=1)
CHANGES = st.sampled_from(
    ({}, {}, {}, {"predicted": HUGE}, {"predicted": HUGE}, {"bits": 4}, {"agent": "b"}, {"examples": 6})
)
TASKS = st.one_of(
    st.builds(survey_task, RUNS),
    st.builds(score_task, RUNS),
    st.builds(
        lambda round_, run, attempt, changes: train_task(round_, run, attempt=attempt, **changes),
        st.integers(1, 6),
        RUNS,
        st.integers(0, 1),
        CHANGES,
    ),
    st.builds(evaluate_task, st.integers(2, 6), RUNS),
    st.builds(idle_task, st.integers(1, 6), RUNS),
)
STRAY = st.sampled_from((Opened(context_bytes=1), ProgressReply(stage="loading"), *replies(SurveyRequest())))
ERRORS = st.builds(
    ErrorReply, kind=st.sampled_from(("out-of-memory", "time", "data", "internal")), message=st.just("x" * 9000)
)


class AnyAgent(RuleBasedStateMachine):
    """Anything may happen at any time; the trainer answers what it was asked, or something else, or dies."""

    @initialize()
    def start(self) -> None:
        self.agent = DriveAgent(AgentState(setup=setup(profile=device("a", supported_bits=(8, 32)))))
        self.hands: Request | None = None
        self.written: BlobRef | None = None
        self.shelf: set[str] = set()
        self.owed: set[str] = set()

    def _let(self, event: AgentEvent, after_s: float = 0.0, *, killed: bool = False) -> tuple[AgentAction, ...]:
        """Let an event happen; `killed` after what it changed was written to the journal, and before it acts."""
        actions = self.agent(event, after_s)
        if killed:
            self._restart()
            return ()
        for action in actions:
            self._act(action)
        return actions

    def _act(self, action: AgentAction) -> None:
        match action:
            case Ask(OpenRequest()):
                assert self.hands is None, "a trainer at work was replaced without a word"
            case Ask(request):
                assert self.hands is None, f"{request.op} came while the trainer worked on {self.hands}"
                self._check(request)
                self.hands = request
            case StopTrainer():
                self.hands = None
            case Say(message):
                assert encode(message)
                if isinstance(message, Trained) and message.update.sha256 in self.owed:
                    assert message.update.sha256 in self.shelf, "an update is offered that is not there"
            case DropUpdate(sha256):
                self.shelf.discard(sha256)
                self._forget_the_oldest()
            case NameUpdate():
                assert self.written is not None, "an update is to be named that nobody wrote"
                self._let(UpdateNamed(self.written))
            case ShelveUpdate(_, ref):
                assert ref.sha256 in self.shelf or self.written == ref, "an update is gone"
                self.shelf.add(ref.sha256)
                self.written = None if self.written == ref else self.written
                self.owed.add(ref.sha256)
                self._let(UpdateShelved(ref))
            case _:
                pass

    def _restart(self, away_s: float = 0.0) -> None:
        self.hands = None
        self.agent = self.agent.restarted(away_s)
        # the start of an agent removes what nobody needs
        self.shelf &= {trained.update.sha256 for trained in self.agent.state.memory.outbox}
        self._forget_the_oldest()
        self._let(Welcomed())
        assert self.agent.state.stage != "shelving", "nobody goes on with the update that was written"
        if self.agent.state.stage == "fetching":
            assert any(isinstance(action, FetchAdapter) for action in self.agent.actions)

    def _forget_the_oldest(self) -> None:
        """Of a full outbox, the oldest update is owed no more."""
        outbox = self.agent.state.memory.outbox
        if len(outbox) == MAX_OUTBOX:
            self.owed &= {trained.update.sha256 for trained in outbox}

    @invariant()
    def what_is_remembered_is_whole(self) -> None:
        if not hasattr(self, "agent"):
            return
        state, memory = self.agent.state, self.agent.state.memory
        assert Memory.model_validate_json(memory.model_dump_json(exclude_none=True)) == memory
        assert (state.task is None) == (state.stage == "idle")
        assert state.in_hand == (self.hands is not None)
        if state.stage in ("offered", "finished"):
            assert state.task is not None
            assert task_key(state.task) in memory.done
        assert (state.offered is not None) == (state.stage == "offered")
        outbox = {trained.update.sha256 for trained in memory.outbox}
        assert len(outbox) <= MAX_OUTBOX
        assert outbox == self.owed == self.shelf, "what is owed, what is remembered and what is on disk differ"

    def _check(self, request: Request) -> None:
        if isinstance(request, TrainRequest | EvaluateRequest):
            profile = self.agent.state.setup.profile
            assert request.plan.agent == profile.agent
            assert request.plan.bits in profile.supported_bits
            assert request.plan.predicted.peak_bytes <= profile.memory_limit_bytes()
        if isinstance(request, TrainRequest):
            assert 0 < request.budget_s <= request.plan.deadline_s

    @rule(task=TASKS, ended=st.integers(0, 39), with_adapter=st.booleans())
    def task_comes_twice(self, task: Any, ended: int, *, with_adapter: bool) -> None:
        """A task that comes again is answered alike, and begins nothing."""
        if not ended:
            mine = {trained.update.sha256 for trained in self.agent.state.memory.outbox if trained.run == task.run}
            self.owed -= mine
        first = self._let(TaskCame(task if ended else end_task(task.run)))
        if ended and isinstance(task, TrainTask) and task.plan.predicted == HUGE:
            assert not [action for action in first if isinstance(action, Ask | FetchAdapter)]
        state = self.agent.state
        again = self._let(TaskCame(task if ended else end_task(task.run)))
        assert not [action for action in again if not isinstance(action, Say | Log)]
        assert self.agent.state == state
        if not ended:
            assert not again
        elif any(isinstance(action, Say) for action in first):
            assert [a for a in again if isinstance(a, Say)] == [a for a in first if isinstance(a, Say)]
        if with_adapter:
            self._let(AdapterReady(ADAPTER, Path("adapter")))

    @rule()
    def the_next_round_goes_well(self) -> None:
        """Without it, few sequences would have more than one update on the way."""
        newest = self.agent.state.memory.newest
        self._let(TaskCame(train_task(1 if newest is None or newest[0] != RUN else newest[2] + 1)))
        self._let(AdapterReady(ADAPTER, Path("adapter")))
        if self.hands is not None:
            self.trainer_answers()

    @rule(blob=st.sampled_from((ADAPTER, ADAPTER, ref(name_of("other")))), seconds=st.sampled_from((0.0, 0.0, 99.0)))
    def adapter_comes(self, blob: Any, seconds: float) -> None:
        self._let(AdapterReady(blob, Path("adapter")), seconds)

    @rule(really=st.integers(0, 4))
    def adapter_fails(self, really: int) -> None:
        if really == 0:
            self._let(TransferFailed(ADAPTER.sha256, "y" * 9000))

    @precondition(lambda self: self.hands is not None)
    @rule(acknowledged=st.booleans())
    def trainer_works(self, *, acknowledged: bool) -> None:
        self.trainer_answers()
        if acknowledged and self.agent.state.offered is not None:
            self._acknowledge(self.agent.state.offered, accepted=False)

    def trainer_answers(self) -> None:
        assert self.hands is not None
        answers = replies(self.hands)
        for reply in answers:
            if reply == answers[-1]:
                self._hands_done()
            self._let(TrainerReplied(reply))
        self._is_answered()

    def _hands_done(self) -> None:
        """The trainer has written what it was asked for, and will say so."""
        if isinstance(self.hands, TrainRequest):
            self.written = self.agent.update()
        self.hands = None

    def _is_answered(self) -> None:
        state = self.agent.state
        assert state.finished
        task = state.task
        assert task is not None
        assert not isinstance(task, EndTask)
        result = self._let(TaskCame(task))[-1]
        assert isinstance(result, Say)
        assert not isinstance(result.message, Failed)

    @precondition(lambda self: self.hands is not None)
    @rule(last=st.booleans())
    def killed_as_the_trainer_answers(self, *, last: bool) -> None:
        """The answer is in the journal, or is lost with the trainer; in the end the same is said."""
        assert self.hands is not None
        answers = replies(self.hands)
        self._hands_done()
        if last or len(answers) == 1:
            for reply in answers[:-1]:
                self._let(TrainerReplied(reply))
        self._let(TrainerReplied(answers[-1] if last else answers[0]), killed=True)

    @rule(task=TASKS)
    def killed_as_a_task_comes(self, task: Any) -> None:
        self._let(TaskCame(task), killed=True)

    @precondition(lambda self: self.agent.state.memory.outbox)
    @rule(which=st.integers(0, 9), accepted=st.booleans(), over=st.booleans())
    def killed_as_an_update_is_settled(self, which: int, *, accepted: bool, over: bool) -> None:
        outbox = self.agent.state.memory.outbox
        trained = outbox[which % len(outbox)]
        ack = Ack(run=trained.run, round=trained.round, sha256=trained.update.sha256, accepted=accepted)
        self.owed -= {each.update.sha256 for each in outbox if each == trained or (over and each.run == trained.run)}
        self._let(TaskCame(end_task(trained.run)) if over else Acknowledged(ack), killed=True)

    @rule(seconds=st.sampled_from((0.0, 50.0, 5000.0)))
    def killed(self, seconds: float) -> None:
        """Whatever was in hand is begun again, or its time is over."""
        before = self.agent.state
        self._restart(seconds)
        after = self.agent.state
        assert after.memory.outbox == before.memory.outbox
        assert after.memory.newest == before.memory.newest
        if isinstance(before.task, TrainTask) and before.stage in ("fetching", "working"):
            results = after.memory.done.get(task_key(before.task), ())
            assert after.stage == "fetching" or (isinstance(results[-1], Failed) and results[-1].kind == "time")

    @rule()
    def welcomed_again(self) -> None:
        offered = [a.message for a in self._let(Welcomed()) if isinstance(a, Say)]
        assert not [message for message in offered if isinstance(message, Failed)]
        said = [a.message for a in self.agent.actions if isinstance(a, Say)]
        assert all(trained in said for trained in self.agent.state.memory.outbox)

    @precondition(lambda self: isinstance(self.hands, TrainRequest))
    @rule(with_name=st.booleans())
    def the_disk_takes_no_update(self, *, with_name: bool) -> None:
        assert self.hands is not None
        answers, self.hands = replies(self.hands), None
        for reply in answers:
            actions = self.agent(TrainerReplied(reply))
        assert [type(action) for action in actions] == [NameUpdate]
        sha256 = None
        if with_name:
            update = self.agent.update()
            self.agent(UpdateNamed(update))
            if update.sha256 in self.owed:
                self._let(UpdateShelved(update))
                return
            sha256 = update.sha256
        said = [a.message for a in self._let(NotShelved(sha256, "the disk is full")) if isinstance(a, Say)]
        assert [type(message) for message in said] == [Failed]

    @precondition(lambda self: self.hands is not None)
    @rule(error=ERRORS)
    def trainer_fails(self, error: ErrorReply) -> None:
        self.hands = None
        said = self._let(TrainerReplied(error))
        assert [type(action.message) for action in said if isinstance(action, Say)] == [Failed]

    @rule(reply=STRAY)
    def trainer_says_something_else(self, reply: Reply) -> None:
        if isinstance(self.hands, SurveyRequest):
            return
        actions = self._let(TrainerReplied(reply))
        assert all(isinstance(action, Log | Say) for action in actions)

    @rule(returncode=st.sampled_from((-9, 1, 0, 0, 0, 0)), for_memory=st.booleans())
    def trainer_dies(self, returncode: int, *, for_memory: bool) -> None:
        if returncode == 0:
            return
        worked, self.hands = self.hands is not None, None
        first = self.agent.state.memory.deaths == 0 and not for_memory
        said = [action.message for action in self._let(TrainerEnded(returncode, for_memory)) if isinstance(action, Say)]
        if worked and first:
            assert (self.hands is not None) == (not said)
        else:
            assert len(said) == int(worked)

    @rule(seconds=st.sampled_from((0.5, 50.0, 5000.0)))
    def time_passes(self, seconds: float) -> None:
        worked = self.hands is not None
        said = [action for action in self._let(Ticked(), seconds) if isinstance(action, Say)]
        assert len(said) <= int(worked)

    @precondition(lambda self: self.agent.state.memory.outbox)
    @rule(which=st.integers(0, 9), accepted=st.booleans())
    def coordinator_acknowledges(self, which: int, *, accepted: bool) -> None:
        outbox = self.agent.state.memory.outbox
        self._acknowledge(outbox[which % len(outbox)], accepted=accepted)

    def _acknowledge(self, trained: Trained, *, accepted: bool) -> None:
        self.owed.discard(trained.update.sha256)
        ack = Ack(run=trained.run, round=trained.round, sha256=trained.update.sha256, accepted=accepted, reason="far")
        self._let(Acknowledged(ack))
        name = f"update {ack.sha256[:12]} of round {ack.round}"
        taken = Log(f"{name} was acknowledged, and no such update is in the outbox: nothing to do")
        assert self._let(Acknowledged(ack.model_copy(update={"accepted": True}))) == (taken,)
        refused = Log(f"{name} is refused, and is not in the outbox any more: far")
        assert self._let(Acknowledged(ack.model_copy(update={"accepted": False}))) == (refused,)

    def teardown(self) -> None:
        """Whatever happened, the next round is worked on."""
        if not hasattr(self, "agent"):
            return
        task = train_task(9, "tiny-9")
        self._let(TaskCame(task))
        self._let(AdapterReady(ADAPTER, Path("adapter")))
        assert isinstance(self.hands, TrainRequest)
        self.trainer_answers()


TestAnyAgent = AnyAgent.TestCase
TestAnyAgent.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
