"""The figures of a device that plans are made with: the newest ones, damped.

Pure. Bad news counts at once, good news once it has held for some plannings, and noise not at all, so that neither bits
nor batch flip from round to round. Free memory is never taken to be more than what was said last: the least noise
downwards counts there, and is followed a little further than it went, so that the next one changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, fsum, log

from pydantic import Field, NonNegativeInt

from fedpipe_profiles.device import MIB, Bits, DeviceProfile
from fedpipe_profiles.plan import StepMeasurement
from fedpipe_profiles.values import MAX_SECONDS, MIN_RATE, MIN_STEP_S, Value

HOLD = 4
"""So many plannings in a row must better news have held."""
FREE = "free memory"
UPLINK, DOWNLINK, LATENCY = "uplink", "downlink", "latency"
BANDWIDTH = "memory bandwidth"
_RATES = "matmul "
_LEAST_LATENCY_S = 1e-6
_LEAST = 1e-9


@dataclass(frozen=True, slots=True)
class Rule:
    """When a figure of which more is better is taken anew; shares of the value in use.

    `drop`: less by more than this counts at once. `rise`: more by more than this counts once it has held. `reserve`:
    what is taken is less than what was said by this.
    """

    drop: float
    rise: float
    reserve: float = 0.0


_MEMORY = Rule(drop=0.0, rise=0.15, reserve=0.04)
_RATE = Rule(drop=0.15, rise=0.2)
_LINE = Rule(drop=0.25, rise=0.3)


class Steady(Value):
    """What a run remembers of a device between plannings; the empty one remembers nothing.

    `figures` are in use, `held` are the better ones heard since. `speeds` belong to the member's measurements, oldest
    first: the rate in use at the first planning that knew each; 0 where none has.
    """

    device: str = ""
    figures: dict[str, float] = Field(default_factory=dict)
    held: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    speeds: tuple[float, ...] = ()
    wish: tuple[Bits, int] | None = Field(
        default=None, description="bits and batch that would be better than those kept"
    )
    wished: NonNegativeInt = Field(default=0, description="plannings in a row with that wish")

    def heard(self, name: str) -> float | None:
        """A figure as the device last said it: the one in use, or a better one that waits. None of an unknown one."""
        waiting = self.held.get(name)
        return waiting[-1] if waiting else self.figures.get(name)

    def speeds_of(self, count: int) -> tuple[float, ...]:
        """One for each of `count` measurements: those of an older store, and those not planned with yet, have none."""
        kept = self.speeds[-count:] if count else ()
        return (*(0.0,) * (count - len(kept)), *kept)


@dataclass(frozen=True, slots=True)
class Settled:
    """A device to plan with: `changes` tells which figures in use changed, in words for people."""

    steady: Steady
    profile: DeviceProfile
    measurements: tuple[StepMeasurement, ...]
    changes: tuple[str, ...]


def settle(before: Steady, newest: DeviceProfile, measurements: tuple[StepMeasurement, ...]) -> Settled:
    """The device as plans should take it, after `newest` was heard; a new machine of the same name begins anew."""
    said = _figures(newest)
    if before.device != _device(newest):
        before = Steady(device=_device(newest), speeds=before.speeds if not before.device else ())
    figures: dict[str, float] = {}
    held: dict[str, tuple[float, ...]] = {}
    for name, value in said.items():
        figures[name], waiting = taken(before.figures.get(name), before.held.get(name, ()), value, _rule(name))
        if waiting:
            held[name] = waiting
    speed = _speed(figures)
    speeds = tuple(tag or speed for tag in before.speeds_of(len(measurements)))
    changes = tuple(
        _change(name, before.figures[name], figures[name]) for name in figures if _news(before, figures, name)
    )
    steady = before.model_copy(update={"figures": figures, "held": held, "speeds": speeds})
    scaled = tuple(slowed(m, tag / speed) for m, tag in zip(measurements, speeds, strict=True))
    return Settled(steady, _with(newest, figures), scaled, changes)


def taken(in_use: float | None, held: tuple[float, ...], said: float, rule: Rule) -> tuple[float, tuple[float, ...]]:
    """The value to use after `said`, and the better ones that wait for more of their kind."""
    if in_use is None:
        return said, ()
    if said < in_use * (1 - rule.drop):
        return said * (1 - rule.reserve), ()
    if said <= in_use * (1 + rule.rise):
        return in_use, ()
    held = (*held, said)
    if len(held) < HOLD:
        return in_use, held
    return max(in_use, min(held) * (1 - rule.reserve)), ()


def slowed(measurement: StepMeasurement, factor: float) -> StepMeasurement:
    """The same steps on a device that takes `factor` times as long for them; memory and loading stay."""
    if factor == 1.0:
        return measurement

    def scaled(seconds: float) -> float:
        return min(MAX_SECONDS, max(MIN_STEP_S, seconds * factor))

    evaluation = measurement.evaluation_example_s
    return measurement.model_copy(
        update={
            "step_s": scaled(measurement.step_s),
            "evaluation_example_s": None if evaluation is None else scaled(evaluation),
        }
    )


def _rule(name: str) -> Rule:
    if name == FREE:
        return _MEMORY
    return _LINE if name in (UPLINK, DOWNLINK, LATENCY) else _RATE


def _device(profile: DeviceProfile) -> str:
    """What stays the same while a machine does."""
    gpu = profile.accelerator
    total = profile.host.total_bytes if gpu is None else gpu.total_bytes
    return f"{profile.host.cpu}/{profile.host.threads}/{'' if gpu is None else gpu.name}/{total // MIB}"


def _figures(profile: DeviceProfile) -> dict[str, float]:
    """All that is damped, each so that more is better."""
    free = profile.host.free_bytes if profile.accelerator is None else profile.accelerator.free_bytes
    found = {FREE: float(free), BANDWIDTH: profile.bandwidth.bytes_per_s}
    found |= {f"{_RATES}{rate.dtype}": rate.flops_per_s for rate in reversed(profile.matmul)}
    link = profile.link
    if link is not None:
        found |= {UPLINK: link.uplink_bps, DOWNLINK: link.downlink_bps}
        found[LATENCY] = 1 / max(_LEAST_LATENCY_S, link.latency_s)
    return found


def _with(newest: DeviceProfile, figures: Mapping[str, float]) -> DeviceProfile:
    """The newest profile with the figures in use."""
    free = int(figures[FREE])
    update: dict[str, object] = {
        "matmul": tuple(
            rate.model_copy(update={"flops_per_s": max(MIN_RATE, figures[f"{_RATES}{rate.dtype}"])})
            for rate in newest.matmul
        ),
        "bandwidth": newest.bandwidth.model_copy(update={"bytes_per_s": max(MIN_RATE, figures[BANDWIDTH])}),
    }
    if newest.accelerator is None:
        update["host"] = newest.host.model_copy(update={"free_bytes": free})
    else:
        update["accelerator"] = newest.accelerator.model_copy(update={"free_bytes": free})
    if newest.link is not None:
        line = {"uplink_bps": figures[UPLINK], "downlink_bps": figures[DOWNLINK], "latency_s": 1 / figures[LATENCY]}
        update["link"] = newest.link.model_copy(update=line)
    return newest.model_copy(update=update)


def _speed(figures: Mapping[str, float]) -> float:
    """One figure for how fast a device computes: the geometric mean of its rates of multiplication."""
    rates = [value for name, value in figures.items() if name.startswith(_RATES)]
    return exp(fsum(log(max(MIN_RATE, rate)) for rate in rates) / len(rates))


def _news(before: Steady, figures: Mapping[str, float], name: str) -> bool:
    known = before.figures.get(name)
    return known is not None and abs(figures[name] - known) > _LEAST * known


def _change(name: str, was: float, now: float) -> str:
    if name == FREE:
        return f"free memory {was / MIB:.0f} -> {now / MIB:.0f} MiB"
    if name in (UPLINK, DOWNLINK):
        return f"{name} {was / 1e6:.3g} -> {now / 1e6:.3g} Mbit/s"
    if name == LATENCY:
        return f"latency {1e3 / was:.3g} -> {1e3 / now:.3g} ms"
    unit = "GB/s" if name == BANDWIDTH else "GFLOP/s"
    return f"{name} {was / 1e9:.3g} -> {now / 1e9:.3g} {unit}"
