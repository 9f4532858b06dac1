"""The shape of a base model, read from its real modules on the meta device: no tensor is allocated.

Owns which weights are candidates for adapters and what belongs to the head. Loading the tensors is `base.py`'s work.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedpipe_agent.train.errors import ModelError
from fedpipe_agent.train.fingerprint import fingerprint
from fedpipe_profiles.architectures.shape import ArchitectureError, shape_of
from fedpipe_profiles.model import BlockShape, ModelShape, ParameterShape, WeightShape

Task = Literal["causal-lm", "sequence-classification"]

AUTO_CLASSES: dict[Task, Any] = {
    "causal-lm": transformers.AutoModelForCausalLM,
    "sequence-classification": transformers.AutoModelForSequenceClassification,
}

_MLP_FACTOR = 4
"""GPT-2's convention for the width of the MLP where the configuration leaves it out."""


def read_config(folder: Path, task: Task, labels: Sequence[str], *, trusted: bool = False) -> Any:
    """The base's configuration, with the job's labels for a classification.

    Code that lies in the folder is run only where it is `trusted`; otherwise a base that needs it is refused.

    Raises:
        ModelError: if it is missing, malformed, of an unknown architecture, or of a base that is quantized already.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the configuration of {folder} cannot be used: {_first_line(error)}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{folder} holds a quantized model: give the plain one, each device quantizes it to its own bits"
        )
    if task == "sequence-classification":
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    return config


def check_length(folder: Path, sequence_length: int, *, trusted: bool = False) -> None:
    """Check that the model has that many positions.

    Raises:
        ModelError: if it has fewer.
    """
    text = read_config(folder, "causal-lm", (), trusted=trusted).get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    if isinstance(longest, int) and sequence_length > longest:
        raise ModelError(f"train.sequence_length is {sequence_length}, the model has {longest} positions: lower it")


def skeleton(config: Any, task: Task, *, trusted: bool = False) -> Any:
    """The model of a configuration on the meta device; `trusted` as in `read_config`.

    Raises:
        ModelError: if transformers has no such model for the task.
    """
    try:
        with torch.device("meta"):
            return AUTO_CLASSES[task].from_config(config, trust_remote_code=trusted)
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"no {task} model for architecture {config.model_type!r}: {_first_line(error)}") from error


def head_names(model: Any, task: Task) -> tuple[str, ...]:
    """Names of the parameters trained whole: for a classification, all outside the base; for causal-lm, none."""
    if task == "causal-lm":
        return ()
    inside = model.base_model_prefix + "."
    return tuple(name for name, _ in model.named_parameters() if not name.startswith(inside))


def candidates(model: Any, task: Task) -> tuple[WeightShape, ...]:
    """Every linear layer that may carry an adapter: all but embeddings, the output layer and the head."""
    output = model.get_output_embeddings()
    head = {name.rpartition(".")[0] for name in head_names(model, task)}
    return tuple(
        WeightShape(name=name, d_out=size[0], d_in=size[1], transposed=isinstance(module, Conv1D))
        for name, module in model.named_modules()
        if (size := _size(module)) is not None and module is not output and name not in head
    )


def other_linear_names(model: Any, task: Task) -> tuple[str, ...]:
    """Names of the linear layers that are no candidates, and so are never quantized."""
    chosen = {weight.name for weight in candidates(model, task)}
    return tuple(name for name, module in model.named_modules() if _size(module) is not None and name not in chosen)


def lookups(model: Any) -> tuple[nn.Embedding, ...]:
    """Embedding tables that are only looked up; one whose matrix is also the output head's is none."""
    output = model.get_output_embeddings()
    tied = None if output is None else output.weight
    return tuple(m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is not tied)


def _size(module: nn.Module) -> tuple[int, int] | None:
    """`(d_out, d_in)` of a linear layer, None for any other module."""
    if type(module) is nn.Linear:  # a subclass has a meaning of its own that an adapter would not know
        return module.out_features, module.in_features
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return d_out, d_in
    return None


def read_shape(folder: Path, task: Task, labels: Sequence[str], *, trusted: bool = False) -> ModelShape:
    """Shape and fingerprint of the base in a folder; `trusted` as in `read_config`.

    Raises:
        ModelError: if it cannot be read, or has no linear layer to put an adapter on.
    """
    config = read_config(folder, task, labels, trusted=trusted)
    model = skeleton(config, task, trusted=trusted)
    weights = candidates(model, task)
    if not weights:
        raise ModelError(f"architecture {config.model_type!r} has no linear layer to put an adapter on")
    parameters = dict(model.named_parameters())
    head = tuple(ParameterShape(name=name, shape=tuple(parameters[name].shape)) for name in head_names(model, task))
    total = sum(parameter.numel() for parameter in parameters.values())
    counted = sum(weight.parameters for weight in weights) + sum(parameter.parameters for parameter in head)
    text = config.get_text_config()
    shape = ModelShape(
        model_type=config.model_type,
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=_intermediate_size(text),
        heads=text.num_attention_heads,
        vocabulary_size=text.vocab_size,
        weights=weights,
        other_parameters=total - counted,
        lookup_parameters=sum(table.weight.numel() for table in lookups(model)),
        head=head,
        fused_attention=model.config._attn_implementation != "eager",  # noqa: SLF001 - no public accessor
        fingerprint=fingerprint(folder),
    )
    return shape.model_copy(update={"block": _block(config, shape, task, len(labels))})


def _block(config: Any, shape: ModelShape, task: Task, labels: int) -> BlockShape | None:
    """How a layer computes, as the configuration says; None unless it describes the very modules that were read."""
    try:
        known = shape_of(config.to_dict(), task=task, num_labels=labels, fingerprint=shape.fingerprint)
    except ArchitectureError:
        return None
    alike = known.model_copy(update={"block": None, "fused_attention": shape.fused_attention}) == shape
    return known.block if alike else None


def _intermediate_size(text: Any) -> int:
    for name in ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim"):
        size = getattr(text, name, None)
        if isinstance(size, int):
            return size
    return int(text.hidden_size) * _MLP_FACTOR


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
