"""What one process reaches with all the data of the demo, beside what its silos reached without sharing any.

    python -m benchmarks.central --summary DEMO/summary.json [--seed N] [--examples N] [--rank 8] [--json FILE]

One process trains LoRA of one rank on all linear layers of the demo's model, in fp32, on the pooled training parts of
the demo's silos, with the modules that the agents train with, the demo's learning rate and batches of 16; for as many
examples as all agents trained in all rounds of the run that `--summary` names, unless `--examples` is given. Both are
measured on the union of the silos' held-out parts: `accuracy` and `loss` are the central model's. The run's own final
metric is `federated_accuracy`; each agent measured that on at most `evaluation_examples` of its part and at its own
bits. Where the run's merged model is still there, `federated_accuracy_fp32` is that model's on the whole union.
`ratio` is federated over central accuracy, by the former.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedpipe_agent.train.adapters import attached, read_plan
from fedpipe_agent.train.base import Base, load_base, quiet_libraries
from fedpipe_agent.train.data import Encoder, batches
from fedpipe_agent.train.evaluate import evaluate
from fedpipe_agent.train.loop import Watch, train, warm_up_steps
from fedpipe_agent.train.memory import Meter, open_meter
from fedpipe_agent.train.shape import read_shape
from fedpipe_agent.train.step import StepSettings
from fedpipe_coordinator.aggregation.adapter_making import ROW_NORM
from fedpipe_coordinator.aggregation.global_adapter import initial_adapter
from fedpipe_coordinator.demo.command import corpus_shares, demo_model
from fedpipe_coordinator.demo.fleet import fleet
from fedpipe_data.examples import ClassificationExample, Example
from fedpipe_profiles.plan import Plan, Prediction
from fedpipe_wire.message_values import Metrics

BATCH_SIZE = 16
DEMO_AGENTS = 4


@dataclass(frozen=True, slots=True)
class Pool:
    """All silos' examples together."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """How the central process trains; the defaults are the demo's."""

    rank: int = 8
    seed: int = 0
    learning_rate: float = 2e-3
    sequence_length: int = 64
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Central:
    """What came of it."""

    before: Metrics
    after: Metrics
    examples: int
    steps: int
    trainable_parameters: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Federated:
    """What a run's `summary.json` says."""

    agents: int
    examples: int
    metric: dict[str, Any]
    merged: Path | None
    settings: dict[str, Any]


def pool(agents: int, seed: int) -> Pool:
    """The demo's silos of a seed, put together."""
    shares = corpus_shares(fleet(agents), seed)
    train_part = tuple(example for share in shares for example in share.train)
    held_out = tuple(example for share in shares for example in share.held_out)
    labels = {e.label for e in (*train_part, *held_out) if isinstance(e, ClassificationExample)}
    return Pool(train_part, held_out, tuple(sorted(labels)))


def read_summary(path: Path, model: str) -> Federated:
    """Read a run of the demo.

    Raises:
        SystemExit: if it is no finished run of the demo on its own model.
    """
    summary = json.loads(path.read_text(encoding="utf-8"))
    # by its folder's name: another environment keeps the same model elsewhere
    same_model = Path(str(summary.get("model"))).parts[-2:] == Path(model).parts[-2:]
    if summary.get("phase") != "done" or not same_model:
        raise SystemExit(f"{path}: not a finished run of `fedpipe demo` with its own model and data")
    agents = {agent["agent"] for round_ in summary["rounds"] for agent in round_["agents"]}
    examples = sum(
        agent.get("examples", 0)
        for round_ in summary["rounds"]
        for agent in round_["agents"]
        if agent["status"] == "accepted"
    )
    merged = Path(summary["exports"]["merged"] or "")
    return Federated(
        agents=len(agents),
        examples=examples,
        metric=summary["final_metric"],
        merged=merged if summary["exports"]["merged"] and merged.is_dir() else None,
        settings=summary["settings"],
    )


def train_centrally(model: Path, data: Pool, settings: Settings, examples: int, meter: Meter) -> Central:
    """Train on the pool, and measure on its held-out part before and after."""
    began = time.monotonic()
    base = _load(model, data.labels, settings, meter)
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "adapter.safetensors"
        shape = read_shape(model, "sequence-classification", data.labels)
        initial_adapter(start, shape, sorted(base.weights), settings.rank, settings.seed, ROW_NORM)
        factors = read_plan(base, start, _plan(base, settings, examples))
    with attached(base, factors, scale=settings.scale) as on_base:
        before = measure(base, data.held_out, settings.sequence_length, meter)
        trained = train(
            base,
            on_base,
            batches(
                data.train,
                Encoder(base.tokenizer, base.labels, settings.sequence_length),
                batch_size=BATCH_SIZE,
                wanted=examples,
                seed=settings.seed,
            ),
            settings=StepSettings(
                sequence_length=settings.sequence_length,
                learning_rate=settings.learning_rate,
                warm_up_steps=warm_up_steps(-(-examples // BATCH_SIZE)),
                micro_batch=BATCH_SIZE,
                checkpointing=False,
            ),
            seed=settings.seed,
            watch=Watch(clock=time.monotonic, stop_at=float("inf"), meter=meter),
        )
        after = measure(base, data.held_out, settings.sequence_length, meter)
        return Central(
            before=before,
            after=after,
            examples=trained.examples,
            steps=trained.steps,
            trainable_parameters=on_base.trainable_parameters,
            seconds=time.monotonic() - began,
        )


def measure(base: Base, held_out: Sequence[Example], sequence_length: int, meter: Meter) -> Metrics:
    """Loss and accuracy over all of `held_out`, by the agents' own function."""
    encoder = Encoder(base.tokenizer, base.labels, sequence_length)
    groups = list(batches(held_out, encoder, batch_size=BATCH_SIZE, wanted=len(held_out), seed=0))
    return evaluate(base, groups, sequence_length=sequence_length, meter=meter)


def _load(model: Path, labels: Sequence[str], settings: Settings, meter: Meter) -> Base:
    return load_base(model, "sequence-classification", labels, bits=32, device="cpu", seed=settings.seed, meter=meter)


def _plan(base: Base, settings: Settings, examples: int) -> Plan:
    """Every component of every weight; the planner's predictions have no meaning here."""
    return Plan(
        agent="central",
        round=1,
        bits=32,
        batch_size=BATCH_SIZE,
        gradient_checkpointing=False,
        sequence_length=settings.sequence_length,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        examples=examples,
        deadline_s=1e9,
        scale=settings.scale,
        global_rank=settings.rank,
        components={name: tuple(range(settings.rank)) for name in base.weights},
        predicted=Prediction(peak_bytes=1, round_s=1.0, compute_s=0.0, up_bytes=0, down_bytes=0),
        bound="nothing",
        reason="one process with all data",
    )


def figures(central: Central, settings: Settings, federated: Federated | None) -> dict[str, Any]:
    """The table."""
    table: dict[str, Any] = {
        "accuracy": central.after.accuracy,
        "loss": central.after.loss,
        "examples": central.examples,
        "accuracy_before": central.before.accuracy,
        "loss_before": central.before.loss,
        "held_out_examples": central.after.examples,
        "steps": central.steps,
        "seconds": central.seconds,
        "rank": settings.rank,
        "trainable_parameters": central.trainable_parameters,
        "seed": settings.seed,
    }
    if federated is not None:
        table["federated_accuracy"] = federated.metric["accuracy"]
        table["federated_loss"] = federated.metric["loss"]
        table["federated_examples"] = federated.examples
        table["ratio"] = federated.metric["accuracy"] / (central.after.accuracy or float("nan"))
    return table


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Train, measure, compare."""
    model = demo_model()
    federated = read_summary(given.summary, model) if given.summary else None
    if federated is None and given.examples is None:
        raise SystemExit("how many examples? give --summary of a run of the demo to compare with, or --examples")
    settings = Settings(rank=given.rank, seed=given.seed or 0)
    if federated is not None:
        job = federated.settings
        if given.seed not in (None, job["job"]["seed"]):
            raise SystemExit(f"the run has seed {job['job']['seed']}, --seed is {given.seed}: leave --seed out")
        settings = Settings(
            rank=given.rank,
            seed=job["job"]["seed"],
            learning_rate=job["train"]["learning_rate"],
            sequence_length=job["train"]["sequence_length"],
            scale=job["adapter"]["scale"],
        )
    data = pool(federated.agents if federated else DEMO_AGENTS, settings.seed)
    examples = given.examples or (federated.examples if federated else 0)
    meter = open_meter("cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    table = figures(train_centrally(Path(model), data, settings, examples, meter), settings, federated)
    if federated is not None and federated.merged is not None:
        merged = measure(
            _load(federated.merged, data.labels, settings, meter), data.held_out, settings.sequence_length, meter
        )
        table["federated_accuracy_fp32"] = merged.accuracy
        table["federated_loss_fp32"] = merged.loss
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="the demo's data in one process")
    parser.add_argument("--seed", type=int, help="of the silos; the run's when left out")
    parser.add_argument("--examples", type=int, help="to train; as many as the run's agents when left out")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--summary", type=Path, help="summary.json of a run of the demo to compare with")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    if "OMP_WAIT_POLICY" not in os.environ:
        # As for an agent's trainer: threads that spin while they wait cost a busy machine far more than they gain.
        command = [sys.executable, "-m", "benchmarks.central", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    quiet_libraries()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    table = run(given)
    for key, value in table.items():
        print(f"{key:24} {value:.4g}" if isinstance(value, float) else f"{key:24} {value}")
    if given.json:
        given.json.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
