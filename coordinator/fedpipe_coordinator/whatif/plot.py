"""The curve of deadlines as an SVG: progress per hour, every device's under-training rate, and the chosen point.

Owns the drawing and the atomic write. The file needs no script; its colours follow the reader's light or dark setting,
and every name in it is escaped.
"""

import math
import os
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpipe_coordinator.whatif.errors import PlotError
from fedpipe_coordinator.whatif.small_files import named
from fedpipe_profiles.plain_text import plain

WIDTH, HEIGHT = 900, 640
_LEFT, _RIGHT = 80, 660
_TOP, _MIDDLE, _LOWER, _BOTTOM = 70, 300, 350, 580
_KEY_X, _KEY_STEP = 690, 18
_MOST_LINES = 24
"""Devices with a line of their own; of more, those that differ most at the chosen deadline are drawn."""
_TICKS = 5
_NAME = 26
_NARROW = 1e-6
_STYLE = """
svg { font: 13px system-ui, sans-serif; color-scheme: light dark; background: #ffffff; }
text { fill: #1b1f24; } .quiet { fill: #59636e; } .title { font-size: 16px; font-weight: 600; }
.axis { stroke: #8b949e; stroke-width: 1; } .grid { stroke: #d8dee4; stroke-width: 1; }
.line { fill: none; stroke-width: 2; } .progress { stroke: #0b63ce; } .share { stroke: #59636e; }
.chosen { stroke: #b35900; stroke-width: 2; stroke-dasharray: 5 4; } .mark { fill: #b35900; } .word { fill: #b35900; }
.paper { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117; } .paper { fill: #0d1117; } text { fill: #e6edf3; } .quiet { fill: #9198a1; }
  .axis { stroke: #6e7681; } .grid { stroke: #262c36; } .progress { stroke: #58a6ff; } .share { stroke: #9198a1; }
  .chosen { stroke: #f0883e; } .mark, .word { fill: #f0883e; }
}
"""
_HUES = (210, 30, 140, 280, 0, 180, 60, 320)
_DASHES = ("", "7 4", "2 3")

_OTHER = "Name a file in a folder that is there and writable"

Place = Callable[[float], float]


def plot_svg(answer: Mapping[str, Any]) -> str:
    """The picture of an answer (see `answer.py`) as the text of an SVG file."""
    root = ET.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img"},
        width=str(WIDTH),
        height=str(HEIGHT),
    )
    ET.SubElement(root, "title").text = f"Deadline and progress of {plain(answer['job'], 100)}"
    ET.SubElement(root, "style").text = _STYLE
    ET.SubElement(root, "rect", {"class": "paper"}, width=str(WIDTH), height=str(HEIGHT))
    title = f"{plain(answer['job'], 60)}: {plain(answer['model'], 60)}"
    _text(root, _LEFT, 30, title, "title")
    curve = answer["curve"]
    if not curve:
        _text(root, _LEFT, _TOP, "No device can carry anything: there is no curve to draw.")
        return _written(root)
    x = _scale([point["deadline_s"] for point in curve], _LEFT, _RIGHT)
    _text(root, _LEFT, 50, _subtitle(answer), "quiet")
    _progress_panel(root, curve, x)
    _rates_panel(root, answer, x)
    _chosen(root, answer, x)
    return _written(root)


def write_plot(path: Path, text: str) -> None:
    """Write the file whole or not at all; of a symbolic link, the file that it names.

    Raises:
        PlotError: if it cannot be written, or what is there is no file.
    """
    temporary = None
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            raise PlotError(
                f"the plot {named(path)} cannot be written: no file is there, but {_kind(target)}. {_OTHER}"
            )
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, prefix=".plot-", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except (OSError, ValueError, RuntimeError) as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise PlotError(f"the plot {named(path)} cannot be written: {plain(reason, 300)}. {_OTHER}") from None


def _kind(target: Path) -> str:
    return "a folder" if target.is_dir() else "a device, a pipe or a socket"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _written(root: ET.Element) -> str:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _subtitle(answer: Mapping[str, Any]) -> str:
    how = "chosen" if answer["deadline_chosen"] else "given"
    return (
        f"deadline {how}: {_short(answer['deadline_s'])} s, {answer['progress']:.0%} of the best possible round, "
        f"{answer['progress_per_hour']:.3g} such rounds an hour"
    )


def _scale(values: Sequence[float], low: float, high: float) -> Place:
    """A logarithmic map of `values`' range to a range of pixels; of a single value to its middle."""
    least, most = math.log(min(values)), math.log(max(values))
    if most - least < _NARROW:
        return lambda _: (low + high) / 2
    return lambda value: low + (math.log(value) - least) / (most - least) * (high - low)


def _progress_panel(root: ET.Element, curve: Sequence[Mapping[str, Any]], x: Place) -> None:
    y = _per_hour(curve)
    most = max(point["progress_per_hour"] for point in curve)
    _axes(root, _TOP, _MIDDLE, [(y(value), _short(value)) for value in _steps(most or 1.0)])
    for share in (0.0, 0.5, 1.0):
        _text(root, _RIGHT + 4, _share_place(share) + 4, f"{share:.0%}", "quiet")
    rate, share_look = {"class": "line progress"}, {"class": "line share", "stroke-dasharray": "2 4"}
    for below, look, words in (
        (0, rate, "progress per hour, in"),
        (36, share_look, "progress of a round, of"),
    ):
        _line(root, [(_KEY_X + 20, _TOP + 8 + below), (_KEY_X + 44, _TOP + 8 + below)], look)
        _text(root, _KEY_X + 50, _TOP + 12 + below, words)
        _text(root, _KEY_X + 50, _TOP + 27 + below, "best possible rounds", "quiet")
    _line(root, [(x(point["deadline_s"]), _share_place(point["progress"])) for point in curve], share_look)
    _line(root, [(x(point["deadline_s"]), y(point["progress_per_hour"])) for point in curve], rate)


def _per_hour(curve: Sequence[Mapping[str, Any]]) -> Place:
    """Where a progress per hour stands."""
    most = max(point["progress_per_hour"] for point in curve) or 1.0
    return lambda value: _MIDDLE - value / (1.05 * most) * (_MIDDLE - _TOP)


def _share_place(share: float) -> float:
    """Where a round's progress stands, on the axis at the right."""
    return _MIDDLE - share * (_MIDDLE - _TOP)


def _rates_panel(root: ET.Element, answer: Mapping[str, Any], x: Place) -> None:
    curve = answer["curve"]

    def y(value: float) -> float:
        return _BOTTOM - value * (_BOTTOM - _LOWER)

    _axes(root, _LOWER, _BOTTOM, [(y(i / _TICKS), f"{i / _TICKS:.0%}") for i in range(_TICKS + 1)])
    for value in _ticks([point["deadline_s"] for point in curve]):
        _text(root, x(value), _BOTTOM + 18, _short(value), "quiet", anchor="middle")
    _text(root, (_LEFT + _RIGHT) / 2, _BOTTOM + 40, "deadline of a round, seconds", anchor="middle")
    _text(root, _KEY_X, _LOWER - 24, "under-training rate:")
    _text(root, _KEY_X, _LOWER - 8, "share of examples left out", "quiet")
    names = list(curve[0]["under_training"])
    drawn = names[:_MOST_LINES]
    for index, name in enumerate(drawn):
        look = _look(index)
        points = [(x(point["deadline_s"]), y(point["under_training"][name])) for point in curve]
        _line(root, points, look)
        below = _LOWER + 10 + index * _key_step(len(drawn))
        _line(root, [(_KEY_X, below - 4), (_KEY_X + 24, below - 4)], look)
        _text(root, _KEY_X + 30, below, plain(name, _NAME), "quiet")
    if len(names) > len(drawn):
        _text(root, _KEY_X, HEIGHT - 8, f"and {len(names) - len(drawn)} more, in --format json", "quiet")


def _key_step(count: int) -> float:
    return min(_KEY_STEP, (HEIGHT - 24 - _LOWER) / max(1, count))


def _chosen(root: ET.Element, answer: Mapping[str, Any], x: Place) -> None:
    curve, deadline = answer["curve"], answer["deadline_s"]
    at = x(deadline)
    point = min(curve, key=lambda each: abs(each["deadline_s"] - deadline))
    height = _per_hour(curve)(point["progress_per_hour"])
    for top, bottom in ((_TOP, _MIDDLE), (_LOWER, _BOTTOM)):
        ET.SubElement(root, "line", {"class": "chosen"}, x1=_px(at), x2=_px(at), y1=_px(top), y2=_px(bottom))
    ET.SubElement(root, "circle", {"class": "mark"}, cx=_px(at), cy=_px(height), r="5")
    anchor = "start" if at < (_LEFT + _RIGHT) / 2 else "end"
    word = "chosen" if answer["deadline_chosen"] else "given"
    _text(root, at + (8 if anchor == "start" else -8), _MIDDLE - 8, f"{word}: {_short(deadline)} s", "word", anchor)


def _axes(root: ET.Element, top: float, bottom: float, ticks: Sequence[tuple[float, str]]) -> None:
    for height, word in ticks:
        ET.SubElement(root, "line", {"class": "grid"}, x1=_px(_LEFT), x2=_px(_RIGHT), y1=_px(height), y2=_px(height))
        _text(root, _LEFT - 8, height + 4, word, "quiet", "end")
    for x1, y1, x2, y2 in ((_LEFT, top, _LEFT, bottom), (_LEFT, bottom, _RIGHT, bottom)):
        ET.SubElement(root, "line", {"class": "axis"}, x1=_px(x1), y1=_px(y1), x2=_px(x2), y2=_px(y2))


def _look(index: int) -> dict[str, str]:
    """A colour that stands on white and on black, and from the ninth line on a dash."""
    hue, dash = _HUES[index % len(_HUES)], _DASHES[index // len(_HUES) % len(_DASHES)]
    return {"class": "line", "stroke": f"hsl({hue} 65% 50%)"} | ({"stroke-dasharray": dash} if dash else {})


def _line(root: ET.Element, points: Sequence[tuple[float, float]], attributes: dict[str, str]) -> None:
    if len(points) == 1:
        (x, y) = points[0]
        points = [(x - 4, y), (x + 4, y)]
    places = " ".join(f"{_px(x)},{_px(y)}" for x, y in points)
    ET.SubElement(root, "polyline", attributes | {"points": places})


def _text(root: ET.Element, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
    attributes = {"x": _px(x), "y": _px(y), "text-anchor": anchor} | ({"class": kind} if kind else {})
    ET.SubElement(root, "text", attributes).text = words


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers within a range of positive values: 1, 2 and 5 times powers of ten, or its ends if it is narrow."""
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]
    return found if len(found) > 1 else sorted({low, high})


def _steps(most: float) -> Iterator[float]:
    """0 and round steps up to `most`, at most seven of them."""
    raw = most / _TICKS
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw)
    yield from (index * step for index in range(int(most / step * (1 + 1e-9)) + 1))


def _px(value: float) -> str:
    return f"{value:.1f}"


def _short(value: float) -> str:
    """At most four figures, without an exponent where people count without."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"  # noqa: PLR2004  # a thousand
