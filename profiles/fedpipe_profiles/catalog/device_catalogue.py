"""The catalogue of devices: what a machine that nobody has measured yet may be expected to do.

Owns the form of `devices/*.toml`. A data sheet names peaks, and so does the profile, which marks them as theoretical:
what share of a published peak training reaches is the time model's own matter (`rates.py`).
"""

import difflib
import tomllib
from functools import cache
from importlib.resources import files
from typing import Annotated

from pydantic import Field, model_validator

from fedpipe_profiles.device import (
    MIB,
    Accelerator,
    BandwidthRate,
    Bits,
    DeviceProfile,
    Host,
    Limits,
    Link,
    MatmulRate,
)
from fedpipe_profiles.plain_text import plain
from fedpipe_profiles.values import PositiveSize, Settings, Size

PROCESSOR_REACH = 0.5
"""Of what a GPU reaches of its peak, a processor is thought to reach this share: it lowers its clock for wide units and
feeds them from caches. Our choice."""
CAVEAT = "published figures: expect a factor of about two either way in time until a device is measured"

_FOLDER = "devices"
_SHOWN = 60
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_SHEET_SHAPE = (4096, 4096, 4096)
Figure = Annotated[float, Field(gt=0.0, le=1e6)]
Source = Annotated[str, Field(min_length=8, max_length=300)]


class UnknownDeviceError(ValueError):
    """The catalogue has no device of that name; the message says which there are."""


class _Gpu(Settings):
    name: str = Field(min_length=1, max_length=200)
    compute_capability: tuple[Size, Size]
    unified_memory: bool


class _Memory(Settings):
    total_mib: PositiveSize
    free_mib: PositiveSize
    source: Source


class _Bandwidth(Settings):
    gb_per_s: Figure
    source: Source


class _Tflops(Settings):
    fp32: Figure
    bf16: Figure | None = None
    fp16: Figure | None = None
    source: Source


class _Machine(Settings):
    cpu: str = Field(min_length=1, max_length=200)
    threads: PositiveSize
    total_mib: PositiveSize
    free_mib: PositiveSize


class CatalogueEntry(Settings):
    """One file of the catalogue. Memory in MiB, bandwidth in 10^9 bytes, rates in 10^12 operations, each per second."""

    title: str = Field(min_length=1, max_length=100)
    gpu: _Gpu | None = None
    memory: _Memory
    bandwidth: _Bandwidth
    dense_tflops: _Tflops
    host: _Machine

    @model_validator(mode="after")
    def _without_contradictions(self) -> "CatalogueEntry":
        """Raise ValueError for more free memory than there is, or one memory with two sizes."""
        for what in (self.memory, self.host):
            if what.free_mib > what.total_mib:
                raise ValueError(f"{what.free_mib} MiB are free of {what.total_mib} MiB")
        shared = self.gpu is None or self.gpu.unified_memory
        if shared and self.memory.total_mib != self.host.total_mib:
            raise ValueError(f"one memory of {self.memory.total_mib} and of {self.host.total_mib} MiB")
        return self

    @property
    def supported_bits(self) -> tuple[Bits, ...]:
        """As a probe says: 16 bits only where bf16 is computed in hardware."""
        return (4, 8, 16, 32) if self.dense_tflops.bf16 is not None else (4, 8, 32)

    def profile(self, agent: str, *, link: Link | None = None, limits: Limits | None = None) -> DeviceProfile:
        """The profile that such a device would be thought to have; every rate is marked theoretical."""
        rates = self.dense_tflops.model_dump(exclude={"source"}, exclude_none=True)
        reach = PROCESSOR_REACH if self.gpu is None else 1.0
        return DeviceProfile(
            agent=agent,
            host=Host(
                cpu=self.host.cpu,
                threads=self.host.threads,
                total_bytes=self.host.total_mib * MIB,
                free_bytes=self.host.free_mib * MIB,
            ),
            accelerator=None if self.gpu is None else self._accelerator(self.gpu),
            supported_bits=self.supported_bits,
            matmul=tuple(_matmul(dtype, rates[key] * reach) for key, dtype in _DTYPES.items() if key in rates),
            bandwidth=BandwidthRate(
                bytes_per_s=self.bandwidth.gb_per_s * 1e9,
                buffer_bytes=1,
                repeats=1,
                relative_spread=0.0,
                source="theoretical",
            ),
            link=link,
            limits=limits or Limits(),
        )

    def _accelerator(self, gpu: _Gpu) -> Accelerator:
        return Accelerator(
            name=gpu.name,
            total_bytes=self.memory.total_mib * MIB,
            free_bytes=self.memory.free_mib * MIB,
            unified_memory=gpu.unified_memory,
            compute_capability=gpu.compute_capability,
        )


def _matmul(dtype: str, tflops: float) -> MatmulRate:
    return MatmulRate.model_validate(
        {
            "dtype": dtype,
            "shape": _SHEET_SHAPE,
            "flops_per_s": tflops * 1e12,
            "repeats": 1,
            "relative_spread": 0.0,
            "source": "theoretical",
        }
    )


@cache
def catalogue_names() -> tuple[str, ...]:
    """The names of all devices of the catalogue, in order of the alphabet."""
    folder = files("fedpipe_profiles.catalog") / _FOLDER
    return tuple(sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")))


@cache
def catalogued_device(name: str) -> CatalogueEntry:
    """The entry of that name.

    Raises:
        UnknownDeviceError: if there is none.
    """
    names = catalogue_names()
    if name not in names:
        close = difflib.get_close_matches(name[:_SHOWN].lower(), names, n=1, cutoff=0.5)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise UnknownDeviceError(
            f"the catalogue has no device {plain(name, _SHOWN)!r}: {meant}It has {', '.join(names)}"
        )
    text = (files("fedpipe_profiles.catalog") / _FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    return CatalogueEntry.model_validate(tomllib.loads(text))
