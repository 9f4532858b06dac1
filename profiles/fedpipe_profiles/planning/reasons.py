"""Why a plan is what it is, in a word and in a sentence with numbers.

What bound a plan is found by asking again with one resource endless: the one whose absence helps most is the bound.
"""

import math

from fedpipe_profiles.costs.memory import with_margin
from fedpipe_profiles.device import MIB
from fedpipe_profiles.plan import Bound
from fedpipe_profiles.planning.options import Budget, Option, Prepared, Resource, relaxed
from fedpipe_profiles.planning.problem import Increments
from fedpipe_profiles.planning.search import Choice, best_choice

_RESOURCES: tuple[Resource, ...] = ("memory", "time", "link")
_WORTH_NAMING = 5e-4


def bound_of(increments: Increments, prepared: Prepared, budget: Budget, choice: Choice) -> Bound:
    """The resource that, if it were endless, would improve the choice most; "nothing" if none is missing."""
    best = max(option.fidelity for option in prepared.options)
    if choice.objective >= best * float(increments.gains.sum()) * (1 - 1e-9):
        return "nothing"
    reached = {resource: _without(increments, prepared, budget, resource) for resource in _RESOURCES}
    bound = max(_RESOURCES, key=lambda resource: reached[resource])
    if reached[bound] > choice.objective * (1 + _WORTH_NAMING):
        return bound
    # Two resources hold the plan together: name the one that is used up most.
    option, memory, round_s = choice.option, *_use(choice)
    transfers = option.down_s + option.up_s + option.up_per_parameter_s * choice.parameters
    timely: Bound = "link" if transfers > round_s / 2 else "time"
    return "memory" if memory / budget.memory_bytes >= round_s / budget.time_s else timely


def _without(increments: Increments, prepared: Prepared, budget: Budget, resource: Resource) -> float:
    options, more = relaxed(prepared.options, budget, resource)
    choice = best_choice(increments, options, more, prepared.wanted, solves=0)
    return choice.objective if choice else 0.0


def _use(choice: Choice) -> tuple[float, float]:
    """Predicted peak in bytes, and seconds of the round."""
    memory = choice.option.memory(choice.parameters, choice.rank_sum)
    return memory, choice.option.round_s(choice.steps, choice.parameters)


def explain(increments: Increments, prepared: Prepared, budget: Budget, choice: Choice, bound: Bound) -> str:
    """The sentence of a plan: what it does, what it needs, and what the next step would need."""
    parts = [
        _bits(prepared, budget, choice),
        _ranks(increments, choice),
        f"{choice.examples} of {prepared.wanted} examples",
        _missing(increments, prepared, budget, choice, bound),
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
    other = min(finer, key=lambda o: (o.memory_bytes, o.step_s))
    need = other.memory(choice.parameters, choice.rank_sum)
    if need > budget.memory_bytes:
        return (
            f"{text} because the same work at {other.setting.bits} bits needs "
            f"{_mib(with_margin(prepared.context_bytes, need))} and {_lent(prepared)}"
        )
    seconds = other.round_s(choice.steps, choice.parameters)
    return f"{text} because the same work at {other.setting.bits} bits takes {seconds:.1f} s"


def _ranks(increments: Increments, choice: Choice) -> str:
    trained = sorted(rank for rank in choice.ranks.values() if rank)
    count = len(increments.names)
    which = f"all {count} weights" if len(trained) == count else f"{len(trained)} of {count} weights"
    if trained[0] == trained[-1]:
        return f"{which} at rank {trained[0]}"
    return f"{which} at ranks {trained[0]} to {trained[-1]}"


def _missing(increments: Increments, prepared: Prepared, budget: Budget, choice: Choice, bound: Bound) -> str:
    memory, round_s = _use(choice)
    match bound:
        case "nothing":
            return ""
        case "memory":
            used = with_margin(prepared.context_bytes, memory)
            lacking = used + _next_step_bytes(increments, choice) - prepared.limit_bytes
            more = f", the next rank step lacks {_mib(lacking)}" if lacking > 0 else ""
            return f"uses {_mib(used)} and {_lent(prepared)}{more}"
        case "time":
            most = math.ceil(prepared.wanted / choice.option.setting.batch_size)
            full = choice.option.round_s(most, choice.parameters)
            return (
                f"all examples would take {full:.1f} s and {budget.time_s:.1f} s are usable"
                if choice.examples < prepared.wanted
                else f"takes {round_s:.1f} of {budget.time_s:.1f} usable s"
            )
        case "link":
            option = choice.option
            sent = option.up_bytes + 4 * choice.parameters
            transfers = option.down_s + option.up_s + option.up_per_parameter_s * choice.parameters
            return f"the update has {_mib(sent)}, transfers take {transfers:.1f} of {round_s:.1f} s"


def _next_step_bytes(increments: Increments, choice: Choice) -> float:
    """Bytes of the cheapest increment that the choice leaves out, margin included; 0 if it takes all."""
    costs, before = [], [0.0] * len(increments.names)
    for index, added, parameters in zip(increments.weight, increments.ranks, increments.parameters, strict=True):
        if before[index] >= choice.ranks[increments.names[index]]:
            option = choice.option
            costs.append(option.memory_per_parameter * parameters + option.memory_per_rank * added)
        before[index] += added
    return with_margin(0, min(costs)) if costs else 0.0


def explain_none(increments: Increments, prepared: Prepared, budget: Budget) -> tuple[Bound, str]:
    """Why a device can carry nothing, and the smallest thing that would fit."""
    first = increments.first
    smallest = min(prepared.options, key=lambda o: o.memory(*first))
    need = with_margin(prepared.context_bytes, smallest.memory(*first))
    if smallest.memory(*first) > budget.memory_bytes:
        return "memory", f"needs {_mib(need)} at {_name(smallest)}; {_lent(prepared)}"
    if smallest.up_bytes + 4 * first[0] > budget.up_bytes:
        sent = smallest.up_bytes + 4 * first[0]
        return "link", f"the smallest update has {sent:.0f} bytes; {budget.up_bytes:.0f} are allowed"
    fitting = [o for o in prepared.options if o.memory(*first) <= budget.memory_bytes]
    quickest = min(fitting, key=lambda o: o.round_s(1, first[0]))
    seconds = quickest.round_s(1, first[0])
    transfers = seconds - quickest.compute_s(1, first[0])
    reason = (
        f"one step at {_name(quickest)} needs {seconds:.1f} s, {transfers:.1f} s of it for transfers; "
        f"{budget.time_s:.1f} s are usable"
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
    return f"{size / MIB:.0f} MiB" if size >= 10 * MIB else f"{size / MIB:.2f} MiB"
