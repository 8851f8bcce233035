"""Problems whose answers are known without mcgrad, in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

import mcgrad

EXAMPLES, FEATURES, OUTPUTS, HIDDEN = 30, 4, 3, 5
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(EXAMPLES, FEATURES))
TARGETS = RNG.normal(size=(EXAMPLES, OUTPUTS))
LABELS = RNG.integers(0, OUTPUTS, EXAMPLES)
SIGNS = RNG.choice([-1.0, 1.0], EXAMPLES)
LAYER = RNG.normal(size=(HIDDEN, FEATURES)), RNG.normal(size=HIDDEN)
LIMITS = RNG.normal(size=EXAMPLES)

# The least squares fit, and targets that it meets exactly.
LSTSQ = np.linalg.lstsq(INPUTS, TARGETS)[0].T
FITTED = INPUTS @ LSTSQ.T


def as_it_is(loss):
    return loss


class Problem(NamedTuple):
    """A loss as somebody would minimise it, and the same equation without mcgrad."""

    name: str
    value: Callable[..., Any]  # (face, params, strength)
    equation: Callable[..., Any]  # (params, strength)
    shape: tuple[int, ...]
    strength: float

    def __str__(self):
        return self.name

    @property
    def start(self):
        return jnp.zeros(self.shape)

    def objective(self, face=as_it_is):
        """params -> value, with this face of the loss."""
        return lambda params: self.value(face, params, self.strength)

    def minimum(self, strength=None):
        """What SciPy finds with the Hessian that JAX derives from the equation."""
        strength = self.strength if strength is None else strength

        def flat(params):
            return self.equation(params.reshape(self.shape), strength)

        hessian = jax.jit(jax.hessian(flat))
        found = minimize(
            jax.jit(jax.value_and_grad(flat)),
            np.zeros(np.prod(self.shape)),
            jac=True,
            hess=hessian,
            method="trust-exact",
            options={"gtol": 1e-12},
        ).x
        # The trust region shrinks when the value no longer falls, which is before the slope is
        # zero: two steps of Newton's method go the rest of the way.
        for _ in range(2):
            found = found - np.linalg.solve(hessian(found), jax.grad(flat)(found))
        return found.reshape(self.shape)

    def slope(self, step=1e-4):
        """d minimum / d strength, by central differences."""
        ahead, behind = (self.minimum(self.strength + s) for s in (step, -step))
        return (ahead - behind) / (2 * step)


def wrong(values):
    """Those of the classes that are not the example's own, the others 0."""
    return jnp.where(LABELS[:, None] != np.arange(OUTPUTS), values, 0)


def margins(weights):
    """s_j - s_t + 1 for every example and class."""
    scores = INPUTS @ weights.T
    return scores - scores[np.arange(EXAMPLES), LABELS][:, None] + 1


def _fit(face, weights, scale):
    return face(mcgrad.linear_least_squares_loss)(weights, INPUTS, scale * TARGETS)


def _fit_equation(weights, scale):
    return jnp.sum((INPUTS @ weights.T - scale * TARGETS) ** 2) / EXAMPLES


def _squared_hinge(face, weights, l2):
    return face(mcgrad.linear_weston_watkins_loss)(weights, INPUTS, LABELS, power=2, l2=l2)


def _squared_hinge_equation(weights, l2):
    terms = wrong(jnp.maximum(margins(weights), 0) ** 2)
    return jnp.sum(terms) / EXAMPLES + l2 * jnp.sum(weights**2)


def _smooth_hinge(face, weights, mu):
    return face(mcgrad.linear_weston_watkins_loss)(weights, INPUTS, LABELS, mu=mu, l2=0.1)


def _smooth_hinge_equation(weights, mu):
    b = margins(weights)
    terms = wrong(b * (1 + jnp.tanh(mu * b)) / 2)
    return jnp.sum(terms) / EXAMPLES + 0.1 * jnp.sum(weights**2)


def _output_layer(face, output_weights, ridge):
    """The hidden layer stays as it is: what remains is convex."""
    data = face(mcgrad.logistic_network_loss)(*LAYER, output_weights, INPUTS, SIGNS)
    return data + ridge * jnp.sum(output_weights**2)


def _output_layer_equation(output_weights, ridge):
    hidden = 1 / (1 + np.exp(-(INPUTS @ LAYER[0].T + LAYER[1])))
    losses = jnp.log(1 + jnp.exp(-SIGNS * (hidden @ output_weights)))
    return jnp.mean(losses) + ridge * jnp.sum(output_weights**2)


def _constraints(face, point, ridge):
    """As near to the origin as inputs @ point <= limits lets it, by a quadratic penalty."""
    return face(mcgrad.squared_relu_norm)(INPUTS @ point - LIMITS) + ridge * jnp.sum(point**2)


def _constraints_equation(point, ridge):
    return jnp.sum(jnp.maximum(INPUTS @ point - LIMITS, 0) ** 2) + ridge * jnp.sum(point**2)


LEAST_SQUARES = Problem("least squares", _fit, _fit_equation, (OUTPUTS, FEATURES), 1.0)
SQUARED_HINGE = Problem(
    "squared hinge", _squared_hinge, _squared_hinge_equation, (OUTPUTS, FEATURES), 0.1
)
SMOOTH_HINGE = Problem(
    "smooth hinge", _smooth_hinge, _smooth_hinge_equation, (OUTPUTS, FEATURES), 4.0
)
PROBLEMS = [
    LEAST_SQUARES,
    SQUARED_HINGE,
    SMOOTH_HINGE,
    Problem("output layer", _output_layer, _output_layer_equation, (HIDDEN,), 0.1),
    Problem("constraints", _constraints, _constraints_equation, (FEATURES,), 0.5),
]


# Residuals: what a solver for least squares is handed. It minimises the sum of their squares.


def _residual(weights):
    return (INPUTS @ weights.T - TARGETS).ravel()


def _residual_forward(weights):
    return _residual(weights), None


def _residual_backward(_, ct):
    return (ct.reshape(TARGETS.shape).T @ INPUTS,)


def _ramps(weights, l2):
    """Their squares sum to the squared hinge, the penalty with it, times the examples."""
    terms = wrong(jnp.maximum(margins(weights), 0))
    return jnp.concatenate([terms.ravel(), jnp.sqrt(EXAMPLES * l2) * weights.ravel()])


def _ramps_forward(weights, l2):
    return _ramps(weights, l2), (weights, l2)


def _ramps_backward(saved, ct):
    weights, l2 = saved
    own, penalty = ct[: -weights.size].reshape(TARGETS.shape), ct[-weights.size :]
    g = wrong(jnp.where(margins(weights) < 0, 0, own))
    h = g - jax.nn.one_hot(LABELS, OUTPUTS) * jnp.sum(g, 1, keepdims=True)
    root = jnp.sqrt(EXAMPLES * l2)
    by_weights = h.T @ INPUTS + root * penalty.reshape(weights.shape)
    return by_weights, EXAMPLES / (2 * root) * (penalty @ weights.ravel())


residual = mcgrad.pair(_residual, _residual_forward, _residual_backward)
ramps = mcgrad.pair(_ramps, _ramps_forward, _ramps_backward)


def _each_example(face, weights):
    """‖r_i‖² of examples that can all be met: at their minimum, zero, the slope is zero as well."""
    return face(mcgrad.linear_least_squares_loss)(weights, INPUTS, FITTED, reduction="none")


class Residual(NamedTuple):
    """A vector function of the weights, and where its norm is least."""

    name: str
    value: Callable[..., Any]  # (face, weights)
    solution: Callable[[], np.ndarray]

    def __str__(self):
        return self.name


RESIDUALS = [
    Residual("pair(residual)", lambda face, w: face(residual)(w), lambda: LSTSQ),
    Residual("pair(ramps)", lambda face, w: face(ramps)(w, 0.1), SQUARED_HINGE.minimum),
    Residual("losses of the examples", _each_example, lambda: LSTSQ),
]


# What a solver leaves of the distance to the minimum.
CLOSE = 1e-6
# What central differences leave: their step is a thousandth of the strength, or less.
SLOPE_CLOSE = 1e-5
REFUSED = "can't apply forward-mode autodiff"


def relative_error(got, expected):
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
