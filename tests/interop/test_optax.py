"""optax: what it minimises with a loss of mcgrad ends where SciPy does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import brentq, linprog, lsq_linear, nnls

import mcgrad
from tests.cases import assert_close
from tests.conftest import tolerance
from tests.interop.problems import (
    CLOSE,
    EXAMPLES,
    FEATURES,
    INPUTS,
    LABELS,
    LEAST_SQUARES,
    OUTPUTS,
    PROBLEMS,
    TARGETS,
    as_it_is,
    relative_error,
)

# optax adds integers to floats in its schedules and its line searches.
pytestmark = [
    pytest.mark.interop,
    pytest.mark.implicit_promotion,
    pytest.mark.usefixtures("float64"),
]


def trajectory(objective, optimizer, start, steps, project=as_it_is):
    """The parameters after each step, in one compiled loop."""

    @jax.jit
    def run(start):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(objective)(params)
            updates, state = optax.with_extra_args_support(optimizer).update(
                gradient, state, params, value=value, obj_fn=objective
            )
            params = project(optax.apply_updates(params, updates))
            return (params, state), params

        return jax.lax.scan(step, (start, optimizer.init(start)), length=steps)[1]

    return run(start)


DECAY = functools.partial(optax.cosine_decay_schedule, decay_steps=4000)
OPTIMIZERS = {
    "sgd": optax.sgd(0.02),
    "momentum": optax.sgd(0.01, momentum=0.9),
    "adam": optax.adam(DECAY(0.1)),
    "sophia": optax.contrib.sophia(DECAY(0.1), weight_decay=0.0, gamma=1.0),
}
# The decay of adamw is not a term of the objective: where it ends is nobody's minimum.
ALL = OPTIMIZERS | {"adamw": optax.adamw(0.1, weight_decay=0.1)}


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_end_at_the_minimum(name, problem):
    path = trajectory(problem.objective(), OPTIMIZERS[name], problem.start, steps=4000)
    assert relative_error(path[-1], problem.minimum()) < CLOSE


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_every_step_is_that_of_autodiff(name, problem):
    path, expected = (
        trajectory(problem.objective(face), ALL[name], problem.start, steps=100)
        for face in (as_it_is, mcgrad.plain)
    )
    assert relative_error(path, expected) < CLOSE**2
    assert relative_error(path[-1], path[0]) > 0.1


LINE_SEARCHES = {
    "zoom": optax.scale_by_zoom_linesearch(max_linesearch_steps=20),
    "backtracking": optax.scale_by_backtracking_linesearch(20, store_grad=True),
}


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("search", LINE_SEARCHES)
def test_lbfgs(search, problem):
    """Both searches differentiate the loss along a line, and keep its gradient for later."""
    solver = optax.lbfgs(linesearch=LINE_SEARCHES[search])
    objective = problem.objective()
    value_and_grad = optax.value_and_grad_from_state(objective)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            value, grad = value_and_grad(params, state=state)
            updates, state = solver.update(
                grad, state, params, value=value, grad=grad, value_fn=objective
            )
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, solver.init(params)), length=60)[0][0]

    assert relative_error(run(problem.start), problem.minimum()) < CLOSE


def test_sophia_sees_the_second_derivatives():
    """Of inputs with orthogonal columns the Hessian is diagonal, and its estimate exact."""
    orthogonal = np.linalg.qr(INPUTS)[0] * np.arange(1.0, FEATURES + 1)

    def objective(weights):
        return mcgrad.linear_least_squares_loss(weights, orthogonal, TARGETS)

    start = LEAST_SQUARES.start
    optimizer = optax.contrib.sophia(0.1, b2=0.0)
    _, state = optimizer.update(
        jax.grad(objective)(start), optimizer.init(start), start, obj_fn=objective
    )
    diagonal = 2 * np.arange(1.0, FEATURES + 1) ** 2 / EXAMPLES
    expected = np.broadcast_to(diagonal, start.shape)
    assert_close(optax.tree.get(state, "nu"), expected, tolerance(np.float64))


def nonnegative(target):
    return nnls(INPUTS, target)[0]


def boxed(target):
    return lsq_linear(INPUTS, target, bounds=(-0.1, 0.1), tol=1e-14).x


def within_a_ball(target):
    """The multiplier of the bound on the norm is the ridge that makes the norm 0.2."""

    def ridge(multiplier):
        return np.linalg.solve(INPUTS.T @ INPUTS + multiplier * np.eye(FEATURES), INPUTS.T @ target)

    return ridge(brentq(lambda m: np.linalg.norm(ridge(m)) - 0.2, 0.0, 1e3, xtol=1e-13))


PROJECTIONS = {
    "non_negative": (optax.projections.projection_non_negative, nonnegative),
    "box": (lambda w: optax.projections.projection_box(w, -0.1, 0.1), boxed),
    "l2_ball": (lambda w: optax.projections.projection_l2_ball(w, 0.2), within_a_ball),
}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_projected_gradient(name):
    """Least squares of one output under a constraint, beside a solver for that constraint."""
    project, solve = PROJECTIONS[name]
    expected = solve(TARGETS[:, 0])
    free = np.linalg.lstsq(INPUTS, TARGETS[:, 0])[0]
    assert relative_error(expected, free) > 0.1

    def objective(weights):
        return mcgrad.linear_least_squares_loss(weights[None], INPUTS, TARGETS[:, :1])

    path = trajectory(objective, optax.sgd(0.1), jnp.zeros(FEATURES), 2000, project)
    assert relative_error(path[-1], expected) < CLOSE


def test_multi_steps():
    """The mean of the gradients of equal parts is the gradient of the whole.

    In float32, in which MultiSteps adds them up.
    """
    data = INPUTS.astype(np.float32), TARGETS.astype(np.float32)
    parts = jax.tree.map(lambda x: jnp.tile(x.reshape(3, -1, x.shape[1]), (20, 1, 1)), data)
    start = jnp.zeros((OUTPUTS, FEATURES), np.float32)
    optimizer = optax.sgd(0.1, momentum=0.9)
    in_parts = optax.MultiSteps(optimizer, every_k_schedule=3)

    @jax.jit
    def run(params):
        def step(carry, part):
            params, state = carry
            gradient = jax.grad(mcgrad.linear_least_squares_loss)(params, *part)
            updates, state = in_parts.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, in_parts.init(params)), parts)[0][0]

    def whole(params):
        return mcgrad.linear_least_squares_loss(params, *data)

    expected = trajectory(whole, optimizer, start, steps=20)[-1]
    assert_close(run(start), expected, tolerance(np.float32, 64))


def test_apply_if_finite():
    """A label out of range is NaN under jit: that step is left out, and nothing else is lost."""
    labels = np.stack([LABELS, np.where(np.arange(EXAMPLES) == 7, OUTPUTS, LABELS), LABELS])

    def train(order):
        optimizer = optax.apply_if_finite(optax.adam(0.1), max_consecutive_errors=2)

        @jax.jit
        def step(params, state, labels):
            gradient = jax.grad(mcgrad.linear_weston_watkins_loss)(params, INPUTS, labels)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        params = LEAST_SQUARES.start
        state = optimizer.init(params)
        for batch in order:
            params, state = step(params, state, labels[batch])
        return params, state

    params, state = train([0, 1, 2])
    expected, _ = train([0, 2])
    assert np.array_equal(params, expected)
    assert state.total_notfinite == 1 and state.notfinite_count == 0


def least_hinge(inputs, labels):
    """min Σ slack / n  subject to  slack >= s_j - s_t + 1, slack >= 0: a linear program."""
    rows = [(i, j) for i in range(len(labels)) for j in range(OUTPUTS) if j != labels[i]]
    scores = np.zeros((len(rows), OUTPUTS, inputs.shape[1]))
    for row, (i, j) in enumerate(rows):
        scores[row, j] += inputs[i]
        scores[row, labels[i]] -= inputs[i]
    size = scores[0].size
    found = linprog(
        np.r_[np.zeros(size), np.full(len(rows), 1 / len(labels))],
        A_ub=np.c_[scores.reshape(-1, size), -np.eye(len(rows))],
        b_ub=-np.ones(len(rows)),
        bounds=[(None, None)] * size + [(0, None)] * len(rows),
    )
    return found.fun


def test_mu_as_a_schedule():
    """From smooth to exact in one compilation; the end is close to the least exact hinge."""
    steps, compilations = 4000, []
    mu = optax.exponential_decay(1.0, transition_steps=steps, decay_rate=1e4)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, steps))

    @jax.jit
    def step(params, state, count):
        compilations.append(1)
        gradient = jax.grad(mcgrad.linear_weston_watkins_loss)(params, INPUTS, LABELS, mu=mu(count))
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = LEAST_SQUARES.start
    state = optimizer.init(params)
    for count in range(steps):
        params, state = step(params, state, count)
    assert len(compilations) == 1
    reached = mcgrad.linear_weston_watkins_loss(params, INPUTS, LABELS)
    least = least_hinge(INPUTS, LABELS)
    assert 0.1 < least <= reached <= (1 + 1e-4) * least
