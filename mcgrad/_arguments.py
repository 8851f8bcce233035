"""The arguments of a loss, each stated once.

    Arguments("classes", weights=Real("classes features", "products"), labels=Classes(), …)

From the statement follow the checks, the dtypes, the batch as one axis, and how a mesh splits the
argument. A call goes through it in two steps:

    check          outside jit, where numbers can be seen: raises for what is wrong
    canonicalize   inside jit: NaN for what is wrong and could not be seen, one batch axis, zeros
                   for the examples of weight 0 that hold NaN, the dtypes of the closed form
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcgrad._arrays import (
    Array,
    accumulation_dtype,
    as_array,
    check_choice,
    common_dtype,
    concrete,
    require,
)
from mcgrad._mesh import automatic
from mcgrad._reduction import Reduction, zero_masked_examples

__all__ = [
    "BATCH",
    "BLOCK_SIZE",
    "L2",
    "MU",
    "REDUCTION",
    "SAMPLE_WEIGHT",
    "Argument",
    "Arguments",
    "BlockSize",
    "Call",
    "Choice",
    "Classes",
    "Option",
    "Real",
    "Scalar",
    "Weights",
]

BATCH = "*batch"


@dataclasses.dataclass(frozen=True)
class Argument:
    """What is stated of an argument that is an array: its axes, by name, and its dtype.

    `dtype` says in which one the closed form takes it: that of the "products", common to all that
    enter them; that of the "sums"; or its "own".
    """

    axes: str
    dtype: str = "sums"
    optional: bool = dataclasses.field(default=False, kw_only=True)  # whether it may be None

    split: ClassVar[bool] = True  # whether a mesh splits the axis of the columns, if it has one
    kind: ClassVar[str]  # in words, for the documentation

    @property
    def range(self) -> str:
        """The numbers that are allowed, in words."""
        return ""

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.axes.split())

    def check(self, name: str, x: Any, call: "Call") -> Any:
        """The argument as an array of the right kind and shape, or an error."""
        raise NotImplementedError

    def check_with_others(self, name: str, x: Any, call: "Call") -> Any:
        """The same, as far as other arguments of the call decide."""
        return x

    def judged(self, x: Array, given: dict[str, Any]) -> Array:
        """x with NaN, or whatever makes NaN, in place of what is wrong: for numbers not seen."""
        return x

    def spec(self, columns: str | None) -> Any:
        """How a mesh splits it, once the batch is one axis."""
        along = {BATCH: "examples"}
        if self.split and columns:
            along[columns] = "columns"
        return jax.P(*(along.get(axis) for axis in self.names))


@dataclasses.dataclass(frozen=True)
class Option:
    """What is stated of an argument that is a compile-time constant."""

    def check(self, name: str, value: Any, call: "Call") -> Any:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Real(Argument):
    """Floating-point numbers."""

    kind = "real"

    def check(self, name: str, x: Any, call: "Call") -> Any:
        x = as_array(name, x)
        require_floating(name, x)
        return call.bind(name, x, self.names)


def require_floating(name: str, x: Any, hint: str = "") -> None:
    if not is_kind(x, jnp.floating):
        raise TypeError(f"{name}: expected a floating-point dtype; got {x.dtype}{hint}")


def is_kind(x: Any, kind: Any) -> bool:
    return jnp.issubdtype(x.dtype, kind)


@dataclasses.dataclass(frozen=True)
class Scalar(Argument):
    """One real number. Of Python's numbers the dtype is that of the other arguments."""

    axes: str = ""
    above: float | None = None
    least: float | None = None
    # Whether numbers outside the range of the dtype become its limits, inf and the least normal
    # number (JAX takes smaller ones for 0), instead of an error.
    limits: bool = False
    # A Python number that leaves the argument out.
    absent: float | None = None

    kind = "real number"

    @property
    def range(self) -> str:
        bounds = {"> ": self.above, ">= ": self.least}
        return "".join(f"{sign}{x:g}" for sign, x in bounds.items() if x is not None)

    def check(self, name: str, x: Any, call: "Call") -> Any:
        if isinstance(x, int) and not isinstance(x, bool):
            # An int may be larger than every float.
            largest = sys.float_info.max
            x = float(x) if abs(x) <= largest else math.inf if x > 0 else -math.inf
        if not isinstance(x, float) or isinstance(x, np.generic):
            with np.errstate(over="ignore"):
                x = as_array(name, x)
            if not is_kind(x, jnp.integer):
                require_floating(name, x)
            call.bind(name, x, ())
        elif x == self.absent:
            return None
        if self.range:
            numbers = concrete(x)
            if numbers is None:
                call.unseen.append(name)
            else:
                require(self.fits(numbers), name, f"a number {self.range}", numbers)
        return x

    def fits(self, x: Any) -> Any:
        return x >= self.least if self.above is None else x > self.above

    def check_with_others(self, name: str, x: Any, call: "Call") -> Any:
        if isinstance(x, jax.Array):
            return x
        dtype = accumulation_dtype(call.dtype)
        if isinstance(x, np.ndarray) and is_kind(x, jnp.floating):
            dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        # As a Python number again, which JAX takes up quickest.
        rounded = _rounded(float(x), dtype)
        if self.limits:
            return max(rounded, float(jnp.finfo(dtype).tiny))
        if not math.isfinite(rounded):
            require(False, name, f"a number in the range of {jnp.dtype(dtype)}", x)
        return rounded

    def judged(self, x: Array, given: dict[str, Any]) -> Array:
        # A factor, not a choice: that makes the gradient NaN as well, where a choice makes it 0.
        return x * nan_unless(self.fits(x))


def _rounded(x: float, dtype: Any) -> float:
    with np.errstate(over="ignore"):
        return float(np.asarray(x, dtype))


def nan_unless(fits: Array) -> Array:
    return jnp.where(fits, 1.0, jnp.nan)


@dataclasses.dataclass(frozen=True)
class Weights(Argument):
    """Numbers without a negative one, or a mask."""

    kind = "real, integer or boolean"

    @property
    def range(self) -> str:
        return ">= 0"

    def check(self, name: str, x: Any, call: "Call") -> Any:
        hint = f"; one number for each of ({self.axes}) is meant"
        x = as_array(name, x, hint)
        if not (is_kind(x, jnp.integer) or is_kind(x, jnp.bool_)):
            require_floating(name, x)
        numbers = concrete(call.bind(name, x, self.names))
        if numbers is None:
            call.unseen.append(name)
        elif np.any(numbers < 0):
            require(False, name, "no negative entry", numbers.min())
        return x

    def check_with_others(self, name: str, x: Any, call: "Call") -> Any:
        # JAX would narrow integers of 64 bits.
        return x.astype(accumulation_dtype(call.dtype)) if isinstance(x, np.ndarray) else x

    def judged(self, x: Array, given: dict[str, Any]) -> Array:
        return x * nan_unless(~(x < 0))


@dataclasses.dataclass(frozen=True)
class ClassWeights(Weights):
    """The weights of the true classes: whole on every device, for a label may be any class."""

    split = False


@dataclasses.dataclass(frozen=True)
class Classes(Argument):
    """Integers from 0 to classes - 1; -1, which makes loss and gradient NaN, for any other."""

    axes: str = BATCH
    dtype: str = "own"

    kind = "integer"

    @property
    def range(self) -> str:
        return "0 to classes - 1"

    def check(self, name: str, x: Any, call: "Call") -> Any:
        hint = "; numpy.unique(labels, return_inverse=True) numbers the classes"
        x = as_array(name, x, hint)
        if not is_kind(x, jnp.integer):
            one_hot = x.ndim == len(call.sizes.get(BATCH, ())) + 1
            cure = "one-hot rows, argmax(labels, -1)" if one_hot else "class numbers, astype(int)"
            raise TypeError(
                f"{name}: expected an integer dtype; got {x.dtype} (for {cure} gives one)"
            )
        return call.bind(name, x, self.names)

    def check_with_others(self, name: str, x: Any, call: "Call") -> Any:
        """In int32. An example of weight 0 may have any label."""
        count = call.sizes["classes"]
        require(count < 2**31, "classes", "fewer than 2147483648, as int32 holds", count)
        numbers, weight = concrete(x), call.given.get("sample_weight")
        if numbers is None:
            return jnp.where(out_of_range(x, count), -1, x.astype(jnp.int32))
        # Judged in all their digits, before they are narrowed.
        outside = out_of_range(numbers, count)
        if not outside.any():
            return x if x.dtype == np.int32 else numbers.astype(np.int32)
        weights = concrete(weight)
        if weight is None or weights is not None:
            wrong = outside if weight is None else outside & (weights != 0)
            expected = f"labels from 0 to {count - 1} (classes - 1)"
            require(not wrong.any(), name, expected, numbers[wrong][:1].tolist())
        return np.where(outside, np.int32(-1), numbers.astype(np.int32))


def out_of_range(labels: Any, count: int) -> Any:
    # In a dtype that holds the number of classes.
    wide = labels.astype(np.int32) if labels.dtype.itemsize < 4 else labels
    return (wide < 0) | (wide >= count)


@dataclasses.dataclass(frozen=True)
class Choice(Option):
    """One of a few names or numbers."""

    choices: tuple[Any, ...]

    def check(self, name: str, value: Any, call: "Call") -> Any:
        check_choice(name, value, self.choices)
        return value


@dataclasses.dataclass(frozen=True)
class BlockSize(Option):
    """None, or a positive int."""

    def check(self, name: str, value: Any, call: "Call") -> Any:
        fits = value is None or (type(value) is int and value > 0)
        require(fits, name, "None or a positive int", repr(value))
        return value


SAMPLE_WEIGHT = Weights(BATCH, optional=True)
MU = Scalar(above=0, limits=True, optional=True)
L2 = Scalar(least=0, absent=0.0)
REDUCTION = Choice(("mean", "sum", "none"))
BLOCK_SIZE = BlockSize()


class Bound(NamedTuple):
    """An argument and the names that its shape gave sizes to."""

    argument: str
    shape: tuple[int, ...]
    names: tuple[str, ...]


class Call:
    """What is known of one call while its arguments are checked.

    An axis has the same size wherever its name stands:

    >>> arguments = Arguments(weights=Real("classes features"), inputs=Real("*batch features"))
    >>> arguments.check(jnp.ones((3, 2)), jnp.ones((5, 4)))
    Traceback (most recent call last):
        ...
    ValueError: inputs: expected shape (*batch, features) with features=2; got shape (5, 4)
    """

    def __init__(self) -> None:
        self.sizes: dict[str, Any] = {}
        self.bound: list[Bound] = []
        self.given: dict[str, Any] = {}
        self.unseen: list[str] = []  # the arguments of which a number is traced, and unjudged
        self.dtype: Any = None  # of the value

    def bind(self, argument: str, x: Any, names: tuple[str, ...]) -> Any:
        """x, whose shape has the axes of these names."""
        shape, before = x.shape, len(self.sizes)
        self.bound.append(Bound(argument, shape, names))
        if not _fits(self.sizes, shape, names):
            expected = f"shape ({', '.join(names)}{',' if len(names) == 1 else ''})"
            known = dict(list(self.sizes.items())[:before])
            sizes = [f"{name}={known[name]}" for name in dict.fromkeys(names) if name in known]
            expected += f" with {', '.join(sizes)}" if sizes else ""
            require(False, argument, expected, f"shape {shape}{_likely_mistake(self.bound)}")
        return x


class Arguments:
    """The arguments of a loss in the order of its signature.

    Args:
        columns: the name of the axis that is split as columns over a mesh.
        rules: raises for combinations of arguments, given by name, that are wrong.
    """

    def __init__(
        self,
        columns: str | None = None,
        *,
        rules: Callable[[dict[str, Any]], None] = lambda _: None,
        **stated: Argument | Option,
    ) -> None:
        self.columns, self.rules, self.stated = columns, rules, stated
        self.arrays: dict[str, Argument] = {}
        self.options: dict[str, Option] = {}
        for name, argument in stated.items():
            if isinstance(argument, Argument):
                self.arrays[name] = argument
            else:
                self.options[name] = argument

    @property
    def argnames(self) -> tuple[str, ...]:
        """The names of the arguments of the closed form, in order."""
        return tuple(self.arrays)

    def with_batch(self, name: str) -> bool:
        return BATCH in self.arrays[name].names

    def check(self, *values: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Sort the arguments of a call, in the order of the signature, into arrays and options."""
        call, options = Call(), {}
        call.given = dict(zip(self.stated, values, strict=True))
        for name, argument in self.stated.items():
            value = call.given[name]
            if name in self.options:
                options[name] = argument.check(name, value, call)
            elif value is not None or not self.arrays[name].optional:
                call.given[name] = argument.check(name, value, call)
        self.rules(call.given)
        arrays = {name: call.given[name] for name in self.arrays}
        call.dtype = common_dtype(*jax.tree.leaves(arrays))
        for name, argument in self.arrays.items():
            if arrays[name] is not None:
                arrays[name] = argument.check_with_others(name, arrays[name], call)
        reduction = options.get("reduction", "sum")
        options["reduction"] = Reduction(reduction, call.sizes.get(BATCH), call.dtype)
        return tuple(arrays.values()), options | {"unseen": tuple(call.unseen)}

    def canonicalize(
        self, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arrays as the closed form takes them."""
        options = dict(options)
        reduction: Reduction = options["reduction"]
        given = dict(zip(self.arrays, jax.tree.map(jnp.asarray, args), strict=True))
        products = [x for name, x in given.items() if self.arrays[name].dtype == "products"]
        dtypes = {
            "sums": reduction.accumulation_dtype,
            "products": common_dtype(*products) if products else None,
        }
        for name, x in given.items():
            given[name] = cast_to(dtypes.get(self.arrays[name].dtype), x)
        for name in options.pop("unseen"):
            given[name] = self.arrays[name].judged(given[name], given)
        if given.get("sample_weight") is not None:
            rows = [name for name, x in given.items() if x is not None and self.is_row(name)]
            rows = ["sample_weight", *rows]
            given |= zip(rows, zero_masked_examples(*(given[name] for name in rows)), strict=True)
        for name, x in given.items():
            given[name] = self.flattened(name, x, reduction.batch)
        return tuple(given.values()), options

    def is_row(self, name: str) -> bool:
        """Whether an argument holds the data of each example."""
        return self.with_batch(name) and not isinstance(self.arrays[name], Weights)

    def flattened(self, name: str, x: Any, batch: tuple[int, ...] | None) -> Any:
        """x with the axes of the batch made one."""
        if x is None or batch is None or len(batch) == 1 or not self.with_batch(name):
            return x
        return jnp.reshape(x, (math.prod(batch), *jnp.shape(x)[len(batch) :]))

    def call(self, function: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
        """An equation of these arguments."""
        return function(*args, **options)

    def apply(self, function: Callable[..., Any], *values: Any) -> Any:
        """The function of these arguments, jit-compiled."""
        args, options = self.check(*values)
        return _apply(self, function, tuple(options.items()), *args)

    def layout(self, args: Any, *, reduction: Reduction, **_: Any) -> tuple[dict[str, Any], jax.P]:
        """How the arguments are split over a mesh, and the value."""
        specs = {name: argument.spec(self.columns) for name, argument in self.arrays.items()}
        return specs, reduction.spec


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(arguments: Arguments, function: Callable[..., Any], options: Any, *args: Any) -> Any:
    args, _ = arguments.canonicalize(args, dict(options))
    return automatic(function)(*args)


def cast_to(dtype: Any, x: Any) -> Any:
    """The arrays of x in this dtype; as they are where it is None."""
    return x if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), x)


def _fits(sizes: dict[str, Any], shape: tuple[int, ...], names: tuple[str, ...]) -> bool:
    """Whether a shape has the axes of these names. It adds the sizes that were not known."""
    parts: Any = shape
    if names and names[0].startswith("*"):
        leading = len(shape) - len(names) + 1
        if leading < 0:
            return False
        parts = shape[:leading], *shape[leading:]
    if len(parts) != len(names):
        return False
    for name, size in zip(names, parts, strict=True):
        if sizes.setdefault(name, size) != size:
            return False
    return True


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
    if last.names == (BATCH,) and all_fit({len(bound) - 1: last.shape[:-1]}):
        found.append("one-hot rows, of which argmax(labels, -1) is meant")
    return f" ({', or '.join(found)}?)" if found else ""
