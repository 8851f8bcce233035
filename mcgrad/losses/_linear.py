"""The rule of a loss of scores: on linear scores X Wᵀ + 1 biasᵀ, or on the scores of any model.

What every such loss shares stands here: the weight c_t of the true class, the penalty l2 ‖W‖², the
reduction with its sample weights, and which gradients are computed when. With f the loss itself
and L the reduction of c_t f + l2 ‖W‖² over the examples:

    scale = c_t ∂L/∂(c_t f)     ∂L/∂θ = Σ scale ∂f/∂θ     ∂L/∂c_t = Σ ∂L/∂(c_t f) f

Over a mesh, examples and columns (classes, outputs, hidden units) are split.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax.numpy as jnp

from mcgrad._arguments import Arguments
from mcgrad._arrays import Array
from mcgrad._blocks import Plan, make_plan
from mcgrad._merge import placeholder
from mcgrad._modes import Rule
from mcgrad._reduction import Reduction, dead_examples, finite, spared
from mcgrad.losses._scores import (
    Named,
    ScoreLoss,
    Scores,
    State,
    Tile,
    linear_scores,
    make_tile,
    scaled,
    state_kinds,
    sweep,
    tile_slopes,
    tile_state,
)

__all__ = ["linear_rule", "score_rule"]


def linear_rule(
    loss: type[ScoreLoss],
    arguments: Arguments,
    *,
    weights: str = "weights",
    bias: str = "bias",
    penalised: tuple[str, ...] = ("weights",),
) -> Rule:
    """The rule of a loss of linear scores.

    Args:
        loss: what the loss makes of a tile of scores.
        arguments: those of the public function.
        weights, bias: the names of the arguments that make the scores of "inputs".
        penalised: the arguments whose squares `l2` penalises.
    """
    return _Linear(loss, arguments, weights, bias, penalised).rule()


def score_rule(loss: type[ScoreLoss], arguments: Arguments) -> Rule:
    """The rule of the same loss on given "scores"."""
    return _Given(loss, arguments).rule()


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call of a loss: its arguments by name."""

    loss: ScoreLoss
    given: dict[str, Any]
    size: int  # the number of examples
    reduction: Reduction
    block_size: int | None

    def get(self, name: str) -> Any:
        return self.given.get(name)

    def named(self, names: tuple[str, ...]) -> Named:
        return {name: self.given[name] for name in names}

    @functools.cached_property
    def examples(self) -> Named:
        """What a tile may know of its examples."""
        known = {} if self.dead is None else {"dead": self.dead}
        if self.loss.has_true_class:
            known["true_class"] = self.given["labels"]
        return self.named(self.loss.example_arguments) | known

    @functools.cached_property
    def dead(self) -> Array | None:
        """The examples of which a weight is 0, that of their class included."""
        c = self.get("class_weight")
        of_class = None if c is None else c[jnp.maximum(self.given["labels"], 0)]
        return dead_examples(self.get("sample_weight"), of_class)

    @functools.cached_property
    def class_factor(self) -> Array:
        """c_t of each example; NaN for a label out of range, which makes loss and gradient NaN."""
        ones = jnp.ones(self.size, self.reduction.accumulation_dtype)
        if not self.loss.has_true_class:
            return ones
        labels, c = self.given["labels"], self.get("class_weight")
        # A factor, not a choice, so that autodiff of the equation finds NaN for class_weight too.
        known = jnp.where(labels >= 0, ones, jnp.nan)
        return known if c is None else known * c[jnp.maximum(labels, 0)]

    @property
    def weight(self) -> Array:
        """What multiplies f beside the cotangent and 1/Σs."""
        s = self.get("sample_weight")
        return self.class_factor if s is None else self.class_factor * s

    def equation(self, scores: Array, inputs: Array | None, penalty: Any) -> Array:
        """The reduced loss, as it is written."""
        of = self.loss
        data = self.examples | self.named((*of.column_arguments, *of.entry_arguments))
        f = spared(lambda s: of.equation(s, data), scores, self.dead, inputs)
        return self.reduction.value(self.times_class_factor(f) + penalty, self.get("sample_weight"))

    def value(self, state: State) -> Array:
        """f of each example; inf where the numbers of a dead one are hidden."""
        f = self.loss.value(state, self.examples)
        return f + state["hidden"].value if "hidden" in state else f

    def times_class_factor(self, f: Array) -> Array:
        """c_t f; the f of a dead example that overflows is a constant, which c_t = 0 makes 0."""
        c = self.class_factor
        if self.dead is None:
            return c * f
        lost = self.dead & ~jnp.isfinite(f)
        return jnp.where(lost, jnp.where(c == 0, 0, f), c * jnp.where(lost, 0, f))

    def cotangents(self, state: State, by_loss: Array, needs: frozenset[str]) -> Named:
        """Those of the arguments for which the merged state is enough."""
        scale, found = by_loss * self.class_factor, {}
        for name, partial in self.loss.partials(state, self.examples).items():
            each = scale * finite(self.dead, partial)
            found[name] = each if name in self.loss.example_arguments else jnp.sum(each)
        if "class_weight" in needs:
            found["class_weight"] = self.by_class(by_loss * finite(self.dead, self.value(state)))
        return found

    def by_class(self, values: Array) -> Array:
        """The sums of `values` over the examples of each class; all NaN if an example has none."""
        labels = self.given["labels"]
        # Chosen twice: the derivative of what is not chosen would be NaN too.
        bad = labels < 0
        outside = jnp.sum(jnp.where(bad, jnp.nan * jnp.where(bad, values, 0), 0))
        sums = jnp.zeros_like(self.given["class_weight"]) + outside
        return sums.at[jnp.maximum(labels, 0)].add(values)


@dataclasses.dataclass(frozen=True)
class _Form:
    """A loss with the names of its arguments, and where its scores come from."""

    loss: type[ScoreLoss]
    arguments: Arguments

    batched: ClassVar[str]  # the argument whose rows are the examples

    @property
    def computed(self) -> dict[str, str]:
        """What the pass over the tiles calls the arguments whose gradients it computes."""
        of = self.loss
        own = (*of.column_arguments, *of.entry_arguments, *of.scalar_arguments)
        return dict(zip(own, own, strict=True))

    def scores(self, call: _Call) -> Array:
        """All scores, for the equation."""
        raise NotImplementedError

    def penalty(self, call: _Call) -> Any:
        """What is added to each example's loss, as far as this device holds it."""
        return 0.0

    def evaluate(self, call: _Call, needs: frozenset[str]) -> tuple[State, Named]:
        """The merged state, and the gradients for a cotangent of 1 if they are had on the way."""
        raise NotImplementedError

    def gradients(
        self, call: _Call, state: State, found: Named, by_loss: Array, needs: frozenset[str]
    ) -> Named:
        """The gradients of Σ by_loss c_t f, where they were not found on the way."""
        raise NotImplementedError

    def found_on_the_way(self, call: _Call) -> bool:
        return False

    def rule(self) -> Rule:
        of = self.arguments
        return Rule(self.equation, self.forward, self.backward, of, of.layout)

    def call(self, args: tuple[Any, ...], static: dict[str, Any]) -> _Call:
        given = dict(zip(self.arguments.argnames, args, strict=True))
        known = given | static
        fields = {field.name: known[field.name] for field in dataclasses.fields(self.loss)}
        size = given[self.batched].shape[0]
        return _Call(
            self.loss(**fields), given, size, static["reduction"], static.get("block_size")
        )

    def equation(self, *args: Any, **static: Any) -> Array:
        call = self.call(args, static)
        return call.equation(self.scores(call), call.get("inputs"), self.penalty(call))

    def forward(self, *args: Any, needs_grad: frozenset[str], **static: Any) -> tuple[Array, Any]:
        call = self.call(args, static)
        state, gradients = self.evaluate(call, needs_grad)
        losses = call.times_class_factor(call.value(state))
        penalty = call.reduction.split.over_columns(self.penalty(call))
        value = call.reduction.value(losses + penalty, call.get("sample_weight"))
        # Placeholders, so that the tree of residuals does not depend on what is asked for.
        dtype = call.reduction.accumulation_dtype
        every = state_kinds(call.loss, call.examples, frozenset(self.arguments.argnames))
        state = {name: state.get(name, placeholder(kind, dtype)) for name, kind in every.items()}
        nothing = jnp.zeros((), dtype)
        gradients = {name: gradients.get(name, nothing) for name in self.computed.values()}
        return value, (args, state, gradients)

    def backward(
        self, residuals: Any, ct: Array, *, needs_grad: frozenset[str], **static: Any
    ) -> Any:
        args, state, gradients = residuals
        call = self.call(args, static)
        reduction, s = call.reduction, call.get("sample_weight")
        losses = call.times_class_factor(call.value(state))
        products_dtype = call.given[self.batched].dtype
        rows, factor = reduction.losses_vjp(ct, losses, s, products_dtype)
        by_loss = factor * rows
        found: dict[str, Any] = call.cotangents(state, by_loss, needs_grad)
        if self.found_on_the_way(call):
            gradients = {name: factor * gradient for name, gradient in gradients.items()}
        else:
            gradients = self.gradients(call, state, found, by_loss, needs_grad)
        for name, computed_as in self.computed.items():
            if name in needs_grad and name not in found:
                found[name] = gradients[computed_as]
        self.add_penalty(call, found, factor * jnp.sum(rows), needs_grad)
        penalty = reduction.split.over_columns(self.penalty(call))
        if s is not None:
            found["sample_weight"] = reduction.sample_weight_vjp(ct, losses, s, penalty)
        return tuple(found.get(name) for name in self.arguments.argnames)

    def add_penalty(
        self, call: _Call, found: Named, total: Array, needs_grad: frozenset[str]
    ) -> None:
        """Add the derivatives of the penalty, each example of which has its cotangent in total."""


@dataclasses.dataclass(frozen=True)
class _Given(_Form):
    """On given scores: one tile, which holds every column of this device."""

    batched = "scores"

    @property
    def computed(self) -> dict[str, str]:
        return {"scores": "scores"} | super().computed

    def scores(self, call: _Call) -> Array:
        return call.given["scores"]

    def tile(self, call: _Call) -> Tile:
        scores, split = call.given["scores"], call.reduction.split
        entries = call.named(call.loss.entry_arguments)
        columns = call.named(call.loss.column_arguments)
        data = Scores(scores, scores, None, call.examples, columns, entries)
        return make_tile(call.loss, scores, data, split.first_column(scores.shape[1]), None, split)

    def evaluate(self, call: _Call, needs: frozenset[str]) -> tuple[State, Named]:
        own, columns = tile_state(call.loss, self.tile(call)), call.reduction.split.columns
        state = {name: own[name] for name in state_kinds(call.loss, call.examples, needs)}
        if columns is not None:
            state = {name: merged.over(columns) for name, merged in state.items()}
        return state, {}

    def gradients(
        self, call: _Call, state: State, found: Named, by_loss: Array, needs: frozenset[str]
    ) -> Named:
        tile, scale = self.tile(call), by_loss * call.class_factor
        partials = call.loss.tile_partials(tile, state)
        gradients = {name: scale @ finite(call.dead, x) for name, x in partials.items()}
        if "scores" in needs:
            gradients["scores"] = scaled(scale, tile_slopes(call.loss, tile, state, True))
        return gradients


@dataclasses.dataclass(frozen=True)
class _Linear(_Form):
    """On inputs times weights."""

    weights: str
    bias: str
    penalised: tuple[str, ...]

    batched = "inputs"

    @property
    def computed(self) -> dict[str, str]:
        product = {self.weights: "weights", self.bias: "bias", "inputs": "inputs"}
        return product | super().computed

    def scores(self, call: _Call) -> Array:
        weights, bias = call.given[self.weights], call.get(self.bias)
        return linear_scores(weights, call.given["inputs"], bias, call.reduction.accumulation_dtype)

    def plan(self, call: _Call) -> Plan:
        (examples, features), columns = (call.given[n].shape for n in ("inputs", self.weights))
        return make_plan(
            examples, columns[0], features, call.block_size,
            slopes_need_state=call.loss.slopes_need_state,
        )  # fmt: skip

    def found_on_the_way(self, call: _Call) -> bool:
        """Whether gradients are summed with the value, to be scaled by the cotangent later.

        Without a reduction each example has a cotangent of its own, known only later. And for a
        single tile, computing the scores again (which XLA merges with the first time inside one
        program) beats holding a gradient: that would be one gradient per call under `vmap`, and a
        pass to scale it.
        """
        plan = self.plan(call)
        return plan.one_pass and call.reduction.name != "none" and not plan.whole

    def sweep(self, call: _Call, scale: Array, needs: frozenset[str], **options: Any) -> Any:
        of = call.loss
        data = Scores(
            call.given[self.weights],
            call.given["inputs"],
            call.get(self.bias),
            call.examples,
            call.named(of.column_arguments),
            call.named(of.entry_arguments),
        )
        computed = frozenset(self.computed.get(name, name) for name in needs)
        return sweep(
            of, data, scale, call.weight, self.plan(call), computed,
            split=call.reduction.split, **options,
        )  # fmt: skip

    def evaluate(self, call: _Call, needs: frozenset[str]) -> tuple[State, Named]:
        unit = call.reduction.unit_rows(call.given["inputs"], call.get("sample_weight"))
        gradients = bool(needs & self.computed.keys()) and self.found_on_the_way(call)
        return self.sweep(call, call.class_factor * unit, needs, gradients=gradients)

    def gradients(
        self, call: _Call, state: State, found: Named, by_loss: Array, needs: frozenset[str]
    ) -> Named:
        if not needs & self.computed.keys() - found.keys():
            return {}
        return self.sweep(call, by_loss * call.class_factor, needs, state=state)[1]

    def penalised_arrays(self, call: _Call) -> list[Array]:
        return [
            call.given[name].astype(call.reduction.accumulation_dtype) for name in self.penalised
        ]

    def penalty(self, call: _Call) -> Any:
        """l2 ‖W‖², in an order that stays finite where ‖W‖² alone would overflow."""
        l2 = call.get("l2")
        return 0.0 if l2 is None else sum(jnp.sum(l2 * w * w) for w in self.penalised_arrays(call))

    def add_penalty(
        self, call: _Call, found: Named, total: Array, needs_grad: frozenset[str]
    ) -> None:
        l2 = call.get("l2")
        if l2 is None:
            return
        arrays = self.penalised_arrays(call)
        for name, w in zip(self.penalised, arrays, strict=True):
            if name in needs_grad:
                found[name] += 2 * l2 * total * w
        found["l2"] = total * sum(jnp.sum(w * w) for w in arrays)
