"""Laws of the agent's machine over any sequence of tasks, replies, transfers and ends."""

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
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
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
    Say,
    ShelveUpdate,
    StopTrainer,
    TaskCame,
    Ticked,
    TrainerEnded,
    TrainerReplied,
    TransferFailed,
    UpdateShelved,
)
from fedpipe_agent.state import AgentState
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
from fedpipe_wire.messages import Ack, EndTask, Failed, Trained, TrainTask, encode

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
        self.dropped: set[str] = set()

    def _let(self, event: AgentEvent, after_s: float = 0.0) -> tuple[AgentAction, ...]:
        actions = self.agent(event, after_s)
        for action in actions:
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
                    if isinstance(message, Trained):
                        assert message.update.sha256 not in self.dropped
                case DropUpdate(sha256):
                    self.dropped.add(sha256)
                case ShelveUpdate():
                    update = self.agent.update()
                    self.dropped.discard(update.sha256)
                    self._let(UpdateShelved(update))
                case _:
                    pass
        return actions

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
            self.coordinator_acknowledges(accepted=False)

    def trainer_answers(self) -> None:
        assert self.hands is not None
        answers, self.hands = replies(self.hands), None
        for reply in answers:
            self._let(TrainerReplied(reply))
        state = self.agent.state
        assert state.finished
        task = state.task
        assert task is not None
        assert not isinstance(task, EndTask)
        result = self._let(TaskCame(task))[-1]
        assert isinstance(result, Say)
        assert not isinstance(result.message, Failed)

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

    @rule(returncode=st.sampled_from((-9, 1, 0, 0, 0, 0)))
    def trainer_dies(self, returncode: int) -> None:
        if returncode == 0:
            return
        worked, self.hands = self.hands is not None, None
        said = [action for action in self._let(TrainerEnded(returncode)) if isinstance(action, Say)]
        assert len(said) == int(worked)

    @rule(seconds=st.sampled_from((0.5, 50.0, 5000.0)))
    def time_passes(self, seconds: float) -> None:
        worked = self.hands is not None
        said = [action for action in self._let(Ticked(), seconds) if isinstance(action, Say)]
        assert len(said) <= int(worked)

    @precondition(lambda self: self.agent.state.offered is not None)
    @rule(accepted=st.booleans())
    def coordinator_acknowledges(self, *, accepted: bool) -> None:
        offered = self.agent.state.offered
        task = self.agent.state.task
        assert offered is not None
        assert task is not None
        ack = Ack(run=offered.run, round=offered.round, sha256=offered.update.sha256, accepted=accepted)
        self._let(Acknowledged(ack))
        if accepted:  # it is at the coordinator: it may be offered again without being here
            self.dropped.discard(offered.update.sha256)
        self._let(TaskCame(task))

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
