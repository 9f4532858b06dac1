"""Everything that is drawn: which components an agent trains, and new directions for components.

Owns the seeding: each draw has a generator of its own, named by what it is for, so no draw depends
on how many came before it or in which order agents and weights are visited.
"""

import hashlib
import json
import threading

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
    keys = _SPARE.seeded(_digest("components", seed, round_, agent, weight)).random_raw(global_rank)
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
    return np.random.Philox(key=int.from_bytes(_digest(*purpose), "little"))


def _digest(*purpose: str | int) -> bytes:
    """The 128 bits that seed what is drawn for a purpose."""
    return hashlib.sha256(json.dumps(purpose).encode()).digest()[:16]


class _Spare(threading.local):
    """One Philox of each thread, put back to its first state for every draw.

    To make one takes ten times as long as to draw from it: numpy asks the system for entropy even where a key is given,
    and a round draws for every weight of every agent.
    """

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)

    def seeded(self, key: bytes) -> np.random.Philox:
        """As a new one with this key of 16 bytes, little-endian; valid until the next call."""
        zeros = np.zeros(4, dtype=np.uint64)
        self._bits.state = {
            "bit_generator": "Philox",
            "state": {"counter": zeros, "key": np.frombuffer(key, dtype="<u8")},
            "buffer": zeros,
            "buffer_pos": len(zeros),
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self._bits


_SPARE = _Spare()
