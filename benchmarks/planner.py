"""How long the planner takes for a fleet of unlike devices, and how far its choices are below their bounds.

    python -m benchmarks.planner [--devices 1000] [--seed N] [--fleet mixed] [--deadline 600] [--json FILE]

The job is a 7 B Llama's: 224 weights, ranks 4, 8, 16, 32, 64, 4, 8 and 16 bits, batches 1 to 32, checkpointing on and
off. `seconds` is `plan_round` with a given deadline, components drawn as in a real round, and `auto_seconds` the same
with deadline "auto"; `cpu_seconds` is the processor time of both rounds together. `worst_gap` and `mean_gap` are over
all devices with a plan, in both rounds: the share by which a choice may be below the bound that is proved for it.
`bounds` counts what bound the plans.
"""

import argparse
import json
import resource
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.planner_fleet import FLEETS, fleet, job
from fedpipe_coordinator.aggregation.components import draw_components
from fedpipe_profiles.planning.planner import RoundPlan, plan_round
from fedpipe_profiles.planning.problem import DeviceProblem, JobProblem


def measure(devices: int, seed: int, kind: str, deadline_s: float, least_share: float = 0.0) -> dict[str, Any]:
    """Plan both rounds of one fleet."""
    random = np.random.default_rng(seed)
    fleet_job, members = job(random, least_share=least_share), fleet(random, devices, kind)
    begin = time.process_time()
    given, seconds = _timed(fleet_job, members, deadline_s)
    auto, auto_seconds = _timed(job(np.random.default_rng(seed), least_share=least_share), members, None)
    cpu_seconds = time.process_time() - begin
    gaps = [*given.gaps.values(), *auto.gaps.values()]
    return {
        "devices": devices,
        "seed": seed,
        "fleet": kind,
        "seconds": seconds,
        "auto_seconds": auto_seconds,
        "cpu_seconds": cpu_seconds,
        "auto_deadline_s": auto.deadline_s,
        "worst_gap": max(gaps, default=0.0),
        "mean_gap": sum(gaps) / len(gaps) if gaps else 0.0,
        "planned": len(given.plans),
        "auto_planned": len(auto.plans),
        "bounds": dict(Counter(plan.bound for plan in given.plans.values())),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _timed(
    fleet_job: JobProblem, members: dict[str, DeviceProblem], deadline_s: float | None
) -> tuple[RoundPlan, float]:
    begin = time.perf_counter()
    found = plan_round(fleet_job, members, round_=1, deadline_s=deadline_s, draw=partial(draw_components, 0, 1))
    return found, time.perf_counter() - begin


def main(argv: list[str] | None = None) -> None:
    """Print the figures, and write them where asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planner", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fleet", choices=FLEETS, default="mixed")
    parser.add_argument("--deadline", type=float, default=600.0, help="seconds of the round whose deadline is given")
    parser.add_argument("--least-share", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    found = measure(arguments.devices, arguments.seed, arguments.fleet, arguments.deadline, arguments.least_share)
    for name, value in found.items():
        print(f"{name:<16} {value:.5g}" if isinstance(value, float) else f"{name:<16} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
