"""A run in the terminal: one line per event, a table of the plans, a table per round.

Pure rendering with rich: events come in as the coordinator's control socket gives them, renderables go out. Texts from
agents are shown as plain text, never as markup.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

MIB = 1024 * 1024
MAX_TEXT = 600
"""Characters of a text from elsewhere: a screen's worth."""
_PROGRESS_STEPS = 4
_STYLES = {
    "run-failed": "bold red",
    "failed": "red",
    "rejected": "red",
    "gone": "yellow",
    "offline": "yellow",
    "refused": "yellow",
    "excluded": "yellow",
    "aggregated": "bold",
    "run-done": "bold green",
}


class RunView:
    """Turns the events of a run into what a person sees; remembers only which progress was shown."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[tuple[str, int, str], int] = {}

    def show(self, event: Mapping[str, Any]) -> None:
        """Print one event."""
        kind = str(event.get("event", ""))
        if kind == "progress":
            self._progress(event)
            return
        if kind == "round":
            self._console.print(round_table(event["data"]))
            return
        prefix = _prefix(event)
        self._console.print(
            Text(f"{prefix}{plain(event.get('text', ''))}", style=_STYLES.get(kind, "")), soft_wrap=True
        )
        if kind == "planned":
            self._console.print(plan_table(event["data"]))

    def _progress(self, event: Mapping[str, Any]) -> None:
        """A line at each quarter of a stage: enough to see that it moves, not so much that it hides the rest."""
        done, of = int(event.get("done", 0)), int(event.get("of", 0))
        quarter = _PROGRESS_STEPS * done // of if of else 0
        key = (str(event.get("agent")), int(event.get("round", 0)), str(event.get("stage")))
        if self._shown.get(key) == quarter:
            return
        self._shown[key] = quarter
        loss = event.get("loss")
        amount = f" {done}/{of}" if of else ""
        tail = f", loss {loss:.3f}" if isinstance(loss, float) else ""
        self._console.print(
            Text(f"{_prefix(event)}{plain(event.get('agent'))} {event.get('stage')}{amount}{tail}", style="dim")
        )


def plan_table(data: Mapping[str, Any]) -> RenderableType:
    """What each agent will do, and what bound it."""
    table = Table(title=f"plans (deadline {data['deadline_s']:.0f} s)", title_justify="left")
    for name, justify in (
        ("agent", "left"),
        ("bits", "right"),
        ("ranks", "left"),
        ("batch", "right"),
        ("ckpt", "left"),
        ("examples", "right"),
        ("memory", "right"),
        ("round", "right"),
        ("up", "right"),
        ("bound", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # rich names its literals
    lines = []
    for agent, plan in sorted(data["plans"].items()):
        predicted = plan["predicted"]
        table.add_row(
            _cell(agent),
            str(plan["bits"]),
            describe_ranks(plan["ranks"]),
            str(plan["batch_size"]),
            "yes" if plan["gradient_checkpointing"] else "no",
            str(plan["examples"]),
            f"{predicted['peak_bytes'] / MIB:.0f} MiB",
            f"{predicted['round_s']:.0f} s",
            f"{predicted['up_bytes'] / MIB:.2f} MiB",
            str(plan["bound"]),
        )
        lines.append(Text(f"  {plain(agent)}: {plain(plan['reason'])}", style="dim"))
    lines.extend(
        Text(f"  {plain(agent)}: no plan: {plain(none['reason'])}", style="yellow")
        for agent, none in sorted(data["none"].items())
    )
    return Group(table, *lines)


def round_table(record: Mapping[str, Any]) -> RenderableType:
    """A finished round: predicted beside measured."""
    metric = record.get("metric") or {}
    accuracy = f", accuracy {metric['accuracy']:.3f}" if "accuracy" in metric else ""
    loss = f"loss {metric['loss']:.3f}{accuracy}" if metric else "not evaluated"
    title = f"round {record['round']}: held-out {loss}; {record['wall_s']:.0f} s of {record['deadline_s']:.0f} s"
    if record.get("time_error") is not None:
        title += f", predicted to {record['time_error']:.0%}"
    table = Table(title=title, title_justify="left")
    for name in ("agent", "bits", "ranks", "examples", "up", "down", "memory pred/meas", "time pred/meas", "status"):
        table.add_column(name, justify="left" if name in ("agent", "ranks", "status") else "right")
    for agent in record["agents"]:
        if "bits" not in agent:
            table.add_row(_cell(agent["agent"]), *[""] * 7, _cell(agent["status"]))
            continue
        table.add_row(
            _cell(agent["agent"]),
            str(agent["bits"]),
            describe_ranks(agent["ranks"]),
            f"{agent['examples']}/{agent['planned_examples']}",
            f"{agent['up_bytes'] / MIB:.2f} MiB",
            f"{agent['down_bytes'] / MIB:.2f} MiB",
            f"{agent['predicted_peak_bytes'] / MIB:.0f}/{_number(agent['measured_peak_bytes'], MIB)} MiB",
            f"{agent['predicted_round_s']:.0f}/{_number(agent['measured_round_s'], 1)} s",
            _cell(agent["status"]),
        )
    return table


def agents_table(agents: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Who is there, with what."""
    table = Table(title="agents", title_justify="left")
    for name in ("agent", "state", "device", "memory lent", "threads", "bits", "matmul", "uplink", "datasets"):
        table.add_column(name)
    for agent, entry in sorted(agents.items()):
        profile = entry["profile"]
        gpu = profile.get("accelerator")
        link = profile.get("link")
        limit = profile.get("limits", {}).get("memory_bytes")
        free = (gpu or profile["host"])["free_bytes"]
        rate = max(item["flops_per_s"] for item in profile["matmul"])
        table.add_row(
            _cell(agent),
            "online" if entry["online"] else "offline",
            _cell(str((gpu or {}).get("name") or profile["host"]["cpu"])[:40]),
            f"{min(free, limit or free) / MIB:.0f} MiB",
            str(
                min(profile["host"]["threads"], profile.get("limits", {}).get("threads") or profile["host"]["threads"])
            ),
            ",".join(str(bits) for bits in profile["supported_bits"]),
            f"{rate / 1e9:.0f} GFLOP/s",
            f"{link['uplink_bps'] / 1e6:.0f} Mbit/s" if link else "?",
            _cell(", ".join(profile.get("datasets", []))),
        )
    turned = [reason for _, entry in sorted(agents.items()) for reason in entry.get("turned_away", ())]
    return Group(table, *(Text(f"turned away: {plain(reason)}", style="yellow") for reason in turned))


def describe_ranks(ranks: Mapping[str, int]) -> str:
    """How many weights at which rank, as in `12 x 16, 25 x 4`."""
    counts: dict[int, int] = {}
    for rank in ranks.values():
        counts[rank] = counts.get(rank, 0) + 1
    return ", ".join(f"{count} x {rank}" for rank, count in sorted(counts.items(), reverse=True)) or "none"


def _prefix(event: Mapping[str, Any]) -> str:
    round_ = int(event.get("round") or 0)
    return f"[ROUND {round_}] " if round_ else "[RUN] "


def _number(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.0f}"


def _cell(value: object) -> Text:
    """Text from elsewhere in a table: rich reads markup in plain strings, and fails where it is not well-formed."""
    return Text(plain(value))


def plain(value: object, longest: int = MAX_TEXT) -> str:
    """Text from elsewhere, without control characters and of bounded length."""
    text = str(value)
    cut = text if len(text) <= longest else f"{text[:longest]}..."
    return "".join(char if char.isprintable() else " " for char in cut)
