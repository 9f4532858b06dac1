"""Kill every process at every hook, and see that nothing acknowledged is lost and the run ends in the same bytes.

    python -m benchmarks.chaos --seed S --kills N [--hooks-only] [--only PATTERN] [--trainer real] [--json FILE]

A run has 4 agents and 6 rounds of a tiny model. It is done once undisturbed, which shows every hook that its processes
pass (writes, fsyncs, renames, SQLite statements, publications, the handling of every event); then once for every
hook of coordinator, agents and trainers, which are killed there with SIGKILL, and once for every hook of a session with
the broker as the victim, every second time with its database removed; then for the hooks that were passed only after a
kill; then N times at random. After each run: it is done; every acknowledged update was aggregated exactly once; no
counter was used for two messages; the exported adapter has the bytes of the undisturbed run; no process was left
behind. One line per hook, and a summary. The folder of a run with problems is kept and named.

`--only` takes a shell pattern of names in the table, as "agent:fsync*" or "broker@*". `--restart-broker` has the
harness restart a Mosquitto that its coordinator leaves dead. Ends with 1 if anything failed.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.chaos_checks import Evidence, problems_of
from benchmarks.chaos_trials import Atlas, Trial, by_kind
from benchmarks.chaos_yard import AGENTS, ROUNDS, Outcome, Yard
from benchmarks.echo_trainer import model_name
from benchmarks.fleet import FleetError, JobSize
from benchmarks.tiny_model import write_model, write_rows

UNDISTURBED = Trial(())
FRESH_EVERY = 60
"""Runs after which the fleet is made anew: each restart of a coordinator reads all of its runs."""


@dataclass
class Tally:
    """What came of all trials; `unreached` are trials whose hook was not passed often enough."""

    kills: int = 0
    runs: int = 0
    failures: dict[str, list[str]] = field(default_factory=dict)
    unreached: set[str] = field(default_factory=set)
    kept: list[str] = field(default_factory=list)


@dataclass
class Chaos:
    """All trials of one call; a fleet is kept over many of them, and thrown away after a failure."""

    job: JobSize
    options: dict[str, Any]
    tally: Tally = field(default_factory=Tally)
    expected: Evidence | None = None
    _stack: ExitStack = field(default_factory=ExitStack)
    _yard: Yard | None = None
    _runs: int = 0

    def record(self) -> Atlas:
        """The undisturbed run; every hook that it passes.

        Raises:
            FleetError: if it has problems.
        """
        yard = self._ready(UNDISTURBED)
        start = yard.hits()
        outcome = yard.run(UNDISTURBED)
        self.expected = outcome.evidence
        problems = [*problems_of(outcome.evidence, outcome.evidence), *outcome.problems]
        if problems:
            raise FleetError(
                f"the undisturbed run in {yard.folder} has problems: {'; '.join(problems)}\n{yard.state()}"
            )
        return Atlas(outcome.hits, start)

    def go(self, trial: Trial) -> Outcome | None:
        """One trial, its line printed; None where the fleet did not live to tell."""
        assert self.expected is not None
        outcome = None
        try:
            yard = self._ready(trial)
            yard.hits()
            outcome = yard.run(trial)
            problems = [*problems_of(outcome.evidence, self.expected), *outcome.problems]
        except FleetError as error:
            problems = [str(error)]
        self._count(trial, outcome, problems)
        return outcome

    def end(self) -> None:
        """End the fleet; its folder goes unless it is kept."""
        self._stack.close()
        yard, self._yard, self._runs = self._yard, None, 0
        if yard is not None and str(yard.folder) not in self.tally.kept:
            shutil.rmtree(yard.folder, ignore_errors=True)

    def _count(self, trial: Trial, outcome: Outcome | None, problems: list[str]) -> None:
        tally, folder = self.tally, "" if self._yard is None else str(self._yard.folder)
        fired = 0 if outcome is None else outcome.fired
        tally.runs += 1
        tally.kills += fired
        said = "ok"
        if problems:
            tally.failures[trial.name] = problems
            tally.kept.append(folder)
            said = f"FAILED: {'; '.join(problems)[:2000]}; kept in {folder}"
        elif fired < len(trial.kills):
            tally.unreached.add(trial.name)
            said = "not reached"
        else:
            tally.unreached.discard(trial.name)
        seconds = 0.0 if outcome is None else outcome.seconds
        print(f"{trial.name:90} {trial.hits:5} hits {fired} kills {seconds:5.1f} s  {said}", flush=True)
        if problems and self._yard is not None:
            if outcome is None or outcome.late:
                print(self._yard.state(), flush=True)
            self.end()

    def _ready(self, trial: Trial) -> Yard:
        if self._yard is None or self._runs >= FRESH_EVERY or trial.fresh:
            self.end()
            folder = Path(tempfile.mkdtemp(prefix="fedpipe-chaos-"))
            self._stack = ExitStack()
            self._yard = self._stack.enter_context(Yard(folder, self.job, first=trial, **self.options))
        self._runs += 1
        return self._yard


def what_to_do(given: argparse.Namespace, folder: Path) -> tuple[JobSize, dict[str, Any]]:
    """The job, and the options of the fleet; a model and data for the real trainer go into `folder`."""
    job = JobSize(model_name(8, 64, 64), ROUNDS, 4, AGENTS, deadline_s=40.0, seed=given.seed)
    options = {"trainer": given.trainer, "limit_s": given.limit_s, "restart_broker": given.restart_broker}
    if given.trainer == "real":
        options["dataset"] = write_rows(folder / "rows.jsonl", 200, given.seed)
        model = str(write_model(folder / "model", given.seed))
        job = replace(job, model=model, task="sequence-classification", deadline_s=100.0)
    return job, options


def run_all(chaos: Chaos, given: argparse.Namespace) -> Atlas:
    """The undisturbed run, the walk, the hooks that were found on the way, and the random kills."""
    atlas = chaos.record()
    walk = atlas.walk(given.seed, given.only)
    print(f"{len(atlas.known)} hooks: {by_kind(sorted(atlas.known))}; {len(walk)} trials", flush=True)
    late: list[Trial] = []
    for trial in walk:
        outcome = chaos.go(trial)
        for other in atlas.again(trial, given.seed):
            if outcome is None or outcome.fired >= len(trial.kills):
                break
            trial, outcome = other, chaos.go(other)  # noqa: PLW2901 - the way that reached it is what is followed
        if outcome is not None and outcome.fired:
            late += [each for each in atlas.discovered(trial, outcome.hits) if given.only == "*"]
    print(f"{len(late)} more hooks are passed after a kill", flush=True)
    for trial in late:
        chaos.go(trial)
    if not given.hooks_only:
        for trial in atlas.at_random(given.seed, given.kills):
            chaos.go(trial)
    return atlas


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="kill every process at every hook")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=200, help="random kills after the walk")
    parser.add_argument("--hooks-only", action="store_true", help="no random kills")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of the hooks of the walk")
    parser.add_argument("--trainer", choices=("echo", "real"), default="echo")
    parser.add_argument("--restart-broker", action="store_true", help="do not leave that to the coordinator")
    parser.add_argument("--limit-s", type=float, default=90.0, help="for one run")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedpipe-chaos-model-") as name:
        chaos = Chaos(*what_to_do(given, Path(name)))
        try:
            atlas = run_all(chaos, given)
        finally:
            chaos.end()
    tally, seconds = chaos.tally, time.monotonic() - began
    figures = {
        "hooks": len(atlas.known),
        "kills": tally.kills,
        "failures": len(tally.failures),
        "unreached": sorted(tally.unreached),
        "runs": tally.runs,
        "seconds": round(seconds, 1),
        "seconds_per_run": round(seconds / max(1, tally.runs), 2),
        "kinds": by_kind(sorted(atlas.known)),
        "problems": tally.failures,
        "kept": tally.kept,
        "seed": given.seed,
        "trainer": given.trainer,
    }
    for key in ("hooks", "kills", "failures", "runs", "seconds_per_run"):
        print(f"{key:24} {figures[key]}")
    print(f"{'unreached':24} {len(tally.unreached)}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
