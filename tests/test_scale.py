"""Numbers at the ends of their range: what is masked, what is scaled, and what is rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcgrad
from mcgrad._ramp import ramp, ramp_by_mu
from tests.cases import assert_close, direction, inner
from tests.conftest import precision, tolerance

ROWS, DEAD = 4, 2
MODES = {"reverse": lambda f: f, "forward": mcgrad.forward_mode, "plain": mcgrad.plain}
LARGEST = float(jnp.finfo(jnp.float32).max)
PADDING = [1e30, LARGEST, jnp.nan, jnp.inf]
LINEAR, SCORES = "linear_weston_watkins_loss", "weston_watkins_loss"
SQUARES, NETWORK = "linear_least_squares_loss", "logistic_network_loss"
VARIANTS = [
    (SCORES, {}),
    (SCORES, {"power": 2}),
    (SCORES, {"power": 2, "mu": 1e-30}),
    (LINEAR, {}),
    (LINEAR, {"power": 2, "block_size": 2}),  # blocks of classes
    (LINEAR, {"block_size": 2, "rows": 6}),  # blocks of examples
    (LINEAR, {"block_size": 64, "rows": 192}),  # blocks that skip examples
    (LINEAR, {"power": 2, "mu": 2.0}),
    (LINEAR, {"power": 2, "zero": "class_weight"}),
    (SQUARES, {}),
    (SQUARES, {"block_size": 2}),
    (NETWORK, {"activation": "relu", "mu": 2.0}),
    (NETWORK, {"activation": "sigmoid", "block_size": 2}),
    *[(NETWORK, {"activation": a}) for a in ("sigmoid", "tanh", "relu", "softplus", "identity")],
]


def drawn(name, dtype=jnp.float32, rows=ROWS):
    """The arguments of a call, by name."""
    loss = mcgrad.LOSSES[name]
    args, kwargs = loss.example_args(jax.random.key(1), (rows,), dtype, smooth=False)
    names = loss.__code__.co_varnames[: len(args)]
    return dict(zip(names, args, strict=True)) | kwargs


def with_a_dead_example(name, padding, zero, rows):
    """One example of weight 0, or of a class of weight 0, whose row is padding of both signs."""
    given = drawn(name, rows=rows)
    if zero == "sample_weight":
        given[zero] = given[zero].at[DEAD].set(0.0)
    else:
        own, other = given["labels"][DEAD], (given["labels"][DEAD] + 1) % 5
        given["labels"] = jnp.where(given["labels"] == own, other, given["labels"])
        given["labels"] = given["labels"].at[DEAD].set(own)
        given[zero] = given[zero].at[own].set(0.0)
    for key in {"inputs", "scores"} & set(given):
        signs = jnp.where(jnp.arange(given[key].shape[1]) % 2 == 0, 1.0, -1.0)
        given[key] = given[key].at[DEAD].set(padding * signs)
    return given


def derivatives(loss, params, fixed, forward):
    """Value and gradients of a loss; in forward mode too where `forward`; second derivatives."""

    def total(params):
        return jnp.sum(loss(**params, **fixed))

    first = next(iter(params))
    along = {first: direction(params[first])}

    def of_first(moved):
        return total(params | moved)

    found = {
        "value and gradient": jax.value_and_grad(total)(params),
        "reverse over reverse": jax.grad(lambda m: inner(jax.grad(of_first)(m), along))(
            {first: params[first]}
        ),
    }
    moved = {first: params[first]}
    found["forward over reverse"] = jax.jvp(jax.grad(of_first), (moved,), (along,))[1]
    if forward:
        found["tangent"] = jax.jvp(of_first, (moved,), (along,))[1]
    return found


@pytest.mark.parametrize(
    "name, options", VARIANTS, ids=["-".join(map(str, (n, *o.values()))) for n, o in VARIANTS]
)
def test_a_dead_example_contributes_nothing_even_where_it_overflows(name, options):
    options = dict(options)
    zero, rows = options.pop("zero", "sample_weight"), options.pop("rows", ROWS)
    paddings = PADDING if zero == "sample_weight" else PADDING[:2]
    integers = {"labels"} if "weston" in name else set()

    @jax.jit
    def run(given):
        params = {key: x for key, x in given.items() if key not in integers}
        return {
            (mode, reduction): derivatives(
                turn(mcgrad.LOSSES[name]),
                params,
                options | {key: given[key] for key in integers} | {"reduction": reduction},
                mode != "reverse",
            )
            for mode, turn in MODES.items()
            for reduction in ("mean", "none")
        }

    expected = run(with_a_dead_example(name, 1.0, zero, rows))
    for padding in paddings:
        got = run(with_a_dead_example(name, padding, zero, rows))
        for key, results in got.items():
            others = expected[key]
            for derivative, result in results.items():
                other = others[derivative]
                if derivative == "value and gradient":
                    # The weight that is 0 has a derivative of its own.
                    result, other = (
                        (value, {k: g for k, g in gradient.items() if k != zero})
                        for value, gradient in (result, other)
                    )
                    own = [result[1][k][DEAD] for k in ("inputs", "scores") if k in result[1]]
                    assert not np.any(own), (padding, key)
                try:
                    assert_close(result, other, tolerance(jnp.float32, 128))
                except AssertionError as error:
                    raise AssertionError((padding, key, derivative)) from error


@pytest.mark.parametrize("turn", MODES.values(), ids=MODES)
@pytest.mark.parametrize("padding", [1e30, LARGEST / 1024])
@pytest.mark.parametrize("name", [SCORES, LINEAR])
def test_the_weight_of_a_dead_example_has_its_derivative_where_that_is_finite(name, padding, turn):
    """(f - L)/Σs, with f in float64."""
    given = with_a_dead_example(name, padding, "sample_weight", ROWS)
    s = given.pop("sample_weight")
    got = jax.grad(lambda s: turn(mcgrad.LOSSES[name])(**given, sample_weight=s))(s)
    with precision(jnp.float64):
        wide = {key: np.asarray(x, np.float64) for key, x in given.items() if key != "labels"}
        wide["labels"] = np.asarray(given["labels"])
        losses = np.asarray(mcgrad.plain(mcgrad.LOSSES[name])(**wide, reduction="none"))
    weights = np.asarray(s, np.float64)
    expected = (losses - weights @ losses / weights.sum()) / weights.sum()
    near = tolerance(jnp.float32, 64)
    np.testing.assert_allclose(got, expected, rtol=near, atol=near * losses.min())


# Scales


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("turn", MODES.values(), ids=MODES)
@pytest.mark.parametrize("name", [SCORES, LINEAR, SQUARES, NETWORK])
def test_a_mean_does_not_depend_on_the_scale_of_its_weights(name, turn, dtype):
    """Also where their sum overflows or underflows; powers of two change no digit."""
    given = drawn(name, dtype)
    fixed = {key: given.pop(key) for key in [*given] if key == "labels" and "weston" in name}

    @jax.jit
    def run(given):
        return jax.value_and_grad(lambda given: turn(mcgrad.LOSSES[name])(**given, **fixed))(given)

    value, gradient = run(given)
    for power in (-125, -100, 100, 126):
        s = given["sample_weight"] * jnp.asarray(2.0**power, dtype)
        scaled, by = run(given | {"sample_weight": s})
        assert scaled == value
        wide = by.pop("sample_weight").astype(jnp.float32) * 2.0 ** min(power, 100)
        assert_close(by, {key: gradient[key] for key in by}, tolerance(dtype))
        if abs(power) <= 100:  # beyond, this derivative itself is at the ends of its range
            assert_close(wide, gradient["sample_weight"].astype(jnp.float32), tolerance(dtype))


@pytest.mark.parametrize("turn", MODES.values(), ids=MODES)
@pytest.mark.parametrize("power", [-60, 60, 124])
def test_a_mean_from_moments_does_not_depend_on_the_scale_of_its_weights(power, turn):
    given = drawn("moment_least_squares_loss")
    given["weights"] *= 1024.0  # the sum of squares overflows where the mean does not
    loss, scale = turn(mcgrad.moment_least_squares_loss), 2.0**power
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, (by_weights, by_moments) = run(*given.values())
    moments = jax.tree.map(lambda x: scale * (x / given["moments"].weight), given["moments"])
    scaled, (by_scaled, by_scaled_moments) = run(given["weights"], moments)
    assert_close(scaled, value, tolerance(jnp.float32, 64))
    assert_close(by_scaled, by_weights, tolerance(jnp.float32, 64))
    back = jax.tree.map(lambda x: x * (scale / given["moments"].weight), by_scaled_moments)
    if power < 100:  # beyond, these derivatives themselves are below the smallest number
        assert_close(back, by_moments, tolerance(jnp.float32, 64))


def test_no_mean_is_known_from_moments_whose_weights_overflowed():
    given = drawn("moment_least_squares_loss")
    moments = jax.tree.map(lambda x: x * jnp.float32(LARGEST), given["moments"])
    assert np.isnan(mcgrad.moment_least_squares_loss(given["weights"], moments))


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1.0, 1e20, 1e35])
@pytest.mark.parametrize("jitter", [0.0, 0.25])
def test_the_optimal_covariance_does_not_depend_on_the_scale_of_the_weights(scale, jitter):
    """Nor do its derivatives, times the scale."""
    weights = jnp.array([[1.0, 0.5], [0.0, 3.0], [0.25, 1.0]])

    def corner(weights, jitter):
        return mcgrad.optimal_task_covariance(weights, jitter=jitter)[0, 1]

    scaled = weights * jnp.float32(scale)
    got = mcgrad.optimal_task_covariance(scaled, jitter=jitter * scale**2)
    expected = mcgrad.optimal_task_covariance(weights, jitter=jitter)
    assert_close(got, expected, tolerance(jnp.float32))
    gradient = jax.grad(corner)(scaled, jitter * scale**2) * jnp.float32(scale)
    assert_close(gradient, jax.grad(corner)(weights, jitter), tolerance(jnp.float32, 64))


@pytest.mark.parametrize("turn", MODES.values(), ids=MODES)
@pytest.mark.parametrize("diagonal", [False, True], ids=["full", "diagonal"])
@pytest.mark.parametrize(
    "weights, covariance, factor",
    [(1e25, 1.0, 1e-30), (1e15, 1e30, 1.0), (1e-15, 1e-30, 1.0), (1e15, 2e38, 1e-10),
     (1e15, 1e-8, 1e-25)],
)  # fmt: skip
def test_the_covariance_penalty_over_scales(weights, covariance, factor, diagonal, turn):
    """Against float64, wherever the result is in the range of float32."""
    given = drawn("task_covariance_penalty")
    if diagonal:
        given["covariance"] = jnp.diag(given["covariance"])
    largest = jnp.max(given["covariance"])
    sizes = {"weights": weights, "covariance": covariance / largest, "ridge": factor}
    sizes["coupling"] = factor
    given = {key: x * jnp.asarray(sizes[key], x.dtype) for key, x in given.items()}
    run = jax.value_and_grad(lambda given: turn(mcgrad.task_covariance_penalty)(**given))
    value, gradient = run(given)
    with precision(jnp.float64):
        wide = {key: np.asarray(x, np.float64) for key, x in given.items()}
        expected, true = run(wide)
        expected, true = jax.device_get((expected, true))
    np.testing.assert_allclose(value, expected, rtol=tolerance(jnp.float32, 64))
    for key in [key for key in true if 1e-37 < np.abs(true[key]).max() < LARGEST]:
        assert_close(gradient[key], true[key], tolerance(jnp.float32, 256))


# Python numbers that leave the dtype of the sums

RANGE = {jnp.float32: (1e-50, 1e39), jnp.bfloat16: (1e-50, 1e39), jnp.float16: (1e-50, 1e39),
         jnp.float64: (5e-324, 10**400)}  # fmt: skip
AT_TIES = jnp.array([[0.0, 0.0, 1.0, -1.0, -2.0]])


def with_mu(name, mu, dtype):
    """A loss whose margins and units stand at ties, as a function of its first argument."""
    if name == "squared_relu_norm":
        return AT_TIES, lambda x, turn: turn(mcgrad.squared_relu_norm)(x, mu=mu)
    if name == NETWORK:
        given = [AT_TIES.T, jnp.zeros(5), jnp.ones(5), jnp.ones((1, 1)), jnp.ones(1)]
        rest = [x.astype(dtype) for x in given[1:]]
        options = {"activation": "relu", "mu": mu}
        return given[0], lambda x, turn: turn(mcgrad.logistic_network_loss)(x, *rest, **options)
    options = {"margin": 0.0, "mu": mu}
    if name == SCORES:
        labels = jnp.zeros(1, int)
        return AT_TIES, lambda x, turn: turn(mcgrad.weston_watkins_loss)(x, labels, **options)
    inputs, labels = jnp.ones((1, 1), dtype), jnp.zeros(1, int)
    return AT_TIES.T, lambda x, turn: turn(mcgrad.linear_weston_watkins_loss)(
        x, inputs, labels, **options
    )


@pytest.mark.parametrize("turn", MODES.values(), ids=MODES)
@pytest.mark.parametrize("dtype", RANGE, ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("name", ["squared_relu_norm", SCORES, LINEAR, NETWORK])
def test_a_sharpness_beyond_the_range_of_the_dtype_is_its_limit(name, dtype, turn):
    """The exact ramp, ties included, and b/2: value and gradient, in jit and out of it."""
    small, large = RANGE[dtype]

    def run(mu):
        x, loss = with_mu(name, mu, dtype)
        both = jax.value_and_grad(lambda x: loss(x, turn))
        eager, jitted = both(x.astype(dtype)), jax.jit(both)(x.astype(dtype))
        assert_close(jitted, eager, tolerance(dtype))
        return jax.device_get(eager)

    with precision(dtype):
        exact = run(None)
        for mu in (large, np.inf):
            assert_close(run(mu), exact, 0)
        # A number of NumPy has a dtype, to which the value is promoted.
        assert_close(run(np.float64(np.inf)), exact, tolerance(dtype))
        half = run(2.0**-60)
        assert_close(run(small), half, tolerance(dtype))
        if dtype != jnp.float64:
            assert_close(run(np.float32(1e-45)), half, tolerance(dtype))


@pytest.mark.parametrize("mu", [jnp.inf, 2.0**-126])
def test_derivatives_of_the_ramp_by_a_sharpness_at_its_limits(mu):
    b = jnp.array([-jnp.inf, -2.0, -0.0, 0.0, 3.0, jnp.inf])
    expected = jnp.zeros(6) if mu == jnp.inf else b**2 / 2
    finite = jnp.isfinite(b)
    got = ramp_by_mu(b, jnp.float32(mu))
    assert got[finite].tolist() == expected[finite].tolist()
    derivative = jax.vmap(jax.grad(ramp, 1), (0, None))(b[finite], jnp.float32(mu))
    assert derivative.tolist() == expected[finite].tolist()


OVERFLOWS = [
    (LINEAR, "margin"),
    (LINEAR, "l2"),
    (SCORES, "margin"),
    ("task_covariance_penalty", "ridge"),
    ("task_covariance_penalty", "coupling"),
]


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("number", [1e39, 10**400, np.float64(1e39), float("inf")], ids=type)
@pytest.mark.parametrize("name, argument", OVERFLOWS)
def test_a_number_that_overflows_when_rounded_is_an_error(name, argument, number, jitted):
    given = drawn(name, rows=2)
    given.pop(argument)

    def run(given):
        return mcgrad.LOSSES[name](**given, **{argument: number})

    with pytest.raises(ValueError, match=f"{argument}: .*range of float32; got"):
        (jax.jit(run) if jitted else run)(given)


def test_a_number_that_underflows_when_rounded_is_zero():
    given = drawn(LINEAR)
    values = [mcgrad.LOSSES[LINEAR](**(given | {"l2": l2})) for l2 in (0.0, 1e-60)]
    assert values[0] == values[1]
