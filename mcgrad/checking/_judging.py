"""A derivative along a direction: what the gradient says against what differences say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mcgrad.checking._differences import Slope
from mcgrad.checking._run import Run

__all__ = ["Judgement", "judge", "judge_entry", "judge_leaf", "numbers", "pushed", "ratio"]

SAFETY = 4.0  # how many times its own estimate the error of a difference may be
OTHER_LADDERS = (0.618, 1.618, 0.382)  # by how much their steps are smaller


@dataclass(frozen=True)
class Judgement:
    """A derivative along one direction: what the gradient says and what differences say."""

    slope: Slope
    predicted: float
    allowed: float
    verdict: str  # "right", "wrong", "kink" or "unresolved"


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
    """Compare a predicted derivative with differences; what looks wrong is measured again."""
    scale = scale if np.isfinite(scale) else 0.0

    def measured(shrink: float) -> Slope:
        return run.slope(direction, weights, point, shrink=shrink, gradients_of=of_gradient)

    def compared(slope: Slope) -> Judgement:
        size = max(abs(slope.value), abs(predicted) if np.isfinite(predicted) else 0.0)
        allowed = SAFETY * slope.error + run.rtol * size + 1e-3 * run.rtol * scale
        verdict = "wrong"
        if not np.isfinite(slope.error):
            verdict = "unresolved"
        elif slope.kink and not entry:
            verdict = "kink"
        elif slope.distance(predicted) <= allowed:
            blunt = slope.error > max(0.05 * size, 1e-6 * run.value_size)
            verdict = "unresolved" if blunt else "right"
        return Judgement(slope, predicted, allowed, verdict)

    first = measured(1.0)
    judgement = compared(first)
    if judgement.verdict != "wrong":
        return judgement
    return compared(_agreed([first, *map(measured, OTHER_LADDERS)]))


def _agreed(slopes: list[Slope]) -> Slope:
    """What several ladders agree on: their medians, and how far they scatter.

    One estimate of an error may be too small by chance, and four safe ones are too safe.
    """
    low, high, error = (
        np.array([getattr(slope, name) for slope in slopes]) for name in ("low", "high", "error")
    )
    scatter = np.ptp((low + high) / 2) / 2 + np.median(error) / SAFETY
    kink = all(slope.kink for slope in slopes)
    return Slope(float(np.median(low)), float(np.median(high)), float(scatter), kink)


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
    with jax.enable_x64(True):
        arguments = run.exact("gradients", run.point)
        moved = np.asarray(run.programs.pushforward(*arguments, tuple(direction))[1])
    return float(np.vdot(moved, weights)), float(np.abs(moved * weights).sum())


def ratio(j: Judgement) -> float:
    """The error as a fraction of the tolerance, where it was judged."""
    error = j.slope.distance(j.predicted)
    return error / j.allowed if error > 0 and j.verdict == "right" else 0.0


def numbers(j: Judgement) -> dict[str, Any]:
    error = j.slope.distance(j.predicted)
    numbers = {"got": j.predicted, "expected": j.slope.value}
    return numbers | {"error": error, "tolerance": j.allowed}
