"""Array types, the accumulation dtype, and argument checks with one style of message."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

__all__ = [
    "Array",
    "ArrayLike",
    "Axes",
    "Float",
    "Int",
    "accumulator",
    "check_choice",
    "common_dtype",
    "concrete",
    "power_of_two",
    "product",
    "promoted",
    "require",
    "rounded",
]


def accumulator(*arrays: ArrayLike) -> Any:
    """The dtype in which sums of these arrays run: float32 for half precision, else their own."""
    dtype = jnp.result_type(*arrays)
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


def common_dtype(*arrays: ArrayLike | None) -> Any:
    """The promoted dtype of the floating-point arrays among these."""
    given = [x for x in arrays if x is not None]
    # Documented, hence explicit: also where the user forbids implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*[x for x in given if _kind(x, jnp.floating)])


def _kind(x: ArrayLike, kind: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), kind)


def promoted(dtype: Any, *arrays: ArrayLike | None) -> list[Any]:
    """Each array in this dtype; None stays None."""
    return [
        x.astype(dtype) if isinstance(x, jax.Array) else None if x is None else np.asarray(x, dtype)
        for x in arrays
    ]


def rounded(dtype: Any, *, limits: bool = False, **scalars: Any) -> list[Any]:
    """Each scalar argument in this dtype; None stays None.

    A number that the dtype cannot hold is an error. With `limits`, for positive numbers that have a
    limit at both ends, it becomes inf or the least normal number: JAX takes smaller ones for 0.
    """

    def fit(argument: str, number: Any) -> np.ndarray:
        with np.errstate(over="ignore"):
            x = np.asarray(number, dtype)
        if limits:
            return np.maximum(x, jnp.finfo(dtype).tiny)
        require(np.isfinite(x), argument, f"a number in the range of {jnp.dtype(dtype)}", number)
        return x

    return [
        x if x is None else x.astype(dtype) if isinstance(x, jax.Array) else fit(argument, x)
        for argument, x in scalars.items()
    ]


def product(left: Array, right: Array, dtype: Any) -> Array:
    """Matrix product in the dtype of its factors, accumulated in `dtype`."""
    return jnp.matmul(left, right, preferred_element_type=dtype)


def power_of_two(x: Array) -> Array:
    """A power of two within a factor of 3 below x > 0, a constant to derivatives; 1 for other x.

    What is divided by it keeps its digits, and that does not depend on the scale of x.
    """
    power = jax.lax.reduce_precision(x / 2, exponent_bits=jnp.finfo(x.dtype).nexp, mantissa_bits=0)
    usable = (power > 0) & jnp.isfinite(power)
    return jax.lax.stop_gradient(jnp.where(usable, power, 1))


def concrete(x: Any) -> np.ndarray | None:
    """The numbers in x, or None while they are being traced or lie on another process."""
    if x is None or isinstance(x, Tracer):
        return None
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return None
    return np.asarray(x)


def require(held: Any, argument: str, expected: str, got: Any) -> None:
    """Raise the ValueError of every check: the argument, what was expected, what came."""
    if not held:
        raise ValueError(f"{argument}: expected {expected}; got {got}")


def check_choice(argument: str, value: Any, choices: Sequence[Any]) -> None:
    """The argument is one of a few names or numbers."""
    held = any(value is c or (type(value) is type(c) and value == c) for c in choices)
    require(held, argument, "one of " + ", ".join(map(repr, choices)), repr(value))


class Axes:
    """The named axes of one call: an axis has the same size wherever its name stands.

    >>> axes = Axes()
    >>> weights = axes.real("weights", jnp.ones((3, 2)), "classes features")
    >>> axes.real("inputs", jnp.ones((5, 4)), "*batch features")
    Traceback (most recent call last):
        ...
    ValueError: inputs: expected shape (*batch, features) with features=2; got shape (5, 4)
    """

    def __init__(self) -> None:
        self.sizes: dict[str, Any] = {}

    def real(self, argument: str, x: Any, axes: str) -> Array:
        """A floating-point array with these axes."""
        return self._array(argument, x, axes, jnp.floating, "a floating-point dtype")

    def scalar(self, argument: str, x: Any, *, above: float | None = None, least=None) -> ArrayLike:
        """A real number. Python numbers stay as they are, so that they do not widen a dtype."""
        if isinstance(x, int) and not isinstance(x, bool):
            # An int may be larger than every float.
            largest = sys.float_info.max
            x = float(x) if abs(x) <= largest else math.inf if x > 0 else -math.inf
        number = concrete(x)
        if not isinstance(x, float) or isinstance(x, np.generic):
            with np.errstate(over="ignore"):
                given, x = x, self.real(argument, x, "")
            if isinstance(given, np.ndarray | np.generic):
                (x,) = rounded(x.dtype, limits=above is not None, **{argument: given})
        if number is not None and above is not None:
            require(number > above, argument, f"a number > {above}", number)
        if number is not None and least is not None:
            require(number >= least, argument, f"a number >= {least}", number)
        return x

    def nonnegative(self, argument: str, x: Any, axes: str) -> Array:
        """A floating-point array without negative entries."""
        x = self.real(argument, x, axes)
        numbers = concrete(x)
        if numbers is not None:
            require(not (numbers < 0).any(), argument, "no negative entry", numbers.min(initial=0))
        return x

    def classes(self, argument: str, x: Any, axes: str, weight: Array | None = None) -> Array:
        """Labels 0 ... classes-1 as int32, where "classes" is bound; -1 for any other, if traced.

        An example of weight 0 may have any label.
        """
        x = self._array(argument, x, axes, jnp.integer, "an integer dtype")
        last = self.sizes["classes"] - 1
        labels, weights = concrete(x), concrete(weight)
        if labels is not None and (weight is None or weights is not None):
            wrong = (labels < 0) | (labels > last)
            wrong &= True if weights is None else weights != 0
            expected = f"labels from 0 to {last} (classes - 1)"
            require(not wrong.any(), argument, expected, labels[wrong][:1].tolist())
            if weight is None:
                return x.astype(jnp.int32)
        return jnp.where((x < 0) | (x > last), -1, x).astype(jnp.int32)

    def flatten(self, *arrays: ArrayLike | None) -> list[Any]:
        """Each array with the axes bound to "*batch" made one."""
        batch = self.sizes["*batch"]
        if len(batch) == 1:
            return list(arrays)

        def flat(x: ArrayLike) -> Array:
            return jnp.reshape(x, (math.prod(batch), *jnp.shape(x)[len(batch) :]))

        return [None if x is None else flat(x) for x in arrays]

    def _array(self, argument: str, x: Any, axes: str, kind: Any, description: str) -> Array:
        try:
            x = jnp.asarray(x)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{argument}: expected an array; got {type(x).__name__}") from error
        if not jnp.issubdtype(x.dtype, kind):
            raise TypeError(f"{argument}: expected {description}; got {x.dtype}")
        self._bind(argument, x.shape, axes.split())
        return x

    def _bind(self, argument: str, shape: tuple[int, ...], names: list[str]) -> None:
        known = [f"{name}={self.sizes[name]}" for name in names if name in self.sizes]
        expected = f"shape ({', '.join(names)}{',' if len(names) == 1 else ''})"
        expected += f" with {', '.join(known)}" if known else ""
        fixed = len([name for name in names if not name.startswith("*")])
        variadic = fixed < len(names)
        rank_fits = len(shape) >= fixed if variadic else len(shape) == fixed
        require(rank_fits, argument, expected, f"shape {shape}")
        leading = len(shape) - fixed
        parts = [shape[:leading]] if variadic else []
        parts += list(shape[leading:] if variadic else shape)
        for name, size in zip(names, parts, strict=True):
            require(self.sizes.setdefault(name, size) == size, argument, expected, f"shape {shape}")
