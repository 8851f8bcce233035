"""Least squares of a linear map, example by example or from the moments of a data set.

For an input u (features,) and a target v (outputs,), with the residual r = W u + bias - v:

    f = ‖r‖²

    ∂f/∂W = 2 r uᵀ     ∂f/∂u = 2 Wᵀr     ∂f/∂bias = 2 r     ∂f/∂v = -2 r

On a fixed data set, with the moments M = Σ u uᵀ, C = Σ v uᵀ and kappa = Σ ‖v‖²:

    Σ ‖W u - v‖² = W:(W M - 2 C) + kappa

    ∂/∂W = 2 (W M - C)     ∂/∂M = WᵀW     ∂/∂C = -2 W     ∂/∂kappa = 1

W is (outputs, features), M (features, features) symmetric, C (outputs, features).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from mcgrad._arguments import (
    BLOCK_SIZE,
    REDUCTION,
    SAMPLE_WEIGHT,
    Argument,
    Arguments,
    Call,
    Choice,
    Real,
)
from mcgrad._arrays import Array, ArrayLike, Float, matmul, power_of_two
from mcgrad._merge import Sum
from mcgrad._modes import Rule, public
from mcgrad._reduction import Reduction
from mcgrad.losses._linear import linear_rule
from mcgrad.losses._scores import ScoreLoss, Tile

__all__ = [
    "LeastSquaresMoments",
    "least_squares_moments",
    "linear_least_squares_loss",
    "moment_least_squares_loss",
]


@dataclasses.dataclass(frozen=True)
class _LeastSquares(ScoreLoss):
    entry_arguments = ("targets",)

    @property
    def score_exponent(self) -> float:
        return 1 / 2

    def equation(self, scores, data) -> Array:
        """f = ‖s - v‖²"""
        return jnp.sum(jnp.square(scores - data["targets"].astype(scores.dtype)), 1)

    def kinds(self, needs):
        return {"squares": Sum}

    def state(self, tile: Tile):
        return {"squares": tile.sum(jnp.square(self._residuals(tile)))}

    def value(self, state, examples) -> Array:
        return state["squares"].value

    def slopes(self, tile: Tile, state) -> Array:
        """2 r"""
        return 2 * self._residuals(tile)

    def tile_partials(self, tile: Tile, state):
        return {"targets": -2 * self._residuals(tile)}

    def _residuals(self, tile: Tile) -> Array:
        """r = s - v"""
        return tile.scores - tile.entries["targets"].astype(tile.scores.dtype)


def _example_args(key, batch, dtype, *, smooth):
    """Arguments for the checker; there is no kink, so no smooth twin."""
    keys = jax.random.split(key, 5)
    args = (
        jax.random.normal(keys[0], (4, 3), dtype),
        jax.random.normal(keys[1], (*batch, 3), dtype),
        jax.random.normal(keys[2], (*batch, 4), dtype),
    )
    bias = jax.random.normal(keys[3], (4,), dtype)
    sample_weight = jax.random.uniform(keys[4], batch, dtype, 0.5, 2.0)
    return args, {"bias": bias, "sample_weight": sample_weight}


_linear = linear_rule(
    _LeastSquares,
    Arguments(
        "outputs",
        weights=Real("outputs features", "products"),
        inputs=Real("*batch features", "products"),
        targets=Real("*batch outputs", "own"),
        bias=Real("outputs", optional=True),
        sample_weight=SAMPLE_WEIGHT,
        reduction=REDUCTION,
        block_size=BLOCK_SIZE,
    ),
)


@public(_linear, _example_args)
def linear_least_squares_loss(
    weights: Float[ArrayLike, "outputs features"],
    inputs: Float[ArrayLike, "*batch features"],
    targets: Float[ArrayLike, "*batch outputs"],
    *,
    bias: Float[ArrayLike, " outputs"] | None = None,
    sample_weight: Float[ArrayLike, "*batch"] | None = None,
    reduction: str = "mean",
    block_size: int | None = None,
) -> Array:
    """Squared error of a linear map.

    For an input u and a target v, with r = W u + bias - v:

        f = ‖r‖²

    Gradient:

        ∂f/∂W = 2 r uᵀ    ∂f/∂u = 2 Wᵀr    ∂f/∂v = -2 r    ∂f/∂bias = 2 r

    and for sample weights s_i, ∂L/∂s_i = (f_i - L)/Σs under "mean", f_i otherwise. The Hessian
    with respect to W is 2 uuᵀ ⊗ I. There are no ties and nothing for a `mu` to smooth.

    Args:
        weights: W, (outputs, features).
        inputs: u, (*batch, features), or (features,) for one example.
        targets: v, (*batch, outputs).
        bias: (outputs,). Default: none.
        sample_weight: (*batch,), >= 0; an example of weight 0 adds nothing, even if it holds NaN.
        reduction: "mean" (default; divides by the sum of the sample weights), "sum" or "none".
        block_size: how many examples, or outputs if there are more of those, are taken at a time;
            None (default) chooses by the device's cache or memory.

    Returns:
        A scalar, or (*batch,) for reduction "none", in the promoted dtype of the float arguments;
        half precision is summed in float32.

    Raises:
        ValueError: a shape, range or name is wrong.
        TypeError: a dtype is wrong.

    Cost: one matrix product for the value and one for each of ∂W and ∂u that is asked for (one more
    under "none"), in the memory of one block of residuals.

    Example:
        >>> weights = jnp.array([[1.0, 2.0]])
        >>> inputs, targets = jnp.array([1.0, 1.0]), jnp.array([2.0])
        >>> value_and_gradient = jax.value_and_grad(linear_least_squares_loss)
        >>> value, gradient = value_and_gradient(weights, inputs, targets)
        >>> print(value, gradient)
        1.0 [[2. 2.]]

    References:
        Petersen and Pedersen, "The Matrix Cookbook", 2012, section 2.4 (derivatives of second-order
        forms). PyTorch's mse_loss is this loss divided by `outputs`.
    """
    return _linear(weights, inputs, targets, bias, sample_weight, reduction, block_size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LeastSquaresMoments:
    """What least squares needs to know of a data set. The moments of two data sets add with `+`.

    Attributes:
        inputs: M = Σ s u uᵀ, (features, features).
        cross: C = Σ s v uᵀ, (outputs, features).
        targets: kappa = Σ s ‖v‖², a scalar.
        weight: Σ s, a scalar: the number of examples where none is weighted.
    """

    inputs: Array
    cross: Array
    targets: Array
    weight: Array

    def __add__(self, other: "LeastSquaresMoments") -> "LeastSquaresMoments":
        if not isinstance(other, LeastSquaresMoments):
            return NotImplemented
        return jax.tree.map(jnp.add, self, other)

    def __radd__(self, other: Any) -> "LeastSquaresMoments":
        """`sum` starts from 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented


export.register_pytree_node_serialization(
    LeastSquaresMoments,
    serialized_name="mcgrad.LeastSquaresMoments",
    serialize_auxdata=lambda _: b"",
    deserialize_auxdata=lambda _: (),
)


def least_squares_moments(
    inputs: Float[ArrayLike, "*batch features"],
    targets: Float[ArrayLike, "*batch outputs"],
    *,
    sample_weight: Float[ArrayLike, "*batch"] | None = None,
) -> LeastSquaresMoments:
    """The moments of a data set, for `moment_least_squares_loss`.

        M = Σ s u uᵀ     C = Σ s v uᵀ     kappa = Σ s ‖v‖²     weight = Σ s

    They are plain JAX functions of the data, and differentiable as such.

    Args:
        inputs: u, (*batch, features).
        targets: v, (*batch, outputs).
        sample_weight: s, (*batch,), >= 0; an example of weight 0 adds nothing, even if it holds
            NaN. Default: ones.

    Returns:
        A `LeastSquaresMoments`, a pytree, in the promoted dtype of the arguments, at least float32.

    Raises:
        ValueError: a shape or range is wrong.
        TypeError: a dtype is wrong.

    Cost: two matrix products, once for a data set.

    Example:
        >>> moments = least_squares_moments(jnp.array([[1.0, 2.0]]), jnp.array([[3.0]]))
        >>> print(moments.inputs, moments.cross, moments.targets, (moments + moments).weight)
        [[1. 2.]
         [2. 4.]] [[3. 6.]] 9.0 2.0

    References:
        The normal equations; Petersen and Pedersen, "The Matrix Cookbook", 2012, section 2.4.
    """
    return _DATA.apply(_moments, inputs, targets, sample_weight)


_DATA = Arguments(
    inputs=Real("*batch features"), targets=Real("*batch outputs"), sample_weight=SAMPLE_WEIGHT
)


def _moments(u: Array, v: Array, s: Array | None) -> LeastSquaresMoments:
    weight = jnp.full((), u.shape[0], u.dtype) if s is None else jnp.sum(s)
    su, sv = (u, v) if s is None else (s[:, None] * u, s[:, None] * v)
    return LeastSquaresMoments(u.T @ su, sv.T @ u, jnp.sum(v * sv), weight)


def _moment_equation(weights, moments, *, reduction):
    moments, share, _ = _scaled(moments, reduction)
    total = jnp.sum(weights * (weights @ moments.inputs - 2 * moments.cross)) + moments.targets
    return (total * share).astype(reduction.dtype)


def _moment_forward(weights, moments, *, reduction):
    moments, share, scale = _scaled(moments, reduction)
    half = matmul(weights, moments.inputs, weights.dtype) - moments.cross
    own = jnp.sum(weights * (half - moments.cross))
    total = reduction.split.over_columns(own) + moments.targets
    value = total * share
    return value.astype(reduction.dtype), (weights, half, total, share, scale)


def _moment_backward(residuals, ct, *, reduction):
    weights, half, total, share, scale = residuals
    each = ct.astype(weights.dtype) * share
    by_moments = LeastSquaresMoments(
        inputs=(each * weights).T @ weights / scale,  # WᵀW
        cross=-2 * each * weights / scale,  # -2 W
        targets=each / scale,
        weight=-each * (share * total) / scale if reduction.name == "mean" else 0 * each,
    )
    return 2 * each * half, by_moments  # 2 (W M - C)


# Sums of weights beyond the inverse of this are scaled down: their moments may be near overflow.
LARGE = 2.0**-64


def _scaled(
    moments: LeastSquaresMoments, reduction: Reduction
) -> tuple[LeastSquaresMoments, Array, Array]:
    """The moments / scale, M symmetric; 1/Σs of these (0 where Σs = 0), or 1; and the scale.

    A mean does not depend on the scale of large moments, nor is it lost with their sum.
    """
    mean, scale = reduction.name == "mean", jnp.ones_like(moments.weight)
    if mean:
        scale = jnp.maximum(power_of_two(LARGE * moments.weight), scale)
    moments = jax.tree.map(lambda moment: moment / scale, moments)
    symmetric = moments.inputs / 2 + moments.inputs.T / 2
    empty = moments.weight == 0
    share = jnp.where(empty, 0, 1 / jnp.where(empty, 1, moments.weight))
    # Of weights whose own sum has overflowed no mean is known.
    share = jnp.where(jnp.isfinite(moments.weight), share, jnp.nan)
    return dataclasses.replace(moments, inputs=symmetric), share if mean else scale, scale


def _moment_example_args(key, batch, dtype, *, smooth):
    (weights, inputs, targets), options = _example_args(key, (7,), dtype, smooth=smooth)
    moments = least_squares_moments(inputs, targets, sample_weight=options["sample_weight"])
    return (weights, jax.tree.map(lambda x: x.astype(dtype), moments)), {}


@dataclasses.dataclass(frozen=True)
class _Moments(Argument):
    """The moments of a data set: an array for each of the fields."""

    axes: str = ""

    kind = "`LeastSquaresMoments`"

    def check(self, name: str, x: Any, call: Call) -> LeastSquaresMoments:
        if not isinstance(x, LeastSquaresMoments):
            expected = "the result of least_squares_moments"
            raise TypeError(f"{name}: expected {expected}; got {type(x).__name__}")
        checked = {
            field: of_field.check(f"{name}.{field}", getattr(x, field), call)
            for field, of_field in _FIELDS.items()
        }
        return LeastSquaresMoments(**checked)

    def spec(self, columns: str | None) -> Any:
        return LeastSquaresMoments(**{name: field.spec(columns) for name, field in _FIELDS.items()})


_FIELDS = {
    "inputs": Real("features features"),
    "cross": Real("outputs features"),
    "targets": Real(""),
    "weight": Real(""),
}

_MOMENTS = Arguments(
    "outputs",
    weights=Real("outputs features"),
    moments=_Moments(),
    reduction=Choice(("mean", "sum")),
)
_on_moments = Rule(_moment_equation, _moment_forward, _moment_backward, _MOMENTS, _MOMENTS.layout)


@public(_on_moments, _moment_example_args)
def moment_least_squares_loss(
    weights: Float[ArrayLike, "outputs features"],
    moments: LeastSquaresMoments,
    *,
    reduction: str = "mean",
) -> Array:
    """Squared error of a linear map over a fixed data set, from its moments.

    With M, C, kappa and Σs of `least_squares_moments`:

        L = (W:(W M - 2 C) + kappa) / Σs                       (reduction "sum": not divided)

    Gradient, each divided by Σs under "mean":

        ∂L/∂W = 2 (W M - C)    ∂L/∂M = WᵀW    ∂L/∂C = -2 W    ∂L/∂kappa = 1
        ∂L/∂Σs = -L            (under "mean"; 0 under "sum")

    The value is a difference of large numbers where the fit is nearly exact: about
    log10(kappa/(Σs L)) of its digits are lost there. The gradient does not suffer in this way.
    There are no ties and nothing for a `mu` to smooth.

    Args:
        weights: W, (outputs, features).
        moments: of a data set, or the sum of several.
        reduction: "mean" (default; divides by Σs) or "sum".

    Returns:
        A scalar in the promoted dtype of the weights and the moments.

    Raises:
        ValueError: a shape or name is wrong.
        TypeError: a dtype is wrong, or `moments` are not moments.

    Cost: one matrix product (outputs x features x features), however large the data set was.

    Example:
        >>> moments = least_squares_moments(jnp.array([[1.0, 1.0]]), jnp.array([[2.0]]))
        >>> weights = jnp.array([[1.0, 2.0]])
        >>> value, gradient = jax.value_and_grad(moment_least_squares_loss)(weights, moments)
        >>> print(value, gradient)
        1.0 [[2. 2.]]

    References:
        Petersen and Pedersen, "The Matrix Cookbook", 2012, section 2.5 (derivatives of traces).
    """
    return _on_moments(weights, moments, reduction)
