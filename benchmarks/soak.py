"""Many agents that come and go, run after run, for a long time: does the coordinator stay as large as it is?

    python -m benchmarks.soak [--minutes 30] [--agents 50] [--seed N] [--json FILE] [--samples FILE]

The coordinator and its Mosquitto are real processes; the agents are the product's own, several in a process, with an
echo as trainer. They stay for a minute on average and are away for a quarter of one; now and then one of their
processes is killed, so that all of its agents are gone at once. Every few seconds the coordinator's memory, file
descriptors and threads are sampled. The growth is from the median of the third quarter to that of the last: 1.0 for
memory (`rss_growth_ratio`, resident set size) and 0 for the others is flat.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.echo_trainer import model_name
from benchmarks.fleet import OVER, Fleet, FleetError, FleetSettings, JobSize
from benchmarks.launch import Seams
from fedpipe_coordinator.demo.processes import Child, Children

PER_PROCESS = 10
SAMPLE_S = 3.0
KILL_S = 120.0
ROUNDS = 3
MIN_SHARE = 0.2
"""Of the agents, that a round needs; more are there on average."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The coordinator at one moment; `at` in seconds since the begin."""

    at: float
    rss_bytes: int
    pss_bytes: int
    descriptors: int
    threads: int


@dataclass
class Workers:
    """The processes that the agents live in."""

    folder: Path
    groups: list[list[str]]
    seed: int
    children: Children = field(default_factory=Children)
    running: list[Child] = field(default_factory=list)

    def start(self) -> None:
        """Start all."""
        self.running = [self._start(number) for number in range(len(self.groups))]

    def kill_one(self, draw: random.Random) -> None:
        """Kill a process with all of its agents."""
        draw.choice(self.running).process.kill()

    def revive(self) -> None:
        """Start the dead again."""
        for number, child in enumerate(self.running):
            if child.process.poll() is not None:
                self.running[number] = self._start(number)

    def end(self) -> None:
        """End all."""
        self.children.__exit__(None, None, None)

    def _start(self, number: int) -> Child:
        arguments = ["benchmarks.soak_agents", "--folder", str(self.folder), "--seed", str(self.seed)]
        name = f"agents-{number}"
        return self.children.start(name, [*arguments, *self.groups[number]], self.folder / "logs" / f"{name}.log")


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """From the third quarter of the time to the last.

    Raises:
        ValueError: if a quarter has no sample.
    """
    end = samples[-1].at
    third = [sample for sample in samples if 0.5 * end <= sample.at < 0.75 * end]
    last = [sample for sample in samples if 0.75 * end <= sample.at]
    if not third or not last:
        raise ValueError(f"{len(samples)} samples in {end:.0f} s: too few for quarters, run for longer")

    def median(part: Sequence[Sample], name: str) -> float:
        return statistics.median(float(getattr(sample, name)) for sample in part)

    return {
        "rss_growth_ratio": median(last, "rss_bytes") / median(third, "rss_bytes"),
        "pss_growth_ratio": median(last, "pss_bytes") / median(third, "pss_bytes"),
        "fd_growth": median(last, "descriptors") - median(third, "descriptors"),
        "thread_growth": median(last, "threads") - median(third, "threads"),
    }


def soak(folder: Path, minutes: float, agents: int, seed: int) -> tuple[dict[str, Any], list[Sample]]:
    """All figures.

    Raises:
        FleetError: if the coordinator ends or does not answer.
    """
    size = JobSize(model_name(8, 64, 64), ROUNDS, 4, max(1, round(MIN_SHARE * agents)), deadline_s=20.0, seed=seed)
    samples: list[Sample] = []
    phases: list[str] = []
    draw = random.Random(f"soak/{seed}")
    with Fleet(folder, FleetSettings(agents, chunk_kib=16, silence_s=20.0), Seams(folder=str(folder))) as fleet:
        fleet.start_one("coordinator")
        fleet.wait("the coordinator", fleet.answers, 60.0)
        names = fleet.agents
        workers = Workers(folder, [names[at : at + PER_PROCESS] for at in range(0, agents, PER_PROCESS)], seed)
        workers.start()
        try:
            job, run, began = fleet.write_job(size), "", time.monotonic()
            next_kill, next_sample = began + KILL_S, began
            while (now := time.monotonic()) < began + 60 * minutes:
                workers.revive()
                if fleet.exit_code("coordinator") is not None:
                    raise FleetError(f"the coordinator ended\n{fleet.last_words()}")
                if now >= next_kill:
                    workers.kill_one(draw)
                    next_kill = now + KILL_S
                if now >= next_sample:
                    samples.append(_sample(fleet, now - began))
                    next_sample = now + SAMPLE_S
                if not run or fleet.summary_phase(run) in OVER:
                    phases += [fleet.summary_phase(run)] if run else []
                    run = fleet.submit(job)
                time.sleep(0.2)
            rounds = _rounds(fleet)
        finally:
            workers.end()
    return {
        "minutes": minutes,
        "agents": agents,
        **growth(samples),
        "rounds": rounds,
        "runs": {phase: phases.count(phase) for phase in sorted(set(phases))},
        "rss_mib": round(samples[-1].rss_bytes / 2**20, 1),
        "descriptors": samples[-1].descriptors,
        "threads": samples[-1].threads,
        "seed": seed,
    }, samples


def _sample(fleet: Fleet, at: float) -> Sample:
    now = processes.footprint(fleet.pid("coordinator"))
    if now is None:
        raise FleetError(f"the coordinator ended\n{fleet.last_words()}")
    return Sample(round(at, 1), now.rss_bytes, now.pss_bytes, now.descriptors, now.threads)


def _rounds(fleet: Fleet) -> int:
    """Rounds that were aggregated, over all runs."""
    audits = (fleet.home / "runs").glob("*/audit.jsonl")
    return sum(path.read_text().count('"kind": "aggregated"') for path in audits)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="does the coordinator stay as large as it is?")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--samples", type=Path, help="also write all samples to this file, one a line")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedpipe-soak-") as name:
        figures, samples = soak(Path(name), given.minutes, given.agents, given.seed)
    for key, value in figures.items():
        print(f"{key:24} {value:.4g}" if isinstance(value, float) else f"{key:24} {value}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if given.samples:
        given.samples.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
