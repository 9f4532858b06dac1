"""What a round of a fleet would be: what each device gets and why, the deadline, and what the round moves.

Frozen values and pure functions. The plans are the planner's own; nothing here decides what a device does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedpipe_coordinator.whatif.devices import FleetMember
from fedpipe_coordinator.whatif.needs import breakdown, smallest_need
from fedpipe_profiles.costs.memory import (
    MemoryBreakdown,
    context_bytes,
    with_margin,
)
from fedpipe_profiles.costs.timing import DEFAULT_TIMING, load_s
from fedpipe_profiles.device import MIB, DeviceProfile
from fedpipe_profiles.plain_text import plain
from fedpipe_profiles.plan import Bound, NoPlan, Plan
from fedpipe_profiles.planning.deadline import CurvePoint, Member, choose_deadline
from fedpipe_profiles.planning.options import FIDELITY, Prepared, prepare
from fedpipe_profiles.planning.planner import QUICK, plan_round
from fedpipe_profiles.planning.problem import DeviceProblem, JobProblem


@dataclass(frozen=True, slots=True)
class DataGuess:
    """What is thought of every device's data: examples to train on and held out, and padded tokens per example."""

    examples: int
    held_out: int
    tokens: float


@dataclass(frozen=True, slots=True)
class Asked:
    """A device of the fleet with its problem, as the planner takes it, and prepared for any deadline."""

    member: FleetMember
    problem: DeviceProblem
    prepared: Prepared

    @property
    def weight(self) -> float:
        """Its weight in the fleet's progress: the examples that a round can have of all that are like it."""
        return float(self.member.count * self.prepared.wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceForecast:
    """What one device would do in a round. `plan` is None for one that can carry nothing; `reason` then says why.

    `progress` is the share of the best possible round that it does, `needed_bytes` what its process must be lent,
    margin and context included; for one without a plan, what the smallest plan needs.
    """

    member: FleetMember
    plan: Plan | None
    bound: Bound
    reason: str
    lent_bytes: int
    needed_bytes: int
    context_bytes: int
    memory: MemoryBreakdown | None
    wanted: int
    progress: float

    @property
    def under_training(self) -> float:
        """The share of the wanted examples that is not trained."""
        return 1.0 - (self.plan.examples / self.wanted if self.plan else 0.0)

    @property
    def transfers_s(self) -> tuple[float, float]:
        """Seconds of the download and of the upload; both 0 without a plan."""
        if self.plan is None:
            return 0.0, 0.0
        predicted = self.plan.predicted
        up_s = predicted.up_s or 0.0
        return max(0.0, predicted.round_s - predicted.compute_s - up_s), up_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A round of the whole fleet; `curve` is what the deadline was chosen from."""

    deadline_s: float
    chosen: bool
    devices: tuple[DeviceForecast, ...]
    progress: float
    curve: tuple[CurvePoint, ...]

    @property
    def progress_per_hour(self) -> float:
        """Best possible rounds' worth of progress in an hour of such rounds."""
        return 3600 * self.progress / self.deadline_s

    @property
    def up_bytes(self) -> int:
        """Bytes that all devices send in a round."""
        return sum(d.member.count * d.plan.predicted.up_bytes for d in self.devices if d.plan)

    @property
    def down_bytes(self) -> int:
        """Bytes that all devices receive in a round."""
        return sum(d.member.count * d.plan.predicted.down_bytes for d in self.devices if d.plan)


def ask(job: JobProblem, members: Sequence[FleetMember], data: DataGuess) -> tuple[Asked, ...]:
    """Pose every device's problem."""
    return tuple(ask_one(job, member, data) for member in members)


def ask_one(job: JobProblem, member: FleetMember, data: DataGuess) -> Asked:
    """Pose one device's problem."""
    problem = DeviceProblem(
        profile=member.profile,
        measurements=(),
        train_examples=data.examples,
        held_out_examples=data.held_out,
        mean_tokens=data.tokens,
    )
    return Asked(member, problem, prepare(job, problem))


def deadline_of(
    job: JobProblem, fleet: Sequence[Asked], given_s: float | None
) -> tuple[float, float, tuple[CurvePoint, ...]]:
    """The deadline, given or chosen; the fleet's progress at it, as the planner's choice sees it; the curve."""
    if given_s is not None:
        plans = plans_at(job, fleet, given_s)
        total = sum(asked.weight for asked in fleet)
        found = (asked.weight * progress_of(job, plans[asked.member.name], asked.prepared.wanted) for asked in fleet)
        reached = sum(found) / total
        missed = {name: _missed(plans[name], asked.prepared.wanted) for asked in fleet for name in (asked.member.name,)}
        return given_s, reached, (CurvePoint(given_s, reached, missed),)
    chosen, curve = choose_deadline(job.increments, [_alike(asked) for asked in fleet])
    return chosen, next((p.progress for p in curve if p.deadline_s == chosen), 0.0), curve


def _missed(told: Plan | NoPlan, wanted: int) -> float:
    """The under-training rate: the share of the wanted examples that a device does not train."""
    return 1.0 - told.examples / wanted if isinstance(told, Plan) else 1.0


def _alike(asked: Asked) -> Member:
    """All devices that are like this one."""
    return Member(asked.prepared, (asked.member.name,) * asked.member.count)


def plans_at(job: JobProblem, fleet: Sequence[Asked], deadline_s: float) -> dict[str, Plan | NoPlan]:
    """What every device would do at a deadline, devices that are alike once.

    Raises:
        PlanningError: if the deadline is not positive.
    """
    devices = {asked.member.name: asked.problem for asked in fleet}
    known = {asked.member.name: asked.prepared for asked in fleet}
    told = plan_round(
        job, devices, round_=1, deadline_s=deadline_s, draw=_first_components, prepared=known, within=QUICK
    )
    return told.plans | told.none


def progress_of(job: JobProblem, plan: Plan | NoPlan, wanted: int) -> float:
    """The share of the best possible round that a plan does."""
    if isinstance(plan, NoPlan):
        return 0.0
    return plan.examples / wanted * captured(job, plan.ranks) * FIDELITY[plan.bits]


def foresee(job: JobProblem, fleet: Sequence[Asked], given_s: float | None) -> Forecast:
    """Plan a round of the fleet, devices that are alike once.

    Raises:
        PlanningError: if the deadline is not positive.
    """
    deadline_s, _, curve = deadline_of(job, fleet, given_s)
    plans = plans_at(job, fleet, deadline_s)
    devices = tuple(_device(job, asked, plans[asked.member.name]) for asked in fleet)
    total = sum(asked.weight for asked in fleet)
    reached = sum(asked.weight * device.progress for asked, device in zip(fleet, devices, strict=True))
    return Forecast(
        deadline_s=deadline_s,
        chosen=given_s is None,
        devices=devices,
        progress=reached / total,
        curve=curve,
    )


def _first_components(agent: str, weight: str, of: int, rank: int) -> tuple[int, ...]:
    """Which components are trained is drawn in every round; how many is what a forecast is about."""
    del agent, weight, of
    return tuple(range(rank))


def _device(job: JobProblem, asked: Asked, told: Plan | NoPlan) -> DeviceForecast:
    profile, wanted = asked.member.profile, asked.prepared.wanted
    context = context_bytes(profile, ())
    lent = profile.memory_limit_bytes()
    if isinstance(told, NoPlan):
        _, needed = smallest_need(job, profile)
        reason = told.reason if lent else _no_memory(profile)
        if told.bound == "time" and "loading" not in reason:
            reason = f"{reason}; loading the base takes {load_s(job.shape, DEFAULT_TIMING):.1f} s of it"
        return DeviceForecast(
            member=asked.member,
            plan=None,
            bound=told.bound,
            reason=reason,
            lent_bytes=lent,
            needed_bytes=needed,
            context_bytes=context,
            memory=None,
            wanted=wanted,
            progress=0.0,
        )
    return DeviceForecast(
        member=asked.member,
        plan=told,
        bound=told.bound,
        reason=told.reason,
        lent_bytes=lent,
        needed_bytes=round(with_margin(context, told.predicted.peak_bytes)),
        context_bytes=context,
        memory=breakdown(job, profile, told),
        wanted=wanted,
        progress=progress_of(job, told, wanted),
    )


def _no_memory(profile: DeviceProfile) -> str:
    gpu = profile.accelerator
    name, total = ("host", profile.host.total_bytes) if gpu is None else (plain(gpu.name, 60), gpu.total_bytes)
    return (
        f"reports no free memory: 0 of {total / MIB:.0f} MiB of {name} are free; end what fills it, and measure the "
        "device again with `fedpipe-agent probe --format json`"
    )


def captured(job: JobProblem, ranks: Mapping[str, int]) -> float:
    """Share of the total contribution that these ranks hold."""
    items = job.increments
    reached = dict.fromkeys(items.names, 0.0)
    total = 0.0
    for index, added, gain in zip(items.weight, items.ranks, items.gains, strict=True):
        name = items.names[index]
        reached[name] += added
        if reached[name] <= ranks.get(name, 0):
            total += float(gain)
    return total
