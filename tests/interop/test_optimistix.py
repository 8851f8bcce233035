"""optimistix: minimisers, least squares, roots, and gradients through all of them."""

import functools

import jax
import jax.numpy as jnp
import optax
import optimistix as optx
import pytest

import mcgrad
from tests.interop.problems import (
    CLOSE,
    LEAST_SQUARES,
    LSTSQ,
    PROBLEMS,
    REFUSED,
    RESIDUALS,
    SLOPE_CLOSE,
    SMOOTH_HINGE,
    SQUARED_HINGE,
    as_it_is,
    ramps,
    relative_error,
)

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("float64")]
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


SOLVERS = {
    "BFGS": optx.BFGS(**TIGHT),
    "LBFGS": optx.LBFGS(**TIGHT),
    "NonlinearCG": optx.NonlinearCG(**TIGHT),
    "GradientDescent": optx.GradientDescent(0.016, **TIGHT),
}
REVERSE, FORWARD = {"autodiff_mode": "bwd"}, {"autodiff_mode": "fwd"}


def minimise(problem, solver, face, options=None):
    objective = problem.objective(face)
    found = optx.minimise(
        lambda params, _: objective(params), solver, problem.start, options=options, max_steps=10000
    )
    return found.value


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
def test_minimisers_in_reverse_mode(solver, problem):
    """What they choose when nobody asks."""
    found = minimise(problem, SOLVERS[solver], as_it_is, REVERSE)
    assert relative_error(found, problem.minimum()) < CLOSE


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
def test_minimisers_in_forward_mode(solver, problem):
    with pytest.raises(NotImplementedError, match="Differentiation rule for 'custom_lin'"):
        minimise(problem, SOLVERS[solver], as_it_is, FORWARD)
    found = minimise(problem, SOLVERS[solver], mcgrad.forward_mode, FORWARD)
    assert relative_error(found, problem.minimum()) < CLOSE


@pytest.mark.implicit_promotion
def test_optax_minimiser():
    solver = optx.OptaxMinimiser(optax.adam(optax.cosine_decay_schedule(0.1, 2000)), **TIGHT)
    found = minimise(LEAST_SQUARES, solver, as_it_is)
    assert relative_error(found, LSTSQ) < CLOSE


LEAST_SQUARES_SOLVERS = {
    "GaussNewton": optx.GaussNewton(**TIGHT),
    "LevenbergMarquardt": optx.LevenbergMarquardt(**TIGHT),
    "Dogleg": optx.Dogleg(**TIGHT),
}


def fit(problem, solver, face, options=None):
    return optx.least_squares(
        lambda weights, _: problem.value(face, weights),
        LEAST_SQUARES_SOLVERS[solver],
        LEAST_SQUARES.start,
        options=options,
        max_steps=1000,
    ).value


@pytest.mark.parametrize("problem", RESIDUALS, ids=str)
@pytest.mark.parametrize("solver", LEAST_SQUARES_SOLVERS)
def test_least_squares_solvers(solver, problem):
    with pytest.raises(TypeError, match=REFUSED):
        fit(problem, solver, as_it_is)
    found = fit(problem, solver, mcgrad.forward_mode)
    assert relative_error(found, problem.solution()) < CLOSE


@pytest.mark.parametrize("problem", RESIDUALS, ids=str)
@pytest.mark.parametrize("solver", LEAST_SQUARES_SOLVERS)
def test_least_squares_solvers_in_reverse_mode(solver, problem):
    found = fit(problem, solver, as_it_is, {"jac": "bwd"})
    assert relative_error(found, problem.solution()) < CLOSE


ROOTS = {"Newton": optx.Newton(**TIGHT), "Dogleg": optx.Dogleg(**TIGHT)}


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("solver", ROOTS)
def test_roots_of_the_gradient(solver, problem):
    """The Jacobian of the gradient is forward over reverse, which is not refused.

    Newton's method is a local one: from 0 it leaves the smooth hinge, which is not convex.
    """
    gradient = jax.grad(problem.objective())
    near = 0.95 * problem.minimum()
    found = optx.root_find(lambda params, _: gradient(params), ROOTS[solver], near).value
    assert relative_error(found, problem.minimum()) < CLOSE


DIFFERENTIATE = {"jacrev": jax.jacrev, "jacfwd": jax.jacfwd}


@pytest.mark.parametrize("problem", [LEAST_SQUARES, SQUARED_HINGE, SMOOTH_HINGE], ids=str)
@pytest.mark.parametrize("mode", DIFFERENTIATE)
@pytest.mark.parametrize("find", ["minimise", "root_find"])
def test_gradients_through_a_minimum(find, mode, problem):
    """ImplicitAdjoint, the default, beside differences of the minima that SciPy finds."""
    objective = functools.partial(problem.value, as_it_is)

    def minimum(strength):
        if find == "minimise":
            found = optx.minimise(objective, SOLVERS["BFGS"], problem.start, args=strength)
        else:
            slope = jax.grad(objective)
            found = optx.root_find(slope, ROOTS["Dogleg"], problem.start, args=strength)
        return found.value

    found = jax.jit(DIFFERENTIATE[mode](minimum))(jnp.asarray(problem.strength))
    assert relative_error(found, problem.slope()) < SLOPE_CLOSE


@pytest.mark.parametrize("face", [as_it_is, mcgrad.forward_mode], ids=["bwd", "fwd"])
def test_gradients_through_least_squares(face):
    """d/dl2 of the squared hinge's minimum, from its residuals."""

    def minimum(l2):
        return optx.least_squares(
            lambda weights, l2: face(ramps)(weights, l2),
            LEAST_SQUARES_SOLVERS["LevenbergMarquardt"],
            SQUARED_HINGE.start,
            args=l2,
            options={"jac": "bwd" if face is as_it_is else "fwd"},
        ).value

    found = jax.jacrev(minimum)(jnp.asarray(SQUARED_HINGE.strength))
    assert relative_error(found, SQUARED_HINGE.slope()) < SLOPE_CLOSE
