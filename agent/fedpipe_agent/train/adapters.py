"""Adapters on a base: the components that a plan trains, and beside them, frozen, those that it does not.

Two PEFT adapters are active together, so that every layer computes W x + s B_t A_t x + s B_s A_s x: exactly the global
adapter on the device's own base. They come off again without a trace; nothing is ever merged into a base.
"""

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from fedpipe_agent.train.base import Base
from fedpipe_agent.train.errors import ModelError
from fedpipe_profiles.plan import Plan
from fedpipe_wire.tensors import (
    TensorError,
    TensorFile,
    TensorSpec,
    TensorWriter,
    a_name,
    b_name,
    check_tensors,
    head_name,
)

TRAINED = "trained"
SIDE = "side"


class Factors(NamedTuple):
    """An adapter of one weight: `a` (r, d_in) and `b` (d_out, r), float32."""

    a: torch.Tensor
    b: torch.Tensor


class FactorLinear(nn.Module):
    """One factor as a linear map: kept in fp32, multiplied in the dtype of what flows in.

    Casting the small factor instead of the large input saves a copy of the input per weight.
    """

    def __init__(self, weight: torch.Tensor, *, trainable: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=trainable)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `x` (..., n) to (..., m) by a weight (m, n)."""
        return nn.functional.linear(x, self.weight.to(x.dtype))


@dataclass(frozen=True, slots=True, eq=False)
class Attached:
    """What stands on the base at the moment: per adapter and weight, its factors as parameters."""

    factors: Mapping[str, Mapping[str, Factors]]
    head: Mapping[str, nn.Parameter]

    @property
    def trainable(self) -> list[nn.Parameter]:
        """Every parameter that requires a gradient, in the order of their names."""
        found = [
            p
            for of_weight in self.factors.values()
            for _, pair in sorted(of_weight.items())
            for p in pair
            if isinstance(p, nn.Parameter) and p.requires_grad
        ]
        return found + [p for _, p in sorted(self.head.items()) if p.requires_grad]

    @property
    def trainable_parameters(self) -> int:
        """Number of entries that are trained."""
        return sum(parameter.numel() for parameter in self.trainable)

    @property
    def side_parameters(self) -> int:
        """Number of entries on the frozen side path."""
        return sum(f.a.numel() + f.b.numel() for f in self.factors.get(SIDE, {}).values())


@contextlib.contextmanager
def attached(
    base: Base,
    factors: Mapping[str, Mapping[str, Factors]],
    *,
    scale: float,
    train: frozenset[str] = frozenset({TRAINED}),
    train_head: bool = True,
) -> Iterator[Attached]:
    """Put adapters on the base for as long as the block lasts.

    Args:
        base: Without adapters.
        factors: Per adapter name, the factors of each weight that it is on.
        scale: s of s * B @ A, alike for every rank.
        train: The adapters whose factors require gradients.
        train_head: Whether the head's parameters do.
    """
    present = {adapter: of_weight for adapter, of_weight in factors.items() if of_weight}
    try:
        if present:
            _inject(base, present, scale)
        for parameter in base.head.values():  # injecting freezes all but adapters
            parameter.requires_grad_(train_head)
        yield Attached(_fill(base, present, train), base.head)
    finally:
        _detach(base)


def _detach(base: Base) -> None:
    """Put the plain layers back.

    Also runs when memory ran out, while the failed graph is still alive; so not by peft's own `unload`, whose progress
    bar starts a thread, and CPython waits forever for a thread whose first allocation fails.
    """
    for name in base.weights:
        layer = base.model.get_submodule(name)
        if isinstance(layer, LoraLayer):
            base.model.set_submodule(name, layer.get_base_layer())
    if hasattr(base.model, "peft_config"):
        del base.model.peft_config
    base.model.zero_grad(set_to_none=True)


def _inject(base: Base, factors: Mapping[str, Mapping[str, Factors]], scale: float) -> None:
    # on the meta device, so that neither memory nor random numbers are spent on values that are replaced at once
    first, *others = factors
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # GPT-2's Conv1D: peft corrects the setting itself
        tuner = peft.LoraModel(base.model, _config(factors[first], scale), first, low_cpu_mem_usage=True)
        for adapter in others:
            tuner.peft_config[adapter] = _config(factors[adapter], scale)
            tuner.inject_adapter(base.model, adapter, low_cpu_mem_usage=True)
        tuner.set_adapter([first, *others])


def _config(factors: Mapping[str, Factors], scale: float) -> peft.LoraConfig:
    """The PEFT configuration of an adapter; one pattern per rank, because peft searches all patterns per layer."""
    by_rank: dict[int, list[str]] = {}
    for name, pair in factors.items():
        by_rank.setdefault(pair.a.shape[0], []).append(name)
    patterns = {f"^(?:{_any_of(names)})": rank for rank, names in by_rank.items()}
    return peft.LoraConfig(
        r=1,
        lora_alpha=1,
        target_modules=_any_of(list(factors)),
        rank_pattern=patterns,
        alpha_pattern={pattern: scale * rank for pattern, rank in patterns.items()},
        lora_dropout=0.0,
        bias="none",
    )


def _any_of(names: list[str]) -> str:
    return "|".join(re.escape(name) for name in names)


def _fill(
    base: Base, factors: Mapping[str, Mapping[str, Factors]], train: frozenset[str]
) -> dict[str, dict[str, Factors]]:
    filled: dict[str, dict[str, Factors]] = {}
    for adapter, of_weight in factors.items():
        filled[adapter] = {}
        for name, pair in of_weight.items():
            layer: Any = base.model.get_submodule(name)
            _check_shapes(base, name, pair)
            layer.cast_input_dtype_enabled = False
            layer.lora_A[adapter] = FactorLinear(pair.a.to(base.device), trainable=adapter in train)
            layer.lora_B[adapter] = FactorLinear(pair.b.to(base.device), trainable=adapter in train)
            filled[adapter][name] = Factors(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight)
    return filled


def _check_shapes(base: Base, name: str, pair: Factors) -> None:
    weight = base.weights[name]
    rank = pair.a.shape[0]
    if tuple(pair.a.shape) != (rank, weight.d_in) or tuple(pair.b.shape) != (weight.d_out, rank):
        raise ModelError(
            f"{name}: expected factors ({rank}, {weight.d_in}) and ({weight.d_out}, {rank}), "
            f"got {tuple(pair.a.shape)} and {tuple(pair.b.shape)}"
        )


def read_plan(base: Base, path: Path, plan: Plan) -> dict[str, dict[str, Factors]]:
    """Read a global adapter, split into what the plan trains and what it does not; the head goes into the base.

    Raises:
        ModelError: if any tensor is missing, unexpected or of another shape or dtype, if a value is not finite, or if
            the plan names components that the adapter does not have.
    """
    _check_components(base, plan)
    try:
        with TensorFile(path) as file:
            weights = sorted(plan.components.keys() | {name for name in base.weights if a_name(name) in file.header})
            check_tensors(file.header, _adapter_spec(base, weights, plan.global_rank))
            file.check_finite()
            for name, parameter in base.head.items():
                with torch.no_grad():
                    parameter.copy_(torch.from_numpy(file.read(head_name(name))))
            return _split(file, weights, plan)
    except (TensorError, OSError) as error:
        raise ModelError(f"the global adapter {path.name} cannot be used: {error}") from error


def _check_components(base: Base, plan: Plan) -> None:
    for name, indices in plan.components.items():
        if name not in base.weights:
            raise ModelError(f"the plan trains {name!r}, which the base does not have: are both of the same model?")
        if len(set(indices)) != len(indices) or any(index >= plan.global_rank for index in indices):
            raise ModelError(f"{name}: components {indices} are not distinct ones below {plan.global_rank}")


def _adapter_spec(base: Base, weights: list[str], rank: int) -> dict[str, TensorSpec]:
    spec: dict[str, TensorSpec] = {}
    for name in weights:
        spec[a_name(name)] = TensorSpec((rank, base.weights[name].d_in))
        spec[b_name(name)] = TensorSpec((base.weights[name].d_out, rank))
    spec.update({head_name(name): TensorSpec(tuple(p.shape)) for name, p in base.head.items()})
    return spec


def _split(file: TensorFile, weights: list[str], plan: Plan) -> dict[str, dict[str, Factors]]:
    parts: dict[str, dict[str, Factors]] = {TRAINED: {}, SIDE: {}}
    for name in weights:
        a, b = file.read(a_name(name)), file.read(b_name(name))
        chosen = list(plan.components.get(name, ()))
        rest = [index for index in range(plan.global_rank) if index not in set(chosen)]
        for adapter, indices in ((TRAINED, chosen), (SIDE, rest)):
            if indices:
                parts[adapter][name] = Factors(
                    torch.from_numpy(a[indices]), torch.from_numpy(np.ascontiguousarray(b[:, indices]))
                )
    return parts


def write_update(path: Path, on_base: Attached) -> None:
    """Write the trained components and the head, synced to disk; the same values give the same bytes.

    Raises:
        OSError: if the disk refuses.
    """
    tensors: dict[str, torch.Tensor] = {head_name(name): p for name, p in on_base.head.items()}
    for name, pair in on_base.factors.get(TRAINED, {}).items():
        tensors[a_name(name)], tensors[b_name(name)] = pair
    arrays = {name: tensors[name].detach().cpu().numpy() for name in sorted(tensors)}
    with TensorWriter(path, {name: TensorSpec(values.shape) for name, values in arrays.items()}) as writer:
        for name, values in arrays.items():
            writer.write(name, values)


def reset_head(base: Base) -> None:
    """Give the head back the values that it was loaded with."""
    with torch.no_grad():
        for name, parameter in base.head.items():
            parameter.copy_(base.initial_head[name])
