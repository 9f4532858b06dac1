"""From a job and some devices to the answer: find the model, pose the problems, plan, and vary.

Owns what is assumed where nothing is known, and says so in the answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpipe_coordinator.config import Job
from fedpipe_coordinator.job_problem import job_problem
from fedpipe_coordinator.whatif.answer import answer_data, curve_data
from fedpipe_coordinator.whatif.changes import what_ifs
from fedpipe_coordinator.whatif.curves import DECAY, assumed_curves, recorded_curves
from fedpipe_coordinator.whatif.devices import FleetMember
from fedpipe_coordinator.whatif.errors import FigureError, ModelConfigError
from fedpipe_coordinator.whatif.forecast import DataGuess, ask, foresee
from fedpipe_coordinator.whatif.model_config import Config, Places, find_config
from fedpipe_coordinator.whatif.needs import what_would_fit
from fedpipe_profiles.architectures.errors import ArchitectureError
from fedpipe_profiles.architectures.shape import shape_of
from fedpipe_profiles.catalog.device_catalogue import CAVEAT
from fedpipe_profiles.costs.transfers import UNMEASURED_DOWNLINK_BPS, UNMEASURED_UPLINK_BPS
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plain_text import plain
from fedpipe_profiles.planning.deadline import LONGEST_DEADLINE_S
from fedpipe_profiles.planning.problem import JobProblem
from fedpipe_profiles.values import MAX_COUNT

ASSUMED_LABELS = 2
"""Of a classification whose job leaves them to the silos and whose configuration names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked. None for a figure is what the job allows at most; `curve`: whether it is wanted in detail."""

    job: Job
    members: Sequence[FleetMember]
    places: Places
    examples: int | None = None
    tokens: float | None = None
    config: Path | None = None
    contributions: Path | None = None
    curve: bool = False

    def __post_init__(self) -> None:
        if self.examples is not None and not 1 <= self.examples <= MAX_COUNT:
            raise FigureError(f"--examples is {self.examples}: give how many a device trains on, 1 or more")
        longest = self.job.train.sequence_length
        if self.tokens is not None and not 1 <= self.tokens <= longest:
            raise FigureError(
                f"--tokens is {self.tokens:g} and train.sequence_length is {longest}: the mean of an example's tokens "
                "is from 1 to that"
            )

    @property
    def data(self) -> DataGuess:
        """What is thought of every device's data."""
        job = self.job
        examples = job.train.examples_per_round if self.examples is None else self.examples
        tokens = float(job.train.sequence_length) if self.tokens is None else self.tokens
        return DataGuess(examples, job.data.evaluation_examples, tokens)


def answer(question: Question) -> dict[str, Any]:
    """The whole answer, as docs/reference/plan.md describes it.

    Raises:
        WhatIfError: if the model, its configuration, or the contributions cannot be used.
        PlanningError: if the job asks for something that has no answer.
    """
    job = question.job
    found = find_config(job.job.model, question.config, question.places)
    labels = label_count(job, found.config)
    shape = _shape(job, found.config, labels)
    recorded = question.contributions is not None
    curves = (
        assumed_curves(shape, job.adapter.rank_ladder[-1])
        if question.contributions is None
        else recorded_curves(question.contributions, shape)
    )
    problem = job_problem(job, shape, curves, num_labels=labels, seed=0)
    about = {
        "job": job.job.name,
        "model": job.job.model,
        "model_origin": found.origin,
        "task": job.job.task,
        "contributions": "recorded" if recorded else "assumed",
        "assumed": _assumed(question, labels),
    }
    return _planned(question, problem, about)


def _planned(question: Question, problem: JobProblem, about: Mapping[str, Any]) -> dict[str, Any]:
    given = question.job.rounds.deadline_s
    fleet = ask(problem, question.members, question.data)
    forecast = foresee(problem, fleet, None if given == "auto" else float(given))
    if not any(device.plan for device in forecast.devices):
        return answer_data(problem, about, forecast, (), (), what_would_fit(problem))
    curve = curve_data(forecast) if question.curve else ()
    return answer_data(problem, about, forecast, what_ifs(problem, fleet, forecast, question.data), curve, {})


def _shape(job: Job, config: Config, labels: int) -> ModelShape:
    try:
        return shape_of(config, task=job.job.task, num_labels=labels)
    except ArchitectureError as error:
        raise ModelConfigError(f"job.model is {plain(job.job.model, 200)!r}: {error}") from None


def label_count(job: Job, config: Config) -> int:
    """How many labels a classification has: as the job says, else the model's configuration; 0 for another task."""
    if job.job.task == "causal-lm":
        return 0
    if job.data.labels is not None:
        return len(job.data.labels)
    named = config.get("id2label")
    return max(ASSUMED_LABELS, len(named)) if isinstance(named, dict) else ASSUMED_LABELS


def _assumed(question: Question, labels: int) -> list[str]:
    """What the answer rests on that nobody has measured."""
    job, data = question.job, question.data
    said = []
    if question.contributions is None:
        said.append(
            "contributions: every parameter alike, each further rank worth "
            f"{DECAY:g} of the one before; --contributions takes those of a run"
        )
    if any(member.origin == "catalogue" for member in question.members):
        said.append(CAVEAT)
    if any(member.profile.link is None for member in question.members):
        said.append(
            f"links: {UNMEASURED_UPLINK_BPS / 1e6:g} Mbit/s up and {UNMEASURED_DOWNLINK_BPS / 1e6:g} down where none "
            "was measured; --uplink and --downlink say otherwise"
        )
    said.append(
        f"data: {data.examples} training examples a device, {data.held_out} held out, {data.tokens:g} tokens each; "
        "--examples and --tokens say otherwise"
    )
    if job.job.task == "sequence-classification" and job.data.labels is None:
        said.append(f"labels: {labels}, because the job leaves them to the silos; data.labels says otherwise")
    return said


def nothing_fits(answered: Mapping[str, Any]) -> str | None:
    """What to say where no device can carry anything: what is missing, and what would do. None where one can."""
    devices = answered["devices"]
    if any(device["fits"] for device in devices):
        return None
    if any(device["bound"] == "memory" for device in devices):
        return _what_memory_would_do(answered)
    if answered["deadline_chosen"]:
        return (
            f"no device can do one step within the longest deadline there is, {LONGEST_DEADLINE_S:g} s: take faster "
            "devices or links (--device, --uplink, --downlink), or a smaller model"
        )
    return (
        f"no device can do one step within the deadline of {answered['deadline_s']:g} s: give a longer one with "
        "--deadline, or have it chosen with --deadline auto"
    )


def _what_memory_would_do(answered: Mapping[str, Any]) -> str:
    devices = answered["devices"]
    least = min(device["needed_bytes"] for device in devices)
    most = max(device["lent_bytes"] for device in devices)
    gib = 1 << 30
    fitting = [f"{name} ({', '.join(map(str, bits))} bits)" for name, bits in answered["would_fit"].items()]
    which = "No device of the catalogue holds it"
    if fitting:
        which = f"Of the catalogue, {'; '.join(fitting)} would hold it"
    return (
        f"no device holds {plain(answered['model'], 100)}: the smallest plan needs {least / gib:.1f} GiB and the "
        f"largest device lends {most / gib:.1f} GiB. {which}; or take a smaller model, or lower train.sequence_length"
    )
