"""The pass over the scores S = X Wᵀ + 1 biasᵀ of a loss, in tiles of bounded memory.

A `ScoreLoss` says what it makes of one tile of scores: a state, which merges with that of other
tiles and of other devices, and the slopes G = ∂f/∂S. The pass turns the slopes into

    ∂/∂W = Gᵀ X        ∂/∂X = G W        ∂/∂bias = Gᵀ 1

tile by tile, so that no array of examples x columns exists. Where a tile holds every column, or the
slopes need no state, all is done in one pass: three matrix products. Elsewhere the states are
merged first, and the scores are computed again for the slopes: four.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mcgrad._arrays import Array, matmul
from mcgrad._blocks import Block, Plan, loop_over_blocks, read_block, write_block
from mcgrad._merge import Sum
from mcgrad._mesh import WHOLE, MeshAxes, pvary, varying
from mcgrad._reduction import closed_examples, finite, spare

__all__ = [
    "ScoreLoss",
    "Scores",
    "Tile",
    "linear_scores",
    "make_tile",
    "scaled",
    "sweep",
    "tile_slopes",
]

# Examples whose slopes are all zero need no products. A tile with few others is compacted to the
# first of these fractions of its examples that holds them all.
COMPACTIONS = (16, 4)
# The gradients that are made of the slopes.
PRODUCTS = {"weights", "inputs", "bias"}
# Sums and differences of numbers below this share of the largest do not overflow.
SHARE = 2.0**-8

State = dict[str, Any]
Named = dict[str, Array]


class Tile(NamedTuple):
    """A block of scores, and what a loss may know of its examples and columns."""

    scores: Array  # (examples, columns)
    is_true: Array | None  # (examples, columns): the true class
    repeated: Array | None  # (columns,): counted by another tile
    true_scores: Array | None  # s_t, (examples,)
    hidden: Any  # inf for the dead examples of which the tile hides numbers, else 0
    examples: Named  # (examples,) each
    columns: Named  # (columns,) each
    entries: Named  # (examples, columns) each

    def others(self, terms: Array, fill: Any = 0) -> Array:
        """The terms of the columns j ≠ t of this tile, and `fill` in place of all others."""
        if self.is_true is not None:
            terms = jnp.where(self.is_true, fill, terms)
        return terms if self.repeated is None else jnp.where(self.repeated[None], fill, terms)

    def sum(self, terms: Array) -> Sum:
        """Σ_{j≠t} of the tile's terms."""
        return Sum(jnp.sum(self.others(terms), 1))

    @property
    def margins(self) -> Array:
        """s_j - s_t."""
        assert self.true_scores is not None
        return self.scores - self.true_scores[:, None]


@dataclasses.dataclass(frozen=True)
class ScoreLoss:
    """A loss f of the scores s (columns,) of one example: what a subclass states.

    The fields of a subclass are its scalar arguments and options, by their public names. `needs` is
    the set of the names of the arguments whose gradient is asked for.
    """

    has_true_class: ClassVar[bool] = False
    slopes_need_state: ClassVar[bool] = False
    example_arguments: ClassVar[tuple[str, ...]] = ()  # (examples,) each
    column_arguments: ClassVar[tuple[str, ...]] = ()  # (columns,) each
    entry_arguments: ClassVar[tuple[str, ...]] = ()  # (examples, columns) each
    scalar_arguments: ClassVar[tuple[str, ...]] = ()

    @property
    def score_exponent(self) -> float:
        """Scores up to a share of (the largest number)^exponent have finite terms and slopes."""
        return 1.0

    def equation(self, scores: Array, data: Named) -> Array:
        """f of each example as it is written: to be read, and for autodiff."""
        raise NotImplementedError

    def kinds(self, needs: frozenset[str]) -> dict[str, Any]:
        """The fields of the state that the value and these gradients need, and how they merge."""
        raise NotImplementedError

    def state(self, tile: Tile) -> State:
        """What the columns j ≠ t of a tile add up to."""
        raise NotImplementedError

    def value(self, state: State, examples: Named) -> Array:
        """f of each example, from the merged state."""
        raise NotImplementedError

    def slopes(self, tile: Tile, state: State) -> Array:
        """∂f/∂s_j for j ≠ t; `state` is merged if `slopes_need_state`."""
        raise NotImplementedError

    def true_slope(self, state: State, examples: Named) -> Array:
        """∂f/∂s_t, from the merged state."""
        raise NotImplementedError

    def partials(self, state: State, examples: Named) -> Named:
        """∂f/∂θ for the arguments θ for which the merged state is enough, (examples,) each."""
        return {}

    def tile_partials(self, tile: Tile, state: State) -> Named:
        """What a tile adds to ∂f/∂θ for the other arguments θ.

        (examples,) for a scalar; for an argument along the columns, or one with entries, every
        example's ∂f/∂θ_j: (examples, columns).
        """
        return {}

    def active(self, state: State) -> Array | None:
        """The examples whose slopes in a tile may differ from zero, from the tile's own state.

        None for a loss whose slopes are never exactly zero.
        """
        return None


class Scores(NamedTuple):
    """Scores as inputs times weights, and the data of the loss.

    Among the data of the examples are the "true_class" of a loss that has one, and which are "dead"
    where there are weights.
    """

    weights: Array  # (columns, features)
    inputs: Array  # (examples, features)
    bias: Array | None  # (columns,)
    examples: dict[str, Any]  # (examples,) each
    columns: Named  # (columns,) each
    entries: Named  # (examples, columns) each

    @property
    def shape(self) -> tuple[int, int]:
        return self.inputs.shape[0], self.weights.shape[0]

    def block(self, block: Block, by_examples: bool) -> "Scores":
        """A block of examples with all columns, or of columns with all examples."""
        along = ("inputs", "examples") if by_examples else ("weights", "bias", "columns")
        parts = {name: getattr(self, name) for name in along}
        parts = jax.tree.map(lambda x: read_block(x, block), parts)
        axis = 0 if by_examples else 1
        entries = {name: read_block(x, block, axis) for name, x in self.entries.items()}
        return self._replace(entries=entries, **parts)


def linear_scores(weights: Array, inputs: Array, bias: Array | None, dtype: Any) -> Array:
    """X Wᵀ + 1 biasᵀ of inputs (examples, features), accumulated in `dtype`."""
    scores = matmul(inputs, weights.T, dtype)
    return scores if bias is None else scores + bias[None]


def close(examples: Named, slopes: Array) -> Array:
    """The slopes, constant 0 for closed examples: see `closed_examples`."""
    closed = examples.get("closed")
    if closed is None:
        return slopes
    return jnp.where(closed.reshape(closed.shape + (1,) * (slopes.ndim - 1)), 0, slopes)


def scaled(scale: Array, x: Array) -> Array:
    """scale (examples,) times x (examples, ...)."""
    return scale.reshape(scale.shape + (1,) * (x.ndim - 1)) * x


def spare_scores(loss: ScoreLoss, scores: Array, data: Any) -> tuple[Array, Any, Any]:
    """Scores and entries of which those of dead examples do not overflow, and what that hides.

    See `spare`.
    """
    largest = SHARE * float(jnp.finfo(scores.dtype).max) ** loss.score_exponent
    dead = data.examples.get("dead")
    scores, hidden = spare(dead, scores, lambda s: ~(jnp.abs(s) <= largest))
    entries = {}
    for name, x in data.entries.items():
        entries[name], lost = spare(dead, x, lambda x: ~(jnp.abs(x) <= largest))
        hidden += jnp.asarray(lost, scores.dtype)
    return scores, data._replace(entries=entries), hidden


def make_tile(
    loss: ScoreLoss,
    scores: Array,
    data: Any,
    first: Any = 0,
    repeated: Array | None = None,
    split: MeshAxes = WHOLE,
) -> Tile:
    """The tile of scores that begins at column `first` of all.

    It holds every column of a device, unless the true scores are among the data of the examples.
    """
    scores, data, hidden = spare_scores(loss, scores, data)
    labels, true_scores = data.examples.get("true_class"), data.examples.get("true_scores")
    is_true = None
    if labels is not None:
        columns = first + jnp.arange(scores.shape[1], dtype=labels.dtype)
        is_true = labels[:, None] == columns[None]
        if true_scores is None:
            true_scores = split.over_columns(jnp.sum(jnp.where(is_true, scores, 0), 1))
    return Tile(
        scores, is_true, repeated, true_scores, hidden, data.examples, data.columns, data.entries
    )


def tile_state(loss: ScoreLoss, tile: Tile) -> State:
    """The state of a tile, with what is hidden of its dead examples."""
    if tile.examples.get("dead") is None:
        return loss.state(tile)
    return loss.state(tile) | {"hidden": Sum(tile.hidden)}


def state_kinds(loss: ScoreLoss, examples: Named, needs: frozenset[str]) -> dict[str, Any]:
    """The fields of the state that the value and these gradients need."""
    kinds = loss.kinds(needs)
    return kinds if examples.get("dead") is None else kinds | {"hidden": Sum}


def tile_slopes(loss: ScoreLoss, tile: Tile, state: State, true_slope: bool) -> Array:
    """∂f/∂S of a tile: 0 at the true class where its slope is still to come."""
    slopes = loss.slopes(tile, state)
    if not (true_slope and loss.has_true_class):
        return tile.others(slopes)
    assert tile.is_true is not None
    at_true = loss.true_slope(state, tile.examples)[:, None]
    return tile._replace(is_true=None).others(jnp.where(tile.is_true, at_true, slopes))


def sweep(
    loss: ScoreLoss,
    data: Scores,
    scale: Array,
    weight: Array,
    plan: Plan,
    needs: frozenset[str],
    *,
    gradients: bool = True,
    state: State | None = None,
    split: MeshAxes = WHOLE,
) -> tuple[State, Named]:
    """The merged state that value and gradients need, and the gradients of Σ scale_i f_i.

    Args:
        scale: (examples,), the cotangent of each example's loss.
        weight: (examples,), what of it is no cotangent. An example of weight 0 needs no products,
            and one of weight NaN does.
        needs: the arguments whose gradient is asked for: "weights", "inputs", "bias", and the
            loss's own.
        gradients: whether to compute them too.
        state: the merged state, where it is known already.
    """
    loop = _Loop(loss, data, scale, weight, plan, needs, split)
    if gradients and state is None and not plan.one_pass:
        state, _ = loop.run(None, gradients=False)
    return loop.run(state, gradients)


class _TrueClass(NamedTuple):
    """Where tiles hold only some of the columns: the true class of each example."""

    place: Array  # among this device's columns; behind the last where another holds it
    weights: Array  # (examples, features)
    scores: Array  # s_t, (examples,)

    @classmethod
    def of(cls, loss: ScoreLoss, data: Scores, dtype: Any, split: MeshAxes) -> "_TrueClass":
        columns = data.weights.shape[0]
        place = data.examples["true_class"] - split.first_column(columns)
        place = jnp.where((place >= 0) & (place < columns), place, columns)
        weights = data.weights.at[place].get(mode="fill", fill_value=0)
        scores = jnp.einsum("nf,nf->n", data.inputs, weights, preferred_element_type=dtype)
        if data.bias is not None:
            scores += data.bias.at[place].get(mode="fill", fill_value=0)
        scores, *_ = spare_scores(loss, scores, data._replace(entries={}))
        return cls(place, weights, split.over_columns(scores))

    def add(self, sums: Named, slope: Array, inputs: Array) -> Named:
        """The gradients with the slope of the true class, which only the merged state tells."""
        changed = dict(sums)
        if "weights" in sums:
            by_example = slope[:, None] * inputs.astype(slope.dtype)
            changed["weights"] = sums["weights"].at[self.place].add(by_example, mode="drop")
        if "inputs" in sums:
            changed["inputs"] = sums["inputs"] + slope[:, None] * self.weights.astype(slope.dtype)
        if "bias" in sums:
            changed["bias"] = sums["bias"].at[self.place].add(slope, mode="drop")
        return changed


class _Loop(NamedTuple):
    """A loop over the tiles."""

    loss: ScoreLoss
    data: Scores
    scale: Array
    weight: Array
    plan: Plan
    needs: frozenset[str]
    split: MeshAxes

    def run(self, known: State | None, gradients: bool) -> tuple[State, Named]:
        """The merged state, unless it is known, and the gradients, if they are asked for."""
        plan, data, columns = self.plan, self.data, self.split.columns
        true_class, examples = None, data.examples | {"scale": self.scale, "weight": self.weight}
        if self.loss.has_true_class and not self.complete:
            true_class = _TrueClass.of(self.loss, data, self.scale.dtype, self.split)
            examples |= {"true_scores": true_class.scores}
        if examples.get("dead") is not None:
            examples |= {"closed": closed_examples(examples["dead"], data.inputs)}
        if known is not None:
            # The other fields are placeholders.
            examples |= {
                "state": {
                    name: known[name] for name in state_kinds(self.loss, examples, self.needs)
                }
            }
        loop = self._replace(data=data._replace(examples=examples))
        shapes = self.shapes() if gradients else {}
        kinds = state_kinds(self.loss, examples, self.needs) if known is None else {}
        start = (
            {name: self.zeros_of_state(kind) for name, kind in kinds.items()},
            {name: pvary(jnp.zeros(shape, self.scale.dtype), varying((data, self.scale)))
             for name, shape in shapes.items()},
        )  # fmt: skip
        length = data.shape[0 if plan.by_examples else 1]
        state, sums = loop_over_blocks(loop.step, start, length, plan.size)
        if known is not None:
            return known, sums
        if not self.complete and columns is not None:
            state = {name: merged.over(columns) for name, merged in state.items()}
        if true_class is not None and sums.keys() & PRODUCTS:
            slope = self.loss.true_slope(state, data.examples)
            slope = self.scale * close(examples, slope)
            sums = true_class.add(sums, slope, data.inputs)
        return state, sums

    @property
    def complete(self) -> bool:
        """Whether the merged state of a tile's examples is known with the tile.

        Over a mesh that takes a sum for each tile, so it is left for the end where it can be.
        """
        whole = self.split.columns is None or self.loss.slopes_need_state
        return self.plan.by_examples and whole

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the gradients that the loop sums, by name."""
        examples, columns = self.data.shape
        every = {
            "weights": self.data.weights.shape,
            "inputs": self.data.inputs.shape,
            "bias": (columns,),
            **dict.fromkeys(self.loss.column_arguments, (columns,)),
            **dict.fromkeys(self.loss.entry_arguments, (examples, columns)),
            **dict.fromkeys(self.loss.scalar_arguments, ()),
        }
        return {name: shape for name, shape in every.items() if name in self.needs}

    def zeros_of_state(self, kind: Any) -> Any:
        """The state of no column, which varies over a mesh as the state of a tile does."""
        merged = self.complete and self.split.columns is not None
        like = (self.data.inputs, self.data.examples) if merged else (self.data, self.scale)
        return pvary(kind.start(self.data.shape[0], self.scale.dtype), varying(like))

    def step(self, carry: tuple[State, Named], block: Block) -> tuple[State, Named]:
        """One tile: its state joins that of the others, its part of the gradients their sums."""
        total, sums = carry
        by_examples, columns = self.plan.by_examples, self.split.columns
        data = self.data.block(block, by_examples)
        scale, weight, repeated = data.examples["scale"], data.examples["weight"], None
        if by_examples and block.repeated is not None:
            scale, weight = (jnp.where(block.repeated, 0, x) for x in (scale, weight))
        elif not by_examples:
            repeated = block.repeated
        scores = linear_scores(data.weights, data.inputs, data.bias, scale.dtype)
        first = self.split.first_column(self.data.shape[1]) + (0 if by_examples else block.start)
        tile = make_tile(self.loss, scores, data, first, repeated, self.split)
        own = tile_state(self.loss, tile)
        state = data.examples.get("state", own)
        if total and by_examples:
            if self.complete and columns is not None:
                state = {name: own[name].over(columns) for name in total}
            kept = {name: state[name] for name in total}
            total = jax.tree.map(lambda x, part: write_block(x, part, block), total, kept)
        elif total:
            total = {name: total[name].combine(own[name]) for name in total}
        if not sums:
            return total, sums
        partials = {
            name: scaled(scale, finite(data.examples.get("dead"), partial))
            for name, partial in self.loss.tile_partials(tile, state).items()
            if name in sums
        }
        sums = self.add_partials(sums, partials, block)
        if not sums.keys() & PRODUCTS:
            return total, sums
        known = self.complete or "state" in data.examples
        slopes = tile_slopes(self.loss, tile, state, known)
        slopes = scaled(scale, close(data.examples, slopes))
        elsewhere = known and not (self.complete and columns is None)
        active = self.active(own, tile, state if elsewhere else None, weight)
        return total, self.add_products(sums, slopes, active, data, block)

    def active(self, own: State, tile: Tile, merged: State | None, weight: Array) -> Array | None:
        """The examples that need products: those with slopes, in fact or by a weight of NaN.

        Where `merged` adds up more columns than the tile's, the true class may be the only one.
        """
        active = self.loss.active(own)
        if active is None or self.plan.whole or weight.size < 4 * max(COMPACTIONS):
            return None
        if merged is not None and tile.is_true is not None:
            late = self.loss.true_slope(merged, tile.examples) != 0
            active |= jnp.any(tile.is_true, 1) & late
        return (active & (weight != 0)) | jnp.isnan(weight)

    def add_products(
        self, sums: Named, slopes: Array, active: Array | None, data: Scores, block: Block
    ) -> Named:
        """The sums with a tile's Gᵀ X, G W and Gᵀ 1."""
        names = sorted(PRODUCTS & sums.keys())
        written = self.written & set(names)
        x, dtype = data.inputs, slopes.dtype

        def products(slopes: Array, x: Array) -> Named:
            g = slopes.astype(x.dtype)
            parts: dict[str, Callable[[], Array]] = {
                "weights": lambda: self.times_inputs(g, x, dtype),
                "inputs": lambda: matmul(g, data.weights, dtype),
                "bias": lambda: jnp.sum(slopes, 0),
            }
            # A product over no examples at all does not vary over a mesh by itself.
            return {name: pvary(parts[name](), varying((data, slopes))) for name in names}

        def dense(shared: Named) -> Named:
            return _add(shared, products(slopes, x))

        def compact(size: int, shared: Named) -> Named:
            # Places that are left over point behind the last example, where zeros are read.
            chosen = jnp.nonzero(jnp.asarray(active), size=size, fill_value=x.shape[0])[0]
            some, its_x = (a.at[chosen].get(mode="fill", fill_value=0) for a in (slopes, x))
            parts = products(some, its_x)
            part = parts.pop("inputs", None)
            added = _add(shared, parts)
            if part is not None:
                fresh = pvary(jnp.zeros(x.shape, dtype), varying(part))
                onto: Array = shared["inputs"] if "inputs" in shared else fresh
                added["inputs"] = onto.at[chosen].add(part, mode="drop")
            return added

        # A single tile has nothing to add to: adding zeros would keep XLA from merging the products
        # of a vmapped call into one.
        shared = {} if self.plan.whole else {n: sums[n] for n in names if n not in written}
        if active is None:
            added = dense(shared)
        else:
            added = _switch(jnp.sum(active), x.shape[0], compact, dense, shared)
        return sums | added | {n: write_block(sums[n], added[n], block) for n in written}

    def times_inputs(self, g: Array, x: Array, dtype: Any) -> Array:
        """Gᵀ X, as (XᵀG)ᵀ where the device's products do not contract the rows of both factors."""
        if self.plan.contracts_rows or self.plan.whole:
            return matmul(g.T, x, dtype)
        turned = matmul(lax.optimization_barrier(x.T), g, dtype)
        return lax.optimization_barrier(turned).T

    @property
    def written(self) -> set[str]:
        """The gradients of which a tile computes a block, rather than a part of the sum."""
        of = self.loss
        along_columns = {"weights", "bias", *of.column_arguments}
        along = {"inputs"} if self.plan.by_examples else along_columns
        return along | set(of.entry_arguments)

    def add_partials(self, sums: Named, partials: Named, block: Block) -> Named:
        """The sums with a tile's part of the gradients of the loss's own arguments."""
        axis = 0 if self.plan.by_examples else 1
        changed = dict(sums)
        for name, part in partials.items():
            if name in self.loss.entry_arguments:
                changed[name] = write_block(sums[name], part, block, axis)
            elif name in self.written:
                changed[name] = write_block(sums[name], jnp.sum(part, 0), block)
            else:
                total = jnp.sum(part, 0)
                changed[name] = total if self.plan.whole else sums[name] + total
        return changed


def _add(sums: Named, parts: Named) -> Named:
    return sums | {name: sums[name] + p if name in sums else p for name, p in parts.items()}


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
