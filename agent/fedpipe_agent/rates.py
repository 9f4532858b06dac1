"""How fast the processor multiplies matrices and copies memory; run as `python -m fedpipe_agent.rates --threads N`.

Measures in a process of its own and prints JSON, so that the daemon carries neither numpy nor the memory that it takes.
Owns the form of a measurement and of its figures for every device; `train/rates.py` measures with torch.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic import ValidationError

from fedpipe_profiles.device import BandwidthRate, DequantizationRate, MatmulRate, OptimizerRate
from fedpipe_profiles.values import Value

SHAPE = (512, 1024, 1024)
BUFFER_BYTES = 64 << 20
WARM_UPS = 2
MIN_REPEATS = 3
MAX_REPEATS = 25
BUDGET_S = 0.4
TIMEOUT_S = 120.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Dtype = Literal["float32", "bfloat16", "float16"]


class Rates(Value):
    """What one measuring process found."""

    matmul: tuple[MatmulRate, ...]
    bandwidth: BandwidthRate
    dequantization: tuple[DequantizationRate, ...] = ()
    optimizer: OptimizerRate | None = None


class RatesError(RuntimeError):
    """The measuring process failed; the message has its last words."""


def repeat(
    action: Callable[[], None], *, budget_s: float = BUDGET_S, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, ...]:
    """Time `action` after warming up, until `budget_s` is spent; at least 3 and at most 25 times.

    Returns:
        Seconds of each time, none of them 0.
    """
    for _ in range(WARM_UPS):
        action()
    times: list[float] = []
    begin = clock()
    while len(times) < MIN_REPEATS or (len(times) < MAX_REPEATS and clock() - begin < budget_s):
        start = clock()
        action()
        times.append(max(clock() - start, 1e-9))
    return tuple(times)


def relative_spread(times: Sequence[float]) -> float:
    """Interquartile range over the median; needs 2 times or more."""
    first, middle, third = statistics.quantiles(times, n=4, method="inclusive")
    return (third - first) / middle


def matmul_rate(dtype: Dtype, shape: tuple[int, int, int], times: Sequence[float]) -> MatmulRate:
    """The rate of (m, k) @ (k, n), 2*m*k*n operations, over the median of `times`, in seconds."""
    m, k, n = shape
    return MatmulRate(
        dtype=dtype,
        shape=shape,
        flops_per_s=2 * m * k * n / statistics.median(times),
        repeats=len(times),
        relative_spread=relative_spread(times),
    )


def bandwidth_rate(buffer_bytes: int, times: Sequence[float]) -> BandwidthRate:
    """The rate of copying `buffer_bytes` to another buffer: each is read once and written once."""
    return BandwidthRate(
        bytes_per_s=2 * buffer_bytes / statistics.median(times),
        buffer_bytes=buffer_bytes,
        repeats=len(times),
        relative_spread=relative_spread(times),
    )


def dequantization_rate(bits: Literal[4, 8], shape: tuple[int, int], times: Sequence[float]) -> DequantizationRate:
    """The rate of making a plain weight `(d_out, d_in)` out of a compressed one."""
    return DequantizationRate(
        bits=bits,
        shape=shape,
        values_per_s=shape[0] * shape[1] / statistics.median(times),
        repeats=len(times),
        relative_spread=relative_spread(times),
    )


def optimizer_rate(parameters: int, times: Sequence[float]) -> OptimizerRate:
    """The rate of an optimizer's step on so many parameters."""
    return OptimizerRate(
        parameters=parameters,
        parameters_per_s=parameters / statistics.median(times),
        repeats=len(times),
        relative_spread=relative_spread(times),
    )


def measure_in_subprocess(module: str, arguments: Sequence[str], timeout_s: float = TIMEOUT_S) -> Rates:
    """Run `python -m module arguments` and read the figures that it prints last.

    Raises:
        RatesError: if it ends with an error, takes longer than `timeout_s` seconds, or prints no figures.
    """
    command = [sys.executable, "-m", module, *arguments]
    # NVML counts GPUs in this order, so both sides mean the same one.
    environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise RatesError(f"{module} took longer than {timeout_s:g} s: is the machine overloaded?") from None
    last_error = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if done.returncode != 0:
        raise RatesError(f"{module} ended with status {done.returncode}: {last_error}")
    try:
        return Rates.model_validate_json((done.stdout.strip().splitlines() or [""])[-1])
    except ValidationError as error:
        raise RatesError(f"{module} printed no figures ({error.error_count()} problems): {last_error}") from None


def measure_host(threads: int) -> Rates:
    """Measure the processor with `threads` threads, in about a second.

    Raises:
        RatesError: as `measure_in_subprocess`.
    """
    return measure_in_subprocess("fedpipe_agent.rates", ["--threads", str(threads)])


def limit_threads(threads: int) -> None:
    """Tell the numeric libraries how many threads to use; they read this once, when they are loaded."""
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))


def parse_threads(arguments: Sequence[str] | None, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add `--threads N` to `parser` and parse; ends the process where N is not 1 or more."""
    parser.add_argument("--threads", type=int, required=True, help="threads to use, 1 or more")
    namespace = parser.parse_args(arguments)
    if namespace.threads < 1:
        parser.error(f"argument --threads: should be 1 or more, got {namespace.threads}")
    return namespace


def _measure(threads: int) -> Rates:
    import numpy as np  # noqa: PLC0415 - the daemon imports this module and must not load numpy

    generator = np.random.default_rng(0)
    m, k, n = SHAPE
    left = generator.standard_normal((m, k), dtype=np.float32)
    right = generator.standard_normal((k, n), dtype=np.float32)
    out = np.empty((m, n), dtype=np.float32)

    def multiply() -> None:
        np.matmul(left, right, out=out)

    matmul = matmul_rate("float32", SHAPE, repeat(multiply))
    parts = [(np.ones(size, np.uint8), np.ones(size, np.uint8)) for size in [BUFFER_BYTES // threads] * threads]
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            # numpy lets go of the interpreter while it copies, so the threads copy at the same time.
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), parts))

        times = repeat(copy)
    return Rates(matmul=(matmul,), bandwidth=bandwidth_rate(BUFFER_BYTES // threads * threads, times))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print `Rates` as one line of JSON."""
    namespace = parse_threads(arguments, argparse.ArgumentParser(prog="python -m fedpipe_agent.rates"))
    limit_threads(namespace.threads)
    print(_measure(namespace.threads).model_dump_json())  # noqa: T201 - the result


if __name__ == "__main__":
    main()
