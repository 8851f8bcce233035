"""The same closed forms over a device mesh.

Every device holds its part of the examples and of the columns (classes, outputs, hidden units), and
runs the loss's own closed form on them inside a `shard_map`. What it finds is merged:

    the state of each example  over the shards of the columns, with it the true scores of a hinge
    the value                  summed over the shards of the examples
    an argument's gradient     summed over the axes along which it varies and the argument does not

Nothing else is sent, and no argument that is split is ever gathered.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding

from mcgrad._arrays import Array, require
from mcgrad._mesh import MeshAxes, pvary, varying
from mcgrad._modes import LossFunction, Rule, check_loss

__all__ = ["shard"]

Parameters = ParamSpec("Parameters")


def shard(
    loss: Callable[Parameters, Array],
    mesh: Mesh,
    *,
    batch_axis: str | None = None,
    model_axis: str | None = None,
) -> Callable[Parameters, Array]:
    """The same loss, by the same closed form, over a device mesh.

    The value and the gradients are those of the loss itself: nothing is approximated. Examples are
    split along `batch_axis`, and along `model_axis` what the weights are made of:

        loss                          split along model_axis             refuses batch_axis
        linear_weston_watkins_loss    classes: weights, bias
        weston_watkins_loss           classes: scores
        linear_least_squares_loss     outputs: weights, bias, targets
        moment_least_squares_loss     outputs: weights, moments.cross    yes
        logistic_network_loss         hidden units: hidden_weights, hidden_bias, output_weights
        task_covariance_penalty       rows (features): weights           yes
        squared_relu_norm             the last axis of x                 (its first axis)

    Every other argument is on all devices.

    Args:
        loss: a loss of this library, or `forward_mode` of one.
        mesh: a `jax.sharding.Mesh`, with automatic or explicit axes.
        batch_axis: the mesh axis along which examples are split. None (default): they are whole.
        model_axis: the mesh axis along which columns are split. None (default): they are whole.

    Returns:
        A function of the loss's signature. It takes arguments that lie anywhere and lays them out;
        gradients come back laid out as their arguments were. `forward_mode` and `plain` apply to it
        (`plain` is the equation, which the compiler splits as it sees fit).

    Raises:
        TypeError: `loss` is not of this library, or is made from a loss (by jax.grad, say) or split
            already; `mesh` is not a mesh.
        ValueError: an axis is not of the mesh or splits nothing of this loss; in a call, a size
            that the mesh does not divide.

    With explicit axes JAX asks for `jax.set_mesh(mesh)` around a `jax.grad` that is not jitted.

    Cost: on D x M devices, each computes its batch/D examples on its columns/M; every array is that
    of one part. All communication is by all-reduce, in the dtype of the sums (float32 for half
    precision). Numbers per device, for value and the gradients asked for:

        hinge     over model_axis   3 batch/D (true scores, losses, slope counts), ∂/∂inputs
                  over batch_axis   ∂/∂weights, ∂/∂bias
        squares   over model_axis   batch/D (losses), ∂/∂inputs
                  over batch_axis   ∂/∂weights, ∂/∂bias
        network   over model_axis   batch/D (outputs), ∂/∂inputs
                  over batch_axis   ∂ of the three weights
        penalty   over model_axis   ∂/∂covariance
        moments   over model_axis   ∂/∂moments.inputs

    and a scalar or two for the value and for each scalar argument; any other argument's gradient is
    summed over the parts that share it. ∂/∂scores, ∂/∂targets and ∂/∂x are sent nowhere. Where the
    network is evaluated in blocks, its outputs go block by block.

    Example:
        >>> import jax.numpy as jnp
        >>> from mcgrad import squared_relu_norm
        >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
        >>> sharded = shard(squared_relu_norm, mesh, batch_axis="data", model_axis="model")
        >>> with jax.set_mesh(mesh):
        ...     value, gradient = jax.value_and_grad(sharded)(jnp.array([[-1.0, 2.0]]))
        >>> print(value, gradient)
        4.0 [[0. 4.]]

    References:
        JAX documentation, "Manual parallelism with shard_map". The split of the classes is that of
        Shoeybi et al., "Megatron-LM", 2019, section 3 (parallel output layer).
    """
    check_loss(loss, "a loss of this library", "shard")
    if isinstance(loss, _Sharded):
        raise TypeError(f"loss: expected one call of shard that names both axes; got {loss!r}")
    whole: Any
    whole, mode = loss.key if isinstance(loss, LossFunction) else (loss, "reverse")
    if whole.rule.layout is None:
        raise TypeError(f"loss: expected a loss of this library; got {loss!r}")
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh: expected a jax.sharding.Mesh; got {type(mesh).__name__}")
    named = {"batch_axis": batch_axis, "model_axis": model_axis}
    for argument, axis in named.items():
        known = axis is None or axis in mesh.axis_names
        require(known, argument, f"an axis of the mesh, {mesh.axis_names}, or None", repr(axis))
    given = [axis for axis in named.values() if axis is not None]
    require(given, "batch_axis, model_axis", "at least one of them", "neither")
    require(len(set(given)) == len(given), "model_axis", "another axis", repr(model_axis))
    # An axis of one device splits nothing, and a sum over it would still be copied.
    split = MeshAxes(
        *(axis and (axis if mesh.shape[axis] > 1 else None) for axis in named.values())
    )
    return _Sharded(whole, mode, mesh, split)


class _Sharded(LossFunction):
    """A loss that is split over a mesh."""

    __slots__ = ("mesh", "sharded_rule", "split")

    def __init__(self, loss: Any, mode: str, mesh: Mesh, split: MeshAxes) -> None:
        super().__init__(loss, mode)
        self.mesh, self.split = mesh, split
        self.sharded_rule = _ShardedRule(**_fields(loss.rule), mesh=mesh, split=split)

    @property
    def key(self) -> tuple[Any, ...]:
        return self.loss, self.mode, self.mesh, self.split

    @property
    def rule(self) -> "_ShardedRule":
        return self.sharded_rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ShardedRule(Rule):
    """The closed form on the parts of the arguments that a device holds."""

    mesh: Mesh
    split: MeshAxes

    def evaluate(self, mode: str, options: dict[str, Any], *args: Any) -> Any:
        specs, value_spec = self.specs(args, options)
        self.check_sizes(args, specs, options["reduction"].batch)
        if mode == "plain":
            return super().evaluate(mode, options, *args)

        def of_part(*args: Any) -> Any:
            part = options | {"reduction": options["reduction"].part(self.split)}
            return self.of_part(specs).evaluate(mode, part, *args)

        args = jax.tree.map(self.laid_out, args, specs)
        return jax.shard_map(of_part, mesh=self.mesh, in_specs=specs, out_specs=value_spec)(*args)

    def of_part(self, specs: Any) -> Rule:
        """The rule whose gradients are summed over the parts that share an argument."""

        @functools.wraps(self.backward)
        def backward(residuals: Any, ct: Any, **options: Any) -> Any:
            cotangents = self.backward(residuals, ct, **options)
            return tuple(
                None if c is None or spec is None else jax.tree.map(self.summed, c, spec)
                for c, spec in zip(cotangents, specs, strict=True)
            )

        return Rule(**dict(_fields(self), backward=backward))

    def specs(self, args: Any, options: dict[str, Any]) -> tuple[tuple[Any, ...], jax.P]:
        """The specs of the arguments, leaf by leaf, and of the value, with the mesh's names."""
        assert self.layout is not None
        split, value = self.layout(args, **options)
        named = zip(self.argnames, args, strict=True)
        full = tuple(
            jax.tree.map(lambda _: jax.P(), arg) if name not in split or arg is None
            else split[name]
            for name, arg in named
        )  # fmt: skip
        return jax.tree.map(self.on_mesh, full), self.on_mesh(value)

    def on_mesh(self, spec: jax.P) -> jax.P:
        axes = [[getattr(self.split, name) for name in names] for names in _names(spec)]
        return jax.P(*(tuple(filter(None, dimension)) or None for dimension in axes))

    def summed(self, cotangent: Array, spec: jax.P) -> Array:
        """The sum over the axes along which the cotangent varies and the argument does not."""
        own = frozenset(itertools.chain(*_names(spec)))
        shared = tuple(sorted(varying(cotangent) - own))
        return pvary(lax.psum(cotangent, shared) if shared else cotangent, own)

    def laid_out(self, x: Array, spec: jax.P) -> Array:
        """With explicit axes a `shard_map` takes only what its type says is split as it should."""
        if AxisType.Explicit not in self.mesh.axis_types:
            return x
        return jax.reshard(x, NamedSharding(self.mesh, spec))

    def check_sizes(self, args: Any, specs: Any, batch: tuple[int, ...] | None) -> None:
        """The mesh must divide what it splits."""
        used = set(itertools.chain(*(axes for s in jax.tree.leaves(specs) for axes in _names(s))))
        for argument, axis in zip(("batch_axis", "model_axis"), self.split, strict=True):
            expected = "None for a loss that has nothing to split along it"
            require(axis is None or axis in used, argument, expected, repr(axis))
        for name, arg, spec in zip(self.argnames, args, specs, strict=True):
            for leaf, leaf_spec in zip(jax.tree.leaves(arg), jax.tree.leaves(spec), strict=True):
                for index, axes in enumerate(_names(leaf_spec)):
                    size = leaf.shape[index]
                    if self.split.examples in axes and batch is not None:
                        require(batch, name, f"a batch to split along {axes[0]!r}", "one example")
                        size = batch[0]  # of the batch axes, which are one by now
                    self.check_size(name, size, index, axes)

    def check_size(self, argument: str, size: int, index: int, axes: tuple[str, ...]) -> None:
        parts = math.prod(self.mesh.shape[axis] for axis in axes)
        below, above = size // parts * parts, -(-size // parts) * parts
        expected = (
            f"a size along axis {index} that the {parts} devices of mesh axis {', '.join(axes)} "
            f"divide, such as {f'{below} or ' if below else ''}{above}"
        )
        require(size % parts == 0, argument, expected, size)


def _fields(rule: Rule) -> dict[str, Any]:
    """What makes up a rule, without the mesh."""
    return {field.name: getattr(rule, field.name) for field in dataclasses.fields(Rule)}


def _names(spec: jax.P) -> list[tuple[str, ...]]:
    """The names along which each dimension of a spec is split: none, one or several."""
    return [() if d is None else d if isinstance(d, tuple) else (d,) for d in spec]
