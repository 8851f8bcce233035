"""The logistic loss of a network with one hidden layer.

For an input x (features,) and a label y of -1 or +1, with z = W x + b, s = sigma(z) and
beta = -y wᵀs:

    f = log(1 + exp(beta)) = softplus(beta)        c = logistic(beta)

    ∂f/∂W = -c y (s'⊙w) xᵀ     ∂f/∂b = -c y (s'⊙w)     ∂f/∂w = -c y s
    ∂f/∂x = -c y Wᵀ(s'⊙w)      ∂f/∂y = -c wᵀs          ∂f/∂mu = -c y wᵀ(∂a/∂mu)(z)

W is (hidden, features), b and w (hidden,), s' = sigma'(z). The literal exp(-f) exp(beta), in place
of the logistic function, overflows from |beta| of about 89 on in float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcgrad._arrays import (
    Array,
    ArrayLike,
    Axes,
    Float,
    common_dtype,
    concrete,
    promoted,
    require,
    rounded,
)
from mcgrad._blocks import Plan, check_block_size, plan
from mcgrad._modes import Rule, public
from mcgrad._ramp import ramp, ramp_by_mu, slope
from mcgrad._reduction import Reduction, dead_examples, drop_dead, finite, spare, spared
from mcgrad._split import Split
from mcgrad.losses._linear import Sums, Tile, linear_scores, one_pass, sum_over_tiles

__all__ = ["Activation", "logistic_network_loss"]

# Labels are -1 or +1. Under a trace nothing can be raised: there a label becomes NaN when it is
# further away than any step of a difference quotient goes.
TRACED_LABEL_RANGE = 0.25


class Activation(NamedTuple):
    """An elementwise activation and its slope, both functions of the pre-activation z."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]


ACTIVATIONS = {
    "sigmoid": Activation(jax.nn.sigmoid, lambda z: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)),
    "tanh": Activation(jnp.tanh, lambda z: 4 * jax.nn.sigmoid(2 * z) * jax.nn.sigmoid(-2 * z)),
    "softplus": Activation(jax.nn.softplus, jax.nn.sigmoid),
    "identity": Activation(lambda z: z, jnp.ones_like),
}


def _activation(activation: str | Activation, mu: Array | None) -> Activation:
    if activation == "relu":
        return Activation(lambda z: ramp(z, mu), lambda z: slope(z, mu))
    return ACTIVATIONS[activation] if isinstance(activation, str) else activation


def _equation(
    hidden_weights, hidden_bias, output_weights, inputs, labels, mu, sample_weight,
    *, activation, reduction, block_size,
):  # fmt: skip
    z = linear_scores(hidden_weights, inputs, hidden_bias, reduction.accumulator)
    sigma = _activation(activation, mu).value

    def losses_of(z: Array) -> Array:
        return jax.nn.softplus(-labels * (sigma(z) @ output_weights))

    losses = spared(losses_of, z, dead_examples(sample_weight), inputs)
    return reduction.value(losses, sample_weight)


class _Examples(NamedTuple):
    """What a tile knows of its examples."""

    labels: Array
    scale: Array  # the cotangent of the example's loss
    dead: Array | None  # whether its weight is 0


def _tile(z, examples: _Examples, *, output_weights, activation, mu, split: Split) -> Tile:
    """f, ∂f/∂y and ∂f/∂mu of the examples of a tile; its slopes and ∂/∂w, times scale."""
    sigma, y = _activation(activation, mu), examples.labels
    z, lost = spare(examples.dead, z, lambda z: ~jnp.isfinite(z))
    s = sigma.value(z)
    output = split.over_columns(s @ output_weights)
    output, lost_too = spare(examples.dead, output, lambda output: ~jnp.isfinite(output))
    beta = -y * output
    c = jax.nn.sigmoid(beta)
    each = -c * y * examples.scale
    return Tile(
        rows=(
            split.once(jax.nn.softplus(beta)) + lost + lost_too,
            split.once(-c * output),
            -c * y * (ramp_by_mu(z, mu) @ output_weights),
        ),
        slopes=each[:, None] * (sigma.slope(z) * output_weights[None]),  # -c y (s'⊙w)
        columns=each @ s,  # -c y s
    )


def _forward(
    hidden_weights, hidden_bias, output_weights, inputs, labels, mu, sample_weight,
    *, activation, reduction, block_size, wanted,
):  # fmt: skip
    args = hidden_weights, hidden_bias, output_weights, inputs, labels, mu, sample_weight
    scale = reduction.unit_rows(inputs, sample_weight)
    walk = _plan(args, block_size)
    now = wanted if one_pass(reduction, walk) else frozenset()
    rows = True, "labels" in wanted, "mu" in wanted
    sums = _sums(args, scale, activation, walk, now, reduction.split, rows)
    return reduction.value(sums.rows[0], sample_weight), (args, sums)


def _backward(residuals, ct, *, activation, reduction, block_size, wanted):
    args, sums = residuals
    *_, inputs, _, _, sample_weight = args
    losses, by_label, by_mu = sums.rows
    dead = dead_examples(sample_weight)
    rows, factor = reduction.by_losses(ct, losses, sample_weight, inputs.dtype)
    walk = _plan(args, block_size)
    if one_pass(reduction, walk):
        sums = sums.times(factor)
    else:
        sums = _sums(args, factor * rows, activation, walk, wanted, reduction.split)
    return (
        sums.weights,  # -c y (s'⊙w) xᵀ
        sums.bias,  # -c y (s'⊙w)
        sums.columns,  # -c y s
        sums.inputs,  # -c y Wᵀ(s'⊙w)
        factor * rows * by_label,  # -c wᵀs
        factor * (rows @ finite(dead, by_mu)) if "mu" in wanted else None,
        reduction.by_sample_weight(ct, losses, sample_weight),
    )


def _plan(args, block_size) -> Plan:
    """Only the examples are walked: beta needs every hidden unit."""
    hidden_weights, _, _, inputs, *_ = args
    return plan(inputs.shape[0], hidden_weights.shape[0], block_size, rows_only=True)


FIELDS = {
    "hidden_weights": "weights",
    "hidden_bias": "bias",
    "output_weights": "columns",
    "inputs": "inputs",
}


def _sums(args, scale, activation, walk, wanted, split, rows=()) -> Sums:
    """Value and gradients with the cotangents `scale`, in one pass over the tiles."""
    hidden_weights, hidden_bias, output_weights, inputs, labels, mu, sample_weight = args
    examples = _Examples(labels, scale, dead_examples(sample_weight))

    def tile(z: Array, examples: _Examples, first: Any) -> Tile:
        return _tile(
            z, examples, output_weights=output_weights, activation=activation, mu=mu, split=split
        )

    return sum_over_tiles(
        tile, examples, hidden_weights, inputs, hidden_bias,
        plan=walk, dtype=scale.dtype, rows=rows,
        wanted=frozenset(FIELDS[name] for name in wanted if name in FIELDS),
    )  # fmt: skip


def _draw(key, batch, dtype, *, smooth):
    """Arguments for the checker: the smooth case is a smooth ReLU, the exact one the sigmoid."""
    keys = jax.random.split(key, 6)
    args = (
        jax.random.normal(keys[0], (4, 3), dtype),
        jax.random.normal(keys[1], (4,), dtype),
        jax.random.normal(keys[2], (4,), dtype),
        jax.random.normal(keys[3], (*batch, 3), dtype),
        jnp.where(jax.random.bernoulli(keys[4], 0.5, batch), 1, -1).astype(dtype),
    )
    options = {"sample_weight": jax.random.uniform(keys[5], batch, dtype, 0.5, 2.0)}
    if smooth:
        options |= {"activation": "relu", "mu": jnp.asarray(1.5, dtype)}
    return args, options


def _layout(args, *, reduction, **_):
    specs = {
        "hidden_weights": jax.P("columns"),
        "hidden_bias": jax.P("columns"),
        "output_weights": jax.P("columns"),
        "inputs": jax.P("examples"),
        "labels": jax.P("examples"),
        "sample_weight": jax.P("examples"),
    }
    return specs, reduction.spec


@public(
    Rule(_equation, _forward, _backward, ("activation", "reduction", "block_size"), _layout), _draw
)
def logistic_network_loss(
    hidden_weights: Float[ArrayLike, "hidden features"],
    hidden_bias: Float[ArrayLike, " hidden"],
    output_weights: Float[ArrayLike, " hidden"],
    inputs: Float[ArrayLike, "*batch features"],
    labels: Float[ArrayLike, "*batch"],
    *,
    activation: str | Activation = "sigmoid",
    mu: Float[ArrayLike, ""] | float | None = None,
    sample_weight: Float[ArrayLike, "*batch"] | None = None,
    reduction: str = "mean",
    block_size: int | None = None,
) -> Any:
    """Logistic loss of a network with one hidden layer.

    For an input x and a label y of -1 or +1, with z = W x + b and s = sigma(z):

        f = log(1 + exp(-y wᵀs))

    Gradient, with c = logistic(-y wᵀs) and s' = sigma'(z):

        ∂f/∂W = -c y (s'⊙w) xᵀ    ∂f/∂b = -c y (s'⊙w)    ∂f/∂w = -c y s
        ∂f/∂x = -c y Wᵀ(s'⊙w)     ∂f/∂y = -c wᵀs         ∂f/∂mu = -c y wᵀ ∂a/∂mu(z)

    and for sample weights s_i, ∂L/∂s_i = (f_i - L)/Σs under "mean", f_i otherwise. With a ReLU the
    slope at a tie, z = 0, is 1, and second derivatives take it as constant on either side.

    With `mu` the ReLU is a(z) = z (1 + tanh(mu z))/2, which tends to max(0, z) as mu grows: it
    differs by at most 0.13924/mu, so f by at most ‖w‖₁ 0.13924/mu.

    Args:
        hidden_weights: W, (hidden, features).
        hidden_bias: b, (hidden,).
        output_weights: w, (hidden,).
        inputs: x, (*batch, features), or (features,) for one example.
        labels: y, (*batch,), -1 or +1, real or integer.
        activation: sigma: "sigmoid" (default), "tanh", "relu", "softplus", "identity", or an
            `Activation(value, slope)`, whose parts must be functions of one array, hashable.
        mu: sharpness of a smooth ReLU, > 0; None (default) for the exact one. Only with "relu".
        sample_weight: (*batch,), >= 0; an example of weight 0 adds nothing, even if it holds NaN.
        reduction: "mean" (default; divides by the sum of the sample weights), "sum" or "none".
        block_size: how many examples are taken at a time; None (default) chooses by the device's
            cache or memory.

    Returns:
        A scalar, or (*batch,) for reduction "none", in the promoted dtype of the float arguments;
        half precision is summed in float32.

    Raises:
        ValueError: a shape, range or name is wrong, or a label is not -1 or +1. While labels are
            traced, an example whose label is further than 0.25 from both is NaN instead.
        TypeError: a dtype is wrong.

    Cost: one matrix product for the value and one for each of ∂W and ∂x that is asked for (one more
    under "none"), in the memory of one block of hidden units.

    Example:
        >>> W, b, w = jnp.array([[1.0, -1.0]]), jnp.array([0.0]), jnp.array([2.0])
        >>> x, y = jnp.array([3.0, 3.0]), jnp.array(1.0)
        >>> value, gradient = jax.value_and_grad(logistic_network_loss, argnums=2)(W, b, w, x, y)
        >>> print(f"{value:.4f} {gradient[0]:.4f}")
        0.3133 -0.1345

    References:
        Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning", 2009, section 11.4
        (back-propagation) with the loss of section 10.5 (binomial deviance).
    """
    axes = Axes()
    hidden_weights = axes.real("hidden_weights", hidden_weights, "hidden features")
    hidden_bias = axes.real("hidden_bias", hidden_bias, "hidden")
    output_weights = axes.real("output_weights", output_weights, "hidden")
    inputs = axes.real("inputs", inputs, "*batch features")
    labels = axes.number("labels", labels, "*batch", " (labels are -1 or +1)")
    if not isinstance(activation, Activation):
        names = (*ACTIVATIONS, "relu")
        known = isinstance(activation, str) and activation in names
        expected = f"one of {', '.join(map(repr, names))} or an Activation"
        require(known, "activation", expected, repr(activation))
    if mu is not None:
        relu = isinstance(activation, str) and activation == "relu"
        require(relu, "mu", "None unless the activation is 'relu'", f"activation {activation!r}")
        mu = axes.scalar("mu", mu, above=0)
    if sample_weight is not None:
        sample_weight = axes.nonnegative("sample_weight", sample_weight, "*batch")
    check_block_size(block_size)
    rest = hidden_bias, output_weights, labels, mu, sample_weight
    over = Reduction.of(reduction, axes, hidden_weights, inputs, *rest)
    labels = _checked_labels(labels, sample_weight)
    if sample_weight is not None:
        sample_weight, inputs, labels = drop_dead(sample_weight, inputs, labels)
    inputs, labels, sample_weight = axes.flatten(inputs, labels, sample_weight)
    hidden_weights, inputs = promoted(common_dtype(hidden_weights, inputs), hidden_weights, inputs)
    hidden_bias, output_weights, labels, sample_weight = promoted(
        over.accumulator, hidden_bias, output_weights, labels, sample_weight
    )
    (mu,) = rounded(over.accumulator, limits=True, mu=mu)
    args = hidden_weights, hidden_bias, output_weights, inputs, labels, mu, sample_weight
    return args, {"activation": activation, "reduction": over, "block_size": block_size}


def _checked_labels(labels: Array, sample_weight: Array | None) -> Array:
    numbers, weights = concrete(labels), concrete(sample_weight)
    if numbers is not None and (sample_weight is None or weights is not None):
        wrong = np.abs(numbers.astype(np.float32)) != 1
        wrong &= True if weights is None else weights != 0
        binary = np.all((numbers == 0) | (numbers == 1))
        hint = " (2 * labels - 1 is -1 or +1 for labels of 0 and 1)" if binary else ""
        require(not wrong.any(), "labels", "-1 or +1", f"{numbers[wrong][:1].tolist()}{hint}")
        return labels
    near = jnp.abs(jnp.abs(labels) - 1) <= TRACED_LABEL_RANGE
    if sample_weight is not None:
        near |= sample_weight == 0
    return labels * jnp.where(near, 1.0, jnp.nan)
