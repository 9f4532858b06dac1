"""What a device could do: every allowed bits, batch size and checkpointing, with its linear costs.

Owns the step from the memory and time models to the numbers that the search compares. Chooses nothing.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fedpipe_profiles.costs.memory import (
    SAFETY_MARGIN,
    MemoryCoefficients,
    MemoryModel,
    MemoryRow,
    context_bytes,
    fit_memory,
    memory_rows,
)
from fedpipe_profiles.costs.step import AdapterSize, StepSetting, device_kind
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
from fedpipe_profiles.planning.evaluating import TIME_SLACK
from fedpipe_profiles.planning.option import Budget, Option
from fedpipe_profiles.planning.problem import DeviceProblem, JobProblem
from fedpipe_profiles.planning.table import OptionTable, option_table

FIDELITY: dict[Bits, float] = {32: 1.0, 16: 1.0, 8: 0.999, 4: 0.98}
"""How much an example trained on a compressed base counts. Our choice, small on purpose: among plans that are otherwise
equal, the frozen weights are compressed no more than the device needs."""


@dataclass(frozen=True)
class Prepared:
    """A device's problem, ready to be solved for any deadline. `options` are in order of seconds per example."""

    options: tuple[Option, ...]
    wanted: int
    context_bytes: int
    limit_bytes: float
    capped: bool
    up_bytes: float
    least: int = 0
    """Examples that the device is to train wherever that is possible, whatever they cost in ranks."""

    def budget(self, deadline_s: float) -> Budget:
        """What a round of this deadline allows."""
        memory = (self.limit_bytes - self.context_bytes) / (1 + SAFETY_MARGIN)
        return Budget(memory, deadline_s * (1 - TIME_SLACK), self.up_bytes)

    @cached_property
    def table(self) -> OptionTable:
        """The options as arrays."""
        return option_table(self.options)

    def smallest_round_s(self, first: tuple[float, float], examples: int = 1) -> float | None:
        """The least usable time of a round that trains so many examples with `first` parameters and ranks.

        None if no option fits memory and link.
        """
        parameters, ranks = first
        fits = self.table.fits(self.budget(0.0), np.array([parameters]), np.array([ranks]))[:, 0]
        if not fits.any():
            return None
        steps = np.ceil(max(1, examples) / self.table.batch)
        return float(self.table.needed_s(steps, parameters)[fits].min())


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
    options.sort(key=lambda o: (o.step_s / o.setting.batch_size, o.memory(0, 0)))
    up_bytes = math.inf if device.up_budget_bytes is None else float(device.up_budget_bytes)
    least = math.ceil(job.least_share * wanted)
    return Prepared(tuple(options), wanted, context, min(lent, capped), capped < lent, up_bytes, least)


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
    loading_s = load_s(shape, pace) if setting.bits != device.loaded_bits else 0.0
    evaluate_s = evaluation_example_s(shape, usual, frozen, rates, pace)
    return Option(
        setting=setting,
        fidelity=FIDELITY[setting.bits],
        memory_rows=_rows(job, device, setting, space),
        coefficients=space,
        step_s=step,
        step_per_parameter_s=(whole - step) / job.adapter_parameters,
        load_s=loading_s,
        prepare_s=pace.other_s + loading_s,
        down_s=transfers.download_s(job.down_bytes) if job.needs_download else 0.0,
        up_s=transfers.upload_s(4 * head),
        up_per_parameter_s=4 * transfers.up_byte_s,
        up_bytes=4 * head,
        step_path_s=(step - step_s(shape, usual, replace(frozen, paths=0.0), rates, pace))
        / (PATHS * len(shape.weights)),
        evaluate_s=held_out * evaluate_s,
        evaluate_batch_s=min(held_out, setting.batch_size) * evaluate_s,
    )


def _rows(
    job: JobProblem, device: DeviceProblem, setting: StepSetting, space: MemoryCoefficients
) -> tuple[MemoryRow, ...]:
    """Rows of a device that never measured a step are those of all such devices."""
    if device.measurements:
        return memory_rows(job.shape, setting, job.adapter_parameters, space)
    key = (setting, space)
    if key not in job.unmeasured_rows:
        job.unmeasured_rows[key] = memory_rows(job.shape, setting, job.adapter_parameters, space)
    return job.unmeasured_rows[key]
