"""Walking an axis in blocks of bounded memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mcgrad._arrays import Array, require

__all__ = ["Plan", "check_block_size", "plan", "put", "take", "walk"]

# Numbers in one block. On a CPU a block should stay in the cache; on an accelerator it should fill
# the chip. Below the least width matrix products lose their speed.
BUDGET = {"cpu": 1 << 19}
ACCELERATOR_BUDGET = 1 << 26
LEAST_WIDTH = 128


class Plan(NamedTuple):
    """Which axis of a (rows, columns) array is walked, and in blocks of what size."""

    by_rows: bool
    size: int
    whole: bool  # one block holds everything


def check_block_size(block_size: int | None) -> None:
    """None, or a positive int."""
    fits = block_size is None or (type(block_size) is int and block_size > 0)
    require(fits, "block_size", "None or a positive int", repr(block_size))


def plan(rows: int, columns: int, block_size: int | None, *, rows_only: bool = False) -> Plan:
    """Walk the longer axis in blocks of `block_size`, or as large as the device's budget allows.

    `rows_only` is for a loss that has to see all columns of a row at once.
    """
    by_rows = rows_only or rows >= columns
    length, width = (rows, columns) if by_rows else (columns, rows)
    if block_size is None:
        budget = BUDGET.get(jax.default_backend(), ACCELERATOR_BUDGET)
        if rows * columns <= 2 * budget:
            return Plan(True, rows, True)
        block_size = max(budget // max(width, 1), LEAST_WIDTH)
    return Plan(by_rows, min(block_size, length), by_rows and block_size >= length)


def walk(body: Callable[[Any, Any, int], Any], carry: Any, length: int, size: int) -> Any:
    """carry = body(carry, start, size) for each block; a ragged last one has its own size."""
    full, rest = divmod(length, size) if length else (0, 0)
    index = index_dtype(length)
    if full == 1:
        carry = body(carry, 0, size)
    elif full:
        starts = jnp.arange(full, dtype=index) * size
        carry, _ = lax.scan(lambda c, start: (body(c, start, size), None), carry, starts)
    return body(carry, index(full * size), rest) if rest else carry


def index_dtype(length: int) -> Any:
    """A dtype that holds every place along an axis. JAX has no 64-bit integers unless they are on.

    int32 where it will do: a place is added to what counts columns.
    """
    require(length < 2**32, "an axis", "fewer than 4294967296 entries on one device", length)
    return np.int32 if length < 2**31 else np.uint32


def take(x: Array, start: Any, size: int, axis: int = 0) -> Array:
    """The block of x that begins at `start`; all of x where the block is all of it."""
    return x if size == x.shape[axis] else lax.dynamic_slice_in_dim(x, start, size, axis)


def put(x: Array, block: Array, start: Any, axis: int = 0) -> Array:
    """x with the part that begins at `start` replaced by the block."""
    if block.shape == x.shape:
        return block
    return lax.dynamic_update_slice_in_dim(x, block, start, axis)
