"""Directional derivatives by finite differences, each with an estimate of its own error.

The derivative of f at x along d (the directional, or Gateaux, derivative) is the limit of

    D(t) = (f(x + t d) - f(x - t d)) / 2t        central; its error is a series in t^2
    R(t) = (f(x + t d) - f(x)) / t               from the right, L(t) from the left: series in t

as t goes to 0. Richardson extrapolation of two neighbouring steps removes the first term of the
series. A ladder of steps is tried; the error of a rung is the largest of

- how far its extrapolation lies from the one of the coarser rung (truncation),
- how far the finer rungs scatter around it: scaled to its step where it can be rounding, however
  that arises, in full where it is too much for that (the coarse rungs then missed something),
- the rounding and the underflow of the value itself,

and the rung with the least error is taken. At a kink the two one-sided limits differ, and that
difference does not shrink with t: the derivative is then an interval.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["Ladder", "Slope", "slope"]


@dataclass(frozen=True)
class Ladder:
    """The steps, for values with a relative rounding error `eps`; below `least` they underflow."""

    eps: float
    least: float = 0.0
    shrink: float = 1.0
    rungs: int = 6

    @property
    def ratio(self) -> float:
        """From one step to the next: 16 in float64, less where fewer bits are to be divided."""
        return 16.0 if self.eps < 1e-12 else 4.0 if self.eps < 1e-5 else 2.0

    @property
    def steps(self) -> np.ndarray:
        first = 2.0**-4 if self.eps < 1e-5 else 0.5
        return self.shrink * first * self.ratio ** -np.arange(self.rungs, dtype=float)

    @property
    def offsets(self) -> np.ndarray:
        """Where f is evaluated: 0, then +t and -t for each step."""
        return np.concatenate([[0.0], np.stack([self.steps, -self.steps], 1).ravel()])


@dataclass(frozen=True)
class Slope:
    """A directional derivative: `low` = `high` unless there is a kink, each within `error`.

    `size` is that of the largest value on the way, or of one that has all its digits.
    """

    low: float
    high: float
    error: float
    kink: bool
    size: float

    def distance(self, slope: float) -> float:
        """How far a proposed derivative lies outside the interval."""
        if not np.isfinite(slope):
            return np.inf
        return max(self.low - slope, slope - self.high, 0.0)

    @property
    def value(self) -> float:
        return (self.low + self.high) / 2


def slope(values: np.ndarray, ladder: Ladder) -> Slope:
    """The derivative of the sum of the columns of `values` (offsets, outputs), taken one by one.

    One by one, because a kink of one output must not hide in the sum of the others.
    """
    t, r = ladder.steps[:, None], ladder.ratio
    middle, right, left = values[0], values[1::2], values[2::2]
    size = np.max(np.abs(values), 0, where=np.isfinite(values), initial=0.0)
    central = (right - left) / (2 * t)
    right_slope, left_slope = (right - middle) / t, (middle - left) / t
    rounding = 4 * (ladder.eps * size + ladder.least) / t
    extrapolated = (r * r * central[1:] - central[:-1]) / (r * r - 1)
    sides = [(r * side[1:] - side[:-1]) / (r - 1) for side in (right_slope, left_slope)]

    # A rung is an extrapolation (steps k-1 and k), judged with the one before it.
    low, high = np.minimum(*sides)[1:], np.maximum(*sides)[1:]
    side_error = sum(np.abs(side[1:] - side[:-1]) for side in sides)
    kinked = high - low > 4 * side_error + 32 * rounding[2:]
    rung_error = np.abs(extrapolated[1:] - extrapolated[:-1])
    rung_error = np.where(kinked, side_error, rung_error) + rounding[2:]
    for finer in range(3, ladder.rungs):
        scatter = np.abs(central[finer] - extrapolated[1 : finer - 1])
        believable = scatter * t[finer] <= np.sqrt(ladder.eps) * size + ladder.least
        scatter = np.where(believable, scatter * t[finer] / t[2:finer], scatter)
        rung_error[: finer - 2] = np.fmax(rung_error[: finer - 2], scatter)
    rung_error = np.where(np.isfinite(rung_error), rung_error, np.inf)
    width = np.where(kinked, high - low, 0.0)
    best = (np.argmin(rung_error + width, 0), np.arange(values.shape[1]))
    kink = kinked[best]
    low = np.where(kink, low[best], extrapolated[1:][best])
    high = np.where(kink, high[best], extrapolated[1:][best])
    error, size = float(rung_error[best].sum()), float(size.sum()) + ladder.least / ladder.eps
    return Slope(float(low.sum()), float(high.sum()), error, bool(kink.any()), size)
