"""How much training each weight helps: the curve c(k), from a sketch of the weight's gradient.

A probe adapter with B = 0 and r0 orthonormal random rows A stands on every candidate weight. The gradient of B is then
G A^T, where G (d_out, d_in) is the weight's full gradient, at the cost of one LoRA backward pass. With its singular
values s_i, ||G_k||^2 = (d_in / r0) * sum of the k largest s_i^2. For r0 = d_in this is exactly the squared norm of the
best rank-k approximation of the gradient; for a smaller r0 the factor makes the total unbiased: E[A^T A] =
(r0 / d_in) I.

c(k) = sqrt(d_out d_in) * ||G_k||: what a rank-k change gains to first order that moves the weight's entries by one unit
in the root mean square. Adam moves entries at the same speed whatever the size of their gradient, so a change's norm
follows the weight's size; steps in proportion to the gradient, which no one takes here, would gain ||G_k||^2.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch

from fedpipe_agent.train.adapters import Attached, Factors
from fedpipe_agent.train.base import Base
from fedpipe_agent.train.data import Encoded, collate
from fedpipe_agent.train.step import losses, set_evaluation
from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.model import WeightShape

PROBE = "probe"


def probe_rank(weight: WeightShape, max_rank: int) -> int:
    """Rows of the probe, and length of the weight's curve."""
    return min(max_rank, weight.d_in, weight.d_out)


def probe_factors(base: Base, max_rank: int, seed: int) -> dict[str, Factors]:
    """A probe per candidate weight: orthonormal A (r0, d_in), alike in all silos, and B = 0."""
    return {
        name: Factors(
            orthonormal_rows(probe_rank(weight, max_rank), weight.d_in, f"{seed}/{name}"),
            torch.zeros(weight.d_out, probe_rank(weight, max_rank)),
        )
        for name, weight in base.weights.items()
    }


def orthonormal_rows(rows: int, columns: int, seed: str) -> torch.Tensor:
    """A (rows, columns) matrix, drawn by the sha256 of `seed`, whose rows are orthonormal and isotropic."""
    digest = hashlib.sha256(seed.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    q, r = torch.linalg.qr(torch.randn(columns, rows, generator=generator))
    # fixing the signs of R makes Q uniform over the orthonormal frames (Mezzadri, math-ph/0609050)
    return (q * r.diagonal().sign()).T.contiguous()


def sketch(
    base: Base,
    probes: Attached,
    groups: Sequence[Sequence[Encoded]],
    *,
    sequence_length: int,
    may_go_on: Callable[[], bool] = lambda: True,
    said: Callable[[int], None] = lambda _: None,
) -> Contribution:
    """Curves of every candidate weight, from the mean gradient over examples, each by its own mean loss.

    Args:
        base: With the probes attached, of which only B requires a gradient.
        probes: What `attached` gave for `probe_factors`.
        groups: Batches of examples; how they are split does not change the curves.
        sequence_length: Longest example in tokens.
        may_go_on: Asked before every batch but the first.
        said: Told how many batches are done.
    """
    set_evaluation(base)
    examples = 0
    for done, group in enumerate(groups):
        if done and not may_go_on():
            break
        batch = collate(group, pad_id=base.tokenizer.pad_token_id, sequence_length=sequence_length, device=base.device)
        (losses(base, batch).total / batch.units.clamp(min=1)).sum().backward()
        examples += len(group)
        said(done + 1)
    curves = {
        name: curve(_gradient(pair.b) / examples, base.weights[name].d_in)
        for name, pair in probes.factors[PROBE].items()
    }
    return Contribution(examples=examples, curves=curves)


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    # a weight that no example reached, such as an unused pooler, has no gradient at all
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def curve(gradient: torch.Tensor, d_in: int) -> tuple[float, ...]:
    """c(1) .. c(r0) from the gradient (d_out, r0) of a probe's B on a weight with `d_in` inputs."""
    d_out, rank = gradient.shape
    # in float64, squared singular values are the eigenvalues of the Gram matrix to well beyond float32's precision
    gram = (gradient.double().T @ gradient.double()).cpu()
    squares = torch.linalg.eigvalsh(gram).clamp(min=0.0).flip(0)
    return tuple((d_out * d_in * (d_in / rank) * squares.cumsum(0)).sqrt().tolist())
