"""The squared Frobenius norm of a ReLU.

    f(X) = ‖relu(X)‖² = Σ a(x_ij)²               a the ramp, exact or tanh(mu x)

    ∂f/∂X = 2 a ⊙ a'      (2 max(X, 0) in the exact case)      ∂f/∂mu = Σ 2 a ∂a/∂mu

f is differentiable everywhere, its gradient Lipschitz with constant 2; only the second derivative
jumps, at 0. relu(X) is (sign(X) + J)/2 ⊙ X, with J all ones: the factor alone, (sign(X) + J)/2, is
the unit step and not the ReLU.
"""

import dataclasses
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from mcgrad._arguments import MU, Argument, Arguments, Call, Option, Real
from mcgrad._arrays import Array, ArrayLike, Float, accumulation_dtype, as_array, require
from mcgrad._blocks import Block, device, even, loop_over_blocks, read_block, write_block
from mcgrad._mesh import MeshAxes, zeros
from mcgrad._modes import Rule, public
from mcgrad._ramp import ramp, ramp_by_mu, slope

__all__ = ["squared_relu_norm"]


def _equation(x, mu, where, *, axis, reduction):
    a = ramp(_counted(x, where, reduction.dtype), mu)
    return jnp.sum(jnp.square(a), axis).astype(reduction.dtype)


def _forward(x, mu, where, *, axis, reduction, needs_grad):
    """The value; with it the gradient, where that is dear to compute a second time."""
    dtype, split = reduction.dtype, reduction.split
    if _twice(mu, axis):
        a = ramp(_counted(x, where, dtype), mu)
        value = _summed(split, x, axis).over_all(jnp.sum(jnp.square(a), axis))
        return value.astype(dtype), (x, mu, where)
    entries, counted = x.reshape(-1), None if where is None else where.reshape(-1)
    sums = {"value": zeros((), accumulation_dtype(dtype), entries)}
    if "x" in needs_grad:
        sums["x"] = zeros(entries.shape, x.dtype, entries)
    if "mu" in needs_grad:
        sums["mu"] = zeros((), accumulation_dtype(dtype), entries)

    def body(sums: dict[str, Array], block: Block) -> dict[str, Array]:
        mask, repeated = None if counted is None else read_block(counted, block), block.repeated
        if repeated is not None:
            mask = ~repeated if mask is None else mask & ~repeated
        x = _counted(read_block(entries, block), mask, dtype)
        a = ramp(x, mu)
        new = {"value": sums["value"] + jnp.vdot(a, a)}
        if "x" in needs_grad:
            new["x"] = write_block(sums["x"], (2 * a * slope(x, mu)).astype(entries.dtype), block)
        if "mu" in needs_grad:
            new["mu"] = sums["mu"] + 2 * jnp.vdot(a, ramp_by_mu(x, mu))
        return new

    sums = loop_over_blocks(body, sums, entries.size, even(entries.size, device().block))
    nothing = jnp.zeros((), x.dtype)
    by_x = sums["x"].reshape(x.shape) if "x" in needs_grad else nothing
    return split.over_all(sums["value"]).astype(dtype), (by_x, mu, sums.get("mu", nothing))


def _backward(residuals, ct, *, axis, reduction, needs_grad):
    dtype = reduction.dtype
    ct = ct.astype(accumulation_dtype(dtype))
    x, mu, where = residuals
    if not _twice(mu, axis):
        by_x, _, by_mu = residuals
        return ct * by_x.astype(ct.dtype), ct * by_mu.astype(ct.dtype), None
    own = _counted(x, where, dtype)
    ct = jnp.expand_dims(ct, range(x.ndim) if axis is None else axis)
    a = ramp(own, mu)
    by_mu = jnp.sum(ct * (2 * a * ramp_by_mu(own, mu))) if "mu" in needs_grad else None
    return ct * (2 * a * slope(own, mu)), by_mu, None


def _twice(mu: Array | None, axis: tuple[int, ...] | None) -> bool:
    """Whether the ramp is computed again for the gradient.

    The exact ramp is fused into each sum and costs nothing; the smooth one is summed in blocks, in
    one pass, unless only some axes are summed over.
    """
    return mu is None or axis is not None


def _counted(x: Array, where: Array | None, dtype: Any) -> Array:
    """The entries that count, the others 0, where value and slope are."""
    x = x.astype(accumulation_dtype(dtype))
    return x if where is None else jnp.where(where, x, 0)


def _axis(axis: Any) -> int:
    """An axis as an int; True and False count nothing."""
    try:
        if not isinstance(axis, bool):
            return operator.index(axis)
    except TypeError:
        pass
    raise TypeError(f"axis: expected an int, a tuple of ints or None; got {axis!r}")


@dataclasses.dataclass(frozen=True)
class _Axes(Option):
    """The axes of x that are summed over, or None for all at once."""

    def check(self, name: str, value: Any, call: Call) -> tuple[int, ...] | None:
        shape = call.sizes["*shape"]
        rank = len(shape)
        if value is None:
            # From 2³² entries on no index reaches all in a row: they are summed as one array.
            return tuple(range(rank)) if math.prod(shape) >= 2**32 else None
        given = tuple(map(_axis, value if isinstance(value, tuple | list) else (value,)))
        fits = all(-rank <= i < rank for i in given)
        require(fits, name, f"axes from {-rank} to {rank - 1}", value)
        axes = tuple(sorted(i % rank for i in given))
        require(len(set(axes)) == len(axes), name, "each axis once", given)
        return axes


@dataclasses.dataclass(frozen=True)
class _Mask(Argument):
    """Booleans that broadcast to the shape of x."""

    axes: str = "*shape"
    dtype: str = "own"

    kind = "boolean"

    def check(self, name: str, x: Any, call: Call) -> Any:
        x, shape = as_array(name, x), call.sizes["*shape"]
        if x.dtype != bool:
            raise TypeError(f"{name}: expected a boolean dtype; got {x.dtype}")
        try:
            fits = np.broadcast_shapes(x.shape, shape) == shape
        except ValueError:
            fits = False
        require(fits, name, f"a shape that broadcasts to {shape}", f"shape {x.shape}")
        return x if x.shape == shape else jnp.broadcast_to(x, shape)


def _example_args(key, batch, dtype, *, smooth):
    x = jax.random.normal(key, (*batch, 3, 4), dtype)
    return (x,), {"mu": jnp.asarray(1.5, dtype)} if smooth else {}


def _layout(args, *, axis, **_):
    """The first axis is split as examples are, the last as columns."""
    x, *_ = args
    names: list[Any] = [None] * x.ndim
    if x.ndim == 1:
        names = [("examples", "columns")]
    elif x.ndim:
        names[0], names[-1] = "examples", "columns"
    spec = jax.P(*names)
    kept = [] if axis is None else [name for i, name in enumerate(names) if i not in axis]
    return {"x": spec, "where": spec}, jax.P(*kept)


def _summed(split: MeshAxes, x: Array, axis: tuple[int, ...] | None) -> MeshAxes:
    """The split of those axes of x that are summed over."""
    if axis is None:
        return split
    examples = split.examples if 0 in axis else None
    return MeshAxes(examples, split.columns if x.ndim - 1 in axis else None)


_rule = Rule(
    _equation,
    _forward,
    _backward,
    Arguments(x=Real("*shape", "own"), mu=MU, axis=_Axes(), where=_Mask(optional=True)),
    _layout,
)


@public(_rule, _example_args)
def squared_relu_norm(
    x: Float[ArrayLike, "..."],
    *,
    mu: Float[ArrayLike, ""] | float | None = None,
    axis: int | tuple[int, ...] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Array:
    """Squared Frobenius norm of a ReLU.

    With the ramp a(x) = max(0, x):

        f(X) = ‖relu(X)‖² = Σ a(x_ij)²

    Gradient:

        ∂f/∂X = 2 a ⊙ a' = 2 max(X, 0)    ∂f/∂mu = Σ 2 a ∂a/∂mu

    At a tie, x = 0, the gradient is 0 from both sides: f is C¹. Its Hessian is diagonal, 2 where
    x >= 0 and 0 elsewhere: at the tie, where f has none, that is a generalized Hessian.

    With `mu` the ramp is a(x) = x (1 + tanh(mu x))/2, which tends to max(0, x) as mu grows: it
    differs by at most e = 0.13924/mu, so f by at most Σ (2 max(0, x_ij) e + e²).

    As a penalty, f(A X - B) is the quadratic penalty of the constraints A X <= B.

    Args:
        x: any shape.
        mu: sharpness of the smooth ramp, > 0; None (default) for the exact one.
        axis: the axis or axes to sum over; None (default) for all.
        where: boolean, broadcastable to x: the entries that count, whatever the others hold.
            Default: all.

    Returns:
        A scalar, or x's shape without `axis`, in the promoted dtype of x and mu; half precision is
        summed in float32.

    Raises:
        ValueError: an axis, range or shape is wrong.
        TypeError: a dtype is wrong, or an axis is no int.

    Cost: one pass over x for the value and one for the gradient, or one for both with `mu`. Over
    all axes there are no temporaries of x's size, except with `mu` from 2³² entries on.

    Example:
        >>> x = jnp.array([[1.0, -2.0], [0.0, 3.0]])
        >>> value, gradient = jax.value_and_grad(squared_relu_norm)(x)
        >>> print(value)
        10.0
        >>> print(gradient)
        [[2. 0.]
         [0. 6.]]

    References:
        Nocedal and Wright, "Numerical Optimization", 2006, section 17.1 (quadratic penalty).
    """
    return _rule(x, mu, axis, where)
