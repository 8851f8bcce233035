"""What mcgrad's programs do and hold in every case of the bench, at its full size: without a clock.

The programs are compiled from shapes alone. Their matrix products are counted in the compiled text,
so that what the compiler merges or drops does not count, and what a loop repeats counts as often.
"""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from bench.cases import CASES, SCORES
from bench.hlo import products

OWN = "mcgrad", "forward_mode"  # Another mode is the library's own too.


@functools.cache
def compiled(function, wrt, arguments, structure):
    """(multiply-adds, bytes of temporaries); a program that several cases share is made once."""
    given = jax.tree.unflatten(structure, arguments)
    program = jax.jit(jax.value_and_grad(function, wrt) if wrt else function)
    program = program.lower(*given).compile()
    return products(program.as_text()), program.memory_analysis().temp_size_in_bytes


def excesses(side, sizes, allowed):
    """What a side does or holds beyond what is allowed."""
    arguments, structure = jax.tree.flatten(side.arguments)
    work, temporaries = compiled(side.function, side.wrt, tuple(arguments), structure)
    one = math.prod(sizes[name] for name in allowed.of)
    found = []
    # A ragged end is computed twice. By half as many, the products would have been overlooked: XLA
    # has other names for some (a sum of outer products), and the bounds would guard nothing.
    if not allowed.products / 2 <= work / one <= allowed.products * 1.02:
        found.append(f"{work / one:.4g} products, {allowed.products} allowed")
    if temporaries > allowed.temporaries:
        found.append(f"{temporaries} bytes, {allowed.temporaries} allowed")
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_case_does_or_holds_more_than_it_may(case):
    sides = [side for side in case.contenders_of_shapes() if side.name in OWN]
    assert sides
    for side in sides:
        assert excesses(side, case.sizes, case.program) == []


def test_what_is_added_is_found():
    """A fourth product, and an array of examples x classes, in the first case."""
    case = CASES[0]
    (side,) = [side for side in case.contenders_of_shapes() if side.name == "mcgrad"]

    def another_product(weights, inputs, labels):
        return side.function(weights, inputs, labels) + jnp.sum(jnp.tanh(inputs @ weights.T))

    again, held = excesses(side._replace(function=another_product), case.sizes, case.program)
    assert "products" in again and "bytes" in held


# Five tiles of examples; of the branches, the second has two products and the first one.
EXAMPLES, FEATURES, CLASSES, TILES = 20, 3, 7, 5


def in_tiles(weights, inputs, labels):
    def step(total, tile):
        x, dense = tile
        scores = x @ weights.T

        def some():
            return jnp.sum(scores @ weights)

        def all_of_it():
            return some() + jnp.sum(scores.T @ x)

        return total + jax.lax.cond(dense, all_of_it, some), None

    tiles = inputs.reshape(TILES, -1, FEATURES), labels[:TILES] > 0
    return jax.lax.scan(step, 0.0, tiles)[0]


def test_products_are_counted_with_their_loops_and_the_dearest_branch():
    sizes = dict(zip(SCORES, (EXAMPLES, FEATURES, CLASSES), strict=True))
    shapes = [
        jax.ShapeDtypeStruct((CLASSES, FEATURES), jnp.float32),
        jax.ShapeDtypeStruct((EXAMPLES, FEATURES), jnp.float32),
        jax.ShapeDtypeStruct((EXAMPLES,), jnp.int32),
    ]
    one = math.prod(sizes.values())
    assert products(jax.jit(in_tiles).lower(*shapes).compile().as_text()) == 3 * one
