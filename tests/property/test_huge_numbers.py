"""Numbers at the very edge of what may be sent are counted with, and those beyond are refused before anybody does."""

import json
import math
from typing import Any

import pytest
from any_message import AGENT_MESSAGES, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planning_fleet import profile
from run_support import evaluated, finish, survey, training

from fedpipe_coordinator.metrics import combine_metrics
from fedpipe_coordinator.runs.run_events import Aggregate, MakePlans
from fedpipe_coordinator.work import make_plans
from fedpipe_profiles.contribution import Contribution, average_contributions
from fedpipe_profiles.device import DeviceProfile
from fedpipe_profiles.plan import StepMeasurement
from fedpipe_profiles.values import MAX_COUNT, MAX_GAIN, MAX_LOSS
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.message_values import Metrics
from fedpipe_wire.messages import AGENT_CHANNELS, MessageError, decode_from_agent, encode

NINES = int("9" * 400)


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the numbers of a decoded message are."""
    if isinstance(value, bool):
        return []
    if isinstance(value, int | float):
        return [at]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, each in items for path in _paths(each, (*at, key))]


def _put(value: Any, path: tuple[Any, ...], number: float) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = number


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), number=st.sampled_from((NINES, -NINES, 1e300, -1e300, 1e308)))
def test_a_message_with_one_number_that_no_machine_has_is_refused(data: st.DataObject, number: float) -> None:
    message = data.draw(st.sampled_from(AGENT_MESSAGES).flatmap(values))
    tree = json.loads(encode(message))
    places = _paths(tree)
    if not places:
        return
    _put(tree, data.draw(st.sampled_from(places)), number)
    with pytest.raises(MessageError):
        decode_from_agent(AGENT_CHANNELS[type(message)], json.dumps(tree).encode(), 1)


@given(st.lists(values(Metrics), min_size=1, max_size=6))
def test_the_mean_of_any_metrics_that_may_come_may_be_sent(metrics: list[Metrics]) -> None:
    mean = combine_metrics(metrics)
    assert mean is not None
    assert min(m.loss for m in metrics) <= mean.loss <= max(m.loss for m in metrics)
    assert Metrics.model_validate_json(mean.model_dump_json()) == mean


@given(st.lists(st.tuples(st.integers(1, MAX_COUNT), st.floats(0, MAX_GAIN)), min_size=1, max_size=6))
def test_the_mean_of_any_curves_that_may_come_is_a_number(points: list[tuple[int, float]]) -> None:
    curves = [Contribution(examples=examples, curves={"up": (gain,)}) for examples, gain in points]
    ((mean,),) = average_contributions(curves).values()
    assert math.isfinite(mean)


def test_a_run_at_the_edge_of_every_number_goes_on() -> None:
    drive = training("a", "b", number=2)
    edge = Metrics(loss=MAX_LOSS, accuracy=1.0, examples=MAX_COUNT)
    for name in ("a", "b"):
        drive.hear(name, evaluated(1).model_copy(update={"metrics": edge}))
        finish(drive, name)
    assert drive.state.initial_metric == Metrics(loss=MAX_LOSS, accuracy=1.0, examples=MAX_COUNT)
    assert drive.all(Aggregate)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(odd=values(DeviceProfile), measured=values(StepMeasurement), auto=st.booleans(), data=st.data())
def test_one_agents_odd_figures_do_not_keep_the_others_from_a_plan(
    tmp_path_factory: pytest.TempPathFactory,
    odd: DeviceProfile,
    measured: StepMeasurement,
    auto: bool,  # noqa: FBT001 - drawn
    data: st.DataObject,
) -> None:
    drive = training("a", "b", number=2, deadline_s="auto" if auto else 100.0)
    held = data.draw(values(type(survey())))
    b = drive.member("b")
    counts = {name: getattr(held, name) for name in ("train_examples", "held_out_examples", "mean_tokens")}
    assert b.survey is not None
    b = b.model_copy(update={"measurements": (measured,), "survey": b.survey.model_copy(update=counts)})
    state = drive.state.with_member(b).model_copy(update={"adapter": None})
    folder = tmp_path_factory.mktemp("plans")
    profiles = {
        "a": profile(1 << 30, agent="a"),
        "b": odd.model_copy(update={"agent": "b"}),
    }
    planned = make_plans(state, MakePlans(1, ("a", "b")), profiles, BlobStore(folder, reserve_bytes=0), folder)
    assert {*planned.plans, *planned.none} == {"a", "b"}
    assert "a" in planned.plans or auto
