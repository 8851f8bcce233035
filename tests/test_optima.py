"""Minima reached through optax beside those of independent solvers, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from oracle import mp
from scipy.linalg import solve_sylvester
from scipy.optimize import LinearConstraint, minimize, nnls

import mcgrad
from tests.conftest import precision

RELATIVE = 1e-5
# optax's L-BFGS adds its int32 counter to an int64 under float64.
pytestmark = pytest.mark.implicit_promotion


@pytest.fixture(autouse=True)
def float64():
    with precision(np.float64):
        yield


def minimiser(objective, steps):
    """A compiled L-BFGS: (start, *arguments of the objective) -> where it ends."""
    solver = optax.lbfgs()

    @jax.jit
    def run(params, *arguments):
        def value_of(params):
            return objective(params, *arguments)

        value_and_grad = optax.value_and_grad_from_state(value_of)

        def step(carry, _):
            params, state = carry
            value, grad = value_and_grad(params, state=state)
            updates, state = solver.update(
                grad, state, params, value=value, grad=grad, value_fn=value_of
            )
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, solver.init(params)), length=steps)
        return params

    return run


def regression(seed, examples, features, outputs):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(examples, features))
    targets = inputs @ rng.normal(size=(features, outputs)) + rng.normal(size=(examples, outputs))
    return inputs, targets


def test_least_squares_and_lstsq():
    inputs, targets = regression(0, examples=30, features=4, outputs=3)

    def objective(params):
        weights, bias = params
        return mcgrad.linear_least_squares_loss(weights, inputs, targets, bias=bias)

    start = jnp.zeros((3, 4)), jnp.zeros(3)
    weights, bias = minimiser(objective, steps=40)(start)
    expected, _, _, _ = np.linalg.lstsq(np.c_[inputs, np.ones(30)], targets)
    np.testing.assert_allclose(np.c_[weights, bias], expected.T, rtol=RELATIVE)
    residual = np.c_[inputs, np.ones(30)] @ expected - targets
    np.testing.assert_allclose(
        objective((weights, bias)), np.sum(residual**2) / 30, rtol=RELATIVE**2
    )


@pytest.mark.parametrize("diagonal", [False, True])
def test_task_covariance_and_its_normal_equations(diagonal):
    """2 U'(UW - V) + W (ridge I + coupling Omega^-1) = 0 is a Sylvester equation in W."""
    inputs, targets = regression(1, examples=20, features=4, outputs=3)
    root = np.random.default_rng(2).normal(size=(3, 3))
    covariance = root @ root.T + np.eye(3)
    covariance = covariance.diagonal() if diagonal else covariance
    ridge, coupling = 3.0, 5.0

    def objective(weights):
        data = mcgrad.linear_least_squares_loss(weights.T, inputs, targets, reduction="sum")
        return data + mcgrad.task_covariance_penalty(
            weights, covariance, ridge=ridge, coupling=coupling
        )

    weights = minimiser(objective, steps=40)(jnp.zeros((4, 3)))
    inverse = np.linalg.inv(np.diag(covariance) if diagonal else covariance)
    expected = solve_sylvester(
        2 * inputs.T @ inputs, ridge * np.eye(3) + coupling * inverse, 2 * inputs.T @ targets
    )
    np.testing.assert_allclose(weights, expected, rtol=RELATIVE)


@pytest.mark.parametrize("power", [1, 2])
def test_weston_watkins_and_a_quadratic_program(power):
    """The hinge as slacks: minimise sum slack^power / n + l2 |W|^2 under linear constraints.

    The hinge itself has no gradient at its minimum. The smooth twin is followed as mu grows, and
    its minimum has an exact value at most 0.13924 (classes - 1) / mu above the least.
    """
    examples, classes, features, l2 = 12, 3, 2, 0.05
    rng = np.random.default_rng(3)
    labels = rng.integers(0, classes, examples)
    inputs = rng.normal(size=(classes, features))[labels] + rng.normal(size=(examples, features))

    def objective(weights, mu=None):
        return mcgrad.linear_weston_watkins_loss(weights, inputs, labels, l2=l2, power=power, mu=mu)

    weights = jnp.zeros((classes, features))
    if power == 2:
        weights = minimiser(objective, steps=60)(weights)
    else:
        follow = minimiser(objective, steps=60)
        for mu in 10.0 ** np.arange(0, 7):
            weights = follow(weights, mu)

    # One row for each example and wrong class: (w_t - w_j) x + slack >= 1.
    rows = [(i, j) for i in range(examples) for j in range(classes) if j != labels[i]]
    violation = np.zeros((len(rows), classes, features))
    for row, (i, j) in enumerate(rows):
        violation[row, labels[i]] += inputs[i]
        violation[row, j] -= inputs[i]
    size = classes * features

    def program(z):
        return np.sum(z[size:] ** power) / examples + l2 * np.sum(z[:size] ** 2)

    def slope(z):
        return np.r_[2 * l2 * z[:size], power * z[size:] ** (power - 1) / examples]

    found = minimize(
        program,
        np.r_[np.zeros(size), np.ones(len(rows))],
        jac=slope,
        bounds=[(None, None)] * size + [(0, None)] * len(rows),
        constraints=LinearConstraint(np.c_[violation.reshape(-1, size), np.eye(len(rows))], lb=1.0),
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success, found.message
    np.testing.assert_allclose(objective(weights), found.fun, rtol=RELATIVE)


def test_squared_relu_penalty_and_nonnegative_least_squares():
    """With multipliers g = 2 A'(Ax - b) at the constrained minimum f, the least penalised objective
    lies between f - |g|^2 / (4 rho) and f."""
    inputs, targets = regression(4, examples=20, features=5, outputs=1)
    solution, residual = nnls(inputs, targets[:, 0])
    assert np.any(solution == 0) and np.any(solution > 0)
    least = residual**2
    multipliers = 2 * inputs.T @ (inputs @ solution - targets[:, 0])

    def objective(weights, rho):
        data = mcgrad.linear_least_squares_loss(weights, inputs, targets, reduction="sum")
        return data + rho * mcgrad.squared_relu_norm(-weights)

    follow = minimiser(objective, steps=60)
    weights = jnp.zeros((1, 5))
    for rho in 10.0 ** np.arange(1, 8):
        weights = follow(weights, rho)
        gap = least - objective(weights, rho)
        assert -1e-9 * least <= gap <= np.sum(multipliers**2) / (4 * rho) + 1e-9 * least
    assert abs(gap) <= RELATIVE * least
    np.testing.assert_allclose(weights[0], solution, rtol=RELATIVE, atol=RELATIVE)


# The minimiser over covariances of trace one

TASKS = np.random.default_rng(5).normal(size=(6, 4)) * [1.0, 2.0, 0.5, 1.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_optimal_task_covariance_is_that_of_the_oracle(dtype):
    """8 eps times the condition number of W: the root of W'W divides by its least eigenvalue."""
    weights = TASKS.astype(dtype)
    exact, condition = oracle.optimal_task_covariance(
        [[mp.mpf(entry) for entry in row] for row in weights.tolist()]
    )
    found = mcgrad.optimal_task_covariance(weights)
    assert found.dtype == dtype
    exact = np.array(exact, dtype=np.float64)
    error = np.linalg.norm(np.asarray(found, np.float64) - exact)
    bound = 8 * np.finfo(dtype).eps * float(condition) * np.linalg.norm(exact)
    assert error <= bound + 2.0**-53


def test_optimal_task_covariance_beats_other_covariances():
    """And is worth half the coupling times the squared nuclear norm of W."""
    best = np.asarray(mcgrad.optimal_task_covariance(TASKS))
    penalty = jax.jit(jax.vmap(mcgrad.task_covariance_penalty, (None, 0)))
    rng = np.random.default_rng(6)
    roots = rng.normal(size=(100, 4, 4))
    random = roots @ roots.swapaxes(1, 2)
    random /= np.trace(random, axis1=1, axis2=2)[:, None, None]
    near = best + 0.02 * (random - best)
    np.testing.assert_allclose(np.trace(best), 1.0, rtol=1e-12)
    least = mcgrad.task_covariance_penalty(TASKS, best)
    assert np.all(penalty(TASKS, np.concatenate([random, near])) > least)
    norm = np.linalg.norm(TASKS, "nuc") ** 2 / 2
    ridge = np.linalg.norm(TASKS) ** 2 / 2
    np.testing.assert_allclose(least, ridge + norm, rtol=1e-12)


def test_alternation_descends_to_a_stationary_point():
    inputs, targets = regression(7, examples=20, features=4, outputs=3)

    def objective(weights, covariance):
        data = mcgrad.linear_least_squares_loss(weights.T, inputs, targets, reduction="sum")
        return data + mcgrad.task_covariance_penalty(weights, covariance, coupling=0.1)

    follow = minimiser(objective, steps=20)
    weights, covariance = jnp.ones((4, 3)), jnp.eye(3) / 3
    values = [objective(weights, covariance)]
    for _ in range(12):
        weights = follow(weights, covariance)
        values.append(objective(weights, covariance))
        covariance = mcgrad.optimal_task_covariance(weights)
        values.append(objective(weights, covariance))
    assert np.all(np.diff(values) <= 1e-10 * np.array(values[:-1]))
    # There the sum is the data term, the ridge and the squared nuclear norm, which is convex.
    gradient = jax.grad(objective)(weights, covariance)
    assert np.linalg.norm(gradient) <= RELATIVE * np.linalg.norm(inputs.T @ targets)
