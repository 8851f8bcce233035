"""Value and every gradient against the 50-digit oracle, in float64 and float32.

The error of a result is the norm of the difference over all its entries. It may be at most 8 eps
times the condition factor times the norm of the result. That product of the last two is the norm of
the error bounds that `oracle.Rounded` carries through the formulas of each loss, in units of eps:

- Weston-Watkins: a score, sum_k |W_jk x_k| + |bias_j| counted twice (products and sum); a margin
  violation, the two scores and the margin in absolute value; a smooth slope, that of its argument
  times the second derivative, plus the absolute values of its two terms;
- squared norm of a ReLU: one for each product, as the terms are positive; smooth as above;
- task covariance: the running bounds of the Cholesky factor and the two triangular solves, which
  grow with the condition number of Omega, then one for each product;
- least squares: a residual, sum_k |W_jk u_k| + |v_j| + |bias_j|; from moments, the absolute terms
  of W:(WM - 2C) + kappa, which is large when the fit is good;
- logistic network: the bound of beta times softplus' or logistic', plus the function itself.

Eight because a sum of n terms errs by at most (n - 1)/2 eps of the sum of their absolute values and
no sum here has more than 17 terms. Results below the smallest normal number may be flushed to zero.
Where the result is beyond the largest number nothing finite may be returned (its terms may overflow
with both signs, so it may be NaN).

The error is also at most twice that of autodiff of the plain equation on the same inputs. Either
error of one draw is down to luck, so the root mean square over the draws of a case is compared,
each divided by its condition; autodiff is not held to less than the eps/2 of one rounding.
"""

import functools
from dataclasses import dataclass, field

import jax
import numpy as np
import oracle
import pytest
from oracle import mp

import mcgrad
from tests.conftest import precision

DRAWS = 24
POSITIVE = {"margin", "l2", "mu", "class_weight", "sample_weight", "ridge", "coupling"}
# Options that change how a loss is computed or laid out, and not its numbers.
LAYOUT = {"axis", "block_size"}
# The number of axes of one example, for the arguments that have a row per example.
PER_EXAMPLE = {"inputs": 1, "scores": 1, "targets": 1, "labels": 0, "sample_weight": 0}


@dataclass(frozen=True)
class Case:
    """A loss with the shapes and magnitudes of its arguments."""

    loss: str
    shapes: dict
    static: dict = field(default_factory=dict)
    # Name of a set of magnitudes -> scale of an argument, or a function that draws it. An argument
    # that is not named has scale 1.
    magnitudes: dict = field(default_factory=dict)


CLASSES = 5
LINEAR = {
    "weights": (CLASSES, 3),
    "inputs": (4, 3),
    "labels": (4,),
    "margin": (),
    "l2": (),
    "bias": (CLASSES,),
}
SCORES = {"scores": (4, CLASSES), "labels": (4,), "margin": ()}
WEIGHTED = {"class_weight": (CLASSES,), "sample_weight": (4,)}
SMOOTH = {"mu": ()}
PENALTY = {"weights": (4, 3), "ridge": (), "coupling": ()}
SQUARES = {"weights": (3, 3), "inputs": (4, 3), "targets": (4, 3)}
NETWORK = {
    "hidden_weights": (4, 3),
    "hidden_bias": (4,),
    "output_weights": (4,),
    "inputs": (4, 3),
    "labels": (4,),
}


def between(low, high):
    return lambda rng, shape: rng.uniform(low, high, shape)


def satisfied(rng, shape):
    """Scores below -6 but for one, so that its label would violate nothing."""
    return rng.uniform(-12, -6, shape)


def nearly_overflowing(rng, shape):
    """Squares that add up to 3e38, just below the largest float32."""
    return 1.7e19 * np.eye(*shape)[::-1] * (np.arange(shape[0])[:, None] == 0)


SCORE_MAGNITUDES = {
    "large": {"scores": 1e30, "margin": 1e30},
    "tiny": {"scores": 1e-30, "margin": 1e-30},
    "large scores, margin 1": {"scores": 1e30},
}
LINEAR_MAGNITUDES = {
    "huge weights, tiny inputs": {"weights": 1e30, "inputs": 1e-30, "l2": 1e-35, "bias": 1},
    "tiny weights, huge inputs": {"weights": 1e-30, "inputs": 1e30},
    "large scores": {"weights": 1e15, "inputs": 1e15, "bias": 1e30, "margin": 1e30, "l2": 1e-5},
    "tiny scores": {"weights": 1e-15, "inputs": 1e-15, "bias": 1e-30, "margin": 1e-30},
    "tiny l2, huge weights": {"weights": 1e27, "inputs": 1e-27, "l2": 1e-35},
}

CASES = {
    "linear": Case("linear_weston_watkins_loss", LINEAR, {}, LINEAR_MAGNITUDES),
    "linear, smooth": Case(
        "linear_weston_watkins_loss",
        LINEAR | SMOOTH,
        {},
        {
            "huge weights, tiny inputs": LINEAR_MAGNITUDES["huge weights, tiny inputs"],
            "large scores, small mu": LINEAR_MAGNITUDES["large scores"] | {"mu": 1e-30},
            "large scores, large mu": LINEAR_MAGNITUDES["large scores"] | {"mu": 1e30},
            "tiny scores, large mu": LINEAR_MAGNITUDES["tiny scores"] | {"mu": 1e30},
        },
    ),
    "linear, power 2, weighted": Case(
        "linear_weston_watkins_loss",
        LINEAR | WEIGHTED,
        {"power": 2},
        {
            "large": {"weights": 1e9, "inputs": 1e9, "bias": 1e18, "margin": 1e18},
            "tiny": {"weights": 1e-9, "inputs": 1e-9, "bias": 1e-18, "margin": 1e-18},
        },
    ),
    "linear, sum, smooth, power 2, weighted": Case(
        "linear_weston_watkins_loss",
        LINEAR | WEIGHTED | SMOOTH,
        {"power": 2, "reduction": "sum"},
        {"large": {"weights": 1e6, "inputs": 1e6, "bias": 1e12, "margin": 1e12, "mu": 1e-12}},
    ),
    "linear, none, weighted, blocks of classes": Case(
        "linear_weston_watkins_loss",
        LINEAR | WEIGHTED,
        {"reduction": "none", "block_size": 2},
    ),
    "linear, one example": Case(
        "linear_weston_watkins_loss", LINEAR | {"inputs": (3,), "labels": ()}
    ),
    "linear, two batch axes, smooth, blocks of examples": Case(
        "linear_weston_watkins_loss",
        LINEAR | SMOOTH | {"inputs": (2, 3, 3), "labels": (2, 3)},
        {"block_size": 4},
    ),
    "scores": Case("weston_watkins_loss", SCORES, {}, SCORE_MAGNITUDES),
    "scores, smooth": Case(
        "weston_watkins_loss",
        SCORES | SMOOTH,
        {},
        {
            "large, small mu": SCORE_MAGNITUDES["large"] | {"mu": 1e-30},
            "large, large mu": SCORE_MAGNITUDES["large"] | {"mu": 1e30},
            "tiny, large mu": SCORE_MAGNITUDES["tiny"] | {"mu": 1e30},
        },
    ),
    "scores, mean, weighted": Case(
        "weston_watkins_loss",
        SCORES | WEIGHTED,
        {},
        {"huge sample weights": {"sample_weight": 1e30, "scores": 1e10}},
    ),
    "scores, sum, power 2": Case(
        "weston_watkins_loss",
        SCORES,
        {"power": 2, "reduction": "sum"},
        {"large": {"scores": 1e18}, "tiny": {"scores": 1e-18, "margin": 1e-18}},
    ),
    "scores, none, smooth, weighted": Case(
        "weston_watkins_loss", SCORES | WEIGHTED | SMOOTH, {"reduction": "none"}
    ),
    "squared ReLU": Case(
        "squared_relu_norm",
        {"x": (3, 5)},
        {},
        {
            "large": {"x": 1e18},
            "tiny": {"x": 1e-18},
            "nearly overflowing": {"x": nearly_overflowing},
        },
    ),
    "squared ReLU, smooth": Case(
        "squared_relu_norm",
        {"x": (3, 5)} | SMOOTH,
        {},
        {
            "large": {"x": 1e18, "mu": 1e-18},
            "tiny": {"x": 1e-18, "mu": 1e18},
            "overflowing mu x": {"x": 1e18, "mu": 1e30},
            "all negative": {"x": satisfied},
        },
    ),
    "squared ReLU, rows, masked, smooth": Case(
        "squared_relu_norm", {"x": (3, 5), "where": (3, 5)} | SMOOTH, {"axis": -1}
    ),
    "task covariance": Case(
        "task_covariance_penalty",
        PENALTY | {"covariance": (3, 3)},
        {},
        {
            "large": {"weights": 1e25, "covariance": 1e30, "ridge": 1e-30},
            "tiny": {"weights": 1e-20, "covariance": 1e-30},
        },
    ),
    "task covariance, diagonal": Case(
        "task_covariance_penalty",
        PENALTY | {"covariance": (3,)},
        {},
        {
            "large": {"weights": 1e25, "covariance": between(1e30, 2e30), "ridge": 1e-30},
            "tiny": {"weights": 1e-20, "covariance": between(1e-30, 2e-30)},
        },
    ),
    "least squares": Case(
        "linear_least_squares_loss",
        SQUARES | {"bias": (3,), "sample_weight": (4,)},
        {},
        {
            "huge weights, tiny inputs": {"weights": 1e30, "inputs": 1e-30},
            "large": {"weights": 1e9, "inputs": 1e9, "targets": 1e18, "bias": 1e18},
            "tiny": {"weights": 1e-9, "inputs": 1e-9, "targets": 1e-18, "bias": 1e-18},
            "huge sample weights": {"sample_weight": 1e30, "targets": 1e5},
        },
    ),
    "least squares, sum": Case("linear_least_squares_loss", SQUARES, {"reduction": "sum"}),
    "least squares, none, blocks": Case(
        "linear_least_squares_loss",
        SQUARES | {"sample_weight": (4,)},
        {"reduction": "none", "block_size": 3},
    ),
    "moments": Case(
        "moment_least_squares_loss",
        SQUARES | {"sample_weight": (4,)},
        {},
        {
            "huge weights, tiny inputs": {"weights": 1e15, "inputs": 1e-15},
            "large": {"weights": 1e9, "inputs": 1e9, "targets": 1e18},
        },
    ),
    "moments, sum": Case("moment_least_squares_loss", SQUARES, {"reduction": "sum"}),
    "network": Case(
        "logistic_network_loss",
        NETWORK | {"sample_weight": (4,)},
        {},
        {
            "beta of 1e30": {"output_weights": 1e30},
            "beta of 100": {"output_weights": 100},
            "huge weights, tiny inputs": {"hidden_weights": 1e30, "inputs": 1e-30},
            "saturated": {"hidden_bias": between(10, 14)},
        },
    ),
    "network, tanh, sum, blocks": Case(
        "logistic_network_loss",
        NETWORK,
        {"activation": "tanh", "reduction": "sum", "block_size": 3},
        {"saturated": {"hidden_bias": between(6, 9)}},
    ),
    "network, softplus": Case("logistic_network_loss", NETWORK, {"activation": "softplus"}),
    "network, penalised": Case(
        "logistic_network_loss",
        NETWORK | {"output_bias": (), "l2": (), "sample_weight": (4,)},
        {},
        {"tiny l2, huge weights": {"hidden_weights": 1e27, "inputs": 1e-27, "l2": 1e-35}},
    ),
    "network, penalised, sum, blocks of hidden units": Case(
        "logistic_network_loss",
        NETWORK
        | {
            "output_bias": (),
            "l2": (),
            "hidden_weights": (5, 3),
            "hidden_bias": (5,),
            "output_weights": (5,),
        },
        {"activation": "tanh", "reduction": "sum", "block_size": 2},
    ),
    "network, penalised, none": Case(
        "logistic_network_loss",
        NETWORK | {"output_bias": (), "l2": (), "sample_weight": (4,)},
        {"reduction": "none"},
    ),
    "network, identity": Case(
        "logistic_network_loss",
        NETWORK,
        {"activation": "identity"},
        {"beta of 1e30": {"hidden_weights": 1e15, "hidden_bias": 1e15, "output_weights": 1e15}},
    ),
    "network, relu": Case(
        "logistic_network_loss",
        NETWORK,
        {"activation": "relu"},
        {"tiny": {"hidden_weights": 1e-30, "hidden_bias": 1e-30}},
    ),
    "network, relu, none, smooth": Case(
        "logistic_network_loss",
        NETWORK | SMOOTH,
        {"activation": "relu", "reduction": "none"},
        {"large mu": {"mu": 1e30}, "tiny mu": {"mu": 1e-30}},
    ),
    "network, one example": Case("logistic_network_loss", NETWORK | {"inputs": (3,), "labels": ()}),
}

RUNS = [(name, size) for name, case in CASES.items() for size in ["ordinary", *case.magnitudes]]


# Drawing arguments


def draw(case, magnitude, seed, dtype):
    """Float arguments, those that are not differentiated (class labels, mask), and a cotangent."""
    rng = np.random.default_rng(seed)
    scales = case.magnitudes.get(magnitude, {})

    def argument(name, shape):
        scale = scales.get(name, 1.0)
        if callable(scale):
            return scale(rng, shape)
        if name == "where":
            return rng.uniform(size=shape) < 0.7
        if name == "labels":
            network = case.loss == "logistic_network_loss"
            return rng.choice([-1.0, 1.0], shape) if network else rng.integers(CLASSES, size=shape)
        if name == "covariance":
            root = rng.normal(size=(3, 3))
            matrix = scale * (root @ root.T + np.eye(3))
            return (matrix + matrix.T) / 2 if len(shape) == 2 else matrix.diagonal()
        if name in POSITIVE:
            return scale * rng.uniform(0.5, 2.0, shape)
        return scale * rng.normal(size=shape)

    drawn = {name: np.asarray(argument(name, shape)) for name, shape in case.shapes.items()}
    floats = {name: value.astype(dtype) for name, value in drawn.items() if value.dtype.kind == "f"}
    fixed = {name: value for name, value in drawn.items() if name not in floats}
    return floats, fixed, np.asarray(rng.uniform(0.5, 2.0, output_shape(case)), dtype)


def output_shape(case):
    if case.static.get("axis") == -1:
        return case.shapes["x"][:-1]
    return (4,) if case.static.get("reduction") == "none" else ()


def as_rows(case, name, array):
    """The layout of the oracle: one axis for the examples, or for the rows of x."""
    if name in PER_EXAMPLE:
        return array.reshape(-1, *array.shape[array.ndim - PER_EXAMPLE[name] :])
    if name in ("x", "where") and "axis" not in case.static:
        return array.reshape(1, -1)
    return array


def nested(entries, number):
    if isinstance(entries, list):
        return [nested(entry, number) for entry in entries]
    return number(entries)


def flat(numbers):
    if not isinstance(numbers, list):
        return [numbers]
    return [entry for part in numbers for entry in flat(part)]


def truth(case, floats, fixed, cotangent, number):
    """Outputs and gradients of the oracle, each as a flat list."""
    arguments = {
        name: nested(as_rows(case, name, value).tolist(), number) for name, value in floats.items()
    }
    integers = {name: as_rows(case, name, value).tolist() for name, value in fixed.items()}
    options = {name: value for name, value in case.static.items() if name not in LAYOUT}
    outputs, gradients = getattr(oracle, case.loss)(
        **arguments, **integers, **options, cotangent=nested(cotangent.reshape(-1).tolist(), number)
    )
    return {"value": outputs} | {name: flat(gradients[name]) for name in floats}


# Running the library


def closed_form(loss):
    return loss


def resolve(name, transform):
    if name != "moment_least_squares_loss":
        return transform(getattr(mcgrad, name))
    loss = transform(mcgrad.moment_least_squares_loss)

    def of_data(weights, inputs, targets, sample_weight=None, **options):
        moments = mcgrad.least_squares_moments(inputs, targets, sample_weight=sample_weight)
        return loss(weights, moments, **options)

    return of_data


@functools.cache
def differentiated(name, transform):
    """The compiled value and gradients; magnitudes of one case share the compilation."""
    case = CASES[name]
    loss = functools.partial(resolve(case.loss, transform), **case.static)

    @jax.jit
    def run(floats, fixed, cotangent):
        value, pullback = jax.vjp(lambda floats: loss(**floats, **fixed), floats)
        return {"value": value} | pullback(cotangent)[0]

    return run


def distance(computed, exact, limits):
    """Norm of the error, infinite if not the same entries are finite on both sides."""
    differences = []
    for c, e in zip(computed.reshape(-1).tolist(), exact, strict=True):
        if np.isfinite(c) and abs(e) <= limits.max:
            differences.append(abs(c - e))
        else:
            differences.append(mp.inf if np.isfinite(c) or abs(e) <= limits.max else 0)
    return norm(differences)


def norm(entries):
    return mp.sqrt(mp.fsum(entry * entry for entry in entries))


def accuracy(case, run, plain, drawn, dtype):
    """For each result: the errors of the closed form, of autodiff and of a single rounding, each
    divided by the greatest that the condition of the loss allows."""
    limits = np.finfo(dtype)
    eps, tiny = mp.mpf(float(limits.eps)), mp.mpf(float(limits.tiny))
    with precision(dtype):
        computed, automatic = (jax.device_get(side(*drawn)) for side in (run, plain))
    results = {}
    for key, entries in truth(case, *drawn, oracle.Rounded).items():
        assert computed[key].dtype == dtype
        entries = [oracle.rounded(entry) for entry in entries]
        exact = [entry.value for entry in entries]
        finite = [entry for entry in entries if abs(entry.value) <= limits.max]
        underflow = tiny * mp.sqrt(len(entries))
        allowed = 8 * (eps * norm([entry.error for entry in finite]) + underflow)
        results[key] = (
            distance(computed[key], exact, limits) / allowed,
            distance(automatic[key], exact, limits) / allowed,
            (eps / 2 * norm([entry.value for entry in finite]) + underflow) / allowed,
        )
    return results


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "magnitude"), RUNS)
def test_error_is_within_the_condition_and_twice_that_of_autodiff(name, magnitude, dtype):
    case = CASES[name]
    run, plain = differentiated(name, closed_form), differentiated(name, mcgrad.plain)
    draws = [
        accuracy(case, run, plain, draw(case, magnitude, seed, dtype), dtype)
        for seed in range(DRAWS)
    ]
    for key in draws[0]:
        errors, automatic, roundings = zip(*(drawn[key] for drawn in draws), strict=True)
        assert max(errors) <= 1, f"{key}: {mp.nstr(max(errors), 3)} times what is allowed"
        ratio = norm(errors) / max(norm(automatic), norm(roundings))
        assert ratio <= 2, f"{key}: {mp.nstr(ratio, 3)} times the error of autodiff"


# Ties: at small integers every sum and product is exact, whatever the order

WHOLE = {"margin": 1.0, "l2": 0.5, "class_weight": [1, 2, 4, 1, 2], "sample_weight": [1, 2, 4, 1]}
TIES = [
    "linear",
    "linear, power 2, weighted",
    "linear, none, weighted, blocks of classes",
    "linear, one example",
    "scores",
    "scores, mean, weighted",
    "scores, sum, power 2",
    "squared ReLU",
]


def whole_draw(case, seed, dtype):
    rng = np.random.default_rng(seed)
    floats, fixed, cotangent = draw(case, "ordinary", seed, dtype)
    for key, value in floats.items():
        whole = WHOLE[key] if key in WHOLE else rng.integers(-2, 3, value.shape)
        floats[key] = np.asarray(whole, dtype)
    return floats, fixed, np.full_like(cotangent, 2.0)


def violations(floats, fixed, _):
    """What the ramps are applied to."""
    if "x" in floats:
        return floats["x"]
    scores = floats.get("scores")
    if scores is None:
        scores = floats["inputs"] @ floats["weights"].T + floats["bias"]
    labels = fixed["labels"][..., None]
    others = np.arange(scores.shape[-1]) != labels
    return (scores - np.take_along_axis(scores, labels, -1) + floats["margin"])[others]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", TIES)
def test_equal_to_the_bit_at_ties(name, dtype):
    case, run = CASES[name], differentiated(name, closed_form)
    draws = [whole_draw(case, seed, dtype) for seed in range(DRAWS)]
    assert any(np.any(violations(*drawn) == 0) for drawn in draws)
    for drawn in draws:
        with precision(dtype):
            computed = jax.device_get(run(*drawn))
        for key, exact in truth(case, *drawn, mp.mpf).items():
            assert computed[key].reshape(-1).tolist() == [float(entry) for entry in exact], key


def test_hidden_unit_at_its_kink():
    """A unit at exactly 0 has slope 1: one example and one input, so that nothing cancels."""
    floats = {
        "hidden_weights": [[2.0], [1.0]],
        "hidden_bias": [-2.0, 0.0],
        "output_weights": [1.0, 1.0],
        "inputs": [1.0],
        "labels": 1.0,
    }
    floats = {key: np.asarray(value, np.float32) for key, value in floats.items()}
    case, one = Case("logistic_network_loss", {}, {"activation": "relu"}), np.ones((), np.float32)
    gradients = jax.grad(lambda floats: mcgrad.logistic_network_loss(**floats, activation="relu"))(
        floats
    )
    exact = truth(case, floats, {}, one, mp.mpf)
    for key, gradient in gradients.items():
        expected = [float(entry) for entry in exact[key]]
        np.testing.assert_allclose(gradient.reshape(-1), expected, rtol=8 * 2.0**-23, err_msg=key)


# The oracle itself


@pytest.mark.parametrize("name", CASES)
def test_partials_of_the_oracle_are_its_numerical_derivatives(name):
    case = CASES[name]
    floats, fixed, cotangent = draw(case, "ordinary", 0, np.float64)
    exact = truth(case, floats, fixed, cotangent, mp.mpf)
    for key, value in floats.items():
        for index, partial in zip(np.ndindex(value.shape), exact[key], strict=True):

            def moved(entry, key=key, index=index):
                arguments = {other: np.asarray(array, object) for other, array in floats.items()}
                arguments[key] = arguments[key].copy()
                arguments[key][index] = entry
                values = truth(case, arguments, fixed, cotangent, mp.mpf)["value"]
                return oracle.dot(values, map(mp.mpf, cotangent.reshape(-1).tolist()))

            assert mp.almosteq(
                partial, mp.diff(moved, mp.mpf(value[index].item())), mp.mpf(10) ** -30
            ), (key, index)
