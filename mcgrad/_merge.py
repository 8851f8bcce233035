"""How the states of a loss are merged: those of two tiles, and those of the devices of a mesh.

A state says of every example what the columns seen so far add up to. Each kind is a pytree of
arrays (examples,) with

    start(examples)     the state of no column at all
    combine(other)      the state of both sets of columns
    over(mesh axis)     the state of the columns of all devices along that axis

    Sum         Σ_j x_j, which adds
"""

from typing import Any, NamedTuple, Self

import jax.numpy as jnp
from jax import lax

from mcgrad._arrays import Array

__all__ = ["Sum", "placeholder"]


class Sum(NamedTuple):
    """A sum over the columns."""

    value: Array

    @classmethod
    def start(cls, examples: int, dtype: Any) -> Self:
        return cls(jnp.zeros((examples,), dtype))

    def combine(self, other: Self) -> Self:
        return self._replace(value=self.value + other.value)

    def over(self, axis: str) -> Self:
        return self._replace(value=lax.psum(self.value, axis))


def placeholder(kind: Any, dtype: Any) -> Any:
    """A state of this kind that nobody needs: scalars, so that the tree of residuals is fixed."""
    return kind(*(jnp.zeros((), dtype) for _ in kind._fields))
