"""What a base model is made of, as one hash: all silos must train the same base.

The hash is over names, types, shapes and bytes of the tensors in the order of their names, so it depends neither on
where the folder lies nor on how the tensors are split into files.
"""

import functools
import hashlib
import json
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedpipe_agent.train.errors import ModelError

_MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
_STEP_BYTES = 1 << 24
_NAME = "model.safetensors"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that hold the base's tensors, sorted by name.

    Raises:
        ModelError: if there is none, or if an index names a file that is missing.
    """
    index = folder / f"{_NAME}.index.json"
    files = sorted(_shards(index)) if index.is_file() else [folder / _NAME]
    missing = [file for file in files if not file.is_file()]
    if missing and index.is_file():
        raise ModelError(f"{index} names {missing[0].name}, which is missing: copy the model again")
    if not missing:
        return tuple(files)
    if any((folder / name).exists() for name in _PICKLED):
        raise ModelError(
            f"{folder} holds its weights as {_PICKLED[0]} only, which is a pickle and may run code when it is loaded; "
            f"it is never read. Convert it where it is trusted (`save_pretrained` writes {_NAME}), or take a copy that "
            "has safetensors"
        )
    raise ModelError(f"{folder} holds no weights: expected {_NAME} (or its .index.json), as `save_pretrained` writes")


def weight_bytes(folder: Path) -> int:
    """Size of all weight files together; their headers are checked.

    Raises:
        ModelError: if they are missing, malformed or cut short.
    """
    files = weight_files(folder)
    for file in files:
        _entries(file)
    return sum(file.stat().st_size for file in files)


def _shards(index: Path) -> Iterable[Path]:
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{index} is not readable as an index of weights: {error}") from error
    return {index.parent / Path(str(name)).name for name in names}


def fingerprint(folder: Path) -> str:
    """Sha256, 64 hexadecimal digits, of the base model's tensors.

    Raises:
        ModelError: if the weights are missing or malformed.
    """
    files = weight_files(folder)
    stats = [file.stat() for file in files]
    return _fingerprint(files, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


def check_fingerprint(folder: Path, expected: str | None) -> None:
    """Check that a base is the one that a job names; None names none.

    Raises:
        ModelError: with both fingerprints, or if the weights are missing or malformed.
    """
    if expected is None:
        return
    found = fingerprint(folder)
    if found != expected:
        raise ModelError(
            f"another base model: its fingerprint here is {found}, the job names {expected} (job.model_sha256). "
            "Have the same files in all silos, or correct the job"
        )


@functools.lru_cache(maxsize=8)
def _fingerprint(files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> str:
    del stamps  # only tells a changed file from the one that was hashed
    digest = hashlib.sha256()
    try:
        _hash_tensors(files, digest)
    except OSError as error:
        raise ModelError(f"the base model cannot be read: {error}") from error
    return digest.hexdigest()


def _hash_tensors(files: tuple[Path, ...], digest: Any) -> None:
    tensors = sorted(entry for file in files for entry in _entries(file))
    for name, dtype, shape, file, begin, end in tensors:
        digest.update(json.dumps([name, dtype, shape]).encode())
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as view:
            for start in range(begin, end, _STEP_BYTES):
                digest.update(view[start : min(end, start + _STEP_BYTES)])


def _entries(file: Path) -> list[tuple[str, str, list[int], Path, int, int]]:
    """Name, dtype, shape, file, first byte and last byte + 1 of every tensor of a safetensors file."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        size = file.stat().st_size
        if length > min(_MAX_HEADER_BYTES, size):
            raise ModelError(f"{file} is not a safetensors file: its header claims {length} bytes of {size}")
        try:
            header = json.loads(stream.read(length))
            start = _LENGTH_BYTES + length
            entries = [
                (name, e["dtype"], e["shape"], file, start + e["data_offsets"][0], start + e["data_offsets"][1])
                for name, e in header.items()
                if name != "__metadata__"
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{file} is not a safetensors file: {error!r}") from error
    if any(not start <= begin <= end <= size for *_, begin, end in entries):
        raise ModelError(f"{file} is cut short: it has {size} bytes, its header names more; copy the model again")
    return entries
