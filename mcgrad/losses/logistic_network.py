"""The logistic loss of a network with one hidden layer.

For an input x (features,) and a label y of -1 or +1, with z = W x + b, s = sigma(z) and
beta = -y (wᵀs + o):

    f = log(1 + exp(beta)) = softplus(beta)        c = logistic(beta)

    ∂f/∂W = -c y (s'⊙w) xᵀ     ∂f/∂b = -c y (s'⊙w)     ∂f/∂w = -c y s     ∂f/∂o = -c y
    ∂f/∂x = -c y Wᵀ(s'⊙w)      ∂f/∂y = -c (wᵀs + o)    ∂f/∂mu = -c y wᵀ(∂a/∂mu)(z)

The scores of this loss are z, its columns the hidden units; with the penalty l2 (‖W‖² + ‖w‖²).
W is (hidden, features), b and w (hidden,), o a number, s' = sigma'(z). The literal exp(-f)
exp(beta), in place of the logistic function, overflows from |beta| of about 89 on in float32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcgrad._arguments import (
    BATCH,
    BLOCK_SIZE,
    L2,
    MU,
    REDUCTION,
    SAMPLE_WEIGHT,
    Argument,
    Arguments,
    Call,
    Option,
    Real,
    Scalar,
    is_kind,
    nan_unless,
    require_floating,
)
from mcgrad._arrays import Array, ArrayLike, Float, as_array, concrete, require
from mcgrad._merge import Sum
from mcgrad._modes import public
from mcgrad._ramp import ramp, ramp_by_mu, slope
from mcgrad.losses._linear import linear_rule
from mcgrad.losses._scores import ScoreLoss, Tile

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


@dataclasses.dataclass(frozen=True)
class _LogisticNetwork(ScoreLoss):
    slopes_need_state = True
    example_arguments = ("labels",)
    column_arguments = ("output_weights",)
    scalar_arguments = ("mu",)

    output_bias: Array | None
    mu: Array | None
    activation: str | Activation

    def equation(self, scores, data) -> Array:
        """f = softplus(-y (wᵀ sigma(z) + o)), where the scores are z"""
        output = self._sigma.value(scores) @ data["output_weights"]
        return jax.nn.softplus(-data["labels"] * self._biased(output))

    def kinds(self, needs):
        return {"output": Sum}

    def state(self, tile: Tile):
        w = tile.columns["output_weights"]
        return {"output": tile.sum(self._sigma.value(tile.scores) * w[None])}  # wᵀs

    def value(self, state, examples) -> Array:
        return jax.nn.softplus(-examples["labels"] * self._biased(state["output"].value))

    def slopes(self, tile: Tile, state) -> Array:
        """-c y (s'⊙w)"""
        w = tile.columns["output_weights"]
        each = self._by_output(state, tile.examples)
        return each[:, None] * (self._sigma.slope(tile.scores) * w[None])

    def partials(self, state, examples):
        by_output = self._by_output(state, examples)
        output = self._biased(state["output"].value)
        c = jax.nn.sigmoid(-examples["labels"] * output)
        return {"output_bias": by_output, "labels": -c * output}  # -c y, -c (wᵀs + o)

    def tile_partials(self, tile: Tile, state):
        each = self._by_output(state, tile.examples)
        partials = {"output_weights": each[:, None] * self._sigma.value(tile.scores)}  # -c y s
        if self.mu is not None:
            by_mu = ramp_by_mu(tile.scores, self.mu) * tile.columns["output_weights"][None]
            partials["mu"] = each * tile.sum(by_mu).value
        return partials

    def _by_output(self, state, examples) -> Array:
        """-c y, with c = logistic(-y (wᵀs + o))"""
        y = examples["labels"]
        return -jax.nn.sigmoid(-y * self._biased(state["output"].value)) * y

    def _biased(self, output: Array) -> Array:
        return output if self.output_bias is None else output + self.output_bias

    @property
    def _sigma(self) -> Activation:
        return _activation(self.activation, self.mu)


def _example_args(key, batch, dtype, *, smooth):
    """Arguments for the checker: the smooth case is a smooth ReLU, the exact one the sigmoid."""
    keys = jax.random.split(key, 6)
    args = (
        jax.random.normal(keys[0], (4, 3), dtype),
        jax.random.normal(keys[1], (4,), dtype),
        jax.random.normal(keys[2], (4,), dtype),
        jax.random.normal(keys[3], (*batch, 3), dtype),
        jnp.where(jax.random.bernoulli(keys[4], 0.5, batch), 1, -1).astype(dtype),
    )
    options = {
        "output_bias": jnp.asarray(0.25, dtype),
        "l2": jnp.asarray(0.1, dtype),
        "sample_weight": jax.random.uniform(keys[5], batch, dtype, 0.5, 2.0),
    }
    if smooth:
        options |= {"activation": "relu", "mu": jnp.asarray(1.5, dtype)}
    return args, options


@dataclasses.dataclass(frozen=True)
class _Signs(Argument):
    """Labels, -1 or +1."""

    axes: str = BATCH

    kind = "real or integer"

    @property
    def range(self) -> str:
        return "-1 or +1"

    def check(self, name: str, x: Any, call: Call) -> Any:
        x = as_array(name, x)
        if not is_kind(x, jnp.integer):
            require_floating(name, x, " (labels are -1 or +1)")
        return call.bind(name, x, self.names)

    def check_with_others(self, name: str, x: Any, call: Call) -> Any:
        weight = call.given["sample_weight"]
        numbers, weights = concrete(x), concrete(weight)
        if numbers is None or (weight is not None and weights is None):
            call.unseen.append(name)
            return x
        numbers = numbers.astype(np.float32)
        wrong = np.abs(numbers) != 1
        wrong &= True if weights is None else weights != 0
        binary = np.all((numbers == 0) | (numbers == 1))
        hint = " (2 * labels - 1 is -1 or +1 for labels of 0 and 1)" if binary else ""
        require(not wrong.any(), name, self.range, f"{numbers[wrong][:1].tolist()}{hint}")
        return x

    def judged(self, x: Array, given: dict[str, Any]) -> Array:
        near = jnp.abs(jnp.abs(x) - 1) <= TRACED_LABEL_RANGE
        if given["sample_weight"] is not None:
            near |= given["sample_weight"] == 0
        return x * nan_unless(near)


@dataclasses.dataclass(frozen=True)
class _ActivationOption(Option):
    """The name of an activation, or one of the user's own."""

    def check(self, name: str, value: Any, call: Call) -> Any:
        names = (*ACTIVATIONS, "relu")
        known = isinstance(value, Activation) or (isinstance(value, str) and value in names)
        expected = f"one of {', '.join(map(repr, names))} or an Activation"
        require(known, name, expected, repr(value))
        return value


def _mu_is_of_a_relu(given: dict[str, Any]) -> None:
    activation = given["activation"]
    held = given["mu"] is None or (isinstance(activation, str) and activation == "relu")
    expected = "None unless the activation is 'relu'"
    require(held, "mu", expected, f"activation {activation!r}")


_linear = linear_rule(
    _LogisticNetwork,
    Arguments(
        "hidden",
        rules=_mu_is_of_a_relu,
        hidden_weights=Real("hidden features", "products"),
        hidden_bias=Real("hidden"),
        output_weights=Real("hidden"),
        inputs=Real("*batch features", "products"),
        labels=_Signs(),
        activation=_ActivationOption(),
        mu=MU,
        output_bias=Scalar(optional=True),
        l2=L2,
        sample_weight=SAMPLE_WEIGHT,
        reduction=REDUCTION,
        block_size=BLOCK_SIZE,
    ),
    weights="hidden_weights",
    bias="hidden_bias",
    penalised=("hidden_weights", "output_weights"),
)


@public(_linear, _example_args)
def logistic_network_loss(
    hidden_weights: Float[ArrayLike, "hidden features"],
    hidden_bias: Float[ArrayLike, " hidden"],
    output_weights: Float[ArrayLike, " hidden"],
    inputs: Float[ArrayLike, "*batch features"],
    labels: Float[ArrayLike, "*batch"],
    *,
    activation: str | Activation = "sigmoid",
    mu: Float[ArrayLike, ""] | float | None = None,
    output_bias: Float[ArrayLike, ""] | float | None = None,
    l2: Float[ArrayLike, ""] | float = 0.0,
    sample_weight: Float[ArrayLike, "*batch"] | None = None,
    reduction: str = "mean",
    block_size: int | None = None,
) -> Array:
    """Logistic loss of a network with one hidden layer.

    For an input x and a label y of -1 or +1, with z = W x + b and s = sigma(z):

        f = log(1 + exp(-y (wᵀs + o))) + l2 (‖W‖² + ‖w‖²)

    Gradient, with c = logistic(-y (wᵀs + o)) and s' = sigma'(z):

        ∂f/∂W = -c y (s'⊙w) xᵀ + 2 l2 W    ∂f/∂b = -c y (s'⊙w)     ∂f/∂w = -c y s + 2 l2 w
        ∂f/∂x = -c y Wᵀ(s'⊙w)              ∂f/∂y = -c (wᵀs + o)    ∂f/∂o = -c y
        ∂f/∂mu = -c y wᵀ ∂a/∂mu(z)         ∂f/∂l2 = ‖W‖² + ‖w‖²

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
        output_bias: o, a number added to the output, not penalised. Default: none.
        l2: penalty on both weights, >= 0. Part of every example's loss: it counts once under
            "mean". Default 0.
        sample_weight: (*batch,), >= 0; an example of weight 0 adds nothing, even if it holds NaN.
        reduction: "mean" (default; divides by the sum of the sample weights), "sum" or "none".
        block_size: how many examples, or hidden units if there are more of those, are taken at a
            time; None (default) chooses by the device's cache or memory.

    Returns:
        A scalar, or (*batch,) for reduction "none", in the promoted dtype of the float arguments;
        half precision is summed in float32.

    Raises:
        ValueError: a shape, range or name is wrong, or a label is not -1 or +1. While labels are
            traced, an example whose label is further than 0.25 from both is NaN instead.
        TypeError: a dtype is wrong.

    Cost: one matrix product for the value and one for each of ∂W and ∂x that is asked for (one more
    under "none", or where blocks of hidden units are taken), in the memory of one block.

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
    return _linear(
        hidden_weights, hidden_bias, output_weights, inputs, labels, activation, mu, output_bias,
        l2, sample_weight, reduction, block_size,
    )  # fmt: skip
