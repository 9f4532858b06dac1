"""Ten silos in one process, with a real model and the agent's own training code, for `benchmarks.attacks`.

Owns the data, the plans and the honest training. What hostile silos make of an update is `attack_kinds.py`'s.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedpipe_agent.train.adapters import attached, read_plan, write_update
from fedpipe_agent.train.base import Base, load_base, quiet_libraries
from fedpipe_agent.train.data import Encoder, batches
from fedpipe_agent.train.evaluate import evaluate
from fedpipe_agent.train.loop import Watch, train, warm_up_steps
from fedpipe_agent.train.memory import Meter, open_meter
from fedpipe_agent.train.shape import read_shape
from fedpipe_agent.train.step import StepSettings
from fedpipe_coordinator.aggregation.components import draw_components
from fedpipe_data.examples import CausalExample
from fedpipe_data.tables import read_rows
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import Plan, Prediction

AGENTS = 10
EXAMPLES_PER_SILO = 400
HELD_OUT_EXAMPLES = 192
SEQUENCE_LENGTH = 96
GLOBAL_RANK = 16
RANKS = (16, 16, 16, 16, 16, 16, 8, 8, 8, 8)
"""Trained ranks. The first two silos are the hostile ones: at the global rank they can copy another's whole update."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much the silos train."""

    rounds: int = 4
    steps: int = 8
    batch_size: int = 4
    learning_rate: float = 1e-2

    @property
    def examples(self) -> int:
        """Of one silo in a round."""
        return self.steps * self.batch_size


def silo_name(number: int) -> str:
    """Of one of the ten."""
    return f"silo-{number}"


def plan_of(shape: ModelShape, number: int, round_: int, effort: Effort, seed: int) -> Plan:
    """What a silo is asked to do in a round: all weights, at its rank."""
    name, rank = silo_name(number), RANKS[number]
    return Plan(
        agent=name,
        round=round_,
        bits=32,
        batch_size=effort.batch_size,
        gradient_checkpointing=False,
        sequence_length=SEQUENCE_LENGTH,
        learning_rate=effort.learning_rate,
        seed=1000 * seed + round_,
        examples=effort.examples,
        deadline_s=3600.0,
        scale=1.0,
        global_rank=GLOBAL_RANK,
        components={
            weight.name: draw_components(seed, round_, name, weight.name, GLOBAL_RANK, rank) for weight in shape.weights
        },
        predicted=Prediction(peak_bytes=1, round_s=1.0, compute_s=1.0, up_bytes=1, down_bytes=1),
        bound="nothing",
        reason="all silos are alike but for their ranks",
    )


class Silos:
    """The base, loaded once, and every silo's examples.

    Args:
        model: folder of a causal model.
        rows: E2E rows, shared out by `seed`.
        held_out: rows that nobody trains on.
        seed: of the shares.
    """

    def __init__(self, model: Path, rows: Path, held_out: Path, seed: int) -> None:
        quiet_libraries()
        torch.set_num_threads(1)
        self.shape = read_shape(model, "causal-lm", ())
        self.meter: Meter = open_meter("cpu", 64 << 30)
        self.base: Base = load_base(model, "causal-lm", (), bits=32, device="cpu", seed=seed, meter=self.meter)
        self._encoder = Encoder(self.base.tokenizer, (), SEQUENCE_LENGTH)
        some = random.Random(seed).sample(_examples(rows), AGENTS * EXAMPLES_PER_SILO)
        self._examples = [some[n * EXAMPLES_PER_SILO : (n + 1) * EXAMPLES_PER_SILO] for n in range(AGENTS)]
        self._held_out = random.Random(seed).sample(_examples(held_out), HELD_OUT_EXAMPLES)

    def train(self, number: int, adapter: Path, plan: Plan, out: Path, *, mislabelled: bool = False) -> None:
        """Train one silo's share from an adapter, and write its update."""
        examples = self._examples[number]
        if mislabelled:
            examples = mislabel(examples)
        settings = StepSettings(
            sequence_length=plan.sequence_length,
            learning_rate=plan.learning_rate,
            warm_up_steps=warm_up_steps(-(-plan.examples // plan.batch_size)),
            micro_batch=plan.batch_size,
            checkpointing=False,
        )
        groups = batches(
            examples, self._encoder, batch_size=plan.batch_size, wanted=plan.examples, seed=plan.seed + number
        )
        watch = Watch(clock=lambda: 0.0, stop_at=1.0, meter=self.meter)
        with attached(self.base, read_plan(self.base, adapter, plan), scale=plan.scale) as on_base:
            train(self.base, on_base, groups, settings=settings, seed=plan.seed, watch=watch)
            write_update(out, on_base)

    def loss(self, adapter: Path, plan: Plan) -> float:
        """Nats per target token of an adapter on what nobody trained on."""
        groups: Any = list(batches(self._held_out, self._encoder, batch_size=64, wanted=len(self._held_out), seed=0))
        with attached(self.base, read_plan(self.base, adapter, plan), scale=plan.scale):
            return evaluate(self.base, groups, sequence_length=SEQUENCE_LENGTH, meter=self.meter).loss


def mislabel(examples: Sequence[CausalExample]) -> list[CausalExample]:
    """Every prompt with the target of another example, its words in reverse."""
    others = [*examples[1:], examples[0]]
    return [
        CausalExample(mine.prompt, " ".join(reversed(other.target.split())))
        for mine, other in zip(examples, others, strict=True)
    ]


def _examples(path: Path) -> list[CausalExample]:
    return [CausalExample(str(row.values["mr"]), str(row.values["ref"])) for row in read_rows(path, "jsonl")]
