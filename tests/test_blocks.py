"""Blocked evaluation: equal to the equation to the bit on small integers, whatever the blocks.

On small integers with margin 0.5 every order of summation is exact, so that a tile counted twice, a
row skipped wrongly or a ragged end read as padding shows as a difference, however small its share.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcgrad
from mcgrad import _blocks
from mcgrad.losses import _scores
from tests.conftest import precision

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 3), (3, 5), (13, 11), (11, 13), (8, 8), (200, 17), (70, 149)]
BLOCKS = [None, 1, 2, 3, 8, 64, 1000]
FEATURES = 3


def integers(seed, *shape, low=-3, high=4):
    return jnp.asarray(np.random.default_rng(seed).integers(low, high, shape), jnp.float32)


def equal(got, expected):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def hinge(examples, classes, *, power=1, reduction="sum", weighted=False, bias=False):
    params = {
        "weights": integers(0, classes, FEATURES),
        "inputs": integers(1, examples, FEATURES),
    }
    labels = jnp.asarray(np.random.default_rng(2).integers(0, classes, examples))
    options = {"margin": jnp.float32(0.5), "power": power, "reduction": reduction}
    if bias:
        params["bias"] = integers(3, classes)
    if weighted:
        params["class_weight"] = integers(4, classes, low=0)
        params["sample_weight"] = integers(5, examples, low=0)

    def call(loss, params, block_size):
        given = dict(params)
        first = given.pop("weights"), given.pop("inputs"), labels
        return loss(*first, **given, **options, block_size=block_size)

    return call, params


def squares(examples, outputs, *, reduction="sum", weighted=False, bias=False):
    params = {
        "weights": integers(0, outputs, FEATURES),
        "inputs": integers(1, examples, FEATURES),
        "targets": integers(2, examples, outputs),
    }
    if bias:
        params["bias"] = integers(3, outputs)
    if weighted:
        params["sample_weight"] = integers(5, examples, low=0)

    def call(loss, params, block_size):
        given = dict(params)
        first = given.pop("weights"), given.pop("inputs"), given.pop("targets")
        return loss(*first, **given, reduction=reduction, block_size=block_size)

    return call, params


def value_and_gradients(loss, call, params, block_size):
    def total(params):
        values = call(loss, params, block_size)
        signs = jnp.where(jnp.arange(values.size) % 3 == 0, -2.0, 1.0).reshape(values.shape)
        return jnp.sum(values * (signs if values.ndim else 1.0)), values

    (_, values), gradients = jax.value_and_grad(total, has_aux=True)(params)
    return values, gradients


SETTINGS = [
    {},
    {"power": 2, "bias": True},
    {"reduction": "none", "weighted": True},
    {"weighted": True, "power": 2, "reduction": "none", "bias": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocked_hinge_equals_the_equation_to_the_bit(shape, settings):
    call, params = hinge(*shape, **settings)
    loss = mcgrad.linear_weston_watkins_loss
    run = jax.jit(value_and_gradients, static_argnums=(0, 1, 3))
    expected = run(mcgrad.plain(loss), call, params, None)
    blocks = BLOCKS if settings == {} else BLOCKS[1::2]
    for block_size in blocks:
        got = run(loss, call, params, block_size)
        assert equal(got, expected), block_size


@pytest.mark.parametrize("settings", [{}, {"reduction": "none", "weighted": True, "bias": True}])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocked_least_squares_equals_the_equation_to_the_bit(shape, settings):
    call, params = squares(*shape, **settings)
    loss = mcgrad.linear_least_squares_loss
    run = jax.jit(value_and_gradients, static_argnums=(0, 1, 3))
    expected = run(mcgrad.plain(loss), call, params, None)
    for block_size in BLOCKS[1::2]:
        assert equal(run(loss, call, params, block_size), expected), block_size


@pytest.mark.parametrize("shape", [(16, 11), (64, 149)], ids=str)
def test_a_blocked_mean_equals_the_equation_to_the_bit(shape):
    """Over a power of two, whose inverse is exact."""
    call, params = hinge(*shape, reduction="mean")
    run = jax.jit(value_and_gradients, static_argnums=(0, 1, 3))
    expected = run(mcgrad.plain(mcgrad.linear_weston_watkins_loss), call, params, None)
    for block_size in BLOCKS:
        got = run(mcgrad.linear_weston_watkins_loss, call, params, block_size)
        assert equal(got, expected), block_size


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("shape", [(256, 97), (256, 512)], ids=str)
@pytest.mark.parametrize("violating", [0, 1, 16, 17, 64, 65, 256])
def test_active_rows_lose_nothing(shape, violating, power):
    """Around every size to which a tile is compacted."""
    examples, classes = shape
    weights = 4 * jnp.eye(classes, classes, dtype=jnp.float32)
    labels = jnp.arange(examples) % classes
    inputs = weights[labels] / 2
    rows = jnp.asarray(np.random.default_rng(0).permutation(examples)[:violating], jnp.int32)
    # These examples lie by another class, and one of them at a tie.
    inputs = inputs.at[rows].set(weights[(labels[rows] + 3) % classes])
    run = jax.jit(
        jax.value_and_grad(
            lambda loss, w, x, block: loss(
                w, x, labels, margin=0.5, power=power, reduction="sum", block_size=block
            ),
            argnums=(1, 2),
        ),
        static_argnums=(0, 3),
    )
    loss = mcgrad.linear_weston_watkins_loss
    expected = run(mcgrad.plain(loss), weights, inputs, None)
    for block in (100, 128):
        assert equal(run(loss, weights, inputs, block), expected)


def test_active_rows_are_chosen_per_tile():
    """The compiled program holds the choice, and the products of the compacted sizes."""
    shapes = (
        jax.ShapeDtypeStruct((512, 8), jnp.float32),
        jax.ShapeDtypeStruct((256, 8), jnp.float32),
        jax.ShapeDtypeStruct((256,), jnp.int32),
    )
    loss = functools.partial(mcgrad.linear_weston_watkins_loss, block_size=64)
    gradient = jax.grad(loss, argnums=(0, 1))
    text = jax.jit(gradient).lower(*shapes).as_text()
    assert "stablehlo.case" in text
    for fraction in _scores.COMPACTIONS:
        assert f"tensor<{256 // fraction}x64xf32>" in text
    smooth = jax.jit(lambda w, x, t: jax.grad(loss, argnums=(0, 1))(w, x, t, mu=5.0))
    assert "stablehlo.case" not in smooth.lower(*shapes).as_text()


@pytest.mark.parametrize("slopes_need_state", [False, True])
def test_the_blocks_cover_every_index_once(slopes_need_state):
    for rows, columns, block in itertools.product([0, 1, 5, 12], [1, 3, 13], [None, 1, 4, 5, 99]):
        plan = _blocks.make_plan(rows, columns, 3, block, slopes_need_state=slopes_need_state)
        length = rows if plan.by_examples else columns

        def body(counts, block):
            index = block.start + jnp.arange(block.size)
            return counts.at[index].add(
                1 if block.fresh is None else jnp.where(index < block.fresh, 0, 1)
            )

        counts = _blocks.loop_over_blocks(body, jnp.zeros(length, int), length, plan.size)
        assert counts.tolist() == [1] * length


def test_what_an_overlapping_block_writes_is_written_over():
    x = jnp.arange(11)

    def body(out, block):
        own = _blocks.read_block(x, block)
        if block.fresh is not None:
            own = jnp.where(block.start + jnp.arange(block.size) < block.fresh, -1, own)
        return _blocks.write_block(out, own, block)

    assert _blocks.loop_over_blocks(body, jnp.zeros(11, int), 11, 4).tolist() == x.tolist()


LOSSES = {
    "hinge, more classes": (
        functools.partial(mcgrad.linear_weston_watkins_loss, block_size=256),
        [((4096, 16), jnp.float32), ((1024, 16), jnp.float32), ((1024,), jnp.int32)],
        1024 * 4096,
    ),
    "hinge, more examples": (
        functools.partial(mcgrad.linear_weston_watkins_loss, block_size=256),
        [((1024, 16), jnp.float32), ((4096, 16), jnp.float32), ((4096,), jnp.int32)],
        1024 * 4096,
    ),
    "hinge, per example": (
        lambda *args: jnp.sum(
            jnp.sin(mcgrad.linear_weston_watkins_loss(*args, block_size=256, reduction="none"))
        ),
        [((4096, 16), jnp.float32), ((1024, 16), jnp.float32), ((1024,), jnp.int32)],
        1024 * 4096,
    ),
    "least squares": (
        functools.partial(mcgrad.linear_least_squares_loss, block_size=256),
        [((512, 16), jnp.float32), ((8192, 16), jnp.float32), ((8192, 512), jnp.float32)],
        512 * 8192,
    ),
    "network": (
        lambda W, x: mcgrad.logistic_network_loss(
            W, jnp.zeros(512), jnp.ones(512), x, jnp.ones(8192), block_size=256
        ),
        [((512, 16), jnp.float32), ((8192, 16), jnp.float32)],
        512 * 8192,
    ),
    "squared ReLU": (mcgrad.squared_relu_norm, [((2048, 4096), jnp.float32)], 2048 * 4096),
}


@pytest.mark.parametrize("name", LOSSES)
def test_no_array_of_examples_times_outputs_exists(name):
    loss, shapes, whole = LOSSES[name]
    structs = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    argnums = tuple(i for i, s in enumerate(structs) if s.dtype == jnp.float32)[:2]
    compiled = jax.jit(jax.value_and_grad(loss, argnums=argnums)).lower(*structs).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries < 4 * whole / 2


def test_a_vmapped_example_holds_no_array_of_examples_times_classes():
    """What is saved for the backward pass: the arguments, and sums per example."""
    weights, inputs = jnp.ones((37, 5)), jnp.ones((11, 5))
    labels = jnp.arange(11)
    loss = mcgrad.linear_weston_watkins_loss
    for fun in (
        lambda w, x: jax.vmap(loss, (None, 0, 0))(w, x, labels),
        lambda w, x: loss(w, x, labels, reduction="none"),
    ):
        _, pull = jax.vjp(fun, weights, inputs)
        sizes = [leaf.size for leaf in jax.tree.leaves(pull)]
        assert sizes and max(sizes) < 11 * 37


def test_task_covariance_is_one_factorization_and_one_solve():
    """A solve with a Cholesky factor is two triangular ones; the value needs the first of them."""
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((20, 7), (7, 7))]
    loss = mcgrad.task_covariance_penalty
    for fun, solves in ((jax.value_and_grad(loss, argnums=(0, 1)), 2), (loss, 1)):
        assert jax.jit(fun).lower(*structs).as_text().count("call @cholesky(") == 1
        assert str(jax.make_jaxpr(fun)(*structs)).count("= triangular_solve[") == solves


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bf16", "f16"])
def test_products_in_the_input_dtype_with_float32_sums(dtype):
    """No operand of a product is widened, and no product is summed in half precision."""
    structs = [
        jax.ShapeDtypeStruct((512, 8), dtype),
        jax.ShapeDtypeStruct((256, 8), dtype),
        jax.ShapeDtypeStruct((256,), jnp.int32),
    ]
    loss = functools.partial(mcgrad.linear_weston_watkins_loss, block_size=64)
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*structs).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    half = {jnp.bfloat16: "bf16", jnp.float16: "f16"}[dtype]
    assert len(products) >= 3
    for line in products:
        operands, result = line.split(" : ")[-1].split(" -> ")
        assert operands.count(f"x{half}>") == 2 and "xf32>" in result, line


def test_half_precision_is_summed_in_float32():
    """4096 violated margins of 1 are 4096, where bf16 would stop at 256."""
    with precision(jnp.bfloat16):
        weights, inputs = jnp.zeros((4097, 1), jnp.bfloat16), jnp.ones((1, 1), jnp.bfloat16)
        labels = jnp.zeros(1, int)
        value = mcgrad.linear_weston_watkins_loss(weights, inputs, labels, block_size=100)
        assert value == 4096


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_of_a_blocked_loss(reduction):
    """The squared hinge, whose second derivative is not zero, walked either way."""
    for shape in ((11, 5), (5, 11)):
        call, params = hinge(*shape, power=2, reduction=reduction)

        def hessian(loss, block, params=params, call=call):
            return jax.hessian(lambda p: jnp.sum(call(loss, p, block)))(params)

        expected = jax.jit(hessian, static_argnums=(0, 1))(
            mcgrad.plain(mcgrad.linear_weston_watkins_loss), None
        )
        got = jax.jit(hessian, static_argnums=(0, 1))(mcgrad.linear_weston_watkins_loss, 3)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
