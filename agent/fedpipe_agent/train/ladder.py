"""What is tried when memory runs out and a smaller batch and checkpointing are of no more help: fewer bits.

Owns the order of the bits and what is said of it. How a base is loaded, and what is done on it, come in.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from fedpipe_agent.train.errors import MemoryExceededError
from fedpipe_agent.train.memory import is_out_of_memory
from fedpipe_profiles.device import Bits

T = TypeVar("T")


def fewer_and_fewer(most: Bits, supported: Sequence[Bits]) -> tuple[Bits, ...]:
    """`most`, and below it all bits that the device computes with, falling."""
    return (most, *sorted((bits for bits in set(supported) if bits < most), reverse=True))


def down_the_bits(
    rungs: Sequence[Bits], attempt: Callable[[Bits], T], forget: Callable[[], None], actions: list[str]
) -> T:
    """The result of the first attempt that fits.

    Args:
        rungs: The bits to try, in order.
        attempt: Loads a base and works on it; what it has finished when memory runs out is its own to keep.
        forget: Frees the base before the next is loaded.
        actions: Takes a line for every step down.

    Raises:
        MemoryExceededError: if the last attempt does not fit either; or another error that says so.
    """
    for bits, fewer in pairwise((*rungs, None)):
        assert bits is not None
        try:
            return attempt(bits)
        except (MemoryExceededError, RuntimeError, SystemError, MemoryError, OSError) as error:
            if fewer is None or not (isinstance(error, MemoryExceededError) or is_out_of_memory(error)):
                raise
        # outside of the handler: while the error lives, its frames hold the base
        forget()
        actions.append(f"out of memory at {bits} bits, now {fewer} bits")
    raise AssertionError("the last rung returns or raises")
