"""A catalogue of wrong derivative rules, each with the argument and the check that must name it.

`python -m tests.checking.planted --table` writes docs/checker_catalogue.md: who catches what.
"""

import datetime
import pathlib
import platform
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np

from mcgrad.checking import check_gradients

__all__ = ["PLANTED", "RIGHT", "Planted"]


@dataclass(frozen=True)
class Planted:
    """A wrong rule: what `check_gradients` is called with, and what it must say."""

    kind: str
    name: str
    fun: Callable[..., Any]
    args: tuple[Any, ...]
    argument: str
    checks: tuple[str, ...]
    says: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


PLANTED: list[Planted] = []
RIGHT: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}


def ruled(plain: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """`plain` with the reverse rule backward(ct, *args)."""
    fun = jax.custom_vjp(plain)
    fun.defvjp(lambda *args: (plain(*args), args), lambda args, ct: backward(ct, *args))
    return fun


def pushed(plain: Callable[..., Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """`plain` with the forward rule forward(primals, tangents)."""
    fun = jax.custom_jvp(plain)
    fun.defjvp(lambda primals, tangents: (plain(*primals), forward(primals, tangents)))
    return fun


def plant(
    kind: str,
    name: str,
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    argument: str,
    *checks: str,
    says: str = "",
    **options: Any,
) -> None:
    checks = checks or ("differences",)
    PLANTED.append(Planted(kind, name, fun, args, argument, checks, says, options))


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# --- The equations, with their right rules


def cubic(x):
    return jnp.sum(x**3) / 3


def cubic_rule(ct, x):
    return (ct * x**2,)


def bilinear(a, matrix, b):
    return a @ matrix @ b


def bilinear_rule(ct, a, matrix, b):
    return ct * matrix @ b, ct * jnp.outer(a, b), ct * a @ matrix


def quadratic(matrix):
    return jnp.sum(jnp.sin(matrix @ matrix))


def quadratic_rule(ct, matrix):
    c = ct * jnp.cos(matrix @ matrix)
    return (c @ matrix.T + matrix.T @ c,)


def fit(weights, inputs, targets):
    return jnp.sum((inputs @ weights.T - targets) ** 2)


def fit_rule(ct, weights, inputs, targets):
    r = 2 * ct * (inputs @ weights.T - targets)
    return r.T @ inputs, r @ weights, -r


def sine(x):
    return jnp.sin(x)


def sine_rule(ct, x):
    return (ct * jnp.cos(x),)


def tree(params, x):
    hidden = jnp.tanh(params["layer"]["w"] @ x + params["layer"]["b"])
    return params["scale"] * jnp.sum(hidden**2)


def tree_rule(ct, params, x):
    w, b = params["layer"]["w"], params["layer"]["b"]
    hidden = jnp.tanh(w @ x + b)
    slope = 2 * ct * params["scale"] * hidden * (1 - hidden**2)
    gradient = {"layer": {"w": jnp.outer(slope, x), "b": slope}, "scale": ct * jnp.sum(hidden**2)}
    return gradient, w.T @ slope


def hinge(scores, labels, margin):
    own = jnp.take_along_axis(scores, labels[:, None], 1)
    slack = jnp.where(jnp.arange(scores.shape[1]) == labels[:, None], 0.0, scores - own + margin)
    return jnp.sum(jnp.where(slack >= 0, slack, 0) ** 2, 1)


def hinge_rule(ct, scores, labels, margin):
    own = jnp.take_along_axis(scores, labels[:, None], 1)
    true = jnp.arange(scores.shape[1]) == labels[:, None]
    slope = ct[:, None] * 2 * jnp.maximum(jnp.where(true, 0.0, scores - own + margin), 0)
    gradient = slope - jnp.where(true, slope.sum(1, keepdims=True), 0)
    return gradient, None, slope.sum()


def ridge(weights, strength):
    return jnp.sum(jnp.cos(weights)) + strength * jnp.sum(weights**2)


def ridge_rule(ct, weights, strength):
    return ct * (2 * strength * weights - jnp.sin(weights)), ct * jnp.sum(weights**2)


X = normal(7)
MATRIX = (normal(5, seed=1), normal(5, 4, seed=2), normal(4, seed=3))
SQUARE = normal(4, 4, seed=4) / 2
FIT = (normal(3, 4, seed=5), normal(6, 4, seed=6), normal(6, 3, seed=7))
TREE = (
    {"layer": {"w": normal(3, 4, seed=8), "b": normal(3, seed=9)}, "scale": jnp.float32(1.5)},
    normal(4, seed=10),
)
HINGE = (normal(6, 4, seed=11), jnp.arange(6) % 4, 0.7)
RIDGE = (normal(3, 5, seed=12), jnp.float32(0.3))
LONG = normal(10_000, seed=13) + 3

EQUATIONS = {
    "cubic": (cubic, cubic_rule, (X,)),
    "bilinear": (bilinear, bilinear_rule, MATRIX),
    "quadratic": (quadratic, quadratic_rule, (SQUARE,)),
    "fit": (fit, fit_rule, FIT),
    "sine": (sine, sine_rule, (X,)),
    "tree": (tree, tree_rule, TREE),
    "hinge": (hinge, hinge_rule, HINGE),
    "ridge": (ridge, ridge_rule, RIDGE),
}
for _name, (_plain, _rule, _args) in EQUATIONS.items():
    RIGHT[_name] = (ruled(_plain, _rule), _args)


def altered(equation: str, change: Callable[..., Any]) -> Callable[..., Any]:
    """An equation with change(gradients, ct, *args) applied to its right gradients."""
    plain, rule, _ = EQUATIONS[equation]
    return ruled(plain, lambda ct, *args: change(list(rule(ct, *args)), ct, *args))


def at(index: int, change: Callable[..., Any]) -> Callable[..., Any]:
    """Change one of the gradients: change(gradient, ct, *args)."""

    def apply(gradients, ct, *args):
        gradients[index] = change(gradients[index], ct, *args)
        return tuple(gradients)

    return apply


def plant_change(kind, name, equation, index, argument, change, *checks, says="", **options):
    fun, args = altered(equation, at(index, change)), EQUATIONS[equation][2]
    plant(kind, name, fun, args, argument, *checks, says=says, **options)


# --- Factors and signs

for _size in (1.0, 0.01, 0.001):
    for _equation, _index, _argument in (
        ("cubic", 0, "x"),
        ("bilinear", 1, "matrix"),
        ("fit", 1, "inputs"),
        ("sine", 0, "x"),
    ):
        plant_change(
            "factor",
            f"{_argument} of {_equation}, error of {_size:.1%}",
            _equation,
            _index,
            _argument,
            lambda g, ct, *a, s=_size: (1 + s) * g,
            says="constant factor",
        )
plant_change(
    "factor", "the 2 of a square forgotten", "fit", 0, "weights", lambda g, *a: g / 2, says="1/2"
)
plant_change(
    "factor",
    "divided by the batch",
    "fit",
    0,
    "weights",
    lambda g, *a: g / 6,
    says="1/6, the length of axis 0 of inputs",
)
plant_change(
    "factor",
    "right only in the mean: summed instead",
    "hinge",
    0,
    "scores",
    lambda g, *a: g * 6,
    says="6",
)
for _equation, _index, _argument in (
    ("cubic", 0, "x"),
    ("fit", 2, "targets"),
    ("hinge", 2, "margin"),
    ("ridge", 1, "strength"),
):
    plant_change(
        "sign",
        f"{_argument} of {_equation}",
        _equation,
        _index,
        _argument,
        lambda g, *a: -g,
        says="sign is flipped",
    )

# --- Rearranged

plant_change(
    "rearranged",
    "square matrix transposed",
    "quadratic",
    0,
    "matrix",
    lambda g, *a: g.T,
    says="transposed",
)
plant_change(
    "rearranged",
    "matrix transposed and reshaped",
    "bilinear",
    1,
    "matrix",
    lambda g, *a: g.T.reshape(g.shape),
    says="transposed and then reshaped",
)
plant_change(
    "rearranged",
    "vector reversed",
    "cubic",
    0,
    "x",
    lambda g, *a: g[::-1],
    says="reversed along axis 0",
)
plant_change(
    "rearranged", "off by one", "cubic", 0, "x", lambda g, *a: jnp.roll(g, 1), says="shifted by one"
)
plant_change(
    "rearranged",
    "examples in the wrong order",
    "fit",
    1,
    "inputs",
    lambda g, *a: g[jnp.array([2, 0, 1, 5, 3, 4])],
    says="wrong places",
)
plant(
    "rearranged",
    "gradients of two arguments swapped",
    ruled(
        lambda a, b: jnp.sum(jnp.sin(a) * b**2),
        lambda ct, a, b: (ct * 2 * jnp.sin(a) * b, ct * jnp.cos(a) * b**2),
    ),
    (normal(4), normal(4, seed=1)),
    "a",
    says="swapped",
)
plant_change(
    "rearranged",
    "the batch averaged into every row",
    "fit",
    1,
    "inputs",
    lambda g, *a: jnp.broadcast_to(g.mean(0), g.shape),
    says="summed or averaged",
)

# --- Dropped

for _equation, _index, _argument in (
    ("hinge", 2, "margin"),
    ("ridge", 1, "strength"),
    ("fit", 2, "targets"),
    ("tree", 1, "x"),
):
    plant_change(
        "dropped",
        f"{_argument} of {_equation}",
        _equation,
        _index,
        _argument,
        lambda g, *a: jnp.zeros_like(g),
        "coverage",
        says="dropped",
    )
plant(
    "dropped",
    "cotangent None for a float argument",
    ruled(ridge, lambda ct, w, s: (ridge_rule(ct, w, s)[0], None)),
    RIDGE,
    "strength",
    "coverage",
    says="dropped",
)
plant(
    "dropped",
    "stop_gradient left in",
    lambda x, t: jnp.sum(jnp.exp(x / jax.lax.stop_gradient(t))),
    (X, jnp.float32(2)),
    "t",
    "coverage",
    says="dropped",
)
plant_change(
    "dropped",
    "one leaf of a pytree",
    "tree",
    0,
    "params",
    lambda g, *a: g | {"scale": jnp.zeros_like(g["scale"])},
    "coverage",
    says="dropped",
)

# --- Terms

plant_change(
    "term",
    "penalty left out",
    "ridge",
    0,
    "weights",
    lambda g, ct, w, s: g - 2 * ct * s * w,
    says="scales like the argument itself",
)
plant_change(
    "term",
    "a constant too much",
    "cubic",
    0,
    "x",
    lambda g, ct, x: g + 0.25 * ct,
    says="scales like a constant",
)
plant_change(
    "term",
    "a constant of 0.1%",
    "cubic",
    0,
    "x",
    lambda g, ct, x: g + 1e-3 * ct,
    says="scales like a constant",
)
plant(
    "term",
    "product rule forgotten",
    ruled(quadratic, lambda ct, m: (ct * jnp.cos(m @ m) @ m.T,)),
    (SQUARE,),
    "matrix",
)
plant_change(
    "term",
    "true class keeps its own hinge",
    "hinge",
    0,
    "scores",
    lambda g, ct, s, labels, m: jnp.where(jnp.arange(4) == labels[:, None], 0, g),
)
plant(
    "term",
    "smooth step without the slope of its own step",
    ruled(
        lambda x: jnp.sum(x * (1 + jnp.tanh(3 * x)) / 2),
        lambda ct, x: (ct * (1 + jnp.tanh(3 * x)) / 2,),
    ),
    (X / 2,),
    "x",
)
plant(
    "term",
    "softmax without its normaliser",
    ruled(lambda x: jax.nn.logsumexp(x), lambda ct, x: (ct * jnp.exp(x),)),
    (X,),
    "x",
    says="constant factor",
)
plant(
    "term",
    "variance with the mean held fixed",
    ruled(lambda x: jnp.sum((x - x.mean()) ** 3), lambda ct, x: (3 * ct * (x - x.mean()) ** 2,)),
    (X,),
    "x",
    says="scales like a constant",
)
plant(
    "term",
    "inverse without its second factor",
    ruled(lambda m: jnp.trace(jnp.linalg.inv(m)), lambda ct, m: (-ct * jnp.linalg.inv(m).T,)),
    (SQUARE + 3 * jnp.eye(4),),
    "m",
)

# --- One block, one entry

plant_change(
    "block", "one row", "fit", 0, "weights", lambda g, *a: g.at[1].multiply(2), says="[1, :]"
)
plant_change(
    "block", "one column", "fit", 0, "weights", lambda g, *a: g.at[:, 2].set(0), says="[:, 2]"
)
plant_change(
    "block",
    "a ragged last block, 1%",
    "fit",
    1,
    "inputs",
    lambda g, *a: g.at[4:].multiply(1.01),
    says="[4:6, :]",
)
plant_change(
    "block",
    "one leaf of a pytree, 1%",
    "tree",
    0,
    "params",
    lambda g, *a: g | {"scale": 1.01 * g["scale"]},
    says="constant factor 1.01",
)
plant_change(
    "block",
    "one entry of one leaf",
    "tree",
    0,
    "params",
    lambda g, *a: g | {"layer": g["layer"] | {"w": g["layer"]["w"].at[2, 1].set(0)}},
    says="[2, 1]",
)
for _size in (1.0, 0.01, 0.001):
    plant(
        "block",
        f"one entry of 10,000, error of {_size:.1%}",
        ruled(cubic, lambda ct, x, s=_size: ((ct * x**2).at[7_654].multiply(1 + s),)),
        (LONG,),
        "x",
        says="only the entry",
    )
    plant(
        "block",
        f"one entry of a batch of 10,000, error of {_size:.1%}",
        ruled(sine, lambda ct, x, s=_size: ((ct * jnp.cos(x)).at[1, 3].multiply(1 + s),)),
        (LONG.reshape(100, 100),),
        "x",
        says="only the entry",
    )

# --- Orthogonal to fixed directions


def orthogonal(*directions: np.ndarray) -> np.ndarray:
    """A vector orthogonal to all of these."""
    rows = np.stack([d.ravel() for d in directions]).astype(np.float64)
    return np.linalg.svd(rows)[2][-1].reshape(directions[0].shape).astype(np.float32)


_fixed = np.random.RandomState(0).randn(7)  # the only direction of jax.test_util.check_grads
for _name, _directions in (
    ("the direction of check_grads", (_fixed,)),
    ("a vector of ones", (np.ones(7),)),
    ("both, and the first and last entry", (_fixed, np.ones(7), np.eye(7)[0], np.eye(7)[6])),
):
    _error = orthogonal(*_directions)
    plant_change(
        "orthogonal", f"to {_name}", "cubic", 0, "x", lambda g, ct, x, e=_error: g + ct * e
    )
plant(
    "orthogonal",
    "sums to zero over each row",
    ruled(
        lambda x: jnp.sum(jax.nn.softmax(x, 1) ** 2),
        lambda ct, x: (
            (
                lambda p: (
                    2
                    * ct
                    * (
                        p**2
                        - p**2 * jnp.sum(p, 1, keepdims=True)
                        + 0.1 * (p - p.mean(1, keepdims=True))
                    )
                )
            )(jax.nn.softmax(x, 1)),
        ),
    ),
    (normal(3, 4),),
    "x",
)

# --- The cotangent

plant(
    "cotangent",
    "ignored",
    ruled(cubic, lambda ct, x: (x**2,)),
    (X,),
    "x",
    "cotangent",
    says="ignores it",
)
plant(
    "cotangent",
    "squared",
    ruled(cubic, lambda ct, x: (ct**2 * x**2,)),
    (X,),
    "x",
    "cotangent",
    says="twice",
)
plant(
    "cotangent",
    "without its sign",
    ruled(cubic, lambda ct, x: (jnp.abs(ct) * x**2,)),
    (X,),
    "x",
    "cotangent",
    says="not its sign",
)
plant(
    "cotangent",
    "clipped",
    ruled(cubic, lambda ct, x: (jnp.clip(ct, -10, 10) * x**2,)),
    (X,),
    "x",
    "cotangent",
    says="in proportion",
)
plant(
    "cotangent",
    "a penalty without it",
    ruled(cubic, lambda ct, x: (ct * x**2 + (1 - ct) * 1e-2 * x,)),
    (X,),
    "x",
    "cotangent",
    says="zero cotangent",
)
plant(
    "cotangent",
    "averaged over the outputs",
    ruled(sine, lambda ct, x: (ct.mean() * jnp.cos(x),)),
    (X,),
    "x",
    "cotangent",
    says="equal cotangents",
)
plant(
    "cotangent",
    "of the first output for all",
    ruled(hinge, lambda ct, *a: hinge_rule(jnp.full_like(ct, ct[0]), *a)),
    HINGE,
    "scores",
    "cotangent",
    says="equal cotangents",
)
plant(
    "cotangent",
    "of one of two outputs ignored",
    ruled(
        lambda x: (jnp.sum(x**2), jnp.sum(jnp.sin(x))),
        lambda ct, x: (ct[0] * 2 * x + ct[0] * jnp.cos(x),),
    ),
    (X,),
    "x",
    "cotangent",
)
plant(
    "cotangent",
    "in the wrong order",
    ruled(sine, lambda ct, x: (ct[::-1] * jnp.cos(x),)),
    (X,),
    "x",
    "cotangent",
)

# --- Forward mode

plant(
    "forward",
    "custom_jvp with a factor",
    pushed(jnp.sin, lambda p, t: 1.01 * jnp.cos(p[0]) * t[0]),
    (X,),
    "x",
    says="1.01",
)
plant(
    "forward",
    "custom_jvp that forgets a tangent",
    pushed(lambda x, y: x * y**2, lambda p, t: p[1] ** 2 * t[0]),
    (X, normal(7, seed=1)),
    "y",
    "coverage",
    says="dropped",
)


def linear_with_wrong_transpose(x):
    from jax.custom_derivatives import linear_call

    scale = jnp.arange(1.0, 8.0, dtype=x.dtype)
    return linear_call(lambda r, v: r * v, lambda r, ct: (r + 0.01) * ct, scale, jnp.sin(x))


plant(
    "forward",
    "a linear map with a wrong transpose",
    linear_with_wrong_transpose,
    (X,),
    "x",
    "adjoint",
)


@jax.custom_vjp
def _wrong_value(x):
    return cubic(x)


_wrong_value.defvjp(lambda x: (1.001 * cubic(x), x), lambda x, ct: (ct * x**2,))
plant("value", "the forward rule returns another value", _wrong_value, (X,), "value", "value")

# --- Transformations


@jax.custom_batching.custom_vmap
def _slope(x):
    return jnp.cos(x)


@_slope.def_vmap
def _slope_batched(size, batched, x):
    return jnp.cos(x) + 0.01 * jnp.cos(x[:1]), True


plant(
    "transformation",
    "wrong under vmap only",
    ruled(sine, lambda ct, x: (ct * _slope(x),)),
    (X,),
    "x",
    "transformations",
    says="vmap",
)


@jax.custom_batching.custom_vmap
def _crossed(weights, x):
    return weights * x


@_crossed.def_vmap
def _first_of_batch(size, batched, weights, x):
    weights = weights[:1] if batched[0] and batched[1] else weights
    return weights * x, True


plant(
    "transformation",
    "wrong under vmap of two arguments only",
    ruled(
        lambda weights, x: jnp.sum(weights * x**2) / 2,
        lambda ct, weights, x: (ct * x**2 / 2, ct * _crossed(weights, x)),
    ),
    (X, normal(7, seed=1)),
    "x",
    "transformations",
    says="vmap",
)


def _traced_wrongly(ct, x):
    factor = 1.0 if isinstance(ct, jax.core.Tracer) else 1.1
    return (factor * ct * x**2,)


plant(
    "transformation",
    "wrong without jit only",
    ruled(cubic, _traced_wrongly),
    (X,),
    "x",
    "transformations",
    says="jit",
)


def _refuses_vmap(x):
    return jax.pure_callback(lambda y: np.cos(y), jax.ShapeDtypeStruct(x.shape, x.dtype), x)


plant(
    "transformation",
    "the gradient cannot be vmapped, the value can",
    ruled(sine, lambda ct, x: (ct * _refuses_vmap(x),)),
    (X,),
    "vmap",
    "transformations",
    says="its gradient fails",
)


def _partly(weights, x):
    return jnp.sum(weights * x**2) / 2


_partly_alone = jax.custom_vjp(_partly)


def _partly_forward(weights, x):
    both = weights.perturbed and x.perturbed
    return _partly(weights.value, x.value), (weights.value, x.value, 1.0 if both else 0.5)


_partly_alone.defvjp(
    _partly_forward,
    lambda r, ct: (ct * r[1] ** 2 / 2, r[2] * ct * r[0] * r[1]),
    symbolic_zeros=True,
)
plant(
    "transformation",
    "wrong for one argument alone",
    _partly_alone,
    (X, normal(7, seed=1)),
    "x",
    "transformations",
    says="alone",
)

# --- Second order

_wrong_square = pushed(lambda x: x**2, lambda p, t: p[0] * t[0])
_dropped_square = pushed(lambda x: x**2, lambda p, t: 0 * t[0])
plant(
    "second order",
    "the slope has a wrong slope",
    ruled(cubic, lambda ct, x: (ct * _wrong_square(x),)),
    (X,),
    "x",
    "second_order",
    order=2,
)
plant(
    "second order",
    "the slope of the slope is dropped",
    ruled(cubic, lambda ct, x: (ct * _dropped_square(x),)),
    (X,),
    "x",
    "second_order",
    says="dropped",
    order=2,
)
plant(
    "second order",
    "a residual cut off",
    ruled(cubic, lambda ct, x: (ct * x * jax.lax.stop_gradient(x),)),
    (X,),
    "x",
    "second_order",
    order=2,
)

# --- Dtypes


def _only_in(dtype, factor):
    return lambda ct, x: ((factor if x.dtype == dtype else 1) * ct * x**2,)


plant(
    "dtype",
    "factor 2 in bfloat16 only",
    ruled(cubic, _only_in(jnp.bfloat16, 2)),
    (X,),
    "x",
    "dtypes",
    says="bfloat16",
)
plant(
    "dtype",
    "dropped in float16 only",
    ruled(cubic, _only_in(jnp.float16, 0)),
    (X,),
    "x",
    "dtypes",
    says="float16",
)
plant(
    "dtype",
    "1% in float32 only",
    ruled(cubic, _only_in(jnp.float32, 1.01)),
    (X,),
    "x",
    "dtypes",
    says="1.01",
)
plant(
    "dtype",
    "float32 gradient for bfloat16",
    ruled(cubic, lambda ct, x: ((ct * x**2).astype(jnp.promote_types(x.dtype, jnp.float32)),)),
    (X,),
    "x",
    "dtypes",
    says="dtype and shape",
)
plant(
    "dtype",
    "bfloat16 gradient for float32",
    ruled(
        cubic,
        lambda ct, x: ((ct * x**2).astype(jnp.bfloat16 if x.dtype == jnp.float32 else x.dtype),),
    ),
    (X,),
    "x",
    "dtypes",
    says="dtype and shape",
)
plant(
    "dtype",
    "sums in bfloat16",
    ruled(
        lambda x: jnp.sum(x) ** 2,
        lambda ct, x: (
            jnp.full_like(
                x,
                2
                * ct
                * (
                    jax.lax.fori_loop(0, x.size, lambda i, s: s + x[i], jnp.zeros((), x.dtype))
                    if x.dtype == jnp.bfloat16
                    else jnp.sum(x)
                ),
            ),
        ),
    ),
    (jnp.full(800, 0.5),),
    "x",
    "dtypes",
    says="bfloat16",
)

# --- Scales

plant(
    "scale",
    "clipped for large inputs",
    ruled(cubic, lambda ct, x: (ct * jnp.minimum(x**2, 50),)),
    (X,),
    "x",
    "scales",
    says="times",
)
plant(
    "scale",
    "flushed to zero for small inputs",
    ruled(lambda x: jnp.sum(x**2) / 2, lambda ct, x: (ct * jnp.where(jnp.abs(x) < 1e-2, 0, x),)),
    (1 + X**2,),
    "x",
    "scales",
    says="times",
)
plant(
    "scale",
    "NaN for large inputs",
    ruled(
        lambda x: jnp.sum(jax.nn.softplus(x)), lambda ct, x: (ct * jnp.exp(x) / (1 + jnp.exp(x)),)
    ),
    (X,),
    "x",
    "scales",
    says="not finite",
)
plant(
    "scale",
    "NaN for small inputs",
    ruled(lambda x: jnp.sqrt(jnp.sum(x**2)), lambda ct, x: (ct * x / jnp.sqrt(jnp.sum(x**2)),)),
    (X,),
    "x",
    "scales",
    says="not finite",
)
plant(
    "scale",
    "NaN at a point where the value is 0",
    lambda x: jnp.sqrt(jnp.sum(x**2)),
    (jnp.zeros(3),),
    "x",
    "scales",
    says="not finite",
)

# --- Kinks

_TIED = jnp.array([0.0, 1.0, -1.0, 0.0])
plant(
    "kink",
    "a slope outside the one-sided ones",
    ruled(
        lambda x: jnp.sum(jnp.maximum(x, 0)),
        lambda ct, x: (ct * jnp.where(x > 0, 1.0, jnp.where(x == 0, 2.0, 0.0)),),
    ),
    (_TIED,),
    "x",
    "kinks",
    says="one-sided",
)
plant(
    "kink",
    "the negative side of an absolute value, twice",
    ruled(
        lambda x: jnp.sum(jnp.abs(x)),
        lambda ct, x: (ct * jnp.where(x > 0, 1.0, jnp.where(x == 0, -2.0, -1.0)),),
    ),
    (_TIED,),
    "x",
    "kinks",
    says="one-sided",
)
plant(
    "kink",
    "wrong beside the kink",
    ruled(lambda x: jnp.sum(jnp.maximum(x, 0)), lambda ct, x: (ct * jnp.where(x > 0.5, 1.0, 0.0),)),
    (jnp.array([0.2, 0.9, -1.0]),),
    "x",
    says="[0]",
)

# --- The same bits

_calls = iter(range(10**9))


def _drifting(x):
    return jax.pure_callback(
        lambda y: np.asarray(y * (1 + 2e-7 * (next(_calls) % 2)), y.dtype),
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        x,
        vmap_method="sequential",
    )


plant(
    "determinism",
    "another last bit every other call",
    ruled(cubic, lambda ct, x: (ct * _drifting(x**2),)),
    (X,),
    "x",
    "determinism",
    says="different bits",
)


# --- Who catches what


def _check_grads_says(bug: Planted, **options: Any) -> str:
    order = bug.options.get("order", 1)
    try:
        jax.test_util.check_grads(bug.fun, bug.args, order, **options)
    except AssertionError:
        return "found"
    except Exception:  # not an answer: it also refuses right functions of this kind
        return "refused"
    return "missed"


def _ours(bug: Planted) -> str:
    report = check_gradients(bug.fun, *bug.args, **bug.options)
    named = any(f.argument == bug.argument and f.check in bug.checks for f in report.findings)
    return "named" if named else "missed" if report.ok else "found"


def table() -> str:
    """The page docs/checker_catalogue.md."""
    rows = [
        (
            str(bug),
            _ours(bug),
            _check_grads_says(bug),
            _check_grads_says(bug, modes=["rev"]),
        )
        for bug in PLANTED
    ]
    counts = [
        ", ".join(f"{n} {word}" for word, n in Counter(column).most_common())
        for column in list(zip(*rows, strict=True))[1:]
    ]
    lines = [
        "# Who catches what",
        "",
        f"{len(rows)} wrong derivative rules (`tests/checking/planted.py`), each given to "
        "`mcgrad.check_gradients` and to `jax.test_util.check_grads` with its defaults and with "
        'modes=["rev"]. "named": the finding says the right check and the right argument; '
        '"refused": it stops with an error other than a failed comparison, as it does on right '
        "functions of that kind (its default modes on any custom_vjp, integer arguments).",
        "",
        f"JAX {jax.__version__}, NumPy {np.__version__}, {platform.machine()} CPU, float32, "
        f"{datetime.date.today()}. Written by `python -m tests.checking.planted --table`.",
        "",
        '| planted bug | check_gradients | check_grads | check_grads, modes=["rev"] |',
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        f"| **all {len(rows)}** | {' | '.join(counts)} |",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] != ["--table"]:
        sys.exit("usage: python -m tests.checking.planted --table")
    page = pathlib.Path(__file__).parents[2] / "docs" / "checker_catalogue.md"
    page.write_text(table())
