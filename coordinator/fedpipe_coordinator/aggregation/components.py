"""Everything that is drawn: which components an agent trains, and new directions for components.

Owns the seeding: each draw has a generator of its own, named by what it is for, so no draw depends
on how many came before it or in which order agents and weights are visited.
"""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray


def draw_components(seed: int, round_: int, agent: str, weight: str, global_rank: int, rank: int) -> tuple[int, ...]:
    """Draw `rank` of `global_rank` components uniformly, without repetition, in rising order.

    Uses the raw output of Philox only, which numpy keeps stable: the same arguments give the same
    components on every machine. A smaller rank draws a subset of what a larger one draws.

    Raises:
        ValueError: if `rank` is not between 0 and `global_rank`.
    """
    if not 0 <= rank <= global_rank:
        raise ValueError(f"cannot draw {rank} of {global_rank} components: 0 <= rank <= {global_rank}")
    if rank == global_rank:
        return tuple(range(global_rank))
    keys = _philox("components", seed, round_, agent, weight).random_raw(global_rank)
    order = np.argsort(np.asarray(keys, dtype=np.uint64), kind="stable")
    return tuple(np.sort(order[:rank]).tolist())


def generator(*purpose: str | int) -> np.random.Generator:
    """A generator of its own for one purpose, such as ("reseed", seed, round, weight)."""
    return np.random.Generator(_philox(*purpose))


def orthonormal_rows(
    count: int,
    d_in: int,
    random: np.random.Generator,
    avoid: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Random unit rows, (count, d_in).

    The rows are orthonormal in blocks of at most d_in; those of the first block are orthogonal to
    the orthonormal rows of `avoid`, (k, d_in), as far as d_in leaves room.
    """
    taken = np.empty((0, d_in)) if avoid is None else avoid
    blocks: list[NDArray[np.float64]] = []
    left = count
    while left:
        size = min(left, d_in - len(taken))
        block = random.standard_normal((d_in, size))
        for _ in range(2):  # once leaves a remainder of cancellation, twice is enough
            block -= taken.T @ (taken @ block)
        blocks.append(np.linalg.qr(block)[0].T)
        left -= size
        taken = np.empty((0, d_in))
    return np.concatenate(blocks) if blocks else np.empty((0, d_in))


def _philox(*purpose: str | int) -> np.random.Philox:
    digest = hashlib.sha256(json.dumps(purpose).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))
