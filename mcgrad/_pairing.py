"""The mechanism: an equation and its gradient in closed form, paired into one JAX function.

A rule is three functions of the same positional arguments:

    plain(*args, **static)      the equation as it is written
    forward(*args, **static)    (value, residuals)
    backward(residuals, ct)     one cotangent per argument, linear in ct

Every face of a loss is made from them here and nowhere else: `custom_vjp` for reverse mode; for
forward mode the tangent is the linear transpose of the same `backward`, so nothing is derived
twice; `plain` is the equation without a rule.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from mcgrad._arrays import Array, check_choice
from mcgrad._split import Layout, automatic, vary, varying

__all__ = ["Face", "Rule", "forward_mode", "pair", "plain", "public"]

Parameters = ParamSpec("Parameters")


@dataclasses.dataclass(frozen=True)
class Rule:
    """An equation with its closed form.

    `forward` and `backward` may also name static arguments, or `wanted`, among their keyword-only
    parameters: `wanted` is the set of the names of the arguments whose gradient somebody asked for.
    """

    plain: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    static_argnames: tuple[str, ...] = ()
    layout: Layout | None = None  # how the arguments may be split over a mesh
    arguments: tuple[str, ...] = ()  # of a rule whose `plain` does not name them

    @property
    def rule(self) -> "Rule":
        return self

    @property
    def argnames(self) -> tuple[str, ...]:
        """The names of the differentiable arguments, in order."""
        if self.arguments:
            return self.arguments
        names = inspect.signature(self.plain).parameters
        return tuple(name for name in names if name not in self.static_argnames)

    def prepare(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Sort the arguments of a call into positional and static ones."""
        bound = inspect.signature(self.plain).bind(*args, **kwargs)
        bound.apply_defaults()
        static = {name: bound.arguments.pop(name) for name in self.static_argnames}
        return tuple(bound.arguments[name] for name in self.argnames), static

    def evaluate(self, face: str, static: dict[str, Any], *args: Any) -> Any:
        """The loss by one of its faces."""
        check_choice("face", face, tuple(_FACES))
        return automatic(_FACES[face](self, static))(*args)


class Face:
    """One way to differentiate a loss: "reverse", "forward" or "plain"."""

    def __init__(self, loss: Any, face: str) -> None:
        wrapped = loss.plain if isinstance(loss, Rule) else loss
        functools.update_wrapper(self, wrapped, updated=())
        self.loss, self.face = loss, face

    @property
    def rule(self) -> Rule:
        return self.loss.rule

    def prepare(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call, checked and sorted for the rule."""
        return self.loss.prepare(*args, **kwargs)

    @property
    def made_of(self) -> tuple[Any, ...]:
        """The arguments that make this face again."""
        return self.loss, self.face

    def turned(self, face: str) -> "Face":
        """Another face of the same loss."""
        loss, _, *rest = self.made_of
        return type(self)(loss, face, *rest)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _call(self, self.face, args, kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Face) and self.made_of == other.made_of

    def __hash__(self) -> int:
        return hash(self.made_of)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.made_of

    def __repr__(self) -> str:
        return f"<{self.face} face of {vars(self)['__name__']}>"


def pair(
    plain: Callable[..., Any],
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *,
    static_argnames: tuple[str, ...] | str = (),
) -> Face:
    """Pair an equation with its gradient in closed form.

    The equation is L(x, ...) and the gradient whatever `backward` says it is: nothing is checked
    here (`check_gradients` does that).

    Args:
        plain: the equation, ``plain(*args, **static) -> value``. Its signature is the loss's.
        forward: ``forward(*args, **static) -> (value, residuals)``; residuals any pytree of arrays.
        backward: ``backward(residuals, ct)`` -> one cotangent per positional argument, each of the
            shape and dtype of its argument, None for integers; linear in ct.
        static_argnames: names of the arguments that are compile-time constants (hashable).

    Both `forward` and `backward` may name static arguments among their keyword-only parameters, and
    ``wanted``: the frozenset of the names of the arguments whose gradient is asked for, so that a
    gradient nobody wants need not be computed. What `forward` leaves out it must replace by a
    placeholder: the number of residual arrays may not depend on ``wanted`` (their shapes may).

    Returns:
        A jit-compiled function with the signature of `plain`, differentiable in reverse mode by the
        closed form, in forward mode through `forward_mode`. It pickles if its parts do.

    Raises:
        TypeError: `static_argnames` names no parameter of `plain`, or `plain` takes ``*args``.

    Cost: that of `forward` and `backward`; a call that is not differentiated runs `forward` with
    nothing wanted.

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
    static = (static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames)
    parameters = inspect.signature(plain).parameters
    for name in static:
        if name not in parameters:
            raise TypeError(
                f"static_argnames: expected parameters of {plain.__name__}; got {name!r}"
            )
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"plain: expected named parameters only; got {parameter}")
    return Face(Rule(plain, forward, backward, static), "reverse")


def public(rule: Rule, draw: Callable[..., Any]) -> Callable[..., Any]:
    """Make a public loss of a function that checks its arguments and sorts them for the rule.

    `draw(key, batch, dtype, **options)` gives the checker (args, kwargs) for a call.
    """

    def decorate(
        prepare: Callable[Parameters, tuple[tuple[Any, ...], dict[str, Any]]],
    ) -> Callable[Parameters, Array]:
        @functools.wraps(prepare)
        def loss(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Array:
            return _call(loss, "reverse", args, kwargs)

        vars(loss).update(rule=rule, prepare=prepare, draw=draw)
        return loss

    return decorate


def plain(loss: Callable[Parameters, Array]) -> Callable[Parameters, Array]:
    """The bare equation of a loss, without a custom rule: what autodiff is checked against.

    The value is L(...) of the loss, the gradient whatever JAX derives from the equation.

    Args:
        loss: a loss of this library, or one made by `pair`.

    Returns:
        A function of the same signature and value. It pickles.

    Raises:
        TypeError: `loss` was not made by `pair`.

    Cost: that of autodiff: every intermediate array is held.

    Example:
        >>> from mcgrad import squared_relu_norm
        >>> x = jnp.array([-1.0, 2.0])
        >>> print(jax.grad(squared_relu_norm)(x), jax.grad(plain(squared_relu_norm))(x))
        [0. 4.] [0. 4.]
    """
    return _face(loss, "plain")


def forward_mode(loss: Callable[Parameters, Array]) -> Callable[Parameters, Array]:
    """The same loss by the same closed form, differentiable in forward mode too.

    A `custom_vjp` refuses `jax.jvp`, `jax.jacfwd` and `jax.linearize`. Here the tangent is the
    linear transpose of the loss's own pullback: dL = <∂L/∂x, dx>.

    Args:
        loss: a loss of this library, or one made by `pair`.

    Returns:
        A function of the same signature and value. It pickles.

    Raises:
        TypeError: `loss` was not made by `pair`.

    Cost: that of the loss, in reverse mode; in forward mode, one pullback and one inner product.

    Example:
        >>> from mcgrad import squared_relu_norm
        >>> x, dx = jnp.array([-1.0, 2.0]), jnp.array([1.0, 1.0])
        >>> value, tangent = jax.jvp(forward_mode(squared_relu_norm), (x,), (dx,))
        >>> print(value, tangent)
        4.0 4.0
    """
    return _face(loss, "forward")


def _face(loss: Any, face: str) -> Any:
    if not isinstance(getattr(loss, "rule", None), Rule):
        raise TypeError(f"loss: expected a loss made by mcgrad.pair; got {loss!r}")
    return loss.turned(face) if isinstance(loss, Face) else Face(loss, face)


def _call(loss: Any, face: str, args: Any, kwargs: Any) -> Any:
    args, static = loss.prepare(*args, **kwargs)
    return _evaluate(loss.rule, face, tuple(static.items()), *args)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _evaluate(rule: Rule, face: str, static: tuple[tuple[str, Any], ...], *args: Any) -> Any:
    # In a `shard_map` of the user's own, the gradient of what is shared is summed over it by JAX.
    return rule.evaluate(face, dict(static), *vary(args, varying(args)))


class _Closed:
    """The closed form of one call, its static arguments filled in."""

    def __init__(self, rule: Rule, static: dict[str, Any]) -> None:
        self.rule, self.static = rule, static

    def value(self, *args: Any) -> Any:
        return self.forward(args, frozenset())[0]

    def forward(self, args: Any, wanted: frozenset[str]) -> tuple[Any, Any]:
        options = self.static | _named(self.rule.forward, wanted=wanted)
        return self.rule.forward(*args, **options)

    def backward(self, residuals: Any, ct: Any, marks: Any) -> tuple[Any, ...]:
        """One cotangent per argument, in its dtype; None where nobody asked."""
        wanted = self.wanted(marks)
        options = _named(self.rule.backward, wanted=wanted, **self.static)
        cotangents = self.rule.backward(residuals, ct, **options)
        for name, c in zip(self.rule.argnames, cotangents, strict=True):
            if name in wanted and c is None:
                raise TypeError(f"backward: expected a cotangent of {name}; got None")
        return tuple(
            jax.tree.map(lambda m, c: c.astype(m.dtype), mark, c) if name in wanted else None
            for name, mark, c in zip(self.rule.argnames, marks, cotangents, strict=True)
        )

    def wanted(self, marks: Any) -> frozenset[str]:
        """The names of the arguments that hold a perturbed leaf: a mark that is not empty."""
        named = zip(self.rule.argnames, marks, strict=True)
        return frozenset(n for n, mark in named if any(m.size for m in jax.tree.leaves(mark)))


def _named(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Those options that are keyword-only parameters of the function."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return options
    named = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {name: value for name, value in options.items() if name in named}


def _reverse(rule: Rule, static: dict[str, Any]) -> Callable[..., Any]:
    closed = _Closed(rule, static)

    def forward(*primals: Any) -> tuple[Any, Any]:
        # Each leaf of a primal is a pair (value, perturbed).
        args = jax.tree.map(lambda leaf: leaf.value, primals)
        marks = jax.tree.map(lambda p: jnp.zeros(int(p.perturbed), p.value.dtype), primals)
        value, residuals = closed.forward(args, closed.wanted(marks))
        # JAX keeps one tree of residuals per traced call, whatever is perturbed in it: what is
        # wanted travels in the shapes of the marks, which may vary, and not in the tree.
        return value, (residuals, marks)

    def backward(saved: Any, ct: Any) -> tuple[Any, ...]:
        residuals, marks = saved
        ct = jax.tree.map(_instantiate, ct, is_leaf=lambda x: isinstance(x, SymbolicZero))
        return closed.backward(residuals, ct, marks)

    loss = jax.custom_vjp(closed.value)
    loss.defvjp(forward, backward, symbolic_zeros=True)
    return loss


def _forward(rule: Rule, static: dict[str, Any]) -> Callable[..., Any]:
    closed = _Closed(rule, static)

    def tangent_rule(primals: Any, tangents: Any) -> tuple[Any, Any]:
        def mark(tangent: Any, primal: Any) -> Array:
            return jnp.zeros(int(not isinstance(tangent, SymbolicZero)), primal.dtype)

        marks = jax.tree.map(mark, tangents, primals)
        wanted = closed.wanted(marks)
        value, residuals = closed.forward(primals, wanted)

        def pullback(ct: Any) -> list[Any]:
            return [c for c in closed.backward(residuals, ct, marks) if c is not None]

        named = zip(rule.argnames, tangents, strict=True)
        moved = [jax.tree.map(_instantiate, t) for name, t in named if name in wanted]
        (tangent,) = jax.linear_transpose(pullback, value)(moved)
        return value, tangent

    loss = jax.custom_jvp(closed.value)
    loss.defjvp(tangent_rule, symbolic_zeros=True)
    return loss


def _instantiate(x: Any) -> Any:
    if not isinstance(x, SymbolicZero):
        return x
    zero: Any = x.aval
    return jnp.zeros(zero.shape, zero.dtype)


def _plain(rule: Rule, static: dict[str, Any]) -> Callable[..., Any]:
    return functools.partial(rule.plain, **static)


_FACES = {"reverse": _reverse, "forward": _forward, "plain": _plain}
