"""How fast torch multiplies, copies, dequantizes and optimizes.

`python -m fedpipe_agent.train.rates --device DEVICE --threads N` measures in a process of its own and prints
`fedpipe_agent.rates.Rates` as JSON: on CUDA every dtype that the GPU computes in, on the processor fp32, and bf16 where
`--bf16` says that it is there (emulated bf16 takes seconds).
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from fedpipe_agent.rates import (
    BUFFER_BYTES,
    SHAPE,
    Dtype,
    Rates,
    bandwidth_rate,
    dequantization_rate,
    matmul_rate,
    optimizer_rate,
    parse_threads,
    repeat,
)

CUDA_SHAPE = (2048, 4096, 4096)
CUDA_BUFFER_BYTES = 256 << 20
WEIGHT = (2048, 2048)
"""(d_out, d_in) of the dequantized weight: of the order of those of models from 1 B parameters on."""
CUDA_WEIGHT = (4096, 4096)
FACTORS = (64, (16, 2048))
"""How many factors of adapters the measured optimizer changes, and the shape of each."""
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
    bandwidth = bandwidth_rate(buffer_bytes, _copy_times(device, buffer_bytes, synchronize))
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu and "bfloat16" in dtypes else torch.float16 if on_gpu else torch.float32
    weight = torch.randn(CUDA_WEIGHT if on_gpu else WEIGHT, dtype=dtype, device=device)
    actions = _dequantizations(weight)
    found = [
        dequantization_rate(bits, (weight.shape[0], weight.shape[1]), repeat(_done(action, synchronize)))
        for bits, action in actions
    ]
    count, shape_ = FACTORS
    factors = [torch.zeros(shape_, device=device, requires_grad=True) for _ in range(count)]
    times = repeat(_done(_optimizer_step(factors), synchronize))
    return Rates(
        matmul=rates,
        bandwidth=bandwidth,
        dequantization=tuple(found),
        optimizer=optimizer_rate(sum(factor.numel() for factor in factors), times),
    )


def _copy_times(device: torch.device, size: int, synchronize: Callable[[], None]) -> tuple[float, ...]:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return repeat(_done(lambda: target.copy_(source), synchronize))


def _done(action: Callable[[], object], synchronize: Callable[[], None]) -> Callable[[], None]:
    def act() -> None:
        action()
        synchronize()

    return act


def _dequantizations(weight: torch.Tensor) -> list[tuple[Literal[4, 8], Callable[[], object]]]:
    """What the layers of bitsandbytes do in every pass, for the bits that it knows on this device."""
    try:
        from bitsandbytes import functional  # noqa: PLC0415 - where it is missing, the other rates count all the same
    except (ImportError, OSError, RuntimeError):
        return []
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

    def packed_4() -> Callable[[], object]:
        packed, state = functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        return lambda: functional.dequantize_4bit(packed, state)

    def packed_8() -> Callable[[], object]:
        packed, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        return lambda: packed.to(weight.dtype).mul_(scales.unsqueeze(1).mul(1.0 / 127.0))

    prepared: tuple[tuple[Literal[4, 8], Callable[[], Callable[[], object]]], ...] = ((4, packed_4), (8, packed_8))
    found: list[tuple[Literal[4, 8], Callable[[], object]]] = []
    for bits, prepare in prepared:
        try:
            action = prepare()
            action()
        except (RuntimeError, NotImplementedError, ValueError, AttributeError):
            continue  # this device has no kernel for it: no plan will ask for these bits here
        found.append((bits, action))
    return found


def _optimizer_step(factors: Sequence[torch.Tensor]) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(factors, lr=1e-4, weight_decay=0.0, fused=True)
    for factor in factors:
        factor.grad = torch.ones_like(factor)

    def act() -> None:
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()

    return act


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
