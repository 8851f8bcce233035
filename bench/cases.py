"""The cases: how their arguments are drawn, the sides that meet on them, and the goals.

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
import optax
from jax import lax

import mcgrad
from bench.measure import Contender
from bench.records import FLOORS, Goal

Sizes = dict[str, int]
COUNTED = 512  # On how many examples the violated margins are counted.


class Problem(NamedTuple):
    """How the arguments are drawn, who meets on them, and what is to be known of them."""

    draw: Callable[..., tuple[Any, ...]]  # (dtype, **sizes) -> the arguments; can be traced
    sides: Callable[..., list[Contender]]  # (*arguments) -> the contenders, mcgrad first
    facts: Callable[..., dict[str, float]] = lambda *arguments: {}


class Program(NamedTuple):
    """What mcgrad's compiled program may do and hold, on a CPU and in float32.

    `products` is the work of its matrix products and triangular solves, in multiply-adds, as a
    multiple of the product of these sizes.
    """

    products: float
    of: tuple[str, ...]
    temporaries: int  # bytes


class Case(NamedTuple):
    name: str
    problem: Problem
    sizes: Sizes
    toy: Sizes
    program: Program
    goals: tuple[Goal, ...] = ()
    accelerator: bool = False  # Too large for a CPU; in bf16.

    def contenders_of_shapes(self) -> list[Contender]:
        """The contenders at full size, on arguments that are shapes and dtypes alone."""
        return self.problem.sides(*jax.eval_shape(self.drawn(jnp.float32, self.sizes)))

    def drawn(self, dtype: Any, sizes: Sizes) -> Callable[[], tuple[Any, ...]]:
        return functools.partial(self.problem.draw, dtype, **sizes)


def at_most(bound: float, over: str | None, **options: Any) -> Goal:
    return Goal(bound, over, **options)


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
    return _crammer_singer_of_scores(_wide(inputs @ weights.T), labels)


def _hinge_of_scores(scores, labels):
    """The careful equation: one mask, on which the true class adds nothing."""
    true = jnp.take_along_axis(scores, labels[:, None], 1)
    violated = scores - true + 1
    others = labels[:, None] != jnp.arange(scores.shape[1])[None]
    return jnp.mean(jnp.sum(jnp.where(others & (violated > 0), violated, 0), 1))


def _hinge_of_scores_torch(scores, labels):
    from torch.nn.functional import multi_margin_loss

    return scores.shape[1] * multi_margin_loss(scores.float(), labels.long())


def _crammer_singer_of_scores(scores, labels):
    return jnp.mean(optax.losses.multiclass_hinge_loss(scores, labels))


def _mcgrad_of_each(weights, inputs, labels):
    each = jax.vmap(mcgrad.linear_weston_watkins_loss, (None, 0, 0))
    return jnp.mean(each(weights, inputs, labels))


def _products(wrt: tuple[int, ...], weights, inputs):
    scores = inputs @ weights.T
    gradients = scores.T @ inputs, scores @ weights
    return [gradients[i] for i in wrt] or scores


def _best_products(wrt: tuple[int, ...], weights, inputs):
    """The same products with Gᵀ X as (XᵀG)ᵀ, in the way of which XLA's CPU library is fast.

    The barriers keep the compiler from turning it back into the product as it was.
    """
    scores = inputs @ weights.T
    turned = lax.optimization_barrier(inputs.T) @ scores
    gradients = lax.optimization_barrier(turned).T, scores @ weights
    return [gradients[i] for i in wrt]


def _floors(wrt: tuple[int, ...], weights, inputs) -> list[Contender]:
    """The bare products as a user writes them, and, where it may help, in their best form."""
    ways = {"floor": _products} | ({"best products": _best_products} if 0 in wrt else {})
    return [
        Contender(name, functools.partial(way, wrt), (weights, inputs), None)
        for name, way in ways.items()
    ]


def draw_classifier(
    dtype, *, batch: int, features: int, classes: int, violated: float | None = None
):
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
        inputs /= jnp.quantile(_gaps(weights, inputs, labels), violated)
    return weights.astype(dtype), inputs.astype(dtype), labels


@jax.jit
def _gaps(weights, inputs, labels):
    """s_t - s_j of the first examples; the margin 1 is violated where it is less than 1."""
    labels = labels[:COUNTED]
    scores = _wide(inputs[:COUNTED]) @ _wide(weights).T
    gaps = jnp.take_along_axis(scores, labels[:, None], 1) - scores
    return jnp.where(labels[:, None] == jnp.arange(scores.shape[1])[None], jnp.inf, gaps)


def violated_share(weights, inputs, labels) -> dict[str, float]:
    return {"violated": float(jnp.mean(_gaps(weights, inputs, labels) < 1))}


CRAMMER_SINGER = "Crammer-Singer: a different loss"


def _hinge_sides(weights, inputs, labels, *, wrt=(0, 1), each=False) -> list[Contender]:
    """Of a batch, or, with `each`, of single examples under vmap."""
    arguments = weights, inputs, labels
    library = _mcgrad_of_each if each else mcgrad.linear_weston_watkins_loss
    autodiff = [
        Contender("autodiff (scores)", _hinge, arguments, wrt),
        Contender("autodiff (rows)", _hinge_by_rows, arguments, wrt),
    ]
    return [
        Contender("mcgrad", library, arguments, wrt),
        *([Contender("autodiff", _hinge_of_each, arguments, wrt)] if each else autodiff),
        *_torch_sides(_hinge_torch, arguments, wrt),
        Contender("optax", _crammer_singer, arguments, wrt, note=CRAMMER_SINGER),
        *_floors(wrt, weights, inputs),
    ]


def _both_modes(*arguments) -> list[Contender]:
    """Reverse mode by the rule that has forward mode too, beside the usual one."""
    usual, *others = _hinge_sides(*arguments)
    function = mcgrad.forward_mode(mcgrad.linear_weston_watkins_loss)
    return [usual, usual._replace(name="forward_mode", function=function), *others]


def _eager_sides(*arguments, wrt=(0,)) -> list[Contender]:
    """Outside `jax.jit`: the loss as it is, and the equation, jitted."""
    return [
        Contender("mcgrad", mcgrad.linear_weston_watkins_loss, arguments, wrt, call="eager"),
        Contender("autodiff", jax.jit(_hinge), arguments, wrt, call="eager"),
        _torch_sides(_hinge_torch, arguments, wrt)[0],
        Contender("optax", _crammer_singer, arguments, wrt, note=CRAMMER_SINGER, call="eager"),
    ]


def _first_sides(*arguments) -> list[Contender]:
    """The first call of a loss and of its equation: they are traced and compiled."""
    return [
        side._replace(call="first")
        for side in _hinge_sides(*arguments)
        if side.name.startswith(("mcgrad", "autodiff"))
    ]


def _hinge_problem(violated: float | None = None, **options: Any) -> Problem:
    draw = functools.partial(draw_classifier, violated=violated)
    return Problem(draw, functools.partial(_hinge_sides, **options), violated_share)


HINGE = _hinge_problem()
HINGE_EAGER = HINGE._replace(sides=_eager_sides)
HINGE_EAGER_VALUE = HINGE._replace(sides=functools.partial(_eager_sides, wrt=()))
HINGE_FIRST = HINGE._replace(sides=_first_sides)


def _draw_scores(dtype, *, batch: int, classes: int):
    keys = _keys(2)
    scores = jax.random.normal(keys[0], (batch, classes)).astype(dtype)
    return scores, jax.random.randint(keys[1], (batch,), 0, classes)


def _scores_sides(scores, labels) -> list[Contender]:
    arguments, wrt = (scores, labels), (0,)
    return [
        Contender("mcgrad", mcgrad.weston_watkins_loss, arguments, wrt),
        Contender("autodiff", _hinge_of_scores, arguments, wrt),
        *_torch_sides(_hinge_of_scores_torch, arguments, wrt),
        Contender("optax", _crammer_singer_of_scores, arguments, wrt, note=CRAMMER_SINGER),
        Contender("floor", jnp.negative, (scores,), None),
    ]


HINGE_OF_SCORES = Problem(_draw_scores, _scores_sides)


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


def _draw_matrix(dtype, *, rows: int, columns: int, mu: float | None = None):
    x = jax.random.normal(_keys(1)[0], (rows, columns)).astype(dtype)
    return (x,) if mu is None else (x, jnp.float32(mu))


def _mcgrad_squared_relu(x, mu=None):
    return mcgrad.squared_relu_norm(x, mu=mu)


def _squared_relu_sides(x, *mu) -> list[Contender]:
    arguments = x, *mu
    autodiff = _smooth_squared_relu if mu else _squared_relu
    peer = _smooth_squared_relu_torch if mu else _squared_relu_torch
    return [
        Contender("mcgrad", _mcgrad_squared_relu, arguments, (0,)),
        Contender("autodiff", autodiff, arguments, (0,)),
        *_torch_sides(peer, arguments, (0,)),
        # A copy by an elementwise operation: XLA's own copy on a CPU takes one thread.
        Contender("floor", jnp.negative, (x,), None),
    ]


SQUARED_RELU = Problem(_draw_matrix, _squared_relu_sides)
SMOOTH_SQUARED_RELU = SQUARED_RELU._replace(draw=functools.partial(_draw_matrix, mu=10.0))


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


def _draw_network(dtype, *, batch: int, features: int, hidden: int):
    keys = _keys(5)
    arguments = (
        jax.random.normal(keys[0], (hidden, features)) / math.sqrt(features),
        jax.random.normal(keys[1], (hidden,)),
        jax.random.normal(keys[2], (hidden,)) / math.sqrt(hidden),
        jax.random.normal(keys[3], (batch, features)),
        jnp.sign(jax.random.normal(keys[4], (batch,))),
    )
    return tuple(x.astype(dtype) for x in arguments)


def _network_sides(hidden_weights, hidden_bias, output_weights, inputs, labels) -> list[Contender]:
    arguments = hidden_weights, hidden_bias, output_weights, inputs, labels
    wrt = 0, 1, 2
    return [
        Contender("mcgrad", mcgrad.logistic_network_loss, arguments, wrt),
        Contender("autodiff", _network, arguments, wrt),
        *_torch_sides(_network_torch, arguments, wrt),
        Contender("optax", _network_optax, arguments, wrt),
        *_floors((0,), hidden_weights, inputs),
    ]


NETWORK = Problem(_draw_network, _network_sides)


# Least squares


def _squares(weights, inputs, targets):
    return jnp.mean(jnp.sum(jnp.square(_wide(inputs @ weights.T) - targets), 1))


def _squares_torch(weights, inputs, targets):
    return ((inputs @ weights.T).float() - targets).square().sum(1).mean()


def _squares_optax(weights, inputs, targets):
    predictions = _wide(inputs @ weights.T)
    return jnp.mean(jnp.sum(optax.losses.squared_error(predictions, _wide(targets)), 1))


def _draw_regression(dtype, *, batch: int, features: int, outputs: int):
    keys = _keys(3)
    weights = jax.random.normal(keys[0], (outputs, features)) / math.sqrt(features)
    inputs = jax.random.normal(keys[1], (batch, features))
    targets = jax.random.normal(keys[2], (batch, outputs))
    return tuple(x.astype(dtype) for x in (weights, inputs, targets))


def _draw_moments(dtype, **sizes: int):
    weights, inputs, targets = _draw_regression(dtype, **sizes)
    return weights, inputs, targets, mcgrad.least_squares_moments(inputs, targets)


def _squares_sides(weights, inputs, targets) -> list[Contender]:
    arguments = weights, inputs, targets
    return [
        Contender("mcgrad", mcgrad.linear_least_squares_loss, arguments, (0,)),
        Contender("autodiff", _squares, arguments, (0,)),
        *_torch_sides(_squares_torch, arguments, (0,)),
        Contender("optax", _squares_optax, arguments, (0,)),
        *_floors((0,), weights, inputs),
    ]


def _moments_sides(weights, inputs, targets, moments) -> list[Contender]:
    """On a fixed data set: one product of the weights with the moments."""
    whole = _squares_sides(weights, inputs, targets)
    return [
        Contender("mcgrad", mcgrad.moment_least_squares_loss, (weights, moments), (0,)),
        *(side for side in whole if side.name not in ("mcgrad", *FLOORS)),
        Contender("floor", _moment_product, (weights, moments.inputs), None),
    ]


def _moment_product(weights, second):
    return weights @ second.astype(weights.dtype)


SQUARES = Problem(_draw_regression, _squares_sides)
MOMENTS = Problem(_draw_moments, _moments_sides)


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


def _draw_tasks(dtype, *, features: int, tasks: int):
    keys = _keys(2)
    weights = jax.random.normal(keys[0], (features, tasks))
    root = jax.random.normal(keys[1], (tasks, tasks))
    covariance = root @ root.T / tasks + jnp.eye(tasks)
    return weights.astype(dtype), covariance.astype(dtype)


def _covariance_sides(weights, covariance, *, wrt: tuple[int, ...] = (0, 1)) -> list[Contender]:
    arguments = weights, covariance
    # "triangular" first: growth takes the first formulation.
    ways = {
        "triangular": _by_triangular,
        "cho_solve": _by_cho_solve,
        "solve": _by_solve,
        "inv": _by_inv,
    }
    return [
        Contender("mcgrad", mcgrad.task_covariance_penalty, arguments, wrt),
        *(Contender(f"autodiff ({n})", _penalty(way), arguments, wrt) for n, way in ways.items()),
        *_torch_sides(_penalty_torch, arguments, wrt),
        Contender("floor", functools.partial(_factor_and_products, wrt), arguments, None),
    ]


COVARIANCE = Problem(_draw_tasks, _covariance_sides)


# The table. Sizes and goals as they are set for two cores of a CPU.

DENSE = {"batch": 2048, "features": 256, "classes": 32768}
TOY = {"batch": 48, "features": 64, "classes": 96}
TOY_TRAINED = TOY | {"classes": 4096}  # Enough for some margins to be violated.
TOY_MATRIX = {"rows": 64, "columns": 48}
TOY_REGRESSION = {"batch": 48, "features": 8, "outputs": 8}
TOY_TASKS = {"features": 48, "tasks": 16}
SCORES = "batch", "features", "classes"
MIB = 1 << 20
TILE = 2 * MIB  # Of scores, on a CPU.
FEW = 1 << 11  # Where all of it is one small tile.

AGAINST_TORCH = faster(2.5, "PyTorch")
NEAR_THE_LIMIT = at_most(1.15, "best products")
EQUAL = faster(0.95, "autodiff")
NO_MORE_MEMORY = at_most(1.0, "autodiff", figure="temporaries")
FIRST_CALL = at_most(5.0, "autodiff")


def _batch(batch: int, features: int, classes: int) -> Sizes:
    return {"batch": batch, "features": features, "classes": classes}


def _share(share: float) -> Goal:
    """The share of autodiff's temporaries that are held."""
    return at_most(share, "autodiff", figure="temporaries")


CASES = (
    Case(
        "hinge-dense",
        HINGE,
        DENSE,
        TOY,
        Program(3, SCORES, 12 * MIB),
        (
            at_most(1.0, "floor"),
            NEAR_THE_LIMIT,
            faster(1.5, "autodiff"),
            _share(1 / 60),
            AGAINST_TORCH,
        ),
    ),
    Case(
        "hinge-64-features",
        HINGE,
        DENSE | {"features": 64},
        TOY,
        Program(3, SCORES, 6 * MIB),
        (at_most(0.9, "floor"), NEAR_THE_LIMIT, faster(2.3, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "hinge-violated-5e-5",
        _hinge_problem(violated=5e-5),
        DENSE,
        TOY_TRAINED,
        Program(3, SCORES, 12 * MIB),
        (at_most(0.5, "floor"), faster(3.1, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "hinge-violated-6e-4",
        _hinge_problem(violated=6e-4),
        DENSE,
        TOY_TRAINED,
        Program(3, SCORES, 12 * MIB),
        (at_most(0.6, "floor"), AGAINST_TORCH),
    ),
    Case(
        "hinge-weights-only",
        _hinge_problem(wrt=(0,)),
        DENSE,
        TOY,
        Program(2, SCORES, 8 * MIB),
        (at_most(1.05, "floor"), AGAINST_TORCH),
    ),
    Case(
        "hinge-value-only",
        _hinge_problem(wrt=()),
        DENSE,
        TOY,
        Program(1, SCORES, 3 * MIB),
        (at_most(1.05, "floor"), AGAINST_TORCH),
    ),
    Case(
        "hinge-128-classes",
        HINGE,
        _batch(65536, 64, 128),
        TOY,
        Program(3, SCORES, 10 * MIB),
        (faster(1.8, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "hinge-1000-classes",
        HINGE,
        _batch(16384, 256, 1000),
        TOY,
        Program(3, SCORES, 8 * MIB),
        (faster(1.6, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "hinge-10-classes",
        HINGE,
        _batch(65536, 784, 10),
        TOY,
        Program(3, SCORES, 7 * MIB),
        (faster(1.0, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "hinge-small",
        _hinge_problem(wrt=(0,)),
        _batch(32, 64, 10),
        TOY,
        Program(2, SCORES, FEW),
        (EQUAL, AGAINST_TORCH),
    ),
    Case(
        "hinge-vmap",
        _hinge_problem(wrt=(0,), each=True),
        _batch(512, 128, 1024),
        TOY,
        Program(2, SCORES, 7 * MIB),
        (EQUAL, AGAINST_TORCH),
    ),
    Case(
        "hinge-forward-mode",
        HINGE._replace(sides=_both_modes),
        _batch(1024, 128, 8192),
        TOY,
        Program(3, SCORES, 10 * MIB),
        (
            at_most(1.05, "mcgrad", side="forward_mode"),
            at_most(1.0, "mcgrad", side="forward_mode", figure="temporaries", allowance=TILE),
        ),
    ),
    Case(
        "hinge-scores-32768",
        HINGE_OF_SCORES,
        {"batch": 1024, "classes": 32768},
        {"batch": 48, "classes": 96},
        Program(0, ("batch", "classes"), 260 * MIB),
        (faster(1.0, "autodiff"), NO_MORE_MEMORY, AGAINST_TORCH),
    ),
    Case(
        "hinge-scores-1000",
        HINGE_OF_SCORES,
        {"batch": 2048, "classes": 1000},
        {"batch": 48, "classes": 96},
        Program(0, ("batch", "classes"), 16 * MIB),
        (faster(1.0, "autodiff"), NO_MORE_MEMORY, AGAINST_TORCH),
    ),
    Case(
        "hinge-eager",
        HINGE_EAGER,
        _batch(32, 64, 10),
        TOY,
        Program(2, SCORES, FEW),
        (at_most(1.6, "autodiff"),),
    ),
    Case(
        "hinge-eager-value",
        HINGE_EAGER_VALUE,
        _batch(32, 64, 10),
        TOY,
        Program(1, SCORES, FEW),
        (at_most(4.0, "autodiff"),),
    ),
    Case(
        "hinge-first-call-1000",
        HINGE_FIRST,
        _batch(2048, 64, 1000),
        TOY,
        Program(3, SCORES, 7 * MIB),
        (FIRST_CALL,),
    ),
    Case(
        "hinge-first-call-32768",
        HINGE_FIRST,
        DENSE,
        TOY,
        Program(3, SCORES, 12 * MIB),
        (FIRST_CALL,),
    ),
    Case(
        "hinge-first-call-4093",  # Neither 1021 nor 4093 is a multiple of a block.
        HINGE_FIRST,
        _batch(1021, 64, 4093),
        TOY,
        Program(3, SCORES, 8 * MIB),
        (FIRST_CALL,),
    ),
    Case(
        "squared-relu",
        SQUARED_RELU,
        {"rows": 4096, "columns": 8192},
        TOY_MATRIX,
        Program(0, ("rows", "columns"), MIB),
        (at_most(1.3, "floor"), faster(1.9, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "squared-relu-smooth",
        SMOOTH_SQUARED_RELU,
        {"rows": 4096, "columns": 8192},
        TOY_MATRIX,
        Program(0, ("rows", "columns"), 5 * MIB),
        (faster(1.3, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "logistic-network",
        NETWORK,
        {"batch": 65536, "features": 64, "hidden": 1024},
        {"batch": 48, "features": 8, "hidden": 16},
        Program(2, ("batch", "features", "hidden"), 10 * MIB),
        (faster(2.3, "autodiff"), _share(1 / 40), AGAINST_TORCH),
    ),
    Case(
        "least-squares",
        SQUARES,
        {"batch": 65536, "features": 512, "outputs": 512},
        TOY_REGRESSION,
        Program(2, ("batch", "features", "outputs"), 8 * MIB),
        (faster(1.3, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "least-squares-moments",
        MOMENTS,
        {"batch": 65536, "features": 512, "outputs": 512},
        TOY_REGRESSION,
        Program(1, ("features", "features", "outputs"), 3 * MIB),
        (faster(100, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "covariance-weights",
        COVARIANCE._replace(sides=functools.partial(_covariance_sides, wrt=(0,))),
        {"features": 2000, "tasks": 1000},
        TOY_TASKS,
        Program(1, ("features", "tasks", "tasks"), 22 * MIB),
        (EQUAL, AGAINST_TORCH),
    ),
    Case(
        "covariance",
        COVARIANCE,
        {"features": 2000, "tasks": 1000},
        TOY_TASKS,
        Program(2, ("features", "tasks", "tasks"), 26 * MIB),
        (faster(1.3, "autodiff"), AGAINST_TORCH),
    ),
    Case(
        "hinge-vocabulary",
        HINGE,
        _batch(32768, 2560, 128256),
        TOY,
        Program(3, SCORES, 2700 * MIB),
        (at_most(0.1, None), at_most(2 << 30, None, figure="temporaries")),
        accelerator=True,
    ),
)


class Sweep(NamedTuple):
    """One loss at sizes that grow along one axis."""

    loss: str
    problem: Problem
    sizes: Sizes
    axis: str
    values: tuple[int, ...]


BATCHES, WIDTHS = (256, 1024, 4096, 16384), (64, 256, 1024, 4096)

SWEEPS = (
    Sweep("Weston-Watkins", HINGE, _batch(0, 128, 4096), "batch", (128, 512, 2048, 8192)),
    Sweep("Weston-Watkins", HINGE, _batch(1024, 128, 0), "classes", (256, 1024, 4096, 16384)),
    Sweep("squared ReLU", SQUARED_RELU, {"columns": 1024}, "rows", (64, 512, 4096, 16384)),
    Sweep("squared ReLU", SQUARED_RELU, {"rows": 1024}, "columns", (64, 512, 4096, 16384)),
    Sweep("logistic network", NETWORK, {"features": 64, "hidden": 512}, "batch", BATCHES),
    Sweep("logistic network", NETWORK, {"features": 64, "batch": 4096}, "hidden", WIDTHS),
    Sweep("least squares", SQUARES, {"features": 256, "outputs": 256}, "batch", BATCHES),
    Sweep("least squares", SQUARES, {"features": 256, "batch": 4096}, "outputs", WIDTHS),
    Sweep("task covariance", COVARIANCE, {"tasks": 256}, "features", (128, 512, 2048, 8192)),
    Sweep("task covariance", COVARIANCE, {"features": 1024}, "tasks", (64, 128, 256, 512)),
)
