"""JAX itself, where it looks inside: policies, checks for NaN and leaks, exported programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.ad_checkpoint import checkpoint_name

import mcgrad
from tests.cases import CASES, assert_close, inner
from tests.conftest import tolerance

pytestmark = pytest.mark.interop
CLOSE = tolerance(np.float32, 128)
EXAMPLES, FEATURES, WIDTH, CLASSES = 24, 6, 5, 40
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, EXAMPLES)
PARAMS = {
    "trunk": RNG.normal(size=(WIDTH, FEATURES)).astype(np.float32),
    "head": RNG.normal(size=(CLASSES, WIDTH)).astype(np.float32),
}
every_loss = pytest.mark.parametrize("case", [c for c in CASES if c.batch != ()], ids=str)


def network(params, labels=LABELS, face=mcgrad.linear_weston_watkins_loss):
    """A layer, and a hinge that is taken in blocks of the classes."""
    features = checkpoint_name(jnp.tanh(INPUTS @ params["trunk"].T), "features")
    return face(params["head"], features, labels, block_size=16)


def autodiff(params):
    return jax.grad(network)(params, face=mcgrad.plain(mcgrad.linear_weston_watkins_loss))


POLICIES = {
    name: getattr(jax.checkpoint_policies, name)
    for name in (
        "everything_saveable",
        "nothing_saveable",
        "dots_saveable",
        "dots_with_no_batch_dims_saveable",
    )
} | {
    "save_only_these_names": jax.checkpoint_policies.save_only_these_names("features"),
    "save_anything_except_these_names": jax.checkpoint_policies.save_anything_except_these_names(
        "features"
    ),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["features"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_checkpoint_policies(policy):
    remat = jax.checkpoint(network, policy=POLICIES[policy])
    for gradient in (jax.grad(remat), jax.jit(jax.grad(remat))):
        assert_close(gradient(PARAMS), autodiff(PARAMS), CLOSE)


@every_loss
def test_debug_nans(case):
    """No value, residual or gradient is NaN, eagerly and compiled."""
    call, params = case.draw()
    run = jax.value_and_grad(functools.partial(call, case.loss))
    expected = run(params)
    with jax.debug_nans(True):
        assert_close(run(params), expected, CLOSE)
        assert_close(jax.jit(run)(params), expected, CLOSE)


def test_debug_nans_and_a_dead_example():
    weight = np.ones(EXAMPLES, np.float32)
    weight[3] = 0
    inputs = INPUTS.copy()
    inputs[3] = np.nan
    weights = np.ones((CLASSES, FEATURES), np.float32)
    loss = jax.jit(jax.value_and_grad(mcgrad.linear_weston_watkins_loss))
    with jax.debug_nans(True):
        value, gradient = loss(weights, inputs, LABELS, sample_weight=weight)
    keep = weight > 0
    expected = loss(weights, inputs[keep], LABELS[keep])
    assert_close((value, gradient), expected, CLOSE)


def test_debug_nans_names_a_label_out_of_range():
    """jit hides the label: the loss is NaN, and JAX runs the step again without jit, which sees."""
    step = jax.jit(jax.value_and_grad(network))
    labels = LABELS.copy()
    labels[5] = CLASSES
    assert np.isnan(step(PARAMS, labels)[0])
    with jax.debug_nans(True), pytest.raises(ValueError, match="labels: expected .* got .40."):
        step(PARAMS, labels)


def test_debug_nans_without_jit():
    """Then even a constant is looked at: the NaN that a label out of range would get."""
    with jax.disable_jit(), jax.debug_nans(True), pytest.raises(FloatingPointError):
        network(PARAMS)


@every_loss
def test_checking_leaks(case):
    """No tracer outlives its transformation, although rules are made anew in every call."""
    call, params = case.draw()
    run = jax.value_and_grad(functools.partial(call, case.loss))
    jax.clear_caches()  # What was traced before would not be traced again.
    with jax.checking_leaks():
        got = jax.jit(run)(params)
    assert_close(got, run(params), CLOSE)


@every_loss
def test_disable_jit(case):
    call, params = case.draw()
    run = jax.value_and_grad(functools.partial(call, case.loss))
    expected = run(params)
    with jax.disable_jit():
        assert_close(run(params), expected, CLOSE)


@every_loss
def test_exported_loss_is_differentiable(case):
    """Serialized with its own derivatives, the second ones included."""
    call, params = case.draw()
    value = jax.jit(functools.partial(call, case.loss))
    again = jax.export.deserialize(jax.export.export(value)(params).serialize(vjp_order=2)).call

    def squared_slope(value, params):
        return inner(jax.grad(value)(params), jax.grad(value)(params))

    for derive in (jax.grad, lambda f: jax.grad(functools.partial(squared_slope, f))):
        assert_close(derive(again)(params), derive(value)(params), CLOSE)


@pytest.mark.implicit_promotion
def test_exported_training_step():
    """Loss, gradient and optimizer in one program, saved, and run where none of them is written."""
    optimizer = optax.adam(0.05)
    state, tree = jax.tree.flatten(optimizer.init(PARAMS))

    @jax.jit
    def step(params, state, labels):
        gradient = jax.grad(network)(params, labels)
        updates, state = optimizer.update(gradient, jax.tree.unflatten(tree, state))
        return optax.apply_updates(params, updates), jax.tree.leaves(state)

    def train(step, state):
        params = PARAMS
        for _ in range(20):
            params, state = step(params, state, LABELS)
        return params

    program = jax.export.export(step)(PARAMS, state, LABELS).serialize()
    again = jax.export.deserialize(bytearray(program)).call
    assert_close(train(again, state), train(step, state), CLOSE)


def exported(loss, *constraints):
    """Value and gradient for any number of examples within the constraints."""
    (batch,) = jax.export.symbolic_shape("batch", constraints=constraints)
    shapes = [
        jax.ShapeDtypeStruct((CLASSES, FEATURES), np.float32),
        jax.ShapeDtypeStruct((batch, FEATURES), np.float32),
        jax.ShapeDtypeStruct((batch,), np.int32),
    ]
    program = jax.export.export(jax.jit(jax.value_and_grad(loss)))(*shapes)
    return jax.export.deserialize(program.serialize()).call


def on_scores(weights, inputs, labels):
    return mcgrad.weston_watkins_loss(inputs @ weights.T, labels)


@pytest.mark.parametrize("bounds", [("batch <= 39",), ("batch >= 40", "batch <= 1024")])
def test_exported_for_many_sizes_of_the_batch(bounds):
    """Which axis is walked, and in what blocks, follows from the sizes: they need bounds."""
    loss = mcgrad.linear_weston_watkins_loss
    with pytest.raises(Exception, match=r"comparison '40\*batch' <= '\d+' is inconclusive"):
        exported(loss)
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(CLASSES, FEATURES)).astype(np.float32)
    for call in (exported(loss, *bounds), exported(mcgrad.plain(loss)), exported(on_scores)):
        for examples in (1, 24) if len(bounds) == 1 else (40, 1024):
            inputs = rng.normal(size=(examples, FEATURES)).astype(np.float32)
            labels = rng.integers(0, CLASSES, examples).astype(np.int32)
            expected = jax.value_and_grad(loss)(weights, inputs, labels)
            assert_close(call(weights, inputs, labels), expected, CLOSE)


def test_a_scatter_in_a_backward():
    """JAX transposes a scatter where its indices are said to be unique, or where it adds."""

    def equation(x):
        return jnp.sum(x[np.array([0, 2])] ** 2)

    def forward(x):
        return equation(x), x[np.array([0, 2])]

    def scattered(put):
        def backward(chosen, ct):
            return (put(jnp.zeros(3).at[np.array([0, 2])], 2 * ct * chosen),)

        return mcgrad.forward_mode(mcgrad.pair(equation, forward, backward))

    x, direction = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 1.0, -1.0])
    with pytest.raises(NotImplementedError, match="scatter transpose is only implemented where"):
        jax.jvp(scattered(lambda at, ct: at.set(ct)), (x,), (direction,))
    for put in (lambda at, ct: at.add(ct), lambda at, ct: at.set(ct, unique_indices=True)):
        assert jax.jvp(scattered(put), (x,), (direction,)) == (10.0, -4.0)
