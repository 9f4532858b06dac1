"""The answer of a what-if as plain data, documented in docs/reference/plan.md: what `--format json` prints.

The table and the plot are made from the same data, so that all three say the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fedpipe_coordinator.whatif.changes import Outcome, WhatIf
from fedpipe_coordinator.whatif.forecast import DeviceForecast, Forecast
from fedpipe_profiles.costs.memory import SAFETY_MARGIN
from fedpipe_profiles.device import Bits
from fedpipe_profiles.plan import Plan
from fedpipe_profiles.planning.problem import JobProblem

SCHEMA_VERSION = 1


def device_data(device: DeviceForecast) -> dict[str, Any]:
    """One device of the fleet."""
    member = device.member
    data: dict[str, Any] = {
        "device": member.name,
        "title": member.title,
        "origin": member.origin,
        "count": member.count,
        "fits": device.plan is not None,
        "lent_bytes": device.lent_bytes,
        "needed_bytes": device.needed_bytes,
        "wanted_examples": device.wanted,
        "under_training": round(device.under_training, 6),
        "progress": round(device.progress, 6),
        "bound": device.bound,
        "reason": device.reason,
    }
    return data if device.plan is None else data | _plan_data(device, device.plan)


def _plan_data(device: DeviceForecast, plan: Plan) -> dict[str, Any]:
    predicted, ranks, link = plan.predicted, plan.ranks, device.member.profile.link
    down_s, up_s = device.transfers_s
    terms = {} if device.memory is None else asdict(device.memory)
    phase = terms.pop("phase", None)
    terms.pop("layer", None)
    return {
        "bits": plan.bits,
        "batch_size": plan.batch_size,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "examples": plan.examples,
        "ranks": ranks,
        "weights": len(ranks),
        "least_rank": min(ranks.values()),
        "greatest_rank": max(ranks.values()),
        "predicted_peak_bytes": predicted.peak_bytes,
        "memory": terms
        | {
            "runtime_context": device.context_bytes,
            "safety_margin": round(SAFETY_MARGIN * predicted.peak_bytes),
        },
        "peak_phase": phase,
        "round_s": round(predicted.round_s, 3),
        "download_s": round(down_s, 3),
        "compute_s": round(predicted.compute_s, 3),
        "upload_s": round(up_s, 3),
        "down_bytes": predicted.down_bytes,
        "up_bytes": predicted.up_bytes,
        "link_measured": link is not None and link.uplink_source == "measured",
    }


def what_if_data(found: Sequence[WhatIf]) -> list[dict[str, Any]]:
    """What each change buys; `device` is null for the whole fleet."""
    return [
        {"change": each.change, "device": each.device, "before": _outcome(each.before), "after": _outcome(each.after)}
        for each in found
    ]


def _outcome(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    data: dict[str, Any] = {"progress": round(outcome.progress, 6), "round_s": round(outcome.round_s, 3)}
    if outcome.bits is None:
        return data | {"progress_per_hour": round(outcome.per_hour, 6)}
    return data | {"bits": outcome.bits}


def curve_data(forecast: Forecast) -> list[dict[str, Any]]:
    """Every deadline that was looked at, with the under-training rate of each device."""
    return [
        {
            "deadline_s": _deadline(point.deadline_s),
            "progress": round(point.progress, 6),
            "progress_per_hour": round(3600 * point.progress_per_s, 6),
            "under_training": {name: round(rate, 4) for name, rate in point.under_training.items()},
        }
        for point in forecast.curve
    ]


def _deadline(seconds: float) -> float:
    """Rounded to a millisecond, and one below a second to six figures: it is never 0."""
    return round(seconds, 3) if seconds >= 1 else float(f"{seconds:.6g}")


def answer_data(
    job: JobProblem,
    about: Mapping[str, Any],
    forecast: Forecast,
    what_ifs: Sequence[WhatIf],
    curve: Sequence[Mapping[str, Any]],
    would_fit: Mapping[str, Sequence[Bits]],
) -> dict[str, Any]:
    """The whole answer. `about` names the job, the model and what was assumed; `would_fit` as `what_would_fit`."""
    shape = job.shape
    return {
        "schema": SCHEMA_VERSION,
        **about,
        "parameters": shape.weight_parameters + shape.other_parameters + shape.head_parameters,
        "adapted_weights": len(job.curves),
        "deadline_s": _deadline(forecast.deadline_s),
        "deadline_chosen": forecast.chosen,
        "progress": round(forecast.progress, 6),
        "progress_per_hour": round(forecast.progress_per_hour, 6),
        "up_bytes": forecast.up_bytes,
        "down_bytes": forecast.down_bytes,
        "devices": [device_data(device) for device in forecast.devices],
        "what_if": what_if_data(what_ifs),
        "curve": list(curve),
        "would_fit": {name: list(bits) for name, bits in would_fit.items()},
    }
