"""A time that was written down is told in the clock of whoever reads it, and never runs backwards."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_wire.moments import Moment, read_moment, rebased

SECONDS = st.floats(0, 1e7)
MOMENTS = st.builds(Moment, st.sampled_from(("one", "other")), SECONDS, SECONDS)


def test_two_moments_of_one_boot_are_told_apart_by_the_monotonic_clock_alone(tmp_path: Path) -> None:
    first, second = read_moment(), read_moment()
    assert first.boot == second.boot
    assert first.monotonic_s <= second.monotonic_s
    assert read_moment(tmp_path / "none").boot != read_moment(tmp_path / "none").boot


@given(then=MOMENTS, now=MOMENTS, earlier=st.lists(SECONDS, min_size=2, max_size=2))
def test_no_time_is_lost_and_none_lies_in_the_future(then: Moment, now: Moment, earlier: list[float]) -> None:
    """Whatever the clocks say: what had passed has passed, and the order of what happened stays."""
    first, second = sorted((then.monotonic_s - each for each in earlier), reverse=False)
    again = [rebased(at_s, then, now) for at_s in (first, second, then.monotonic_s)]
    assert again == sorted(again)
    assert again[-1] <= now.monotonic_s
    for before, after in zip((first, second), again, strict=False):
        assert now.monotonic_s - after >= then.monotonic_s - before - 1e-6


@pytest.mark.parametrize(
    ("now", "ago_s"),
    [
        (Moment("one", 520.0, 5.0), 120.0),  # the wall clock was set back: within a boot it does not count
        (Moment("one", 20.0, 1_000_060.0), 160.0),  # a monotonic clock that went back: it cannot be the same boot
        (Moment("other", 30.0, 1_000_060.0), 160.0),
    ],
)
def test_time_passes_while_nobody_looks(now: Moment, ago_s: float) -> None:
    assert now.monotonic_s - rebased(400.0, Moment("one", 500.0, 1_000_000.0), now) == ago_s
