"""How far the memory and time models were off in a round: (predicted - measured) / measured. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedpipe_profiles.plan import Plan
from fedpipe_wire.agent_messages import Trained


def expected_round_s(plan: Plan, trained: Trained) -> float | None:
    """Seconds that the plan was predicted to take, without the steps for which its time did not last.

    None where an older planner did not say what a step takes, and steps are missing.
    """
    missing = max(0, math.ceil(plan.examples / plan.batch_size) - trained.steps)
    if missing and not plan.predicted.step_s:
        return None
    return max(0.0, plan.predicted.round_s - missing * plan.predicted.step_s)


def time_error(plan: Plan, trained: Trained | None, round_s: float | None) -> float | None:
    """Relative error of a round's time, for the steps that were taken; None where nothing was measured.

    Measuring the contribution again is outside of what a plan predicts, and so is taken off what was measured.
    """
    if trained is None or not round_s or trained.score_s >= round_s:
        return None
    expected_s = expected_round_s(plan, trained)
    return None if expected_s is None else _relative(expected_s, round_s - trained.score_s)


def memory_error(plan: Plan, trained: Trained | None) -> float | None:
    """Relative error of a round's peak; None where nothing was measured."""
    return None if trained is None else _relative(plan.predicted.peak_bytes, trained.measurement.peak_bytes)


def mean_error(agents: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The mean of the absolute errors under `key` in agents' records; None where none has any."""
    errors = [abs(agent[key]) for agent in agents if agent.get(key) is not None]
    return round(sum(errors) / len(errors), 4) if errors else None


def _relative(predicted: float, measured: float) -> float:
    return round((predicted - measured) / measured, 4)
