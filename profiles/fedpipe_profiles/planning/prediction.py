"""What is expected of a plan whose ranks are chosen: exact where the search works with bounds that are linear."""

from collections.abc import Mapping
from dataclasses import fields

from fedpipe_profiles.costs.memory import predict_memory
from fedpipe_profiles.costs.step import StepConfig, StepSetting, adapter_paths, adapter_size
from fedpipe_profiles.costs.work import PATHS
from fedpipe_profiles.plan import Prediction
from fedpipe_profiles.planning.option import Option
from fedpipe_profiles.planning.problem import JobProblem


def predicted(job: JobProblem, option: Option, ranks: Mapping[str, int], steps: int, time_s: float) -> Prediction:
    """What is expected of so many steps in so much usable time; weights that are not named are not trained.

    The search takes the largest row for its peak, and counts two adapters on every weight. Of chosen ranks both are
    known, so the prediction is never above what the search took it for.
    """
    every = {name: ranks.get(name, 0) for name in job.curves}
    size = adapter_size(job.shape, every, job.global_rank)
    parameters = size.trainable_parameters - job.shape.head_parameters
    same = {each.name: getattr(option.setting, each.name) for each in fields(StepSetting)}
    step = StepConfig(**same, ranks=every, global_rank=job.global_rank)
    spared_s = option.step_path_s * (PATHS * len(job.shape.weights) - adapter_paths(every, job.global_rank))
    return Prediction(
        peak_bytes=predict_memory(job.shape, step, option.coefficients).total_bytes,
        round_s=option.round_s(steps, parameters, time_s) - steps * spared_s,
        compute_s=option.compute_s(steps, parameters, time_s) - steps * spared_s,
        step_s=option.step_s + option.step_per_parameter_s * parameters - spared_s,
        up_s=option.up_s + option.up_per_parameter_s * parameters,
        up_bytes=option.up_bytes + 4 * parameters,
        down_bytes=job.down_bytes,
    )
