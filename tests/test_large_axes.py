"""More than 2^31 entries, or examples: no index is narrower than the axis that it points into."""

import jax
import jax.numpy as jnp
import pytest

import mcgrad
from mcgrad import _blocks

LARGE = 2**31 + 11  # a prime number


def of(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def weighted(name, **options):
    """The loss with a sample weight as the last argument, so that everything is traced."""

    def loss(*args):
        *args, sample_weight = args
        return mcgrad.LOSSES[name](*args, sample_weight=sample_weight, **options)

    return loss


def norm(**options):
    return lambda x, mu: mcgrad.squared_relu_norm(x, mu=mu, **options)


LABELS = of(LARGE, dtype=jnp.int8)
CALLS = {
    "norm, one axis": (norm(), [of(LARGE), of()]),
    "norm, rows": (norm(), [of(2**11 + 1, 2**20, dtype=jnp.bfloat16), of()]),
    "norm, two long rows": (norm(), [of(2, LARGE), of()]),
    "norm, more than any block can start at": (norm(), [of(2**17 + 1, 2**15), of()]),
    "norm of bfloat16, exact": (mcgrad.squared_relu_norm, [of(LARGE, dtype=jnp.bfloat16)]),
    "hinge": (weighted("weston_watkins_loss"), [of(LARGE, 3), LABELS, of(LARGE)]),
    "hinge, many scores": (
        weighted("weston_watkins_loss"),
        [of(2**16, 2**16), of(2**16, dtype=jnp.int32), of(2**16)],
    ),
    "linear hinge": (
        weighted("linear_weston_watkins_loss"),
        [of(5, 1), of(LARGE, 1), LABELS, of(LARGE)],
    ),
    "linear hinge, two batch axes": (
        weighted("linear_weston_watkins_loss", reduction="none", block_size=1000),
        [of(5, 1), of(2**16, 2**16 - 1, 1), of(2**16, 2**16 - 1, dtype=jnp.int8),
         of(2**16, 2**16 - 1)],
    ),
    "linear hinge, many weights": (
        weighted("linear_weston_watkins_loss", block_size=1000),
        [of(2**20, 2**12), of(2, 2**12), of(2, dtype=jnp.int32), of(2)],
    ),
    "squares": (
        weighted("linear_least_squares_loss"),
        [of(2, 1), of(LARGE, 1), of(LARGE, 2), of(LARGE)],
    ),
    "squares, outputs": (
        weighted("linear_least_squares_loss"),
        [of(LARGE, 1), of(2, 1), of(2, LARGE), of(2)],
    ),
    "network": (
        weighted("logistic_network_loss"),
        [of(4, 1), of(4), of(4), of(LARGE, 1), of(LARGE), of(LARGE)],
    ),
}  # fmt: skip


def equations(jaxpr):
    """All equations of a program, those of the programs inside it too."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(
            [*equation.params.values()], is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def indexed(equation):
    """(axes that are indexed, the dtype of the index) of an equation that indexes."""
    shapes = [getattr(v.aval, "shape", ()) for v in equation.invars]
    if equation.primitive.name == "dynamic_slice":
        yield from sliced(shapes[0], equation.params["slice_sizes"], equation.invars[1:])
    elif equation.primitive.name == "dynamic_update_slice":
        yield from sliced(shapes[0], shapes[1], equation.invars[2:])
    elif equation.primitive.name in ("gather", "scatter-add", "scatter"):
        numbers = equation.params["dimension_numbers"]
        axes = getattr(numbers, "start_index_map", None)
        axes = numbers.scatter_dims_to_operand_dims if axes is None else axes
        yield from ((shapes[0][i], equation.invars[1].aval.dtype) for i in axes)
    elif equation.primitive.name == "iota" and jnp.issubdtype(
        equation.params["dtype"], jnp.integer
    ):
        yield equation.params["shape"][equation.params["dimension"]], equation.params["dtype"]


def sliced(shape, sizes, starts):
    for whole, size, start in zip(shape, sizes, starts, strict=True):
        if size < whole:
            yield whole, start.aval.dtype


@pytest.mark.parametrize("name", CALLS)
def test_every_index_holds_the_axis_that_it_points_into(name):
    function, args = CALLS[name]
    real = [i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, jnp.floating)]
    program = jax.make_jaxpr(jax.value_and_grad(lambda *a: jnp.sum(function(*a)), argnums=real))
    indices = [i for e in equations(program(*args).jaxpr) for i in indexed(e)]
    for size, dtype in indices:
        assert size - 1 <= jnp.iinfo(dtype).max, (size, dtype)


@pytest.mark.parametrize(
    ("length", "size"), [(LARGE, 2**29), (2**32 - 1, 2**30), (LARGE, 2**31), (2**31, 2**30)]
)
def test_every_block_starts_where_it_should(length, size):
    def body(carry, block):
        count, starts = carry
        return count + 1, starts.at[count].set(jnp.asarray(block.start, jnp.uint32))

    count, starts = _blocks.loop_over_blocks(body, (0, jnp.zeros(8, jnp.uint32)), length, size)
    ragged = [length - size] if length % size else []
    assert starts[:count].tolist() == [*ragged, *range(0, length - length % size, size)]


def test_what_no_index_holds_is_refused():
    scores, labels = of(1, 2**31), of(1, dtype=jnp.int32)
    with pytest.raises(ValueError, match="classes: .*fewer than 2147483648"):
        jax.eval_shape(mcgrad.weston_watkins_loss, scores, labels)
    inputs, targets = of(2**32, 1), of(2**32, 1)
    with pytest.raises(ValueError, match="fewer than 4294967296 entries"):
        jax.eval_shape(mcgrad.linear_least_squares_loss, of(1, 1), inputs, targets)
