"""The curves of the pages of the losses: `python docs/figures.py FOLDER` draws them.

Every point is a value of the library, every slope its gradient; the build of the site calls `draw`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

import mcgrad

__all__ = ["draw"]

POINTS = 201  # On each side of the tie.
STYLES = "-", "--", "-.", ":"
SHARPNESS = 4.0, 1.0


class Curves(NamedTuple):
    """What one loss looks like along one of its arguments."""

    argument: str
    span: tuple[float, float]
    functions: dict[str, Callable[[Any], Any]]  # label -> function of a scalar
    value: str  # what the vertical axis of the first picture is
    slope: str  # and of the second
    tie: float | None = None


def weston_watkins() -> Curves:
    """One example of two classes: the margin it violates is b = s_j - s_t + 1."""

    def hinge(b, **options):
        return mcgrad.weston_watkins_loss(jnp.stack([0.0, b - 1]), 0, **options)

    functions = {"exact": hinge}
    functions |= {f"mu = {mu:g}": lambda b, mu=mu: hinge(b, mu=mu) for mu in SHARPNESS}
    functions["power = 2"] = lambda b: hinge(b, power=2)
    return Curves("violation of the margin, b", (-2, 2), functions, "loss", "slope", 0.0)


def squared_relu() -> Curves:
    norm = mcgrad.squared_relu_norm
    functions = {"exact": norm}
    functions |= {f"mu = {mu:g}": lambda x, mu=mu: norm(x, mu=mu) for mu in SHARPNESS}
    return Curves("x", (-2, 1.5), functions, "loss", "slope", 0.0)


def task_covariance() -> Curves:
    """Two tasks whose weights agree, are independent, or are opposed."""

    def penalty(correlation, second):
        covariance = jnp.eye(2) + correlation * (1 - jnp.eye(2))
        weights = jnp.array([[1.0, second[0]], [0.0, second[1]]])
        return mcgrad.task_covariance_penalty(weights, covariance, ridge=0.0)

    tasks = {"the same": (1.0, 0.0), "orthogonal": (0.0, 1.0), "opposite": (-1.0, 0.0)}
    functions = {
        f"{name} weights": lambda c, second=second: penalty(c, second)
        for name, second in tasks.items()
    }
    return Curves("correlation of the two tasks", (-0.8, 0.8), functions, "penalty", "slope")


def least_squares() -> Curves:
    def ours(r):
        return mcgrad.linear_least_squares_loss(jnp.ones((1, 1)), r[None], jnp.zeros(1))

    functions = {"mcgrad, ‖r‖²": ours, "½ ‖r‖²": lambda r: ours(r) / 2}
    return Curves("residual, r", (-2, 2), functions, "loss", "slope")


def logistic_network() -> Curves:
    """One hidden unit with output weight -1 and the label +1: a large z is a wrong answer."""

    def network(z, **options):
        one = jnp.ones(1)
        return mcgrad.logistic_network_loss(
            jnp.ones((1, 1)), jnp.zeros(1), -one, z[None], 1.0, **options
        )

    functions: dict[str, Callable[[Any], Any]] = {
        "relu": lambda z: network(z, activation="relu"),
        "relu, mu = 1": lambda z: network(z, activation="relu", mu=1.0),
        "identity": lambda z: network(z, activation="identity"),
        "sigmoid": network,
    }
    return Curves("pre-activation of the hidden unit, z", (-4, 4), functions, "loss", "slope", 0.0)


CURVES = {
    function.__name__: function
    for function in (
        weston_watkins,
        squared_relu,
        task_covariance,
        least_squares,
        logistic_network,
    )
}


def grid(curves: Curves) -> np.ndarray:
    """Points from left to right; a NaN before the tie interrupts a line that jumps there."""
    first, last = curves.span
    if curves.tie is None:
        return np.linspace(first, last, 2 * POINTS, dtype=np.float32)
    left = np.linspace(first, curves.tie, POINTS, endpoint=False)
    right = np.linspace(curves.tie, last, POINTS)
    return np.concatenate([left, [curves.tie - 1e-6, np.nan], right]).astype(np.float32)


def picture(curves: Curves, *, slopes: bool) -> Figure:
    """One curve per function, of its value or of its slope."""
    points = grid(curves)
    figure = Figure(figsize=(4.5, 3.3))
    axes = figure.subplots()
    for (label, function), style in zip(curves.functions.items(), STYLES, strict=False):
        line = jax.jit(jax.vmap(jax.grad(function) if slopes else function))
        (drawn,) = axes.plot(points, line(points), style, label=label)
        if slopes and curves.tie is not None:
            at_tie = line(np.array([curves.tie - 1e-6, curves.tie], np.float32))
            if abs(at_tie[1] - at_tie[0]) > 0.1:
                axes.plot(curves.tie, at_tie[1], "o", color=drawn.get_color())
    axes.set(xlabel=curves.argument, ylabel=curves.slope if slopes else curves.value)
    axes.legend()
    return figure


def draw(folder: Path) -> None:
    """NAME-value.svg and NAME-slope.svg for every loss."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {"svg.fonttype": "path", "svg.hashsalt": "mcgrad"}
    with matplotlib.style.context(["mcgrad.figures", options]):
        for name, curves in CURVES.items():
            for kind in ("value", "slope"):
                figure = picture(curves(), slopes=kind == "slope")
                figure.savefig(folder / f"{name}-{kind}.svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
