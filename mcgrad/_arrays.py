"""Array types and dtypes, and the one style of message of every check."""

import functools
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
    "Float",
    "Int",
    "accumulation_dtype",
    "as_array",
    "check_choice",
    "common_dtype",
    "concrete",
    "power_of_two",
    "matmul",
    "require",
]


def accumulation_dtype(dtype: Any) -> Any:
    """The dtype in which sums of this one run: float32 for half precision, else its own."""
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else jnp.dtype(dtype)


def common_dtype(*arrays: Any) -> Any:
    """The promoted dtype of the floating-point arrays among these."""
    given = ((x.dtype, getattr(x, "weak_type", False)) for x in arrays if hasattr(x, "dtype"))
    return _common_dtype(frozenset(given), jax.config.read("jax_enable_x64"))


@functools.lru_cache(maxsize=1024)
def _common_dtype(types: frozenset[tuple[Any, bool]], x64: bool) -> Any:
    # Documented, hence explicit: also where the user forbids implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        # A weak type is that of Python's numbers.
        floating = [(dtype, weak) for dtype, weak in types if jnp.issubdtype(dtype, jnp.floating)]
        canonical = jax.dtypes.canonicalize_dtype
        return jnp.result_type(*[0.0 if weak else canonical(dtype) for dtype, weak in floating])


def matmul(left: Array, right: Array, dtype: Any) -> Array:
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
    if not any(value is c or (type(value) is type(c) and value == c) for c in choices):
        require(False, argument, "one of " + ", ".join(map(repr, choices)), repr(value))


def as_array(argument: str, x: Any, hint: str = "") -> Any:
    """x as an array: of JAX where it is one; else of NumPy, which holds all digits of x.

    The hint is for names given in place of numbers.
    """
    if isinstance(x, jax.Array):
        return x
    given = type(x).__name__
    try:
        leaves = jax.tree.leaves(x)
        of_jax = any(
            isinstance(leaf, jax.Array) or hasattr(leaf, "__jax_array__") for leaf in leaves
        )
        x = jnp.asarray(x) if of_jax else np.asarray(x)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{argument}: expected an array; got {given}: {error}") from error
    if x.dtype.kind in "OUSMm":
        words = x.dtype.kind in "US"
        given += " of strings" * (words and x.ndim > 0)
        raise TypeError(f"{argument}: expected an array; got {given}{hint * words}")
    return x
