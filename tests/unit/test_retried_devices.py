"""A device that stalled comes back, through the real machine and planner; one that is really slow is asked rarely."""

import pytest
from replanned_fleet import Trial, Truth

from fedpipe_coordinator.runs.retrying import Retry, is_due, tried, waited
from fedpipe_profiles.plan import TransferMeasurement


@pytest.mark.parametrize("slow", [20, 1000])
@pytest.mark.parametrize("last", [5, 6])
def test_a_device_that_stalled_comes_back(slow: int, last: int) -> None:
    truth = Truth(speed=lambda at: 1 / slow if 5 <= at <= last else 1.0, says_its_speed=False)
    settings = Trial([truth]).rounds(12).settings()
    assert None not in settings[-3:]
    assert settings.count(None) <= 2
    assert last > 5 or None not in settings


def test_a_device_that_is_really_slow_is_asked_ever_more_rarely() -> None:
    truth = Truth(speed=lambda at: 1 / 1000 if at >= 3 else 1.0, says_its_speed=False)
    settings = Trial([truth]).rounds(30).settings()
    assert 1 <= sum(each is not None for each in settings[3:]) <= 5


def test_one_slow_transfer_does_not_leave_a_device_out() -> None:
    trial = Trial([Truth()]).rounds(2)
    state = trial.drive.state
    slow = TransferMeasurement(down_bytes=100_000, down_s=0.3, up_bytes=100_000, up_s=600.0)
    member = state.members["a"].model_copy(update={"transfers": (slow,) * 3})
    trial.drive.state = state.model_copy(update={"members": {**state.members, "a": member}})
    assert None not in trial.rounds(4).settings()[1:]


def test_patience_doubles() -> None:
    retry, gaps = tried(Retry()), []
    for _ in range(8):
        gap = 0
        while not is_due(retry, once=True):
            retry, gap = waited(retry), gap + 1
        gaps.append(gap)
        retry = tried(retry)
    assert gaps == [2, 4, 8, 16, 32, 64, 64, 64]
