"""What would one more GiB, 10 more Mbit/s or twice the speed buy: asked of the planner again, never extrapolated.

A device is asked again at the fleet's deadline; the fleet with a deadline chosen anew, where the first one was chosen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedpipe_coordinator.whatif.forecast import Asked, DataGuess, Forecast, ask_one, deadline_of, plans_at, progress_of
from fedpipe_profiles.costs.transfers import UNMEASURED_DOWNLINK_BPS, UNMEASURED_LATENCY_S, UNMEASURED_UPLINK_BPS
from fedpipe_profiles.device import DeviceProfile, Link
from fedpipe_profiles.plan import Plan
from fedpipe_profiles.planning.problem import JobProblem

GIB = 1 << 30
MORE_BPS = 10e6
_WORTH_TELLING = 0.005
Change = Callable[[DeviceProfile], DeviceProfile]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a device, or the fleet, reaches: progress of a round, its seconds, and the bits of the base."""

    progress: float
    round_s: float
    bits: int | None = None

    @property
    def per_hour(self) -> float:
        """Progress in an hour of such rounds, for a fleet."""
        return 3600 * self.progress / self.round_s


@dataclass(frozen=True, slots=True)
class WhatIf:
    """One change and what it buys. `device` is None for the whole fleet, of which `round_s` is the deadline."""

    change: str
    device: str | None
    before: Outcome | None
    after: Outcome | None

    @property
    def worth_telling(self) -> bool:
        """Whether anything moves by half a percent or more."""
        if self.before is None or self.after is None:
            return self.before is not self.after
        return any(
            abs(new - old) > _WORTH_TELLING * max(old, new)
            for old, new in (
                (self.before.progress, self.after.progress),
                (self.before.round_s, self.after.round_s),
            )
        )


def more_memory(profile: DeviceProfile) -> DeviceProfile:
    """1 GiB more, free and lent; of both figures where the accelerator shares the host's memory."""
    gpu, host = profile.accelerator, profile.host
    larger = {"total_bytes": host.total_bytes + GIB, "free_bytes": host.free_bytes + GIB}
    changes: dict[str, object] = {}
    if gpu is None or gpu.unified_memory:
        changes["host"] = host.model_copy(update=larger)
    if gpu is not None:
        own = {"total_bytes": gpu.total_bytes + GIB, "free_bytes": gpu.free_bytes + GIB}
        changes["accelerator"] = gpu.model_copy(update=own)
    lent = profile.limits.memory_bytes
    if lent is not None:
        changes["limits"] = profile.limits.model_copy(update={"memory_bytes": lent + GIB})
    return profile.model_copy(update=changes)


def faster_link(profile: DeviceProfile) -> DeviceProfile:
    """10 Mbit/s more in both directions, and as much more lent."""
    link = profile.link or Link(
        uplink_bps=UNMEASURED_UPLINK_BPS,
        downlink_bps=UNMEASURED_DOWNLINK_BPS,
        latency_s=UNMEASURED_LATENCY_S,
        measured_bytes=0,
        uplink_source="theoretical",
        downlink_source="theoretical",
    )
    faster = {"uplink_bps": link.uplink_bps + MORE_BPS, "downlink_bps": link.downlink_bps + MORE_BPS}
    lent = profile.limits.uplink_bps
    limits = profile.limits if lent is None else profile.limits.model_copy(update={"uplink_bps": lent + MORE_BPS})
    return profile.model_copy(update={"link": link.model_copy(update=faster), "limits": limits})


def twice_as_fast(profile: DeviceProfile) -> DeviceProfile:
    """Twice the products, the bytes, the weights made plain and the parameters changed per second."""
    matmul = tuple(rate.model_copy(update={"flops_per_s": 2 * rate.flops_per_s}) for rate in profile.matmul)
    bandwidth = profile.bandwidth.model_copy(update={"bytes_per_s": 2 * profile.bandwidth.bytes_per_s})
    plain = tuple(rate.model_copy(update={"values_per_s": 2 * rate.values_per_s}) for rate in profile.dequantization)
    step = profile.optimizer
    if step is not None:
        step = step.model_copy(update={"parameters_per_s": 2 * step.parameters_per_s})
    changes = {"matmul": matmul, "bandwidth": bandwidth, "dequantization": plain, "optimizer": step}
    return profile.model_copy(update=changes)


CHANGES: dict[str, Change] = {"+1 GiB": more_memory, "+10 Mbit/s": faster_link, "2x compute": twice_as_fast}


def what_ifs(job: JobProblem, fleet: Sequence[Asked], forecast: Forecast, data: DataGuess) -> tuple[WhatIf, ...]:
    """Every change, first for the fleet, then for each device where it is worth telling; planned as the forecast is."""
    deadline_s = forecast.deadline_s
    before = Outcome(forecast.progress, deadline_s)
    alone = {device.member.name: _outcome(device.plan, device.progress) for device in forecast.devices}
    found: list[WhatIf] = []
    for name, change in CHANGES.items():
        changed = [ask_one(job, replace(asked.member, profile=change(asked.member.profile)), data) for asked in fleet]
        after = _devices(job, changed, deadline_s)
        chosen_s = deadline_of(job, changed, None)[0] if forecast.chosen else deadline_s
        fleets = after if chosen_s == deadline_s else _devices(job, changed, chosen_s)
        found.append(WhatIf(name, None, before, _fleet(changed, fleets, chosen_s)))
        each = (WhatIf(name, device, alone[device], outcome) for device, outcome in after.items())
        found.extend(told for told in each if told.worth_telling)
    return tuple(found)


def _fleet(fleet: Sequence[Asked], alone: Mapping[str, Outcome | None], deadline_s: float) -> Outcome:
    """All devices together, of what each reaches at a deadline."""
    total = sum(asked.weight for asked in fleet)
    each = ((asked.weight, alone[asked.member.name]) for asked in fleet)
    return Outcome(sum(weight * done.progress for weight, done in each if done) / total, deadline_s)


def _devices(job: JobProblem, fleet: Sequence[Asked], deadline_s: float) -> dict[str, Outcome | None]:
    plans = plans_at(job, fleet, deadline_s)
    return {
        name: _outcome(plan if isinstance(plan, Plan) else None, progress_of(job, plan, asked.prepared.wanted))
        for asked in fleet
        for name, plan in ((asked.member.name, plans[asked.member.name]),)
    }


def _outcome(plan: Plan | None, progress: float) -> Outcome | None:
    return None if plan is None else Outcome(progress, plan.predicted.round_s, plan.bits)
