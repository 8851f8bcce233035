"""Second derivatives: closed forms, products without the Hessian, and what is built on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer

import mcgrad
from tests.cases import assert_close
from tests.conftest import precision, tolerance

DTYPE = jnp.float64
TOLERANCE = tolerance(DTYPE, 64)


@pytest.fixture(autouse=True)
def float64():
    with precision(DTYPE):
        yield


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, DTYPE)


def times_identity(matrix, size):
    """matrix ⊗ I, as the Hessian by a matrix of shape (size, columns)."""
    return jnp.einsum("ik,jl->ijkl", jnp.eye(size, dtype=DTYPE), matrix)


def squared_norm():
    """2 · 1[X >= 0], ties included, where it is one of the generalized Hessians."""
    x = normal(0, 3, 4).at[1, 2].set(0.0)
    hessian = jnp.diag(2 * (x.ravel() >= 0).astype(DTYPE)).reshape(2 * x.shape)
    return lambda face: face(mcgrad.squared_relu_norm), x, hessian


def least_squares():
    """2 uuᵀ ⊗ I."""
    weights, u, v = normal(1, 4, 3), normal(2, 3), normal(3, 4)

    def loss(face):
        return lambda w: face(mcgrad.linear_least_squares_loss)(w, u, v)

    return loss, weights, times_identity(2 * jnp.outer(u, u), 4)


def moments():
    """2 M ⊗ I."""
    weights, u, v = normal(1, 4, 3), normal(2, 7, 3), normal(3, 7, 4)
    data = mcgrad.least_squares_moments(u, v)

    def loss(face):
        return lambda w: face(mcgrad.moment_least_squares_loss)(w, data, reduction="sum")

    return loss, weights, times_identity(2 * u.T @ u, 4)


def task_covariance():
    """(lambda1 I + lambda2 Omega⁻¹) for each row of W."""
    weights, root = normal(4, 5, 3), normal(5, 3, 3)
    covariance = root @ root.T + jnp.eye(3, dtype=DTYPE)

    def loss(face):
        penalty = face(mcgrad.task_covariance_penalty)
        return lambda w: penalty(w, covariance, ridge=0.5, coupling=0.75)

    row = 0.5 * jnp.eye(3, dtype=DTYPE) + 0.75 * jnp.linalg.inv(covariance)
    return loss, weights, times_identity(row, 5)


def hinge():
    """2 l2 I: the slope of the exact ramp is constant wherever it has a derivative."""
    weights, inputs, labels = normal(6, 4, 3), normal(7, 6, 3), jnp.arange(6) % 4

    def loss(face):
        hinge = face(mcgrad.linear_weston_watkins_loss)
        return lambda w: hinge(w, inputs, labels, l2=0.25)

    return loss, weights, times_identity(0.5 * jnp.eye(3, dtype=DTYPE), 4)


def squared_hinge():
    """2 Σ_{j violates} (e_j - e_t)(e_j - e_t)ᵀ ⊗ xxᵀ."""
    weights, x, t = normal(8, 4, 3), normal(9, 3), 2
    scores = weights @ x
    violates = (scores - scores[t] + 1 >= 0).at[t].set(False)
    directions = jnp.eye(4, dtype=DTYPE) - jnp.eye(4, dtype=DTYPE)[None, t]
    by_scores = 2 * jnp.einsum("j,ji,jk->ik", violates.astype(DTYPE), directions, directions)

    def loss(face):
        return lambda w: face(mcgrad.linear_weston_watkins_loss)(w, x, t, power=2)

    return loss, weights, jnp.einsum("ik,j,l->ijkl", by_scores, x, x)


def network():
    """logistic(beta) logistic(-beta) ssᵀ by the output weights."""
    hidden, bias, output, x = normal(10, 4, 3), normal(11, 4), normal(12, 4), normal(13, 3)
    s = jax.nn.sigmoid(hidden @ x + bias)
    logistic = jax.nn.sigmoid(s @ output)

    def loss(face):
        network = face(mcgrad.logistic_network_loss)
        return lambda w: network(hidden, bias, w, x, jnp.asarray(-1.0, DTYPE))

    return loss, output, logistic * (1 - logistic) * jnp.outer(s, s)


CLOSED_FORMS = {
    "squared_relu_norm": squared_norm,
    "linear_least_squares_loss": least_squares,
    "moment_least_squares_loss": moments,
    "task_covariance_penalty": task_covariance,
    "linear_weston_watkins_loss": hinge,
    "linear_weston_watkins_loss, power 2": squared_hinge,
    "logistic_network_loss": network,
}
# Every nesting of forward and reverse mode, the inner one last, and the face that allows it.
NESTINGS = {
    "forward over reverse": (lambda loss: loss, jax.jacfwd, jax.jacrev),
    "reverse over reverse": (lambda loss: loss, jax.jacrev, jax.jacrev),
    "forward over forward": (mcgrad.forward_mode, jax.jacfwd, jax.jacfwd),
    "reverse over forward": (mcgrad.forward_mode, jax.jacrev, jax.jacfwd),
    "forward over reverse of forward_mode": (mcgrad.forward_mode, jax.jacfwd, jax.jacrev),
    "reverse over reverse of forward_mode": (mcgrad.forward_mode, jax.jacrev, jax.jacrev),
}


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_hessian_is_the_closed_form(name, nesting):
    loss, x, expected = CLOSED_FORMS[name]()
    face, outer, inner = NESTINGS[nesting]
    assert_close(jax.jit(outer(inner(loss(face))))(x), expected, TOLERANCE)


def test_each_examples_loss_has_its_row_of_the_jacobian():
    weights, inputs, labels = normal(14, 4, 3), normal(15, 6, 3), jnp.arange(6) % 4

    def jacobian(mode, loss):
        return mode(lambda w: loss(w, inputs, labels, mu=2.0, reduction="none"))(weights)

    loss = mcgrad.linear_weston_watkins_loss
    row = jax.grad(lambda w, x, t: mcgrad.plain(loss)(w, x, t, mu=2.0))
    expected = jax.vmap(row, (None, 0, 0))(weights, inputs, labels)
    assert_close(jacobian(jax.jacrev, loss), expected, TOLERANCE)
    assert_close(jacobian(jax.jacfwd, mcgrad.forward_mode(loss)), expected, TOLERANCE)


def test_a_gauss_newton_product_through_a_closed_form_head_is_that_of_the_dense_matrix():
    inputs, labels = normal(16, 8, 5), jnp.arange(8) % 3
    params = {"hidden": normal(17, 4, 5), "output": normal(18, 3, 4)}
    direction = {"hidden": normal(19, 4, 5), "output": normal(20, 3, 4)}

    def scores(params):
        return jnp.tanh(inputs @ params["hidden"].T) @ params["output"].T

    def head(scores):
        return mcgrad.weston_watkins_loss(scores, labels, power=2)

    s, push = jax.linearize(scores, params)
    _, pull = jax.vjp(scores, params)
    _, curved = jax.jvp(jax.grad(head), (s,), (push(direction),))
    (product,) = pull(curved)

    flat, unravel = ravel_pytree(params)
    jacobian = jax.jacobian(lambda p: scores(unravel(p)).ravel())(flat)
    plain_head = mcgrad.plain(mcgrad.weston_watkins_loss)
    curvature = jax.hessian(lambda s: plain_head(s.reshape(8, 3), labels, power=2))(s.ravel())
    dense = jacobian.T @ curvature @ jacobian @ ravel_pytree(direction)[0]
    assert_close(product, unravel(dense), TOLERANCE)


# Newton-CG on loss 5


def breast_cancer(hidden):
    """The loss of a network with its ridge, of one flat vector, and where it starts."""
    data = load_breast_cancer()
    inputs = jnp.asarray((data.data - data.data.mean(0)) / data.data.std(0), DTYPE)
    labels = jnp.asarray(2 * data.target - 1, DTYPE)
    features = inputs.shape[1]
    start = (
        normal(21, hidden, features) / features**0.5,
        jnp.zeros(hidden, DTYPE),
        normal(22, hidden) / hidden**0.5,
    )
    flat, unravel = ravel_pytree(start)

    def loss(flat):
        return mcgrad.logistic_network_loss(*unravel(flat), inputs, labels) + 1e-3 * flat @ flat

    return loss, flat


def newton_cg(loss, start, tolerance):
    """SciPy's Newton-CG with products of the closed form: (minimiser, gradients, products)."""
    value_and_grad = jax.jit(jax.value_and_grad(loss))
    product = jax.jit(lambda x, v: jax.jvp(jax.grad(loss), (x,), (v,))[1])
    result = minimize(
        lambda x: jax.tree.map(np.asarray, value_and_grad(x)),
        np.asarray(start),
        jac=True,
        hessp=lambda x, v: np.asarray(product(x, v)),
        method="Newton-CG",
        options={"xtol": tolerance},
    )
    assert result.success
    return jnp.asarray(result.x), result.nfev, result.nhev


def lbfgs(loss, start, tolerance, steps=1000):
    """optax's L-BFGS until the gradient's norm is at most `tolerance`: (minimiser, gradients)."""
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    @jax.jit
    def step(x, state):
        value, grad = value_and_grad(x, state=state)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(x, updates), state, grad

    x, state, gradients = start, solver.init(start), 1
    for _ in range(steps):
        new, state, grad = step(x, state)
        if jnp.linalg.norm(grad) <= tolerance:
            break
        x, gradients = new, gradients + int(state[-1].info.num_linesearch_steps)
    return x, gradients


@pytest.mark.implicit_promotion
def test_newton_cg_with_closed_form_products_needs_fewer_gradients_than_lbfgs():
    loss, start = breast_cancer(hidden=8)
    newton, gradients, products = newton_cg(loss, start, 1e-10)
    reached = float(jnp.linalg.norm(jax.grad(loss)(newton)))
    assert reached <= 1e-6
    quasi, quasi_gradients = lbfgs(loss, start, max(reached, 1e-7))
    assert abs(loss(newton) - loss(quasi)) <= 1e-6 * loss(quasi)
    assert gradients < quasi_gradients / 3
    print(f"Newton-CG: {gradients} gradients, {products} products; L-BFGS: {quasi_gradients}")


# Hyper-parameters


RANDOM = np.random.default_rng(23)
INPUTS = RANDOM.normal(size=(60, 4))
NOISY_SCORES = INPUTS @ RANDOM.normal(size=(4, 3)) + RANDOM.normal(size=(60, 3))
LABELS = NOISY_SCORES.argmax(1)
TRAIN, VALIDATION = (INPUTS[:30], LABELS[:30]), (INPUTS[30:], LABELS[30:])


def training_loss(weights, margin, l2):
    """Smooth and strongly convex, so that its minimiser is a smooth function of the rest."""
    return mcgrad.linear_weston_watkins_loss(weights, *TRAIN, margin=margin, l2=l2, mu=1.0, power=2)


def trained(margin, l2):
    """The minimiser; its derivative follows from the gradient being zero there."""
    start = jnp.zeros((3, 4), DTYPE)

    def solve_linear(product, rhs):
        matrix = jax.jacobian(product)(start).reshape(start.size, start.size)
        return jnp.linalg.solve(matrix, rhs.ravel()).reshape(start.shape)

    def solve(gradient, start):
        def newton(weights, _):
            value, product = jax.linearize(gradient, weights)
            return weights - solve_linear(product, value), None

        return jax.lax.scan(newton, start, length=20)[0]

    def gradient(weights):
        return jax.grad(training_loss)(weights, margin, l2)

    return jax.lax.custom_root(gradient, start, solve, solve_linear)


def validation_loss(margin, l2):
    return mcgrad.linear_weston_watkins_loss(trained(margin, l2), *VALIDATION)


@pytest.mark.implicit_promotion
@pytest.mark.parametrize("argument", [0, 1], ids=["margin", "l2"])
def test_a_hyper_parameter_has_its_derivative_through_the_trained_weights(argument):
    at = [jnp.asarray(0.8, DTYPE), jnp.asarray(0.1, DTYPE)]
    gradient = jnp.linalg.norm(jax.grad(training_loss)(trained(*at), *at))
    assert gradient <= 1e-10

    def value(step):
        moved = list(at)
        moved[argument] = at[argument] + step
        return float(jax.jit(validation_loss)(*moved))

    h = 1e-4
    difference = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    derivative = float(jax.jit(jax.grad(validation_loss, argnums=argument))(*at))
    assert abs(derivative) > 1e-3
    assert derivative == pytest.approx(difference, rel=1e-5)


@pytest.mark.implicit_promotion
def test_learning_the_ridge_through_the_validation_loss_lowers_it():
    """Gradient steps on log l2; the best of a grid is hardly better than where they end."""
    slope = jax.jit(jax.value_and_grad(lambda log: validation_loss(0.8, jnp.exp(log))))
    log = jnp.log(jnp.asarray(1.0, DTYPE))
    first, _ = slope(log)
    for _ in range(40):
        value, derivative = slope(log)
        log -= 2.0 * derivative
    grid = min(float(slope(jnp.asarray(x, DTYPE))[0]) for x in np.linspace(-6, 2, 33))
    assert value < 0.9 * first
    assert value < grid + 0.02 * first
