"""A rule of a loss of scores: on linear scores X Wᵀ + 1 biasᵀ, or on the scores of any model.

What every such loss shares stands here: the weight c_t of the true class, the penalty l2 ‖W‖², the
reduction with its sample weights, and which gradients are computed when. With f the loss itself
and L_i = c_t f_i + l2 ‖W‖² reduced over the examples:

    scale_i = ∂L/∂f_i        ∂L/∂c_t = Σ ∂L/∂L_i f_i        ∂L/∂θ = Σ scale_i ∂f_i/∂θ

Over a mesh the columns (classes, outputs, hidden units) and the examples are split.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from mcgrad._arrays import Array
from mcgrad._blocks import Plan, make_plan
from mcgrad._merge import placeholder
from mcgrad._modes import Rule
from mcgrad._reduction import Reduction, dead_examples, finite, spared
from mcgrad.losses._scores import (
    ScoreLoss,
    Scores,
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
    *,
    weights: str = "weights",
    bias: str = "bias",
    penalised: tuple[str, ...] = ("weights",),
    arguments: tuple[str, ...],
    options: tuple[str, ...] = (),
) -> Rule:
    """The rule of a loss of linear scores.

    Args:
        loss: what the loss makes of a tile of scores.
        weights, bias: the names of the arguments that make the scores, beside "inputs".
        penalised: the arguments whose squares `l2` penalises.
        arguments: the names of all arguments, in order.
        options: the names of the static ones, beside "reduction" and "block_size".
    """
    return _Linear(loss, arguments, options, weights, bias, penalised).rule()


def score_rule(
    loss: type[ScoreLoss], *, arguments: tuple[str, ...], options: tuple[str, ...] = ()
) -> Rule:
    """The rule of the same loss on given scores."""
    return _Given(loss, arguments, options).rule()


@dataclasses.dataclass(frozen=True)
class _Form:
    """A loss with the names of its arguments."""

    loss: type[ScoreLoss]
    arguments: tuple[str, ...]
    options: tuple[str, ...]

    def rule(self) -> Rule:
        static = (*self.options, "reduction", *self.own_options)
        return Rule(self.equation, self.forward, self.backward, static, self.layout, self.arguments)

    own_options: ClassVar[tuple[str, ...]] = ()

    def call(self, args: tuple[Any, ...], static: dict[str, Any]) -> "_Call":
        given = dict(zip(self.arguments, args, strict=True))
        known = given | static
        fields = {field.name: known[field.name] for field in dataclasses.fields(self.loss)}
        return _Call(self.loss(**fields), given, static["reduction"])

    def layout(self, args: Any, *, reduction: Reduction, **_: Any) -> tuple[dict[str, Any], jax.P]:
        """How the arguments are split over a mesh, and the value."""
        examples, columns = jax.P("examples"), jax.P("columns")
        specs = {
            **self.own_layout,
            **dict.fromkeys(self.loss.example_arguments, examples),
            **dict.fromkeys(self.loss.column_arguments, columns),
            **dict.fromkeys(self.loss.entry_arguments, jax.P("examples", "columns")),
            "sample_weight": examples,
        }
        if self.loss.has_true_class:
            specs["labels"] = examples
        return specs, reduction.spec


class _Call(NamedTuple):
    """One call of a loss: its arguments by name."""

    loss: ScoreLoss
    given: dict[str, Any]
    reduction: Reduction

    def __getitem__(self, name: str) -> Any:
        return self.given.get(name)

    def named(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: self.given[name] for name in names if self.given[name] is not None}

    @property
    def examples(self) -> dict[str, Array]:
        known = {"dead": self.dead} if self.dead is not None else {}
        if self.loss.has_true_class:
            known["true_class"] = self["labels"]
        return self.named(self.loss.example_arguments) | known

    @property
    def dead(self) -> Array | None:
        """The examples of which a weight is 0, that of their class included."""
        c, labels = self["class_weight"], self["labels"]
        of_class = None if c is None else c[jnp.maximum(labels, 0)]
        return dead_examples(self["sample_weight"], of_class)

    def class_factor(self, count: int) -> Array:
        """c_t of each example; NaN for a label out of range, which makes loss and gradient NaN."""
        ones = jnp.ones(count, self.reduction.accumulator)
        if not self.loss.has_true_class:
            return ones
        labels, c = self["labels"], self["class_weight"]
        # A factor, not a choice, so that autodiff of the equation finds NaN for class_weight too.
        known = jnp.where(labels >= 0, ones, jnp.nan)
        return known if c is None else known * c[jnp.maximum(labels, 0)]

    def weight(self, class_factor: Array) -> Array:
        """What an example's loss is multiplied by, beside the cotangent and 1/Σs."""
        s = self["sample_weight"]
        return class_factor if s is None else class_factor * s

    def value(self, state: dict[str, Any]) -> Array:
        """f of each example; inf where the numbers of a dead one are hidden."""
        f = self.loss.value(state, self.examples)
        return f + state["hidden"].value if "hidden" in state else f

    def losses(self, f: Array, class_factor: Array) -> Array:
        """c_t f; the f of a dead example that overflows is a constant, which c_t = 0 makes 0."""
        if self.dead is None:
            return class_factor * f
        lost = self.dead & ~jnp.isfinite(f)
        return jnp.where(
            lost, jnp.where(class_factor == 0, 0, f), class_factor * jnp.where(lost, 0, f)
        )

    def state(self, state: dict[str, Any], needs: frozenset[str]) -> dict[str, Any]:
        """The state with placeholders for what nobody needs: always the same tree."""
        every = state_kinds(self.loss, self.examples, frozenset(self.given) | needs)
        dtype = self.reduction.accumulator
        return {name: state.get(name, placeholder(kind, dtype)) for name, kind in every.items()}

    def equation(self, scores: Array, inputs: Array | None = None, penalty: Any = 0.0) -> Array:
        """The reduced loss, as it is written."""
        data = self.examples | self.named((*self.loss.column_arguments, *self.loss.entry_arguments))
        f = spared(lambda s: self.loss.equation(s, data), scores, self.dead, inputs)
        losses = self.losses(f, self.class_factor(scores.shape[0]))
        return self.reduction.value(losses + penalty, self["sample_weight"])

    def cotangents(
        self,
        state: dict[str, Any],
        by_loss: Array,
        class_factor: Array,
        needs: frozenset[str],
    ) -> dict[str, Array]:
        """Those of the arguments for which the merged state is enough."""
        scale, dead, found = by_loss * class_factor, self.dead, {}
        for name, partial in self.loss.partials(state, self.examples).items():
            if name in needs:
                each = scale * finite(dead, partial)
                found[name] = each if name in self.loss.example_arguments else jnp.sum(each)
        if "class_weight" in needs:
            c, labels = self.given["class_weight"], self.given["labels"]
            each = by_loss * finite(dead, self.value(state))
            # An example of no class makes all of it NaN; chosen twice, because the derivative of
            # what is not chosen would be NaN too.
            bad = labels < 0
            outside = jnp.sum(jnp.where(bad, jnp.nan * jnp.where(bad, each, 0), 0))
            found["class_weight"] = (
                (jnp.zeros_like(c) + outside).at[jnp.maximum(labels, 0)].add(each)
            )
        return found


@dataclasses.dataclass(frozen=True)
class _Given(_Form):
    """On given scores: one tile, which holds every column of this device."""

    own_layout: ClassVar[dict[str, Any]] = {"scores": jax.P("examples", "columns")}

    def equation(self, *args: Any, **static: Any) -> Array:
        call = self.call(args, static)
        return call.equation(call["scores"])

    def tile(self, call: _Call) -> Any:
        scores, split = call["scores"], call.reduction.split
        data = Scores(
            scores, scores, None, call.examples, {}, call.named(call.loss.entry_arguments)
        )
        return make_tile(call.loss, scores, data, split.first_column(scores.shape[1]), None, split)

    def forward(self, *args: Any, wanted: frozenset[str], **static: Any) -> tuple[Array, Any]:
        call = self.call(args, static)
        split = call.reduction.split
        own = tile_state(call.loss, self.tile(call))
        state = {name: own[name] for name in state_kinds(call.loss, call.examples, wanted)}
        if split.columns is not None:
            state = {name: merged.over(split.columns) for name, merged in state.items()}
        c = call.class_factor(call["scores"].shape[0])
        losses = call.losses(call.value(state), c)
        value = call.reduction.value(losses, call["sample_weight"])
        return value, (args, call.state(state, wanted))

    def backward(self, residuals: Any, ct: Array, *, wanted: frozenset[str], **static: Any) -> Any:
        args, state = residuals
        call = self.call(args, static)
        c = call.class_factor(call["scores"].shape[0])
        losses = call.losses(call.value(state), c)
        rows, factor = call.reduction.by_losses(ct, losses, call["sample_weight"])
        by_loss = factor * rows
        found = call.cotangents(state, by_loss, c, wanted)
        tile, scale = self.tile(call), by_loss * c
        if "scores" in wanted:
            slopes = tile_slopes(call.loss, tile, state, True)
            found["scores"] = scaled(scale, slopes)
        for name, partial in call.loss.tile_partials(tile, state).items():
            if name in wanted:
                found[name] = scale @ finite(call.dead, partial)
        if "sample_weight" in wanted:
            found["sample_weight"] = call.reduction.by_sample_weight(
                ct, losses, call["sample_weight"]
            )
        return tuple(found.get(name) for name in self.arguments)


@dataclasses.dataclass(frozen=True)
class _Linear(_Form):
    """On inputs times weights."""

    weights: str
    bias: str
    penalised: tuple[str, ...]

    own_options: ClassVar[tuple[str, ...]] = ("block_size",)

    @property
    def own_layout(self) -> dict[str, jax.P]:
        columns = jax.P("columns")
        return {self.weights: columns, self.bias: columns, "inputs": jax.P("examples")}

    @property
    def passed(self) -> dict[str, str]:
        """What the pass calls the arguments whose gradient it computes."""
        of = self.loss
        own = (*of.column_arguments, *of.entry_arguments, *of.scalar_arguments)
        return {self.weights: "weights", self.bias: "bias", "inputs": "inputs"} | {
            name: name for name in own
        }

    def equation(self, *args: Any, **static: Any) -> Array:
        call = self.call(args, static)
        dtype = call.reduction.accumulator
        scores = linear_scores(call[self.weights], call["inputs"], call[self.bias], dtype)
        return call.equation(scores, call["inputs"], self.penalty(call))

    def penalty(self, call: _Call) -> Any:
        """l2 ‖W‖², in an order that stays finite where ‖W‖² alone would overflow."""
        l2 = call["l2"]
        return 0.0 if l2 is None else sum(jnp.sum(l2 * w * w) for w in self.penalised_arrays(call))

    def penalised_arrays(self, call: _Call) -> list[Array]:
        return [call[name].astype(call.reduction.accumulator) for name in self.penalised]

    def data(self, call: _Call) -> Scores:
        of = call.loss
        return Scores(
            call[self.weights],
            call["inputs"],
            call[self.bias],
            call.examples,
            call.named(of.column_arguments),
            call.named(of.entry_arguments),
        )

    def plan(self, call: _Call, block_size: int | None) -> Plan:
        (examples, features), columns = call["inputs"].shape, call[self.weights].shape[0]
        return make_plan(
            examples, columns, features, block_size,
            slopes_need_state=call.loss.slopes_need_state,
        )  # fmt: skip

    def at_once(self, call: _Call, plan: Plan) -> bool:
        """Whether gradients are summed with the value, to be scaled by the cotangent later.

        Without a reduction each example has a cotangent of its own, known only later. And for a
        single tile, computing the scores again (which XLA merges with the first time inside one
        program) beats holding a gradient: that would be one gradient per call under `vmap`, and a
        pass to scale it.
        """
        return plan.one_pass and call.reduction.name != "none" and not plan.whole

    def forward(self, *args: Any, wanted: frozenset[str], **static: Any) -> tuple[Array, Any]:
        call = self.call(args, static)
        reduction, data = call.reduction, self.data(call)
        plan = self.plan(call, static["block_size"])
        c = call.class_factor(call["inputs"].shape[0])
        scale = c * reduction.unit_rows(call["inputs"], call["sample_weight"])
        needs = frozenset(self.passed.get(name, name) for name in wanted)
        state, gradients = sweep(
            call.loss, data, scale, call.weight(c), plan, needs,
            gradients=bool(wanted) and self.at_once(call, plan), split=reduction.split,
        )  # fmt: skip
        losses = call.losses(call.value(state), c)
        penalty = self.all_penalty(call)
        value = reduction.value(losses + penalty, call["sample_weight"])
        nothing = jnp.zeros((), scale.dtype)
        gradients = {name: gradients.get(name, nothing) for name in self.passed.values()}
        return value, (args, call.state(state, wanted), gradients)

    def all_penalty(self, call: _Call) -> Any:
        return 0.0 if call["l2"] is None else call.reduction.split.over_columns(self.penalty(call))

    def backward(self, residuals: Any, ct: Array, *, wanted: frozenset[str], **static: Any) -> Any:
        args, state, gradients = residuals
        call = self.call(args, static)
        reduction, l2 = call.reduction, call["l2"]
        plan = self.plan(call, static["block_size"])
        c = call.class_factor(call["inputs"].shape[0])
        losses = call.losses(call.value(state), c)
        rows, factor = reduction.by_losses(ct, losses, call["sample_weight"], call["inputs"].dtype)
        by_loss = factor * rows
        found = call.cotangents(state, by_loss, c, wanted)
        needs = frozenset(self.passed.get(name, name) for name in wanted)
        if self.at_once(call, plan):
            gradients = {name: factor * gradient for name, gradient in gradients.items()}
        elif needs & set(self.passed.values()):
            _, gradients = sweep(
                call.loss, self.data(call), by_loss * c, call.weight(c), plan, needs,
                state=state, split=reduction.split,
            )  # fmt: skip
        for name, known_as in self.passed.items():
            if name in wanted and name not in found:
                found[name] = gradients[known_as]
        total = factor * jnp.sum(rows)
        if l2 is not None:
            for name, w in zip(self.penalised, self.penalised_arrays(call), strict=True):
                if name in wanted:
                    found[name] += 2 * l2 * total * w
        if "l2" in wanted:
            squares = sum(jnp.sum(w * w) for w in self.penalised_arrays(call))
            found["l2"] = total * squares
        if "sample_weight" in wanted:
            found["sample_weight"] = reduction.by_sample_weight(
                ct, losses, call["sample_weight"], self.all_penalty(call)
            )
        return tuple(found.get(name) for name in self.arguments)
