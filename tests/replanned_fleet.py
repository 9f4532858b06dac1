"""A run whose devices change while it goes on: the real run machine and the real planner, and made-up devices.

Owns what a device is like at a planning and what becomes of a plan there; what must hold is the tests' matter.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from planning_fleet import first_components, minilm, minilm_device, minilm_job, minilm_steps
from run_support import RUN, Drive, failed, job, name_of, ref, trained

from fedpipe_coordinator.runs.replanning import replan
from fedpipe_coordinator.runs.run_events import MakePlans, Planned, Ticked, UpdateStored
from fedpipe_coordinator.runs.run_state import Member, RunState
from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.device import MIB, DeviceProfile, Limits
from fedpipe_profiles.plan import NoPlan, Plan, StepMeasurement
from fedpipe_wire.agent_messages import Failed, Survey, Trained

JOB = minilm_job()
CONTEXT = 430 * MIB
EXAMPLE_S = 0.025
DOWNLOAD_S = 1.0
FIRST_STEPS = ((4, False), (16, False), (16, True))


@dataclass
class Truth:
    """A device as it really is. The functions of the planning's number, from 1, give its state at that time.

    `hidden_mib` is taken by somebody whom its profile does not show. `catches`: its trainer goes on at fewer bits,
    or at half of the batch.
    """

    name: str = "a"
    free_mib: Callable[[int], float] = lambda _: 1000.0
    speed: Callable[[int], float] = lambda _: 1.0
    uplink_mbit: Callable[[int], float] = lambda _: 20.0
    noise: Callable[[], float] = lambda: 1.0
    hidden_mib: Callable[[int], float] = lambda _: 0.0
    catches: bool = False
    says_its_speed: bool = True

    def profile(self, at: int) -> DeviceProfile:
        speed = self.speed(at) if self.says_its_speed else 1.0
        found = minilm_device(1 << 20, agent=self.name, flops_per_s=30e9 * speed * self.noise()).profile
        assert found.link is not None
        return found.model_copy(
            update={
                "host": found.host.model_copy(update={"free_bytes": int(self.free_mib(at) * MIB)}),
                "limits": Limits(),
                "link": found.link.model_copy(update={"uplink_bps": self.uplink_mbit(at) * 1e6}),
            }
        )

    def fits(self, plan: Plan, at: int) -> bool:
        ranks = sum(plan.ranks.values())
        need = peak_bytes(plan.bits, plan.batch_size, ranks, checkpointing=plan.gradient_checkpointing)
        return CONTEXT + need <= (self.free_mib(at) - self.hidden_mib(at)) * MIB

    def train(self, plan: Plan, at: int) -> Trained | Failed:
        """What comes of a plan."""
        lower = max((bits for bits in (4, 8, 16, 32) if bits < plan.bits), default=None)
        if self.fits(plan, at):
            return self._done(plan, at, plan.bits, plan.batch_size)
        if not self.catches:
            return failed(plan.round, "out-of-memory")
        bits = plan.bits if lower is None else lower
        done = self._done(plan, at, bits, plan.batch_size if bits < plan.bits else max(1, plan.batch_size // 2))
        return done.model_copy(update={"out_of_memory": True, "actions": ("it took less",)})

    def _done(self, plan: Plan, at: int, bits: int, batch: int) -> Trained:
        steps = measured(
            bits,
            batch,
            tuple(plan.ranks.values()),
            checkpointing=plan.gradient_checkpointing,
            slowed=self.noise() / self.speed(at),
        )
        return trained(self.name, plan.round, at).model_copy(update={"measurement": steps})

    def upload_s(self, plan: Plan, at: int) -> float:
        """What sending the update really takes: a little more than its bytes alone."""
        return 0.3 + 1.1 * 8 * plan.predicted.up_bytes / (self.uplink_mbit(at) * 1e6)


def measured(
    bits: int, batch: int, ranks: tuple[int, ...], *, checkpointing: bool, slowed: float = 1.0
) -> StepMeasurement:
    """The steps that such a device takes."""
    some = minilm_steps()[0]
    update = {
        "bits": bits,
        "batch_size": batch,
        "gradient_checkpointing": checkpointing,
        "trainable_parameters": 3080 + 1200 * sum(ranks),
        "side_parameters": 1200 * (37 * 32 - sum(ranks)),
        "step_s": step_s(batch, sum(ranks), checkpointing=checkpointing) * slowed,
        "evaluation_example_s": EXAMPLE_S / 3 * slowed,
        "peak_bytes": int(peak_bytes(bits, batch, sum(ranks), checkpointing=checkpointing)),
    }
    return some.model_copy(update=update)


def peak_bytes(bits: int, batch: int, ranks: int, *, checkpointing: bool) -> float:
    """What really is needed beside the context: the base, the trained state, and what a step saves."""
    base_mib = {4: 60, 8: 66, 16: 70, 32: 90}[bits]
    saved_mib = batch * (2 if checkpointing else 7) + 0.002 * batch * ranks
    return (base_mib + 40 + saved_mib) * MIB + 16 * 1200 * ranks


def step_s(batch: int, ranks: int, *, checkpointing: bool) -> float:
    """What a step really takes."""
    return 0.004 + EXAMPLE_S * batch * (1.33 if checkpointing else 1.0) * (1 + ranks / 3000)


@dataclass
class Trial:
    """A run with some devices and, beside them, one that has plenty of everything."""

    truths: list[Truth]
    deadline_s: float | None = 60.0
    at: int = 0
    history: dict[str, list[Plan | NoPlan]] = field(default_factory=dict)
    failures: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        everybody = [*self.truths, Truth(name="plenty", free_mib=lambda _: 8000.0)]
        self.truth = {truth.name: truth for truth in everybody}
        self.history = {truth.name: [] for truth in everybody}
        members = {name: _member(name) for name in self.truth}
        state = RunState(
            run=RUN,
            job=job(number=10_000, min_agents=1),
            phase="scoring",
            members=members,
            shape=minilm(),
            curves=JOB.curves,
            adapter=ref(name_of("adapter", 0)),
        )
        self.drive = Drive(state)
        self.drive(Ticked())

    def plan(self) -> None:
        """Plan the round that the run asks for, by what the devices say now."""
        self.at += 1
        action, state = self.drive.all(MakePlans)[-1], self.drive.state
        profiles = {name: truth.profile(self.at) for name, truth in self.truth.items()}
        members = {name: state.members[name] for name in action.agents}
        made, recalled = replan(
            JOB, members, profiles, round_=action.round, deadline_s=self.deadline_s, draw=first_components
        )
        adapter = state.adapter or ref(name_of("adapter", 0))
        self.drive(Planned(action.round, made.deadline_s, dict(made.plans), dict(made.none), adapter, recalled))
        for name in action.agents:
            self.history[name].append(made.plans.get(name) or made.none[name])

    def train(self) -> None:
        """Let every device do its plan."""
        state = self.drive.state
        for name, member in sorted(state.members.items()):
            if member.standing != "asked" or member.plan is None:
                continue
            result = self.truth[name].train(member.plan, self.at)
            if isinstance(result, Trained):
                size, began = member.plan.predicted.up_bytes, self.drive.state.phase_began
                update = result.update.model_copy(update={"size": size})
                busy = {"download_s": DOWNLOAD_S, "compute_s": self.drive.now - began, "update": update}
                result = result.model_copy(update=busy)
            self.drive.hear(name, result, DOWNLOAD_S)
            if isinstance(result, Trained):
                upload_s = self.truth[name].upload_s(member.plan, self.at)
                self.drive(UpdateStored(name, state.round, result.update.sha256), upload_s)
            if isinstance(result, Failed) or result.out_of_memory:
                self.failures.append(self.at)
        self.drive.aggregate()

    def rounds(self, count: int) -> "Trial":
        for _ in range(count):
            self.plan()
            self.train()
        return self

    def settings(self, name: str = "a") -> list[tuple[int, int] | None]:
        """Bits and batch of each round."""
        return [None if isinstance(p, NoPlan) else (p.bits, p.batch_size) for p in self.history[name]]

    def peaks(self, name: str = "a") -> list[float]:
        """Predicted peak of each round, margin and context with it, in MiB; 0 without a plan."""
        made = self.history[name]
        return [0.0 if isinstance(p, NoPlan) else (CONTEXT + 1.1 * p.predicted.peak_bytes) / MIB for p in made]


def flips(settings: list[tuple[int, int] | None]) -> int:
    """How often a setting differs from the one before."""
    return sum(now != was for was, now in pairwise(settings))


def noisy(seed: int, share: float) -> Callable[[], float]:
    """Factors around 1, evenly spread up to `share` away."""
    draw = random.Random(seed)
    return lambda: 1 + share * (2 * draw.random() - 1)


def _member(name: str) -> Member:
    known = minilm_device(1000)
    return Member(
        name=name,
        standing="answered",
        survey=Survey(
            run=RUN,
            shape=minilm(),
            labels=tuple("abcdefgh"),
            train_examples=known.train_examples,
            held_out_examples=known.held_out_examples,
            mean_tokens=known.mean_tokens,
        ),
        contribution=Contribution(examples=8, curves=dict(JOB.curves)),
        measurements=tuple(measured(16, batch, (), checkpointing=on) for batch, on in FIRST_STEPS),
    )
