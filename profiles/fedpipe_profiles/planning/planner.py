"""The planner: from what a device measured and what a weight contributes to the plan that makes the most of both.

One problem per device: choose bits, batch size, checkpointing, examples and a rank per weight to maximise
(examples trained within the deadline / examples wanted) * (captured / total contribution) * fidelity of the bits, with
the predicted peak within what is lent, the round within the deadline and the update within the link's budget.

Everything is a function of its arguments: the same problem gives the same plan.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from fedpipe_profiles.plan import Bound, NoPlan, Plan, Prediction
from fedpipe_profiles.planning.deadline import CurvePoint, Member, choose_deadline, curve_point
from fedpipe_profiles.planning.options import Prepared, prepare
from fedpipe_profiles.planning.prediction import predicted
from fedpipe_profiles.planning.problem import DeviceProblem, JobProblem, PlanningError
from fedpipe_profiles.planning.reasons import MOST_CHARACTERS, bound_of, explain, explain_none
from fedpipe_profiles.planning.search import GAP, SOLVES, Choice, best_choice
from fedpipe_profiles.values import MAX_SECONDS

Draw = Callable[[str, str, int, int], tuple[int, ...]]
"""Which components an agent trains: (agent, weight, global rank R, rank r) to r sorted indices below R."""


SMALL_FLEET = 32
"""Up to so many unlike devices are solved as exactly as `search.GAP` says."""

QUICK_GAP = 2e-3
"""A larger fleet's choices may be this far below their bounds before HiGHS is asked."""


class Effort(NamedTuple):
    """How close to its bound a choice must be, and how many exact solutions that may take."""

    gap: float
    solves: int


QUICK = Effort(QUICK_GAP, SOLVES)
"""The effort for a large fleet, and for an answer that must come soon."""


def effort(kinds: int) -> Effort:
    """The effort for each of so many unlike devices. It follows from their number alone, never from a clock."""
    return Effort(GAP, SOLVES) if kinds <= SMALL_FLEET else QUICK


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """A round of the whole fleet. Every agent is either in `plans` or in `none`.

    `curve` has the deadlines that were compared, in rising order, or the one that was given. `gaps` says of every plan
    how far it may be below the best there is, as a share of that: what its bound proves.
    """

    deadline_s: float
    plans: dict[str, Plan]
    none: dict[str, NoPlan]
    curve: tuple[CurvePoint, ...]
    gaps: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What identical devices have in common."""

    choice: Choice | None
    predicted: Prediction | None
    bound: Bound
    reason: str


def plan_device(
    job: JobProblem,
    device: DeviceProblem,
    *,
    round_: int,
    deadline_s: float,
    draw: Draw,
    kinds: int = 1,
) -> Plan | NoPlan:
    """Plan one device's round, as exactly as one of a fleet of so many unlike `kinds`.

    Raises:
        PlanningError: if `deadline_s` is not positive, or `draw` returns anything but r components below R.
    """
    _check_deadline(deadline_s)
    prepared = prepare(job, device)
    verdict = _judge(job, prepared, deadline_s, effort(kinds))
    return _tell(job, device, verdict, round_=round_, deadline_s=deadline_s, draw=draw)


def plan_round(
    job: JobProblem,
    devices: Mapping[str, DeviceProblem],
    *,
    round_: int,
    deadline_s: float | None,
    draw: Draw,
    prepared: Mapping[str, Prepared] = MappingProxyType({}),
    within: Effort | None = None,
) -> RoundPlan:
    """Plan a round of all devices, identical ones once; without a deadline, choose it (see `deadline.py`).

    What `prepare` made of the same job and a device may be handed on in `prepared`, by the device's name. Without
    `within`, the effort follows from how many unlike devices there are.

    Raises:
        PlanningError: as `plan_device`; also if there is no device.
    """
    if not devices:
        raise PlanningError("no device to plan for: at least one agent must have its profile here")
    if deadline_s is not None:
        _check_deadline(deadline_s)
    alike: dict[tuple[object, ...], list[str]] = {}
    for name, device in devices.items():
        alike.setdefault(_kind(device), []).append(name)
    fleet = [
        Member(prepared.get(names[0]) or prepare(job, devices[names[0]]), tuple(names)) for names in alike.values()
    ]
    chosen, curve = (deadline_s, ()) if deadline_s is not None else choose_deadline(job.increments, fleet)
    within = within or effort(len(fleet))
    verdicts = [_judge(job, member.prepared, chosen, within) for member in fleet]
    if deadline_s is not None:
        reached = [(v.choice.objective, v.choice.examples) if v.choice else (0.0, 0) for v in verdicts]
        curve = (curve_point(fleet, chosen, reached),)
    whose = {name: verdict for member, verdict in zip(fleet, verdicts, strict=True) for name in member.names}
    told = {
        name: _tell(job, device, whose[name], round_=round_, deadline_s=chosen, draw=draw)
        for name, device in devices.items()
    }
    return RoundPlan(
        chosen,
        {name: plan for name, plan in told.items() if isinstance(plan, Plan)},
        {name: plan for name, plan in told.items() if isinstance(plan, NoPlan)},
        curve,
        {name: 1 - v.choice.objective / v.choice.bound for name, v in whose.items() if v.choice},
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


def _judge(job: JobProblem, prepared: Prepared, deadline_s: float, within: Effort) -> _Verdict:
    budget = prepared.budget(deadline_s)
    choice = best_choice(job.increments, prepared, budget, gap=within.gap, solves=within.solves)
    if choice is None:
        return _Verdict(None, None, *explain_none(job.increments, prepared, budget))
    bound = bound_of(job.increments, prepared, budget, choice)
    reason = explain(job.increments, prepared, budget, choice, bound)
    expected = predicted(job, choice.option, choice.ranks, choice.steps, budget.time_s)
    return _Verdict(choice, expected, bound, reason)


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
    if choice is None or verdict.predicted is None:
        return NoPlan(agent=agent, bound=verdict.bound, reason=verdict.reason[:MOST_CHARACTERS])
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
        predicted=verdict.predicted,
        bound=verdict.bound,
        reason=verdict.reason[:MOST_CHARACTERS],
    )


def _components(draw: Draw, agent: str, name: str, of: int, rank: int) -> tuple[int, ...]:
    drawn = tuple(sorted(draw(agent, name, of, rank)))
    if len(set(drawn)) != rank or drawn[0] < 0 or drawn[-1] >= of:
        raise PlanningError(
            f"drew components {drawn} of {name} for {agent}: expected {rank} different ones of 0 to {of - 1}"
        )
    return drawn


def _check_deadline(deadline_s: float) -> None:
    if not 0 < deadline_s <= MAX_SECONDS:
        raise PlanningError(
            f"deadline of {deadline_s} s: give more than 0 and at most {MAX_SECONDS:.0f} seconds, or none to have it "
            "chosen"
        )
