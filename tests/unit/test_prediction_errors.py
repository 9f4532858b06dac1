"""How far a round's prediction was off, like compared with like."""

from typing import Any

import pytest
from trainer_support import make_plan

from fedpipe_coordinator.records.prediction_errors import expected_round_s, mean_error, memory_error, time_error
from fedpipe_profiles.plan import Plan, Prediction, StepMeasurement
from fedpipe_wire.agent_messages import Trained
from fedpipe_wire.message_values import BlobRef


def _plan(**predicted: Any) -> Plan:
    figures = {"peak_bytes": 1000, "round_s": 30.0, "compute_s": 25.0, "step_s": 2.0, "up_bytes": 0, "down_bytes": 0}
    return make_plan({"w": (0,)}, batch_size=4, examples=38, predicted=Prediction(**(figures | predicted)))


def _trained(steps: int, peak_bytes: int = 800) -> Trained:
    measurement = StepMeasurement(
        bits=32,
        batch_size=4,
        sequence_length=8,
        gradient_checkpointing=False,
        trainable_parameters=1,
        side_parameters=0,
        steps=steps,
        step_s=2.0,
        peak_bytes=peak_bytes,
        context_bytes=0,
    )
    return Trained(
        run="r",
        round=1,
        update=BlobRef(sha256="0" * 64, size=1, chunk_bytes=1 << 16),
        examples=4 * steps,
        steps=steps,
        train_loss=1.0,
        measurement=measurement,
        download_s=0.0,
        compute_s=1.0,
    )


def test_a_whole_round_is_compared_with_the_whole_prediction() -> None:
    assert time_error(_plan(), _trained(10), 25.0) == pytest.approx(0.2)
    assert memory_error(_plan(), _trained(10)) == pytest.approx(0.25)


def test_a_round_cut_short_is_compared_for_the_steps_that_were_taken() -> None:
    # 38 examples in batches of 4 are 10 steps; 3 of them, of 2 s each, were not taken
    assert expected_round_s(_plan(), _trained(7)) == pytest.approx(24.0)
    assert time_error(_plan(), _trained(7), 24.0) == 0.0
    assert time_error(_plan(step_s=0.0), _trained(7), 24.0) is None
    assert time_error(_plan(step_s=0.0), _trained(10), 30.0) == 0.0


def test_measuring_the_contribution_again_is_no_error_of_the_prediction() -> None:
    plain, scored = _trained(10), _trained(10).model_copy(update={"score_s": 0.9})
    assert time_error(_plan(), scored, 25.9) == pytest.approx(time_error(_plan(), plain, 25.0))
    assert time_error(_plan(), _trained(10).model_copy(update={"score_s": 30.0}), 25.0) is None


def test_what_was_not_measured_has_no_error() -> None:
    assert time_error(_plan(), None, 3.0) is None
    assert time_error(_plan(), _trained(10), None) is None
    assert memory_error(_plan(), None) is None
    assert mean_error([{"agent": "a"}, {"time_error": None}], "time_error") is None


def test_errors_of_both_signs_do_not_cancel() -> None:
    assert mean_error([{"time_error": -0.1}, {"time_error": 0.3}, {"agent": "idle"}], "time_error") == 0.2
