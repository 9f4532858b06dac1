"""What memory a plan takes, term by term, what the smallest plan needs, and which catalogued devices have that much."""

from collections.abc import Mapping

from fedpipe_profiles.catalog.device_catalogue import catalogue_names, catalogued_device
from fedpipe_profiles.costs.memory import MemoryBreakdown, context_bytes, fit_memory, predict_memory, with_margin
from fedpipe_profiles.costs.step import StepConfig, device_kind
from fedpipe_profiles.device import Bits, DeviceProfile
from fedpipe_profiles.plan import Plan
from fedpipe_profiles.planning.problem import JobProblem


def breakdown(job: JobProblem, profile: DeviceProfile, plan: Plan) -> MemoryBreakdown:
    """Where the memory of a plan goes."""
    ranks = dict.fromkeys(job.curves, 0) | plan.ranks
    config = _config(job, profile, plan.bits, plan.batch_size, ranks, checkpointing=plan.gradient_checkpointing)
    return _predict(job, profile, config)


def _config(
    job: JobProblem, profile: DeviceProfile, bits: Bits, batch: int, ranks: Mapping[str, int], *, checkpointing: bool
) -> StepConfig:
    return StepConfig(
        bits=bits,
        batch_size=batch,
        sequence_length=job.sequence_length,
        gradient_checkpointing=checkpointing,
        task=job.task,
        num_labels=job.num_labels,
        kind=device_kind(profile),
        ranks=ranks,
        global_rank=job.global_rank,
    )


def _predict(job: JobProblem, profile: DeviceProfile, config: StepConfig) -> MemoryBreakdown:
    fitted = fit_memory(job.shape, (), kind=device_kind(profile), task=job.task, num_labels=job.num_labels)
    return predict_memory(job.shape, config, fitted.coefficients(config.bits))


def need_bytes(job: JobProblem, profile: DeviceProfile, bits: Bits) -> int:
    """What a process of the device must be lent for the smallest plan at these bits, margin and context included."""
    widths = {weight.name: weight.d_in + weight.d_out for weight in job.shape.weights}
    first = min(job.curves, key=lambda name: widths[name])
    ranks = dict.fromkeys(job.curves, 0) | {first: min(job.rank_ladder)}
    config = _config(job, profile, bits, min(job.batch_sizes), ranks, checkpointing=True)
    return round(with_margin(context_bytes(profile, ()), _predict(job, profile, config).total_bytes))


def smallest_need(job: JobProblem, profile: DeviceProfile) -> tuple[Bits, int]:
    """The bits at which the device needs least, and how many bytes that is."""
    needs = {bits: need_bytes(job, profile, bits) for bits in profile.supported_bits}
    bits = min(needs, key=lambda each: needs[each])
    return bits, needs[bits]


def what_would_fit(job: JobProblem) -> dict[str, tuple[Bits, ...]]:
    """The devices of the catalogue that hold the base, each with the bits at which they do."""
    found = {}
    for name in catalogue_names():
        profile = catalogued_device(name).profile(name)
        lent = profile.memory_limit_bytes()
        bits = tuple(each for each in profile.supported_bits if need_bytes(job, profile, each) <= lent)
        if bits:
            found[name] = bits
    return found
