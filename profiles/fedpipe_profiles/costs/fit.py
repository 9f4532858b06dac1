"""Fit a line to very few points: the two coefficients per device and bit width of the memory and time models.

A device has measured one, two or ten steps. A prior says what the line is before any measurement and how far it may be
off, so that one point already gives both coefficients and ten points leave the prior no say. (Ridge regression towards
a prior mean, in closed form: the normal equations of two unknowns.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class LinePrior:
    """What slope and intercept are thought to be, their standard deviations, and the least they may be."""

    slope: float
    slope_sd: float
    intercept: float
    intercept_sd: float
    least_slope: float
    least_intercept: float


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: `y` at `x`, with the standard deviation that its error is thought to have."""

    x: float
    y: float
    sd: float


@dataclass(frozen=True, slots=True)
class Line:
    """`y = slope * x + intercept`."""

    slope: float
    intercept: float

    def at(self, x: float) -> float:
        """The line's value."""
        return self.slope * x + self.intercept


def fit_line(points: Sequence[Point], prior: LinePrior) -> Line:
    """The most likely line of points and prior, with both coefficients at or above their least value.

    Without points this is the prior itself.
    """
    weight_a, weight_k = prior.slope_sd**-2, prior.intercept_sd**-2
    aa = weight_a + sum((p.x / p.sd) ** 2 for p in points)
    ak = sum(p.x / p.sd**2 for p in points)
    kk = weight_k + sum(p.sd**-2 for p in points)
    ya = weight_a * prior.slope + sum(p.x * p.y / p.sd**2 for p in points)
    yk = weight_k * prior.intercept + sum(p.y / p.sd**2 for p in points)

    determinant = aa * kk - ak * ak
    free = Line((ya * kk - yk * ak) / determinant, (aa * yk - ak * ya) / determinant)
    if free.slope >= prior.least_slope and free.intercept >= prior.least_intercept:
        return free

    # The loss is convex, so its least value within the limits lies on one of the two limits.
    on_slope = Line(prior.least_slope, max(prior.least_intercept, (yk - ak * prior.least_slope) / kk))
    on_intercept = Line(max(prior.least_slope, (ya - ak * prior.least_intercept) / aa), prior.least_intercept)

    def loss(line: Line) -> float:
        quadratic = aa * line.slope**2 + 2 * ak * line.slope * line.intercept
        return quadratic + kk * line.intercept**2 - 2 * (ya * line.slope + yk * line.intercept)

    return min(on_slope, on_intercept, key=loss)


_HUBER = 1.345
"""Standard deviations beyond which a point is drawn towards instead of believed: 95 % as good as least squares where
errors are normal (Huber, Robust Estimation of a Location Parameter, 1964)."""
_REWEIGHTINGS = 12


def fit_line_robustly(points: Sequence[Point], prior: LinePrior) -> Line:
    """As `fit_line`, but a point far off what the others say pulls no more than one that is a little off.

    So one stalled measurement changes little, and two that agree outweigh older ones. (Huber's loss by iteratively
    reweighted least squares, begun at the prior's and the points' common line.)
    """
    line = fit_line(points, prior)
    for _ in range(_REWEIGHTINGS if len(points) > 1 else 0):
        line = fit_line([Point(p.x, p.y, p.sd * _stretch(p, line)) for p in points], prior)
    return line


def _stretch(point: Point, line: Line) -> float:
    """By how much a point's standard deviation grows for Huber's loss."""
    off = abs(point.y - line.at(point.x)) / point.sd
    return math.sqrt(max(1.0, off / _HUBER))


@dataclass(frozen=True, slots=True)
class Expected:
    """What a device is thought to be before it is measured, but for its scale.

    The standard deviations of slope and intercept are relative to themselves.
    """

    line: Line
    slope_sd: float
    intercept_sd: float
    of_this_device: bool = False
    """Its scale is known too: a few measurements that are off may then tell of one coefficient alone."""


_HALVING = 2**0.5
_LEAST_PART = 0.1
_LEAST_RATIO = 1e-9
_CHANCE = 0.05
_NEWEST = 3


def follow_line(measured: Sequence[Point], expected: Expected) -> Line:
    """The line of a device that may change, from its measurements, newest first; `expected` where there are none.

    The weight of a measurement halves with each newer one, and one far off the others has little say. These tell how
    the two coefficients are to each other. How fast the device is now is told by the median of the newest three: one
    stall among them has no say, two that agree have it.

    Args:
        measured: Their `sd` is relative to what is expected of them, so that slow and fast ones count alike.
        expected: Its line must be above 0 at every measurement.
    """
    if not measured:
        return expected.line
    scale = _median_ratio(measured, expected.line)
    guess = expected.line if expected.of_this_device and len(measured) < _NEWEST else _scaled(expected.line, scale)
    prior = LinePrior(
        slope=guess.slope,
        slope_sd=expected.slope_sd * guess.slope,
        intercept=guess.intercept,
        intercept_sd=expected.intercept_sd * guess.intercept,
        least_slope=_LEAST_PART * guess.slope,
        least_intercept=_LEAST_PART * guess.intercept,
    )
    points = [Point(p.x, p.y, p.sd * guess.at(p.x) * _HALVING**age) for age, p in enumerate(measured)]
    line = fit_line_robustly(points, prior)
    off = math.log(_median_ratio(measured[:_NEWEST], line))
    # less what chance would explain
    return _scaled(line, math.exp(math.copysign(max(0.0, abs(off) - _CHANCE), off)))


def _median_ratio(measured: Sequence[Point], line: Line) -> float:
    return max(_LEAST_RATIO, median(p.y / line.at(p.x) for p in measured))


def _scaled(line: Line, factor: float) -> Line:
    return Line(line.slope * factor, line.intercept * factor)


def weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """The lower weighted median: the least value up to which the weights reach half of their sum.

    Raises:
        ValueError: if there are no values.
    """
    pairs = sorted(zip(values, weights, strict=True))
    if not pairs:
        raise ValueError("the median of no values was asked for")
    half = sum(weights) / 2
    reached = 0.0
    for value, weight in pairs:
        reached += weight
        if reached >= half:
            return value
    return pairs[-1][0]
