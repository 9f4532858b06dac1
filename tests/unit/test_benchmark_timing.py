"""The table of the time benchmark: what is counted, and what is left out."""

from itertools import pairwise

import pytest
from trainer_support import make_plan

from benchmarks.timing import table
from benchmarks.timing_rounds import Case, Setting, settings
from fedpipe_agent.trainer_protocol import TrainedReply
from fedpipe_profiles.plan import StepMeasurement


def _case(round_: int, predicted_s: float, *, known: bool = True, repeats: bool = False, step_s: float = 1.0) -> Case:
    measurement = StepMeasurement(
        bits=32,
        batch_size=4,
        sequence_length=8,
        gradient_checkpointing=False,
        trainable_parameters=1,
        side_parameters=0,
        steps=10,
        step_s=step_s,
        peak_bytes=1,
        context_bytes=0,
    )
    reply = TrainedReply(examples=40, steps=10, train_loss=1.0, measurement=measurement, compute_s=10.0)
    plan = make_plan({"w": (0,)})
    expected = plan.predicted.model_copy(update={"compute_s": predicted_s, "step_s": 1.0})
    return Case("m", round_, Setting(32, 4, False, 10, 0), known, repeats, expected, reply)


def test_the_first_round_is_shown_and_not_counted() -> None:
    cases = [_case(1, 20.0), _case(2, 11.0), _case(3, 8.0, known=False), _case(4, 10.0, repeats=True, step_s=1.1)]
    found = table(cases, "cpu")
    assert (found["cases"], found["mean_abs_error"], found["worst"]) == (3, pytest.approx(0.1), pytest.approx(-0.2))
    assert (found["known_bits"], found["new_bits"]) == (pytest.approx(0.05), pytest.approx(0.2))
    assert found["by_round"] == {"1": 1.0, "2": 0.1, "3": 0.2, "4": 0.0}
    assert found["noise"] == pytest.approx(0.1)
    assert found["step_error"] == 0.0  # the repeated round is no held-out setting


def test_plans_change_from_round_to_round_but_for_the_last() -> None:
    plans = settings((4, 8, 32), 9, seed=1)
    assert plans == settings((4, 8, 32), 9, seed=1) != settings((4, 8, 32), 9, seed=2)
    assert plans[-1] == plans[-2]
    assert all(one.batch_size != other.batch_size for one, other in pairwise(plans[:-1]))
    assert {plan.bits for plan in plans} == {4, 8, 32}
