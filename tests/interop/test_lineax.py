"""lineax: the Jacobian of a residual and the Hessian of a loss as linear operators."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import mcgrad
from tests.cases import assert_close
from tests.conftest import tolerance
from tests.interop.problems import (
    EXAMPLES,
    FEATURES,
    INPUTS,
    LEAST_SQUARES,
    LSTSQ,
    OUTPUTS,
    PROBLEMS,
    REFUSED,
    TARGETS,
    as_it_is,
    relative_error,
    residual,
)

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("float64")]
CLOSE = 1e-9
TIGHT = {"rtol": 1e-12, "atol": 1e-12}
# d(inputs @ W.T)/dW, rows and columns in the order of ravel().
JACOBIAN = np.einsum("nf,op->nopf", INPUTS, np.eye(OUTPUTS)).reshape(
    EXAMPLES * OUTPUTS, OUTPUTS * FEATURES
)


def jacobian(face, jac):
    return lx.JacobianLinearOperator(
        lambda weights, _: face(residual)(weights), LEAST_SQUARES.start, jac=jac
    )


SOLVERS = {
    "QR": lx.QR(),
    "SVD": lx.SVD(),
    "NormalCG": lx.Normal(lx.CG(**TIGHT)),
    "LSMR": lx.LSMR(**TIGHT),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_jacobian_of_a_residual(solver):
    """From W = 0 the first Gauss-Newton step is the least squares fit."""
    with pytest.raises(TypeError, match=REFUSED):
        lx.linear_solve(jacobian(as_it_is, "fwd"), TARGETS.ravel(), SOLVERS[solver])
    operator = jacobian(mcgrad.forward_mode, "fwd")
    step = lx.linear_solve(operator, jnp.asarray(TARGETS.ravel()), SOLVERS[solver]).value
    assert relative_error(step, LSTSQ) < CLOSE


@pytest.mark.parametrize("jac", ["fwd", "bwd", None])
def test_products_with_a_jacobian(jac):
    operator = jacobian(mcgrad.forward_mode, jac)
    direction, ct = LSTSQ, TARGETS.ravel()
    close = tolerance(np.float64, 64)
    assert_close(operator.as_matrix(), JACOBIAN, close)
    assert_close(operator.mv(direction), JACOBIAN @ direction.ravel(), close)
    assert_close(operator.T.mv(ct).ravel(), JACOBIAN.T @ ct, close)


def test_reverse_mode_jacobian():
    """jac="bwd" asks for reverse mode alone, and the solver for the whole matrix."""
    operator = jacobian(as_it_is, "bwd")
    assert_close(operator.as_matrix(), JACOBIAN, tolerance(np.float64, 64))
    step = lx.linear_solve(operator, jnp.asarray(TARGETS.ravel()), lx.QR()).value
    assert relative_error(step, LSTSQ) < CLOSE


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_hessian_of_a_loss(problem):
    """The Jacobian of the gradient: a Newton step by conjugate gradients, with no matrix formed."""
    objective, params = problem.objective(), 0.95 * problem.minimum()
    gradient = jax.grad(objective)
    hessian = lx.JacobianLinearOperator(
        lambda params, _: gradient(params), params, tags=lx.positive_semidefinite_tag
    )
    step = lx.linear_solve(hessian, gradient(params), lx.CG(**TIGHT)).value

    def equation(flat):
        return problem.equation(flat.reshape(problem.shape), problem.strength)

    flat = params.ravel()
    expected = np.linalg.solve(jax.hessian(equation)(flat), jax.grad(equation)(flat))
    assert relative_error(step.ravel(), expected) < CLOSE
