"""The time of transfers: a link's own figures at first, then what the rounds really took."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_fleet import profile

from fedpipe_profiles.costs.transfers import UNMEASURED_UPLINK_BPS, fit_transfers
from fedpipe_profiles.device import DeviceProfile, Limits, Link
from fedpipe_profiles.plan import TransferMeasurement
from fedpipe_profiles.values import MAX_COUNT, MAX_RATE, MAX_SECONDS, MIN_RATE

MB = 1_000_000


def _device(uplink_bps: float = 8e6, *, lent_bps: float | None = None) -> DeviceProfile:
    link = Link(uplink_bps=uplink_bps, downlink_bps=80e6, latency_s=0.2, measured_bytes=1)
    return profile(1 << 30).model_copy(update={"link": link, "limits": Limits(uplink_bps=lent_bps)})


def _round(up_s: float, *, up_bytes: int = 5 * MB, down_s: float = 1.2) -> TransferMeasurement:
    return TransferMeasurement(down_bytes=10 * MB, down_s=down_s, up_bytes=up_bytes, up_s=up_s)


def test_until_a_round_was_measured_the_links_own_figures_count() -> None:
    found = fit_transfers(_device())
    assert found.upload_s(5 * MB) == pytest.approx(0.2 + 5)
    assert found.download_s(10 * MB) == pytest.approx(0.2 + 1)
    bare = fit_transfers(profile(1 << 30).model_copy(update={"link": None, "limits": Limits()}))
    assert bare.upload_s(MB) == pytest.approx(0.1 + 8e6 / UNMEASURED_UPLINK_BPS)


@pytest.mark.parametrize("up_s", [1.5, 5.2, 12.0, 40.0])
def test_two_rounds_are_enough_to_follow_a_link(up_s: float) -> None:
    found = fit_transfers(_device(), [_round(5.2)] * 3 + [_round(up_s)] * 2)
    assert found.upload_s(5 * MB) == pytest.approx(up_s, rel=0.1)


def test_an_update_of_another_size_takes_another_time() -> None:
    # 2 Mbit/s and 0.6 s, where the profile says 8 and 0.2
    rounds = [_round(0.6 + 4 * size, up_bytes=size * MB) for size in (1, 8, 3, 6)]
    found = fit_transfers(_device(), rounds)
    assert found.upload_s(12 * MB) == pytest.approx(48.6, rel=0.1)
    assert found.upload_s(2 * MB) == pytest.approx(8.6, rel=0.1)


def test_one_stalled_transfer_is_forgotten_by_the_next() -> None:
    found = fit_transfers(_device(), [*[_round(5.2)] * 4, _round(60.0), _round(5.2)])
    assert found.upload_s(5 * MB) == pytest.approx(5.2, rel=0.1)


@pytest.mark.parametrize("then_mbit", [0.4, 2.0, 5.0, 32.0, 160.0])
def test_transfers_of_another_link_are_taken_as_if_they_went_over_this_one(then_mbit: float) -> None:
    # the rounds' own overhead, a fifth more than the rate alone, stays known
    older = [
        TransferMeasurement(
            down_bytes=10 * MB,
            down_s=0.3 + 1.2 * 80 / (10 * then_mbit),
            up_bytes=5 * MB,
            up_s=0.3 + 1.2 * 40 / then_mbit,
            downlink_bps=10e6 * then_mbit,
            uplink_bps=1e6 * then_mbit,
        )
    ] * 6
    found = fit_transfers(_device(), older)
    assert found.upload_s(5 * MB) == pytest.approx(0.3 + 1.2 * 5, rel=0.05)
    assert found.download_s(10 * MB) == pytest.approx(0.3 + 1.2, rel=0.05)
    # what then went over this link has the say
    newer = [_round(9.0).model_copy(update={"uplink_bps": 8e6, "downlink_bps": 80e6})] * 2
    assert fit_transfers(_device(), [*older, *newer]).upload_s(5 * MB) == pytest.approx(9.0, rel=0.1)


def test_a_faster_link_changes_nothing_while_the_owner_lends_less() -> None:
    lent = [_round(40.0).model_copy(update={"uplink_bps": 4e6})] * 3
    now, then = (fit_transfers(_device(bps, lent_bps=1e6), lent) for bps in (400e6, 4e6))
    assert now.upload_s(5 * MB) == pytest.approx(then.upload_s(5 * MB))


def test_no_update_is_faster_than_what_the_owner_lends() -> None:
    # a token bucket lets a small update through at once
    found = fit_transfers(_device(lent_bps=1e6), [_round(0.1, up_bytes=MB // 10)] * 4)
    assert found.up_byte_s >= 8 / 1e6


@given(
    bps=st.floats(MIN_RATE, MAX_RATE),
    rounds=st.lists(
        st.builds(
            TransferMeasurement,
            down_bytes=st.integers(0, MAX_COUNT),
            down_s=st.floats(0, MAX_SECONDS),
            up_bytes=st.integers(0, MAX_COUNT),
            up_s=st.floats(0, MAX_SECONDS),
            downlink_bps=st.none() | st.floats(MIN_RATE, MAX_RATE),
            uplink_bps=st.none() | st.floats(MIN_RATE, MAX_RATE),
        ),
        max_size=8,
    ),
)
@settings(max_examples=60, deadline=None)
def test_whatever_an_agent_claims_more_bytes_never_take_less_time(
    bps: float, rounds: list[TransferMeasurement]
) -> None:
    found = fit_transfers(_device(bps), rounds)
    for seconds in (found.download_s, found.upload_s):
        assert 0 <= seconds(0) <= seconds(MB) <= seconds(MAX_COUNT) < float("inf")
