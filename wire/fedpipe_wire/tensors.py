"""Tensors at rest and on the way: safetensors files, read and written one tensor at a time.

Owns the file convention that the global adapter and every update share, and the checks that come
before a received file is believed. For a weight `W` of shape (d_out, d_in) and r components:

    W.lora_A      (r, d_in)   float32
    W.lora_B      (d_out, r)  float32
    head:<name>   the parameter's own shape, float32: trained and averaged whole

Never uses pickle, never imports torch, and never maps a file into memory: a mapped file that is cut
short kills its reader with SIGBUS, and its pages count as the reader's own.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import Plan
from fedpipe_wire.tensor_header import (
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    NUMPY_DTYPES,
    TensorError,
    TensorSpec,
    read_header,
    shown,
    spec_of,
)
from fedpipe_wire.tensor_writer import TensorWriter

__all__ = [
    "CHUNK_BYTES",
    "MAX_HEADER_BYTES",
    "MAX_TENSORS",
    "TensorError",
    "TensorFile",
    "TensorSpec",
    "TensorWriter",
    "a_name",
    "adapter_spec",
    "b_name",
    "check_tensors",
    "factors_spec",
    "head_name",
    "inspect_header",
    "update_spec",
    "write_tensors",
]


CHUNK_BYTES = 256 * 1024
"""How much of a file is looked through at once: what fits into a processor's own cache."""


def a_name(weight: str) -> str:
    """Name of the (r, d_in) factor of `weight`."""
    return f"{weight}.lora_A"


def b_name(weight: str) -> str:
    """Name of the (d_out, r) factor of `weight`."""
    return f"{weight}.lora_B"


def head_name(name: str) -> str:
    """Name of a parameter that is trained whole."""
    return f"head:{name}"


def factors_spec(shape: ModelShape, ranks: Mapping[str, int]) -> dict[str, TensorSpec]:
    """Tensors of a file with `ranks[weight]` components per weight, and the whole head.

    Raises:
        TensorError: if the model has no weight of that name.
    """
    spec: dict[str, TensorSpec] = {}
    weights = {weight.name: weight for weight in shape.weights}
    for name, rank in ranks.items():
        if name not in weights:
            raise TensorError(f"the model has no weight {name!r}: are plan and model of one run?")
        spec[a_name(name)] = TensorSpec((rank, weights[name].d_in))
        spec[b_name(name)] = TensorSpec((weights[name].d_out, rank))
    spec.update({head_name(part.name): TensorSpec(part.shape) for part in shape.head})
    return spec


def update_spec(shape: ModelShape, plan: Plan) -> dict[str, TensorSpec]:
    """Tensors of the update that `plan` asks for: its weights at its ranks, and the whole head.

    Raises:
        TensorError: if the plan names a weight that the model does not have.
    """
    return factors_spec(shape, plan.ranks)


def adapter_spec(shape: ModelShape, weights: Sequence[str], rank: int) -> dict[str, TensorSpec]:
    """Tensors of a global adapter with `rank` components on each of `weights`, and the whole head.

    Raises:
        TensorError: if the model has no weight of that name.
    """
    return factors_spec(shape, dict.fromkeys(weights, rank))


def inspect_header(
    path: Path,
    *,
    max_bytes: int,
    max_header_bytes: int = MAX_HEADER_BYTES,
    max_tensors: int = MAX_TENSORS,
) -> dict[str, TensorSpec]:
    """Read and check the header of a file that nobody has looked at yet; no tensor is read.

    Sizes are checked before anything is parsed, so a hostile file costs at most
    `max_header_bytes` of reading.

    Raises:
        TensorError: if the file is too large, too short or malformed, or if its tensors do not lie
            one behind the other from the header's end to the file's end.
        OSError: if it cannot be read.
    """
    with TensorFile(path, max_bytes=max_bytes, max_header_bytes=max_header_bytes, max_tensors=max_tensors) as file:
        return file.header


def check_tensors(header: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]) -> None:
    """Compare what a file holds with what it must hold.

    Raises:
        TensorError: naming the missing, the unexpected and the differing tensors.
    """
    problems = [f"missing {name}" for name in expected if name not in header]
    problems += [f"unexpected {shown(name)}" for name in header if name not in expected]
    problems += [
        f"{name}: expected {spec}, got {header[name]}"
        for name, spec in expected.items()
        if name in header and header[name] != spec
    ]
    if problems:
        raise TensorError(f"{len(problems)} tensors do not fit the plan: {'; '.join(problems[:5])}")


class TensorFile:
    """A safetensors file, read one tensor at a time; several threads may read at once.

    Args:
        path: the file.
        max_bytes: refused before anything is read, if it is larger; None: of any size.
        max_header_bytes: how much is parsed at most.
        max_tensors: how many there may be.

    Raises:
        TensorError: if it is too large, or the header is malformed.
        OSError: if it cannot be read.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int | None = None,
        max_header_bytes: int = MAX_HEADER_BYTES,
        max_tensors: int = MAX_TENSORS,
    ) -> None:
        self._path = path
        self._file = path.open("rb")
        try:
            size = os.fstat(self._file.fileno()).st_size
            _check_size(path, size, max_bytes)
            self._entries, self._data = read_header(self._file, path.name, size, max_header_bytes, max_tensors)
        except BaseException:
            self._file.close()
            raise

    @property
    def header(self) -> dict[str, TensorSpec]:
        """Name and form of every tensor."""
        return {name: entry.spec for name, entry in self._entries.items()}

    def read(self, name: str) -> NDArray[Any]:
        """The tensor of that name, of the shape and dtype that `header` says.

        Raises:
            TensorError: if there is none, if numpy has no such dtype, or if the file was cut short.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise TensorError(f"{self._path.name} has no tensor {name!r}")
        if entry.spec.dtype not in NUMPY_DTYPES:
            raise TensorError(f"{shown(name)} is {entry.spec.dtype}, which numpy cannot hold: send F32")
        values = np.empty(entry.spec.shape, dtype=NUMPY_DTYPES[entry.spec.dtype])
        self._fill(values.reshape(-1).view(np.uint8), name, entry.begin)
        return values

    def _fill(self, values: NDArray[np.uint8], name: str, begin: int) -> None:
        """Read bytes of a tensor, from a place counted from the header's end."""
        got = _read_into(self._file.fileno(), values.data, self._data + begin)
        if got != len(values):
            raise TensorError(f"{shown(name)}: expected {len(values)} bytes, got {got}: cut short")

    def check_finite(self, largest: float = math.inf) -> None:
        """Read every byte of every tensor once, `CHUNK_BYTES` at a time.

        Args:
            largest: no value may be farther from zero.

        Raises:
            TensorError: naming the first tensor that holds a NaN, an infinity, or a value beyond `largest`.
        """
        buffer = np.empty(CHUNK_BYTES, np.uint8)
        for name, entry in self._entries.items():
            if entry.spec.dtype not in NUMPY_DTYPES:
                raise TensorError(f"{shown(name)} is {entry.spec.dtype}, which numpy cannot hold: send F32")
            for begin in range(0, entry.spec.nbytes, CHUNK_BYTES):
                chunk = buffer[: min(CHUNK_BYTES, entry.spec.nbytes - begin)]
                self._fill(chunk, name, entry.begin + begin)
                values = chunk.view(NUMPY_DTYPES[entry.spec.dtype])
                # both are NaN where any value is: two passes over what lies in the cache, and no array of flags
                least, most = float(values.min()), float(values.max())
                if not (math.isfinite(least) and math.isfinite(most) and -largest <= least and most <= largest):
                    self._refuse(name, largest)

    def _refuse(self, name: str, largest: float) -> None:
        """Say which values of a tensor are not what they should be, if any."""
        values = self.read(name)
        wild = int(np.count_nonzero(~np.isfinite(values)))
        if wild:
            raise TensorError(f"{shown(name)}: {wild} of {values.size} values are not finite")
        beyond = int(np.count_nonzero(~(np.abs(values) <= largest)))
        if beyond:
            most = float(np.abs(values).max())
            raise TensorError(
                f"{shown(name)}: {beyond} of {values.size} values are beyond {largest:g}, the largest is {most:g}"
            )

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_size(path: Path, size: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise TensorError(f"{path.name} has {size} bytes, at most {max_bytes} are read")


def _read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill a buffer from a place in a file, without moving anybody's place in it; how much there was."""
    got = 0
    while got < len(buffer) and (more := os.preadv(descriptor, [buffer[got:]], offset + got)):
        got += more
    return got


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write all tensors at once; the same tensors give the same bytes, whatever their order.

    Raises:
        TensorError: if a dtype cannot be written.
        OSError: if the disk refuses.
    """
    spec = {name: spec_of(tensors[name]) for name in sorted(tensors)}
    with TensorWriter(path, spec) as writer:
        for name in spec:
            writer.write(name, tensors[name])
