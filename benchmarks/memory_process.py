"""The resident set of a whole training process on a processor: predicted as a plan does, and measured by its own meter.

Every model and bit width gets a fresh process, because what a library once held it keeps. There the trainer's meter
takes the context before anything is loaded, a few small steps are measured as scoring does, coefficients are fitted to
them, and the larger steps that follow are predicted before they are taken. What is compared is context and peak
together: the process's VmHWM.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.memory_models import Model, models
from benchmarks.memory_steps import Case, batch, config_of, factors, labels_of, ranks_of
from fedpipe_agent.train.adapters import attached
from fedpipe_agent.train.base import Base, load_base, quiet_libraries
from fedpipe_agent.train.memory import HostMeter, Meter
from fedpipe_agent.train.shape import read_shape
from fedpipe_agent.train.step import Stepper, StepSettings
from fedpipe_profiles.costs.memory import fit_memory, predict_memory
from fedpipe_profiles.device import MIB, Bits
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import StepMeasurement

MODELS = ("MiniLM", "gpt2")
BITS: tuple[Bits, ...] = (32, 16, 8, 4)
LIMIT_BYTES = 1 << 45
STEPS = 2
_SCORED = ((2, 64, False), (8, 128, False), (8, 128, True))
"""As scoring does: the smallest batch, a larger one, and that one with checkpointing."""
_JUDGED = ((16, 128, True, "mixed"), (12, 128, False, "half"), (16, 128, False, "all"))
"""In the order of what they hold: a process that held more before keeps some of it, which no step needs."""
_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Resident:
    """One process at its peak, in bytes, context included."""

    model: str
    bits: int
    predicted_bytes: float
    true_bytes: float

    @property
    def error(self) -> float:
        """Share by which the prediction is too high; negative where it is too low."""
        return self.predicted_bytes / self.true_bytes - 1


def residents(seed: int) -> list[Resident]:
    """Every process, one after the other.

    Raises:
        subprocess.CalledProcessError: if one fails.
    """
    found = []
    for name in MODELS:
        for bits in BITS:
            command = [sys.executable, "-m", "benchmarks.memory_process", name, str(bits), str(seed)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=_TIMEOUT_S).stdout
            rows = json.loads(said.strip().splitlines()[-1])
            found += [Resident(name, bits, predicted, true) for predicted, true in rows]
    return found


def lines(found: Sequence[Resident]) -> Iterator[str]:
    """A line per process."""
    for one in found:
        yield (
            f"{one.model:<18} {one.bits:>4} predicted {one.predicted_bytes / MIB:7.1f} MiB, "
            f"held {one.true_bytes / MIB:7.1f} MiB: {one.error:+.1%}"
        )


def _child(name: str, bits: Bits, seed: int) -> list[tuple[float, float]]:
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        model = next(models(Path(folder), seed, (name,)))
        meter = HostMeter(LIMIT_BYTES)
        base = load_base(model.folder, model.task, labels_of(model), bits=bits, device="cpu", seed=seed, meter=meter)
        shape = read_shape(model.folder, model.task, labels_of(model))
        scored = []
        for size, length, checkpointing in _SCORED:
            case = Case(bits, size, length, checkpointing, ranks="half", global_rank=8, padded=True)
            scored.append(_measured(model, base, shape, case, meter, seed))
        labels = len(labels_of(model))
        fitted = fit_memory(shape, scored, kind="cpu", task=model.task, num_labels=labels).coefficients(bits)
        found = []
        for size, length, checkpointing, ranks in _JUDGED:
            case = replace(case, batch_size=size, sequence_length=length, checkpointing=checkpointing, ranks=ranks)
            chosen = ranks_of(shape, case, seed)
            predicted = predict_memory(shape, config_of(model, case, chosen), fitted).total_bytes
            true = _measured(model, base, shape, case, meter, seed).peak_bytes
            found.append((float(meter.context_bytes + predicted), float(meter.context_bytes + true)))
        return found


def _measured(model: Model, base: Base, shape: ModelShape, case: Case, meter: Meter, seed: int) -> StepMeasurement:
    ranks = ranks_of(shape, case, seed)
    with attached(base, factors(shape, ranks, case.global_rank), scale=1.0) as on_base:
        meter.release()
        meter.reset()
        settings = StepSettings(case.sequence_length, 1e-4, 0, case.batch_size, case.checkpointing)
        stepper = Stepper(base, on_base, settings, meter)
        for _ in range(STEPS):
            stepper.step(batch(model.task, case))
        return StepMeasurement(
            bits=case.bits,
            batch_size=case.batch_size,
            sequence_length=case.sequence_length,
            longest_sequence=case.sequence_length,
            gradient_checkpointing=case.checkpointing,
            trainable_parameters=on_base.trainable_parameters,
            side_parameters=on_base.side_parameters,
            adapter_paths=sum(len(of_weight) for of_weight in on_base.factors.values()),
            steps=STEPS,
            step_s=1.0,
            peak_bytes=meter.peak_bytes(),
            context_bytes=meter.context_bytes,
        )


if __name__ == "__main__":
    _name, _bits, _seed = sys.argv[1:]
    sys.stdout.write(json.dumps(_child(_name, int(_bits), int(_seed))) + "\n")  # type: ignore[arg-type]  # of BITS
