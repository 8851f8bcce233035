"""A derivative along a direction: what the gradient says against what differences say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mcgrad.checking._differences import Slope
from mcgrad.checking._run import EPS, Run

__all__ = ["Judgement", "judge", "judge_entry", "judge_leaf", "numbers", "pushed", "record"]

SAFETY = 4.0  # how many times its own estimate the error of a difference may be
OTHER_LADDERS = (0.618, 1.618, 0.382)  # by how much their steps are smaller


@dataclass(frozen=True)
class Judgement:
    """A derivative along one direction: what the gradient says and what differences say."""

    slope: Slope
    predicted: float
    allowed: float
    verdict: str  # "right", "wrong", "blunt" (only a gross error would show), "kink", "unresolved"

    @property
    def is_judged(self) -> bool:
        return self.verdict in ("right", "wrong", "blunt")

    @property
    def nearest(self) -> float:
        """The derivative that differences allow and that lies nearest to the predicted one."""
        if not np.isfinite(self.predicted):
            return self.slope.value
        return float(np.clip(self.predicted, self.slope.low, self.slope.high))


def judge(
    run: Run,
    direction: Sequence[np.ndarray],
    predicted: float,
    scale: float,
    weights: np.ndarray,
    *,
    point: Any = None,
    of_gradient: Any = None,
    entry: bool = False,
) -> Judgement:
    """Compare a predicted derivative with differences.

    What looks wrong is measured again, and what rounding blurs, where there is no float64.
    """
    scale = scale if np.isfinite(scale) else 0.0
    eps = max(run.eps.values())
    least = max(1e-6, 512 * eps)  # of the value: a change that counts as none

    def measured(shrink: float) -> Slope:
        return run.slope(direction, weights, point, shrink=shrink, gradients_of=of_gradient)

    def compared(slope: Slope) -> Judgement:
        size = max(abs(slope.low), abs(slope.high))
        size = max(size, abs(predicted) if np.isfinite(predicted) else 0.0)
        allowed = SAFETY * slope.error + run.rtol * size + run.share * scale
        verdict = "wrong"
        if not np.isfinite(slope.error):
            verdict = "unresolved"
        elif slope.kink and not entry:
            verdict = "kink"
        elif slope.distance(predicted) <= allowed:
            sharp = slope.error <= max(0.05 * size, least * max(run.value_size, slope.size))
            verdict = "right" if sharp else "blunt" if allowed < size else "unresolved"
        return Judgement(slope, predicted, allowed, verdict)

    first = measured(1.0)
    judgement = compared(first)
    blurred = eps > EPS and judgement.verdict == "unresolved" and np.isfinite(first.error)
    if judgement.verdict != "wrong" and not blurred:
        return judgement
    again = compared(_agreed([first, *map(measured, OTHER_LADDERS)]))
    return judgement if blurred and again.verdict == "wrong" else again


def _agreed(slopes: list[Slope]) -> Slope:
    """What several ladders agree on: their medians, and how far they scatter.

    One estimate of an error may be too small by chance, and four safe ones are too safe.
    """
    low, high, error = (
        np.array([getattr(slope, name) for slope in slopes]) for name in ("low", "high", "error")
    )
    scatter = np.ptp((low + high) / 2) / 2 + np.median(error) / SAFETY
    kink = all(slope.kink for slope in slopes)
    size = max(slope.size for slope in slopes)
    return Slope(float(np.median(low)), float(np.median(high)), float(scatter), kink, size)


def judge_entry(
    run: Run, i: int, flat: int, weights: Any = None, gradient: Any = None
) -> Judgement:
    weights = run.weights if weights is None else weights
    gradient = run.gradient if gradient is None else gradient
    length = run.scales[i].ravel()[flat]
    direction = [np.zeros_like(x) for x in run.point]
    direction[i].ravel()[flat] = length
    predicted = float(gradient[i].ravel()[flat]) * length
    return judge(run, direction, predicted, abs(predicted), weights, entry=True)


def judge_leaf(run: Run, i: int, part: np.ndarray, weights: Any = None, gradient: Any = None):
    """Along a direction inside one leaf."""
    weights = run.weights if weights is None else weights
    direction = [np.zeros_like(x) for x in run.point]
    direction[i] = part
    if not run.has_reverse:
        return judge(run, direction, *pushed(run, direction, weights), weights)
    gradient = run.gradient if gradient is None else gradient
    predicted = float(np.vdot(gradient[i], part))
    return judge(run, direction, predicted, float(np.abs(gradient[i] * part).sum()), weights)


def pushed(run: Run, direction: Any, weights: np.ndarray) -> tuple[float, float]:
    """<weights, Jv> and the size of its terms; NaN where forward mode fails along the direction."""
    program = run.programs.pushforward
    result = run.within(run.evaluate, "gradients", program, run.point, tuple(direction))
    moved = np.full(weights.shape, np.nan) if result is None else result[1].astype(np.float64)
    return float(np.vdot(moved, weights)), float(np.abs(moved * weights).sum())


def record(run: Run, check: str, *judgements: Judgement) -> None:
    """Count those that could be judged, with their errors as fractions of the tolerance."""
    judged = [j for j in judgements if j.is_judged]
    errors = [0.0 if j.verdict == "wrong" else j.slope.distance(j.predicted) for j in judged]
    run.knows_gradient |= bool(judged) and check == "differences"
    run.count(check, errors, [j.allowed for j in judged])


def numbers(j: Judgement) -> dict[str, Any]:
    error = j.slope.distance(j.predicted)
    numbers = {"got": j.predicted, "expected": j.slope.value}
    return numbers | {"error": error, "tolerance": j.allowed}
