"""What `mcgrad check` does: every gradient of the losses, and those of a user's own function."""

import functools
import importlib
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mcgrad
from mcgrad.checking import GradientReport, check_gradients

__all__ = ["Row", "arguments", "audits", "function", "gradient_errors"]

# Sums of a few dozen terms in either order; and the error of a central difference in float64.
AUTODIFF_TOLERANCE = 128 * float(jnp.finfo(jnp.float32).eps)
DIFFERENCE_TOLERANCE = 1e-7
EXAMPLES = 6


class Row(NamedTuple):
    """The errors of one gradient, relative to its norm."""

    loss: str
    hinge: str  # exact or smooth
    argument: str
    autodiff: float  # float32, against autodiff of the plain equation
    differences: float  # float64, against central differences

    @property
    def ok(self) -> bool:
        # Written so that NaN fails.
        return self.autodiff <= AUTODIFF_TOLERANCE and self.differences <= DIFFERENCE_TOLERANCE


def audits(names: list[str], order: int, seed: int) -> Iterator[tuple[str, Callable[..., Any]]]:
    """(title, run) for each loss and variant; run() gives (rows, report of the full checker)."""
    for name in names:
        for smooth in (False, True):
            _, options = _drawn(name, smooth, jnp.float32, seed)
            if smooth and "mu" not in options:
                continue
            title = f"{name}, {'smooth' if smooth else 'exact'}"
            yield title, functools.partial(_audit, name, smooth, order, seed)


def _audit(name: str, smooth: bool, order: int, seed: int) -> tuple[list[Row], GradientReport]:
    loss = mcgrad.LOSSES[name]
    args, options = _drawn(name, smooth, jnp.float32, seed)
    report = check_gradients(
        loss, *args, reference=mcgrad.plain(loss), order=order, seed=seed, **options
    )
    return gradient_errors(name, smooth, seed), report


def _drawn(name: str, smooth: bool, dtype: Any, seed: int) -> tuple[Any, dict[str, Any]]:
    """Random arguments of a loss; ties have probability zero."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return mcgrad.LOSSES[name].draw(key, (EXAMPLES,), dtype, smooth=smooth)


def gradient_errors(name: str, smooth: bool, seed: int) -> list[Row]:
    """The errors of every gradient of one loss."""
    loss = mcgrad.LOSSES[name]
    kind = "smooth" if smooth else "exact"
    call, params = _by_name(name, smooth, jnp.float32, seed)
    closed, autodiff = (
        jax.jit(jax.grad(functools.partial(call, face)))(params)
        for face in (loss, mcgrad.plain(loss))
    )
    with jax.enable_x64(True):
        call, params = _by_name(name, smooth, jnp.float64, seed)
        value = jax.jit(functools.partial(call, loss))
        wide, differences = jax.grad(value)(params), _central_differences(value, params)
    return [
        Row(
            name,
            kind,
            argument,
            _relative(closed[argument], autodiff[argument]),
            _relative(wide[argument], differences[argument]),
        )
        for argument in params
    ]


def _by_name(name: str, smooth: bool, dtype: Any, seed: int) -> tuple[Callable[..., Any], Any]:
    """(call, params): the loss as a function of its real arguments, by name."""
    args, options = _drawn(name, smooth, dtype, seed)
    names = mcgrad.LOSSES[name].rule.argnames[: len(args)]
    given = dict(zip(names, args, strict=True)) | options
    params = {key: x for key, x in given.items() if _is_real(x)}

    def call(loss: Callable[..., Any], params: dict[str, Any]) -> Any:
        chosen = given | params
        return loss(*[chosen.pop(key) for key in names], **chosen)

    return call, params


def _is_real(x: Any) -> bool:
    leaves = [] if isinstance(x, str) else jax.tree.leaves(x)
    return bool(leaves) and all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)


def _central_differences(value: Callable[[Any], Any], params: Any, step: float = 1e-5) -> Any:
    leaves, tree = jax.tree.flatten(params)
    gradients = []
    for k, leaf in enumerate(leaves):
        gradient = np.zeros(leaf.size)
        for i in range(leaf.size):
            bump = jnp.zeros(leaf.size).at[i].set(step).reshape(leaf.shape)
            ends = [
                value(jax.tree.unflatten(tree, [*leaves[:k], leaf + sign * bump, *leaves[k + 1 :]]))
                for sign in (1, -1)
            ]
            gradient[i] = (ends[0] - ends[1]) / (2 * step)
        gradients.append(gradient.reshape(leaf.shape))
    return jax.tree.unflatten(tree, gradients)


def _relative(got: Any, expected: Any) -> float:
    def flat(tree: Any) -> np.ndarray:
        return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])

    return float(np.linalg.norm(flat(got) - flat(expected)) / np.linalg.norm(flat(expected)))


def function(path: str) -> Callable[..., Any]:
    """The function that PACKAGE.MODULE:FUNCTION names. Raises ValueError, with one line."""
    module, _, name = path.partition(":")
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except Exception as error:  # whatever an import of somebody's module may raise
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: {message}") from error
    if not callable(found):
        raise ValueError(f"{path}: expected a function; got {type(found).__name__}")
    return found


DTYPES = {
    "f16": np.float16,
    "bf16": jnp.bfloat16,
    "f32": np.float32,
    "f64": np.float64,
    "i8": np.int8,
    "i16": np.int16,
    "i32": np.int32,
    "i64": np.int64,
    "u8": np.uint8,
    "bool": np.bool_,
}


def arguments(text: str, seed: int) -> list[np.ndarray]:
    """The arrays of a .npz file in its order, or random ones for "f32[3,4],i32[3]".

    Real numbers are normal, integers 0 or 1. Raises ValueError or OSError, with one line.
    """
    if text.endswith(".npz"):
        with np.load(Path(text)) as file:
            return [file[name] for name in file.files]
    one = r"\s*([a-z]+\d*)(?:\[([\d,\s]*)\])?\s*"
    if not re.fullmatch(f"{one}(,{one})*", text):
        raise ValueError(
            f'--args: expected FILE.npz or a list like "f32[3,4],i32[3]"; got {text!r}'
        )
    random = np.random.default_rng(seed)
    arrays = []
    for dtype, sizes in re.findall(one, text):
        if dtype not in DTYPES:
            raise ValueError(f"--args: expected a dtype among {', '.join(DTYPES)}; got {dtype!r}")
        shape = tuple(int(size) for size in sizes.split(",") if size.strip())
        real = jnp.issubdtype(DTYPES[dtype], jnp.floating)
        numbers = random.standard_normal(shape) if real else random.integers(0, 2, shape)
        arrays.append(np.asarray(numbers).astype(DTYPES[dtype]))
    return arrays
