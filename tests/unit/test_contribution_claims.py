"""One agent's word on its curves, their size and their number of examples, does not decide everybody's ranks."""

import pytest
from run_support import Drive, begin, scored, survey

from fedpipe_coordinator.runs.run_events import AgentOnline
from fedpipe_profiles.contribution import Contribution, average_contributions
from fedpipe_profiles.values import MAX_COUNT, MAX_GAIN


def _honest(examples: int = 10, size: float = 1.0) -> Contribution:
    return Contribution(examples=examples, curves={"good": (3 * size,), "bad": (1 * size,)})


@pytest.mark.parametrize("size", [10.0, 1e12, MAX_GAIN])
def test_curves_of_absurd_size_do_not_drown_the_others(size: float) -> None:
    liar = Contribution(examples=10, curves={"good": (0.0,), "bad": (size,)})
    found = average_contributions([*[_honest()] * 9, liar])
    assert found["good"] > found["bad"]


def test_honest_curves_of_like_size_are_averaged_as_they_are() -> None:
    found = average_contributions([_honest(10, 1.0), _honest(30, 2.0), _honest(20, 0.5)])
    assert found["good"][0] == pytest.approx(3 * found["bad"][0])
    assert found["bad"][0] == pytest.approx((10 * 1 + 30 * 2 + 20 * 0.5) / 60)


def test_agents_without_any_gain_are_nobodys_measure() -> None:
    found = average_contributions([_honest(), _honest(size=0.0), _honest(size=0.0)])
    assert found["bad"][0] == pytest.approx(1 / 3)


def test_curves_weigh_by_no_more_examples_than_were_asked_for() -> None:
    drive = Drive(begin())
    for name in ("a", "b", "c"):
        drive(AgentOnline(agent=name, session="1"))
    for name, held in (("a", 1000), ("b", 1000), ("c", 3)):
        drive.hear(name, survey().model_copy(update={"train_examples": held}))
    for name, examples in (("a", 8), ("b", MAX_COUNT), ("c", MAX_COUNT)):
        drive.hear(name, scored(examples))
    train = drive.state.job.train
    weighed = {name: each.contribution.examples for name, each in drive.state.members.items() if each.contribution}
    assert weighed == {"a": 8, "b": train.score_batches * max(train.batch_sizes), "c": 3}
    assert not any(str(MAX_COUNT) in note.text for note in drive.notes("scored"))
