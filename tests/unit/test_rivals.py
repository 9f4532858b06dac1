"""Another client of the same identity is told from a bad network."""

import pytest

from fedpipe_wire.rivals import TAKEN_OVER, WINDOW_S, Rivals


@pytest.mark.parametrize(("code", "losses"), [(0, 10), (0x80, 10), (TAKEN_OVER, 5)])
def test_so_many_losses_in_a_row_are_a_rivals(code: int, losses: int) -> None:
    rivals = Rivals(10)
    assert [rivals.lost(code, 5.0 * number) for number in range(losses)] == [False] * (losses - 1) + [True]


def test_losses_that_are_far_apart_are_none() -> None:
    rivals = Rivals(3)
    assert not any(rivals.lost(0, number * (WINDOW_S / 2 + 1)) for number in range(100))


def test_a_broker_that_was_away_in_between_is_no_rival() -> None:
    rivals = Rivals(3)
    for number in range(100):
        assert not rivals.lost(TAKEN_OVER, float(number))
        rivals.refused()


def test_without_a_limit_nothing_is_counted() -> None:
    rivals = Rivals(None)
    assert not any(rivals.lost(TAKEN_OVER, 0.0) for _ in range(1000))
    assert not rivals._lost
