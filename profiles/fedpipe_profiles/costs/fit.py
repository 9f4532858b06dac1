"""Fit a line to very few points: the two coefficients per device and bit width of the memory and time models.

A device has measured one, two or ten steps. A prior says what the line is before any measurement and how far it may be
off, so that one point already gives both coefficients and ten points leave the prior no say. (Ridge regression towards
a prior mean, in closed form: the normal equations of two unknowns.)
"""

from collections.abc import Sequence
from dataclasses import dataclass


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
