"""The function under test, as programs over flat tuples of arrays.

A call `fun(*args, **kwargs)` has float leaves that are differentiated (`active`), other arrays
(`fixed`), and everything else, which belongs to the function. Programs take (active, fixed) and are
compiled once in a check, whatever the numbers. The next check makes new ones: its function may be
equal to this one and no longer do the same, for a rule, an attribute or a variable may change.
"""

import functools
import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Leaf", "Programs", "Subject", "attempt", "calls_host", "draws", "precision"]

GROUPS = 4096  # at most so many outputs are looked at one by one; more are summed in groups


class Form(NamedTuple):
    """The structure of a call: where the arrays go."""

    tree: Any
    active: tuple[int, ...]
    fixed: tuple[int, ...]
    rest: tuple[Any, ...]  # the leaves that are not arrays, None in the place of arrays


class Leaf(NamedTuple):
    """A differentiated leaf: the name of its argument, its path inside it, its type."""

    argument: str
    path: str
    shape: tuple[int, ...]
    dtype: Any
    weak: bool

    def __str__(self) -> str:
        return self.argument + self.path


def attempt(call: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    """The result and "", or None and the error in one line."""
    try:
        return call(*args), ""
    except Exception as error:  # whatever a function under test raises is part of the report
        lines = (str(error).strip() or "no message").splitlines()
        if lines[0].endswith("Traceback (most recent call last):"):  # of a callback on the host
            return None, lines[-1].strip(" :")[:160]
        return None, f"{type(error).__name__}: {lines[0][:160]}"


class Programs:
    """The programs of one function and one structure; `compiled` False runs them step by step."""

    def __init__(self, fun: Callable[..., Any], form: Form, compiled: bool) -> None:
        self.fun, self.form, self.is_compiled = fun, form, compiled
        wrap = jax.jit if compiled else (lambda program: program)
        self.value = wrap(self.flat_value)
        self.pullback = wrap(self.bare_pullback)
        self.pushforward = wrap(self.bare_pushforward)
        self.values = wrap(functools.partial(self._along, self._weighed_value))
        self.gradients = wrap(functools.partial(self._along, self._weighed_gradient))
        self.products = {
            "reverse over reverse": wrap(self.reverse_over_reverse),
            "forward over reverse": wrap(self.forward_over_reverse),
        }
        self.others: dict[Hashable, Callable[..., Any]] = {}

    def once(self, key: Hashable, program: Callable[..., Any]) -> Callable[..., Any]:
        """A program of somebody else, compiled the first time it is asked for."""
        if key not in self.others:
            self.others[key] = jax.jit(program) if self.is_compiled else program
        return self.others[key]

    def call(self, active: Sequence[Any], fixed: Sequence[Any]) -> list[Any]:
        """The float leaves of the output."""
        leaves = list(self.form.rest)
        for places, arrays in ((self.form.active, active), (self.form.fixed, fixed)):
            for place, x in zip(places, arrays, strict=True):
                leaves[place] = jnp.asarray(x) if isinstance(x, np.ndarray) else x
        args, kwargs = jax.tree.unflatten(self.form.tree, leaves)
        return _float_leaves(self.fun(*args, **kwargs))

    def flat_value(self, active: Any, fixed: Any) -> Any:
        """The float outputs in one vector."""
        return _flat(self.call(active, fixed))

    def bare_pullback(self, active: Any, fixed: Any, weights: Any) -> Any:
        """The outputs in one vector, and the cotangents of `active` for output cotangents."""
        outputs, pull = jax.vjp(lambda *x: self.call(x, fixed), *active)
        return _flat(outputs), pull(_like(outputs, weights))

    def bare_pushforward(self, active: Any, fixed: Any, direction: Any) -> Any:
        tangents = tuple(
            d.astype(jnp.result_type(x)) for x, d in zip(active, direction, strict=True)
        )
        outputs, moved = jax.jvp(lambda *x: self.call(x, fixed), tuple(active), tangents)
        return _flat(outputs), _flat(moved)

    def reverse_over_reverse(self, active: Any, fixed: Any, weights: Any, direction: Any) -> Any:
        def derivative(*x: Any) -> Any:
            slopes = self.bare_pullback(x, fixed, weights)[1]
            return sum(jnp.vdot(g, d) for g, d in zip(slopes, direction, strict=True))

        return jax.grad(derivative, tuple(range(len(active))))(*active)

    def forward_over_reverse(self, active: Any, fixed: Any, weights: Any, direction: Any) -> Any:
        return jax.jvp(
            lambda *x: self.bare_pullback(x, fixed, weights)[1], tuple(active), tuple(direction)
        )[1]

    def _weighed_value(self, active: Any, fixed: Any, weights: Any, _: Any) -> Any:
        return _grouped(self.flat_value(active, fixed) * weights)

    def _weighed_gradient(self, active: Any, fixed: Any, weights: Any, others: Any) -> Any:
        slopes = self.bare_pullback(active, fixed, weights)[1]
        return _grouped(_flat(slopes) * _flat(others))

    def _along(
        self,
        quantity: Any,
        active: Any,
        fixed: Any,
        weights: Any,
        direction: Any,
        offsets: Any,
        others: Any = None,
    ) -> Any:
        """`quantity` at active + t direction for every t, one row each."""

        def at(t: Any) -> Any:
            moved = tuple(
                (jnp.asarray(x).astype(float) + t * d).astype(jnp.result_type(x))
                for x, d in zip(active, direction, strict=True)
            )
            return quantity(moved, fixed, weights, others)

        return jax.lax.map(at, offsets) if self.is_compiled else jnp.stack([*map(at, offsets)])


class Subject:
    """A function with the arguments of one check. Raises what the function itself raises."""

    def __init__(
        self,
        fun: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        argnums: int | Iterable[int] | None,
        argnames: str | Iterable[str] | None,
    ) -> None:
        self.name = getattr(fun, "__name__", None) or type(fun).__name__
        self.notes: list[str] = []
        paths, tree = jax.tree_util.tree_flatten_with_path((tuple(args), kwargs))
        names = _parameter_names(fun, len(args))
        wanted = _wanted(len(args), kwargs, argnums, argnames)
        active: list[tuple[int, Any]] = []
        fixed: list[tuple[int, Any]] = []
        rest: list[Any] = []
        self.leaves: list[Leaf] = []
        self.groups: dict[str, tuple[list[int], list[int]]] = {}  # of active, of fixed, by argument
        for place, (path, leaf) in enumerate(paths):
            key = getattr(path[1], "idx", getattr(path[1], "key", None))  # a position or a keyword
            argument: str = names[key] if isinstance(key, int) else str(key)
            kind = _kind(
                leaf, named=isinstance(key, int) or (argnames is not None and key in wanted)
            )
            if kind == "complex":
                self.notes.append(f"{argument}: complex numbers are held fixed")
            if kind == "float" and key in wanted:
                weak = isinstance(leaf, float) and not isinstance(leaf, np.generic)
                x = jnp.asarray(leaf)
                where = jax.tree_util.keystr(path[2:])
                self.leaves.append(Leaf(argument, where, x.shape, x.dtype, weak))
                self.groups.setdefault(argument, ([], []))[0].append(len(active))
                active.append((place, leaf if weak else np.asarray(x)))
            elif kind in ("float", "complex", "array"):
                self.groups.setdefault(argument, ([], []))[1].append(len(fixed))
                fixed.append((place, jnp.asarray(leaf)))
            rest.append(leaf if kind == "rest" else None)
        if not active:
            raise ValueError(
                "args: expected at least one float argument to differentiate; got none"
            )
        at = [tuple(place for place, _ in side) for side in (active, fixed)]
        form = Form(tree, at[0], at[1], tuple(rest))
        self.own = tuple(x for _, x in active)
        self.fixed = tuple(x for _, x in fixed)
        self.programs = Programs(fun, form, True)
        trace = jax.make_jaxpr(self.programs.call, return_shape=True)
        traced, problem = attempt(trace, self.own, self.fixed)
        jaxpr, outputs = traced or (None, [])
        config: Any = jax.config
        looks_at_values = config.jax_debug_nans or config.jax_debug_infs
        if jaxpr is None or calls_host(jaxpr.jaxpr) or looks_at_values:
            outputs = _float_leaves(fun(*args, **kwargs))  # an error here is the caller's
        if problem:
            self.programs = Programs(fun, form, False)
            self.notes.append(f"jit: the function itself cannot be traced ({problem})")
        self.outputs = sum(y.size for y in outputs)
        if not self.outputs:
            raise ValueError("fun: expected at least one float output; got none")

    def look(self, program: Callable[..., Any], active: Any, fixed: Any) -> Any:
        """The jaxpr of a program, None if it cannot be traced; raises what the program raises."""
        if self.programs.is_compiled:
            return jax.make_jaxpr(program)(active, fixed).jaxpr
        program(active, fixed)
        traced, _ = attempt(jax.make_jaxpr(lambda *x: program(x, fixed)), *active)
        return traced and traced.jaxpr

    def cast(self, dtype: Any = None, own: Sequence[Any] | None = None) -> tuple[Any, Any]:
        """The float arrays in this dtype, or as they came; Python numbers stay what they are."""
        active, fixed = tuple(self.own if own is None else own), self.fixed
        if dtype is None:
            return active, fixed
        active = tuple(
            x if isinstance(x, float) and dtype != np.float64 else np.asarray(x, dtype)
            for x in active
        )
        return active, tuple(x.astype(dtype) if _kind(x) == "float" else x for x in fixed)


def precision(jaxpr: Any) -> float:
    """The coarsest eps of the dtypes to which a program narrows its floats."""
    seen = {float(np.finfo(np.float64).eps)}
    for equation in _equations(jaxpr):
        given, made = (
            list(filter(None, map(_eps, v))) for v in (equation.invars, equation.outvars)
        )
        seen.update(eps for eps in made if given and eps > min(given))
    return max(seen)


def calls_host(jaxpr: Any) -> bool:
    """Whether a program calls back into Python while it runs."""
    return any("callback" in e.params for e in _equations(jaxpr))


def draws(jaxpr: Any) -> list[str]:
    """The random draws of a program: programs with equal lists draw equal numbers."""
    return [
        f"{e.primitive.name} {[str(v.aval) for v in (*e.invars, *e.outvars)]}"
        for e in _equations(jaxpr)
        if e.primitive.name.startswith(("random_", "rng_", "threefry"))
    ]


def _equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr and of all that are inside it; none of None."""
    for equation in jaxpr.eqns if jaxpr is not None else ():
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def _eps(variable: Any) -> float | None:
    dtype = getattr(variable.aval, "dtype", None)
    is_float = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    return float(jnp.finfo(dtype).eps) if is_float else None


def _float_leaves(outputs: Any) -> list[Any]:
    """The floats among the outputs of a function, Python floats included, as arrays."""
    found = [y for y in jax.tree.leaves(outputs) if _kind(y) == "float"]
    return [jnp.asarray(y, jnp.result_type(y)) for y in found]


def _kind(leaf: Any, named: bool = True) -> str:
    """What a leaf is: "float", "complex", another "array", or the "rest".

    A Python float is data where it stands among the positional arguments or is asked for by name;
    as any other keyword it is a setting.
    """
    if isinstance(leaf, float) and not isinstance(leaf, np.generic):
        return "float" if named else "rest"
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic) or isinstance(leaf, np.str_):
        return "rest"
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return "float"
    return "complex" if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else "array"


def _wanted(
    count: int,
    kwargs: dict[str, Any],
    argnums: int | Iterable[int] | None,
    argnames: str | Iterable[str] | None,
) -> set[Any]:
    numbers = (
        range(count) if argnums is None else [argnums] if isinstance(argnums, int) else argnums
    )
    names = kwargs if argnames is None else [argnames] if isinstance(argnames, str) else argnames
    for number in numbers:
        if not -count <= number < count:
            raise ValueError(f"argnums: expected positions below {count}; got {number}")
    for name in names:
        if name not in kwargs:
            given = ", ".join(kwargs) or "none"
            raise ValueError(f"argnames: expected keyword arguments ({given}); got {name!r}")
    return {number % count for number in numbers} | set(names)


def _parameter_names(fun: Callable[..., Any], count: int) -> list[str]:
    names = [f"args[{i}]" for i in range(count)]
    try:
        parameters = inspect.signature(fun).parameters.values()
    except (TypeError, ValueError):
        return names
    simple = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [p.name for p in parameters if p.kind in simple]
    return [known[i] if i < len(known) else names[i] for i in range(count)]


def _flat(arrays: Iterable[Any]) -> Any:
    return jnp.concatenate([jnp.ravel(x).astype(float) for x in arrays])


def _like(arrays: Sequence[Any], vector: Any) -> list[Any]:
    """The entries of a vector in the shapes and dtypes of these arrays."""
    ends = np.cumsum([x.size for x in arrays])[:-1]
    parts = jnp.split(vector, ends)
    return [part.reshape(x.shape).astype(x.dtype) for part, x in zip(parts, arrays, strict=True)]


def _grouped(vector: Any) -> Any:
    if vector.size <= GROUPS:
        return vector
    size = -(-vector.size // 64)
    return jnp.pad(vector, (0, -vector.size % size)).reshape(-1, size).sum(1)
