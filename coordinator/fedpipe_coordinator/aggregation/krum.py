"""Multi-Krum: the average of those updates that lie closest together.

Pure, on inner products of whole changes. Blanchard, El Mhamdi, Guerraoui, Stainer 2017, *Machine Learning with
Adversaries: Byzantine Tolerant Gradient Descent*, arXiv 1703.02757: an update's score is the sum of its squared
distances to its n - f - 2 closest neighbours, and the m best are averaged. m = n - f - 2, the most for which resilience
is proved (Damaskinos et al. 2019, *AggregaThor*, MLSys).

Breakdown point: f of n >= 2 f + 3, so up to (n - 3) / 2 of n agents.
"""

import numpy as np
from numpy.typing import NDArray


def needed(attackers: int) -> int:
    """How many agents it takes to withstand so many attackers."""
    return 2 * attackers + 3


def select(products: NDArray[np.float64], attackers: int) -> list[int]:
    """Which of n votes are averaged, in rising order.

    Args:
        products: Inner products of their changes, (n, n).
        attackers: How many of them may be anything.

    Raises:
        ValueError: if n is less than `needed(attackers)`.
    """
    count = len(products)
    if count < needed(attackers):
        raise ValueError(f"multi-krum against {attackers} attackers needs {needed(attackers)} votes, got {count}")
    squares = np.diagonal(products)
    distances = np.maximum(0.0, squares[:, None] + squares[None, :] - 2 * products)
    np.fill_diagonal(distances, np.inf)
    near = count - attackers - 2
    scores = np.sort(distances, axis=1)[:, :near].sum(axis=1)
    return sorted(int(index) for index in np.argsort(scores, kind="stable")[:near])
