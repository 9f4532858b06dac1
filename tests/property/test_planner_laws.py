"""Laws of the planner over random devices."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from planning_fleet import first_components, minilm_device, minilm_job

from fedpipe_profiles.costs.memory import SAFETY_MARGIN, context_bytes, fit_memory, predict_memory
from fedpipe_profiles.costs.step import StepConfig
from fedpipe_profiles.plan import Plan
from fedpipe_profiles.planning.evaluating import TIME_SLACK
from fedpipe_profiles.planning.options import prepare
from fedpipe_profiles.planning.planner import plan_device
from fedpipe_profiles.planning.problem import DeviceProblem
from fedpipe_profiles.planning.search import GAP, Choice, best_choice

JOB = minilm_job()
BITS = st.sets(st.sampled_from((4, 8, 16, 32)), min_size=1).map(lambda found: tuple(sorted(found)))
MEASURED = st.lists(
    st.builds(
        lambda m, peak, step: m.model_copy(update={"peak_bytes": int(m.peak_bytes * peak), "step_s": m.step_s * step}),
        st.sampled_from(minilm_device(1000).measurements),
        st.floats(0.8, 1.5),
        st.floats(0.2, 5.0),
    ),
    max_size=4,
).map(tuple)


@st.composite
def devices(draw: st.DrawFn) -> DeviceProblem:
    device = minilm_device(
        draw(st.floats(400, 1600)),
        bits=draw(BITS),
        flops_per_s=draw(st.floats(5e9, 1e12)),
        uplink_bps=draw(st.floats(1e5, 1e9)),
        latency_s=draw(st.floats(0, 0.5)),
    )
    return replace(
        device,
        measurements=draw(MEASURED),
        train_examples=draw(st.integers(1, 2000)),
        mean_tokens=draw(st.floats(8, 128)),
        memory_cap_bytes=draw(st.none() | st.integers(50 << 20, 500 << 20)),
        up_budget_bytes=draw(st.none() | st.integers(20_000, 5_000_000)),
    )


DEADLINES = st.floats(2, 120)


def _choice(device: DeviceProblem, deadline_s: float, *, solves: int = 24) -> Choice | None:
    prepared = prepare(JOB, device)
    return best_choice(JOB.increments, prepared, prepared.budget(deadline_s), solves=solves)


def _objective(device: DeviceProblem, deadline_s: float) -> float:
    choice = _choice(device, deadline_s)
    return choice.objective if choice else 0.0


@given(devices(), DEADLINES)
@settings(max_examples=40, deadline=None)
def test_a_plan_keeps_every_limit(device: DeviceProblem, deadline_s: float) -> None:
    plan = plan_device(JOB, device, round_=1, deadline_s=deadline_s, draw=first_components)
    assert plan == plan_device(JOB, device, round_=1, deadline_s=deadline_s, draw=first_components)
    assert len(plan.reason) < 400
    if not isinstance(plan, Plan):
        return
    config = StepConfig(
        bits=plan.bits,
        batch_size=plan.batch_size,
        sequence_length=plan.sequence_length,
        gradient_checkpointing=plan.gradient_checkpointing,
        task=JOB.task,
        num_labels=JOB.num_labels,
        ranks=dict.fromkeys(JOB.curves, 0) | plan.ranks,
        global_rank=plan.global_rank,
    )
    model = fit_memory(JOB.shape, device.measurements, kind="cpu", task=JOB.task, num_labels=8)
    peak = predict_memory(JOB.shape, config, model.coefficients(plan.bits)).total_bytes
    lent = device.profile.memory_limit_bytes()
    assert context_bytes(device.profile, device.measurements) + peak * (1 + SAFETY_MARGIN) <= lent + 8
    assert device.memory_cap_bytes is None or plan.predicted.peak_bytes < device.memory_cap_bytes
    assert device.up_budget_bytes is None or plan.predicted.up_bytes <= device.up_budget_bytes
    assert plan.predicted.round_s <= deadline_s * (1 - TIME_SLACK) * (1 + 1e-6)
    assert plan.bits in device.profile.supported_bits
    assert 1 <= plan.examples <= min(JOB.examples_per_round, device.train_examples)
    assert set(plan.ranks.values()) <= set(JOB.rank_ladder)
    for chosen in plan.components.values():
        assert list(chosen) == sorted(set(chosen))
        assert 0 <= chosen[0] <= chosen[-1] < plan.global_rank


@given(devices(), DEADLINES, st.floats(1.0, 1.5), st.sampled_from(["memory", "deadline", "link"]))
@settings(max_examples=40, deadline=None)
def test_more_of_anything_never_makes_a_plan_worse(
    device: DeviceProblem, deadline_s: float, factor: float, what: str
) -> None:
    profile, better, later = device.profile, device, deadline_s
    assert profile.link is not None
    assert profile.limits.memory_bytes is not None
    match what:
        case "memory":
            lent = profile.limits.model_copy(update={"memory_bytes": int(profile.limits.memory_bytes * factor)})
            better = replace(device, profile=profile.model_copy(update={"limits": lent}))
        case "deadline":
            later = deadline_s * factor
        case _:
            faster = profile.link.model_copy(update={"uplink_bps": profile.link.uplink_bps * factor})
            better = replace(device, profile=profile.model_copy(update={"link": faster}))
    before, after = _choice(device, deadline_s), _choice(better, later)
    proved = after.bound if after else 0.0
    # What was possible before is possible now, so the bound must cover it; the choice is as near as its bound says.
    assert (before.objective if before else 0.0) <= proved * (1 + 1e-9)
    if after is not None and after.bound <= after.objective * (1 + GAP):
        assert after.objective >= (before.objective if before else 0.0) * (1 - 2 * GAP)


@given(devices(), DEADLINES)
@settings(max_examples=25, deadline=None)
def test_the_greedy_is_never_better_and_the_bound_never_lower(device: DeviceProblem, deadline_s: float) -> None:
    quick, exact = _choice(device, deadline_s, solves=0), _choice(device, deadline_s)
    if quick is None or exact is None:
        assert exact is None or quick is not None or exact.objective > 0
        return
    assert quick.objective <= exact.bound * (1 + 1e-9)
    assert exact.objective <= quick.bound * (1 + 1e-9)
    assert exact.objective >= quick.objective * (1 - 2 * GAP)
