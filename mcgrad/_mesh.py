"""One device's part of a loss, and sums over all parts.

MeshAxes over a mesh, every device runs the same closed form on its own part of

    the examples   the first axis of the inputs
    the columns    classes, outputs or hidden units: the first axis of the weights

and each of its sums is a part of the whole sum: the value is the sum over all parts, and so is the
gradient of an argument that several parts share. Without a mesh there is one part, and these
functions do nothing.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from mcgrad._arrays import Array

__all__ = ["WHOLE", "Layout", "MeshAxes", "automatic", "pvary", "varying", "zeros"]

# (specs of the arguments that are split, by name; spec of the value), with the fields of `MeshAxes`
# for the names of mesh axes. Every other argument is on all devices.
Layout = Callable[..., tuple[dict[str, Any], jax.P]]


class MeshAxes(NamedTuple):
    """The mesh axes over which examples and columns are split; None where they are whole."""

    examples: str | None = None
    columns: str | None = None

    def over_examples(self, x: Any) -> Any:
        """The sum over the parts of the examples."""
        return _sum(x, self.examples)

    def over_columns(self, x: Any) -> Any:
        """The sum over the parts of the columns."""
        return _sum(x, self.columns)

    def over_all(self, x: Any) -> Any:
        """The sum over all parts."""
        return _sum(x, self.examples, self.columns)

    def largest_of_examples(self, x: Array) -> Array:
        """The maximum over the parts of the examples; a constant to derivatives."""
        x = lax.stop_gradient(x)
        return x if self.examples is None else lax.pmax(x, self.examples)

    def all_examples(self, own: int) -> int:
        """How many examples there are in all parts."""
        return own * _size(self.examples)

    def first_column(self, own: int) -> Any:
        """The place of this part's first column among all."""
        return 0 if self.columns is None else lax.axis_index(self.columns) * own


WHOLE = MeshAxes()


def varying(arrays: Any) -> frozenset[str]:
    """The axes of a `shard_map` over which some of the arrays vary."""
    types = (jax.typeof(leaf).manual_axis_type for leaf in jax.tree.leaves(arrays))
    return frozenset[str]().union(*(of_leaf.varying for of_leaf in types))


def pvary(arrays: Any, axes: frozenset[str]) -> Any:
    """The arrays, varying over these axes too: what comes back to one is summed over them."""

    def cast(leaf: Any) -> Any:
        missing = tuple(sorted(axes - varying(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, arrays)


def zeros(shape: tuple[int, ...], dtype: Any, like: Any) -> Array:
    """Zeros that vary over a mesh as `like` does, which the carry of a loop over it has to do."""
    return pvary(jnp.zeros(shape, dtype), varying(like))


def automatic(function: Callable[..., Any]) -> Callable[..., Any]:
    """With explicit mesh axes, leave it to the compiler how what is inside a function is split.

    JAX would ask of every product in a closed form, and of its transpose, how to split the result.
    """

    @functools.wraps(function)
    def evaluate(*args: Any) -> Any:
        meshes = {jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(args)}
        explicit = [mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types]
        if not explicit:
            return function(*args)
        with jax.sharding.use_abstract_mesh(explicit[0]):
            return jax.sharding.auto_axes(function, out_sharding=jax.P())(*args)

    return evaluate


def _sum(x: Any, *axes: str | None) -> Any:
    names = tuple(axis for axis in axes if axis is not None)
    return lax.psum(x, names) if names else x


def _size(axis: str | None) -> int:
    return 1 if axis is None else lax.axis_size(axis)
