"""The base model in memory, at the bits of a plan: frozen, without adapters, and usable again and again.

Owns loading and what must hold of a loaded base. Adapters come and go in `adapters.py`.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from fedpipe_agent.train.errors import ModelError
from fedpipe_agent.train.fingerprint import weight_bytes
from fedpipe_agent.train.memory import Meter, is_out_of_memory
from fedpipe_agent.train.shape import (
    AUTO_CLASSES,
    Task,
    candidates,
    head_names,
    lookups,
    other_linear_names,
    read_config,
    skeleton,
)
from fedpipe_profiles.costs.step import compute_dtype
from fedpipe_profiles.device import Bits
from fedpipe_profiles.model import WeightShape

Device = Literal["cpu", "cuda"]


@dataclass(slots=True, eq=False)
class Base:
    """A loaded base. `weights` are the candidates; `head` the fp32 parameters trained whole, by name."""

    model: Any
    tokenizer: Any
    task: Task
    labels: tuple[str, ...]
    bits: Bits
    device: Device
    weights: dict[str, WeightShape]
    head: dict[str, nn.Parameter]
    initial_head: dict[str, torch.Tensor]
    load_s: float


def torch_dtype(bits: Bits, device: Device) -> torch.dtype:
    """What the base computes in, and what is not quantized is kept in."""
    dtype = getattr(torch, compute_dtype(device, bits))
    assert isinstance(dtype, torch.dtype)
    return dtype


def locate(model: str, *, trusted: bool = False) -> Path:
    """The folder of a base: as given, or a hub's snapshot, downloaded where it is not in the cache and may be.

    Its own code comes with it only where that is `trusted`.

    Raises:
        ModelError: if there is no such folder, or if the hub cannot give it.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith((".", "~")):
        raise ModelError(f"model folder {model} does not exist: check the job's model, or map it in agent.toml")
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only a hub id needs it

    wanted = [*_WANTED, *(["*.py"] if trusted else [])]
    try:
        # a model of several forms has some in folders of their own
        return Path(snapshot_download(model, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as error:
        raise ModelError(
            f"model {model!r} is neither a folder here nor to be had from the hub ({type(error).__name__}: {error}); "
            "map it to a folder in agent.toml, or name it in [training] hub_models to have it downloaded"
        ) from error


_WANTED = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
"""What is fetched of a hub's model."""


_QUANTIZED = (4, 8)
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.*",
    "*.bpe.model",
    "spiece.model",
    "*.tiktoken",
)


def load_tokenizer(folder: Path, *, trusted: bool = False) -> Any:
    """The base's tokenizer, always with a token to pad with; `trusted` as in `shape.read_config`.

    Raises:
        ModelError: if there is none, or if it has neither a pad nor an end token.
    """
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        # without any of these transformers makes an empty tokenizer, to which every word is unknown
        raise ModelError(f"{folder} holds no tokenizer: none of {', '.join(_TOKENIZERS)} is there; copy them too")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"the tokenizer of {folder} cannot be used: {error}") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer of {folder} has neither a pad nor an end-of-text token: add one")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(  # noqa: PLR0913 - each says another thing about how to load it
    folder: Path,
    task: Task,
    labels: Sequence[str],
    *,
    bits: Bits,
    device: Device,
    seed: int,
    meter: Meter,
    trusted: bool = False,
) -> Base:
    """Load a base, frozen, with its candidate weights at `bits` and all else in the compute dtype.

    Tensors come from safetensors only: PyTorch's own format is a pickle. `trusted` as in `shape.read_config`.
    The head is drawn by `seed`, as transformers initialises it, until an adapter file's head replaces it.

    Raises:
        ModelError: if files are missing or unreadable, or if the checkpoint lacks tensors of the base.
    """
    started = time.monotonic()
    config = read_config(folder, task, labels, trusted=trusted)
    outline = skeleton(config, task, trusted=trusted)
    weights = candidates(outline, task)
    tokenizer = load_tokenizer(folder, trusted=trusted)
    config.pad_token_id = tokenizer.pad_token_id
    size = weight_bytes(folder)
    torch.manual_seed(seed)
    try:
        with meter.mapping(size):
            model, report = AUTO_CLASSES[task].from_pretrained(
                folder,
                config=config,
                dtype=torch_dtype(bits, device),
                quantization_config=_quantization(bits, device, other_linear_names(outline, task)),
                device_map={"": device},
                local_files_only=True,
                trust_remote_code=trusted,
                use_safetensors=True,
                output_loading_info=True,
            )
            # while the checkpoint is still mapped, and counted: what is copied out of it needs room beside it
            _prepare(model, bits, device)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"the base in {folder} cannot be loaded at {bits} bits: {error}") from error
    head = head_names(model, task)
    _check_complete(folder, report, head)
    parameters = _thaw_head(model, head)
    meter.release()
    return Base(
        model=model,
        tokenizer=tokenizer,
        task=task,
        labels=tuple(labels),
        bits=bits,
        device=device,
        weights={weight.name: weight for weight in weights},
        head=parameters,
        initial_head={name: parameter.detach().clone() for name, parameter in parameters.items()},
        load_s=time.monotonic() - started,
    )


def _quantization(bits: Bits, device: Device, skip: Sequence[str]) -> Any:
    # a pattern without its end would also skip every module of which it is the beginning or the end
    skipped = [name.replace(".", r"\.") + "$" for name in skip]
    match bits:
        case 4:
            return transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch_dtype(bits, device),
                llm_int8_skip_modules=skipped,
            )
        case 8:
            return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
        case 16 | 32:
            return None


def _check_complete(folder: Path, report: Any, head: Sequence[str]) -> None:
    """A tensor that the checkpoint lacks would be drawn at random, differently in every silo."""
    missing = sorted(set(report["missing_keys"]) - set(head))
    wrong = sorted({name for name, *_ in report["mismatched_keys"]} - set(head))
    for what, names in (("lacks", missing), ("has another shape for", wrong)):
        if names:
            raise ModelError(
                f"the checkpoint in {folder} {what} {len(names)} tensors of the base, such as {names[0]}: "
                "use a complete checkpoint of this architecture"
            )


def _prepare(model: Any, bits: Bits, device: Device) -> None:
    model.requires_grad_(requires_grad=False)
    model.config.use_cache = False
    model.eval()
    for module in model.modules():
        # the packed CPU format serves inference only: training on such a weight fails
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if device == "cpu" and bits in _QUANTIZED:
        for module in lookups(model):
            module.weight.data = module.weight.data.to(torch.bfloat16)
            module.register_forward_hook(_from_bfloat16)
        # what was not converted still lies in the mapped checkpoint, and would keep all of its pages
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.clone()
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            module.register_forward_hook(_forget_input)
    keep_dequantizing(model, device)


def _forget_input(_module: nn.Module, _inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """Drop the input that bitsandbytes keeps for the gradient of a weight, which is frozen here.

    It is kept beside autograd's own saved tensors, where checkpointing does not see it: every layer's inputs would
    stay, as if there were no checkpointing.
    """
    node: Any = output.grad_fn
    if hasattr(node, "A"):  # on a processor
        node.A = None
    elif hasattr(node, "tensors"):  # on a GPU: what only the weight's own gradient needs, and the input
        node.tensors = (*node.tensors[:2], None)


def _from_bfloat16(_module: nn.Module, _inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output.float()


def keep_dequantizing(model: Any, device: Device) -> None:
    """Keep INT8 layers in training mode on CPU, where evaluation mode would also round the activations.

    They have no dropout, so nothing else changes. To be called after every `model.eval()`.
    """
    if device == "cpu":
        for module in model.modules():
            if type(module).__name__ == "Linear8bitLt" and not hasattr(module, "base_layer"):
                module.train()


def _thaw_head(model: Any, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """Make the head's parameters fp32, and cast what flows into their modules."""
    parameters: dict[str, nn.Parameter] = {}
    for name in names:
        owner = model.get_submodule(name.rpartition(".")[0])
        parameter = nn.Parameter(model.get_parameter(name).detach().float())
        setattr(owner, name.rpartition(".")[2], parameter)
        parameters[name] = parameter
        if not owner._forward_pre_hooks:  # noqa: SLF001 - one hook per module, whatever it owns
            owner.register_forward_pre_hook(_to_float32)
    return parameters


def _to_float32(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)


def quiet_libraries() -> None:
    """Only errors of the libraries go to the log; their progress bars and advice do not."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
