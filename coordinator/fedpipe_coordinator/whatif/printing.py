"""The answer in the terminal: a table of the fleet, why, where the memory goes, and what a change would buy.

Pure rendering with rich, from the data of `answer.py`. Names from files are shown as plain text, never as markup.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fedpipe_profiles.plain_text import plain

GIB = 1 << 30
MIB = 1 << 20
_NAME = 40
_SHOWN_CHANGES = 40
_COLUMNS = (
    ("device", "left"),
    ("fits", "left"),
    ("bits", "right"),
    ("batch", "right"),
    ("ckpt", "left"),
    ("weights: ranks", "left"),
    ("examples", "right"),
    ("memory of lent", "right"),
    ("round", "right"),
    ("s down + compute + up", "right"),
    ("MiB down / up", "right"),
    ("bound", "left"),
)


def render(answer: Mapping[str, Any], *, breakdown: bool) -> Iterator[RenderableType]:
    """What a person reads, part by part."""
    yield Text(_heading(answer))
    yield _fleet_table(answer["devices"])
    for device in answer["devices"]:
        style = "dim" if device["fits"] else "yellow"
        yield Text(f"  {_cell(device['device'])}: {_reason(device)}", style=style)
    yield Text(_summary(answer), style="bold")
    if breakdown:
        yield _breakdown_table([device for device in answer["devices"] if device["fits"]])
    if answer["what_if"]:
        yield _changes_table(answer["what_if"])
    for line in answer["assumed"]:
        yield Text(f"assumed: {plain(line, 400)}", style="dim")


def _heading(answer: Mapping[str, Any]) -> str:
    parameters = answer["parameters"]
    size = f"{parameters / 1e9:.2f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.2f} million"  # noqa: PLR2004  # a billion
    return (
        f"{plain(answer['job'], 100)}: {plain(answer['model'], 100)}, {size} parameters, "
        f"{answer['adapted_weights']} weights to adapt (configuration: {plain(answer['model_origin'], 300)})"
    )


def _summary(answer: Mapping[str, Any]) -> str:
    if not any(device["fits"] for device in answer["devices"]):
        if answer["deadline_chosen"]:
            return "no deadline is chosen: no device can carry anything at any"
        return f"deadline {_seconds(answer['deadline_s'])}, given; no device can carry anything"
    how = "chosen for the most progress per second" if answer["deadline_chosen"] else "given"
    return (
        f"deadline {_seconds(answer['deadline_s'])}, {how}; progress of a round {answer['progress']:.1%} of the best "
        f"possible, {answer['progress_per_hour']:.3g} such rounds an hour; {_bytes(answer['down_bytes'])} down and "
        f"{_bytes(answer['up_bytes'])} up per round, all devices together"
    )


def _reason(device: Mapping[str, Any]) -> str:
    """Why, and for a device without a plan first of all that it has none."""
    reason = plain(device["reason"], 700)
    return reason if device["fits"] else f"does not fit: {reason}"


def _fleet_table(devices: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="what each device would get", title_justify="left")
    for name, justify in _COLUMNS:
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # rich names its literals
    for device in devices:
        table.add_row(*map(Text, _row(device)))
    return table


def _row(device: Mapping[str, Any]) -> tuple[str, ...]:
    count = f" x{device['count']}" if device["count"] > 1 else ""
    name = f"{_cell(device['device'])}{count}"
    memory = f"{device['needed_bytes'] / GIB:.1f} of {device['lent_bytes'] / GIB:.1f} GiB"
    if not device["fits"]:
        return (name, "no", *[""] * 5, memory, "", "", "", device["bound"])
    low, high = device["least_rank"], device["greatest_rank"]
    parts = (device[key] for key in ("download_s", "compute_s", "upload_s"))
    return (
        name,
        "yes",
        str(device["bits"]),
        str(device["batch_size"]),
        "yes" if device["gradient_checkpointing"] else "no",
        f"{device['weights']}: {low}" if low == high else f"{device['weights']}: {low} to {high}",
        f"{device['examples']}/{device['wanted_examples']}",
        memory,
        _seconds(device["round_s"]),
        " + ".join(f"{part:.1f}" if part < 10 else f"{part:.0f}" for part in parts),  # noqa: PLR2004  # a decimal tells
        f"{device['down_bytes'] / MIB:.1f} / {device['up_bytes'] / MIB:.1f}",
        device["bound"],
    )


def _breakdown_table(devices: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="where the memory goes, in MiB", title_justify="left")
    table.add_column("")
    for device in devices:
        table.add_column(Text(_cell(device["device"])), justify="right")
    terms = dict.fromkeys(term for device in devices for term in device["memory"])
    for term in terms:
        row = (f"{device['memory'].get(term, 0) / MIB:,.1f}" for device in devices)
        table.add_row(term.replace("_", " "), *row)
    table.add_row("the most is held in", *(str(device["peak_phase"]) for device in devices))
    table.add_row("to be lent", *(f"{device['needed_bytes'] / MIB:,.1f}" for device in devices))
    return table


def _changes_table(changes: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="what a change would buy", title_justify="left")
    for name in ("change", "of", "progress of a round", "bits", "round", "an hour"):
        table.add_column(name, justify="left" if name in ("change", "of") else "right")
    for each in changes[:_SHOWN_CHANGES]:
        before, after = each["before"], each["after"]
        fleet = each["device"] is None
        table.add_row(
            each["change"],
            Text("all devices" if fleet else _cell(each["device"]), style="bold" if fleet else ""),
            _pair(before, after, "progress", lambda value: f"{value:.1%}"),
            "" if fleet else _pair(before, after, "bits", str),
            _pair(before, after, "round_s", _seconds),
            _pair(before, after, "progress_per_hour", lambda value: f"{value:.3g}") if fleet else "",
        )
    if len(changes) > _SHOWN_CHANGES:
        table.caption = f"and {len(changes) - _SHOWN_CHANGES} more: --format json has all"
    return table


def _pair(before: Any, after: Any, key: str, show: Any) -> str:
    """One value where both are shown alike, else from which to which."""
    old, new = ("-" if each is None else show(each[key]) for each in (before, after))
    return old if old == new else f"{old} to {new}"


def _seconds(value: float) -> str:
    """Seconds as people say them; of very few, two figures."""
    if 0 < value < 0.1:  # noqa: PLR2004  # which one decimal would show as none
        return f"{value:.2g} s"
    if value < 10:  # noqa: PLR2004  # below it a decimal tells something
        return f"{value:.1f} s"
    return f"{value:.0f} s" if value < 7200 else f"{value / 3600:.1f} h"  # noqa: PLR2004  # two hours


def _bytes(size: float) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1024:.1f} KiB"


def _cell(value: object) -> str:
    return plain(str(value), _NAME)
