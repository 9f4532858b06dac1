"""Metrics of what stands on a base, over held-out examples."""

from collections.abc import Callable, Sequence

import torch

from fedpipe_agent.train.base import Base
from fedpipe_agent.train.data import Encoded, collate
from fedpipe_agent.train.errors import MemoryExceededError, OutOfTimeError
from fedpipe_agent.train.memory import Meter, is_out_of_memory
from fedpipe_agent.train.step import losses, set_evaluation
from fedpipe_profiles.device import MIB
from fedpipe_wire.message_values import Metrics


class _Sums:
    def __init__(self) -> None:
        self.nats = 0.0
        self.units = 0
        self.correct = 0
        self.examples = 0

    def metrics(self, *, with_accuracy: bool) -> Metrics:
        return Metrics(
            loss=self.nats / max(1, self.units),
            accuracy=self.correct / self.examples if with_accuracy else None,
            examples=self.examples,
        )


def evaluate(
    base: Base,
    groups: Sequence[Sequence[Encoded]],
    *,
    sequence_length: int,
    meter: Meter,
    may_go_on: Callable[[], bool] = lambda: True,
    said: Callable[[int], None] = lambda _: None,
) -> Metrics:
    """Mean loss, per target token (causal-lm) or per example (classification, with accuracy).

    Args:
        base: With whatever is to be measured attached.
        groups: Batches of examples, in no order of length: a stop in between leaves a fair sample.
        sequence_length: Longest example in tokens.
        meter: Told to release memory after a failure; batches are halved then.
        may_go_on: Asked before every batch.
        said: Told how many examples are done.

    Raises:
        MemoryExceededError: if not even one example fits.
        OutOfTimeError: if not even one batch may be evaluated.
    """
    set_evaluation(base)
    sums = _Sums()
    waiting = [list(group) for group in reversed(groups)]
    while waiting and may_go_on():
        group = waiting.pop()
        if _add(base, group, sequence_length, sums):
            said(sums.examples)
            continue
        meter.release()
        if len(group) == 1:
            raise MemoryExceededError(
                f"out of memory at the evaluation of 1 example of {len(group[0].ids)} tokens, limit "
                f"{meter.limit_bytes // MIB} MiB: fewer bits, a shorter sequence or a larger limit is needed",
                meter.peak_bytes(),
            )
        half = len(group) // 2
        waiting += [group[half:], group[:half]]
    if sums.examples == 0:
        raise OutOfTimeError("no time to evaluate even one batch: a longer deadline is needed")
    return sums.metrics(with_accuracy=base.task == "sequence-classification")


def _add(base: Base, group: Sequence[Encoded], sequence_length: int, sums: _Sums) -> bool:
    """Add a batch to the sums; False if memory ran out."""
    try:
        with torch.no_grad():
            batch = collate(
                group, pad_id=base.tokenizer.pad_token_id, sequence_length=sequence_length, device=base.device
            )
            found = losses(base, batch)
            nats = found.total.double().sum().item()
            correct = 0 if found.correct is None else int(found.correct.sum().item())
    except (RuntimeError, SystemError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    sums.nats += nats
    sums.units += sum(example.units for example in group)
    sums.correct += correct
    sums.examples += len(group)
    return True
