"""One way for a device to train, and what a plan may use: the numbers that the search compares.

Owns the types only. Computing their figures from the memory and time models is `options.py`'s work.
"""

import math
from dataclasses import dataclass

from fedpipe_profiles.costs.memory import MemoryCoefficients, MemoryRow
from fedpipe_profiles.costs.step import StepSetting
from fedpipe_profiles.planning import evaluating


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to train, with costs that are linear in the trained adapter parameters and ranks.

    `step_s` holds with every adapter on the side path; the `per_` terms are added for each adapter parameter that is
    trained instead. `prepare_s` has the seconds of loading, `load_s`, and of all else but evaluating.
    The peak is at most the largest of `memory_rows`, which hold at these `coefficients` of the memory model.
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
    evaluate_s: float = 0.0
    """Seconds of evaluating all held-out examples; a short round evaluates fewer."""
    evaluate_batch_s: float = 0.0

    @property
    def fixed_s(self) -> float:
        """Seconds of a round beside its evaluation, its steps and its adapters' upload."""
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

    def training_s(self, steps: float, parameters: float) -> float:
        """Seconds of so many steps."""
        return steps * (self.step_s + self.step_per_parameter_s * parameters)

    def compute_s(self, steps: float, parameters: float, time_s: float) -> float:
        """Seconds of loading, evaluating and training in a round of so much usable time."""
        before_s = self.prepare_s + self.transfers_s(parameters)
        evaluation_s = evaluating.evaluating_s(time_s, before_s, self.evaluate_s, self.evaluate_batch_s)
        return self.prepare_s + float(evaluation_s) + self.training_s(steps, parameters)

    def round_s(self, steps: float, parameters: float, time_s: float) -> float:
        """Seconds from receipt of the task to the update's acknowledgement, in a round of so much usable time."""
        return self.transfers_s(parameters) + self.compute_s(steps, parameters, time_s)

    def room_s(self, parameters: float, time_s: float) -> float:
        """Seconds that a round of so much usable time leaves for steps; negative where there are none."""
        fixed_s = self.prepare_s + self.transfers_s(parameters)
        return float(evaluating.room_s(time_s, fixed_s, self.evaluate_s, self.evaluate_batch_s))

    def needed_s(self, steps: float, parameters: float) -> float:
        """The least usable time in which there is room for so many steps."""
        fixed_s, work_s = self.prepare_s + self.transfers_s(parameters), self.training_s(steps, parameters)
        return float(evaluating.needed_s(work_s, fixed_s, self.evaluate_s, self.evaluate_batch_s))

    def upload_room_s(self, steps: float, parameters: float, time_s: float) -> float:
        """Seconds in which the update must be sent for so many steps to fit; negative where they never do."""
        work_s = self.training_s(steps, parameters)
        most_s = evaluating.most_fixed_s(time_s, work_s, self.evaluate_s, self.evaluate_batch_s)
        return float(most_s) - self.prepare_s - self.down_s


@dataclass(frozen=True, slots=True)
class Budget:
    """What a plan may use: bytes of predicted peak, seconds, and bytes of an update."""

    memory_bytes: float
    time_s: float
    up_bytes: float = math.inf
