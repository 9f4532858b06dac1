"""One way for a device to train, and what a plan may use: the numbers that the search compares.

Owns the types only. Computing their figures from the memory and time models is `options.py`'s work.
"""

import math
from dataclasses import dataclass

from fedpipe_profiles.costs.memory import MemoryCoefficients, MemoryRow
from fedpipe_profiles.costs.step import StepSetting


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to train, with costs that are linear in the trained adapter parameters and ranks.

    `step_s` holds with every adapter on the side path; the `per_` terms are added for each adapter parameter that is
    trained instead. `prepare_s` has the seconds of loading, `load_s`, and those of evaluating. The peak is at most the
    largest of `memory_rows`, which hold at these `coefficients` of the memory model.
    """

    setting: StepSetting
    fidelity: float
    memory_rows: tuple[MemoryRow, ...]
    coefficients: MemoryCoefficients
    step_s: float
    step_per_parameter_s: float
    load_s: float
    prepare_s: float
    down_s: float
    up_s: float
    up_per_parameter_s: float
    up_bytes: int
    step_path_s: float = 0.0
    """Seconds of a step that each adapter on a weight takes; `step_s` has two on every weight."""

    @property
    def fixed_s(self) -> float:
        """Seconds of a round beside its steps and its adapters' upload."""
        return self.down_s + self.prepare_s + self.up_s

    def transfers_s(self, parameters: float) -> float:
        """Seconds of download and upload."""
        return self.down_s + self.up_s + self.up_per_parameter_s * parameters

    def sent_bytes(self, parameters: float) -> float:
        """Bytes of an update."""
        return self.up_bytes + 4 * parameters

    def memory(self, parameters: float, ranks: float) -> float:
        """The most that the peak can be, in bytes, runtime context not counted."""
        return max(row.at(parameters, ranks) for row in self.memory_rows)

    def compute_s(self, steps: float, parameters: float) -> float:
        """Seconds of loading, evaluating and training."""
        return self.prepare_s + steps * (self.step_s + self.step_per_parameter_s * parameters)

    def round_s(self, steps: float, parameters: float) -> float:
        """Seconds from receipt of the task to the update's acknowledgement."""
        return self.transfers_s(parameters) + self.compute_s(steps, parameters)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a plan may use: bytes of predicted peak, seconds, and bytes of an update."""

    memory_bytes: float
    time_s: float
    up_bytes: float = math.inf
