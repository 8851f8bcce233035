"""Blocks of bounded memory: which axis is cut into them, of what size, and the loop over them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mcgrad._arrays import Array, require

__all__ = [
    "Block",
    "Plan",
    "loop_over_blocks",
    "make_plan",
    "read_block",
    "write_block",
]


class Device(NamedTuple):
    """What the cost model knows of a kind of device. Numbers are entries of an array."""

    # A block of scores: on a CPU it should stay in the cache, on an accelerator fill the chip.
    block: int
    # Below this width of a block matrix products lose their speed.
    least_width: int
    # Multiply-adds of a product in the time in which one number is read or written.
    moved: int
    # XᵀG as it stands, or (xᵀG)ᵀ: XLA's fast CPU products do not contract the first axis of both.
    contracts_rows: bool


CPU = Device(block=1 << 19, least_width=128, moved=16, contracts_rows=False)
ACCELERATOR = Device(block=1 << 26, least_width=128, moved=300, contracts_rows=True)


def device() -> Device:
    """The kind of device that JAX runs on."""
    return CPU if jax.default_backend() == "cpu" else ACCELERATOR


class Plan(NamedTuple):
    """How the scores (examples, columns) of one call are cut into blocks."""

    by_examples: bool  # which axis is cut
    size: int  # of a block along it
    whole: bool  # one block holds everything
    one_pass: bool  # the slopes are known as soon as the scores of a block are
    contracts_rows: bool = True


def make_plan(
    examples: int,
    columns: int,
    features: int,
    block_size: int | None,
    *,
    slopes_need_state: bool = False,
    on: Device | None = None,
) -> Plan:
    """The cheapest way to evaluate value and gradients in the memory of one block.

    Blocks of examples see every column: three products (scores and two gradients). Blocks of
    columns see every example; where the slopes need the merged state, the scores are computed
    twice: four products. Each block reads and writes, beside itself, what belongs to the other
    axis: the weights and their gradient, or the inputs and theirs. In multiply-adds:

        products   (3 or 4) examples x columns x features
        traffic    3 x blocks x (columns or examples) x features x what moving a number costs
    """
    on = device() if on is None else on

    def cut(by_examples: bool) -> tuple[float, int]:
        length, width = (examples, columns) if by_examples else (columns, examples)
        size = max(on.block // max(width, 1), on.least_width) if block_size is None else block_size
        size = even(length, size)
        products = 3 + (slopes_need_state and not by_examples)
        blocks = -(-length // max(size, 1))
        cost = products * examples * columns * features
        return cost + 3 * blocks * width * features * on.moved, size

    if block_size is None and examples * columns <= 2 * on.block:
        return Plan(True, examples, True, True, on.contracts_rows)
    (cost_examples, of_examples), (cost_columns, of_columns) = cut(True), cut(False)
    by_examples = cost_examples <= cost_columns if block_size is None else examples >= columns
    size = of_examples if by_examples else of_columns
    one_pass = by_examples or not slopes_need_state
    return Plan(by_examples, size, by_examples and size >= examples, one_pass, on.contracts_rows)


def even(length: int, size: int) -> int:
    """The size of as many equal blocks as it takes, none larger than `size`."""
    return -(-length // -(-length // size)) if length else 0


class Block(NamedTuple):
    """A part of an axis: where it begins, and its first place that no other block has taken."""

    start: Any
    size: int
    fresh: Any = None  # None where all of it is

    @property
    def repeated(self) -> Array | None:
        """The places that another block has taken, (size,); None if there are none."""
        if self.fresh is None:
            return None
        return self.start + jnp.arange(self.size, dtype=self.start.dtype) < self.fresh


def loop_over_blocks(body: Callable[[Any, Block], Any], carry: Any, length: int, size: int) -> Any:
    """carry = body(carry, block) for blocks of equal size that cover the axis.

    Where the size does not divide the length, the first block ends where the axis does, and begins
    within another one. Of its places only those from `fresh` on count; what it writes to the others
    is written over. So a ragged end needs no second program, and no padding.
    """
    if not length:
        return carry
    size = min(size, length)
    blocks, ragged = -(-length // size), length % size
    if blocks == 1:
        return body(carry, Block(0, length))
    dtype = index_dtype(length)
    if not ragged:
        starts = np.arange(blocks, dtype=dtype) * dtype(size)
        return lax.scan(lambda c, at: (body(c, Block(at, size)), None), carry, starts)[0]
    starts = np.arange(blocks, dtype=dtype) * dtype(size)
    starts = np.append(dtype(length - size), starts[:-1])
    fresh = np.append(dtype(length - ragged), np.zeros(blocks - 1, dtype))
    return lax.scan(
        lambda c, at: (body(c, Block(at[0], size, at[1])), None), carry, (starts, fresh)
    )[0]


def index_dtype(length: int) -> Any:
    """A dtype that holds every place along an axis. JAX has no 64-bit integers unless they are on.

    int32 where it will do: a place is added to what counts columns.
    """
    require(length < 2**32, "an axis", "fewer than 4294967296 entries on one device", length)
    return np.int32 if length < 2**31 else np.uint32


def read_block(x: Array, block: Block, axis: int = 0) -> Array:
    """The block of x; all of x where the block is all of it."""
    if block.size == x.shape[axis]:
        return x
    return lax.dynamic_slice_in_dim(x, block.start, block.size, axis)


def write_block(x: Array, part: Array, block: Block, axis: int = 0) -> Array:
    """x with the block replaced."""
    if part.shape == x.shape:
        return part
    return lax.dynamic_update_slice_in_dim(x, part, block.start, axis)
