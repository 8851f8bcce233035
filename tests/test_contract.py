"""What every loss promises, over one table of losses."""

import functools
import pickle
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcgrad
from mcgrad.audit import has_smooth_variant
from tests.cases import (
    CASES,
    FORWARD,
    REDUCED,
    TRANSFORMATIONS,
    assert_close,
    has_examples,
    norm,
    waves,
)
from tests.conftest import precision, tolerance

# Sums of up to a few dozen terms, in an order of the compiler's choice, that may cancel.
FACTOR = 128
every_case = pytest.mark.parametrize("case", CASES, ids=str)
DTYPES = [jnp.float32, jnp.float64, jnp.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("case", CASES + REDUCED, ids=str)
def test_closed_form_equals_autodiff_of_the_equation(case, dtype):
    with precision(dtype):
        call, params = case.draw(dtype)
        value, pull = jax.vjp(jax.jit(functools.partial(call, case.loss)), params)
        expected, autodiff = jax.vjp(
            jax.jit(functools.partial(call, mcgrad.plain(case.loss))), params
        )
        ct = waves(value)
        got, wanted = pull(ct)[0], autodiff(ct)[0]
        assert value.dtype == expected.dtype == dtype
        assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, params)
        assert_close(value, expected, tolerance(dtype, FACTOR if dtype != jnp.bfloat16 else 4))
        assert_close(got, wanted, tolerance(dtype, FACTOR if dtype != jnp.bfloat16 else 4))


@pytest.mark.parametrize("case", CASES + REDUCED, ids=str)
def test_closed_form_equals_central_differences(case):
    with precision(jnp.float64):
        call, params = case.draw(jnp.float64)

        @jax.jit
        def total(params):
            values = call(case.loss, params)
            return jnp.sum(values * waves(values))

        gradient = jax.grad(total)(params)
        leaves, tree = jax.tree.flatten(params)
        step, differences = 1e-5, []
        for k, leaf in enumerate(leaves):
            entries = np.zeros(leaf.size)
            for i in range(leaf.size):
                bump = jnp.zeros(leaf.size).at[i].set(step).reshape(leaf.shape)
                up, down = (
                    total(
                        jax.tree.unflatten(tree, [*leaves[:k], leaf + s * bump, *leaves[k + 1 :]])
                    )
                    for s in (1, -1)
                )
                entries[i] = (up - down) / (2 * step)
            differences.append(entries.reshape(leaf.shape))
        # step² from the third derivative, eps/step from rounding.
        scale = max(norm(gradient), abs(float(total(params))))
        for got, expected in zip(jax.tree.leaves(gradient), differences, strict=True):
            assert np.abs(np.asarray(got) - expected).max() <= 1e-8 * max(scale, 1)


@pytest.mark.parametrize("face", ["reverse", "forward"])
@every_case
def test_transformations(case, face):
    """One compilation for all of them: it is the transformations that are tested."""
    call, params = case.draw()
    closed = case.loss if face == "reverse" else mcgrad.forward_mode(case.loss)
    table = TRANSFORMATIONS if face == "reverse" else FORWARD

    @functools.partial(jax.jit, static_argnums=0)
    def everything(loss, params):
        return {name: f(functools.partial(call, loss), params) for name, f in table.items()}

    got, expected = everything(closed, params), everything(mcgrad.plain(case.loss), params)
    for name in table:
        assert_close(got[name], expected[name], tolerance(jnp.float32, FACTOR))


@every_case
def test_random_orders_on_one_jitted_function(case):
    """JAX keeps one record of the residuals per traced call, whatever is asked of it later."""
    call, params = case.draw()
    chooser = random.Random(str(case))
    names = [*TRANSFORMATIONS]
    one = jax.jit(functools.partial(call, case.loss))
    plain = jax.jit(functools.partial(call, mcgrad.plain(case.loss)))
    for name in chooser.choices(names, k=4):
        got, expected = (
            jax.jit(functools.partial(TRANSFORMATIONS[name], face))(params) for face in (one, plain)
        )
        assert_close(got, expected, tolerance(jnp.float32, FACTOR))


@every_case
def test_the_call_is_pure_and_eager_equals_jit(case):
    call, params = case.draw()
    before = jax.tree.map(np.array, params)
    eager = jax.value_and_grad(functools.partial(call, case.loss))(params)
    again = jax.value_and_grad(functools.partial(call, case.loss))(params)
    jitted = jax.jit(jax.value_and_grad(functools.partial(call, case.loss)))(params)
    assert all(map(np.array_equal, jax.tree.leaves(eager), jax.tree.leaves(again)))
    assert_close(jitted, eager, tolerance(jnp.float32, FACTOR))
    assert all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(params)))


@pytest.mark.parametrize("case", [c for c in CASES if c.batch == (6,)], ids=str)
def test_a_batch_is_its_examples(case):
    """Reduction "none" is the loss of each example on its own; "sum" and "mean" follow."""
    call, params = case.draw()
    args, kwargs = case.loss.example_args(jax.random.key(0), (6,), jnp.float32, smooth=case.smooth)
    kwargs.pop("sample_weight", None)
    rows = [i for i, x in enumerate(args) if x.shape[:1] == (6,)]

    def one(k):
        own = [x[k] if i in rows else x for i, x in enumerate(args)]
        return case.loss(*own, **kwargs)

    each = jnp.stack([one(k) for k in range(6)])
    got = {r: case.loss(*args, **kwargs, reduction=r) for r in ("none", "sum", "mean")}
    assert_close(got["none"], each, tolerance(jnp.float32))
    assert_close(got["sum"], jnp.sum(each), tolerance(jnp.float32))
    assert_close(got["mean"], jnp.mean(each), tolerance(jnp.float32))


@pytest.mark.parametrize("name", [*filter(has_examples, mcgrad.LOSSES)])
def test_an_example_of_weight_zero_adds_nothing_even_if_it_is_nan(name):
    loss = mcgrad.LOSSES[name]
    args, kwargs = loss.example_args(jax.random.key(0), (6,), jnp.float32, smooth=False)
    rows = [i for i, x in enumerate(args) if x.shape[:1] == (6,)]
    kwargs["sample_weight"] = kwargs["sample_weight"].at[2].set(0.0)
    broken = [
        x.at[2].set(jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 99) if i in rows else x
        for i, x in enumerate(args)
    ]
    keep = jnp.array([0, 1, 3, 4, 5])
    short = [x[keep] if i in rows else x for i, x in enumerate(args)]
    less = kwargs | {"sample_weight": kwargs["sample_weight"][keep]}
    real = [i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, jnp.floating)]
    for face in (loss, mcgrad.plain(loss)):
        for reduction in ("mean", "sum"):
            run = functools.partial(jax.value_and_grad(face, argnums=real), reduction=reduction)
            value, gradients = run(*broken, **kwargs)
            expected, without = run(*short, **less)
            assert_close(value, expected, tolerance(jnp.float32))
            for i, got, other in zip(real, gradients, without, strict=True):
                if i in rows:
                    assert not np.any(got[2])
                    got = got[keep]
                assert_close(got, other, tolerance(jnp.float32))


@pytest.mark.parametrize("name", [*filter(has_examples, mcgrad.LOSSES)])
def test_a_finite_example_of_weight_zero_still_has_a_derivative_by_its_weight(name):
    loss = mcgrad.LOSSES[name]
    args, kwargs = loss.example_args(jax.random.key(0), (6,), jnp.float32, smooth=False)
    kwargs["sample_weight"] = kwargs["sample_weight"].at[2].set(0.0)
    weights = kwargs.pop("sample_weight")

    def total(s):
        return loss(*args, **kwargs, sample_weight=s, reduction="sum")

    each = loss(*args, **kwargs, reduction="none")
    assert_close(jax.grad(total)(weights), each, tolerance(jnp.float32, 32))


@pytest.mark.parametrize("mu", [0.5, 5.0, 500.0])
def test_the_smooth_loss_is_within_the_documented_bound_of_the_exact_one(mu):
    """0.13924/mu for each term, times what multiplies the term; and no further bound would do."""
    e = 0.13924 / mu
    scores = jnp.array([[0.6392 / mu + 1, 0.0, 2.0], [0.0, 0.3, -0.4]])
    labels, class_weight = jnp.array([2, 0]), jnp.array([1.0, 2.0, 3.0])
    hinge = functools.partial(
        mcgrad.weston_watkins_loss, scores, labels, class_weight=class_weight, reduction="none"
    )
    difference = jnp.abs(hinge(mu=mu) - hinge())
    assert np.all(difference <= class_weight[labels] * 2 * e * (1 + 1e-5))
    assert difference[0] > 3 * 0.99 * e
    x = jnp.array([-1.0, 0.6392 / mu, 0.1, 2.0])
    norm = mcgrad.squared_relu_norm
    bound = jnp.sum(2 * jnp.maximum(x, 0) * e + e**2)
    assert 0 < abs(norm(x, mu=mu) - norm(x)) <= bound


@pytest.mark.parametrize("name", mcgrad.LOSSES)
def test_every_float_argument_has_a_gradient(name):
    """A float argument whose cotangent is quietly zero is a wrong gradient."""
    case = [c for c in CASES if c.name == name and c.smooth == has_smooth_variant(name)][-1]
    call, params = case.draw()
    signature = case.loss.__code__
    floats = {
        n
        for n in signature.co_varnames[: signature.co_argcount + signature.co_kwonlyargcount]
        if n not in ("power", "reduction", "block_size", "activation", "axis", "where")
    }
    gradient = jax.grad(functools.partial(call, case.loss))(params)
    integers = {"labels"} if "weston_watkins" in name else set()
    assert set(params) == floats - integers
    for argument, value in gradient.items():
        for leaf in jax.tree.leaves(value):
            assert np.any(leaf != 0), argument


@pytest.mark.parametrize("name", mcgrad.LOSSES)
@pytest.mark.parametrize("face", ["reverse", "plain", "forward"])
def test_pickle_partial_and_export(name, face):
    loss = mcgrad.LOSSES[name]
    face = {"reverse": loss, "plain": mcgrad.plain(loss), "forward": mcgrad.forward_mode(loss)}[
        face
    ]
    assert pickle.loads(pickle.dumps(face)) == face
    case = next(c for c in CASES if c.name == name)
    call, params = case.draw()
    fun = jax.jit(jax.value_and_grad(functools.partial(call, pickle.loads(pickle.dumps(face)))))
    exported = jax.export.deserialize(jax.export.export(fun)(params).serialize())
    assert_close(exported.call(params), fun(params), tolerance(jnp.float32))


def tangent(loss, argnums):
    """The derivative of the loss in forward mode, of these arguments alone."""

    def of(*args):
        moved = [args[i] for i in argnums]

        def at(*moved):
            given = dict(zip(argnums, moved, strict=True))
            return loss(*[given.get(i, x) for i, x in enumerate(args)])

        return jax.jvp(at, moved, moved)

    return of


@pytest.mark.parametrize(
    "face, derivative",
    [(lambda loss: loss, jax.grad), (mcgrad.forward_mode, tangent)],
    ids=["gradient", "tangent"],
)
def test_derivatives_nobody_asked_for_are_not_computed(face, derivative):
    """Matrix products in the compiled program: one for the value, one more for each gradient."""
    loss = functools.partial(face(mcgrad.linear_weston_watkins_loss), block_size=64)
    shapes = [
        jax.ShapeDtypeStruct((64, 16), jnp.float32),
        jax.ShapeDtypeStruct((192, 16), jnp.float32),
        jax.ShapeDtypeStruct((192,), jnp.int32),
    ]

    def products(fun):
        return jax.jit(fun).lower(*shapes).as_text().count("stablehlo.dot_general")

    value = products(loss)
    weights = products(derivative(loss, (0,)))
    both = products(derivative(loss, (0, 1)))
    assert value < weights < both
