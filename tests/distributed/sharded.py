"""The one table of losses on a mesh: integer data, on which every order of summation is exact."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

import mcgrad

BATCH, COLUMNS, FEATURES = 16, 24, 5
MESHES = [(1, 8), (8, 1), (2, 4), (4, 2)]


def make_mesh(shape, kind=AxisType.Auto):
    return jax.make_mesh(shape, ("data", "model"), axis_types=(kind, kind))


def integers(seed, *shape):
    numbers = np.random.default_rng(seed).integers(-3, 4, shape)
    return jnp.asarray(numbers, jnp.float32)


class Sharded(NamedTuple):
    """A loss with its real arguments by name, the fixed ones, and how they may lie on a mesh."""

    loss: Any
    params: dict[str, Any]
    fixed: dict[str, Any]
    specs: dict[str, PartitionSpec]
    exact: bool = True  # integers all the way
    has_examples: bool = True

    def call(self, loss, params):
        """The loss, or a face of it, of these parameters."""
        everything = params | self.fixed
        names = [name for name in POSITIONAL if name in everything]
        first = [everything.pop(name) for name in names]
        return loss(*first, **everything)

    def sharded(self, mesh, **axes):
        axes = axes or {"batch_axis": "data", "model_axis": "model"}
        if not self.has_examples:
            axes.pop("batch_axis", None)
        return mcgrad.shard(self.loss, mesh, **axes)


# In the order in which the losses take them.
POSITIONAL = (
    "hidden_weights", "hidden_bias", "output_weights", "scores", "weights", "moments", "covariance",
    "x", "inputs", "labels", "targets",
)  # fmt: skip

EXAMPLES, ROWS = PartitionSpec("data"), PartitionSpec("model")
BOTH, NOWHERE = PartitionSpec("data", "model"), PartitionSpec()

LABELS = jnp.asarray(np.random.default_rng(1).integers(0, COLUMNS, BATCH))
SIGNS = jnp.asarray(np.random.default_rng(2).choice([-1.0, 1.0], BATCH), jnp.float32)
WEIGHTS, INPUTS = integers(3, COLUMNS, FEATURES), integers(4, BATCH, FEATURES)
SCORES, BIAS = integers(5, BATCH, COLUMNS), integers(6, COLUMNS)
# Weights whose sum is a power of two, so that a weighted mean is exact.
SAMPLE_WEIGHT = jnp.asarray([1.0, 2.0, 0.0, 1.0] * (BATCH // 4))
CLASS_WEIGHT = jnp.asarray([1.0, 2.0, 0.5] * (COLUMNS // 3))
HALF = jnp.asarray(0.5)

linear_hinge = Sharded(
    mcgrad.linear_weston_watkins_loss,
    {"weights": WEIGHTS, "inputs": INPUTS, "bias": BIAS, "margin": HALF, "l2": jnp.asarray(0.25)},
    {"labels": LABELS},
    {"weights": ROWS, "inputs": EXAMPLES, "bias": ROWS, "labels": EXAMPLES},
)
squares = Sharded(
    mcgrad.linear_least_squares_loss,
    {"weights": WEIGHTS, "inputs": INPUTS, "targets": SCORES, "bias": BIAS},
    {},
    {"weights": ROWS, "inputs": EXAMPLES, "targets": BOTH, "bias": ROWS},
)
network = Sharded(
    mcgrad.logistic_network_loss,
    {
        "hidden_weights": WEIGHTS / 4,
        "hidden_bias": BIAS / 4,
        "output_weights": integers(7, COLUMNS) / 8,
        "inputs": INPUTS,
        "labels": SIGNS,
        "output_bias": HALF,
        "l2": jnp.asarray(0.25),
    },
    {},
    {
        "hidden_weights": ROWS,
        "hidden_bias": ROWS,
        "output_weights": ROWS,
        "inputs": EXAMPLES,
        "labels": EXAMPLES,
    },
    exact=False,
)


def weighted(case):
    params = case.params | {"sample_weight": SAMPLE_WEIGHT}
    if "margin" in case.params:
        params["class_weight"] = CLASS_WEIGHT
    return case._replace(params=params, specs=case.specs | {"sample_weight": EXAMPLES})


def smooth(case):
    params = case.params | {"mu": jnp.asarray(1.5)}
    return case._replace(params=params, exact=False)


def having(case, **options):
    return case._replace(fixed=case.fixed | options)


hinge = Sharded(
    mcgrad.weston_watkins_loss,
    {"scores": SCORES, "margin": HALF},
    {"labels": LABELS},
    {"scores": BOTH, "labels": EXAMPLES},
)
norm = Sharded(
    mcgrad.squared_relu_norm, {"x": integers(8, BATCH, 3, COLUMNS)}, {},
    {"x": PartitionSpec("data", None, "model")},
)  # fmt: skip

# Every example scores highest in its own class: few violate a margin, and the others are skipped.
MANY = integers(10, 32 * BATCH, FEATURES)
few_violations = linear_hinge._replace(
    params=linear_hinge.params | {"inputs": MANY},
    fixed={"labels": jnp.argmax(MANY @ WEIGHTS.T + BIAS, 1), "block_size": 2},
)
# More classes than examples on each device: the classes are walked.
TALL, SHORT = integers(11, 1024, FEATURES), integers(12, 8 * BATCH, FEATURES)
many_classes = linear_hinge._replace(
    params=linear_hinge.params
    | {"weights": TALL, "inputs": SHORT, "bias": integers(13, 1024), "l2": jnp.asarray(0.0)},
    fixed={"labels": jnp.argmax(SHORT @ TALL.T, 1), "block_size": 32},
)

CASES = {
    "linear hinge, few violations, many classes": many_classes,
    "linear hinge, few violations": few_violations,
    "linear hinge, few violations, none": having(few_violations, reduction="none"),
    "linear hinge, few violations, one walk": having(few_violations, block_size=64),
    "linear hinge": linear_hinge,
    "linear hinge, weighted": weighted(linear_hinge),
    "linear hinge, power 2": having(linear_hinge, power=2),
    "linear hinge, blocks": having(linear_hinge, block_size=2),
    "linear hinge, sum": having(linear_hinge, reduction="sum"),
    "linear hinge, none": having(linear_hinge, reduction="none"),
    "linear hinge, none, blocks": having(weighted(linear_hinge), reduction="none", block_size=2),
    "linear hinge, smooth": smooth(weighted(linear_hinge)),
    "hinge": hinge,
    "hinge, weighted": weighted(hinge),
    "hinge, none": having(weighted(hinge), reduction="none"),
    "hinge, smooth": smooth(hinge),
    "squares": squares,
    "squares, weighted": weighted(squares),
    "squares, none": having(weighted(squares), reduction="none"),
    "squares, blocks": having(squares, block_size=2),
    "moments": Sharded(
        mcgrad.moment_least_squares_loss,
        {"weights": WEIGHTS, "moments": mcgrad.least_squares_moments(INPUTS, SCORES)},
        {},
        {"weights": ROWS},
        has_examples=False,
    ),
    "network": network,
    "network, weighted": weighted(network),
    "network, blocks": having(network, block_size=1),
    "network, relu": having(smooth(network), activation="relu"),
    "network, none": having(network, reduction="none"),
    "covariance": Sharded(
        mcgrad.task_covariance_penalty,
        {
            "weights": WEIGHTS,
            "covariance": jnp.diag(jnp.asarray([1.0, 4.0, 4.0, 16.0, 1.0])),
            "ridge": HALF,
            "coupling": HALF,
        },
        {},
        {"weights": ROWS},
        has_examples=False,
    ),
    "norm": norm,
    "norm, over the first axis": having(norm, axis=0),
    "norm, over the last axis": having(norm, axis=(1, -1)),
    "norm, over the axis between": having(norm, axis=1),
    "norm, smooth": smooth(norm),
    "norm, counted": having(norm, where=integers(9, BATCH, 1, COLUMNS) > 0),
}
