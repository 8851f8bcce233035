"""Over a mesh every loss is what it is on one device, and sends no more than it says."""

import functools
import inspect
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sharded import (
    BATCH,
    CASES,
    COLUMNS,
    FEATURES,
    INPUTS,
    LABELS,
    MESHES,
    WEIGHTS,
    having,
    linear_hinge,
    make_mesh,
)

import mcgrad
from tests.cases import assert_close, waves
from tests.conftest import tolerance

pytestmark = pytest.mark.distributed

KINDS = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}


def assert_same(case, got, expected):
    """To the bit on integers; else as closely as the dtype allows."""
    got, expected = jax.device_get((got, expected))
    if case.exact:
        jax.tree.map(np.testing.assert_array_equal, got, expected)
    else:
        assert_close(got, expected, tolerance(jnp.float32))


def reduced(case, loss, params):
    """A scalar: the losses that are left, each with a cotangent of its own, exact in binary."""
    value = case.call(loss, params)
    weights = (jnp.arange(value.size) % 7 - 3).astype(value.dtype).reshape(value.shape)
    return jnp.sum(value * weights) if value.ndim else value


def value_and_gradients(case, loss):
    return jax.jit(jax.value_and_grad(functools.partial(reduced, case, loss)))


@functools.cache
def on_one_device(name):
    case = CASES[name]
    return jax.device_get(value_and_gradients(case, case.loss)(case.params))


def placed(case, mesh):
    """The real arguments, laid out as the sharded loss wants them."""
    place = {name: NamedSharding(mesh, spec) for name, spec in case.specs.items()}
    return {
        name: jax.device_put(x, place[name]) if name in place else x
        for name, x in case.params.items()
    }


@pytest.mark.parametrize("shape", MESHES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_loss_on_one_device(name, shape):
    case = CASES[name]
    sharded = case.sharded(make_mesh(shape))
    assert_same(case, value_and_gradients(case, sharded)(case.params), on_one_device(name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_equals_it_in_forward_mode_and_with_explicit_axes(name, kind):
    case, mesh = CASES[name], make_mesh((2, 4), KINDS[kind])
    sharded = mcgrad.forward_mode(case.sharded(mesh))
    got = value_and_gradients(case, sharded)(placed(case, mesh))
    assert_same(case, got, on_one_device(name))


@pytest.mark.parametrize("axes", [{"batch_axis": "data"}, {"model_axis": "model"}], ids=str)
@pytest.mark.parametrize("name", ["linear hinge, weighted", "squares", "network", "norm"])
def test_equals_it_split_along_one_axis_of_a_mesh_of_two(name, axes):
    case = CASES[name]
    sharded = case.sharded(make_mesh((2, 4)), **axes)
    assert_same(case, value_and_gradients(case, sharded)(case.params), on_one_device(name))


@pytest.mark.parametrize("needs_grad", ["weights", "inputs", "bias"])
@pytest.mark.parametrize("name", [name for name in CASES if "few violations" in name])
def test_each_gradient_alone_where_rows_are_skipped(name, needs_grad):
    case = CASES[name]

    def gradient(loss):
        def value(x):
            return reduced(case, loss, case.params | {needs_grad: x})

        return jax.device_get(jax.jit(jax.grad(value))(case.params[needs_grad]))

    assert_same(case, gradient(case.sharded(make_mesh((2, 4)))), gradient(case.loss))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["linear hinge", "hinge", "squares", "network", "norm"])
def test_gradients_lie_where_their_arguments_lie(name, kind):
    case, mesh = CASES[name], make_mesh((2, 4), KINDS[kind])
    _, gradients = value_and_gradients(case, case.sharded(mesh))(placed(case, mesh))
    for argument, gradient in gradients.items():
        spec = case.specs.get(argument, PartitionSpec())
        expected = NamedSharding(mesh, spec)
        assert gradient.sharding.is_equivalent_to(expected, gradient.ndim), argument


@pytest.mark.parametrize("name", ["linear hinge, smooth", "hinge, smooth", "squares", "network"])
def test_second_order_equals_that_on_one_device(name):
    case, mesh = CASES[name], make_mesh((2, 4))
    direction = jax.tree.map(waves, case.params)

    def products(loss):
        function = functools.partial(reduced, case, loss)
        gradient = jax.grad(function)
        reverse = jax.grad(lambda p: optax.tree.vdot(gradient(p), direction))
        return jax.jit(
            lambda p: (jax.jvp(gradient, (p,), (direction,))[1], reverse(p),
                       jax.jvp(function, (p,), (direction,))[1])
        )(case.params)  # fmt: skip

    got = products(mcgrad.forward_mode(case.sharded(mesh)))
    expected = products(mcgrad.forward_mode(case.loss))
    assert_close(*jax.device_get((got, expected)), tolerance(jnp.float32, 64))


def test_the_loss_of_a_vmapped_stack_equals_that_on_one_device():
    case = CASES["linear hinge"]
    stack = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]), case.params)

    def values(loss):
        function = jax.value_and_grad(functools.partial(case.call, loss))
        return jax.device_get(jax.jit(jax.vmap(function))(stack))

    assert_same(case, values(case.sharded(make_mesh((2, 4)))), values(case.loss))


@pytest.mark.implicit_promotion
@pytest.mark.parametrize("name", ["linear hinge, weighted", "squares", "network", "covariance"])
def test_training_takes_the_same_path(name):
    case, mesh = CASES[name], make_mesh((4, 2))
    trained = next(iter(case.params))

    def path(loss):
        optimizer = optax.adam(0.05)

        def step(carry, _):
            params, state = carry
            value, gradients = jax.value_and_grad(
                lambda x: case.call(loss, case.params | {trained: x})
            )(params)
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(params, updates), state), value

        start = case.params[trained]
        (params, _), values = jax.lax.scan(step, (start, optimizer.init(start)), length=20)
        return params, values

    got, expected = (jax.device_get(jax.jit(path, static_argnums=0)(loss)) for loss in
                     (case.sharded(mesh), case.loss))  # fmt: skip
    assert expected[1][-1] < 0.8 * expected[1][0]
    assert_close(got, expected, tolerance(jnp.float32, 512))


# What a compiled program sends.

COLLECTIVES = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-[a-z]+"
COLLECTIVE = re.compile(rf"= (.*?) ({COLLECTIVES})(?:-start)?\((.*)")
# The groups: {{0,4},{1,5},...}, or [groups, devices in each], or the axes they run along.
MEMBERS = re.compile(r"replica_groups=\{\{(.*?)\}")
NUMBERS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
NAMES = re.compile(r"replica_groups=mesh\[(.*?)\].*? \{(.*?)\}")
ARRAY = re.compile(r"(\w+?)\[([\d,]*)\]")
AXES = {2: "data", 4: "model", 8: "both"}  # by the devices of a group on a 2 x 4 mesh


def collectives(function, *args):
    """(result, kind, the rest) of each instruction of the compiled program that sends."""
    return COLLECTIVE.findall(function.lower(*args).compile().as_text())


def devices_of_a_group(text):
    if members := MEMBERS.search(text):
        return len(members[1].split(","))
    if numbers := NUMBERS.search(text):
        return int(numbers[1])
    sizes, along = NAMES.search(text).groups()
    shape = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", sizes)}
    return math.prod(shape[name] for name in re.findall(r"'(\w+)'", along))


def sent(function, *args):
    """Numbers that one device sends over each axis of a 2 x 4 mesh, and with what."""
    counts, kinds = Counter(), set()
    for result, kind, rest in collectives(function, *args):
        shapes = [dimensions for _, dimensions in ARRAY.findall(result)]
        counts[AXES[devices_of_a_group(rest)]] += sum(
            math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes
        )
        kinds.add(kind)
    return counts, kinds


N, C, F = BATCH // 2, COLUMNS // 4, FEATURES
# The arguments asked for; numbers sent over the data axis and over the model axis, in arrays.
TRAFFIC = {
    ("linear hinge", ()): (0, 2 * N),
    ("linear hinge", ("weights",)): (C * F, 3 * N),
    ("linear hinge", ("inputs",)): (0, 3 * N + N * F),
    ("linear hinge", ("weights", "inputs", "bias")): (C * F + C, 3 * N + N * F),
    ("linear hinge, blocks", ("weights", "inputs", "bias")): (C * F + C, 3 * N + N * F),
    ("hinge", ("scores",)): (0, 3 * N),
    ("squares", ("weights", "inputs", "targets")): (C * F, N + N * F),
    ("squares", ()): (0, N),
    ("moments", ("weights",)): (0, 0),
    ("moments", ("weights", "moments")): (0, F * F),
    ("network", ("hidden_weights", "hidden_bias", "output_weights")): (C * F + 2 * C, N),
    ("network", ("inputs",)): (0, N + N * F),
    ("covariance", ("weights",)): (0, 0),
    ("covariance", ("covariance",)): (0, F * F),
    ("norm", ("x",)): (0, 0),
}
SCALARS = 8  # at most, in all


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name, needs_grad", TRAFFIC)
def test_sends_what_it_says_and_gathers_nothing(name, needs_grad, kind):
    case, mesh = CASES[name], make_mesh((2, 4), KINDS[kind])
    params = placed(case, mesh)
    fixed = {
        key: jax.device_put(x, NamedSharding(mesh, case.specs[key])) if key in case.specs else x
        for key, x in case.fixed.items()
    }
    sharded = case.sharded(mesh)

    def value(some, rest, fixed):
        return case._replace(fixed=fixed | static).call(sharded, rest | some)

    static = {key: fixed.pop(key) for key in list(fixed) if isinstance(fixed[key], int | str)}
    function = jax.jit(jax.value_and_grad(value) if needs_grad else value)
    some = {key: params[key] for key in needs_grad}
    counts, kinds = sent(function, some, params, fixed)
    data, model = TRAFFIC[name, needs_grad]
    assert kinds == {"all-reduce"}
    assert data <= counts["data"] <= data + SCALARS
    assert model <= counts["model"] <= model + SCALARS
    assert counts["both"] <= SCALARS


def test_a_gather_would_be_seen():
    mesh = make_mesh((2, 4))
    weights = jax.device_put(WEIGHTS, NamedSharding(mesh, PartitionSpec("model")))
    everywhere = jax.jit(lambda w: w + 1, out_shardings=NamedSharding(mesh, PartitionSpec()))
    assert {kind for _, kind, _ in collectives(everywhere, weights)} == {"all-gather"}


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_device_holds_its_part_of_the_scores(reduction):
    mesh, examples, classes = make_mesh((2, 4)), 4096, 8192
    sharded = mcgrad.shard(
        mcgrad.linear_weston_watkins_loss, mesh, batch_axis="data", model_axis="model"
    )
    weights, inputs = jnp.ones((classes, 16)), jnp.ones((examples, 16))
    loss = jax.jit(
        jax.grad(lambda w, x, t: jnp.sum(sharded(w, x, t, reduction=reduction)), argnums=(0, 1))
    )
    compiled = loss.lower(weights, inputs, jnp.zeros(examples, int)).compile()
    part = examples // 2 * (classes // 4) * weights.dtype.itemsize
    assert compiled.memory_analysis().temp_size_in_bytes < part / 3


# Without `shard`: JAX itself splits what it is given.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_sharded_arguments_alone_are_right(name, kind):
    case, mesh = CASES[name], make_mesh((2, 4), KINDS[kind])
    for face in (case.loss, mcgrad.forward_mode(case.loss), mcgrad.plain(case.loss)):
        value, gradients = value_and_gradients(case, face)(placed(case, mesh))
        if face.__class__ is not mcgrad.plain(case.loss).__class__ or face.mode != "plain":
            assert_same(case, (value, gradients), on_one_device(name))
        else:
            expected = on_one_device(name)
            assert_close(jax.device_get((value, gradients)), expected, tolerance(jnp.float32, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_moments_of_a_sharded_data_set_are_summed_by_all_reduce(kind):
    case, mesh = CASES["squares"], make_mesh((8, 1), KINDS[kind])
    params = case.params | {"weights": WEIGHTS}
    data = {name: params[name] for name in ("inputs", "targets")}
    where = NamedSharding(mesh, PartitionSpec("data"))
    function = jax.jit(lambda d: mcgrad.least_squares_moments(**d))
    split = jax.device_put(data, where)
    assert {kind for _, kind, _ in collectives(function, split)} == {"all-reduce"}
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((function(split), function(data))))


@pytest.mark.parametrize("block_size", [None, 3])
def test_a_shard_map_of_the_users_own_may_hold_a_loss(block_size):
    mesh = make_mesh((8, 1))
    loss = functools.partial(mcgrad.linear_weston_watkins_loss, margin=0.5, block_size=block_size)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data"), PartitionSpec("data")),
        out_specs=PartitionSpec(),
    )
    def mean(weights, inputs, labels):
        return jax.lax.pmean(loss(weights, inputs, labels), "data")

    got = jax.jit(jax.value_and_grad(mean))(WEIGHTS, INPUTS, LABELS)
    expected = jax.value_and_grad(loss)(WEIGHTS, INPUTS, LABELS)
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((got, expected)))


# What is refused, and how it is said.


def shard_with(**options):
    mesh = make_mesh((2, 4))
    defaults = {"loss": mcgrad.linear_weston_watkins_loss, "mesh": mesh, "batch_axis": "data"}
    return mcgrad.shard(**defaults | options)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"batch_axis": "rows"}, ValueError,
         "batch_axis: expected an axis of the mesh, ('data', 'model'), or None; got 'rows'"),
        ({"model_axis": "columns"}, ValueError,
         "model_axis: expected an axis of the mesh, ('data', 'model'), or None; got 'columns'"),
        ({"batch_axis": None}, ValueError, "batch_axis, model_axis: expected at least one"),
        ({"model_axis": "data"}, ValueError, "model_axis: expected another axis; got 'data'"),
        ({"loss": optax.l2_loss}, TypeError, "loss: expected a loss of this library; got <"),
        ({"mesh": 8}, TypeError, "mesh: expected a jax.sharding.Mesh; got int"),
    ],
)  # fmt: skip
def test_a_wrong_call_of_shard_says_what_was_expected(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        shard_with(**options)


def paired():
    return mcgrad.pair(lambda x: x, lambda x: (x, ()), lambda residuals, ct: (ct,))


def test_a_loss_paired_by_the_user_is_refused():
    with pytest.raises(TypeError, match="loss: expected a loss of this library"):
        shard_with(loss=paired())


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((WEIGHTS, INPUTS[:15], LABELS[:15]), {},
         "inputs: expected a size along axis 0 that the 2 devices of mesh axis data divide, "
         "such as 14 or 16; got 15"),
        ((WEIGHTS[:22], INPUTS, LABELS % 22), {},
         "weights: expected a size along axis 0 that the 4 devices of mesh axis model divide, "
         "such as 20 or 24; got 22"),
        ((WEIGHTS[:2], INPUTS, LABELS % 2), {}, "such as 4; got 2"),
        ((WEIGHTS, INPUTS[0], LABELS[0]), {}, "inputs: expected a batch to split along 'data'"),
        ((WEIGHTS, INPUTS[:15].reshape(3, 5, 5)[:, :4], LABELS[:12].reshape(3, 4)), {},
         "inputs: expected a size along axis 0 that the 2 devices of mesh axis data divide, "
         "such as 2 or 4; got 3"),
        ((WEIGHTS, INPUTS, LABELS.at[3].set(COLUMNS)), {}, "labels from 0 to 23 (classes - 1)"),
        ((WEIGHTS, INPUTS, LABELS.at[3].set(-1)), {}, "labels from 0 to 23 (classes - 1)"),
    ],
)  # fmt: skip
def test_a_wrong_argument_says_what_was_expected(arguments, options, message):
    sharded = shard_with(model_axis="model")
    with pytest.raises(ValueError, match=re.escape(message)):
        sharded(*arguments, **options)


def test_a_loss_without_examples_refuses_a_batch_axis():
    sharded = shard_with(loss=mcgrad.task_covariance_penalty, model_axis="model")
    with pytest.raises(ValueError, match="batch_axis: expected None for a loss that has nothing"):
        sharded(WEIGHTS, jnp.eye(FEATURES))


@pytest.mark.parametrize("label", [-1, COLUMNS, 7 * COLUMNS])
def test_a_traced_label_out_of_range_is_nan_as_on_one_device(label):
    case = having(linear_hinge, reduction="none")
    labels = LABELS.at[3].set(label)

    def losses(loss):
        def of_labels(labels):
            given = case._replace(fixed=case.fixed | {"labels": labels})
            return given.call(loss, case.params), jax.grad(
                lambda x: given.call(loss, case.params | {"inputs": x})[4]
            )(INPUTS)

        return jax.device_get(jax.jit(of_labels)(labels))

    got, expected = losses(case.sharded(make_mesh((2, 4)))), losses(case.loss)
    assert np.isnan(got[0]).tolist() == [i == 3 for i in range(BATCH)]
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_batch_axes_are_split_along_the_first_and_given_back():
    case = having(linear_hinge, reduction="none", labels=LABELS.reshape(4, 4))
    params = case.params | {"inputs": INPUTS.reshape(4, 4, FEATURES)}
    got = case.call(case.sharded(make_mesh((4, 2))), params)
    np.testing.assert_array_equal(*jax.device_get((got, case.call(case.loss, params))))


def test_a_sharded_loss_speaks_as_the_loss_does():
    sharded = shard_with()
    assert sharded.__name__ == "linear_weston_watkins_loss"
    assert inspect.signature(sharded) == inspect.signature(mcgrad.linear_weston_watkins_loss)
    assert sharded == shard_with()
    assert hash(sharded) == hash(shard_with())
    assert sharded != shard_with(model_axis="model")
    assert mcgrad.shard(mcgrad.forward_mode(mcgrad.linear_weston_watkins_loss), make_mesh((2, 4)),
                        batch_axis="data") == mcgrad.forward_mode(sharded)  # fmt: skip
