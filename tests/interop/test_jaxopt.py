"""jaxopt, which is no longer maintained, and still runs."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcgrad
from tests.interop.problems import (
    CLOSE,
    INPUTS,
    LSTSQ,
    PROBLEMS,
    REFUSED,
    RESIDUALS,
    SLOPE_CLOSE,
    SQUARED_HINGE,
    as_it_is,
    relative_error,
)

pytestmark = [
    pytest.mark.interop,
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
]


@pytest.fixture
def jaxopt():
    """Its import warns: here, where that may be ignored."""
    return importlib.import_module("jaxopt")


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_bfgs(problem, jaxopt):
    solver = jaxopt.BFGS(problem.objective(), maxiter=500, tol=1e-9)
    assert relative_error(solver.run(problem.start).params, problem.minimum()) < CLOSE


@pytest.mark.parametrize("problem", RESIDUALS, ids=str)
def test_gauss_newton(problem, jaxopt):
    """Its parameters are a vector."""

    def run(face):
        def flat(params):
            return problem.value(face, params.reshape(LSTSQ.shape))

        solver = jaxopt.GaussNewton(residual_fun=flat, maxiter=60, tol=1e-12)
        return solver.run(jnp.zeros(LSTSQ.size)).params.reshape(LSTSQ.shape)

    with pytest.raises(TypeError, match=REFUSED):
        run(as_it_is)
    assert relative_error(run(mcgrad.forward_mode), problem.solution()) < CLOSE


def test_gradients_through_bfgs(jaxopt):
    """d/dl2 of the squared hinge's minimum, by the implicit function theorem."""
    problem = SQUARED_HINGE

    def minimum(l2):
        solver = jaxopt.BFGS(lambda w, l2: problem.value(as_it_is, w, l2), maxiter=500, tol=1e-9)
        return jnp.sum(solver.run(problem.start, l2).params * INPUTS[:3])

    found = jax.grad(minimum)(jnp.asarray(problem.strength))
    expected = np.sum(problem.slope() * INPUTS[:3])
    assert relative_error(found, expected) < SLOPE_CLOSE
