"""The cases: arguments, the sides that meet on them, and the goals.

Every loss is written here a second time as a careful user of JAX or PyTorch would write it, for
autodiff to differentiate, and a third time as its floor: the products, the copy or the
factorization that every way of computing it must do.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mcgrad
from bench.measure import Contender

Sizes = dict[str, int]
COUNTED = 512  # On how many examples the violated margins are counted.


class Goal(NamedTuple):
    """A bound on a ratio of two sides, or, without `over`, on a figure of one."""

    bound: float
    over: str | None
    faster: bool = False  # over / side >= bound; else side / over <= bound
    figure: str = "time"  # or "temporaries"
    side: str = "mcgrad"


class Problem(NamedTuple):
    """The contenders of a case, and what is to be known of their arguments."""

    contenders: list[Contender]
    facts: dict[str, float]


class Case(NamedTuple):
    name: str
    build: Callable[..., Problem]  # (dtype, **sizes) -> the problem
    sizes: Sizes
    toy: Sizes
    goals: tuple[Goal, ...] = ()
    accelerator: bool = False  # Too large for a CPU; in bf16.


def at_most(bound: float, over: str | None, *, figure: str = "time", side: str = "mcgrad") -> Goal:
    return Goal(bound, over, False, figure, side)


def faster(bound: float, over: str) -> Goal:
    return Goal(bound, over, faster=True)


def _keys(number: int) -> Any:
    return jax.random.split(jax.random.key(0), number)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _torch_sides(function: Callable[..., Any], arguments: tuple[Any, ...], wrt: tuple[int, ...]):
    sides = ("PyTorch", "torch"), ("PyTorch compiled", "torch.compile")
    return [Contender(name, function, arguments, wrt, framework) for name, framework in sides]


# Weston-Watkins


def _hinge(weights, inputs, labels):
    scores = _wide(inputs @ weights.T)
    true = jnp.take_along_axis(scores, labels[:, None], 1)
    # The true class adds its margin, 1, and no gradient: cheaper to subtract than to mask.
    return jnp.mean(jnp.sum(jnp.maximum(scores - true + 1, 0), 1)) - 1


def _hinge_by_rows(weights, inputs, labels):
    """The true-class scores from the rows of the weights: no scatter into the scores."""
    scores = _wide(inputs @ weights.T)
    true = jnp.sum(_wide(inputs) * _wide(weights[labels]), 1, keepdims=True)
    return jnp.mean(jnp.sum(jnp.maximum(scores - true + 1, 0), 1)) - 1


def _hinge_of_each(weights, inputs, labels):
    def one(weights, x, label):
        scores = _wide(weights @ x)
        return jnp.sum(jnp.maximum(scores - scores[label] + 1, 0)) - 1

    return jnp.mean(jax.vmap(one, (None, 0, 0))(weights, inputs, labels))


def _hinge_torch(weights, inputs, labels):
    from torch.nn.functional import multi_margin_loss

    scores = (inputs @ weights.T).float()
    return weights.shape[0] * multi_margin_loss(scores, labels.long())


def _crammer_singer(weights, inputs, labels):
    scores = _wide(inputs @ weights.T)
    return jnp.mean(optax.losses.multiclass_hinge_loss(scores, labels))


def _mcgrad_of_each(weights, inputs, labels):
    each = jax.vmap(mcgrad.linear_weston_watkins_loss, (None, 0, 0))
    return jnp.mean(each(weights, inputs, labels))


def _products(wrt: tuple[int, ...], weights, inputs):
    scores = inputs @ weights.T
    gradients = scores.T @ inputs, scores @ weights
    return [gradients[i] for i in wrt] or scores


def draw_classifier(dtype, batch: int, features: int, classes: int, violated: float | None):
    """Weights, inputs, labels: an untrained model, or one that violates this share of margins.

    The inputs of the trained model lie around the row of their class, as far out as the share asks
    for; as after training, most violations belong to few examples.
    """
    keys = _keys(3)
    labels = jax.random.randint(keys[0], (batch,), 0, classes)
    weights = jax.random.normal(keys[1], (classes, features)) / math.sqrt(features)
    inputs = jax.random.normal(keys[2], (batch, features))
    if violated is not None:
        weights /= jnp.linalg.norm(weights, axis=1, keepdims=True)
        inputs = weights[labels] + inputs / math.sqrt(features)
        inputs /= np.quantile(_gaps(weights, inputs, labels), violated)
    return weights.astype(dtype), inputs.astype(dtype), labels


@jax.jit
def _gaps(weights, inputs, labels):
    """s_t - s_j of the first examples; the margin 1 is violated where it is less than 1."""
    labels = labels[:COUNTED]
    scores = _wide(inputs[:COUNTED]) @ _wide(weights).T
    gaps = jnp.take_along_axis(scores, labels[:, None], 1) - scores
    return jnp.where(labels[:, None] == jnp.arange(scores.shape[1])[None], jnp.inf, gaps)


def violated_share(weights, inputs, labels) -> float:
    return float(jnp.mean(_gaps(weights, inputs, labels) < 1))


def weston_watkins(
    dtype, *, batch: int, features: int, classes: int, violated=None, wrt=(0, 1), each=False
) -> Problem:
    """Of a batch, or, with `each`, of single examples under vmap."""
    arguments = draw_classifier(dtype, batch, features, classes, violated)
    library = _mcgrad_of_each if each else mcgrad.linear_weston_watkins_loss
    autodiff = [
        Contender("autodiff (scores)", _hinge, arguments, wrt),
        Contender("autodiff (rows)", _hinge_by_rows, arguments, wrt),
    ]
    contenders = [
        Contender("mcgrad", library, arguments, wrt),
        *([Contender("autodiff", _hinge_of_each, arguments, wrt)] if each else autodiff),
        *_torch_sides(_hinge_torch, arguments, wrt),
        Contender(
            "optax", _crammer_singer, arguments, wrt, note="Crammer-Singer: a different loss"
        ),
        Contender("floor", functools.partial(_products, wrt), arguments[:2], None),
    ]
    return Problem(contenders, {"violated": violated_share(*arguments)})


def forward_mode_face(dtype, *, batch: int, features: int, classes: int) -> Problem:
    """Reverse mode through the face that has forward mode too, beside the usual face."""
    contenders, facts = weston_watkins(dtype, batch=batch, features=features, classes=classes)
    usual, *others = contenders
    twin = mcgrad.forward_mode(mcgrad.linear_weston_watkins_loss)
    return Problem([usual, usual._replace(name="forward_mode", function=twin), *others], facts)


# Squared ReLU norm


def _squared_relu(x):
    return jnp.sum(jnp.square(jnp.maximum(_wide(x), 0)))


def _smooth_squared_relu(x, mu):
    x = _wide(x)
    return jnp.sum(jnp.square(x * (1 + jnp.tanh(mu * x)) / 2))


def _squared_relu_torch(x):
    return x.float().relu().square().sum()


def _smooth_squared_relu_torch(x, mu):
    x = x.float()
    return (x * (1 + (mu * x).tanh()) / 2).square().sum()


def squared_relu(dtype, *, rows: int, columns: int, smooth=False) -> Problem:
    x = jax.random.normal(_keys(1)[0], (rows, columns)).astype(dtype)
    arguments = (x, jnp.float32(10.0)) if smooth else (x,)

    def library(x, mu=None):
        return mcgrad.squared_relu_norm(x, mu=mu)

    autodiff = _smooth_squared_relu if smooth else _squared_relu
    peer = _smooth_squared_relu_torch if smooth else _squared_relu_torch
    contenders = [
        Contender("mcgrad", library, arguments, (0,)),
        Contender("autodiff", autodiff, arguments, (0,)),
        *_torch_sides(peer, arguments, (0,)),
        # A copy by an elementwise operation: XLA's own copy on a CPU takes one thread.
        Contender("floor", jnp.negative, (x,), None),
    ]
    return Problem(contenders, {})


# Logistic network


def _network(hidden_weights, hidden_bias, output_weights, inputs, labels):
    hidden = jax.nn.sigmoid(_wide(inputs @ hidden_weights.T) + hidden_bias)
    return jnp.mean(jax.nn.softplus(-_wide(labels) * (hidden @ output_weights)))


def _network_torch(hidden_weights, hidden_bias, output_weights, inputs, labels):
    from torch.nn.functional import softplus

    hidden = ((inputs @ hidden_weights.T).float() + hidden_bias).sigmoid()
    return softplus(-labels.float() * (hidden @ output_weights.float())).mean()


def _network_optax(hidden_weights, hidden_bias, output_weights, inputs, labels):
    hidden = jax.nn.sigmoid(_wide(inputs @ hidden_weights.T) + hidden_bias)
    logits = hidden @ output_weights
    return jnp.mean(optax.losses.sigmoid_binary_cross_entropy(logits, (_wide(labels) + 1) / 2))


def logistic_network(dtype, *, batch: int, features: int, hidden: int) -> Problem:
    keys = _keys(5)
    arguments = (
        jax.random.normal(keys[0], (hidden, features)) / math.sqrt(features),
        jax.random.normal(keys[1], (hidden,)),
        jax.random.normal(keys[2], (hidden,)) / math.sqrt(hidden),
        jax.random.normal(keys[3], (batch, features)),
        jnp.sign(jax.random.normal(keys[4], (batch,))),
    )
    arguments = tuple(x.astype(dtype) for x in arguments)
    wrt = 0, 1, 2
    weights, _, _, inputs, _ = arguments
    contenders = [
        Contender("mcgrad", mcgrad.logistic_network_loss, arguments, wrt),
        Contender("autodiff", _network, arguments, wrt),
        *_torch_sides(_network_torch, arguments, wrt),
        Contender("optax", _network_optax, arguments, wrt),
        Contender("floor", functools.partial(_products, (0,)), (weights, inputs), None),
    ]
    return Problem(contenders, {})


# Least squares


def _squares(weights, inputs, targets):
    return jnp.mean(jnp.sum(jnp.square(_wide(inputs @ weights.T) - targets), 1))


def _squares_torch(weights, inputs, targets):
    return ((inputs @ weights.T).float() - targets).square().sum(1).mean()


def _squares_optax(weights, inputs, targets):
    predictions = _wide(inputs @ weights.T)
    return jnp.mean(jnp.sum(optax.losses.squared_error(predictions, _wide(targets)), 1))


def least_squares(dtype, *, batch: int, features: int, outputs: int, from_moments=False) -> Problem:
    keys = _keys(3)
    weights = jax.random.normal(keys[0], (outputs, features)) / math.sqrt(features)
    inputs = jax.random.normal(keys[1], (batch, features))
    targets = jax.random.normal(keys[2], (batch, outputs))
    weights, inputs, targets = arguments = tuple(
        x.astype(dtype) for x in (weights, inputs, targets)
    )
    library = Contender("mcgrad", mcgrad.linear_least_squares_loss, arguments, (0,))
    floor = Contender("floor", functools.partial(_products, (0,)), arguments[:2], None)
    if from_moments:
        moments = mcgrad.least_squares_moments(inputs, targets)
        library = Contender("mcgrad", mcgrad.moment_least_squares_loss, (weights, moments), (0,))
        product = weights, moments.inputs.astype(dtype)
        floor = Contender("floor", jnp.matmul, product, None)
    contenders = [
        library,
        Contender("autodiff", _squares, arguments, (0,)),
        *_torch_sides(_squares_torch, arguments, (0,)),
        Contender("optax", _squares_optax, arguments, (0,)),
        floor,
    ]
    return Problem(contenders, {})


# Task covariance


def _penalty(divided: Callable[[jax.Array, jax.Array], jax.Array]):
    """The penalty for one way to write W:(W Omega⁻¹)."""

    def loss(weights, covariance):
        weights, covariance = _wide(weights), _wide(covariance)
        return (jnp.sum(jnp.square(weights)) + divided(weights, covariance)) / 2

    return loss


def _by_triangular(weights, covariance):
    factor = jnp.linalg.cholesky(covariance)
    half = jax.scipy.linalg.solve_triangular(factor, weights.T, lower=True)
    return jnp.sum(jnp.square(half))


def _by_cho_solve(weights, covariance):
    # Not cho_factor: it reads one triangle, and its gradient is that of one triangle.
    factor = jnp.linalg.cholesky(covariance)
    return jnp.sum(weights * jax.scipy.linalg.cho_solve((factor, True), weights.T).T)


def _by_solve(weights, covariance):
    return jnp.sum(weights * jnp.linalg.solve(covariance, weights.T).T)


def _by_inv(weights, covariance):
    return jnp.sum(weights * (weights @ jnp.linalg.inv(covariance)))


def _penalty_torch(weights, covariance):
    from torch import linalg

    weights, covariance = weights.float(), covariance.float()
    factor = linalg.cholesky(covariance)
    half = linalg.solve_triangular(factor, weights.T, upper=False)
    return (weights.square().sum() + half.square().sum()) / 2


def _factor_and_products(wrt: tuple[int, ...], weights, covariance):
    """One Cholesky factor; one product's worth of work for W Omega⁻¹, and for its own product."""
    factor = jnp.linalg.cholesky(_wide(covariance))
    solved = weights @ covariance
    return factor, solved, solved.T @ solved if 1 in wrt else None


def task_covariance(dtype, *, features: int, tasks: int, wrt: tuple[int, ...] = (0, 1)) -> Problem:
    keys = _keys(2)
    weights = jax.random.normal(keys[0], (features, tasks))
    root = jax.random.normal(keys[1], (tasks, tasks))
    covariance = root @ root.T / tasks + jnp.eye(tasks)
    arguments = weights.astype(dtype), covariance.astype(dtype)
    # "triangular" first: growth takes the first formulation.
    ways = {
        "triangular": _by_triangular,
        "cho_solve": _by_cho_solve,
        "solve": _by_solve,
        "inv": _by_inv,
    }
    contenders = [
        Contender("mcgrad", mcgrad.task_covariance_penalty, arguments, wrt),
        *(Contender(f"autodiff ({n})", _penalty(way), arguments, wrt) for n, way in ways.items()),
        *_torch_sides(_penalty_torch, arguments, wrt),
        Contender("floor", functools.partial(_factor_and_products, wrt), arguments, None),
    ]
    return Problem(contenders, {})


# The table. Sizes and goals as they are set for two cores of a CPU.

DENSE = {"batch": 2048, "features": 256, "classes": 32768}
TOY = {"batch": 48, "features": 64, "classes": 96}
TOY_TRAINED = TOY | {"classes": 4096}  # Enough for some margins to be violated.
AGAINST_TORCH = faster(2.5, "PyTorch")
NOT_SLOWER = at_most(1.05, "autodiff")


def _batch(batch: int, features: int, classes: int) -> Sizes:
    return {"batch": batch, "features": features, "classes": classes}


CASES = (
    Case(
        "hinge-dense",
        weston_watkins,
        DENSE,
        TOY,
        (
            at_most(1.0, "floor"),
            faster(1.8, "autodiff"),
            at_most(1 / 60, "autodiff", figure="temporaries"),
            AGAINST_TORCH,
        ),
    ),
    Case(
        "hinge-64-features",
        weston_watkins,
        DENSE | {"features": 64},
        TOY,
        (faster(2.7, "autodiff"), at_most(1.0, "floor"), AGAINST_TORCH),
    ),
    Case(
        "hinge-violated-5e-5",
        functools.partial(weston_watkins, violated=5e-5),
        DENSE,
        TOY_TRAINED,
        (at_most(0.5, "floor"), faster(3.8, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "hinge-violated-6e-4",
        functools.partial(weston_watkins, violated=6e-4),
        DENSE,
        TOY_TRAINED,
        (at_most(0.65, "floor"), AGAINST_TORCH),
    ),
    Case(
        "hinge-weights-only",
        functools.partial(weston_watkins, wrt=(0,)),
        DENSE,
        TOY,
        (at_most(1.05, "floor"), AGAINST_TORCH),
    ),
    Case(
        "hinge-value-only",
        functools.partial(weston_watkins, wrt=()),
        DENSE,
        TOY,
        (at_most(1.05, "floor"), AGAINST_TORCH),
    ),
    Case(
        "hinge-128-classes",
        weston_watkins,
        _batch(65536, 64, 128),
        TOY,
        (faster(1.7, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "hinge-1000-classes",
        weston_watkins,
        _batch(16384, 256, 1000),
        TOY,
        (faster(1.7, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "hinge-10-classes",
        weston_watkins,
        _batch(65536, 784, 10),
        TOY,
        (NOT_SLOWER, AGAINST_TORCH),
    ),
    Case(
        "hinge-small",
        functools.partial(weston_watkins, wrt=(0,)),
        _batch(32, 64, 10),
        TOY,
        (NOT_SLOWER, AGAINST_TORCH),
    ),
    Case(
        "hinge-vmap",
        functools.partial(weston_watkins, wrt=(0,), each=True),
        _batch(512, 128, 1024),
        TOY,
        (NOT_SLOWER, AGAINST_TORCH),
    ),
    Case(
        "hinge-forward-mode",
        forward_mode_face,
        _batch(1024, 128, 8192),
        TOY,
        (
            at_most(1.05, "mcgrad", side="forward_mode"),
            at_most(1.0, "mcgrad", side="forward_mode", figure="temporaries"),
        ),
    ),
    Case(
        "squared-relu",
        squared_relu,
        {"rows": 4096, "columns": 8192},
        {"rows": 64, "columns": 48},
        (at_most(1.15, "floor"), faster(1.7, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "squared-relu-smooth",
        functools.partial(squared_relu, smooth=True),
        {"rows": 4096, "columns": 8192},
        {"rows": 64, "columns": 48},
        (faster(1.2, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "logistic-network",
        logistic_network,
        {"batch": 65536, "features": 64, "hidden": 1024},
        {"batch": 48, "features": 8, "hidden": 16},
        (
            faster(1.8, "autodiff"),
            at_most(1 / 40, "autodiff", figure="temporaries"),
            AGAINST_TORCH,
        ),
    ),
    Case(
        "least-squares",
        least_squares,
        {"batch": 65536, "features": 512, "outputs": 512},
        {"batch": 48, "features": 8, "outputs": 8},
        (faster(1.3, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "least-squares-moments",
        functools.partial(least_squares, from_moments=True),
        {"batch": 65536, "features": 512, "outputs": 512},
        {"batch": 48, "features": 8, "outputs": 8},
        (faster(100, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "covariance-weights",
        functools.partial(task_covariance, wrt=(0,)),
        {"features": 2000, "tasks": 1000},
        {"features": 48, "tasks": 16},
        (faster(1.05, "autodiff"), faster(1.7, "autodiff (cho_solve)"), AGAINST_TORCH),
    ),
    Case(
        "covariance",
        task_covariance,
        {"features": 2000, "tasks": 1000},
        {"features": 48, "tasks": 16},
        (faster(1.3, "autodiff"), faster(2.4, "autodiff (cho_solve)"), AGAINST_TORCH),
    ),
    Case(
        "hinge-vocabulary",
        weston_watkins,
        _batch(32768, 2560, 128256),
        TOY,
        (at_most(0.1, None), at_most(2 << 30, None, figure="temporaries")),
        accelerator=True,
    ),
)


class Sweep(NamedTuple):
    """One loss at sizes that grow along one axis."""

    loss: str
    build: Callable[..., Problem]
    sizes: Sizes
    axis: str
    values: tuple[int, ...]


SWEEPS = (
    Sweep("Weston-Watkins", weston_watkins, _batch(0, 128, 4096), "batch", (128, 512, 2048, 8192)),
    Sweep(
        "Weston-Watkins", weston_watkins, _batch(1024, 128, 0), "classes", (256, 1024, 4096, 16384)
    ),
    Sweep("squared ReLU", squared_relu, {"columns": 1024}, "rows", (64, 512, 4096, 16384)),
    Sweep("squared ReLU", squared_relu, {"rows": 1024}, "columns", (64, 512, 4096, 16384)),
    Sweep(
        "logistic network",
        logistic_network,
        {"features": 64, "hidden": 512},
        "batch",
        (256, 1024, 4096, 16384),
    ),
    Sweep(
        "logistic network",
        logistic_network,
        {"features": 64, "batch": 4096},
        "hidden",
        (64, 256, 1024, 4096),
    ),
    Sweep(
        "least squares",
        least_squares,
        {"features": 256, "outputs": 256},
        "batch",
        (256, 1024, 4096, 16384),
    ),
    Sweep(
        "least squares",
        least_squares,
        {"features": 256, "batch": 4096},
        "outputs",
        (64, 256, 1024, 4096),
    ),
    Sweep("task covariance", task_covariance, {"tasks": 256}, "features", (128, 512, 2048, 8192)),
    Sweep("task covariance", task_covariance, {"features": 1024}, "tasks", (64, 128, 256, 512)),
)
