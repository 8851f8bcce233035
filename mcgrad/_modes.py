"""The mechanism: an equation and its gradient in closed form, paired into one JAX function.

A rule is three functions of the same positional arguments:

    plain(*args, **static)      the equation as it is written
    forward(*args, **static)    (value, residuals)
    backward(residuals, ct)     one cotangent per argument, linear in ct

Every mode of a loss is made from them here and nowhere else: `custom_vjp` for reverse mode; for
forward mode the tangent is the linear transpose of the same `backward`, so nothing is derived
twice; the plain mode is the equation without a rule.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, ParamSpec, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from mcgrad._arrays import Array
from mcgrad._mesh import Layout, automatic, pvary, varying

__all__ = [
    "LossFunction",
    "Rule",
    "check_loss",
    "forward_mode",
    "pair",
    "plain",
    "public",
]

Parameters = ParamSpec("Parameters")
Function = TypeVar("Function", bound=Callable[..., Any])


class Canonical(Protocol):
    """How the arguments of a call become those of the closed form: see `Arguments`."""

    @property
    def argnames(self) -> tuple[str, ...]:
        """The names of the arguments of the closed form, in order."""
        ...

    def check(self, *values: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Sort the values of a call, in the order of its signature, into arrays and options."""
        ...

    def canonicalize(self, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arrays as the closed form takes them, under jit."""
        ...

    def call(self, function: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
        """An equation of these arguments."""
        ...


@dataclasses.dataclass(frozen=True)
class Rule:
    """An equation with its closed form: a function of all its arguments by position.

    `forward` and `backward` may also name options, or `needs_grad`, among their keyword-only
    parameters: `needs_grad` is the set of the names of the arguments whose gradient is requested.
    """

    plain: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    arguments: Canonical
    layout: Layout | None = None  # how the arguments may be split over a mesh

    @property
    def rule(self) -> "Rule":
        return self

    @property
    def argnames(self) -> tuple[str, ...]:
        return self.arguments.argnames

    def __call__(self, *values: Any, mode: str = "reverse") -> Any:
        """The loss of the values of a call, in the order of its signature."""
        args, options = self.arguments.check(*values)
        types = tuple(map(type, options.values()))  # 1, 1.0 and True are equal
        return _compiled(self, mode, tuple(options.items()), types)(*args)

    def evaluate(self, mode: str, options: dict[str, Any], *args: Any) -> Any:
        """The loss of canonical arguments in one of its modes."""
        bound = _BoundRule(self, options, jax.tree.map(jax.typeof, args))
        return automatic(_MODES[mode](bound))(*args)


@functools.lru_cache(maxsize=4096)
def _compiled(
    rule: Rule, mode: str, options: tuple[tuple[str, Any], ...], types: tuple[type, ...]
) -> Callable[..., Any]:
    """The loss of checked arguments.

    A function for each choice of options is called more quickly than one with static arguments.
    """

    def loss(*args: Any) -> Any:
        args, known = rule.arguments.canonicalize(args, dict(options))
        # In a `shard_map` of the user's own, the gradient of what is shared is summed over it.
        return rule.evaluate(mode, known, *pvary(args, varying(args)))

    return jax.jit(loss)


@dataclasses.dataclass(frozen=True)
class _Signature:
    """The arguments of an equation, as its signature has them."""

    equation: Callable[..., Any]
    static_argnames: tuple[str, ...]

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.equation)

    @property
    def argnames(self) -> tuple[str, ...]:
        names = self.signature.parameters
        return tuple(name for name in names if name not in self.static_argnames)

    def __getstate__(self) -> dict[str, Any]:
        # Without what is cached: a signature need not pickle.
        return {"equation": self.equation, "static_argnames": self.static_argnames}

    def check(self, *values: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(zip(self.signature.parameters, values, strict=True))
        options = {name: given[name] for name in self.static_argnames}
        for name, value in options.items():
            if not _hashable(value):
                got = type(value).__name__
                raise TypeError(f"{name}: expected a hashable value, for it is static; got {got}")
        return tuple(given[name] for name in self.argnames), options

    def canonicalize(self, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, options

    def call(self, function: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
        call = self.signature.bind_partial()
        call.arguments.update(zip(self.argnames, args, strict=True), **options)
        return function(*call.args, **call.kwargs)


class LossFunction:
    """A loss that is differentiated in one mode: "reverse", "forward" or "plain"."""

    # What it is made of is kept out of __dict__, into which `functools.wraps` writes.
    __slots__ = ("__dict__", "__weakref__", "loss", "mode", "signature")

    def __init__(self, loss: Any, mode: str) -> None:
        wrapped = loss.plain if isinstance(loss, Rule) else loss
        functools.update_wrapper(self, wrapped, updated=())
        self.loss, self.mode, self.signature = loss, mode, inspect.signature(wrapped)

    @property
    def rule(self) -> Rule:
        return self.loss.rule

    @property
    def key(self) -> tuple[Any, ...]:
        """The arguments that make this function again."""
        return self.loss, self.mode

    def with_mode(self, mode: str) -> "LossFunction":
        """The same loss in another mode."""
        loss, _, *rest = self.key
        return type(self)(loss, mode, *rest)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return self.rule(*bound.arguments.values(), mode=self.mode)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LossFunction) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.key

    def __repr__(self) -> str:
        return f"<{self.mode} mode of {_name(self)}>"


def pair(
    plain: Callable[..., Any],
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *,
    static_argnames: tuple[str, ...] | str = (),
) -> LossFunction:
    """Pair an equation with its gradient in closed form.

    The equation is L(x, ...) and the gradient whatever `backward` says it is: nothing is checked
    here (`check_gradients` does that).

    Args:
        plain: the equation, ``plain(*args, **static) -> value``. Its signature is the loss's. Each
            argument, and the value, is a pytree of arrays.
        forward: ``forward(*args, **static) -> (value, residuals)``, where the args come by position
            in the order of that signature; residuals any pytree of arrays.
        backward: ``backward(residuals, ct)`` -> a tuple with one cotangent for each of the args,
            linear in ct. A cotangent has the structure and shapes of its argument, and is cast to
            its dtype. What it holds for an integer, a boolean or a PRNG key is ignored: None will
            do. Where the value holds one, ct holds zeros of dtype ``jax.dtypes.float0``. A Python
            number or NumPy array does not depend on ct: it must be 0.
        static_argnames: names of the arguments that are compile-time constants (hashable).

    Both `forward` and `backward` may name static arguments among their keyword-only parameters, and
    ``needs_grad``: the frozenset of the names of the arguments whose gradient is requested, so that
    no other gradient need be computed; what `backward` returns for the others is ignored. If
    `forward` skips a residual, it must return a placeholder: the number of residual arrays may not
    depend on ``needs_grad`` (their shapes may).

    Returns:
        A jit-compiled function with the signature of `plain`, differentiable in reverse mode by the
        closed form, in forward mode through `forward_mode`. It pickles if its parts do.

    Raises:
        TypeError: one of the three is no hashable function with a signature, `static_argnames`
            names no parameter of `plain`, or `plain` takes ``*args``. When the loss is called or
            differentiated: `forward` gives no pair, or `backward` something other than a tuple of
            cotangents with the structures and kinds of the arguments.
        ValueError: a cotangent has another shape than its argument.

    Cost: that of `forward` and `backward`; a call that is not differentiated runs `forward` with
    no gradient requested.

    Example:
        >>> def plain(x):
        ...     return jnp.sum(x**2)
        >>> def forward(x):
        ...     return jnp.sum(x**2), x
        >>> def backward(x, ct):
        ...     return (2 * ct * x,)
        >>> square = pair(plain, forward, backward)
        >>> value, gradient = jax.value_and_grad(square)(jnp.array([1.0, 2.0]))
        >>> print(value, gradient)
        5.0 [2. 4.]

    References:
        JAX documentation, "Custom derivative rules for JAX-transformable Python functions".
    """
    given = {"plain": plain, "forward": forward, "backward": backward}
    for argument, function in given.items():
        try:
            hash(function)
            inspect.signature(function)
        except (TypeError, ValueError) as error:
            expected = "a hashable function with a signature"
            raise TypeError(f"{argument}: expected {expected}; got {function!r}") from error
    single = isinstance(static_argnames, str) or not isinstance(static_argnames, Iterable)
    names: Any = (static_argnames,) if single else tuple(static_argnames)
    parameters = inspect.signature(plain).parameters
    for name in names:
        if name not in list(parameters):
            expected = f"parameters of {_name(plain)}"
            raise TypeError(f"static_argnames: expected {expected}; got {name!r}")
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"plain: expected named parameters only; got {parameter}")
    arguments = _Signature(plain, tuple(dict.fromkeys(names)))
    return LossFunction(Rule(plain, forward, backward, arguments), "reverse")


def public(rule: Rule, example_args: Callable[..., Any]) -> Callable[[Function], Function]:
    """Declare that a function is the loss of a rule, which it calls.

    `example_args(key, batch, dtype, **options)` gives the checker (args, kwargs) for a call.
    """

    def declare(loss: Function) -> Function:
        vars(loss).update(rule=rule, example_args=example_args, loss=loss)
        return loss

    return declare


def plain(loss: Callable[Parameters, Array]) -> Callable[Parameters, Array]:
    """The bare equation of a loss, without a custom rule: what autodiff is checked against.

    The value is L(...) of the loss, the gradient whatever JAX derives from the equation.

    Args:
        loss: a loss of this library, or one made by `pair`.

    Returns:
        A function of the same signature and value. It pickles.

    Raises:
        TypeError: `loss` is something else, be it made from a loss: write
            ``jax.grad(plain(loss))``, not ``plain(jax.grad(loss))``.

    Cost: that of autodiff: every intermediate array is held.

    Example:
        >>> from mcgrad import squared_relu_norm
        >>> x = jnp.array([-1.0, 2.0])
        >>> print(jax.grad(squared_relu_norm)(x), jax.grad(plain(squared_relu_norm))(x))
        [0. 4.] [0. 4.]
    """
    return _with_mode(loss, "plain", "plain")


def forward_mode(loss: Callable[Parameters, Array]) -> Callable[Parameters, Array]:
    """The same loss by the same closed form, differentiable in forward mode too.

    A `custom_vjp` refuses `jax.jvp`, `jax.jacfwd` and `jax.linearize`. Here the tangent is the
    linear transpose of the loss's own pullback: dL = <∂L/∂x, dx>.

    Args:
        loss: a loss of this library, or one made by `pair`.

    Returns:
        A function of the same signature and value. It pickles.

    Raises:
        TypeError: `loss` is something else, be it made from a loss: write
            ``jax.grad(forward_mode(loss))``, not ``forward_mode(jax.grad(loss))``.

    Cost: that of the loss, in reverse mode; in forward mode, one pullback and one inner product.

    Example:
        >>> from mcgrad import squared_relu_norm
        >>> x, dx = jnp.array([-1.0, 2.0]), jnp.array([1.0, 1.0])
        >>> value, tangent = jax.jvp(forward_mode(squared_relu_norm), (x,), (dx,))
        >>> print(value, tangent)
        4.0 4.0
    """
    return _with_mode(loss, "forward", "forward_mode")


def check_loss(loss: Any, expected: str, transformation: str) -> None:
    """Raise unless this very function is a loss.

    `functools.wraps` copies the attributes of a loss to what is made from it, and so do jax.grad,
    jax.vmap and jax.jit: that a function has them says nothing. A loss refers to itself.
    """
    itself = isinstance(loss, FunctionType) and vars(loss).get("loss") is loss
    if not (itself or isinstance(loss, LossFunction)):
        raise TypeError(
            f"loss: expected {expected}; got {loss!r}. Of a function made from a loss, such as "
            f"jax.grad(loss) or functools.partial(loss, ...), take {transformation} first: "
            f"jax.grad({transformation}(loss))"
        )


def _with_mode(loss: Any, mode: str, transformation: str) -> Any:
    check_loss(loss, "a loss made by mcgrad.pair, or of this library", transformation)
    return loss.with_mode(mode) if isinstance(loss, LossFunction) else LossFunction(loss, mode)


def _name(function: Any) -> str:
    """The name of a function; a partial or a callable object may have none."""
    return getattr(function, "__name__", None) or repr(inspect.unwrap(function))


def _hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


class _BoundRule:
    """The closed form of one call: its options, and the types of its arguments."""

    def __init__(self, rule: Rule, options: dict[str, Any], types: tuple[Any, ...]) -> None:
        self.rule, self.options, self.types = rule, options, types

    def plain(self, *args: Any) -> Any:
        return self.rule.arguments.call(self.rule.plain, args, self.options)

    def value(self, *args: Any) -> Any:
        return self.forward(args, frozenset())[0]

    def forward(self, args: Any, needs_grad: frozenset[str]) -> tuple[Any, Any]:
        options = self.options | _named(self.rule.forward, needs_grad=needs_grad)
        result = self.rule.forward(*args, **options)
        # Merely to unpack it would take an array of two rows.
        if not (isinstance(result, tuple | list) and len(result) == 2):
            raise TypeError(f"forward: expected (value, residuals); got {_described(result)}")
        return result[0], result[1]

    def backward(self, residuals: Any, ct: Any, perturbed: Any) -> tuple[Any, ...]:
        """One cotangent per argument, of its types; None for each leaf that is not perturbed."""
        names = self.rule.argnames
        given = self.options | {"needs_grad": self.needs_grad(perturbed)}
        cotangents = self.rule.backward(residuals, ct, **_named(self.rule.backward, **given))
        if not (isinstance(cotangents, tuple | list) and len(cotangents) == len(names)):
            arguments = f"({', '.join(names)}{',' if len(names) == 1 else ''})"
            expected = f"a tuple with a cotangent for each of {arguments}"
            raise TypeError(f"backward: expected {expected}; got {_described(cotangents)}")
        return tuple(map(_as_argument, names, self.types, perturbed, cotangents))

    def needs_grad(self, perturbed: Any) -> frozenset[str]:
        """The names of the arguments with a perturbed leaf."""
        named = zip(self.rule.argnames, perturbed, strict=True)
        return frozenset(name for name, flags in named if any(jax.tree.leaves(flags)))


def _named(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Those options that are keyword-only parameters of the function; all if it takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return options
    named = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {name: value for name, value in options.items() if name in named}


def _as_argument(name: str, types: Any, perturbed: Any, cotangent: Any) -> Any:
    """The cotangent of one argument, checked and cast; None for each leaf that is not perturbed."""
    flags = jax.tree.leaves(perturbed)
    if not any(flags):
        return None
    paths, structure = jax.tree_util.tree_flatten_with_path(types)

    def spread(cotangent: Any, part: Any) -> Any:
        """None for a part of the argument is None for each of its leaves."""
        return jax.tree.map(lambda _: None, part) if cotangent is None else cotangent

    try:
        full = jax.tree.map(spread, cotangent, types, is_leaf=lambda x: x is None)
        leaves = structure.flatten_up_to(full)
    except ValueError as error:
        raise TypeError(
            f"backward: expected a cotangent of {name} with the structure {structure}; "
            f"got {jax.tree.structure(cotangent)}"
        ) from error
    return structure.unflatten(
        _as_leaf(name + jax.tree_util.keystr(path), leaf_type, leaf) if flag else None
        for (path, leaf_type), flag, leaf in zip(paths, flags, leaves, strict=True)
    )


def _as_leaf(name: str, leaf_type: Any, cotangent: Any) -> Array:
    """The cotangent of one perturbed array, checked and cast."""
    expected, dtype = f"backward: expected a cotangent of {name}", leaf_type.dtype
    try:
        array = jnp.asarray(_instantiate(cotangent))
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{expected}; got {_described(cotangent)}") from error
    # A number that is not traced would be right for one ct alone, and its transpose is zero.
    if not isinstance(cotangent, jax.Array | SymbolicZero) and np.any(cotangent):
        raise TypeError(f"{expected} that is linear in ct; got the constant {cotangent}")
    if array.shape != leaf_type.shape:
        raise ValueError(f"{expected} of shape {leaf_type.shape}; got shape {array.shape}")
    kinds = [jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating]
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        kinds.pop()
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise TypeError(f"{expected} that casts to {dtype}; got {array.dtype}")
    return array.astype(dtype)


def _described(x: Any) -> str:
    """What came in the place of something else."""
    if isinstance(x, tuple | list):
        return f"a {type(x).__name__} of {len(x)}"
    if isinstance(x, jax.Array | np.ndarray):
        return f"an array of shape {x.shape}"
    return "None" if x is None else type(x).__name__


def _reverse(rule: _BoundRule) -> Callable[..., Any]:
    def forward(*primals: Any) -> tuple[Any, Any]:
        # Each leaf of a primal is a pair (value, perturbed).
        args = jax.tree.map(lambda leaf: leaf.value, primals)
        perturbed = jax.tree.map(lambda p: p.perturbed and _differentiable(p.value), primals)
        value, residuals = rule.forward(args, rule.needs_grad(perturbed))
        # JAX keeps one structure of residuals per traced call, whatever is perturbed in it: what is
        # perturbed is encoded in the sizes of arrays, 1 or 0, which may vary.
        return value, (residuals, jax.tree.map(lambda flag: jnp.zeros(int(flag)), perturbed))

    def backward(saved: Any, ct: Any) -> tuple[Any, ...]:
        residuals, markers = saved
        ct = jax.tree.map(_instantiate, ct, is_leaf=lambda x: isinstance(x, SymbolicZero))
        return rule.backward(residuals, ct, jax.tree.map(lambda m: m.size > 0, markers))

    loss = jax.custom_vjp(rule.value)
    loss.defvjp(forward, backward, symbolic_zeros=True)
    return loss


def _forward(rule: _BoundRule) -> Callable[..., Any]:
    def tangent_rule(primals: Any, tangents: Any) -> tuple[Any, Any]:
        def moves(tangent: Any, primal: Any) -> bool:
            return not isinstance(tangent, SymbolicZero) and _differentiable(primal)

        perturbed = jax.tree.map(moves, tangents, primals)
        value, residuals = rule.forward(primals, rule.needs_grad(perturbed))
        leaves, structure = jax.tree.flatten(value)
        differentiable = [leaf for leaf in leaves if _differentiable(leaf)]

        def among_zeros(tangents: list[Any]) -> Any:
            """These in the differentiable leaves of the value, float0 zeros in the others."""
            rest, float0 = iter(tangents), jax.dtypes.float0
            return structure.unflatten(
                next(rest) if _differentiable(leaf) else jnp.zeros(jnp.shape(leaf), float0)
                for leaf in leaves
            )

        def pullback(cts: list[Any]) -> list[Any]:
            return jax.tree.leaves(rule.backward(residuals, among_zeros(cts), perturbed))

        flagged = zip(jax.tree.leaves(tangents), jax.tree.leaves(perturbed), strict=True)
        moved = [tangent for tangent, flag in flagged if flag]
        (tangent,) = jax.linear_transpose(pullback, differentiable)(moved)
        return value, among_zeros(tangent)

    loss = jax.custom_jvp(rule.value)
    loss.defjvp(tangent_rule, symbolic_zeros=True)
    return loss


def _differentiable(x: Any) -> bool:
    """Whether x has a tangent: an integer, a boolean or a PRNG key has none."""
    return jnp.issubdtype(jax.typeof(x).dtype, jnp.inexact)


def _instantiate(x: Any) -> Array:
    """A cotangent as an array: with jit disabled, JAX hands over Python numbers as they are."""
    if not isinstance(x, SymbolicZero):
        return jnp.asarray(x)
    zero: Any = x.aval
    return jnp.zeros(zero.shape, zero.dtype)


_MODES = {"reverse": _reverse, "forward": _forward, "plain": lambda rule: rule.plain}
