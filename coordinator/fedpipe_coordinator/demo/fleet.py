"""The demo's unlike machines: one real machine, lent in unequal parts.

Pure. Owns the parts' sizes and the settings files made of them; what the parts can do is measured by the agents.
"""

import json
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024
LEAST_TRAINING_MIB = 96
"""A tiny model's working memory is not proportional to its size."""


@dataclass(frozen=True, slots=True)
class Silo:
    """One silo of the demo. `memory` is the training memory lent, in multiples of the model's fp32 size."""

    name: str
    share: float
    memory: float
    threads: int
    uplink_mbit: float


_SILOS = (
    Silo("hospital", share=0.40, memory=14.0, threads=2, uplink_mbit=100.0),
    Silo("bank", share=0.28, memory=4.5, threads=1, uplink_mbit=50.0),
    Silo("clinic", share=0.20, memory=2.6, threads=1, uplink_mbit=20.0),
    Silo("practice", share=0.12, memory=1.75, threads=1, uplink_mbit=5.0),
)


def fleet(agents: int) -> tuple[Silo, ...]:
    """The demo's silos: the four named ones, repeated with a number when more are asked for."""
    chosen = []
    for index in range(agents):
        silo = _SILOS[index % len(_SILOS)]
        suffix = "" if index < len(_SILOS) else f"-{index // len(_SILOS) + 1}"
        chosen.append(Silo(f"{silo.name}{suffix}", silo.share, silo.memory, silo.threads, silo.uplink_mbit))
    return tuple(chosen)


def memory_limit_mib(silo: Silo, runtime_bytes: int, model_bytes: int) -> int:
    """MiB lent to one trainer: what its libraries take, and the silo's multiple of the model in fp32."""
    return round(runtime_bytes / MIB + max(LEAST_TRAINING_MIB, silo.memory * model_bytes / MIB))


def agent_toml(silo: Silo, *, data: Path, memory_mib: int | None, hub_model: str | None = None) -> str:
    """The silo's agent.toml; federation and broker come with the bundle, and `hub_model` may be downloaded."""
    lines = [
        f"name = {json.dumps(silo.name)}",
        'state = "state"',
        "",
        "[datasets.demo]",
        f"path = {json.dumps(str(data))}",
        'format = "jsonl"',
    ]
    if hub_model is not None:
        lines += ["", "[training]", f"hub_models = [{json.dumps(hub_model)}]"]
    lines += ["", "[limits]", f"threads = {silo.threads}", f"uplink_mbit = {silo.uplink_mbit}"]
    if memory_mib is not None:
        lines.append(f"memory_mib = {memory_mib}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class DemoJob:
    """The figures of the demo's job."""

    task: str
    rounds: int
    seed: int
    model: str
    sequence_length: int
    examples_per_round: int
    learning_rate: float
    global_rank: int
    deadline_s: float | None
    min_agents: int


def job_toml(job: DemoJob) -> str:
    """The demo's job.toml."""
    deadline = '"auto"' if job.deadline_s is None else str(job.deadline_s)
    ladder = [rank for rank in (4, 8, 16, 32) if rank <= job.global_rank] or [job.global_rank]
    return f"""\
[job]
name = "demo"
model = {json.dumps(job.model)}
task = {json.dumps(job.task)}
seed = {job.seed}

[data]
dataset = "demo"
evaluation_examples = 96

[rounds]
number = {job.rounds}
deadline_s = {deadline}
min_agents = {job.min_agents}

[train]
learning_rate = {job.learning_rate}
sequence_length = {job.sequence_length}
batch_sizes = [2, 4, 8, 16]
score_batches = 16
examples_per_round = {job.examples_per_round}

[adapter]
global_rank = {job.global_rank}
rank_ladder = {ladder}

[export]
merged = true
"""
