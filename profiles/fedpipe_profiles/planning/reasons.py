"""Why a plan is what it is, in a word and in a sentence with numbers.

What bound a plan is found by asking again with one resource endless: the one whose absence helps most is the bound. A
quick look answers that; it is compared with the same look at the problem as it is.
"""

import math

import numpy as np

from fedpipe_profiles.costs.memory import with_margin
from fedpipe_profiles.device import MIB
from fedpipe_profiles.plan import Bound
from fedpipe_profiles.planning.option import Budget, Option
from fedpipe_profiles.planning.options import Prepared
from fedpipe_profiles.planning.problem import Increments
from fedpipe_profiles.planning.search import Choice
from fedpipe_profiles.planning.table import OptionTable, Resource, look, relaxed

MOST_CHARACTERS = 500
_RESOURCES: tuple[Resource, ...] = ("memory", "time", "link")
_WORTH_NAMING = 5e-4
_LONG = 1e12
"""Claimed figures may have hundreds of digits; from here on three must do."""


def bound_of(increments: Increments, prepared: Prepared, budget: Budget, choice: Choice) -> Bound:
    """The resource that, if it were endless, would improve the choice most; "nothing" if none is missing."""
    best = max(option.fidelity for option in prepared.options)
    if choice.objective >= best * float(increments.gains.sum()) * (1 - 1e-9):
        return "nothing"
    seen = _seen(increments, prepared, prepared.table, budget)
    reached = {
        resource: _seen(increments, prepared, *relaxed(prepared.table, budget, resource)) for resource in _RESOURCES
    }
    bound = max(_RESOURCES, key=lambda resource: reached[resource])
    if reached[bound] > seen * (1 + _WORTH_NAMING):
        return bound
    # Two resources hold the plan together: name the one that is used up most.
    option, memory, round_s = choice.option, *_use(choice, budget)
    timely: Bound = "link" if option.transfers_s(choice.parameters) > round_s / 2 else "time"
    return "memory" if memory / budget.memory_bytes >= round_s / budget.time_s else timely


def _seen(increments: Increments, prepared: Prepared, table: OptionTable, budget: Budget) -> float:
    found = look(increments.frontier, table, budget, (budget.time_s,), prepared.wanted, prepared.least)[0]
    return found.objective if found else 0.0


def _use(choice: Choice, budget: Budget) -> tuple[float, float]:
    """The most that the peak can be in bytes, and seconds of the round."""
    memory = choice.option.memory(choice.parameters, choice.rank_sum)
    return memory, choice.option.round_s(choice.steps, choice.parameters, budget.time_s)


def explain(increments: Increments, prepared: Prepared, budget: Budget, choice: Choice, bound: Bound) -> str:
    """The sentence of a plan: what it does, what it needs, and what the next step would need."""
    parts = [
        _bits(prepared, budget, choice),
        _ranks(increments, choice),
        f"{choice.examples} of {prepared.wanted} examples",
        _missing(increments, prepared, budget, choice, bound),
        _short_of_share(increments, prepared, budget, choice),
    ]
    return f"{bound}: " + "; ".join(part for part in parts if part)


def _bits(prepared: Prepared, budget: Budget, choice: Choice) -> str:
    setting = choice.option.setting
    finer = [
        o
        for o in prepared.options
        if o.fidelity > choice.option.fidelity
        and o.setting.batch_size == setting.batch_size
        and o.setting.gradient_checkpointing == setting.gradient_checkpointing
    ]
    text = f"{setting.bits}-bit base"
    if not finer:
        return text
    other = min(finer, key=lambda o: (o.memory(0, 0), o.step_s))
    need = other.memory(choice.parameters, choice.rank_sum)
    if need > budget.memory_bytes:
        return (
            f"{text} because the same work at {other.setting.bits} bits needs "
            f"{_mib(with_margin(prepared.context_bytes, need))} and {_lent(prepared)}"
        )
    seconds = other.needed_s(choice.steps, choice.parameters)
    return f"{text} because the same work at {other.setting.bits} bits takes {_seconds(seconds)} s"


def _ranks(increments: Increments, choice: Choice) -> str:
    trained = sorted(rank for rank in choice.ranks.values() if rank)
    count = len(increments.names)
    which = f"all {count} weights" if len(trained) == count else f"{len(trained)} of {count} weights"
    if trained[0] == trained[-1]:
        return f"{which} at rank {trained[0]}"
    return f"{which} at ranks {trained[0]} to {trained[-1]}"


def _missing(increments: Increments, prepared: Prepared, budget: Budget, choice: Choice, bound: Bound) -> str:
    memory, round_s = _use(choice, budget)
    option, step = choice.option, _next_step(increments, choice)
    match bound:
        case "nothing":
            return ""
        case "memory":
            text = f"uses {_mib(with_margin(prepared.context_bytes, memory))} and {_lent(prepared)}"
            if step is None:
                return text
            need = with_margin(prepared.context_bytes, option.memory(*step))
            lacking = need - prepared.limit_bytes
            return f"{text}, the next rank step lacks {_mib(lacking)}" if lacking > 0 else text
        case "time":
            most = math.ceil(prepared.wanted / option.setting.batch_size)
            if choice.examples < prepared.wanted:
                full = option.needed_s(most, choice.parameters)
                return f"all examples would take {_seconds(full)} s and {_seconds(budget.time_s)} s are usable"
            text = f"takes {_seconds(round_s)} of {_seconds(budget.time_s)} usable s"
            return f"{text}, with the next rank step {_seconds(option.needed_s(most, step[0]))} s" if step else text
        case "link":
            return _link(budget, choice, round_s, step)


def _link(budget: Budget, choice: Choice, round_s: float, step: tuple[float, float] | None) -> str:
    option = choice.option
    sent, transfers = option.sent_bytes(choice.parameters), option.transfers_s(choice.parameters)
    text = f"the update has {_mib(sent)}, transfers take {_seconds(transfers)} of {_seconds(round_s)} s"
    if step is None:
        return text
    larger = option.sent_bytes(step[0])
    if larger > budget.up_bytes:
        return f"{text}, the next rank step needs {_whole(larger)} bytes and {_whole(budget.up_bytes)} are allowed"
    room_s = option.upload_room_s(choice.steps, step[0], budget.time_s)
    if room_s <= 0:
        return text
    return f"{text}, the next rank step needs {8 * larger / room_s / 1e6:.3g} Mbit/s up"


def _short_of_share(increments: Increments, prepared: Prepared, budget: Budget, choice: Choice) -> str:
    seconds = prepared.smallest_round_s(increments.first, prepared.least)
    if choice.examples >= prepared.least or seconds is None:
        return ""
    return (
        f"its least share of {prepared.least} examples needs {_seconds(seconds)} s and "
        f"{_seconds(budget.time_s)} s are usable"
    )


def _next_step(increments: Increments, choice: Choice) -> tuple[float, float] | None:
    """Parameters and ranks with the cheapest increment that the choice leaves out; None if it takes all."""
    ranks = np.array([choice.ranks[name] for name in increments.names], dtype=np.float64)
    next_ = np.flatnonzero(increments.below == ranks[increments.weight])
    if not len(next_):
        return None
    cheapest = next_[np.argmin(increments.parameters[next_])]
    return choice.parameters + float(increments.parameters[cheapest]), choice.rank_sum + float(
        increments.ranks[cheapest]
    )


def explain_none(increments: Increments, prepared: Prepared, budget: Budget) -> tuple[Bound, str]:
    """Why a device can carry nothing, and the smallest thing that would fit."""
    first = increments.first
    smallest = min(prepared.options, key=lambda o: o.memory(*first))
    need = with_margin(prepared.context_bytes, smallest.memory(*first))
    if smallest.memory(*first) > budget.memory_bytes:
        lacking = _mib(need - prepared.limit_bytes)
        return "memory", f"needs {_mib(need)} at {_name(smallest)}; {_lent(prepared)}, {lacking} too few"
    if smallest.sent_bytes(first[0]) > budget.up_bytes:
        sent = smallest.sent_bytes(first[0])
        return "link", f"the smallest update has {_whole(sent)} bytes; {_whole(budget.up_bytes)} are allowed"
    fitting = [o for o in prepared.options if o.memory(*first) <= budget.memory_bytes]
    quickest = min(fitting, key=lambda o: o.needed_s(1, first[0]))
    seconds, transfers = quickest.needed_s(1, first[0]), quickest.transfers_s(first[0])
    evaluation_s = seconds - quickest.prepare_s - transfers - quickest.training_s(1, first[0])
    reason = (
        f"one step at {_name(quickest)} needs {_seconds(seconds)} s, {_seconds(quickest.load_s)} s of it for loading "
        f"the model, {_seconds(evaluation_s)} s for evaluating and {_seconds(transfers)} s for "
        f"transfers; {_seconds(budget.time_s)} s are usable"
    )
    return ("link" if transfers > seconds / 2 else "time"), reason


def _name(option: Option) -> str:
    setting = option.setting
    checkpointing = ", checkpointing" if setting.gradient_checkpointing else ""
    return f"{setting.bits} bits, batch {setting.batch_size}{checkpointing}"


def _lent(prepared: Prepared) -> str:
    if prepared.capped:
        return f"{_mib(prepared.limit_bytes)} may be used since it ran out of memory"
    return f"{_mib(prepared.limit_bytes)} are lent"


def _mib(size: float) -> str:
    return f"{_whole(size / MIB)} MiB" if size >= 10 * MIB else f"{size / MIB:.2f} MiB"


def _whole(number: float) -> str:
    return f"{number:.0f}" if number < _LONG else f"{number:.3g}"


def _seconds(number: float) -> str:
    return f"{number:.1f}" if number < _LONG else f"{number:.3g}"
