"""What a device could do: every allowed bits, batch size and checkpointing, with its linear costs.

Owns the step from the memory and time models to the numbers that the search compares. Chooses nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fedpipe_profiles.costs.memory import (
    SAFETY_MARGIN,
    SIDE_BYTES,
    TRAINABLE_BYTES,
    MemoryModel,
    context_bytes,
    fit_memory,
    rank_bytes,
    step_memory,
)
from fedpipe_profiles.costs.step import AdapterSize, StepSetting, adapter_paths, adapter_size, device_kind
from fedpipe_profiles.costs.timing import (
    DeviceRates,
    TimingModel,
    device_rates,
    evaluation_example_s,
    fit_timing,
    load_s,
    step_s,
)
from fedpipe_profiles.costs.transfers import TransferModel, fit_transfers
from fedpipe_profiles.costs.work import PATHS
from fedpipe_profiles.device import Bits
from fedpipe_profiles.plan import Prediction
from fedpipe_profiles.planning.problem import DeviceProblem, JobProblem

TIME_SLACK = 0.1
"""Share of a deadline that no plan uses, for what the time model does not know."""

FIDELITY: dict[Bits, float] = {32: 1.0, 16: 1.0, 8: 0.999, 4: 0.98}
"""How much an example trained on a compressed base counts. Our choice, small on purpose: among plans that are otherwise
equal, the frozen weights are compressed no more than the device needs."""

Resource = Literal["memory", "time", "link"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to train, with costs that are linear in the trained adapter parameters and ranks.

    `memory_bytes` and `step_s` hold with every adapter on the side path; the `per_` terms are added for each adapter
    parameter, or rank, that is trained instead.
    """

    setting: StepSetting
    fidelity: float
    memory_bytes: float
    memory_per_parameter: float
    memory_per_rank: float
    step_s: float
    step_per_parameter_s: float
    prepare_s: float
    down_s: float
    up_s: float
    up_per_parameter_s: float
    up_bytes: int
    step_path_s: float = 0.0
    """Seconds of a step that each adapter on a weight takes; `step_s` has two on every weight."""

    @property
    def fixed_s(self) -> float:
        """Seconds of a round beside its steps and its adapters' upload."""
        return self.down_s + self.prepare_s + self.up_s

    def memory(self, parameters: float, ranks: float) -> float:
        """Predicted peak in bytes, runtime context not counted."""
        return self.memory_bytes + self.memory_per_parameter * parameters + self.memory_per_rank * ranks

    def compute_s(self, steps: float, parameters: float) -> float:
        """Seconds of loading, evaluating and training."""
        return self.prepare_s + steps * (self.step_s + self.step_per_parameter_s * parameters)

    def round_s(self, steps: float, parameters: float) -> float:
        """Seconds from receipt of the task to the update's acknowledgement."""
        transfers = self.down_s + self.up_s + self.up_per_parameter_s * parameters
        return transfers + self.compute_s(steps, parameters)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a plan may use: bytes of predicted peak, seconds, and bytes of an update."""

    memory_bytes: float
    time_s: float
    up_bytes: float = math.inf


@dataclass(frozen=True, slots=True)
class Prepared:
    """A device's problem, ready to be solved for any deadline. `options` are in order of seconds per example."""

    options: tuple[Option, ...]
    wanted: int
    context_bytes: int
    limit_bytes: float
    capped: bool
    up_bytes: float

    def budget(self, deadline_s: float) -> Budget:
        """What a round of this deadline allows."""
        memory = (self.limit_bytes - self.context_bytes) / (1 + SAFETY_MARGIN)
        return Budget(memory, deadline_s * (1 - TIME_SLACK), self.up_bytes)

    def smallest_round_s(self, first: tuple[float, float]) -> float | None:
        """Seconds of the shortest round that fits the memory, with `first` parameters and ranks; None if none does."""
        room = self.budget(math.inf).memory_bytes
        fitting = [option for option in self.options if option.memory(*first) <= room]
        return min((option.round_s(1, first[0]) for option in fitting), default=None)


def prepare(job: JobProblem, device: DeviceProblem) -> Prepared:
    """Fit the device's models and list its options."""
    profile = device.profile
    context = context_bytes(profile, device.measurements)
    lent = float(profile.memory_limit_bytes())
    cap = device.memory_cap_bytes
    capped = math.inf if cap is None else context + (cap - 1) * (1 + SAFETY_MARGIN)
    wanted = min(job.examples_per_round, device.train_examples)
    rates = device_rates(profile)
    memory = fit_memory(job.shape, device.measurements, kind=rates.kind, task=job.task, num_labels=job.num_labels)
    timing = fit_timing(job.shape, device.measurements, rates, task=job.task)
    transfers = fit_transfers(profile, device.transfers)
    batches = sorted({b for b in job.batch_sizes if b <= wanted}) or [min(job.batch_sizes)]
    options = [
        _option(job, device, setting, memory, timing, rates, transfers)
        for bits in sorted(set(profile.supported_bits), reverse=True)
        for batch in batches
        for checkpointing in (False, True)
        for setting in (_setting(job, device, bits, batch, checkpointing=checkpointing),)
    ]
    options.sort(key=lambda o: (o.step_s / o.setting.batch_size, o.memory_bytes))
    up_bytes = math.inf if device.up_budget_bytes is None else float(device.up_budget_bytes)
    return Prepared(tuple(options), wanted, context, min(lent, capped), capped < lent, up_bytes)


def _setting(job: JobProblem, device: DeviceProblem, bits: Bits, batch: int, *, checkpointing: bool) -> StepSetting:
    return StepSetting(
        bits=bits,
        batch_size=batch,
        sequence_length=job.sequence_length,
        gradient_checkpointing=checkpointing,
        task=job.task,
        num_labels=job.num_labels,
        kind=device_kind(device.profile),
    )


def _option(
    job: JobProblem,
    device: DeviceProblem,
    setting: StepSetting,
    memory: MemoryModel,
    timing: TimingModel,
    rates: DeviceRates,
    transfers: TransferModel,
) -> Option:
    shape, head = job.shape, job.shape.head_parameters
    space, pace = memory.coefficients(setting.bits), timing.coefficients(setting.bits)
    usual = replace(setting, sequence_length=device.mean_tokens)
    frozen = AdapterSize(head, job.adapter_parameters, 0)
    trained = AdapterSize(head + job.adapter_parameters, 0, 0)
    step = step_s(shape, usual, frozen, rates, pace)
    whole = step_s(shape, usual, trained, rates, pace)
    held_out = min(job.evaluation_examples, device.held_out_examples)
    prepare_s = pace.other_s + held_out * evaluation_example_s(shape, usual, frozen, rates, pace)
    if setting.bits != device.loaded_bits:
        prepare_s += load_s(shape, pace)
    return Option(
        setting=setting,
        fidelity=FIDELITY[setting.bits],
        memory_bytes=step_memory(shape, setting, frozen, space).total_bytes + 1,
        memory_per_parameter=TRAINABLE_BYTES - SIDE_BYTES,
        memory_per_rank=space.activation_scale * rank_bytes(shape, setting),
        step_s=step,
        step_per_parameter_s=(whole - step) / job.adapter_parameters,
        prepare_s=prepare_s,
        down_s=transfers.download_s(job.down_bytes) if job.needs_download else 0.0,
        up_s=transfers.upload_s(4 * head),
        up_per_parameter_s=4 * transfers.up_byte_s,
        up_bytes=4 * head,
        step_path_s=(step - step_s(shape, usual, replace(frozen, paths=0.0), rates, pace))
        / (PATHS * len(shape.weights)),
    )


def predicted(job: JobProblem, option: Option, ranks: Mapping[str, int], steps: int) -> Prediction:
    """What is expected of so many steps of an option with these ranks.

    The search counts two adapters on every weight, which keeps it linear. Of a chosen plan their number is known, so
    its time is never more than the search took it for.
    """
    size = adapter_size(job.shape, {name: ranks.get(name, 0) for name in job.curves}, job.global_rank)
    parameters = size.trainable_parameters - job.shape.head_parameters
    paths = adapter_paths({name: ranks.get(name, 0) for name in job.curves}, job.global_rank)
    spared_s = option.step_path_s * (PATHS * len(job.shape.weights) - paths)
    return Prediction(
        peak_bytes=round(option.memory(parameters, size.rank_sum)),
        round_s=option.round_s(steps, parameters) - steps * spared_s,
        compute_s=option.compute_s(steps, parameters) - steps * spared_s,
        step_s=option.step_s + option.step_per_parameter_s * parameters - spared_s,
        up_s=option.up_s + option.up_per_parameter_s * parameters,
        up_bytes=option.up_bytes + 4 * parameters,
        down_bytes=job.down_bytes,
    )


def relaxed(options: tuple[Option, ...], budget: Budget, resource: Resource) -> tuple[tuple[Option, ...], Budget]:
    """The same problem as if one resource were endless: its memory, its speed, or its link."""
    match resource:
        case "memory":
            return options, replace(budget, memory_bytes=math.inf)
        case "time":
            return tuple(replace(o, step_s=0.0, step_per_parameter_s=0.0, prepare_s=0.0) for o in options), budget
        case "link":
            free = tuple(replace(o, down_s=0.0, up_s=0.0, up_per_parameter_s=0.0) for o in options)
            return free, replace(budget, up_bytes=math.inf)
