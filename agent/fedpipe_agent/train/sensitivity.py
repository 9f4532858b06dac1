"""How much training each weight helps, by the paper's reading: triplets of an SVD-form adapter, scored as in AdaLoRA.

Each candidate weight gets `P diag(lambda) Q`, P (d_out, r0) and Q (r0, d_in) orthonormal at first, lambda = 0, and a
few steps on private batches. After each backward pass every entry w of the three has the sensitivity I = |w dL/dw|,
its running mean Ibar and the running mean Ubar of its uncertainty |I - Ibar|; its score is s = Ibar * Ubar
(Zhang et al., arXiv 2303.10512, section 3.2). Triplet i of a weight has the importance
s(lambda_i) + mean over j of s(P_ji) + mean over j of s(Q_ij), and c(k) is the sum of the k largest.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedpipe_agent.train.adapters import Attached, Factors
from fedpipe_agent.train.base import Base
from fedpipe_agent.train.contribution import PROBE, orthonormal_rows, probe_rank
from fedpipe_agent.train.data import Encoded, collate
from fedpipe_agent.train.errors import ModelError
from fedpipe_agent.train.step import losses, set_evaluation
from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.values import MAX_GAIN

SMOOTHING = 0.85
"""beta_1 and beta_2 of the running means: AdaLoRA's experiments have 0.85 for both."""

ORTHOGONALITY = 0.1
"""gamma, the factor of ||P^T P - I||^2 + ||Q Q^T - I||^2 in the loss: one of the values that AdaLoRA tries."""

LEARNING_RATE = 2e-3
"""Of the warm-up steps, by Adam: ours; the scores are compared with each other, and it moves all of them alike."""

LEAST_STEPS = 4
"""With fewer steps than this the batches are gone over again: lambda is 0 at the first, and so are most scores."""


class ScaledColumns(nn.Module):
    """`P diag(lambda)` as the second factor of an adapter: `p` (d_out, r), `scale` (r,), kept in fp32."""

    def __init__(self, p: torch.Tensor) -> None:
        super().__init__()
        self.p = nn.Parameter(p)
        self.scale = nn.Parameter(torch.zeros(p.shape[1], device=p.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `x` (..., r) to (..., d_out)."""
        return nn.functional.linear(x, (self.p * self.scale).to(x.dtype))


@dataclass(frozen=True, slots=True, eq=False)
class Triplets:
    """The adapter of one weight: `p` (d_out, r), `scale` (r,) and `q` (r, d_in)."""

    p: nn.Parameter
    scale: nn.Parameter
    q: nn.Parameter

    @property
    def parameters(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        """In the order in which `importance` wants their scores."""
        return self.p, self.scale, self.q

    def regulariser(self) -> torch.Tensor:
        """`||P^T P - I||^2 + ||Q Q^T - I||^2`, Frobenius norms."""
        eye = torch.eye(len(self.scale), device=self.p.device)
        return ((self.p.T @ self.p - eye) ** 2).sum() + ((self.q @ self.q.T - eye) ** 2).sum()


class Sensitivity:
    """The running means of one parameter's sensitivity, entry by entry."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self._mean = torch.zeros_like(parameter, requires_grad=False)
        self._uncertainty = torch.zeros_like(parameter, requires_grad=False)

    @torch.no_grad()
    def observe(self) -> None:
        """Take in the present gradient; none counts as zero."""
        gradient = self._parameter.grad
        now = torch.zeros_like(self._mean) if gradient is None else (self._parameter * gradient).abs()
        self._mean.lerp_(now, 1 - SMOOTHING)
        self._uncertainty.lerp_((now - self._mean).abs(), 1 - SMOOTHING)

    @property
    def score(self) -> torch.Tensor:
        """`Ibar * Ubar`, in float64 and of the parameter's shape."""
        return self._mean.double() * self._uncertainty.double()


def triplet_factors(base: Base, max_rank: int, seed: int) -> dict[str, Factors]:
    """What every candidate weight begins with: Q as `a` (r0, d_in), P as `b` (d_out, r0), both orthonormal."""
    found = {}
    for name, weight in base.weights.items():
        rank = probe_rank(weight, max_rank)
        q = orthonormal_rows(rank, weight.d_in, f"{seed}/{name}/q")
        found[name] = Factors(q, orthonormal_rows(rank, weight.d_out, f"{seed}/{name}/p").T.contiguous())
    return found


def sensitivity(
    base: Base,
    probes: Attached,
    groups: Sequence[Sequence[Encoded]],
    *,
    sequence_length: int,
    may_go_on: Callable[[], bool] = lambda: True,
    said: Callable[[int], None] = lambda _: None,
) -> Contribution:
    """Curves of every candidate weight, after a step on each batch, or on each again if they are few.

    Args:
        base: With the probes attached.
        probes: What `attached` gave for `triplet_factors`; trained here.
        groups: Batches of examples, one step each.
        sequence_length: Longest example in tokens.
        may_go_on: Asked before every step but the first two.
        said: Told how many steps are done.

    Raises:
        ModelError: if a score is not finite.
    """
    set_evaluation(base)
    triplets = _in_svd_form(base, probes)
    watched = {name: [Sensitivity(p) for p in each.parameters] for name, each in triplets.items()}
    parameters = [p for each in triplets.values() for p in each.parameters]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    seen = 0
    for done, group in enumerate(_steps(groups)):
        if done > 1 and not may_go_on():
            break
        optimizer.zero_grad(set_to_none=True)
        _loss(base, group, sequence_length).backward()
        for each in watched.values():
            for parameter in each:
                parameter.observe()
        _regulariser(triplets).backward()
        optimizer.step()
        seen += len(group) if done < len(groups) else 0
        said(min(done + 1, len(groups)))
    curves = {name: curve(importance(*(each.score for each in means))) for name, means in watched.items()}
    if not all(0.0 <= points[-1] <= MAX_GAIN for points in curves.values()):
        raise ModelError("the sensitivity of a weight is not finite: give this device more bits")
    return Contribution(method="sensitivity", examples=seen, curves=curves)


def _steps(groups: Sequence[Sequence[Encoded]]) -> Iterator[Sequence[Encoded]]:
    return itertools.islice(itertools.cycle(groups), max(LEAST_STEPS, len(groups)))


def _in_svd_form(base: Base, probes: Attached) -> dict[str, Triplets]:
    """Give every probe its lambda."""
    found = {}
    for name, pair in probes.factors[PROBE].items():
        columns = ScaledColumns(pair.b.detach())
        base.model.get_submodule(name).lora_B[PROBE] = columns
        assert isinstance(pair.a, nn.Parameter)
        found[name] = Triplets(columns.p, columns.scale, pair.a)
    return found


def _loss(base: Base, group: Sequence[Encoded], sequence_length: int) -> torch.Tensor:
    batch = collate(group, pad_id=base.tokenizer.pad_token_id, sequence_length=sequence_length, device=base.device)
    return (losses(base, batch).total / batch.units.clamp(min=1)).mean()


def _regulariser(triplets: dict[str, Triplets]) -> torch.Tensor:
    """Apart from the loss, so that no score has a part in it: near orthonormal factors its gradient is rounding."""
    return ORTHOGONALITY * torch.stack([each.regulariser() for each in triplets.values()]).sum()


def importance(p: torch.Tensor, scale: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Of each triplet (r,), from the scores of the entries of P (d_out, r), lambda (r,) and Q (r, d_in)."""
    return scale + p.mean(0) + q.mean(1)


def curve(importances: torch.Tensor) -> tuple[float, ...]:
    """c(1) .. c(r) from the triplets' importances (r,): the largest first, cumulated."""
    return tuple(importances.sort(descending=True).values.cumsum(0).tolist())
