"""The global adapter that a run begins with.

Owns its first values only: random directions, no change yet. Every later one comes from
aggregation.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpipe_coordinator.aggregation.components import generator, orthonormal_rows
from fedpipe_profiles.model import ModelShape, ParameterShape
from fedpipe_wire.tensors import TensorWriter, a_name, adapter_spec, b_name, head_name

HEAD_STD = 0.02
"""Standard deviation of a new head's matrices, as BERT and its successors initialize them."""


def initial_adapter(
    path: Path, shape: ModelShape, weights: Sequence[str], rank: int, seed: int, row_norm: float
) -> None:
    """Write the adapter of round 1: for each weight A random, B zero, so the model is the base.

    A, (rank, d_in), has orthogonal rows of norm `row_norm`; where rank exceeds d_in, in blocks of
    d_in. Head matrices are normal with `HEAD_STD`, biases zero, other vectors (scales of norms)
    one. Every tensor depends on (seed, its name) only.

    Raises:
        ValueError: if the rank is not positive.
        TensorError: if the model has no weight of such a name.
        OSError: if the disk refuses.
    """
    if rank < 1:
        raise ValueError(f"global rank {rank}: expected at least 1")
    with TensorWriter(path, adapter_spec(shape, weights, rank)) as writer:
        for name in weights:
            weight = shape.weight(name)
            rows = orthonormal_rows(rank, weight.d_in, generator("initial", seed, name))
            writer.write(a_name(name), (row_norm * rows).astype(np.float32))
            writer.write(b_name(name), np.zeros((weight.d_out, rank), np.float32))
        for part in shape.head:
            writer.write(head_name(part.name), _initial_head(part, seed))


def _initial_head(part: ParameterShape, seed: int) -> NDArray[np.float32]:
    if len(part.shape) > 1:
        normal = generator("initial", seed, head_name(part.name)).standard_normal(part.shape)
        return (HEAD_STD * normal).astype(np.float32)
    if part.name.endswith("bias"):
        return np.zeros(part.shape, np.float32)
    return np.ones(part.shape, np.float32)
