"""The global adapter in PEFT's own format, so that plain `peft` loads it.

Owns names and settings of that format (PEFT 0.21). Never imports peft or torch.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from fedpipe_profiles.model import ModelShape
from fedpipe_wire.tensors import (
    TensorError,
    TensorFile,
    TensorSpec,
    TensorWriter,
    a_name,
    b_name,
    head_name,
)

Task = Literal["causal-lm", "sequence-classification"]

CONFIG_FILE = "adapter_config.json"
MODEL_FILE = "adapter_model.safetensors"
LABELS_FILE = "labels.json"
_PREFIX = "base_model.model."
_AUTOMATIC_HEADS = ("classifier", "score")
"""Modules that PEFT saves whole by itself for SEQ_CLS, with everything below them."""


def write_peft_adapter(
    folder: Path,
    adapter_path: Path,
    shape: ModelShape,
    *,
    task: Task,
    base_model: str,
    scale: float,
    labels: Sequence[str] = (),
) -> None:
    """Write `folder` such that `PeftModel.from_pretrained(base, folder)` adds `scale * B @ A`.

    The base must be loaded for the task: for classification
    `AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=len(labels))`.
    `labels.json` then says which output means what. The folder is made where it is missing; files
    of an earlier call are replaced.

    Args:
        folder: Where `adapter_config.json` and `adapter_model.safetensors` go.
        adapter_path: A global adapter as `fedpipe_wire.tensors` describes it.
        shape: Of the base model.
        task: What the model is fine-tuned for.
        base_model: Folder or hub id that the adapter belongs to.
        scale: The constant s of s * B @ A.
        labels: Names of the classes, in order of the outputs.

    Raises:
        TensorError: if the file is no global adapter of this model.
        OSError: if the file cannot be read or the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TensorFile(adapter_path) as source:
        names = _renamed(source.header, shape)
        weights = [weight for weight in shape.weights if a_name(weight.name) in names]
        ranks = {source.header[a_name(weight.name)].shape[0] for weight in weights}
        if len(ranks) != 1:
            raise TensorError(f"expected one rank for all weights, got {sorted(ranks)}")
        spec = {names[name]: source.header[name] for name in sorted(names, key=names.__getitem__)}
        with TensorWriter(folder / MODEL_FILE, spec, metadata={"format": "pt"}) as writer:
            for name, renamed in names.items():
                writer.write(renamed, source.read(name))
    rank = ranks.pop()
    alpha = scale * rank
    heads = _head_modules(part.name for part in shape.head)
    config = {
        "peft_type": "LORA",
        "task_type": _task_type(task, has_head=bool(heads)),
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(weight.transposed for weight in weights),
        "target_modules": [weight.name for weight in weights],
        "modules_to_save": heads or None,
    }
    _write_json(folder / CONFIG_FILE, config)
    if labels:
        _write_json(folder / LABELS_FILE, {"id2label": dict(enumerate(labels))})


def _renamed(header: dict[str, TensorSpec], shape: ModelShape) -> dict[str, str]:
    """PEFT's name of every tensor."""
    known = {head_name(part.name): f"{_PREFIX}{part.name}" for part in shape.head}
    for weight in shape.weights:
        known[a_name(weight.name)] = f"{_PREFIX}{weight.name}.lora_A.weight"
        known[b_name(weight.name)] = f"{_PREFIX}{weight.name}.lora_B.weight"
    foreign = sorted(set(header) - set(known))
    if foreign:
        raise TensorError(f"the model has no weight for {foreign[:5]}: another model's adapter?")
    return {name: known[name] for name in header}


def _head_modules(names: Iterable[str]) -> list[str]:
    """The modules that hold the parameters trained whole.

    A head such as RoBERTa's, with layers below `classifier`, is one module for PEFT: it wraps
    `classifier` by itself, and must not wrap the layers below it a second time.
    """
    modules: list[str] = []
    for name in names:
        top = name.split(".", 1)[0]
        module = top if top in _AUTOMATIC_HEADS else name.rpartition(".")[0]
        if module not in modules:
            modules.append(module)
    return modules


def _task_type(task: Task, *, has_head: bool) -> str | None:
    """PEFT's task; for SEQ_CLS it expects a saved head, so not where the head was not trained."""
    if task == "causal-lm":
        return "CAUSAL_LM"
    return "SEQ_CLS" if has_head else None


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
