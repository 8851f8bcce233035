"""Reductions of one loss per example: mean, sum or none, with sample weights.

With losses f_i, weights s_i (1 where none are given) and a cotangent ct:

    "mean"   L = Σ s_i f_i / Σ s_i   ∂L/∂f_i = s_i / Σ s    ∂L/∂s_i = (f_i - L) / Σ s
    "sum"    L = Σ s_i f_i           ∂L/∂f_i = s_i          ∂L/∂s_i = f_i
    "none"   L_i = s_i f_i           ∂L_i/∂f_i = s_i        ∂L_i/∂s_i = f_i

A mean over no weight at all (an empty batch, or Σ s = 0) is 0.

Over a mesh, `losses` are the f_i of this device's examples, the same on every shard of the columns.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcgrad._arrays import Array, ArrayLike, Axes, accumulator, check_choice, common_dtype
from mcgrad._split import WHOLE, Split

__all__ = ["Reduction", "drop_dead"]


class Reduction(NamedTuple):
    """A reduction by name, the batch axes, which "none" gives back, and the dtype of the value.

    `batch` is None for a loss that is one sum, without examples.
    """

    name: str
    batch: tuple[int, ...] | None
    dtype: Any
    split: Split = WHOLE

    @classmethod
    def of(cls, name: str, axes: Axes, *arrays: ArrayLike | None) -> "Reduction":
        """The reduction called `name` over the axes of "*batch", for a loss of these arrays."""
        check_choice("reduction", name, ("mean", "sum", "none"))
        return cls(name, axes.sizes["*batch"], common_dtype(*arrays))

    @property
    def accumulator(self) -> Any:
        """The dtype in which losses are summed."""
        return accumulator(self.dtype)

    @property
    def spec(self) -> jax.P:
        """How the value is split, as in a `Layout`."""
        return jax.P("examples") if self.name == "none" else jax.P()

    def part(self, split: Split) -> "Reduction":
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
        # A weight of 0 must hold back an infinite loss, and still have its own derivative.
        losses = jnp.where((s == 0) & ~jnp.isfinite(losses), 0, losses)
        if self.name == "none":
            return (s * losses).reshape(self.batch)
        total = jnp.sum(s * losses)
        if self.name == "sum":
            return self.split.over_examples(total)
        norm, inverse = self._norm(losses, sample_weight)
        total, mean = self.split.over_examples((total, jnp.sum(losses * (s * inverse))))
        # The sum may overflow where the mean does not.
        return jnp.where(jnp.isfinite(total), total / norm, mean)

    def by_losses(
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
        _, inverse = self._norm(losses, sample_weight)
        if products in (None, losses.dtype):
            return inverse * rows, ct
        return rows, ct * inverse

    def unit_rows(self, inputs: Array, sample_weight: Array | None) -> Array:
        """The rows of `by_losses` for a cotangent of 1, where `inputs` (examples, ...) follow."""
        losses = jnp.ones(inputs.shape[0], self.accumulator)
        ct = jnp.ones(self.batch if self.name == "none" else (), self.accumulator)
        return self.by_losses(ct, losses, sample_weight, inputs.dtype)[0]

    def by_sample_weight(
        self, ct: Array, losses: Array, sample_weight: Array | None, constant: Any = 0.0
    ) -> Array | None:
        """The cotangent of `sample_weight`, for losses f_i + constant.

        The constant cancels in f_i - L, and would take the digits of a small f_i with it.
        """
        if sample_weight is None:
            return None
        ct = ct.astype(losses.dtype)
        if self.name != "mean":
            return ct.reshape(-1) * (losses + constant)
        _, inverse = self._norm(losses, sample_weight)
        mean = self._reduced(losses, sample_weight)
        return ct * (inverse * (losses - mean))

    def _norm(self, losses: Array, sample_weight: Array | None) -> tuple[Array, Array]:
        """Σ s, or 1 where that is 0; and its inverse, or 0."""
        if sample_weight is None:
            total = jnp.full((), self.split.all_examples(losses.size), losses.dtype)
        else:
            total = self.split.over_examples(jnp.sum(sample_weight))
        norm = jnp.where(total == 0, 1, total)
        return norm, jnp.where(total == 0, 0, 1 / norm)


@jax.jit
def drop_dead(sample_weight: Array, *rows: Array) -> tuple[Array, ...]:
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
        mask = dead.reshape(dead.shape + (1,) * (x.ndim - dead.ndim))
        return jnp.where(mask, jnp.zeros((), x.dtype), x)

    return tuple(without(x) for x in (sample_weight, *rows))
