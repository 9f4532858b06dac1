"""Options of a device made up at random, with several memory rows, and the best choice found by trying everything."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fedpipe_profiles.costs.memory import DEFAULT_COEFFICIENTS, MemoryRow
from fedpipe_profiles.costs.step import StepSetting
from fedpipe_profiles.device import Bits
from fedpipe_profiles.planning.option import Budget, Option
from fedpipe_profiles.planning.options import Prepared
from fedpipe_profiles.planning.problem import Increments, JobProblem

WIDE = {"up": 40, "down": 40, "out": 16}
"""Parameters of one rank of the tiny model's weights."""


def random_option(random: np.random.Generator, bits: Bits, batch: int) -> Option:
    rows = tuple(
        MemoryRow(float(random.uniform(0, 500)), float(random.uniform(0, 16)), float(random.uniform(0, 400)))
        for _ in range(3)
    )
    return Option(
        setting=StepSetting(
            bits=bits,
            batch_size=batch,
            sequence_length=16,
            gradient_checkpointing=False,
            task="sequence-classification",
            num_labels=3,
        ),
        fidelity={4: 0.98, 32: 1.0}[bits],
        memory_rows=rows,
        coefficients=DEFAULT_COEFFICIENTS,
        step_s=float(random.uniform(0.1, 0.5)) * batch,
        step_per_parameter_s=float(random.uniform(0, 0.003)) * batch,
        load_s=1.0,
        prepare_s=float(random.uniform(1, 2)),
        down_s=float(random.uniform(0, 1)),
        up_s=float(random.uniform(0, 1)),
        up_per_parameter_s=float(random.uniform(0, 0.02)),
        up_bytes=int(random.integers(0, 200)),
        evaluate_s=float(random.choice((0.0, 0.5, 4.0))),
        evaluate_batch_s=float(random.uniform(0, 0.4)),
    )


def random_device(random: np.random.Generator, *, wanted: int, least: int) -> Prepared:
    options = [random_option(random, bits, batch) for bits in (4, 32) for batch in (1, 2, 5)]
    options.sort(key=lambda o: (o.step_s / o.setting.batch_size, o.memory(0, 0)))
    return Prepared(tuple(options), wanted, 0, 0.0, capped=False, up_bytes=math.inf, least=least)


def random_budget(random: np.random.Generator) -> Budget:
    memory, sent = float(random.uniform(300, 3000)), float(random.uniform(100, 1500))
    return Budget(memory, float(random.uniform(3, 20)), sent if random.random() < 0.5 else math.inf)


def evaluation_s(before_s: float, full_s: float, batch_s: float, time_s: float) -> float:
    """What a trainer's evaluation takes: all of it, or half of what the whole deadline leaves and half a batch."""
    left_s = time_s / 0.9 - before_s
    return min(full_s, max(0.0, left_s / 2) + batch_s / 2)


def every_choice(job: JobProblem, prepared: Prepared, budget: Budget) -> Iterator[tuple[float, int]]:
    """Objective and examples of every option, rank of each weight and number of steps that keep all limits."""
    total = sum(curve[-1] for curve in job.curves.values())
    for chosen in itertools.product((0, *job.rank_ladder), repeat=len(job.curves)):
        ranks = dict(zip(job.curves, chosen, strict=True))
        captured = sum(job.curves[name][rank - 1] for name, rank in ranks.items() if rank) / total
        parameters = sum(rank * WIDE[name] for name, rank in ranks.items())
        for option in prepared.options if captured else ():
            held = max(
                r.fixed_bytes + r.per_parameter * parameters + r.per_rank * sum(chosen) for r in option.memory_rows
            )
            if held > budget.memory_bytes or option.up_bytes + 4 * parameters > budget.up_bytes:
                continue
            sent_s = option.down_s + option.up_s + option.up_per_parameter_s * parameters
            batch = option.setting.batch_size
            for steps in range(1, math.ceil(prepared.wanted / batch) + 1):
                step_s = option.step_s + option.step_per_parameter_s * parameters
                before_s = sent_s + option.prepare_s
                evaluated_s = evaluation_s(before_s, option.evaluate_s, option.evaluate_batch_s, budget.time_s)
                if before_s + evaluated_s + steps * step_s > budget.time_s:
                    break
                examples = min(prepared.wanted, steps * batch)
                yield examples / prepared.wanted * captured * option.fidelity, examples


def best_of_every_choice(job: JobProblem, prepared: Prepared, budget: Budget) -> float:
    """The best objective, among those with the least share of examples if there are any; 0 if nothing fits."""
    found = list(every_choice(job, prepared, budget))
    enough = [objective for objective, examples in found if examples >= prepared.least]
    return max(enough or [objective for objective, _ in found], default=0.0)


def crooked(increments: Increments, random: np.random.Generator) -> Increments:
    """The same ladders with gains in any order, as no concave curve has them."""
    return replace(increments, gains=random.permutation(increments.gains))
