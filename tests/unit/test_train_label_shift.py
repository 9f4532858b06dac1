import pytest
import torch
from torch.nn import functional

from fedpipe_agent.train.step import label_shift


@pytest.mark.parametrize("counts", [(900, 100), (500, 300, 200), (1000, 1000, 1, 7)])
def test_a_silos_own_mix_of_labels_pulls_the_output_nowhere(counts: tuple[int, ...]) -> None:
    targets = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    logits = torch.zeros(len(counts), requires_grad=True)
    shifted = functional.cross_entropy((logits + label_shift(counts)).expand(len(targets), -1), targets)
    plain = functional.cross_entropy(logits.expand(len(targets), -1), targets)
    (pull,) = torch.autograd.grad(shifted, logits)
    (plain_pull,) = torch.autograd.grad(plain, logits)
    # half an example is added to each label: what is left of the pull is of that size
    assert pull.abs().max() <= 0.5 * len(counts) / sum(counts)
    assert plain_pull.abs().max() > 0.1


def test_labels_that_a_silo_has_none_of_are_finite_and_least() -> None:
    shift = label_shift((10, 0, 5))
    assert torch.isfinite(shift).all()
    assert shift.argmin() == 1


def test_equal_counts_shift_nothing_against_each_other() -> None:
    shift = label_shift((7, 7, 7))
    assert torch.equal(shift, shift[:1].expand(3))
