"""The one table of cases: loss x (exact, smooth) x (one example, batch)."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mcgrad
from mcgrad.audit import has_smooth_variant


def is_real(x):
    """Whether x is an array, or a pytree of arrays, of real numbers."""
    leaves = [x] if isinstance(x, str | int) else jax.tree.leaves(x)
    return all(hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) for x in leaves)


class Case(NamedTuple):
    """A loss with drawn arguments: `params` are the real ones, by name."""

    name: str
    smooth: bool
    batch: tuple[int, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self):
        kind = "smooth" if self.smooth else "exact"
        settings = [f"{key}={value}" for key, value in self.options]
        return "-".join([self.name, kind, "x".join(map(str, self.batch)) or "one", *settings])

    @property
    def loss(self):
        return mcgrad.LOSSES[self.name]

    def draw(self, dtype=jnp.float32, seed=0) -> tuple[Callable[..., Any], dict[str, Any]]:
        """(call, params): `call(loss, params)` evaluates a face of the loss."""
        args, kwargs = self.loss.example_args(
            jax.random.key(seed), self.batch, dtype, smooth=self.smooth
        )
        names = self.loss.__code__.co_varnames[: len(args)]
        everything = dict(zip(names, args, strict=True)) | kwargs | dict(self.options)
        params = {name: x for name, x in everything.items() if is_real(x)}
        fixed = {name: x for name, x in everything.items() if name not in params}

        def call(loss, params):
            given = params | fixed
            first = [given.pop(name) for name in names]
            return loss(*first, **given)

        return call, params


def has_examples(name):
    return "reduction" in inspect.signature(mcgrad.LOSSES[name]).parameters and "moment" not in name


CASES = [
    Case(name, smooth, batch)
    for name in mcgrad.LOSSES
    for smooth in ([False, True] if has_smooth_variant(name) else [False])
    for batch in ([(), (6,)] if has_examples(name) else [(2,)])
]

REDUCED = [
    Case(name, smooth, (2, 3), (("reduction", reduction),))
    for name in mcgrad.LOSSES
    if has_examples(name)
    for smooth in ([False, True] if has_smooth_variant(name) else [False])
    for reduction in ("sum", "none")
]


def stacked(params, count=3):
    """`count` sets of parameters, along a new first axis."""
    return jax.tree.map(lambda x: jnp.stack([x * (1 + 0.05 * k) for k in range(count)]), params)


def direction(params):
    """A fixed direction that no coordinate is orthogonal to."""
    return jax.tree.map(waves, params)


def waves(x):
    """Numbers of the shape and dtype of x, all of them different."""
    return jnp.cos(jnp.arange(x.size, dtype=x.dtype) + 1).reshape(x.shape) + jnp.asarray(
        0.1, x.dtype
    )


def inner(a, b):
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return functools.reduce(jnp.add, jax.tree.leaves(products))


def of_stack(f, xs):
    """Different cotangents for the members of a vmapped loss."""
    values = jax.vmap(f)(xs)
    return jnp.sum(values * waves(values))


def scanned(f, xs):
    return jax.lax.scan(lambda c, x: (c + f(x), None), jnp.zeros(()), xs)[0]


def shared_first(f, xs):
    """All members of the stack with the first member's first parameter, the weights."""
    first = next(iter(xs))
    if len(xs) == 1:
        return jax.vmap(f, axis_size=3, in_axes=(None,))({first: xs[first][0]})[0]
    axes = {name: None if name == first else 0 for name in xs}
    values = jax.vmap(f, (axes,))(xs | {first: jax.tree.map(lambda x: x[0], xs[first])})
    return jnp.sum(values * waves(values))


TRANSFORMATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "value": lambda f, p: f(p),
    "value_and_grad": lambda f, p: jax.value_and_grad(f)(p),
    "cotangent": lambda f, p: jax.vjp(f, p)[1](jnp.asarray(-3.5, f(p).dtype)),
    "each argument alone": lambda f, p: {
        name: jax.grad(lambda x, name=name: f(p | {name: x}))(p[name]) for name in p
    },
    "vmap": lambda f, p: jax.vmap(f)(stacked(p)),
    "vmap of grad": lambda f, p: jax.vmap(jax.grad(f))(stacked(p)),
    "grad of vmap": lambda f, p: jax.grad(lambda xs: of_stack(f, xs))(stacked(p)),
    "grad of vmap, weights shared": lambda f, p: jax.grad(lambda xs: shared_first(f, xs))(
        stacked(p)
    ),
    "grad of scan": lambda f, p: jax.grad(lambda xs: scanned(f, xs))(stacked(p)),
    "grad of remat": lambda f, p: jax.grad(jax.checkpoint(f))(p),
    "forward over reverse": lambda f, p: jax.jvp(jax.grad(f), (p,), (direction(p),))[1],
    "reverse over reverse": lambda f, p: jax.grad(lambda q: inner(jax.grad(f)(q), direction(p)))(p),
}

FORWARD: dict[str, Callable[[Any, Any], Any]] = {
    "jvp": lambda f, p: jax.jvp(f, (p,), (direction(p),)),
    "linearize": lambda f, p: jax.linearize(f, p)[1](direction(p)),
    "jvp of vmap": lambda f, p: jax.jvp(jax.vmap(f), (stacked(p),), (direction(stacked(p)),))[1],
    "vmap of jvp": lambda f, p: jax.vmap(lambda q: jax.jvp(f, (q,), (direction(p),))[1])(
        stacked(p)
    ),
    "forward over forward": lambda f, p: jax.jvp(
        lambda q: jax.jvp(f, (q,), (direction(p),))[1], (p,), (direction(p),)
    )[1],
    "reverse over forward": lambda f, p: jax.grad(lambda q: jax.jvp(f, (q,), (direction(p),))[1])(
        p
    ),
}


def norm(x):
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(x)]
    return float(np.linalg.norm(np.concatenate(leaves))) if leaves else 0.0


def assert_close(got, expected, relative):
    """Agreement to `relative`, normwise over all leaves: one alone may be zero by cancellation."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, expected)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (got, expected))
    difference = jax.tree.map(lambda a, b: a - b, *wide)
    assert norm(difference) <= relative * norm(expected), jax.tree.map(norm, difference)
