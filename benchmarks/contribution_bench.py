"""One fine-tuning with adapters of a given size, for `benchmarks.contribution`.

Owns the ways to choose weights and ranks, and the training. Measuring contribution, choosing, attaching and
training are the agents' and the planner's own functions.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from benchmarks.contribution_data import Material, Setting
from fedpipe_agent.train.adapters import TRAINED, Attached, Factors, attached, reset_head
from fedpipe_agent.train.base import Base, load_base, quiet_libraries
from fedpipe_agent.train.contribution import orthonormal_rows
from fedpipe_agent.train.contribution_methods import measure_contribution
from fedpipe_agent.train.data import Encoder, batches, sample
from fedpipe_agent.train.evaluate import evaluate
from fedpipe_agent.train.loop import Watch, train, warm_up_steps
from fedpipe_agent.train.memory import open_meter
from fedpipe_agent.train.shape import read_shape
from fedpipe_agent.train.step import StepSettings
from fedpipe_profiles.contribution import ContributionMethod
from fedpipe_profiles.model import ModelShape, WeightShape
from fedpipe_profiles.planning.milp import Knapsack, solve
from fedpipe_profiles.planning.problem import JobProblem
from fedpipe_wire.message_values import Metrics

LATER = "sketch-later"
"""The gradient sketch where a short training has brought the model, as a refresh sees it, in place of at its start."""

EVEN = "-even"
"""A way with this ending has the same ranks, and weights of all ranks move alike (see `even_steps`).

A step of Adam moves every entry of B by the learning rate, whatever the rank r: with r orthonormal rows in A, the
weight's outputs then move in proportion to sqrt(r). A weight of rank 8 moves twice as fast as one of rank 2, and the
learning rate that it stands is too small for the others. A uniform rank is not changed by it.
"""

WAYS = (
    "gradient-sketch",
    f"gradient-sketch{EVEN}",
    LATER,
    f"{LATER}{EVEN}",
    "sensitivity",
    "all-linear",
    "query-value",
    "random",
    f"random{EVEN}",
)
FULL_RANK = 8
"""All-linear at this rank is the whole of which a budget is a share."""
LADDER = (1, 2, 4, 8, 16, 32)
SCORE_BATCHES: Mapping[ContributionMethod, int] = {"gradient-sketch": 4, "sensitivity": 32}
"""Forward and backward passes that scoring costs; the smoothed sensitivity needs steps before it says anything."""

LATER_STEPS, LATER_RATE, LATER_SHARE = 30, 2e-2, 0.25
"""Of that training, which is thrown away: all-linear at that share of its parameters at rank 8."""

_QUERY_VALUE = ("q_proj", "v_proj", "query", "value")


Curves = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long one fine-tuning is, and how much is held out."""

    steps: int = 150
    held_out_examples: int = 512


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one. `parameters` are those of the adapters, without the head that all train alike."""

    loss: float
    accuracy: float | None
    parameters: int
    ranks: dict[str, int]


def within_budget(shape: ModelShape, curves: Mapping[str, tuple[float, ...]], budget: int) -> dict[str, int]:
    """Ranks with the most contribution for a number of trainable parameters, by the planner's exact knapsack."""
    problem = JobProblem(
        shape=shape,
        curves=curves,
        rank_ladder=LADDER,
        batch_sizes=(1,),
        global_rank=LADDER[-1],
        sequence_length=1,
        task="causal-lm",
        examples_per_round=1,
        evaluation_examples=1,
        learning_rate=1.0,
        scale=1.0,
        seed=0,
    )
    items = problem.increments
    costs, room = items.parameters[None, :], np.array([float(budget)])
    chosen = solve(Knapsack(items.gains, costs, room, items.previous)).chosen
    ranks: dict[str, int] = {}
    for item in np.flatnonzero(chosen):
        name = items.names[items.weight[item]]
        ranks[name] = ranks.get(name, 0) + int(items.ranks[item])
    return ranks


def evenly(weights: Sequence[WeightShape], budget: int) -> dict[str, int]:
    """The same rank on all of these weights, and one more on the first ones, as far as the budget goes."""
    ranks = {weight.name: 0 for weight in weights}
    left = budget
    while fitting := [w for w in weights if w.d_in + w.d_out <= left]:
        lowest = min(fitting, key=lambda w: ranks[w.name])
        ranks[lowest.name] += 1
        left -= lowest.d_in + lowest.d_out
    return {name: rank for name, rank in ranks.items() if rank}


def at_random(weights: Sequence[WeightShape], budget: int, seed: int) -> dict[str, int]:
    """One component after another on a weight drawn at random, until none fits any more."""
    draw, left = random.Random(f"ranks/{seed}"), budget
    ranks: dict[str, int] = {}
    while fitting := [w for w in weights if w.d_in + w.d_out <= left]:
        drawn = draw.choice(fitting)
        ranks[drawn.name] = ranks.get(drawn.name, 0) + 1
        left -= drawn.d_in + drawn.d_out
    return ranks


def even_steps(factors: Mapping[str, Factors], mean_rank: float) -> dict[str, Factors]:
    """The same factors, but each A (r, d_in) times sqrt(mean_rank / r)."""
    return {name: Factors(pair.a * (mean_rank / len(pair.a)) ** 0.5, pair.b) for name, pair in factors.items()}


class Bench:
    """The base, loaded once, and its examples.

    Args:
        setting: Which.
        material: Its model and examples.
        effort: How long each run is.
    """

    def __init__(self, setting: Setting, material: Material, effort: Effort) -> None:
        quiet_libraries()
        torch.set_num_threads(1)
        self._setting, self._material, self._effort = setting, material, effort
        folder, task, labels = material.folder, setting.task, material.labels
        self.shape = read_shape(folder, task, labels)
        self._meter = open_meter("cpu", 64 << 30)
        self.base: Base = load_base(folder, task, labels, bits=32, device="cpu", seed=0, meter=self._meter)
        self._encoder = Encoder(self.base.tokenizer, labels, setting.sequence_length)
        self.curves = cache(self._curves)
        self.later_curves = cache(self._later_curves)

    def run(self, way: str, budget: float, learning_rate: float, seed: int) -> Run:
        """Fine-tune with the weights and ranks that a way chooses for a share of all-linear at rank 8.

        Raises:
            ModelError: if the training's numbers are not finite any more.
        """
        ranks = self.ranks(way.removesuffix(EVEN), self._parameters(budget), seed)
        factors = {name: self._fresh(name, rank, seed) for name, rank in ranks.items()}
        if way.endswith(EVEN):
            factors = even_steps(factors, budget * FULL_RANK)
        reset_head(self.base)
        with attached(self.base, {TRAINED: factors}, scale=1.0) as on_base:
            self._fit(on_base, learning_rate, seed, self._effort.steps)
            found = self._measured(seed)
            of_adapters = on_base.trainable_parameters - sum(each.numel() for each in on_base.head.values())
        return Run(found.loss, found.accuracy, of_adapters, ranks)

    def ranks(self, way: str, budget: int, seed: int) -> dict[str, int]:
        """Weights and ranks of at most `budget` trainable parameters."""
        weights = self.shape.weights
        match way:
            case "gradient-sketch" | "sensitivity":
                return within_budget(self.shape, self.curves(way, seed), budget)
            case "sketch-later":
                return within_budget(self.shape, self.later_curves(seed), budget)
            case "query-value":
                return evenly([w for w in weights if w.name.endswith(_QUERY_VALUE)], budget)
            case "random":
                return at_random(weights, budget, seed)
            case _:
                return evenly(weights, budget)

    def _parameters(self, budget: float) -> int:
        return int(budget * FULL_RANK * sum(weight.d_in + weight.d_out for weight in self.shape.weights))

    def _later_curves(self, seed: int) -> Curves:
        """With a head that is trained too, where there is one."""
        reset_head(self.base)
        ranks = evenly(self.shape.weights, self._parameters(LATER_SHARE))
        factors = {name: self._fresh(name, rank, seed) for name, rank in ranks.items()}
        with attached(self.base, {TRAINED: factors}, scale=1.0) as on_base:
            self._fit(on_base, LATER_RATE, seed, LATER_STEPS)
            trained = {
                name: Factors(pair.a.detach().clone(), pair.b.detach().clone())
                for name, pair in on_base.factors[TRAINED].items()
            }
        return self._measure("gradient-sketch", seed, {TRAINED: trained})

    def _curves(self, method: ContributionMethod, seed: int) -> Curves:
        reset_head(self.base)
        return self._measure(method, seed, {})

    def _measure(self, method: ContributionMethod, seed: int, beside: Mapping[str, Mapping[str, Factors]]) -> Curves:
        size, train_part = self._setting.batch_size, self._material.train
        wanted = SCORE_BATCHES[method] * size
        return measure_contribution(
            self.base,
            method,
            list(batches(train_part, self._encoder, batch_size=size, wanted=wanted, seed=seed)),
            max_rank=LADDER[-1],
            seed=seed,
            sequence_length=self._setting.sequence_length,
            beside=beside,
        ).curves

    def _fresh(self, name: str, rank: int, seed: int) -> Factors:
        weight = self.base.weights[name]
        rows = orthonormal_rows(min(rank, weight.d_in), weight.d_in, f"adapter/{seed}/{name}")
        return Factors(rows, torch.zeros(weight.d_out, len(rows)))

    def _fit(self, on_base: Attached, learning_rate: float, seed: int, steps: int) -> None:
        size = self._setting.batch_size
        train(
            self.base,
            on_base,
            batches(self._material.train, self._encoder, batch_size=size, wanted=steps * size, seed=seed + 1),
            settings=StepSettings(
                sequence_length=self._setting.sequence_length,
                learning_rate=learning_rate,
                warm_up_steps=warm_up_steps(steps),
                micro_batch=size,
                checkpointing=False,
            ),
            seed=seed,
            watch=Watch(clock=lambda: 0.0, stop_at=1.0, meter=self._meter),
        )

    def _measured(self, seed: int) -> Metrics:
        held_out = sample(self._material.held_out, self._effort.held_out_examples, seed)
        groups = list(batches(held_out, self._encoder, batch_size=64, wanted=len(held_out), seed=0))
        return evaluate(self.base, groups, sequence_length=self._setting.sequence_length, meter=self._meter)
