"""The task that an agent owes the run at this moment: a pure function of the run's state.

So a task may be sent as often as an agent comes back, and the state needs no list of what was sent.
"""

from fedpipe_coordinator.config import job_terms
from fedpipe_coordinator.runs.run_events import Fetch, Send
from fedpipe_coordinator.runs.run_state import Member, RunState
from fedpipe_coordinator.runs.step import Step
from fedpipe_wire.coordinator_messages import EvaluateTask, IdleTask, ScoreTask, SurveyTask, Task, TrainTask

SCORE_GRACE_S = 600.0


def owed_task(state: RunState, member: Member) -> Task | None:
    """The task that an agent owes at this moment, or None.

    An agent that is asked twice answers at once with what it has already done.
    """
    if member.standing in ("refused", "failed") and member.contribution is None:
        return None
    if member.survey is None:
        return survey_task(state)
    if member.contribution is None:
        return None if state.phase == "surveying" else score_task(state)
    return _round_task(state, member)


def ask_again(work: Step, name: str) -> None:
    """Send an agent the task that it owes at this moment."""
    member = work.state.members[name]
    task = owed_task(work.state, member)
    if task is None:
        return
    # An agent that lost what it offered trains again; one that has it need not be heard to be served.
    offer = member.trained if work.state.phase == "training" else None
    if member.standing == "gone":
        work.put(member.model_copy(update={"standing": "asked" if offer is None else "offered"}))
    work.do(Send(name, task))
    if offer is not None:
        work.do(Fetch(name, offer.round, offer.update))


def _round_task(state: RunState, member: Member) -> Task | None:
    """The task of the present round."""
    if state.adapter is None:
        return None
    if state.phase == "training":
        if member.no_plan is not None:
            return IdleTask(
                run=state.run, epoch=state.epoch, round=state.round, attempt=state.missed, no_plan=member.no_plan
            )
        if (
            member.plan is not None
            and member.plan.round == state.round
            and member.standing in ("asked", "offered", "gone")
        ):
            return train_task(state, member)
    if state.phase == "evaluating" and member.plan is not None and member.standing in ("asked", "gone"):
        return EvaluateTask(
            run=state.run,
            epoch=state.epoch,
            round=state.round + 1,
            terms=job_terms(state.job),
            labels=state.labels,
            adapter=state.adapter,
            plan=member.plan,
        )
    return None


def train_task(state: RunState, member: Member) -> TrainTask | None:
    """The training task of a member that has a plan for this round."""
    if member.plan is None or state.adapter is None:
        return None
    return TrainTask(
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.missed,
        terms=job_terms(state.job),
        labels=state.labels,
        adapter=state.adapter,
        plan=member.plan,
        score_batches=state.job.train.score_batches if refresh_due(state) else 0,
    )


def refresh_due(state: RunState) -> bool:
    """Whether contributions are measured again in this round: every `refresh_rounds`, but after none that is last."""
    every = state.job.adapter.refresh_rounds
    return every > 0 and state.round % every == 0 and state.round < state.job.rounds.number


def score_task(state: RunState) -> ScoreTask:
    """The task to score all weights."""
    return ScoreTask(
        run=state.run,
        epoch=state.epoch,
        terms=job_terms(state.job),
        labels=state.labels,
        batches=state.job.train.score_batches,
        deadline_s=SCORE_GRACE_S,
    )


def survey_task(state: RunState) -> SurveyTask:
    """The task to look at model and data."""
    return SurveyTask(run=state.run, epoch=state.epoch, terms=job_terms(state.job))
