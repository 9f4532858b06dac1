"""The plan of a round, steadied: damped figures go into the planner, and a device changes its setting for a reason.

Pure. Between two settings (bits and batch) that are worth about the same, noise would decide anew in every round, and
another number of bits costs a load of the base. So a device keeps what it has until that is worth a tenth less, or
until the same other setting was better for some rounds in a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from fedpipe_coordinator.runs import retrying
from fedpipe_coordinator.runs.backoff import Backoff, as_large, eased
from fedpipe_coordinator.runs.pace import at_present_pace
from fedpipe_coordinator.runs.run_state import Member
from fedpipe_coordinator.runs.steadying import HOLD, Steady, settle
from fedpipe_profiles.costs.timing import device_rates
from fedpipe_profiles.device import MIB, Bits, DeviceProfile
from fedpipe_profiles.plan import NoPlan, Plan, StepMeasurement, TransferMeasurement
from fedpipe_profiles.planning.options import FIDELITY
from fedpipe_profiles.planning.planner import Draw, RoundPlan, plan_device, plan_round
from fedpipe_profiles.planning.problem import DeviceProblem, JobProblem

WORSE = 0.1
"""A setting worth less than another by this share is left at once."""
BETTER = 0.005
"""One that is better by less than this is no reason to change, however long it stays so."""
_NOTEWORTHY_PACE = 1e-9
_FASTER_LINE = 4.0


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the run is to remember of a device after a planning, and which figures it was planned anew by."""

    steady: Steady
    backoff: Backoff
    memory_cap_bytes: int | None
    measurements: tuple[StepMeasurement, ...]
    transfers: tuple[TransferMeasurement, ...]
    retry: retrying.Retry
    because: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Device:
    problem: DeviceProblem
    recalled: Recalled
    had: Plan | None


def replan(
    job: JobProblem,
    members: Mapping[str, Member],
    profiles: Mapping[str, DeviceProfile],
    *,
    round_: int,
    deadline_s: float | None,
    draw: Draw,
) -> tuple[RoundPlan, dict[str, Recalled]]:
    """Plan a round for the members that have a profile.

    Raises:
        PlanningError: as `plan_round`, also for a member that was never surveyed.
    """
    devices = {name: _device(job, member, profiles[name]) for name, member in members.items() if name in profiles}
    made = plan_round(
        job, {name: device.problem for name, device in devices.items()}, round_=round_, deadline_s=deadline_s, draw=draw
    )
    plans, recalled = dict(made.plans), {name: device.recalled for name, device in devices.items()}
    for name, planned in made.plans.items():
        plan = _smaller(job, devices[name], planned, draw)
        plans[name], steady = _kept(job, devices[name], plan, draw, len(devices))
        recalled[name] = replace(recalled[name], steady=steady, retry=retrying.planned(recalled[name].retry))
    none = dict(made.none)
    plan_it = partial(plan_device, job, round_=round_, deadline_s=made.deadline_s, draw=draw, kinds=len(devices))
    for name, lacking in made.none.items():
        again, recalled[name] = _retried(job, members[name], profiles[name], recalled[name], lacking, plan_it)
        if again is not None:
            plans[name] = again
            del none[name]
    return replace(made, plans=plans, none=none), recalled


def _retried(
    job: JobProblem,
    member: Member,
    profile: DeviceProfile,
    recalled: Recalled,
    lacking: NoPlan,
    plan_it: Callable[[DeviceProblem], Plan | NoPlan],
) -> tuple[Plan | None, Recalled]:
    """A plan for a device that lacks time by what was measured, as if that had been stalls, if it is time to try."""
    if lacking.bound not in ("time", "link"):
        return None, recalled
    waiting = replace(recalled, retry=retrying.waited(member.retry))
    steps = retrying.as_unstalled(job.shape, member.measurements, device_rates(profile), job.task)
    once = member.plan is not None and retrying.is_single(member.measurements, steps)
    hopeless = steps == member.measurements and not member.transfers
    if hopeless or not retrying.is_due(member.retry, once=once):
        return None, waiting
    device = _device(job, member.model_copy(update={"measurements": steps, "transfers": ()}), profile)
    plan = plan_it(device.problem)
    if isinstance(plan, NoPlan):
        return None, waiting
    because = (*device.recalled.because, "its slow rounds may have been stalls: it is tried again")
    return plan, replace(device.recalled, retry=retrying.tried(member.retry), because=because)


def _device(job: JobProblem, member: Member, profile: DeviceProfile) -> _Device:
    settled = settle(member.steady, profile, member.measurements)
    good = member.standing in ("accepted", "idle")
    backoff, cap = eased(member.backoff, member.memory_cap_bytes, good=good)
    usable = _with_most_bits(settled.profile, backoff.most_bits)
    measurements, pace = at_present_pace(job.shape, settled.measurements, device_rates(usable), job.task)
    because = [*settled.changes, *_cap_change(member.memory_cap_bytes, cap, ran_out=member.backoff.fresh)]
    if abs(pace - 1) > _NOTEWORTHY_PACE:
        because.append(f"its steps take {pace:.2g} times as long as before")
    problem = DeviceProblem(
        profile=usable,
        measurements=measurements,
        transfers=_on_this_line(settled.profile, member.transfers),
        train_examples=member.survey.train_examples if member.survey else 0,
        held_out_examples=member.survey.held_out_examples if member.survey else 0,
        mean_tokens=member.survey.mean_tokens if member.survey else 0.0,
        memory_cap_bytes=cap,
        loaded_bits=_loaded_bits(member),
    )
    recalled = Recalled(
        settled.steady, backoff, cap, member.measurements, member.transfers, member.retry, tuple(because)
    )
    return _Device(problem, recalled, None if member.backoff.fresh else member.plan)


def _on_this_line(
    profile: DeviceProfile, transfers: tuple[TransferMeasurement, ...]
) -> tuple[TransferMeasurement, ...]:
    """Without those that were much faster than the line they went over, or than that of now if that one is unknown."""
    link = profile.link
    if link is None:
        return transfers

    def possible(size: int, seconds: float, bps: float) -> bool:
        return 8 * size <= _FASTER_LINE * bps * seconds

    return tuple(
        t
        for t in transfers
        if possible(t.up_bytes, t.up_s, t.uplink_bps or link.uplink_bps)
        and possible(t.down_bytes, t.down_s, t.downlink_bps or link.downlink_bps)
    )


def _loaded_bits(member: Member) -> Bits | None:
    """Of the base that its trainer holds, as far as is known: the one that it trained at last."""
    if member.plan is None:
        return None
    took = member.trained
    return took.measurement.bits if took is not None and took.out_of_memory else member.plan.bits


def _with_most_bits(profile: DeviceProfile, most: Bits | None) -> DeviceProfile:
    allowed = tuple(bits for bits in profile.supported_bits if most is None or bits <= most)
    return profile.model_copy(update={"supported_bits": allowed or profile.supported_bits})


def _cap_change(was: int | None, now: int | None, *, ran_out: bool) -> tuple[str, ...]:
    if ran_out and now is not None:
        return (f"it ran out of memory: a predicted peak may have {now / MIB:.0f} MiB",)
    if was == now:
        return ()
    if was is not None and now is None:
        return (f"a predicted peak may have more than {was / MIB:.0f} MiB again",)
    return (f"a predicted peak may have {(now or 0) / MIB:.0f} MiB, {(was or 0) / MIB:.0f} before",)


def _smaller(job: JobProblem, device: _Device, plan: Plan, draw: Draw) -> Plan:
    """`plan`, or in the place of one as large as what failed the best with fewer bits or a smaller batch, if any."""
    backoff, problem = device.recalled.backoff, device.problem
    if not as_large(backoff, plan):
        return plan
    bits = tuple(each for each in problem.profile.supported_bits if each < plan.bits)
    sizes = tuple(each for each in job.batch_sizes if each < plan.batch_size)
    tries = []
    if bits:
        fewer = problem.profile.model_copy(update={"supported_bits": bits})
        tries.append((job, replace(problem, profile=fewer)))
    if sizes:
        tries.append((replace(job, batch_sizes=sizes), problem))
    made = [plan_device(j, p, round_=plan.round, deadline_s=plan.deadline_s, draw=draw) for j, p in tries]
    found = [each for each in made if not isinstance(each, NoPlan)]
    return max(found, key=lambda each: _worth(job, each), default=plan)


# --- keeping a setting ------------------------------------------------------------------------------------------


def _kept(job: JobProblem, device: _Device, plan: Plan, draw: Draw, kinds: int = 1) -> tuple[Plan, Steady]:
    """The plan to use: `plan`, or one at the setting that the device had; and what to remember of the wish."""
    steady, had, wish = device.recalled.steady, device.had, (plan.bits, plan.batch_size)
    calm = steady.model_copy(update={"wish": None, "wished": 0})
    if had is None or wish == (had.bits, had.batch_size):
        return plan, calm
    stay = _as_before(job, device.problem, had, plan, draw, kinds)
    if stay is None or as_large(device.recalled.backoff, stay):
        return plan, calm
    ours, other = _worth(job, stay), _worth(job, plan)
    if ours < other * (1 - WORSE):
        return plan, calm
    if other <= ours * (1 + BETTER):
        return stay, calm
    wished = steady.wished + 1 if steady.wish == wish else 1
    if wished >= HOLD:
        return plan, calm
    return stay, steady.model_copy(update={"wish": wish, "wished": wished})


def _as_before(job: JobProblem, problem: DeviceProblem, had: Plan, plan: Plan, draw: Draw, kinds: int) -> Plan | None:
    """A plan at the bits and batch of `had`; None if there is none, or if they are not allowed any more."""
    if had.bits not in problem.profile.supported_bits or had.batch_size not in job.batch_sizes:
        return None
    only_bits = problem.profile.model_copy(update={"supported_bits": (had.bits,)})
    made = plan_device(
        replace(job, batch_sizes=(had.batch_size,)),
        replace(problem, profile=only_bits),
        round_=plan.round,
        deadline_s=plan.deadline_s,
        draw=draw,
        kinds=kinds,
    )
    return None if isinstance(made, NoPlan) else made


def _worth(job: JobProblem, plan: Plan) -> float:
    """What the planner maximises: examples times contribution times the fidelity of the bits, up to a constant."""
    captured = sum(
        job.curves[name][min(rank, len(job.curves[name])) - 1] for name, rank in plan.ranks.items() if job.curves[name]
    )
    return plan.examples * captured * FIDELITY[plan.bits]
