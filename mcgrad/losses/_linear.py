"""One pass over the linear scores S = X Wᵀ + 1 bᵀ of a loss, in tiles of bounded memory.

A loss states what it makes of one tile of scores: sums over the tile's columns, and the slopes
G = ∂(Σ losses)/∂S. The pass turns the slopes into

    ∂/∂W = Gᵀ X        ∂/∂X = G W        ∂/∂b = Gᵀ 1

tile by tile, so that no array of examples x outputs exists: three matrix products when all is
wanted, one when only the values are. Where there are more examples than columns the examples are
walked, and a tile sees every column; elsewhere the columns are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mcgrad._arrays import Array, product
from mcgrad._blocks import Plan, put, take, walk
from mcgrad._reduction import Reduction, close
from mcgrad._split import vary, varying, zeros

__all__ = ["Sums", "Tile", "linear_scores", "one_pass", "sum_over_tiles"]

# Examples whose slopes are all zero need no products. A tile with few others is compacted to the
# first of these fractions of its examples that holds them all.
COMPACTIONS = (16, 4)


class Tile(NamedTuple):
    """What a loss makes of one tile of scores."""

    rows: tuple[Array, ...]  # sums over the tile's columns, (examples,) each
    slopes: Array  # G, (examples, columns)
    columns: Array | None = None  # a sum over the tile's examples, (columns,)
    active: Array | None = None  # the examples whose slopes may differ from zero; None for all


class Sums(NamedTuple):
    """Sums over all tiles. A scalar stands where nothing was wanted."""

    rows: tuple[Array, ...]
    weights: Array
    inputs: Array
    bias: Array
    columns: Array
    scores: Array

    def times(self, factor: Array) -> "Sums":
        """The gradients times a factor."""
        return Sums(self.rows, *(factor * gradient for gradient in self[1:]))


def linear_scores(weights: Array, inputs: Array, bias: Array | None, dtype: Any) -> Array:
    """X Wᵀ + 1 bᵀ of inputs (examples, features), accumulated in `dtype`."""
    scores = product(inputs, weights.T, dtype)
    return scores if bias is None else scores + bias[None]


def one_pass(reduction: Reduction, plan: Plan) -> bool:
    """Whether gradients are summed together with the value, to be scaled by the cotangent later.

    Without a reduction each example has a cotangent of its own, known only later. And for a single
    tile, computing the scores again (which XLA merges with the first time inside one program) beats
    holding a gradient: that would be one gradient per call under `vmap`, and a pass to scale it.
    """
    return reduction.name != "none" and not plan.whole


def sum_over_tiles(
    tile: Callable[[Array, Any, Any], Tile],
    data: Any,
    weights: Array,
    inputs: Array,
    bias: Array | None,
    *,
    plan: Plan,
    dtype: Any,
    rows: tuple[bool, ...],
    wanted: frozenset[str],
) -> Sums:
    """Sum `tile(scores, data of its examples, its first column)` over all tiles.

    Args:
        data: pytree of arrays (examples, ...): what the tile needs to know of each example. Its
            `dead` are the examples of weight 0.
        dtype: in which all sums run.
        rows: which of the tile's `rows` are wanted.
        wanted: which other fields of `Sums` are.
    """
    examples, outputs = inputs.shape[0], weights.shape[0]
    shapes = {
        "weights": weights.shape,
        "inputs": inputs.shape,
        "bias": (outputs,),
        "columns": (outputs,),
        "scores": (examples, outputs),
    }
    wanted = wanted & frozenset(shapes)
    like = data, weights, inputs
    walked = {"inputs"} if plan.by_rows else {"weights", "bias", "columns"}

    def products(part: Tile, own: Any, x: Array, w: Array) -> dict[str, Array]:
        slopes = close(own.dead, x, part.slopes).astype(x.dtype)
        parts = {
            "weights": lambda: product(slopes.T, x, dtype),
            "inputs": lambda: product(slopes, w, dtype),
            "bias": lambda: jnp.sum(part.slopes, 0),
            "columns": lambda: part.columns,
            "scores": lambda: part.slopes,
        }
        # A product over no examples at all does not vary over a mesh by itself.
        return {name: vary(parts[name](), varying(like)) for name in wanted}

    def body(carry: Any, start: Any, size: int) -> Any:
        totals, sums = dict(carry[0]), carry[1]
        if plan.by_rows:
            own, x = jax.tree.map(lambda leaf: take(leaf, start, size), (data, inputs))
            w, b, first = weights, bias, 0
        else:
            own, x, first = data, inputs, start
            w, b = jax.tree.map(lambda leaf: take(leaf, start, size), (weights, bias))
        scores = linear_scores(w, x, b, dtype)
        part = tile(scores, own, first)
        active = part.active

        def dense(shared: dict[str, Array]) -> dict[str, Array]:
            # From the scores again: the slopes would have to be held for a branch to take them in.
            return _add(shared, products(tile(scores, own, first), own, x, w))

        def compact(size: int, shared: dict[str, Array]) -> dict[str, Array]:
            # Places that are left over point behind the last example, where data is zero.
            chosen = jnp.nonzero(jnp.asarray(active), size=size, fill_value=x.shape[0])[0]
            some, its_own, its_x = jax.tree.map(
                lambda leaf: leaf.at[chosen].get(mode="fill", fill_value=0), (scores, own, x)
            )
            parts = products(tile(some, its_own, first), its_own, its_x, w)
            if "inputs" in parts:
                onto = shared["inputs"] if "inputs" in shared else zeros(x.shape, dtype, like)
                onto = onto.at[chosen].add(parts.pop("inputs"), mode="drop")
                shared = {name: sum for name, sum in shared.items() if name != "inputs"}
                return _add(shared, parts) | {"inputs": onto}
            return _add(shared, parts)

        # A single tile has nothing to add to: adding zeros would keep XLA from merging the products
        # of a vmapped call into one.
        shared = {} if plan.whole else {name: sums[name] for name in wanted - walked - {"scores"}}
        if not wanted:
            added = {}
        elif active is None or plan.whole or x.shape[0] < 4 * max(COMPACTIONS):
            added = _add(shared, products(part, own, x, w))
        else:
            added = _switch(jnp.sum(active), x.shape[0], compact, dense, shared)
        for index, total in totals.items():
            new = part.rows[index]
            totals[index] = put(total, new, start) if plan.by_rows else total + new
        for name in wanted & walked:
            added[name] = put(sums[name], added[name], start)
        if "scores" in wanted:
            axis = 0 if plan.by_rows else 1
            added["scores"] = put(sums["scores"], added["scores"], start, axis)
        return totals, added

    totals = {index: zeros((examples,), dtype, like) for index, flag in enumerate(rows) if flag}
    sums = {name: zeros(shapes[name], dtype, like) for name in wanted}
    length = examples if plan.by_rows else outputs
    totals, sums = walk(body, (totals, sums), length, plan.size)
    nothing = jnp.zeros((), dtype)
    return Sums(
        tuple(totals.get(index, nothing) for index in range(len(rows))),
        **{name: sums.get(name, nothing) for name in shapes},
    )


def _add(sums: dict[str, Array], parts: dict[str, Array]) -> dict[str, Array]:
    return {name: sums[name] + part if name in sums else part for name, part in parts.items()}


def _switch(
    active: Array,
    examples: int,
    compact: Callable[[int, Any], Any],
    dense: Callable[[Any], Any],
    shared: Any,
) -> Any:
    """Run `compact` on the smallest size that holds the active examples, or `dense`."""
    sizes = [0, *(examples // fraction for fraction in COMPACTIONS)]
    index = sum((active > size).astype(jnp.int32) for size in sizes)
    branches = [lambda shared, size=size: compact(size, shared) for size in sizes]
    return lax.switch(index, [*branches, dense], shared)
