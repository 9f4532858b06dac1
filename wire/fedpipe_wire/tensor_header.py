"""The header of a safetensors file: checked before it is believed, and made.

Owns the form of the header and the limits of what is parsed; reads no tensor.
Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON, data).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_TENSORS = 100_000
_MAX_DIMENSIONS = 8
_MAX_NAME = 512
_MAX_SHOWN = 120
_MAX_NUMBER = (1 << 63) - 1
_LENGTH_BYTES = 8
NUMPY_DTYPES = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "I16": "<i2", "U16": "<u2", "I32": "<i4",
    "U32": "<u4", "I64": "<i8", "U64": "<u8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_ITEM_BYTES = {"BF16": 2} | {code: np.dtype(text).itemsize for code, text in NUMPY_DTYPES.items()}
_CODES = {np.dtype(text): code for code, text in NUMPY_DTYPES.items()}


class TensorError(ValueError):
    """A tensor file that cannot be accepted, or tensors that do not fit the file to be written."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor must look like; `dtype` is safetensors' code, such as "F32"."""

    shape: tuple[int, ...]
    dtype: str = "F32"

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file, and where its bytes begin, counted from the header's end."""

    spec: TensorSpec
    begin: int


def shown(name: str) -> str:
    """A tensor's name as a message may tell it: short, in plain characters, whatever a stranger wrote there."""
    return name if len(name) <= _MAX_SHOWN and name.isascii() and name.isprintable() else ascii(name[:_MAX_SHOWN])


def spec_of(values: NDArray[Any]) -> TensorSpec:
    """The form of an array.

    Raises:
        TensorError: if safetensors has no such dtype.
    """
    if values.dtype not in _CODES:
        raise TensorError(f"dtype {values.dtype} cannot be written: convert to float32")
    return TensorSpec(values.shape, _CODES[values.dtype])


def encode_header(spec: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, and where each tensor's data begins, counted from the file's start."""
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begins: dict[str, int] = {}
    end = 0
    for name, entry in spec.items():
        begins[name], end = end, end + entry.nbytes
        table[name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": [begins[name], end],
        }
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    data = _LENGTH_BYTES + len(text)
    header = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return header, {name: data + begin for name, begin in begins.items()}


def read_header(
    file: BinaryIO, label: str, size: int, max_header_bytes: int, max_tensors: int
) -> tuple[dict[str, Entry], int]:
    """Read the header from the start of `file`, of `size` bytes; `label` names it in messages.

    Returns:
        The tensors by name, and where the data begins, counted from the file's start.

    Raises:
        TensorError: if it is longer than `max_header_bytes`, has more than `max_tensors` or is
            malformed, or if the tensors do not lie one behind the other up to the file's end.
    """
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
        raise TensorError(f"{label}: header of {length} bytes in a file of {size}: cut short")
    if length > max_header_bytes:
        raise TensorError(f"{label}: header of {length} bytes, at most {max_header_bytes} are read")
    table = _parse_table(file.read(length), label)
    if len(table) > max_tensors:
        raise TensorError(f"{label}: {len(table)} tensors, at most {max_tensors} are read")
    entries = {name: _parse_entry(name, raw, label) for name, raw in table.items()}
    _check_contiguous(entries, size - _LENGTH_BYTES - length, label)
    return entries, _LENGTH_BYTES + length


def _parse_table(text: bytes, label: str) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) != len(pairs):
            raise TensorError(f"{label}: a name occurs twice in the header")
        return dict(pairs)

    try:
        table = json.loads(text.decode(), object_pairs_hook=unique)
    except TensorError:
        raise
    except (ValueError, RecursionError) as error:
        raise TensorError(f"{label}: the header is not JSON: {error}") from None
    if not isinstance(table, dict):
        raise TensorError(f"{label}: the header is {type(table).__name__}, expected an object")
    table.pop("__metadata__", None)
    return table


def _parse_entry(name: str, raw: object, label: str) -> Entry:
    match raw:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end], **rest} if (
            not rest
            and dtype in _ITEM_BYTES
            and len(shape) <= _MAX_DIMENSIONS
            and len(name) <= _MAX_NAME
            and all(type(number) is int and 0 <= number <= _MAX_NUMBER for number in (*shape, begin, end))
        ):
            spec = TensorSpec(tuple(shape), dtype)
        case _:
            raise TensorError(f"{label}: malformed entry {shown(name)}: {ascii(raw)[:200]}")
    if end - begin != spec.nbytes:
        raise TensorError(f"{label}: {shown(name)}: {spec} needs {spec.nbytes} bytes, has {end - begin}")
    return Entry(spec, begin)


def _check_contiguous(entries: Mapping[str, Entry], data_bytes: int, label: str) -> None:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].spec.nbytes)):
        if entry.begin != end:
            raise TensorError(f"{label}: {shown(name)} begins at {entry.begin}, expected {end}")
        end += entry.spec.nbytes
    if end != data_bytes:
        raise TensorError(f"{label}: the tensors take {end} bytes, the file has {data_bytes}")
