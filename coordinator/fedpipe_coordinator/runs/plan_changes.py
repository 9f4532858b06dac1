"""What changed from one plan of a device to the next, and because of which figure: in a line for people, as data."""

from typing import Any

from fedpipe_profiles.plan import NoPlan, Plan

NOTEWORTHY = 0.2
"""A plan changed where bits, batch or checkpointing did, or examples or trained ranks by more than this."""
_DEADLINE = 0.05
_MAX_CHARACTERS = 600


def plan_change(
    before: Plan | NoPlan | None, after: Plan | NoPlan, because: tuple[str, ...]
) -> tuple[str, dict[str, Any]] | None:
    """The line and its data; None where nothing of note changed, or where there was no plan before."""
    if before is None or not _differs(before, after):
        return None
    reasons = [*because, *_deadline(before, after)] or [after.reason]
    text = f"{_words(after)}, not {_words(before)}: {'; '.join(reasons)}"
    return text[:_MAX_CHARACTERS], {"from": _data(before), "to": _data(after), "because": reasons}


def _differs(before: Plan | NoPlan, after: Plan | NoPlan) -> bool:
    if isinstance(before, NoPlan) or isinstance(after, NoPlan):
        return type(before) is not type(after)
    return _setting(before) != _setting(after) or any(
        abs(now - was) > NOTEWORTHY * max(was, now) for was, now in zip(_amounts(before), _amounts(after), strict=True)
    )


def _setting(plan: Plan) -> tuple[int, int, bool]:
    return plan.bits, plan.batch_size, plan.gradient_checkpointing


def _amounts(plan: Plan) -> tuple[int, int]:
    return plan.examples, sum(plan.ranks.values())


def _words(plan: Plan | NoPlan) -> str:
    if isinstance(plan, NoPlan):
        return "no plan"
    checkpointing = ", checkpointing" if plan.gradient_checkpointing else ""
    examples, ranks = _amounts(plan)
    return f"{plan.bits} bits, batch {plan.batch_size}{checkpointing}, {ranks} ranks, {examples} examples"


def _data(plan: Plan | NoPlan) -> dict[str, Any]:
    if isinstance(plan, NoPlan):
        return {"plan": False}
    examples, ranks = _amounts(plan)
    return {
        "bits": plan.bits,
        "batch_size": plan.batch_size,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "ranks": ranks,
        "examples": examples,
    }


def _deadline(before: Plan | NoPlan, after: Plan | NoPlan) -> tuple[str, ...]:
    if isinstance(before, NoPlan) or isinstance(after, NoPlan):
        return ()
    was, now = before.deadline_s, after.deadline_s
    return (f"deadline {was:.3g} -> {now:.3g} s",) if abs(now - was) > _DEADLINE * was else ()
