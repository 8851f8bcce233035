"""What `mcgrad check` does: every gradient of the losses, and those of a user's own function."""

import contextlib
import functools
import importlib
import inspect
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mcgrad
from mcgrad.checking import GradientReport, check_gradients

__all__ = ["Argument", "Row", "arguments", "audits", "function", "has_smooth_variant", "one_line"]

EXAMPLES = 6


class Row(NamedTuple):
    """The relative errors of one gradient of a loss, as the checker found them."""

    loss: str
    variant: str  # exact or smooth
    argument: str
    autodiff: float | None  # against autodiff of the equation
    differences: float | None  # against differences
    own_dtype: float | None  # in float32, against itself in float64
    ok: bool


def audits(
    names: list[str], order: int, seed: int
) -> Iterator[tuple[str, Callable[[], tuple[list[Row], GradientReport]]]]:
    """(title, run) for each loss and variant; run() gives (rows, report of the checker)."""
    for name in names:
        for smooth in (False, True) if has_smooth_variant(name) else (False,):
            variant = "smooth" if smooth else "exact"
            yield f"{name}, {variant}", functools.partial(_audit, name, variant, order, seed)


def has_smooth_variant(name: str) -> bool:
    """Whether a loss takes `mu`."""
    return "mu" in inspect.signature(mcgrad.LOSSES[name]).parameters


def _audit(name: str, variant: str, order: int, seed: int) -> tuple[list[Row], GradientReport]:
    loss = mcgrad.LOSSES[name]
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    # Ties have probability zero.
    smooth = variant == "smooth"
    args, options = loss.example_args(key, (EXAMPLES,), jnp.float32, smooth=smooth)
    report = check_gradients(
        loss, *args, reference=mcgrad.plain(loss), order=order, seed=seed, **options
    )
    rows = [
        Row(name, variant, g.argument + g.leaf, g.reference, g.differences, g.own_dtype, g.ok)
        for g in report.gradients
    ]
    return rows, report


def function(path: str) -> Callable[..., Any]:
    """The function that MODULE:FUNCTION or FILE.py:FUNCTION names. Raises ValueError, one line."""
    module, _, name = path.rpartition(":")
    if not module or not name:
        raise ValueError(f"{path}: expected MODULE:FUNCTION or FILE.py:FUNCTION")
    try:
        found = functools.reduce(getattr, name.split("."), _module(module))
    except SystemExit as error:
        raise ValueError(f"{path}: the module exits when it is imported") from error
    except Exception as error:  # whatever an import of somebody's module may raise
        raise ValueError(f"{path}: {one_line(error)}") from error
    if not callable(found):
        raise ValueError(f"{path}: expected a function; got {type(found).__name__}")
    return found


def _module(name: str) -> ModuleType:
    """The module of that dotted name, or of that file, imported as part of its package."""
    if not name.endswith(".py") and "/" not in name and os.sep not in name:
        _search_first("")
        return importlib.import_module(name)
    file = Path(name).resolve()
    if file.suffix != ".py" or not file.is_file():
        raise FileNotFoundError(f"there is no Python file {name}")
    dotted, folder = file.stem, file.parent
    while (folder / "__init__.py").is_file():
        dotted, folder = f"{folder.name}.{dotted}", folder.parent
    _search_first(str(folder))
    module = importlib.import_module(dotted)
    if not module.__file__ or Path(module.__file__).resolve() != file:
        raise ImportError(f"another module is called {dotted}; rename the file")
    return module


def _search_first(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()


def one_line(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


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
    "u16": np.uint16,
    "u32": np.uint32,
    "u64": np.uint64,
    "bool": np.bool_,
    "key": None,  # a key of jax.random
}
NUMBER = r"[-+]?[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?"
ONE = re.compile(
    rf"(?P<dtype>[a-z]+[0-9]*)(?:\[(?P<shape>(?:[0-9]+(?:,[0-9]+)*)?)\])?"
    rf"(?::(?P<low>{NUMBER})\.\.(?P<high>{NUMBER}))?"
)
MOST = 10**8  # entries that --args may ask for in all, 800 MB while they are drawn


class Argument(NamedTuple):
    """One argument of a function under check; `name` is None for a positional one."""

    name: str | None
    value: Any
    origin: str  # how its numbers were chosen

    def __str__(self) -> str:
        shape = ",".join(map(str, self.value.shape))
        name = f"{self.name}: " if self.name else ""
        return f"{name}{self.value.dtype}[{shape}], {self.origin}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": str(self.value.dtype),
            "shape": list(self.value.shape),
            "origin": self.origin,
        }


def arguments(text: str, seed: int) -> list[Argument]:
    """The arrays of a .npz file, or random ones for "f32[3,4],i32[3]:0..9".

    In a file arr_0, arr_1, ... are positional arguments, other names keyword arguments. Raises
    ValueError, with one line.
    """
    return _read(text) if text.endswith(".npz") else _draw_arguments(text, seed)


def _read(text: str) -> list[Argument]:
    try:
        with open(text, "rb") as stream, contextlib.ExitStack() as stack:
            file = np.load(stream)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            stack.enter_context(file)
            arrays = {name: file[name] for name in file.files}
    except OSError as error:
        raise ValueError(f"{text}: {error.strerror or one_line(error)}") from error
    except Exception as error:  # a broken file: of zip, of zlib, of NumPy, of memory
        raise ValueError(f"{text}: not a readable .npz file ({one_line(error)})") from error
    if not arrays:
        raise ValueError(f"{text}: there is no array in it")
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc":
            raise ValueError(f"{text}: expected numbers; {name!r} is of dtype {array.dtype}")
    count = sum(bool(re.fullmatch("arr_[0-9]+", name)) for name in arrays)
    positional = [f"arr_{i}" for i in range(count)]
    missing = [name for name in positional if name not in arrays]
    if missing:
        raise ValueError(f"{text}: {missing[0]} is missing among the positional arguments")
    origin = f"from {text}"
    given = [Argument(None, arrays.pop(name), origin) for name in positional]
    return given + [Argument(name, array, origin) for name, array in arrays.items()]


def _draw_arguments(text: str, seed: int) -> list[Argument]:
    # A comma outside brackets separates.
    words = [word.strip() for word in re.split(r",(?![^\[]*\])", text)]
    specs = []
    for word in words:
        spec = ONE.fullmatch(re.sub(r"\s+", "", word))
        if spec is None:
            raise ValueError(
                f'--args: expected FILE.npz or a list like "f32[3,4],i32[3]:0..9"; got {word!r}'
            )
        if spec["dtype"] not in DTYPES:
            allowed = ", ".join(DTYPES)
            raise ValueError(f"--args: expected a dtype among {allowed}; got {spec['dtype']!r}")
        if spec["low"] and spec["dtype"] in ("bool", "key"):
            raise ValueError(f"--args: {spec['dtype']} takes no range; got {word!r}")
        specs.append((word, spec, tuple(map(int, filter(None, (spec["shape"] or "").split(","))))))
    if sum(math.prod(shape) for *_, shape in specs) > MOST or any(len(s) > 32 for *_, s in specs):
        raise ValueError(f"--args: expected at most {MOST:,} entries and 32 axes; got {text!r}")
    # Integers are labels, most often: an index into the last axis of the first real argument.
    real = [shape for _, spec, shape in specs if "f" in spec["dtype"]]
    classes = next((shape[-1] for shape in real if shape and shape[-1] > 1), 10)
    random = np.random.default_rng(seed)
    return [
        Argument(None, *_draw_one(word, spec, shape, classes, random, seed + i))
        for i, (word, spec, shape) in enumerate(specs)
    ]


def _draw_one(
    word: str, spec: re.Match, shape: tuple[int, ...], classes: int, random: Any, seed: int
) -> tuple[Any, str]:
    """(array, how it was drawn)"""
    kind = spec["dtype"]
    dtype = DTYPES[kind]
    if dtype is None:
        return jax.random.split(jax.random.key(seed), shape), "random keys"
    if kind == "bool":
        return random.integers(0, 2, shape).astype(bool), "drawn from False and True"
    real = "f" in kind
    if real and not spec["low"]:
        return np.asarray(random.standard_normal(shape)).astype(dtype), "drawn from N(0, 1)"
    limits = jnp.finfo(dtype) if real else jnp.iinfo(dtype)
    number = float if real else int
    try:
        low, high = (number(spec["low"]), number(spec["high"])) if spec["low"] else (0, classes - 1)
    except ValueError as error:
        raise ValueError(f"--args: expected whole numbers as range; got {word!r}") from error
    if not spec["low"]:
        high = min(high, int(limits.max))
    if not number(limits.min) <= low <= high <= number(limits.max):
        raise ValueError(f"--args: expected a range LOW..HIGH within {kind}; got {word!r}")
    if real:
        drawn = low + (high - low) * random.random(shape)
        return np.asarray(drawn).astype(dtype), f"drawn between {low:g} and {high:g}"
    wide = np.uint64 if kind == "u64" else np.int64
    drawn = random.integers(low, high, shape, dtype=wide, endpoint=True)
    return np.asarray(drawn).astype(dtype), f"drawn from {low} to {high}"
