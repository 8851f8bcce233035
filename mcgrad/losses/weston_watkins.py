"""The multiclass hinge of Weston and Watkins.

For scores s (classes,) and the true class t, with b_j = s_j - s_t + margin:

    f = c_t Σ_{j≠t} a(b_j)^power                          a the ramp, exact or tanh(mu b)
    g_j = power a(b_j)^(power-1) a'(b_j) for j ≠ t,       g_t = 0,       h = g - (1ᵀg) e_t

    ∂f/∂s = c_t h     ∂f/∂margin = c_t 1ᵀg     ∂f/∂c_t = Σ_{j≠t} a^power
    ∂f/∂mu = c_t Σ_{j≠t} power a^(power-1) ∂a/∂mu

On linear scores s = W x + bias, with the penalty l2 ‖W‖² (squared Frobenius norm):

    ∂f/∂W = c_t h xᵀ + 2 l2 W     ∂f/∂x = c_t Wᵀh     ∂f/∂bias = c_t h     ∂f/∂l2 = ‖W‖²

W is (classes, features), x (features,), s and h (classes,). The sum leaves j = t out: its term is
a(margin), which is the margin only for the exact ramp and margin >= 0.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mcgrad._arguments import (
    BLOCK_SIZE,
    L2,
    MU,
    REDUCTION,
    SAMPLE_WEIGHT,
    Arguments,
    Choice,
    Classes,
    ClassWeights,
    Real,
    Scalar,
)
from mcgrad._arrays import Array, ArrayLike, Float, Int
from mcgrad._merge import Sum
from mcgrad._modes import public
from mcgrad._ramp import ramp, ramp_by_mu, slope
from mcgrad.losses._linear import linear_rule, score_rule
from mcgrad.losses._scores import ScoreLoss, Tile

__all__ = ["linear_weston_watkins_loss", "weston_watkins_loss"]


@dataclasses.dataclass(frozen=True)
class _WestonWatkins(ScoreLoss):
    has_true_class = True
    scalar_arguments = ("mu",)

    margin: Array
    mu: Array | None
    power: int

    @property
    def score_exponent(self) -> float:
        return 1 / self.power

    def equation(self, scores, data) -> Array:
        """f = Σ_{j≠t} a(s_j - s_t + margin)^power"""
        is_true = data["true_class"][:, None] == jnp.arange(scores.shape[1], dtype=jnp.int32)[None]
        true_scores = jnp.sum(jnp.where(is_true, scores, 0), 1)
        terms = ramp(scores - true_scores[:, None] + self.margin, self.mu) ** self.power
        return jnp.sum(jnp.where(is_true, 0, terms), 1)

    def kinds(self, needs):
        slopes = needs & {"weights", "inputs", "bias", "scores", "margin"}
        return {"hinge": Sum, "count": Sum} if slopes else {"hinge": Sum}

    def state(self, tile: Tile):
        a = ramp(tile.margins + self.margin, self.mu)
        g = self.slopes(tile, {})
        return {"hinge": tile.sum(a**self.power), "count": tile.sum(g)}

    def value(self, state, examples) -> Array:
        return state["hinge"].value

    def slopes(self, tile: Tile, state) -> Array:
        """g_j = power a^(power-1) a'"""
        b = tile.margins + self.margin
        return self._outer(b) * slope(b, self.mu)

    def true_slope(self, state, examples) -> Array:
        """-1ᵀg"""
        return -state["count"].value

    def partials(self, state, examples):
        return {"margin": state["count"].value}  # 1ᵀg

    def tile_partials(self, tile: Tile, state):
        if self.mu is None:
            return {}
        b = tile.margins + self.margin
        return {"mu": tile.sum(self._outer(b) * ramp_by_mu(b, self.mu)).value}

    def active(self, state):
        # The slopes of a smooth ramp are never exactly zero.
        return None if self.mu is not None else state["count"].value != 0

    def _outer(self, b: Array) -> Array:
        """power a^(power-1)"""
        return jnp.ones((), b.dtype) if self.power == 1 else 2 * ramp(b, self.mu)


POWER = Choice((1, 2))

_on_scores = score_rule(
    _WestonWatkins,
    Arguments(
        "classes",
        scores=Real("*batch classes"),
        labels=Classes(),
        margin=Scalar(),
        mu=MU,
        power=POWER,
        class_weight=ClassWeights("classes", optional=True),
        sample_weight=SAMPLE_WEIGHT,
        reduction=REDUCTION,
    ),
)

_linear = linear_rule(
    _WestonWatkins,
    Arguments(
        "classes",
        weights=Real("classes features", "products"),
        inputs=Real("*batch features", "products"),
        labels=Classes(),
        bias=Real("classes", optional=True),
        margin=Scalar(),
        l2=L2,
        mu=MU,
        power=POWER,
        class_weight=ClassWeights("classes", optional=True),
        sample_weight=SAMPLE_WEIGHT,
        reduction=REDUCTION,
        block_size=BLOCK_SIZE,
    ),
)


def _example_args(key, batch, dtype, *, smooth):
    """Arguments for the checker: every float argument in its general position."""
    keys = jax.random.split(key, 6)
    scores = 2 * jax.random.normal(keys[0], (*batch, 5), dtype)
    labels = jax.random.randint(keys[1], batch, 0, 5)
    options = {
        "margin": jnp.asarray(0.75, dtype),
        "class_weight": jax.random.uniform(keys[2], (5,), dtype, 0.5, 2.0),
        "sample_weight": jax.random.uniform(keys[3], batch, dtype, 0.5, 2.0),
    }
    return (scores, labels), options | ({"mu": jnp.asarray(1.5, dtype)} if smooth else {})


def _linear_example_args(key, batch, dtype, *, smooth):
    (_, labels), options = _example_args(key, batch, dtype, smooth=smooth)
    keys = jax.random.split(key, 9)[6:]
    weights = jax.random.normal(keys[0], (5, 3), dtype)
    inputs = jax.random.normal(keys[1], (*batch, 3), dtype)
    bias = jax.random.normal(keys[2], (5,), dtype)
    return (weights, inputs, labels), options | {"bias": bias, "l2": jnp.asarray(0.1, dtype)}


@public(_on_scores, _example_args)
def weston_watkins_loss(
    scores: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    *,
    margin: Float[ArrayLike, ""] | float = 1.0,
    mu: Float[ArrayLike, ""] | float | None = None,
    power: int = 1,
    class_weight: Float[ArrayLike, " classes"] | None = None,
    sample_weight: Float[ArrayLike, "*batch"] | None = None,
    reduction: str = "mean",
) -> Array:
    """Weston-Watkins multiclass hinge of the scores of any model.

    For scores s and true class t, with b_j = s_j - s_t + margin and the ramp a(b) = max(0, b):

        f = c_t Σ_{j≠t} a(b_j)^power

    Gradient, with g_j = power a(b_j)^(power-1) a'(b_j) for j ≠ t and g_t = 0:

        ∂f/∂s = c_t (g - (1ᵀg) e_t)    ∂f/∂margin = c_t 1ᵀg    ∂f/∂c_t = Σ_{j≠t} a(b_j)^power
        ∂f/∂mu = c_t Σ_{j≠t} power a(b_j)^(power-1) ∂a/∂mu(b_j)

    and for sample weights s_i, ∂L/∂s_i = (f_i - L)/Σs under "mean", f_i otherwise. At a tie, b = 0,
    the slope a' is 1. Second derivatives of the exact ramp take a' as constant: a generalized
    Hessian, zero for power 1.

    With `mu` the ramp is a(b) = b (1 + tanh(mu b))/2, which tends to max(0, b) as mu grows: it
    differs by at most 0.13924/mu, so f (power 1) by at most c_t (classes - 1) 0.13924/mu.

    Args:
        scores: (*batch, classes), or (classes,) for one example.
        labels: (*batch,), integers from 0 to classes - 1.
        margin: the score difference that is asked for; any real number. Default 1.
        mu: sharpness of the smooth ramp, > 0; None (default) for the exact one.
        power: 1 (default) or 2, the squared hinge.
        class_weight: (classes,), >= 0, scales the examples of each true class. Default: ones.
        sample_weight: (*batch,), >= 0; an example of weight 0 adds nothing, even if it holds NaN.
        reduction: "mean" (default; divides by the sum of the sample weights), "sum" or "none".

    Returns:
        A scalar, or (*batch,) for reduction "none", in the promoted dtype of the float arguments;
        half precision is summed in float32.

    Raises:
        ValueError: a shape, range or name is wrong, or a label is out of range. While labels are
            traced, an example whose label is out of range has a NaN loss and gradient instead.
        TypeError: a dtype is wrong.

    Cost: time and memory in proportion to the scores; the gradient holds nothing but the scores.

    Example:
        >>> scores, labels = jnp.array([[3.0, 2.5, 1.0]]), jnp.array([0])
        >>> value, gradient = jax.value_and_grad(weston_watkins_loss)(scores, labels)
        >>> print(value, gradient)
        0.5 [[-1.  1.  0.]]

    References:
        Weston and Watkins, "Support vector machines for multi-class pattern recognition",
        ESANN 1999, problem (2). PyTorch's multi_margin_loss is this loss divided by `classes`.
    """
    return _on_scores(scores, labels, margin, mu, power, class_weight, sample_weight, reduction)


@public(_linear, _linear_example_args)
def linear_weston_watkins_loss(
    weights: Float[ArrayLike, "classes features"],
    inputs: Float[ArrayLike, "*batch features"],
    labels: Int[ArrayLike, "*batch"],
    *,
    bias: Float[ArrayLike, " classes"] | None = None,
    margin: Float[ArrayLike, ""] | float = 1.0,
    l2: Float[ArrayLike, ""] | float = 0.0,
    mu: Float[ArrayLike, ""] | float | None = None,
    power: int = 1,
    class_weight: Float[ArrayLike, " classes"] | None = None,
    sample_weight: Float[ArrayLike, "*batch"] | None = None,
    reduction: str = "mean",
    block_size: int | None = None,
) -> Array:
    """Weston-Watkins multiclass hinge of linear scores, with an l2 penalty.

    For an input x, true class t, scores s = W x + bias, b_j = s_j - s_t + margin and the ramp
    a(b) = max(0, b):

        f = c_t Σ_{j≠t} a(b_j)^power + l2 ‖W‖²

    Gradient, with g_j = power a(b_j)^(power-1) a'(b_j) for j ≠ t, g_t = 0 and h = g - (1ᵀg) e_t:

        ∂f/∂W = c_t h xᵀ + 2 l2 W    ∂f/∂x = c_t Wᵀh    ∂f/∂bias = c_t h    ∂f/∂margin = c_t 1ᵀg
        ∂f/∂l2 = ‖W‖²    ∂f/∂c_t = Σ_{j≠t} a(b_j)^power
        ∂f/∂mu = c_t Σ_{j≠t} power a(b_j)^(power-1) ∂a/∂mu(b_j)

    and for sample weights s_i, ∂L/∂s_i = (f_i - L)/Σs under "mean", f_i otherwise. At a tie, b = 0,
    the slope a' is 1. Second derivatives of the exact ramp take a' as constant: a generalized
    Hessian, zero for power 1.

    With `mu` the ramp is a(b) = b (1 + tanh(mu b))/2, which tends to max(0, b) as mu grows: it
    differs by at most 0.13924/mu, so f (power 1) by at most c_t (classes - 1) 0.13924/mu.

    Args:
        weights: W, (classes, features).
        inputs: x, (*batch, features), or (features,) for one example.
        labels: (*batch,), integers from 0 to classes - 1.
        bias: (classes,), added to the scores, not penalised. Default: none.
        margin: the score difference that is asked for; any real number. Default 1.
        l2: penalty on the weights, >= 0. Part of every example's loss: it counts once under "mean".
            Default 0.
        mu: sharpness of the smooth ramp, > 0; None (default) for the exact one.
        power: 1 (default) or 2, the squared hinge.
        class_weight: (classes,), >= 0, scales the examples of each true class. Default: ones.
        sample_weight: (*batch,), >= 0; an example of weight 0 adds nothing, even if it holds NaN.
        reduction: "mean" (default; divides by the sum of the sample weights), "sum" or "none".
        block_size: how many examples, or classes if there are more of those, are taken at a time;
            None (default) chooses by the device's cache or memory.

    Returns:
        A scalar, or (*batch,) for reduction "none", in the promoted dtype of the float arguments;
        half precision is summed in float32.

    Raises:
        ValueError: a shape, range or name is wrong, or a label is out of range. While labels are
            traced, an example whose label is out of range has a NaN loss and gradient instead.
        TypeError: a dtype is wrong.

    Cost: one matrix product for the value and one for each of ∂W and ∂x that is asked for (one more
    under "none"), in the memory of one block of scores. With the exact ramp, examples that violate
    no margin in a block cost that block nothing but the scores.

    Example:
        >>> weights = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> inputs, labels = jnp.array([[2.0, 1.5], [0.0, 3.0]]), jnp.array([0, 1])
        >>> value_and_gradient = jax.value_and_grad(linear_weston_watkins_loss)
        >>> value, gradient = value_and_gradient(weights, inputs, labels)
        >>> print(value)
        0.25
        >>> print(gradient)
        [[-1.   -0.75]
         [ 1.    0.75]
         [ 0.    0.  ]]

    References:
        Weston and Watkins, "Support vector machines for multi-class pattern recognition",
        ESANN 1999, problem (2); the l2 penalty is its ‖w‖² term.
    """
    return _linear(
        weights, inputs, labels, bias, margin, l2, mu, power,
        class_weight, sample_weight, reduction, block_size,
    )  # fmt: skip
