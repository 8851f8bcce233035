"""`mcgrad demo`: the Weston-Watkins classifier on the handwritten digits of scikit-learn.

Compares every gradient with autodiff on these digits, trains with the exact and with the smooth
hinge, sets the accuracy beside that of another linear classifier, and draws what was learned.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.style
import numpy as np
import optax
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import LinearSVC

import mcgrad

__all__ = ["run"]

CLASSES = 10
LEARNING_RATE = 0.03
# The best of 1e-4 ... 1e-1 in five-fold cross-validation of the training part; among its C, 0.03 to
# 3, so is LinearSVC's default.
L2 = 3e-3
SHARPNESS = (1.0, 100.0)  # mu of the smooth hinge at the first and at the last step.
# A gradient of N examples is N terms in the order of the sum; this allows for either order.
TOLERANCE = 100 * float(jnp.finfo(jnp.float32).eps)


class Digits(NamedTuple):
    """Images as rows of 64 pixels in [0, 1], with their labels."""

    inputs: np.ndarray
    labels: np.ndarray


class Run(NamedTuple):
    """What a training left behind: the parameters, and the exact loss before every step."""

    hinge: str
    parameters: dict[str, jax.Array]
    losses: np.ndarray


def run(output: Path, *, steps: int, seed: int) -> int:
    """Run the demo. Returns 1 if a gradient is wrong, else 0; raises OSError before it starts if
    nothing can be written in `output`."""
    picture = _writable(output / "demo.png")
    console = Console()
    training, test = _digits(seed)
    errors = _gradient_errors(training, seed)
    console.print("\nClosed-form gradients against autodiff on these digits: relative error")
    console.print(_gradient_table(errors))

    console.print(f"\nTraining, {steps} steps of full-batch Adam")
    columns = TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        runs = [
            _train(training, "exact hinge", None, steps, progress),
            _train(training, "smooth hinge", _sharpness(steps), steps, progress),
        ]
    console.print("\nDigits classified correctly")
    console.print(_accuracy_table(runs, training, test, seed))

    with matplotlib.style.context("mcgrad.figures"):
        _draw(runs).savefig(picture)
    console.print(f"\nLoss curves and learned weights: {picture}")
    return int(not all(_right(e) for column in errors.values() for e in column.values()))


def _writable(path: Path) -> Path:
    """The path, once it is certain that a file can be written there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    path.open("ab").close()
    if new:
        path.unlink()
    return path


def _digits(seed: int) -> tuple[Digits, Digits]:
    """Three quarters to train on, one quarter to test on, every digit in proportion."""
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    inputs, labels = (pixels / 16).astype(np.float32), labels.astype(np.int32)
    rows = np.arange(len(labels))
    parts = train_test_split(rows, test_size=0.25, stratify=labels, random_state=seed)
    training, test = (Digits(inputs[part], labels[part]) for part in parts)
    return training, test


def _gradient_errors(digits: Digits, seed: int) -> dict[str, dict[str, float]]:
    """Exact or smooth -> argument -> relative error of the closed form against autodiff.

    At weights drawn at random: where training ends, the gradient is a small difference of large
    terms, and its relative error says little.
    """
    draw = np.random.default_rng(seed)
    exact = {
        "weights": draw.normal(0, 0.3, (CLASSES, digits.inputs.shape[1])),
        "inputs": digits.inputs,
        "bias": draw.normal(0, 0.3, CLASSES),
        "margin": 1.0,
        "l2": L2,
        "class_weight": draw.uniform(0.5, 2, CLASSES),
        "sample_weight": draw.uniform(0.5, 2, len(digits.labels)),
    }

    def gradients(loss, arguments):
        arguments = {name: jnp.asarray(x, jnp.float32) for name, x in arguments.items()}
        return jax.jit(jax.grad(lambda given: loss(labels=digits.labels, **given)))(arguments)

    def errors(arguments):
        closed = gradients(mcgrad.linear_weston_watkins_loss, arguments)
        autodiff = gradients(mcgrad.plain(mcgrad.linear_weston_watkins_loss), arguments)
        return {
            name: float(
                jnp.linalg.norm(closed[name] - autodiff[name]) / jnp.linalg.norm(autodiff[name])
            )
            for name in arguments
        }

    return {"exact": errors(exact), "smooth": errors(exact | {"mu": 10.0})}


def _right(error: float) -> bool:
    return error <= TOLERANCE  # Not so for NaN.


def _sharpness(steps: int) -> optax.Schedule:
    first, last = SHARPNESS
    return optax.exponential_decay(first, max(steps - 1, 1), last / first)


def _train(
    digits: Digits, hinge: str, schedule: optax.Schedule | None, steps: int, progress: Progress
) -> Run:
    """Full-batch Adam from zero; mu, where there is one, is an argument: it compiles once."""
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

    def loss(parameters, mu=None):
        return mcgrad.linear_weston_watkins_loss(
            parameters["weights"], *digits, bias=parameters["bias"], l2=L2, mu=mu
        )

    @jax.jit
    def step(parameters, state, mu):
        updates, state = optimizer.update(jax.grad(loss)(parameters, mu), state)
        return optax.apply_updates(parameters, updates), state, loss(parameters)

    features = digits.inputs.shape[1]
    parameters: Any = {"weights": jnp.zeros((CLASSES, features)), "bias": jnp.zeros(CLASSES)}
    state = optimizer.init(parameters)
    losses = []
    for number in progress.track(range(steps), description=hinge):
        mu = None if schedule is None else schedule(number)
        parameters, state, value = step(parameters, state, mu)
        losses.append(float(value))
    return Run(hinge, parameters, np.array(losses))


def _accuracy(run: Run, digits: Digits) -> float:
    scores = digits.inputs @ run.parameters["weights"].T + run.parameters["bias"]
    return float((scores.argmax(axis=-1) == digits.labels).mean())


def _gradient_table(errors: dict[str, dict[str, float]]) -> Table:
    def cell(error: float | None) -> str:
        if error is None:
            return ""
        return f"{error:.1e}" if _right(error) else f"[red]{error:.1e} wrong[/]"

    table = Table("with respect to")
    for column in errors:
        table.add_column(column, justify="right")
    for name in errors["smooth"]:
        table.add_row(name, *(cell(column.get(name)) for column in errors.values()))
    return table


def _accuracy_table(runs: list[Run], training: Digits, test: Digits, seed: int) -> Table:
    table = Table("classifier")
    table.add_column(f"of {len(training.labels)} trained on", justify="right")
    table.add_column(f"of {len(test.labels)} never seen", justify="right")
    for run in runs:
        accuracies = _accuracy(run, training), _accuracy(run, test)
        table.add_row(f"Weston-Watkins, {run.hinge}", *map("{:.1%}".format, accuracies))
    peer = LinearSVC(random_state=seed, max_iter=10_000).fit(*training)
    accuracies = peer.score(*training), peer.score(*test)
    table.add_row("LinearSVC of scikit-learn", *map("{:.1%}".format, accuracies))
    return table


def _draw(runs: list[Run]) -> Figure:
    """The exact loss along both runs, and the ten templates of the first."""
    figure = Figure()
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.4), wspace=0.05)[0]

    axes = left.subplots()
    labels = "exact hinge", "smooth hinge,\nmu from {:g} to {:g}".format(*SHARPNESS)
    for run, label, style in zip(runs, labels, ("-", "--"), strict=True):
        axes.plot(np.arange(len(run.losses)) + 1, run.losses, style, label=label)
    axes.set(title="Loss while training", xscale="log", yscale="log")
    axes.set(xlabel="step", ylabel="mean exact hinge + penalty")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.legend()

    right.suptitle("Learned weights: what speaks for a digit, and what against", x=0.01, ha="left")
    weights = np.asarray(runs[0].parameters["weights"]).reshape(CLASSES, 8, 8)
    limit = np.abs(weights).max()
    colours = ScalarMappable(Normalize(-limit, limit))
    panels = np.ravel(right.subplots(2, 5))
    for digit, panel in enumerate(panels):
        panel.imshow(colours.to_rgba(weights[digit]))
        panel.set_title(digit, loc="center", pad=3)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(True)
    bar = right.colorbar(
        colours, ax=panels, location="bottom", aspect=40, pad=0.03, label="weight of the pixel"
    )
    bar.outline.set_visible(False)
    return figure
