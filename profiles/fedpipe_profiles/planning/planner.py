"""The planner: from what a device measured and what a weight contributes to the plan that makes the most of both.

One problem per device: choose bits, batch size, checkpointing, examples and a rank per weight to maximise
(examples trained within the deadline / examples wanted) * (captured / total contribution) * fidelity of the bits, with
the predicted peak within what is lent, the round within the deadline and the update within the link's budget.

Everything is a function of its arguments: the same problem gives the same plan.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedpipe_profiles.plan import Bound, NoPlan, Plan
from fedpipe_profiles.planning.deadline import CurvePoint, Member, choose_deadline, progress
from fedpipe_profiles.planning.options import Prepared, predicted, prepare
from fedpipe_profiles.planning.problem import DeviceProblem, JobProblem, PlanningError
from fedpipe_profiles.planning.reasons import bound_of, explain, explain_none
from fedpipe_profiles.planning.search import Choice, best_choice

Draw = Callable[[str, str, int, int], tuple[int, ...]]
"""Which components an agent trains: (agent, weight, global rank R, rank r) to r sorted indices below R."""


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """A round of the whole fleet. Every agent is either in `plans` or in `none`."""

    deadline_s: float
    plans: dict[str, Plan]
    none: dict[str, NoPlan]
    curve: tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What identical devices have in common."""

    choice: Choice | None
    bound: Bound
    reason: str


def plan_device(
    job: JobProblem,
    device: DeviceProblem,
    *,
    round_: int,
    deadline_s: float,
    draw: Draw,
) -> Plan | NoPlan:
    """Plan one device's round.

    Raises:
        PlanningError: if `deadline_s` is not positive, or `draw` returns anything but r components below R.
    """
    _check_deadline(deadline_s)
    prepared = prepare(job, device)
    verdict = _judge(job, prepared, deadline_s)
    return _tell(job, device, verdict, round_=round_, deadline_s=deadline_s, draw=draw)


def plan_round(
    job: JobProblem,
    devices: Mapping[str, DeviceProblem],
    *,
    round_: int,
    deadline_s: float | None,
    draw: Draw,
) -> RoundPlan:
    """Plan a round of all devices, identical ones once; without a deadline, choose it (see `deadline.py`).

    Raises:
        PlanningError: as `plan_device`; also if there is no device.
    """
    if not devices:
        raise PlanningError("no device to plan for: at least one agent must have its profile here")
    if deadline_s is not None:
        _check_deadline(deadline_s)
    kinds = {name: _kind(device) for name, device in devices.items()}
    prepared: dict[tuple[object, ...], Prepared] = {}
    for name, device in devices.items():
        if kinds[name] not in prepared:
            prepared[kinds[name]] = prepare(job, device)
    alike = Counter(kinds.values())
    fleet = [Member(prepared[kind], count) for kind, count in alike.items()]
    if deadline_s is None:
        chosen, curve = choose_deadline(job.increments, fleet)
    else:
        chosen = deadline_s
        curve = (CurvePoint(chosen, progress(job.increments, fleet, chosen)),)
    verdicts = {kind: _judge(job, problem, chosen) for kind, problem in prepared.items()}
    told = {
        name: _tell(job, device, verdicts[kinds[name]], round_=round_, deadline_s=chosen, draw=draw)
        for name, device in devices.items()
    }
    return RoundPlan(
        chosen,
        {name: plan for name, plan in told.items() if isinstance(plan, Plan)},
        {name: plan for name, plan in told.items() if isinstance(plan, NoPlan)},
        curve,
    )


def _kind(device: DeviceProblem) -> tuple[object, ...]:
    """Equal for devices that get the same plan but for their names."""
    anonymous = device.profile.model_copy(update={"agent": "", "versions": {}, "datasets": ()})
    return (
        anonymous.model_dump_json(),
        device.measurements,
        device.transfers,
        device.train_examples,
        device.held_out_examples,
        device.mean_tokens,
        device.memory_cap_bytes,
        device.up_budget_bytes,
        device.loaded_bits,
    )


def _judge(job: JobProblem, prepared: Prepared, deadline_s: float) -> _Verdict:
    budget = prepared.budget(deadline_s)
    choice = best_choice(job.increments, prepared.options, budget, prepared.wanted)
    if choice is None:
        return _Verdict(None, *explain_none(job.increments, prepared, budget))
    bound = bound_of(job.increments, prepared, budget, choice)
    return _Verdict(choice, bound, explain(job.increments, prepared, budget, choice, bound))


def _tell(
    job: JobProblem,
    device: DeviceProblem,
    verdict: _Verdict,
    *,
    round_: int,
    deadline_s: float,
    draw: Draw,
) -> Plan | NoPlan:
    agent, choice = device.profile.agent, verdict.choice
    if choice is None:
        return NoPlan(agent=agent, bound=verdict.bound, reason=verdict.reason[:500])
    setting = choice.option.setting
    return Plan(
        agent=agent,
        round=round_,
        bits=setting.bits,
        batch_size=setting.batch_size,
        gradient_checkpointing=setting.gradient_checkpointing,
        sequence_length=job.sequence_length,
        learning_rate=job.learning_rate,
        seed=job.seed,
        examples=choice.examples,
        deadline_s=deadline_s,
        scale=job.scale,
        global_rank=job.global_rank,
        components={
            name: _components(draw, agent, name, job.global_rank, rank) for name, rank in choice.ranks.items() if rank
        },
        predicted=predicted(job, choice.option, choice.ranks, choice.steps),
        bound=verdict.bound,
        reason=verdict.reason[:500],
    )


def _components(draw: Draw, agent: str, name: str, of: int, rank: int) -> tuple[int, ...]:
    drawn = tuple(sorted(draw(agent, name, of, rank)))
    if len(set(drawn)) != rank or drawn[0] < 0 or drawn[-1] >= of:
        raise PlanningError(
            f"drew components {drawn} of {name} for {agent}: expected {rank} different ones of 0 to {of - 1}"
        )
    return drawn


def _check_deadline(deadline_s: float) -> None:
    if not 0 < deadline_s < float("inf"):
        raise PlanningError(f"deadline of {deadline_s} s: give a positive number of seconds, or none to have it chosen")
