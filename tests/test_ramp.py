"""The ramp, its slope and its derivative by mu: the conventions, the limits, the traps."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcgrad._ramp import ramp, ramp_by_mu, slope
from tests.conftest import precision, tolerance

INFINITE = jnp.array([-jnp.inf, jnp.inf])
BOUND = 0.13924
reals = st.floats(-50, 50, width=32)
sharpness = st.floats(0.125, 100, width=32)


def test_exact_at_the_tie():
    """sign(0) = +1: the slope at 0 is 1, and so is JAX's own derivative of the ramp there."""
    b = jnp.array([-1.0, -0.0, 0.0, 1.0])
    assert slope(b, None).tolist() == [0, 1, 1, 1]
    assert jax.vmap(jax.grad(lambda b: ramp(b, None)))(b).tolist() == [0, 1, 1, 1]
    assert ramp(b, None).tolist() == [0, 0, 0, 1]
    assert ramp_by_mu(b, None).tolist() == [0, 0, 0, 0]


def test_smooth_at_the_tie():
    b, mu = jnp.zeros(()), jnp.asarray(3.0)
    assert (ramp(b, mu), slope(b, mu), ramp_by_mu(b, mu)) == (0, 0.5, 0)


@pytest.mark.parametrize("mu", [None, 2.0, 1e30], ids=str)
def test_at_infinity(mu):
    """p b is 0 * inf there, and b² sech² is inf * 0."""
    mu = None if mu is None else jnp.asarray(mu)
    assert ramp(INFINITE, mu).tolist() == [0, jnp.inf]
    assert slope(INFINITE, mu).tolist() == [0, 1]
    assert ramp_by_mu(INFINITE, mu).tolist() == [0, 0]


@pytest.mark.parametrize("mu", [None, 2.0], ids=str)
def test_nan_stays_nan(mu):
    mu = None if mu is None else jnp.asarray(mu)
    assert np.isnan(ramp(jnp.asarray(jnp.nan), mu))


@pytest.mark.parametrize("mu", [0.0, -1.0])
def test_a_sharpness_that_is_not_positive_is_nan(mu):
    assert np.isnan(ramp(jnp.ones(()), jnp.asarray(mu)))


def test_overflow_of_mu_b():
    b, mu = jnp.array([-1e30, 1e30]), jnp.asarray(1e30)
    assert ramp(b, mu).tolist() == [0, b[1]]
    assert slope(b, mu).tolist() == [0, 1]
    assert ramp_by_mu(b, mu).tolist() == [0, 0]


@given(reals, sharpness)
@settings(deadline=None, max_examples=200)
def test_against_50_digits(b, mu):
    """To a few rounding units of the result itself, also in the far tail, where 1 + tanh cancels.

    The condition of exp(-2 mu b) is 2 mu b: that many rounding units of the argument.
    """
    with mpmath.workdps(50), precision(jnp.float64):
        x, m = mpmath.mpf(b), mpmath.mpf(mu)
        p, sech2 = 1 / (1 + mpmath.exp(-2 * m * x)), mpmath.sech(m * x) ** 2
        expected = (
            x * p,
            p + m / 2 * x * sech2,
            x**2 * sech2 / 2,
        )
        values = jnp.asarray(b, jnp.float64), jnp.asarray(mu, jnp.float64)
        for function, true in zip((ramp, slope, ramp_by_mu), expected, strict=True):
            got = mpmath.mpf(float(function(*values)))
            terms = abs(true) + (m * abs(x) * sech2 if function is slope else 0)
            allowed = tolerance(jnp.float64, 8 * (1 + abs(b * mu))) * float(terms)
            assert abs(got - true) <= allowed + 1e-300


@given(reals, sharpness)
@settings(deadline=None, max_examples=200)
def test_the_smooth_ramp_is_within_its_bound_of_the_exact_one(b, mu):
    b, mu = jnp.asarray(b, jnp.float32), jnp.asarray(mu, jnp.float32)
    allowed = tolerance(jnp.float32) * abs(b)
    assert abs(ramp(b, mu) - ramp(b, None)) <= BOUND / mu + allowed


def test_the_bound_is_attained():
    """At mu |b| = 0.6392: a smaller constant in the documentation would be wrong."""
    mu = jnp.asarray(2.0)
    b = jnp.array([-0.6392, 0.6392]) / mu
    assert np.all((ramp(b, None) - ramp(b, mu)) * mu > 0.1392)


def test_the_slope_is_not_p():
    """p itself moves with b: leaving the second term out is the classic mistake."""
    b, mu = jnp.asarray(0.4), jnp.asarray(2.0)
    p = (1 + jnp.tanh(mu * b)) / 2
    assert abs(slope(b, mu) - p) > 0.1
    assert abs(slope(b, mu) - jax.grad(lambda b: b * (1 + jnp.tanh(mu * b)) / 2)(b)) < 1e-6
