"""`report.html`: what happened in a run, on one page without foreign hosts.

Pure but for the writing. Everything that came from elsewhere (names, notes, labels) is escaped.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpipe_coordinator.records.line_files import read_lines
from fedpipe_coordinator.records.run_folder import AUDIT, KEYS, write_atomically
from fedpipe_coordinator.view import describe_ranks, plain

MIB = 1024 * 1024
MAX_TEXT = 4000
_WIDTH, _HEIGHT, _MARGIN = 640, 220, 44
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; font-size: 13px; }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
td:first-child { min-width: 5rem; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.w { min-width: 5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.note { color: #555; } code { background: #f3f3f3; padding: .1rem .3rem; overflow-wrap: anywhere; }
svg text { font: 12px system-ui, sans-serif; fill: #444; }
@media (prefers-color-scheme: dark) {
  body { background: #16181c; color: #e8e8e8; } th, td { border-color: #333; } .note { color: #aaa; }
  code { background: #24272d; } svg text { fill: #bbb; }
}
@media print { body { max-width: none; margin: 0; } h2 { break-after: avoid; } table { break-inside: avoid; } }
"""


def write_report(path: Path, summary: Mapping[str, Any], audit: Path) -> None:
    """Write the page for a run's summary and audit record."""
    write_atomically(path, render(summary, read_lines(audit, KEYS[AUDIT])))


def render(summary: Mapping[str, Any], decisions: Sequence[Mapping[str, Any]]) -> str:
    """The page as text."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>FedPipe run {_e(summary['run'])}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Run {_e(summary['run'])}</h1>",
        _what(summary),
        _metrics_section(summary),
        *(_round_section(record) for record in summary["rounds"]),
        _export_section(summary),
        _decision_section(decisions),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _what(summary: Mapping[str, Any]) -> str:
    task = f"{_e(summary['task'])} of <code>{_e(summary['model'])}</code>, seed {_e(summary['seed'])}"
    return f"<p>{task}: <strong>{_e(summary['phase'])}</strong>. {_e(summary['note'])}</p>"


def _metrics_section(summary: Mapping[str, Any]) -> str:
    points = [summary["initial_metric"], *(record["metric"] for record in summary["rounds"])]
    charts = [
        _chart(name, [(at, point[name]) for at, point in enumerate(points) if point and name in point])
        for name in ("loss", "accuracy")
    ]
    return "<h2>Held-out metrics after each round</h2>" + "".join(charts)


def _chart(name: str, points: Sequence[tuple[int, float]]) -> str:
    """A line chart as inline SVG; nothing for fewer than two points."""
    if len(points) < 2:  # noqa: PLR2004  # a line has two ends
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    span = (high - low) or 1.0
    last = max(x for x, _ in points) or 1
    place = [
        (
            _MARGIN + x * (_WIDTH - 2 * _MARGIN) / last,
            _HEIGHT - _MARGIN - (y - low) * (_HEIGHT - 2 * _MARGIN) / span,
            x,
            y,
        )
        for x, y in points
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in place)
    dots = "".join(
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.5' fill='#2a6fdb'><title>round {at}: {value:.4f}</title></circle>"
        f"<text x='{x:.1f}' y='{y - 8:.1f}' text-anchor='middle'>{value:.3f}</text>"
        f"<text x='{x:.1f}' y='{_HEIGHT - 14}' text-anchor='middle'>{at}</text>"
        for x, y, at, value in place
    )
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' width='100%' style='max-width:{_WIDTH}px' role='img' "
        f"aria-label='{_e(name)} by round'><polyline points='{line}' fill='none' stroke='#2a6fdb' stroke-width='2'/>"
        f"{dots}<text x='6' y='16'>{_e(name)}</text></svg>"
    )


def _round_section(record: Mapping[str, Any]) -> str:
    heads = ("agent", "bits", "ranks", "batch", "examples", "up", "down")
    more = ("memory predicted / measured", "time predicted / measured", "status", "why this plan")
    rows = "".join(_agent_row(agent) for agent in record["agents"])
    tail = record["truncation_tail"]
    time = f"{record['wall_s']:.1f} s of {record['deadline_s']:.0f} s"
    return (
        f"<h2>Round {_e(record['round'])}</h2><p class='note'>{time}; "
        f"{tail:.2%} of the change lost by truncation to the global rank</p>"
        f"<table><thead><tr>{''.join(f'<th>{head}</th>' for head in heads + more)}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _agent_row(agent: Mapping[str, Any]) -> str:
    if "bits" not in agent:
        return (
            f"<tr><td>{_e(agent['agent'])}</td><td colspan='8'></td>"
            f"<td>{_e(agent['status'])}</td><td>{_e(agent['note'])}</td></tr>"
        )
    cells = (
        agent["batch_size"],
        f"{agent['examples']}/{agent['planned_examples']}",
        f"{agent['up_bytes'] / MIB:.2f} MiB",
        f"{agent['down_bytes'] / MIB:.2f} MiB",
        f"{agent['predicted_peak_bytes'] / MIB:.0f} / {_maybe(agent['measured_peak_bytes'], MIB)} MiB",
        f"{agent['predicted_round_s']:.1f} / {_maybe(agent['measured_round_s'], 1)} s",
    )
    numbers = "".join(f"<td class='n'>{_e(cell)}</td>" for cell in cells)
    begin = f"<td>{_e(agent['agent'])}</td><td class='n'>{_e(agent['bits'])}</td>"
    ranks = f"<td class='w'>{_e(describe_ranks(agent['ranks']))}</td>"
    end = f"<td class='w'>{_e(agent['status'])}</td><td>{_e(agent['reason'])}</td>"
    return f"<tr>{begin}{ranks}{numbers}{end}</tr>"


def _export_section(summary: Mapping[str, Any]) -> str:
    exports = "".join(
        f"<li>{_e(name)}: <code>{_e(path)}</code></li>" for name, path in summary["exports"].items() if path
    )
    return f"<h2>Results</h2><ul>{exports or '<li>nothing was exported</li>'}</ul>"


def _decision_section(decisions: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{_e(line['time'])}</td><td>{_e(line['kind'])}</td><td>{_e(line['agent'] or '')}</td>"
        f"<td>{_e(line['text'])}</td></tr>"
        for line in decisions
    )
    return f"<h2>Decisions</h2><table><tbody>{rows}</tbody></table>"


def _maybe(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.1f}"


def _e(value: object) -> str:
    return html.escape(plain(value, MAX_TEXT), quote=True)
