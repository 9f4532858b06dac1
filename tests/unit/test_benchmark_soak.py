"""The soak's figures: growth is what changed between the third quarter of the time and the last."""

import pytest

from benchmarks.soak import Sample, growth


def _samples(rss: list[int], descriptors: list[int]) -> list[Sample]:
    return [Sample(float(at), r, r, d, 5) for at, (r, d) in enumerate(zip(rss, descriptors, strict=True))]


def test_a_coordinator_that_grows_only_at_first_is_flat() -> None:
    found = growth(_samples([10, 50, 90, 100, 100, 100, 100, 100, 100], [9] * 9))
    assert found == {"rss_growth_ratio": 1.0, "pss_growth_ratio": 1.0, "fd_growth": 0.0, "thread_growth": 0.0}


def test_a_leak_shows_and_one_sample_that_stands_out_does_not() -> None:
    rss = [100] * 6 + [100, 900, 100, 110, 5, 110]
    found = growth(_samples(rss, [*range(12)]))
    assert found["rss_growth_ratio"] == pytest.approx(1.1)
    assert found["fd_growth"] == 3.0


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="run for longer"):
        growth(_samples([1, 1], [1, 1]))
