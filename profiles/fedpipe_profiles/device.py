"""A device profile: what an agent measured of its machine.

Owns the types only. Measuring is the agent's work; what follows from the figures is the planner's.
"""

from typing import Annotated, Literal

from pydantic import Field

from fedpipe_profiles.values import (
    MAX_RATE,
    Bytes,
    PositiveBytes,
    PositiveCount,
    PositiveSize,
    Rate,
    Seconds,
    Size,
    Value,
)

Bits = Literal[4, 8, 16, 32]
"""Width of the frozen base weights: 4 is NF4 with double quantization, 8 is INT8, 16 is bf16, 32 is fp32."""

Source = Literal["measured", "theoretical", "limit"]
"""Where a figure comes from: a measurement here, a vendor's data sheet, or the owner's setting."""

MIB = 1024 * 1024
MAX_DATASETS = 1000
DatasetName = Annotated[str, Field(min_length=1, max_length=128)]
Version = Annotated[str, Field(max_length=100)]


class MatmulRate(Value):
    """How fast the device multiplies two matrices of one dtype."""

    dtype: Literal["float32", "bfloat16", "float16"]
    shape: tuple[PositiveSize, PositiveSize, PositiveSize] = Field(description="(m, k, n) of (m, k) @ (k, n)")
    flops_per_s: Rate = Field(description="2*m*k*n over the median time")
    repeats: PositiveCount
    relative_spread: float = Field(ge=0.0, le=MAX_RATE, description="interquartile range over the median")
    source: Source = "measured"


class BandwidthRate(Value):
    """How fast the device copies memory."""

    bytes_per_s: Rate = Field(description="bytes read plus bytes written per second")
    buffer_bytes: PositiveBytes
    repeats: PositiveCount
    relative_spread: float = Field(ge=0.0, le=MAX_RATE)
    source: Source = "measured"


class DequantizationRate(Value):
    """How fast the device makes plain weights out of compressed ones."""

    bits: Literal[4, 8] = Field(description="4 is NF4 with double quantization, 8 is INT8")
    shape: tuple[PositiveSize, PositiveSize] = Field(description="(d_out, d_in) of the weight")
    values_per_s: Rate = Field(description="weights' values made in the compute dtype, over the median time")
    repeats: PositiveCount
    relative_spread: float = Field(ge=0.0, le=MAX_RATE)
    source: Source = "measured"


class OptimizerRate(Value):
    """How fast the device takes the optimizer's step."""

    parameters: PositiveCount = Field(description="float32 parameters of the measured step")
    parameters_per_s: Rate = Field(description="clipped and changed by fused AdamW, over the median time")
    repeats: PositiveCount
    relative_spread: float = Field(ge=0.0, le=MAX_RATE)
    source: Source = "measured"


class Accelerator(Value):
    """An NVIDIA GPU as its driver describes it."""

    name: str = Field(max_length=200)
    total_bytes: PositiveBytes
    free_bytes: Bytes
    unified_memory: bool = Field(description="the GPU shares the host's memory (Jetson, GB10)")
    compute_capability: tuple[Size, Size] | None = None
    driver: str | None = Field(default=None, max_length=100)


class Host(Value):
    """The processor and memory of the machine, as far as this process may use them (cgroup limits count)."""

    cpu: str = Field(max_length=200)
    threads: PositiveSize = Field(description="logical processors this process may run on")
    total_bytes: PositiveBytes
    free_bytes: Bytes


class Link(Value):
    """What the path between agent and coordinator carries, measured from acknowledged bytes."""

    uplink_bps: Rate = Field(description="bits per second, agent to coordinator")
    downlink_bps: Rate = Field(description="bits per second, coordinator to agent")
    latency_s: Seconds = Field(description="round trip of one small acknowledged message")
    measured_bytes: Bytes
    uplink_source: Source = "measured"
    downlink_source: Source = "measured"


class Limits(Value):
    """What the owner lends of the machine; None lends all that is free."""

    memory_bytes: PositiveBytes | None = None
    threads: PositiveSize | None = None
    uplink_bps: Rate | None = None


class DeviceProfile(Value):
    """Everything the planner needs to know of one device."""

    schema_version: Literal[1] = 1
    agent: str = Field(max_length=64)
    host: Host
    accelerator: Accelerator | None = None
    supported_bits: tuple[Bits, ...] = Field(min_length=1, max_length=4)
    matmul: tuple[MatmulRate, ...] = Field(min_length=1, max_length=8)
    bandwidth: BandwidthRate
    dequantization: tuple[DequantizationRate, ...] = Field(
        default=(), max_length=4, description="of the bits that could be measured; the bandwidth stands in for others"
    )
    optimizer: OptimizerRate | None = None
    link: Link | None = None
    limits: Limits = Limits()
    datasets: tuple[DatasetName, ...] = Field(
        default=(), max_length=MAX_DATASETS, description="names an agent maps to its own files"
    )
    versions: dict[Version, Version] = Field(default_factory=dict, max_length=64)

    def memory_limit_bytes(self) -> int:
        """Bytes one trainer process may occupy: the lent amount, and never more than what is free now."""
        free = self.host.free_bytes if self.accelerator is None else self.accelerator.free_bytes
        return free if self.limits.memory_bytes is None else min(free, self.limits.memory_bytes)

    def threads(self) -> int:
        """Processor threads that the trainer uses."""
        return self.host.threads if self.limits.threads is None else min(self.host.threads, self.limits.threads)

    def rate(self, dtype: str) -> MatmulRate | None:
        """The measured rate of one dtype, or None where it was not measured."""
        return next((rate for rate in self.matmul if rate.dtype == dtype), None)
