"""Reductions of one loss per example: mean, sum or none, with sample weights.

With losses f_i, weights s_i (1 where none are given) and a cotangent ct:

    "mean"   L = Σ s_i f_i / Σ s_i   ∂L/∂f_i = s_i / Σ s    ∂L/∂s_i = (f_i - L) / Σ s
    "sum"    L = Σ s_i f_i           ∂L/∂f_i = s_i          ∂L/∂s_i = f_i
    "none"   L_i = s_i f_i           ∂L_i/∂f_i = s_i        ∂L_i/∂s_i = f_i

A mean over no weight at all (an empty batch, or Σ s = 0) is 0. It does not depend on the scale of
the weights: they are divided by a power of two, and their sum neither overflows nor underflows.

An example of weight 0, a dead one, contributes nothing, whatever its numbers are. If its loss is
finite its weight still has a derivative; if not, that is 0 too. `zero_masked_examples` takes out
what is not finite in the data, `spare` and `closed_examples` what would become so on the way.

Over a mesh, `losses` are the f_i of this device's examples, the same on every shard of the columns.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mcgrad._arrays import Array, accumulation_dtype, power_of_two
from mcgrad._mesh import WHOLE, MeshAxes

__all__ = [
    "Reduction",
    "closed_examples",
    "dead_examples",
    "zero_masked_examples",
    "finite",
    "spare",
    "spared",
]

# An input beyond this share of the largest number may overflow in products with ordinary numbers.
HEADROOM = 2.0**-20


class Reduction(NamedTuple):
    """A reduction by name, the batch axes, which "none" gives back, and the dtype of the value.

    `batch` is None for a loss that is one sum, without examples.
    """

    name: str
    batch: tuple[int, ...] | None
    dtype: Any
    split: MeshAxes = WHOLE

    @property
    def accumulation_dtype(self) -> Any:
        """The dtype in which losses are summed."""
        return accumulation_dtype(self.dtype)

    @property
    def spec(self) -> jax.P:
        """How the value is split, as in a `Layout`."""
        return jax.P("examples") if self.name == "none" else jax.P()

    def part(self, split: MeshAxes) -> "Reduction":
        """The reduction of one part of a batch that is split over a mesh."""
        batch = self.batch
        if split.examples is not None and batch:
            batch = (batch[0] // split.all_examples(1), *batch[1:])
        return self._replace(batch=batch, split=split)

    def value(self, losses: Array, sample_weight: Array | None) -> Array:
        """The reduced loss of `losses` (examples,)."""
        return self._reduced(losses, sample_weight).astype(self.dtype)

    def _reduced(self, losses: Array, sample_weight: Array | None) -> Array:
        s = jnp.ones_like(losses) if sample_weight is None else sample_weight
        if sample_weight is not None:
            overflown = (s == 0) & ~jnp.isfinite(losses)
            losses, s = (jnp.where(overflown, 0, x) for x in (losses, s))
        if self.name == "none":
            return (s * losses).reshape(self.batch)
        if self.name == "sum":
            return self.split.over_examples(jnp.sum(s * losses))
        s, norm, inverse, _ = self._shares(s, sample_weight is not None)
        total = jnp.sum(s * losses)
        total, mean = self.split.over_examples((total, jnp.sum(losses * (s * inverse))))
        # The sum may overflow where the mean does not.
        return jnp.where(jnp.isfinite(total), total / norm, mean)

    def losses_vjp(
        self, ct: Array, losses: Array, sample_weight: Array | None, products: Any = None
    ) -> tuple[Array, Array]:
        """The cotangent of `losses` as (rows, factor): rows (examples,) times factor ().

        The rows do not depend on a scalar ct. They hold a mean's 1/Σs unless `products`, the dtype
        into which slopes are cast, is narrower: it would be rounded alike for every example.
        """
        ct = ct.astype(losses.dtype)
        rows = jnp.ones_like(losses) if sample_weight is None else sample_weight
        if self.name == "none":
            return ct.reshape(-1) * rows, jnp.ones((), losses.dtype)
        if self.name == "sum":
            return rows, ct
        rows, _, inverse, _ = self._shares(rows, sample_weight is not None)
        if products in (None, losses.dtype):
            return inverse * rows, ct
        return rows, ct * inverse

    def unit_rows(self, inputs: Array, sample_weight: Array | None) -> Array:
        """The rows of `losses_vjp` for a cotangent of 1, where `inputs` (examples, ...) follow."""
        losses = jnp.ones(inputs.shape[0], self.accumulation_dtype)
        ct = jnp.ones(self.batch if self.name == "none" else (), self.accumulation_dtype)
        return self.losses_vjp(ct, losses, sample_weight, inputs.dtype)[0]

    def sample_weight_vjp(
        self, ct: Array, losses: Array, sample_weight: Array | None, constant: Any = 0.0
    ) -> Array | None:
        """The cotangent of `sample_weight`, for losses f_i + constant.

        The constant cancels in f_i - L, and would take the digits of a small f_i with it.
        """
        if sample_weight is None:
            return None
        ct = ct.astype(losses.dtype)
        if self.name == "mean":
            _, _, inverse, scale = self._shares(sample_weight, weighted=True)
            mean = self._reduced(losses, sample_weight)
            by_weight = ct * (inverse * (losses - mean)) / scale
        else:
            by_weight = ct.reshape(-1) * (losses + constant)
        overflown = (sample_weight == 0) & ~jnp.isfinite(losses)
        return jnp.where(overflown, 0, by_weight)

    def _shares(self, s: Array, weighted: bool) -> tuple[Array, Array, Array, Array]:
        """s / scale; its sum, or 1 where that is 0; the inverse of the sum, or 0; and the scale."""
        if weighted:
            scale = power_of_two(self.split.largest_of_examples(jnp.max(s, initial=0)))
            s = s / scale
            total = self.split.over_examples(jnp.sum(s))
        else:
            scale = jnp.ones((), s.dtype)
            total = jnp.full((), self.split.all_examples(s.size), s.dtype)
        norm = jnp.where(total == 0, 1, total)
        return s, norm, jnp.where(total == 0, 0, 1 / norm), scale


def zero_masked_examples(sample_weight: Array, *rows: Array) -> tuple[Array, ...]:
    """Zeros for the examples of weight 0 that hold NaN or inf, their weight included.

    Masking the loss alone is not enough: 0 * NaN comes back in the products of the gradient.
    Finite examples of weight 0 stay: the loss does depend on their weight.
    """
    broken = jnp.zeros(sample_weight.shape, bool)
    for row in rows:
        bad = ~jnp.isfinite(row) if jnp.issubdtype(row.dtype, jnp.floating) else row < 0
        broken |= jnp.any(bad, axis=tuple(range(broken.ndim, bad.ndim)))
    dead = broken & (sample_weight == 0)

    def without(x: Any) -> Array:
        return jnp.where(_rows(dead, x), jnp.zeros((), x.dtype), x)

    return tuple(without(x) for x in (sample_weight, *rows))


def dead_examples(*weights: Array | None) -> Array | None:
    """Which examples have a weight of 0 among theirs; None where no weights are given."""
    given = [w == 0 for w in weights if w is not None]
    return functools.reduce(jnp.logical_or, given) if given else None


def spare(dead: Array | None, x: Array, bad: Callable[[Array], Array]) -> tuple[Array, Any]:
    """x (examples, ...) with 0 for what is bad in dead examples; and what it adds to their losses.

    That is inf, for their loss is not known then. Zeros in x itself, and not in what is made of it,
    keep second derivatives finite too.
    """
    if dead is None:
        return x, 0
    mask = _rows(dead, x) & bad(x)
    lost = jnp.any(mask, axis=range(1, x.ndim))
    return jnp.where(mask, 0, x), jnp.where(lost, jnp.inf, jnp.zeros((), x.dtype))


def closed_examples(dead: Array, inputs: Array) -> Array:
    """The dead examples whose inputs are nearly too large: their slopes are constants, 0.

    The slopes are 0 there, but a change of the weights times such inputs may overflow, and 0 * inf
    would be its part of a tangent or of a second derivative.
    """
    largest = jnp.max(jnp.abs(inputs), axis=range(1, inputs.ndim), initial=0)
    return dead & (largest > HEADROOM * float(jnp.finfo(inputs.dtype).max))


def finite(dead: Array | None, x: Array) -> Array:
    """x (examples, ...), with 0 for dead examples where it is not finite."""
    return x if dead is None else jnp.where(_rows(dead, x) & ~jnp.isfinite(x), 0, x)


def spared(
    losses_of: Callable[[Array], Array],
    scores: Array,
    dead: Array | None,
    inputs: Array | None = None,
) -> Array:
    """losses_of(scores), from which no derivative that is not finite reaches a dead example."""
    if dead is None:
        return losses_of(scores)
    if inputs is not None:
        huge = _rows(closed_examples(dead, inputs), scores)
        scores = jnp.where(huge, lax.stop_gradient(scores), scores)
    overflown = dead & ~jnp.isfinite(losses_of(lax.stop_gradient(scores)))
    losses = losses_of(jnp.where(_rows(overflown, scores), 0, scores))
    return jnp.where(overflown, jnp.inf, losses)


def _rows(mask: Array, x: Array) -> Array:
    """The mask (examples,) in the rank of x (examples, ...)."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
