"""How a round's time is shared: the evaluation may take a part of what is left of it, and then stops.

All times are usable seconds, as in `Budget.time_s`; the trainer's own clock runs to the whole deadline. `fixed_s` is
what loading, transfers and the like take, `full_s` what the evaluation of all held-out examples would, and `batch_s`
one batch of it: the trainer looks at its clock between batches, so that it stops half a batch late on average. Numbers
and arrays that broadcast alike.
"""

import numpy as np
import numpy.typing as npt

from fedpipe_profiles.plan import EVALUATION_PART
from fedpipe_profiles.planning.frontier import Floats

TIME_SLACK = 0.1
"""Share of a deadline that no plan uses, for what the time model does not know."""

_OF_USABLE = EVALUATION_PART / (1 - TIME_SLACK)
"""The evaluation's part of the whole deadline, as a part of the usable time."""

Seconds = npt.ArrayLike


def evaluating_s(time_s: Seconds, fixed_s: Seconds, full_s: Seconds, batch_s: Seconds) -> Floats:
    """Seconds that the evaluation really takes."""
    time, fixed = np.asarray(time_s, dtype=np.float64), np.asarray(fixed_s, dtype=np.float64)
    part = np.maximum(0.0, _OF_USABLE * time - EVALUATION_PART * fixed) + np.asarray(batch_s) / 2
    taken: Floats = np.minimum(full_s, part)
    return taken


def room_s(time_s: Seconds, fixed_s: Seconds, full_s: Seconds, batch_s: Seconds) -> Floats:
    """Seconds that are left for steps; negative where there are none. It rises with the time."""
    time, fixed = np.asarray(time_s, dtype=np.float64), np.asarray(fixed_s, dtype=np.float64)
    whole = time - fixed - np.asarray(full_s)
    cut = (1 - _OF_USABLE) * time - (1 - EVALUATION_PART) * fixed - np.asarray(batch_s) / 2
    room: Floats = np.maximum(whole, cut)
    return room


def most_fixed_s(time_s: Seconds, work_s: Seconds, full_s: Seconds, batch_s: Seconds) -> Floats:
    """The `fixed_s` beside which there is just room for `work_s` seconds of steps."""
    time, work = np.asarray(time_s, dtype=np.float64), np.asarray(work_s, dtype=np.float64)
    cut = ((1 - _OF_USABLE) * time - np.asarray(batch_s) / 2 - work) / (1 - EVALUATION_PART)
    most: Floats = np.maximum(time - np.asarray(full_s) - work, cut)
    return most


def needed_s(work_s: Seconds, fixed_s: Seconds, full_s: Seconds, batch_s: Seconds) -> Floats:
    """The least usable time in which there is room for `work_s` seconds of steps."""
    work, fixed = np.asarray(work_s, dtype=np.float64), np.asarray(fixed_s, dtype=np.float64)
    cut = ((1 - EVALUATION_PART) * fixed + np.asarray(batch_s) / 2 + work) / (1 - _OF_USABLE)
    least: Floats = np.minimum(fixed + np.asarray(full_s) + work, cut)
    return least
