"""What the owner's settings allow: the checks of a task before any work is done for it.

Pure: the settings and the measured profile come in, a reason to refuse comes out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedpipe_agent.trainer_protocol import OpenRequest
from fedpipe_data.source import DatasetSource
from fedpipe_profiles.device import MIB, DeviceProfile
from fedpipe_profiles.plain_text import plain
from fedpipe_profiles.plan import Plan
from fedpipe_wire.coordinator_messages import EvaluateTask, ScoreTask, SurveyTask, TrainTask
from fedpipe_wire.message_values import JobTerms
from fedpipe_wire.transfer import TransferSection


@dataclass(frozen=True, slots=True)
class Setup:
    """What stays the same while the agent runs, but for the profile, which is measured anew.

    `context_bytes` is what the last trainer held before it loaded a base, None until one was opened.
    """

    profile: DeviceProfile
    datasets: Mapping[str, DatasetSource]
    state: Path
    models: Mapping[str, str] = field(default_factory=dict)
    within_hours: bool = True
    transfer: TransferSection = field(default_factory=TransferSection)
    hub_models: frozenset[str] = frozenset()
    trusted_models: frozenset[str] = frozenset()
    context_bytes: int | None = None


def refusal(setup: Setup, task: SurveyTask | ScoreTask | TrainTask | EvaluateTask) -> str | None:
    """Why this agent will not do a task, or None if it will."""
    if not setup.within_hours:
        return "outside of the hours that [limits] hours allows on this machine"
    if task.terms.dataset not in setup.datasets:
        known = ", ".join(sorted(setup.datasets)) or "none"
        asked = plain(task.terms.dataset)
        return f"no dataset '{asked}' here (agent.toml maps: {known}): add [datasets.{asked}]"
    if isinstance(task, TrainTask | EvaluateTask):
        return _plan_refusal(setup, task.terms, task.plan)
    return None


def _plan_refusal(setup: Setup, terms: JobTerms, plan: Plan) -> str | None:
    profile = setup.profile
    if plan.agent != profile.agent:
        return f"the plan is for agent {plan.agent!r}, this is {profile.agent!r}"
    if plan.bits not in profile.supported_bits:
        return f"the plan asks for {plan.bits} bits, this device supports {list(profile.supported_bits)}"
    limit = profile.memory_limit_bytes()
    context = setup.context_bytes or 0  # not known after a restart: the trainer's own limit holds all the same
    if plan.predicted.peak_bytes + context > limit:
        return (
            f"the plan expects {plan.predicted.peak_bytes / MIB:.0f} MiB and a trainer holds {context / MIB:.0f} MiB "
            f"beside, this device lends {limit / MIB:.0f} MiB"
        )
    if plan.batch_size not in terms.batch_sizes:
        return f"the plan asks for batches of {plan.batch_size}, its job allows {list(terms.batch_sizes)}"
    if plan.sequence_length > terms.sequence_length:
        return f"the plan asks for {plan.sequence_length} tokens per example, its job for {terms.sequence_length}"
    unsorted = [name for name, chosen in plan.components.items() if list(chosen) != sorted(set(chosen))]
    if unsorted:
        return f"the plan names components of {unsorted[0]} twice, or not in their order"
    outside = [name for name, chosen in plan.components.items() if any(c >= plan.global_rank for c in chosen)]
    if outside:
        return f"the plan trains components beyond the global rank {plan.global_rank} in {outside[0]}"
    return None


def open_request(setup: Setup, task: SurveyTask | ScoreTask | TrainTask | EvaluateTask) -> OpenRequest:
    """What the trainer must know before its first request of a run."""
    profile = setup.profile
    device: Literal["cpu", "cuda"] = "cpu" if profile.accelerator is None else "cuda"
    return OpenRequest(
        run=task.run,
        terms=task.terms,
        model=setup.models.get(task.terms.model, task.terms.model),
        dataset=setup.datasets[task.terms.dataset],
        device=device,
        supported_bits=profile.supported_bits,
        memory_limit_bytes=memory_limit_bytes(setup),
        threads=profile.threads(),
        download=task.terms.model in setup.hub_models,
        trust_remote_code=task.terms.model in setup.trusted_models,
    )


def memory_limit_bytes(setup: Setup) -> int:
    """What a trainer may occupy now; at least a byte, which then is too little for anything."""
    return max(1, setup.profile.memory_limit_bytes())


def upload_s(setup: Setup, plan: Plan) -> float:
    """Seconds to keep for sending the update, with a quarter to spare.

    By the measured or limited uplink, and by what the plan expects after the rounds before; but at most half of its
    time by the latter, which is the coordinator's word.
    """
    link = setup.profile.link
    bps = setup.profile.limits.uplink_bps or (link.uplink_bps if link is not None else None)
    own = 1.0 if bps is None else 0.5 + 1.25 * plan.predicted.up_bytes * 8 / bps
    return max(own, min(1.25 * plan.predicted.up_s, plan.deadline_s / 2))
