"""What the planner is asked of a job: the one place where a job's keys become a planning problem."""

from collections.abc import Mapping

from fedpipe_coordinator.config import Job
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.planning.problem import JobProblem


def job_problem(
    job: Job, shape: ModelShape, curves: Mapping[str, tuple[float, ...]], *, num_labels: int, seed: int
) -> JobProblem:
    """The job's side of planning, for a model and what its weights contribute.

    Raises:
        PlanningError: if there is no answer to it, with all its problems.
    """
    return JobProblem(
        shape=shape,
        curves=curves,
        rank_ladder=job.adapter.rank_ladder,
        batch_sizes=job.train.batch_sizes,
        global_rank=job.adapter.global_rank,
        sequence_length=job.train.sequence_length,
        task=job.job.task,
        num_labels=num_labels,
        examples_per_round=job.train.examples_per_round,
        evaluation_examples=job.data.evaluation_examples,
        learning_rate=job.train.learning_rate,
        scale=job.adapter.scale,
        seed=seed,
        least_share=job.rounds.least_share,
    )
