"""Writing a safetensors file tensor by tensor: whole and synced under its name, or not there at all.

Owns the unfinished file, and the hash of one whose writer wants it. What is in the tensors is others' matter.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedpipe_wire.tensor_header import TensorError, TensorSpec, encode_header, spec_of


class TensorWriter:
    """Writes a safetensors file tensor by tensor; the header comes from `spec`.

    Tensors may come in any order, but in that of `spec` where the file is `hashed`. The file appears under its name
    when the `with` block ends well, synced to disk, whole; else not at all. One writer per path at a time: the
    unfinished file is always `.<name>.part`.

    Args:
        path: where the file appears.
        spec: its tensors.
        metadata: of the header.
        hashed: take the hash of the bytes as they are written, so that nobody need read them again.

    Raises:
        TensorError: if a tensor does not fit `spec`, comes twice, out of turn or never.
        OSError: if the disk refuses.
    """

    def __init__(
        self,
        path: Path,
        spec: Mapping[str, TensorSpec],
        *,
        metadata: Mapping[str, str] | None = None,
        hashed: bool = False,
    ) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        self._spec = dict(spec)
        header, self._begins = encode_header(self._spec, metadata)
        self._left = dict.fromkeys(self._spec)
        self._digest = hashlib.sha256(header) if hashed else None
        self._file = self._part.open("wb")
        self._file.write(header)

    @property
    def sha256(self) -> str:
        """Of all bytes of a file that is `hashed`, once every tensor was written; lower-case hexadecimal digits.

        Raises:
            TensorError: if it is not known.
        """
        if self._digest is None or self._left:
            raise TensorError(f"{self._path.name} has no hash: write it hashed, and whole ({len(self._left)} to come)")
        return self._digest.hexdigest()

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Put one tensor into its place.

        Raises:
            TensorError: if it is not of the declared form, was written before, or is not the next of a hashed file.
        """
        if name not in self._left:
            known = "written twice" if name in self._spec else "not declared"
            raise TensorError(f"tensor {name!r} is {known}")
        got = spec_of(values)
        if got != self._spec[name]:
            raise TensorError(f"{name}: expected {self._spec[name]}, got {got}")
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        if self._digest is not None:
            following = next(iter(self._left))
            if name != following:
                raise TensorError(f"expected tensor {following!r} of a hashed file, got {name!r}: keep the order")
            self._digest.update(data)
        self._file.seek(self._begins[name])
        self._file.write(data)
        del self._left[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._left:
            raise TensorError(f"{len(self._left)} tensors never written: {sorted(self._left)[:5]}")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
