"""Merge a PEFT adapter into its base model: a normal checkpoint, with no inference latency added.

Owns the one place where the coordinator's side needs torch, so it runs as a process of its own:

    python -m fedpipe_coordinator.export --adapter DIR --base BASE --task TASK --out DIR

It prints one line of JSON to stdout and errors to stderr. Exit codes:

    0    the merged model lies in --out
    2    wrong command line
    30   failed: the base or the adapter is missing, unreadable or does not fit, or the disk refused
    31   torch, transformers or peft is not installed
"""

import argparse
import glob
import json
import os
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedpipe_coordinator.peft_format import CONFIG_FILE, LABELS_FILE, MODEL_FILE, Task
from fedpipe_wire.tensors import TensorError, TensorFile

EXIT_OK = 0
EXIT_FAILED = 30
EXIT_EXTRAS_MISSING = 31

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json",
    "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip


class ExportError(Exception):
    """The model cannot be exported; the message says what to do."""

    exit_code = EXIT_FAILED


class ExtrasMissingError(ExportError):
    """The training stack is not installed on this machine."""

    exit_code = EXIT_EXTRAS_MISSING


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written; `tokenizer` is False where the base came without one."""

    out: str
    architecture: str
    parameters: int
    tokenizer: bool


def export_merged(adapter: Path, base: str, task: Task, out: Path) -> Exported:
    """Load the base in fp32, add the adapter, and save the sum as a plain checkpoint.

    Args:
        adapter: Folder that `peft_format.write_peft_adapter` wrote.
        base: Folder or hub id of the base model; nothing is fetched for a folder.
        task: What the model is fine-tuned for.
        out: Folder to make; appears whole or not at all.

    Raises:
        ExportError: if anything is missing, does not fit, or `out` is already in use.
    """
    _check_folders(adapter, out)
    labels = _read_labels(adapter)
    _require_extras()
    model = _load_base(base, task, labels)
    before = {name: value.shape for name, value in model.state_dict().items()}
    merged = _merge(model, adapter)
    after = {name: value.shape for name, value in merged.state_dict().items()}
    if type(merged) is not type(model) or after != before:
        changed = sorted(set(before.items()) ^ set(after.items()))[:5]
        raise ExportError(f"the merged model is not of the base's architecture: {changed}")
    part = _part_of(out)
    merged.save_pretrained(part)
    tokenizer = _copy_tokenizer(base, part)
    if out.is_dir():
        out.rmdir()
    part.replace(out)
    count = sum(parameter.numel() for parameter in merged.parameters())
    return Exported(str(out), type(merged).__name__, count, tokenizer)


def _part_of(out: Path) -> Path:
    """Where this process writes what becomes `out`; what processes that are gone left of theirs is removed."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
        pid = left.name.split(".")[-2]
        if pid == str(os.getpid()) or not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
    return out.with_name(f".{out.name}.{os.getpid()}.part")


def _check_folders(adapter: Path, out: Path) -> None:
    for name in (CONFIG_FILE, MODEL_FILE):
        if not (adapter / name).is_file():
            raise ExportError(f"{adapter} has no {name}: expected a folder in PEFT's format")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ExportError(f"{out} exists and is not empty: choose another folder or remove it")
    if not out.parent.is_dir():
        raise ExportError(f"{out.parent} is no folder: make it first")


def _read_labels(adapter: Path) -> dict[int, str]:
    """Class names by output; empty where the adapter came without."""
    path = adapter / LABELS_FILE
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["id2label"]
        return {int(index): str(label) for index, label in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is malformed: {error!r}: export the adapter again") from None


def _require_extras() -> None:
    try:
        import peft  # noqa: F401, PLC0415 - the coordinator runs without it
        import torch  # noqa: F401, PLC0415 - same
        import transformers  # noqa: F401, PLC0415 - same
    except ImportError as error:
        raise ExtrasMissingError(
            f"{error}: merging needs torch, transformers and peft: pip install 'fedpipe[export]'"
        ) from None


def _load_base(base: str, task: Task, labels: Mapping[int, str]) -> Any:
    import torch  # noqa: PLC0415 - see _require_extras
    import transformers  # noqa: PLC0415 - same

    kind = transformers.AutoModelForCausalLM
    options: dict[str, object] = {}
    if task == "sequence-classification":
        kind = transformers.AutoModelForSequenceClassification
        if labels:
            names = {label: index for index, label in labels.items()}
            options = {"num_labels": len(labels), "id2label": dict(labels), "label2id": names}
    try:
        return kind.from_pretrained(base, dtype=torch.float32, local_files_only=Path(base).is_dir(), **options)
    except Exception as error:  # noqa: BLE001 - transformers raises whatever its parts raise
        raise ExportError(
            f"cannot load the base model {base!r} for {task}: {_first_line(error)}: "
            "give the folder or hub id of the model that the run fine-tuned"
        ) from None


def _merge(model: Any, adapter: Path) -> Any:
    """The base with the adapter added to its weights, in place."""
    import peft  # noqa: PLC0415 - see _require_extras

    try:
        with TensorFile(adapter / MODEL_FILE) as file:
            stored = set(file.header)
        with warnings.catch_warnings():
            # PEFT only warns of missing tensors; the comparison below refuses them.
            warnings.simplefilter("ignore")
            wrapped = peft.PeftModel.from_pretrained(model, str(adapter))
        # "auto" would look for the base's config on the hub.
        used = set(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    except TensorError as error:
        raise ExportError(f"{adapter}: {error}: export the adapter again") from None
    except Exception as error:  # noqa: BLE001 - a wrong shape is a RuntimeError there, a name a ValueError
        raise ExportError(f"the adapter in {adapter} does not fit the base model: {_first_line(error)}") from None
    if stored != used:
        raise ExportError(
            f"the adapter in {adapter} does not fit the base model: "
            f"not used {sorted(stored - used)[:5]}, missing {sorted(used - stored)[:5]}"
        )
    try:
        return wrapped.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ExportError(f"the merged weights are not finite: {_first_line(error)}") from None


def _copy_tokenizer(base: str, out: Path) -> bool:
    """Save the base's tokenizer beside the model, if it has one."""
    import transformers  # noqa: PLC0415 - see _require_extras

    folder = Path(base)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return False
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(base, local_files_only=folder.is_dir())
    except Exception as error:  # noqa: BLE001 - as in _load_base
        raise ExportError(
            f"cannot load the tokenizer of {base!r}: {_first_line(error)}: repair or remove its tokenizer files"
        ) from None
    tokenizer.save_pretrained(out)
    return True


def _first_line(error: Exception) -> str:
    text = str(error).strip() or repr(error)
    return " ".join(text.split())[:500]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fedpipe_coordinator.export",
        description="Merge a PEFT adapter into its base model.",
    )
    parser.add_argument("--adapter", type=Path, required=True, help="folder in PEFT's format")
    parser.add_argument("--base", required=True, help="folder or hub id of the base model")
    parser.add_argument("--task", choices=("causal-lm", "sequence-classification"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    given = parser.parse_args(arguments)
    if Path(given.base).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        exported = export_merged(given.adapter, given.base, given.task, given.out)
    except ExportError as error:
        sys.stderr.write(f"export: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"export: cannot write {given.out}: {error}: free space or choose --out\n")
        return EXIT_FAILED
    sys.stdout.write(json.dumps(asdict(exported)) + "\n")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
