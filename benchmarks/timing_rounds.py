"""Rounds of one agent's real trainer under plans that change, each predicted before it is measured.

Owns the plans and the order of things; `timing.py` owns the table. The base, the scoring, the training and the models
of time are production's own; only the choice of the settings is not the planner's, which would keep to one.
"""

import csv
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

from fedpipe_agent.train.worker import Worker
from fedpipe_agent.trainer_protocol import (
    OpenRequest,
    Reply,
    ScoredReply,
    ScoreRequest,
    Surveyed,
    SurveyRequest,
    TrainedReply,
    TrainRequest,
)
from fedpipe_coordinator.aggregation.adapter_making import ROW_NORM
from fedpipe_coordinator.aggregation.global_adapter import initial_adapter
from fedpipe_coordinator.demo.command import demo_model
from fedpipe_data.examples import CausalExample, ClassificationExample, Example
from fedpipe_data.source import DatasetSource
from fedpipe_data.write import write_jsonl
from fedpipe_profiles.costs.step import Task
from fedpipe_profiles.device import Bits, DeviceProfile
from fedpipe_profiles.plan import Plan, Prediction
from fedpipe_profiles.planning.options import prepare
from fedpipe_profiles.planning.prediction import predicted
from fedpipe_profiles.planning.problem import DeviceProblem, JobProblem
from fedpipe_wire.message_values import JobTerms

RANK = 16
BUDGET_S = 1e6
LADDER = (4, 8, 16)
BATCHES = (1, 2, 4, 8, 16)
LENGTH = 96
HELD_OUT = 48
EXAMPLES = 1200

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Setting:
    """What a round's plan asks for; `ranks` are drawn by `seed` from the ladder and 0."""

    bits: Bits
    batch_size: int
    gradient_checkpointing: bool
    steps: int
    seed: int


@dataclass(frozen=True, slots=True)
class Case:
    """One round: what was predicted of it, and what it took. `known_bits` were measured before."""

    model: str
    round: int
    setting: Setting
    known_bits: bool
    repeats: bool
    predicted: Prediction
    trained: TrainedReply

    @property
    def error(self) -> float:
        """(predicted - measured) / measured seconds of compute: loading, evaluating, training, writing."""
        return self.predicted.compute_s / self.trained.compute_s - 1

    @property
    def step_error(self) -> float:
        """The same of one step."""
        return self.predicted.step_s / self.trained.measurement.step_s - 1


def models(data: Path) -> dict[str, tuple[Path, Task, Callable[[int], list[Example]]]]:
    """The models with their tasks and data, by name."""
    return {
        "minilm": (Path(demo_model()), "sequence-classification", lambda seed: _questions(data, seed)),
        "tinystories": (data / "models/TinyStories-656K", "causal-lm", lambda seed: _restaurants(data, seed)),
        "stories260k": (data / "models/stories260k", "causal-lm", lambda seed: _restaurants(data, seed)),
    }


def settings(bits: tuple[Bits, ...], rounds: int, seed: int) -> list[Setting]:
    """A plan a round: every second one at other bits, and none like the one before. The last is the same again."""
    draw = random.Random(seed)
    order = list(bits)
    draw.shuffle(order)
    found: list[Setting] = []
    for index in range(rounds - 1):
        width = order[index // 2 % len(order)]
        batch = draw.choice([size for size in BATCHES if not found or size != found[-1].batch_size])
        steps = max(6, min(40, 128 // batch))
        found.append(Setting(width, batch, draw.random() < 0.4, steps, draw.randrange(1 << 30)))  # two in five
    return [*found, found[-1]]


class Agent:
    """One agent's trainer in this process.

    Args:
        name: Of the model, in `models`.
        data: Folder of the shared data.
        profile: The device's, with its rates.
        folder: For what it writes.
        clock: Seconds.
        seed: Decides examples and plans.
    """

    def __init__(
        self, name: str, data: Path, profile: DeviceProfile, folder: Path, clock: Callable[[], float], seed: int
    ) -> None:
        model, task, examples = models(data)[name]
        folder.mkdir(parents=True)
        self.name, self._folder, self._profile, self._seed = name, folder, profile, seed
        self._said: list[Reply] = []
        drawn = examples(seed)
        source = folder / "data"
        source.mkdir()
        write_jsonl(source / "train.jsonl", drawn[HELD_OUT:])
        write_jsonl(source / "held_out.jsonl", drawn[:HELD_OUT])
        self._terms = JobTerms(
            name="timing",
            model=str(model),
            task=task,
            dataset="data",
            seed=seed,
            sequence_length=LENGTH,
            evaluation_examples=HELD_OUT,
            max_rank=RANK,
            batch_sizes=BATCHES,
        )
        request = OpenRequest(
            run="timing",
            terms=self._terms,
            model=str(model),
            dataset=DatasetSource(path=source),
            device="cpu" if profile.accelerator is None else "cuda",
            supported_bits=profile.supported_bits,
            memory_limit_bytes=profile.memory_limit_bytes(),
            threads=profile.threads(),
        )
        self._worker = Worker(request, self._said.append, clock)

    def rounds(self, plans: list[Setting]) -> Iterator[Case]:
        """Survey and score as an agent does, then predict and train one plan after the other."""
        self._worker.survey(SurveyRequest())
        survey = self._last(Surveyed)
        self._worker.score(ScoreRequest(labels=survey.labels, batches=4, budget_s=BUDGET_S))
        scored = self._last(ScoredReply)
        adapter = self._folder / "adapter.safetensors"
        names = sorted(scored.contribution.curves)
        initial_adapter(adapter, survey.shape, names, RANK, self._seed, ROW_NORM)
        measured = list(scored.measurements)
        former: Setting | None = None
        for index, setting in enumerate(plans):
            job = self._job(survey, scored, setting)
            loaded = measured[-1].bits
            device = DeviceProblem(
                profile=self._profile,
                measurements=tuple(measured[-16:]),
                train_examples=survey.train_examples,
                held_out_examples=survey.held_out_examples,
                mean_tokens=survey.mean_tokens,
                loaded_bits=loaded,
            )
            ranks = _ranks(names, setting.seed)
            expected = _expected(job, device, setting, ranks)
            reply = self._train(survey, setting, ranks, adapter, expected, index + 1)
            known = any(m.bits == setting.bits for m in measured)
            measured.append(reply.measurement)
            yield Case(self.name, index + 1, setting, known, setting == former, expected, reply)
            former = setting

    def _train(
        self,
        survey: Surveyed,
        setting: Setting,
        ranks: dict[str, int],
        adapter: Path,
        expected: Prediction,
        round_: int,
    ) -> TrainedReply:
        plan = Plan(
            agent="agent",
            round=round_,
            bits=setting.bits,
            batch_size=setting.batch_size,
            gradient_checkpointing=setting.gradient_checkpointing,
            sequence_length=LENGTH,
            learning_rate=1e-4,
            seed=setting.seed,
            examples=setting.steps * setting.batch_size,
            deadline_s=1e6,
            scale=1.0,
            global_rank=RANK,
            components={name: tuple(range(rank)) for name, rank in ranks.items()},
            predicted=expected,
            bound="nothing",
            reason="a benchmark",
        )
        update = self._folder / "update.safetensors"
        self._worker.train(
            TrainRequest(labels=survey.labels, plan=plan, adapter=adapter, update=update, budget_s=BUDGET_S)
        )
        return self._last(TrainedReply)

    def _job(self, survey: Surveyed, scored: ScoredReply, setting: Setting) -> JobProblem:
        return JobProblem(
            shape=survey.shape,
            curves=scored.contribution.curves,
            rank_ladder=LADDER,
            batch_sizes=(setting.batch_size,),
            global_rank=RANK,
            sequence_length=LENGTH,
            task=self._terms.task,
            num_labels=len(survey.labels),
            examples_per_round=setting.steps * setting.batch_size,
            evaluation_examples=HELD_OUT,
            learning_rate=1e-4,
            scale=1.0,
            seed=self._seed,
        )

    def _last(self, kind: type[R]) -> R:
        return cast("R", next(reply for reply in reversed(self._said) if isinstance(reply, kind)))


def _expected(job: JobProblem, device: DeviceProblem, setting: Setting, ranks: dict[str, int]) -> Prediction:
    wide = device.profile.model_copy(update={"supported_bits": (setting.bits,)})
    options = prepare(job, replace(device, profile=wide)).options
    option = next(o for o in options if o.setting.gradient_checkpointing == setting.gradient_checkpointing)
    return predicted(job, option, ranks, setting.steps, BUDGET_S)


def _ranks(names: list[str], seed: int) -> dict[str, int]:
    draw = random.Random(seed)
    found = {name: draw.choice((0, *LADDER)) for name in names}
    return found | {names[0]: LADDER[-1]}


def _questions(data: Path, seed: int) -> list[Example]:
    with (data / "banking77/train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    drawn = random.Random(seed).sample(rows, EXAMPLES + HELD_OUT)
    return [ClassificationExample(text=row["text"], label=row["category"]) for row in drawn]


def _restaurants(data: Path, seed: int) -> list[Example]:
    with (data / "e2e/train.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    drawn = random.Random(seed).sample(rows, EXAMPLES + HELD_OUT)
    return [CausalExample(prompt=row["mr"], target=row["ref"]) for row in drawn]
