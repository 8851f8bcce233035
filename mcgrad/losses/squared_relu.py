"""The squared Frobenius norm of a ReLU.

    f(X) = ‖relu(X)‖² = Σ a(x_ij)²               a the ramp, exact or tanh(mu x)

    ∂f/∂X = 2 a ⊙ a'      (2 max(X, 0) in the exact case)      ∂f/∂mu = Σ 2 a ∂a/∂mu

f is differentiable everywhere, its gradient Lipschitz with constant 2; only the second derivative
jumps, at 0. relu(X) is (sign(X) + J)/2 ⊙ X, with J all ones: the factor alone, (sign(X) + J)/2, is
the unit step and not the ReLU.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from mcgrad._arrays import (
    Array,
    ArrayLike,
    Axes,
    Float,
    accumulator,
    as_array,
    common_dtype,
    require,
    rounded,
)
from mcgrad._blocks import Block, device, even, loop_over_blocks, read_block, write_block
from mcgrad._modes import Rule, public
from mcgrad._ramp import ramp, ramp_by_mu, slope
from mcgrad._reduction import Reduction
from mcgrad._split import Split, zeros

__all__ = ["squared_relu_norm"]


def _equation(x, mu, where, *, axis, reduction):
    a = ramp(_counted(x, where, reduction.dtype), mu)
    return jnp.sum(jnp.square(a), axis).astype(reduction.dtype)


def _forward(x, mu, where, *, axis, reduction, wanted):
    """The value; with it the gradient, where that is dear to compute a second time."""
    dtype, split = reduction.dtype, reduction.split
    if _twice(mu, axis):
        a = ramp(_counted(x, where, dtype), mu)
        value = _summed(split, x, axis).over_all(jnp.sum(jnp.square(a), axis))
        return value.astype(dtype), (x, mu, where)
    entries, counted = x.reshape(-1), None if where is None else where.reshape(-1)
    sums = {"value": zeros((), accumulator(dtype), entries)}
    if "x" in wanted:
        sums["x"] = zeros(entries.shape, x.dtype, entries)
    if "mu" in wanted:
        sums["mu"] = zeros((), accumulator(dtype), entries)

    def body(sums: dict[str, Array], block: Block) -> dict[str, Array]:
        mask, repeated = None if counted is None else read_block(counted, block), block.repeated
        if repeated is not None:
            mask = ~repeated if mask is None else mask & ~repeated
        x = _counted(read_block(entries, block), mask, dtype)
        a = ramp(x, mu)
        new = {"value": sums["value"] + jnp.vdot(a, a)}
        if "x" in wanted:
            new["x"] = write_block(sums["x"], (2 * a * slope(x, mu)).astype(entries.dtype), block)
        if "mu" in wanted:
            new["mu"] = sums["mu"] + 2 * jnp.vdot(a, ramp_by_mu(x, mu))
        return new

    sums = loop_over_blocks(body, sums, entries.size, even(entries.size, device().block))
    nothing = jnp.zeros((), x.dtype)
    by_x = sums["x"].reshape(x.shape) if "x" in wanted else nothing
    return split.over_all(sums["value"]).astype(dtype), (by_x, mu, sums.get("mu", nothing))


def _backward(residuals, ct, *, axis, reduction, wanted):
    dtype = reduction.dtype
    ct = ct.astype(accumulator(dtype))
    x, mu, where = residuals
    if not _twice(mu, axis):
        by_x, _, by_mu = residuals
        return ct * by_x.astype(ct.dtype), ct * by_mu.astype(ct.dtype), None
    own = _counted(x, where, dtype)
    ct = jnp.expand_dims(ct, range(x.ndim) if axis is None else axis)
    a = ramp(own, mu)
    by_mu = jnp.sum(ct * (2 * a * ramp_by_mu(own, mu))) if "mu" in wanted else None
    return ct * (2 * a * slope(own, mu)), by_mu, None


def _twice(mu: Array | None, axis: tuple[int, ...] | None) -> bool:
    """Whether the ramp is computed again for the gradient.

    The exact ramp is fused into each sum and costs nothing; the smooth one is summed in blocks, in
    one pass, unless only some axes are summed over.
    """
    return mu is None or axis is not None


def _counted(x: Array, where: Array | None, dtype: Any) -> Array:
    """The entries that count, the others 0, where value and slope are."""
    x = x.astype(accumulator(dtype))
    return x if where is None else jnp.where(where, x, 0)


def _axis(axis: Any) -> int:
    """An axis as an int; True and False count nothing."""
    try:
        if not isinstance(axis, bool):
            return operator.index(axis)
    except TypeError:
        pass
    raise TypeError(f"axis: expected an int, a tuple of ints or None; got {axis!r}")


def _draw(key, batch, dtype, *, smooth):
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


def _summed(split: Split, x: Array, axis: tuple[int, ...] | None) -> Split:
    """The split of those axes of x that are summed over."""
    if axis is None:
        return split
    examples = split.examples if 0 in axis else None
    return Split(examples, split.columns if x.ndim - 1 in axis else None)


@public(Rule(_equation, _forward, _backward, ("axis", "reduction"), _layout), _draw)
def squared_relu_norm(
    x: Float[ArrayLike, "..."],
    *,
    mu: Float[ArrayLike, ""] | float | None = None,
    axis: int | tuple[int, ...] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Any:
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
    axes = Axes()
    x = axes.real("x", x, "*shape")
    mu = None if mu is None else axes.scalar("mu", mu, above=0)
    if axis is not None:
        given = tuple(map(_axis, axis if isinstance(axis, tuple | list) else (axis,)))
        fits = all(-x.ndim <= i < x.ndim for i in given)
        require(fits, "axis", f"axes from {-x.ndim} to {x.ndim - 1}", axis)
        axis = tuple(sorted(i % x.ndim for i in given))
        require(len(set(axis)) == len(axis), "axis", "each axis once", given)
    elif x.size >= 2**32:
        # No index reaches all entries in a row: they are summed as one array, not in blocks.
        axis = tuple(range(x.ndim))
    if where is not None:
        mask = as_array("where", where)
        if mask.dtype != bool:
            raise TypeError(f"where: expected a boolean dtype; got {mask.dtype}")
        try:
            where = jnp.broadcast_to(mask, x.shape)
        except ValueError:
            require(False, "where", f"a shape that broadcasts to {x.shape}", f"shape {mask.shape}")
    dtype = common_dtype(x, mu)
    (mu,) = rounded(accumulator(dtype), limits=True, mu=mu)
    return (x, mu, where), {"axis": axis, "reduction": Reduction("sum", None, dtype)}
