"""The mechanism on losses of the user's own."""

import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcgrad


def _plain(x, scale, power):
    return scale * jnp.sum(x**power)


def _forward(x, scale, power):
    return _plain(x, scale, power), (x, scale)


def _backward(residuals, ct, *, power):
    x, scale = residuals
    return ct * scale * power * x ** (power - 1), ct * jnp.sum(x**power)


polynomial = mcgrad.pair(_plain, _forward, _backward, static_argnames="power")
X, SCALE = jnp.array([1.0, -2.0, 3.0]), jnp.asarray(0.5)


def test_the_signature_is_the_equations():
    value = polynomial(X, scale=SCALE, power=3)
    assert value == _plain(X, SCALE, 3) == polynomial(X, SCALE, 3)
    gradients = jax.grad(polynomial, argnums=(0, 1))(X, SCALE, 3)
    assert gradients[0].tolist() == (1.5 * X**2).tolist()
    assert gradients[1] == jnp.sum(X**3)
    assert polynomial.__name__ == "_plain"


def test_the_closed_form_is_what_runs():
    """A rule that is wrong on purpose shows in both directions, and not in `plain`."""
    wrong = mcgrad.pair(
        _plain, _forward, lambda r, ct: (7 * ct * r[0], ct * 0), static_argnames=("power",)
    )
    assert jax.grad(wrong)(X, SCALE, 2).tolist() == (7 * X).tolist()
    assert jax.grad(mcgrad.plain(wrong))(X, SCALE, 2).tolist() == X.tolist()
    tangent = jax.jvp(lambda x: mcgrad.forward_mode(wrong)(x, SCALE, 2), (X,), (X,))[1]
    assert tangent == jnp.sum(7 * X * X)


def test_forward_mode_is_refused_by_one_face_and_given_by_the_other():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: polynomial(x, SCALE, 2), (X,), (X,))
    assert jax.jvp(lambda x: mcgrad.forward_mode(polynomial)(x, SCALE, 2), (X,), (X,))[1] == 14


@pytest.mark.parametrize("first", [mcgrad.plain, mcgrad.forward_mode])
@pytest.mark.parametrize("second", [mcgrad.plain, mcgrad.forward_mode])
def test_a_face_of_a_face(first, second):
    assert second(first(polynomial)) == second(polynomial)


def test_pickle():
    for face in (polynomial, mcgrad.plain(polynomial), mcgrad.forward_mode(polynomial)):
        again = pickle.loads(pickle.dumps(face))
        assert again == face and hash(again) == hash(face)
        assert again(X, SCALE, 2) == face(X, SCALE, 2)
    assert polynomial != mcgrad.plain(polynomial)


def test_wanted_names_what_is_differentiated():
    seen = []

    def forward(x, y, *, wanted):
        seen.append(set(wanted))
        return jnp.sum(x * y), (x, y)

    def backward(residuals, ct, *, wanted):
        seen.append(set(wanted))
        x, y = residuals
        return ct * y, ct * x

    product = mcgrad.pair(lambda x, y: jnp.sum(x * y), forward, backward)
    product(X, X)
    jax.grad(product, argnums=1)(X, X)
    assert seen[0] == set()
    assert {"y"} in seen and {"x"} not in seen and {"x", "y"} not in seen


def test_pytrees_integers_and_none():
    def plain(tree, index, extra):
        return tree["a"][index] * jnp.sum(tree["b"])

    def forward(tree, index, extra):
        return plain(tree, index, extra), (tree, index)

    def backward(residuals, ct):
        tree, index = residuals
        by_a = jnp.zeros_like(tree["a"]).at[index].set(ct * jnp.sum(tree["b"]))
        return {"a": by_a, "b": jnp.full_like(tree["b"], ct * tree["a"][index])}, None, None

    loss = mcgrad.pair(plain, forward, backward)
    tree = {"a": jnp.array([2.0, 3.0]), "b": jnp.array([1.0, 4.0])}
    for face in (loss, mcgrad.forward_mode(loss)):
        got = jax.grad(face)(tree, 1, None)
        assert jax.tree.map(lambda x: x.tolist(), got) == {"a": [0.0, 5.0], "b": [3.0, 3.0]}


def test_a_cotangent_forgotten_is_an_error():
    """JAX alone takes None for a float argument as a gradient of 0.0."""
    loss = mcgrad.pair(lambda x: jnp.sum(x), lambda x: (jnp.sum(x), x), lambda r, ct: (None,))
    with pytest.raises(TypeError, match="backward: expected a cotangent of x; got None"):
        jax.grad(loss)(X)


def test_misuse():
    with pytest.raises(TypeError, match="static_argnames: .*'missing'"):
        mcgrad.pair(_plain, _forward, _backward, static_argnames=("missing",))
    with pytest.raises(TypeError, match="plain: .*xs"):
        mcgrad.pair(lambda *xs: xs[0], _forward, _backward)
    for face in (mcgrad.plain, mcgrad.forward_mode):
        with pytest.raises(TypeError, match="loss: expected a loss made by mcgrad.pair"):
            face(jnp.sum)


ORDERS = {
    "value": lambda f, x, s: f(x, s),
    "grad x": lambda f, x, s: jax.grad(f)(x, s),
    "grad s": lambda f, x, s: jax.grad(f, 1)(x, s),
    "grad both": lambda f, x, s: jax.grad(f, (0, 1))(x, s),
    "vmap": lambda f, x, s: jax.vmap(f, (0, None))(jnp.stack([x, 2 * x]), s),
    "vmap of grad": lambda f, x, s: jax.vmap(jax.grad(f), (0, None))(jnp.stack([x, 2 * x]), s),
    "grad of vmap": lambda f, x, s: jax.grad(
        lambda s: jnp.sum(jax.vmap(f, (0, None))(jnp.stack([x, 2 * x]), s))
    )(s),
    "remat": lambda f, x, s: jax.grad(jax.checkpoint(f))(x, s),
    "scan": lambda f, x, s: jax.grad(
        lambda s: jax.lax.scan(lambda c, y: (c + f(y, s), None), 0.0, jnp.stack([x, x]))[0]
    )(s),
    "hessian": lambda f, x, s: jax.jacfwd(jax.grad(f))(x, s),
    "reverse twice": lambda f, x, s: jax.jacrev(jax.grad(f))(x, s),
}


def test_any_two_transformations_of_one_jitted_function_in_any_order():
    """Were the number of residuals to follow what is wanted, a later one would die inside JAX."""

    def forward(x, s, *, wanted):
        by_x = 2 * s * x if "x" in wanted else jnp.zeros(())
        by_s = jnp.sum(x * x) if "s" in wanted else jnp.zeros(())
        return s * jnp.sum(x * x), (by_x, by_s)

    def backward(residuals, ct):
        return tuple(ct * r for r in residuals)

    square = mcgrad.pair(lambda x, s: s * jnp.sum(x * x), forward, backward)
    expected = {name: f(jax.jit(mcgrad.plain(square)), X, SCALE) for name, f in ORDERS.items()}
    for names in itertools.permutations(ORDERS, 2):
        one = jax.jit(lambda x, s: square(x, s))
        for name in (*names, names[0]):
            got = ORDERS[name](one, X, SCALE)
            pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected[name]), strict=True)
            assert all(np.allclose(a, b) for a, b in pairs), names
