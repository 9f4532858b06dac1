"""How fast torch multiplies and copies: `python -m fedpipe_agent.train.rates --device DEVICE --threads N`.

Measures in a process of its own and prints `fedpipe_agent.rates.Rates` as JSON: on CUDA every dtype that the GPU
computes in, on the processor fp32, and bf16 where `--bf16` says that it is there (emulated bf16 takes seconds).
"""

import argparse
from collections.abc import Callable, Sequence

import torch

from fedpipe_agent.rates import (
    BUFFER_BYTES,
    SHAPE,
    Dtype,
    Rates,
    bandwidth_rate,
    matmul_rate,
    parse_threads,
    repeat,
)

CUDA_SHAPE = (2048, 4096, 4096)
CUDA_BUFFER_BYTES = 256 << 20
_BF16_CAPABILITY = (8, 0)
_TYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def measure_processor(threads: int, *, bf16: bool) -> Rates:
    """Rates of the processor with `threads` threads, by torch."""
    torch.set_num_threads(threads)
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16") if bf16 else ("float32",)
    return _measure(torch.device("cpu"), dtypes, SHAPE, BUFFER_BYTES, _nothing)


def measure_cuda() -> Rates:
    """Rates of the first GPU that torch sees, by torch.

    Raises:
        SystemExit: with a message if torch sees none.
    """
    if not torch.cuda.is_available():
        message = f"torch {torch.__version__} sees no CUDA device: install a torch built for this machine's driver"
        raise SystemExit(message)
    has_bf16 = torch.cuda.get_device_capability() >= _BF16_CAPABILITY
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16", "float16") if has_bf16 else ("float32", "float16")
    return _measure(torch.device("cuda"), dtypes, CUDA_SHAPE, CUDA_BUFFER_BYTES, torch.cuda.synchronize)


def _measure(
    device: torch.device,
    dtypes: Sequence[Dtype],
    shape: tuple[int, int, int],
    buffer_bytes: int,
    synchronize: Callable[[], None],
) -> Rates:
    rates = tuple(matmul_rate(dtype, shape, _matmul_times(device, dtype, shape, synchronize)) for dtype in dtypes)
    source = torch.ones(buffer_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        synchronize()

    return Rates(matmul=rates, bandwidth=bandwidth_rate(buffer_bytes, repeat(copy)))


def _matmul_times(
    device: torch.device, dtype: Dtype, shape: tuple[int, int, int], synchronize: Callable[[], None]
) -> tuple[float, ...]:
    m, k, n = shape
    left = torch.randn((m, k), dtype=_TYPES[dtype], device=device)
    right = torch.randn((k, n), dtype=_TYPES[dtype], device=device)
    out = torch.empty((m, n), dtype=_TYPES[dtype], device=device)

    def multiply() -> None:
        torch.matmul(left, right, out=out)
        synchronize()

    return repeat(multiply)


def _nothing() -> None:
    """The processor is done when the call returns."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print `Rates` as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m fedpipe_agent.train.rates")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--bf16", action="store_true", help="the processor computes in bf16")
    namespace = parse_threads(arguments, parser)
    cuda = namespace.device == "cuda"
    rates = measure_cuda() if cuda else measure_processor(namespace.threads, bf16=namespace.bf16)
    print(rates.model_dump_json())  # noqa: T201 - the result


if __name__ == "__main__":
    main()
