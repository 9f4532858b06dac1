"""One optimizer step, and what it does when memory runs out.

The loss of a step is the mean over its examples (classification) or its target tokens (causal-lm), however the step is
split: halving the batch changes memory and time, not the gradient.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from fedpipe_agent.train.adapters import Attached
from fedpipe_agent.train.base import Base, keep_dequantizing
from fedpipe_agent.train.data import IGNORED, Batch, Encoded, collate
from fedpipe_agent.train.errors import MemoryExceededError, ModelError
from fedpipe_agent.train.memory import Meter, is_out_of_memory
from fedpipe_profiles.device import MIB

CLIP_NORM = 1.0
"""Largest norm of a step's gradient; a larger one is scaled down."""


@dataclass(frozen=True, slots=True)
class Losses:
    """Per example of a batch: `total` (b,) nats summed over its units, and `correct` (b,) for classification."""

    total: torch.Tensor
    correct: torch.Tensor | None


def losses(base: Base, batch: Batch, label_shift: torch.Tensor | None = None) -> Losses:
    """Losses of a batch, in float32.

    `label_shift` (labels,) is added to the logits before the loss is taken; see `label_shift`.
    """
    if base.task == "sequence-classification":
        logits = base.model(input_ids=batch.ids, attention_mask=batch.mask).logits.float()
        shifted = logits if label_shift is None else logits + label_shift
        total = functional.cross_entropy(shifted, batch.targets, reduction="none")
        return Losses(total, (logits.argmax(-1) == batch.targets).detach())
    return Losses(_token_losses(base.model, batch), None)


def label_shift(counts: Sequence[int]) -> torch.Tensor:
    """What a silo adds to the logits while it trains, so that its own mix of labels is not learned into the model.

    The logarithm of its label frequencies, with half an example added to each: the softmax then estimates how likely a
    label is when all are equally frequent, which is the same target in every silo (logit adjustment, Menon et al.,
    arXiv 2007.07314, eq. 10; for federated training Zhang et al., arXiv 2209.00189).

    Args:
        counts: Training examples of every label, in the order of the model's outputs, `(labels,)`.
    """
    smoothed = torch.tensor([count + 0.5 for count in counts])
    return torch.log(smoothed / smoothed.sum())


def _token_losses(model: Any, batch: Batch) -> torch.Tensor:
    """Sum over target tokens, (b,). Logits are the largest tensor: they are made only where something is predicted."""
    labels = batch.targets[:, 1:]
    wanted = labels != IGNORED
    columns = wanted.any(0).nonzero().squeeze(1)
    keep = {"logits_to_keep": columns} if _keeps_logits(model) else {}
    logits = model(input_ids=batch.ids, attention_mask=batch.mask, **keep).logits
    if not keep:
        logits = logits[:, columns]
    chosen = wanted[:, columns]
    nats = functional.cross_entropy(logits[chosen].float(), labels[:, columns][chosen], reduction="none")
    rows = chosen.nonzero()[:, 0]
    return torch.zeros(len(batch.ids), device=nats.device).index_add(0, rows, nats)


def _keeps_logits(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


@dataclass(slots=True)
class StepSettings:
    """How steps are taken. `micro_batch` and `checkpointing` change when memory runs out; `actions` says so.

    With `label_counts`, the silo's mix of labels is kept out of the loss (see `label_shift`).
    """

    sequence_length: int
    learning_rate: float
    warm_up_steps: int
    micro_batch: int
    checkpointing: bool
    actions: list[str] = field(default_factory=list)
    label_counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What finished steps made, apart from the base that they were taken on, in host memory.

    `values` are of `Attached.trainable`, in its order; `optimizer` is Adam's state for them, `steps` their number.
    """

    values: tuple[torch.Tensor, ...]
    optimizer: dict[str, Any]
    steps: int


class Stepper:
    """Takes optimizer steps on what is attached to a base.

    Args:
        base: With `on_base` attached.
        on_base: What is trained.
        settings: Changed in place where memory runs out.
        meter: Told to release memory after a failure.
        kept: To go on from, as if its steps had been taken here.
    """

    def __init__(
        self, base: Base, on_base: Attached, settings: StepSettings, meter: Meter, kept: Kept | None = None
    ) -> None:
        self._base, self._settings, self._meter = base, settings, meter
        self._parameters = on_base.trainable
        # the fused kernel needs no temporary copies of the parameters
        self._optimizer = torch.optim.AdamW(self._parameters, lr=settings.learning_rate, weight_decay=0.0, fused=True)
        self._steps = 0
        if kept is not None:
            self._resume(kept)
        self._shift = label_shift(settings.label_counts).to(base.device) if settings.label_counts else None
        set_training(base, checkpointing=settings.checkpointing)

    def keep(self) -> Kept:
        """What was made so far; on a CPU nothing is copied, for there may be no memory for it."""
        state = self._optimizer.state_dict()
        state["state"] = {
            key: {name: value.cpu() for name, value in of_one.items()}
            for key, of_one in state["state"].items()
            if of_one
        }
        return Kept(tuple(p.detach().cpu() for p in self._parameters), state, self._steps)

    def _resume(self, kept: Kept) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, kept.values, strict=True):
                parameter.copy_(value)
        self._optimizer.load_state_dict(kept.optimizer)
        self._steps = kept.steps

    def step(self, examples: Sequence[Encoded]) -> float:
        """Train one batch and return its mean loss per unit.

        Raises:
            MemoryExceededError: if not even one example at a time, with checkpointing, fits.
            ModelError: if loss or gradient is not finite.
        """
        while True:
            try:
                return self._attempt(examples)
            except (RuntimeError, SystemError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                said = str(error).strip().splitlines()[:1]
            # outside of the handler, so that the failed graph is free before anything else is tried
            self._optimizer.zero_grad(set_to_none=True)
            self._drop_half_made()
            self._meter.release()
            self._shrink(len(examples), said[0] if said else "MemoryError")
            self._meter.reset()  # the peak that is reported is of what worked

    def _attempt(self, examples: Sequence[Encoded]) -> float:
        settings = self._settings
        units = max(1, sum(example.units for example in examples))
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for start in range(0, len(examples), settings.micro_batch):
            batch = collate(
                examples[start : start + settings.micro_batch],
                pad_id=self._base.tokenizer.pad_token_id,
                sequence_length=settings.sequence_length,
                device=self._base.device,
            )
            loss = losses(self._base, batch, self._shift).total.sum()
            (loss / units).backward()
            total += loss.item()
        self._check_finite(total, "loss")
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, CLIP_NORM)
        self._check_finite(norm.item(), "norm of the gradient")
        warm = min(1.0, (self._steps + 1) / (settings.warm_up_steps + 1))
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * warm
        self._optimizer.step()
        self._steps += 1
        return total / units

    def _drop_half_made(self) -> None:
        """Forget Adam's state where memory ran out while it was made: he takes any state at all for a whole one."""
        for state in self._optimizer.state.values():
            if "exp_avg_sq" not in state:
                state.clear()

    def _check_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise ModelError(
                f"the {what} became {value} at step {self._steps + 1}: lower train.learning_rate "
                f"(it is {self._settings.learning_rate:g}), or give this device more bits"
            )

    def _shrink(self, batch_size: int, said: str) -> None:
        """Halve the batch; when it is one example, turn checkpointing on; then give up."""
        settings = self._settings
        now = min(settings.micro_batch, batch_size)
        if now > 1:
            settings.micro_batch = -(-now // 2)
            settings.actions.append(
                f"step {self._steps + 1}: out of memory at {now} examples, now {settings.micro_batch} at a time"
            )
        elif not settings.checkpointing and self._base.model.supports_gradient_checkpointing:
            settings.checkpointing = True
            set_training(self._base, checkpointing=True)
            settings.actions.append(f"step {self._steps + 1}: out of memory at 1 example, checkpointing turned on")
        else:
            raise MemoryExceededError(
                f"out of memory at 1 example at a time, limit {self._meter.limit_bytes // MIB} MiB ({said}): "
                "fewer bits, a shorter sequence or a larger limit is needed",
                self._meter.peak_bytes(),
            )


def set_training(base: Base, *, checkpointing: bool) -> None:
    """Training mode. Checkpointing is the non-reentrant kind, which needs no gradient at the embeddings.

    Raises:
        ModelError: if checkpointing is asked for and the architecture does not know it.
    """
    if checkpointing and not base.model.supports_gradient_checkpointing:
        raise ModelError(f"{type(base.model).__name__} does not support gradient checkpointing: plan without it")
    base.model.train()
    _set_checkpointing(base.model, on=checkpointing)


def set_evaluation(base: Base) -> None:
    """Evaluation mode: no dropout, no checkpointing."""
    _set_checkpointing(base.model, on=False)
    base.model.eval()
    keep_dequantizing(base.model, base.device)


def _set_checkpointing(model: Any, *, on: bool) -> None:
    # transformers renames both methods within its fifth version; the later name where there is one
    stem = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{stem}_checkpointing_enable")({"use_reentrant": False})
        # asked for by transformers at every call, for the reentrant kind: the way back would not end at the first layer
        model.disable_input_require_grads()
    elif model.supports_gradient_checkpointing:
        getattr(model, f"{stem}_checkpointing_disable")()
