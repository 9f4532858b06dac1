"""Exact bytes that autograd saves in a training step of a large model, on the meta device, where nothing is allocated.

The model is built from a catalogued configuration, the adapters are put on it by the trainer's own code, and hooks see
every tensor that is saved for the way back. Attention takes its composed path there, so what is compared is the
account of that kernel.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedpipe_agent.train.adapters import SIDE, TRAINED, Factors, attached
from fedpipe_agent.train.base import Base, Device
from fedpipe_agent.train.shape import candidates, skeleton
from fedpipe_profiles.architectures.shape import shape_of
from fedpipe_profiles.catalog.model_catalogue import catalogued_model
from fedpipe_profiles.costs.account import OnWeight, kept_bytes, parts_of
from fedpipe_profiles.costs.step import StepSetting
from fedpipe_profiles.model import ModelShape

MODELS = (
    "meta-llama/Llama-3.1-8B",
    "openai-community/gpt2-xl",
    "google-bert/bert-large-uncased",
    "Qwen/Qwen2.5-7B",
    "google/gemma-2-9b",
)
BATCH, LENGTH = 2, 512
TRAINED_RANK, SIDE_RANK = 8, 8


@dataclass(frozen=True, slots=True)
class Saved:
    """What a step saved, and what the account says; seconds of both."""

    model: str
    true_bytes: int
    counted_bytes: float
    step_s: float

    @property
    def error(self) -> float:
        """Share by which the account is too high; negative where it is too low."""
        return self.counted_bytes / self.true_bytes - 1


def saved_by_step(name: str) -> Saved:
    """Forward pass of one model, in bf16, with adapters trained and carried along on every weight.

    Raises:
        ValueError: if the model is not in the catalogue, or not known in detail.
    """
    config = catalogued_model(name)
    if config is None:
        raise ValueError(f"{name} is not in the model catalogue")
    shape = shape_of(dict(config), task="causal-lm", num_labels=0, fingerprint="0" * 64)
    setting = StepSetting(
        bits=16,
        batch_size=BATCH,
        sequence_length=LENGTH,
        gradient_checkpointing=False,
        task="causal-lm",
        padded=True,
    )
    parts = parts_of(shape, setting, "math" if shape.fused_attention else "eager")
    if parts is None:
        raise ValueError(f"{name} is not known in detail")
    counted = kept_bytes(parts.costs({}, OnWeight(TRAINED_RANK, SIDE_RANK), setting), parts.flow)
    base = _base(dict(config))
    started = time.perf_counter()
    true = _saved_bytes(base, shape)
    return Saved(name, true, counted, time.perf_counter() - started)


def _base(values: dict[str, Any]) -> Base:
    config = transformers.AutoConfig.for_model(**values)
    config.is_decoder = config.model_type != "bert" and getattr(config, "is_decoder", False)
    config.use_cache = False
    model = skeleton(config, "causal-lm").to(torch.bfloat16)
    model.requires_grad_(requires_grad=False)
    model.train()
    return Base(
        model=model,
        tokenizer=None,
        task="causal-lm",
        labels=(),
        bits=16,
        device=cast("Device", "meta"),
        weights={weight.name: weight for weight in candidates(model, "causal-lm")},
        head={},
        initial_head={},
        load_s=0.0,
    )


def _saved_bytes(base: Base, shape: ModelShape) -> int:
    with torch.device("meta"):
        ids = torch.zeros(BATCH, LENGTH, dtype=torch.long)
        # as the layers take it: made by the model, it would have to be looked at for rows without any token
        mask = torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool)
        columns = torch.arange(LENGTH - 1)
        rows = torch.zeros(BATCH * (LENGTH - 1), dtype=torch.long)
        factors = {
            adapter: {w.name: Factors(torch.empty(rank, w.d_in), torch.empty(w.d_out, rank)) for w in shape.weights}
            for adapter, rank in ((TRAINED, TRAINED_RANK), (SIDE, SIDE_RANK))
        }
    with attached(base, factors, scale=1.0), sdpa_kernel(SDPBackend.MATH), _storages() as found:
        own = {p.untyped_storage()._cdata for p in base.model.parameters()}  # noqa: SLF001 - meta tensors share no address
        logits = base.model(input_ids=ids, attention_mask=mask, logits_to_keep=columns).logits
        # the trainer picks by a mask, whose size a tensor without values cannot tell
        loss = functional.cross_entropy(logits[rows, rows].float(), rows, reduction="none").sum()
        sizes = {key: storage.nbytes() for key, storage in found.items() if key not in own}
        del loss
    return sum(sizes.values())


@contextmanager
def _storages() -> Iterator[dict[int, torch.UntypedStorage]]:
    """The distinct storages of what is saved while this lasts, kept alive so that none takes another's place."""
    found: dict[int, torch.UntypedStorage] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point():
            found[storage._cdata] = storage  # noqa: SLF001 - meta tensors have no address of their own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        yield found
