"""job.toml: what to fine-tune.

Owns the keys, their defaults and their checks, all in one place. A job names no path of a silo.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from fedpipe_profiles.contribution import ContributionMethod
from fedpipe_profiles.settings_file import load_settings
from fedpipe_profiles.values import (
    BatchSize,
    Count,
    Factor,
    PositiveCount,
    PositiveSeconds,
    PositiveSize,
    Settings,
    Share,
    Size,
)
from fedpipe_wire.message_values import JobTerms
from fedpipe_wire.topics import check_name

RANK_LADDER = (4, 8, 16, 32)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
MIN_LABELS = 2


def _job_name(name: str) -> str:
    return check_name(name, "job name")


def _rising(values: tuple[int, ...]) -> tuple[int, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError(f"should rise without repeats; write {sorted(set(values))}")
    return values


def _distinct(labels: tuple[str, ...]) -> tuple[str, ...]:
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise ValueError(f"names a label twice: {', '.join(repeated)}")
    return labels


RisingSizes = Annotated[tuple[PositiveSize, ...], Field(min_length=1), AfterValidator(_rising)]
RisingBatches = Annotated[tuple[BatchSize, ...], Field(min_length=1, max_length=64), AfterValidator(_rising)]
Label = Annotated[str, Field(min_length=1, max_length=200)]


class JobSection(Settings):
    """[job]: what to fine-tune."""

    name: Annotated[str, AfterValidator(_job_name)]
    model: str = Field(min_length=1, max_length=1000, description="hub id or folder, as the agents know it")
    task: Literal["causal-lm", "sequence-classification"]
    seed: Count = 0
    model_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="fingerprint that every agent's base model must have"
    )


class DataSection(Settings):
    """[data]: on what."""

    dataset: str = Field(min_length=1, max_length=128, description="each agent maps it to its own files")
    labels: Annotated[tuple[Label, ...], Field(min_length=MIN_LABELS), AfterValidator(_distinct)] | None = Field(
        default=None, description="in the order of the model's outputs; left out: the union of the silos'"
    )
    evaluation_examples: PositiveCount = Field(default=256, description="held-out examples per agent, at most")


class RoundsSection(Settings):
    """[rounds]: how long, and with how many agents."""

    number: PositiveSize
    deadline_s: Literal["auto"] | PositiveSeconds = "auto"
    min_agents: PositiveSize = 1
    fraction: float = Field(default=1.0, gt=0.0, le=1.0, description="of the agents that are there, per round")
    wait_s: PositiveSeconds = Field(default=600.0, description="seconds to wait for min_agents before giving up")
    patience: PositiveSize | None = Field(default=None, description="rounds without a better loss before stopping")
    late_weight: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="of an update that comes one round late, times its examples; 0 drops it",
    )
    least_share: Share = Field(
        default=0.0, description="of the examples wanted of it, what every agent that can is given at least"
    )


class TrainSection(Settings):
    """[train]: the local training."""

    learning_rate: Factor = 2e-3
    sequence_length: PositiveSize = Field(default=128, description="tokens per example, at most")
    batch_sizes: RisingBatches = BATCH_SIZES
    examples_per_round: PositiveCount = Field(default=256, description="per agent; fewer where the deadline is near")
    balance_labels: bool = Field(
        default=True, description="classification: each silo's own mix of labels is kept out of its loss"
    )
    score_batches: PositiveCount = Field(default=4, description="private batches for the contribution of the weights")


def _default_ladder(data: Mapping[str, Any]) -> tuple[int, ...]:
    global_rank: int = data["global_rank"]
    return tuple(rank for rank in RANK_LADDER if rank <= global_rank) or (global_rank,)


class AdapterSection(Settings):
    """[adapter]: the global adapter, and the ranks that a device may train of it."""

    global_rank: PositiveSize = 32
    rank_ladder: RisingSizes = Field(default_factory=_default_ladder, description="ranks a weight may get")
    candidates: Literal["all-linear"] = "all-linear"
    scale: Factor = Field(default=1.0, description="the constant s of s * B @ A")
    contribution: ContributionMethod = Field(
        default="gradient-sketch", description="how the contribution of the weights is measured"
    )
    refresh_rounds: Size = Field(default=4, description="measure it again every so many rounds; 0 does not")

    @field_validator("rank_ladder")
    @classmethod
    def _within_global_rank(cls, ladder: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        """Raise ValueError where a device could be asked for more components than there are."""
        global_rank = info.data.get("global_rank", ladder[-1])
        if ladder[-1] > global_rank:
            raise ValueError(f"should not go beyond adapter.global_rank = {global_rank}")
        return ladder


Rule = Literal["mean", "median", "trimmed-mean", "multi-krum"]
_AGENTS_NEEDED: Mapping[Rule, tuple[int, int]] = {"trimmed-mean": (2, 1), "multi-krum": (2, 3)}
"""Per attacker, and besides: fewer agents than that cannot withstand them by this rule."""


class AggregationSection(Settings):
    """[aggregation]: what becomes of updates that differ from the others'."""

    rule: Rule = Field(default="mean", description="how the agents' changes become one")
    attackers: PositiveSize = Field(default=1, description="hostile agents to withstand; trimmed-mean and multi-krum")
    clip: float = Field(
        default=2.0,
        ge=0.0,
        le=1e6,
        description="an update's change is scaled down to this many times the median norm; 0 does not",
    )
    norm_bound: float = Field(
        default=10.0,
        ge=0.0,
        le=1e6,
        description="an update is refused where a weight's change is over this many times the others' median; 0: never",
    )

    @field_validator("clip", "norm_bound")
    @classmethod
    def _off_or_above_the_median(cls, value: float) -> float:
        """Raise ValueError for a bound that half of the honest agents are over."""
        if 0 < value < 1:
            raise ValueError("should be 0, for off, or at least 1: below it, half of the honest agents are over it")
        return value

    @property
    def agents_needed(self) -> int:
        """How many agents the rule takes to withstand so many attackers."""
        each, besides = _AGENTS_NEEDED.get(self.rule, (0, 1))
        return each * self.attackers + besides


class ExportSection(Settings):
    """[export]: what is written besides the PEFT adapter."""

    merged: bool = Field(default=False, description="also the merged model, a normal checkpoint")


class Job(Settings):
    """The whole of job.toml."""

    job: JobSection
    data: DataSection
    rounds: RoundsSection
    train: TrainSection = TrainSection()
    adapter: AdapterSection = AdapterSection()
    aggregation: AggregationSection = AggregationSection()
    export: ExportSection = ExportSection()

    @field_validator("data")
    @classmethod
    def _labels_fit_task(cls, data: DataSection, info: ValidationInfo) -> DataSection:
        """Raise ValueError where labels are given to a task that has none."""
        job: JobSection | None = info.data.get("job")
        if data.labels is not None and job is not None and job.task == "causal-lm":
            raise ValueError('labels are for job.task = "sequence-classification", this job has "causal-lm"')
        return data

    @field_validator("aggregation")
    @classmethod
    def _enough_agents(cls, section: AggregationSection, info: ValidationInfo) -> AggregationSection:
        """Raise ValueError where a round may have too few agents for its rule to withstand what it should."""
        rounds: RoundsSection | None = info.data.get("rounds")
        if rounds is not None and rounds.min_agents < section.agents_needed:
            raise ValueError(
                f'aggregation.rule = "{section.rule}" with aggregation.attackers = {section.attackers} needs '
                f"{section.agents_needed} agents, rounds.min_agents is {rounds.min_agents}: raise min_agents, or lower "
                "attackers"
            )
        return section


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Read job.toml with a command line's overrides.

    Raises:
        SettingsError: with all its problems.
    """
    return load_settings(path, Job, overrides)


def job_terms(job: Job) -> JobTerms:
    """What every agent must know of `job`."""
    return JobTerms(
        name=job.job.name,
        model=job.job.model,
        task=job.job.task,
        dataset=job.data.dataset,
        seed=job.job.seed,
        sequence_length=job.train.sequence_length,
        evaluation_examples=job.data.evaluation_examples,
        balance_labels=job.train.balance_labels and job.job.task == "sequence-classification",
        max_rank=job.adapter.rank_ladder[-1],
        batch_sizes=job.train.batch_sizes,
        contribution=job.adapter.contribution,
        model_sha256=job.job.model_sha256,
    )


def make_run_id(job_name: str, now: datetime, randomness: bytes) -> str:
    """Name a run so that names of one job sort by start, and two of one second differ.

    Args:
        job_name: As `[job] name`.
        now: The start, in UTC.
        randomness: 2 bytes or more; the first 2 are used.

    Returns:
        For example "claims-20300401-093000-7f3a".

    Raises:
        ValueError: if there are fewer than 2 random bytes.
    """
    suffix_bytes = 2
    if len(randomness) < suffix_bytes:
        raise ValueError(f"a run's name needs {suffix_bytes} random bytes, got {len(randomness)}")
    return f"{job_name}-{now:%Y%m%d-%H%M%S}-{randomness[:suffix_bytes].hex()}"
