"""Array types, the accumulation dtype, and argument checks with one style of message."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    "as_array",
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
        self.bound: list[Bound] = []

    def real(self, argument: str, x: Any, axes: str, hint: str = "") -> Array:
        """A floating-point array with these axes."""
        x = as_array(argument, x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{argument}: expected a floating-point dtype; got {x.dtype}{hint}")
        self._bind(argument, x.shape, axes.split())
        return jnp.asarray(x)

    def scalar(self, argument: str, x: Any, *, above: float | None = None, least=None) -> ArrayLike:
        """A real number; where one that is traced is out of range, NaN."""
        if isinstance(x, int) and not isinstance(x, bool):
            # An int may be larger than every float.
            largest = sys.float_info.max
            x = float(x) if abs(x) <= largest else math.inf if x > 0 else -math.inf
        if not isinstance(x, float) or isinstance(x, np.generic):
            given: Any = x
            with np.errstate(over="ignore"):
                x = self.number(argument, given, "")
            if isinstance(given, np.ndarray | np.generic) and given.dtype.kind == "f":
                limits = above is not None and float(given) > above
                (x,) = rounded(x.dtype, limits=limits, **{argument: given})
        if above is not None:
            return _judged(argument, x, lambda x: x > above, f"a number > {above}")
        if least is not None:
            return _judged(argument, x, lambda x: x >= least, f"a number >= {least}")
        return x

    def number(self, argument: str, x: Any, axes: str, hint: str = "") -> Array:
        """Real numbers. Integers stay weakly typed, so that they do not widen a dtype."""
        return self.real(argument, _real(argument, x), axes, hint)

    def nonnegative(self, argument: str, x: Any, axes: str) -> Array:
        """Weights without a negative entry, or a mask; where one that is traced is negative, NaN.

        Integers and booleans stay weakly typed.
        """
        hint = f"; one number for each of ({axes}) is meant"
        x = self.real(argument, _real(argument, x, hint, masks=True), axes)
        return _judged(argument, x, lambda x: ~(x < 0), "no negative entry")

    def integers(self, argument: str, x: Any, axes: str) -> Any:
        """Integers with these axes, in all their digits: not yet narrowed by JAX."""
        x = as_array(argument, x, "; numpy.unique(labels, return_inverse=True) numbers the classes")
        if not jnp.issubdtype(x.dtype, jnp.integer):
            one_hot = x.ndim == len(self.sizes.get("*batch", ())) + 1
            cure = "one-hot rows, argmax(labels, -1)" if one_hot else "class numbers, astype(int)"
            raise TypeError(
                f"{argument}: expected an integer dtype; got {x.dtype} (for {cure} gives one)"
            )
        self._bind(argument, x.shape, axes.split())
        return x

    def classes(self, argument: str, x: Any, weight: Array | None = None) -> Array:
        """Integers as labels 0 ... classes-1 in int32; -1 for any other, if traced.

        An example of weight 0 may have any label.
        """
        count = self.sizes["classes"]
        require(count < 2**31, "classes", "fewer than 2147483648, as int32 holds", count)
        labels, weights = concrete(x), concrete(weight)
        # Judged before they are narrowed to int32, and in a dtype that holds the number of classes.
        wide = x if labels is None else labels
        wide = wide.astype(np.int32) if wide.dtype.itemsize < 4 else wide
        outside = (wide < 0) | (wide >= count)
        if labels is not None and (weight is None or weights is not None):
            wrong = np.asarray(outside if weights is None else outside & (weights != 0))
            expected = f"labels from 0 to {count - 1} (classes - 1)"
            require(not wrong.any(), argument, expected, labels[wrong][:1].tolist())
        narrow = jnp.asarray(x).astype(jnp.int32)
        if labels is not None and not np.any(outside):
            return narrow
        return jnp.where(outside, -1, narrow)

    def flatten(self, *arrays: ArrayLike | None) -> list[Any]:
        """Each array with the axes bound to "*batch" made one."""
        batch = self.sizes["*batch"]
        if len(batch) == 1:
            return list(arrays)

        def flat(x: ArrayLike) -> Array:
            return jnp.reshape(x, (math.prod(batch), *jnp.shape(x)[len(batch) :]))

        return [None if x is None else flat(x) for x in arrays]

    def _bind(self, argument: str, shape: tuple[int, ...], names: list[str]) -> None:
        known = [
            f"{name}={self.sizes[name]}" for name in dict.fromkeys(names) if name in self.sizes
        ]
        expected = f"shape ({', '.join(names)}{',' if len(names) == 1 else ''})"
        expected += f" with {', '.join(known)}" if known else ""
        sizes, bound = dict(self.sizes), [*self.bound, Bound(argument, shape, names)]
        fits = _fits(sizes, shape, names)
        require(fits, argument, expected, f"shape {shape}{'' if fits else _likely_mistake(bound)}")
        self.sizes, self.bound = sizes, bound


class Bound(NamedTuple):
    """An argument and the names that its shape gave sizes to."""

    argument: str
    shape: tuple[int, ...]
    names: list[str]


def _fits(sizes: dict[str, Any], shape: tuple[int, ...], names: list[str]) -> bool:
    """Whether a shape has the axes of these names. It adds the sizes that were not known."""
    fixed = len([name for name in names if not name.startswith("*")])
    variadic = fixed < len(names)
    leading = len(shape) - fixed
    if leading < 0 or (leading and not variadic):
        return False
    parts = [shape[:leading]] if variadic else []
    parts += list(shape[leading:] if variadic else shape)
    pairs = zip(names, parts, strict=True)
    return all(sizes.setdefault(name, size) == size for name, size in pairs)


def _likely_mistake(bound: list[Bound]) -> str:
    """A transpose, a swap or one-hot labels, where all shapes would fit without it."""

    def all_fit(changes: dict[int, tuple[int, ...]]) -> bool:
        sizes: dict[str, Any] = {}
        return all(_fits(sizes, changes.get(k, b.shape), b.names) for k, b in enumerate(bound))

    found = []
    for k, one in enumerate(bound):
        if len(one.shape) == len(one.names) == 2 and all_fit({k: one.shape[::-1]}):
            found.append(
                f"{one.argument} {one.shape}, which is ({', '.join(one.names)}), transposed"
            )
        for j, other in enumerate(bound[:k]):
            if all_fit({k: other.shape, j: one.shape}):
                found.append(f"{other.argument} {other.shape} and {one.argument} swapped")
    *_, last = bound
    if last.names == ["*batch"] and all_fit({len(bound) - 1: last.shape[:-1]}):
        found.append("one-hot rows, of which argmax(labels, -1) is meant")
    return f" ({', or '.join(found)}?)" if found else ""


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


def _real(argument: str, x: Any, hint: str = "", *, masks: bool = False) -> Any:
    """Integers, and masks, as weakly typed real numbers; any other array as it is."""
    x = as_array(argument, x, hint)
    if not (_kind(x, jnp.integer) or masks and _kind(x, jnp.bool_)):
        return x
    if isinstance(x, np.ndarray) and np.any(np.abs(x.astype(float)) >= 2**31):
        return x.astype(float)  # JAX would wrap these around
    # A product with a Python number is weakly typed; also where promotion must be explicit.
    with jax.numpy_dtype_promotion("standard"):
        return (jnp.asarray(x).astype(jnp.int32) if x.dtype.itemsize < 4 else jnp.asarray(x)) * 1.0


def _judged(argument: str, x: Any, fits: Callable[[Any], Any], expected: str) -> Any:
    """x if its entries fit: an error where they are seen not to, NaN where they are traced."""
    numbers = concrete(x)
    if numbers is None:
        # A factor, not a choice: that makes the gradient NaN as well, where a choice makes it 0.
        return x * jnp.where(fits(x), 1.0, jnp.nan)
    require(np.all(fits(numbers)), argument, expected, numbers.min(initial=np.inf))
    return x
