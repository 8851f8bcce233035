"""Bad input: what is concrete raises an error that names the argument; what is traced is NaN."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcgrad
from mcgrad import LOSSES

ROWS = 4


def arguments(name, **changes):
    """A good call of the loss, as keyword arguments, with some replaced."""
    loss = LOSSES[name]
    args, kwargs = loss.draw(jax.random.key(0), (ROWS,), jnp.float32, smooth=False)
    names = loss.__wrapped__.__code__.co_varnames[: len(args)]
    return dict(zip(names, args, strict=True)) | kwargs | changes


def shaped(*shape, dtype=jnp.float32):
    return jnp.ones(shape, dtype)


HINGES = ["linear_weston_watkins_loss", "weston_watkins_loss"]
LINEAR, SCORES = HINGES
SQUARES, MOMENTS = "linear_least_squares_loss", "moment_least_squares_loss"
NETWORK, TASKS, NORM = "logistic_network_loss", "task_covariance_penalty", "squared_relu_norm"

TABLE = [
    # loss, what is changed, the kind of error, the argument and what the message says of it
    (
        LINEAR,
        {"weights": shaped(5)},
        ValueError,
        r"weights: .*\(classes, features\).* shape \(5,\)",
    ),
    (LINEAR, {"weights": shaped(5, 3, 1)}, ValueError, r"weights: .*\(5, 3, 1\)"),
    (LINEAR, {"inputs": shaped(ROWS, 2)}, ValueError, r"inputs: .*features=3.*\(4, 2\)"),
    (LINEAR, {"inputs": jnp.float32(1)}, ValueError, r"inputs: .*shape \(\)"),
    (LINEAR, {"bias": shaped(4)}, ValueError, r"bias: .*classes=5.*\(4,\)"),
    (LINEAR, {"weights": shaped(5, 3, dtype=jnp.int32)}, TypeError, r"weights: .*float.*int32"),
    (LINEAR, {"weights": "W"}, TypeError, r"weights: expected an array; got str"),
    (LINEAR, {"l2": -0.5}, ValueError, r"l2: .*>= 0; got -0.5"),
    (LINEAR, {"l2": shaped(1)}, ValueError, r"l2: .*shape \(1,\)"),
    (LINEAR, {"block_size": 0}, ValueError, r"block_size: .*positive int; got 0"),
    (LINEAR, {"block_size": 2.0}, ValueError, r"block_size: .*positive int; got 2.0"),
    (
        SCORES,
        {"scores": shaped(ROWS + 1, 5), "sample_weight": None},
        ValueError,
        r"labels: .*batch=\(5,\).*\(4,\)",
    ),
    (SCORES, {"scores": shaped(ROWS, 5, dtype=jnp.int32)}, TypeError, r"scores: .*int32"),
    (SQUARES, {"targets": shaped(ROWS, 3)}, ValueError, r"targets: .*outputs=4.*\(4, 3\)"),
    (SQUARES, {"weights": shaped(4, 3, dtype=jnp.int32)}, TypeError, r"weights: .*int32"),
    (MOMENTS, {"weights": shaped(4, 2)}, ValueError, r"moments.inputs: .*features=2"),
    (MOMENTS, {"moments": shaped(3, 3)}, TypeError, r"moments: .*least_squares_moments"),
    (MOMENTS, {"reduction": "none"}, ValueError, r"reduction: .*'mean', 'sum'; got 'none'"),
    (NETWORK, {"hidden_bias": shaped(3)}, ValueError, r"hidden_bias: .*hidden=4.*\(3,\)"),
    (NETWORK, {"output_weights": shaped(4, 1)}, ValueError, r"output_weights: .*\(4, 1\)"),
    (NETWORK, {"hidden_weights": shaped(4, 3, dtype=jnp.int32)}, TypeError, r"hidden_weights: "),
    (NETWORK, {"labels": jnp.array([1, 0, 1, 0])}, ValueError, r"labels: .*-1 or \+1; got \[0"),
    (NETWORK, {"labels": jnp.full(ROWS, 0.999)}, ValueError, r"labels: .*-1 or \+1"),
    (NETWORK, {"activation": "sinus"}, ValueError, r"activation: .*'sigmoid'.*got 'sinus'"),
    (NETWORK, {"activation": jnp.tanh}, ValueError, r"activation: .*Activation"),
    (NETWORK, {"mu": 1.0}, ValueError, r"mu: .*'relu'.*'sigmoid'"),
    (NETWORK, {"mu": 0.0, "activation": "relu"}, ValueError, r"mu: .*> 0; got 0.0"),
    (TASKS, {"weights": shaped(4)}, ValueError, r"weights: .*\(features, tasks\)"),
    (TASKS, {"weights": shaped(4, 3, dtype=jnp.int32)}, TypeError, r"weights: .*int32"),
    (TASKS, {"covariance": shaped(3, 2)}, ValueError, r"covariance: .*tasks=3.*\(3, 2\)"),
    (TASKS, {"covariance": shaped(2, 2)}, ValueError, r"covariance: .*tasks=3.*\(2, 2\)"),
    (TASKS, {"covariance": jnp.eye(3).at[0, 1].set(0.5)}, ValueError, r"covariance: .*symmetric"),
    (
        TASKS,
        {"covariance": shaped(3, 3) - 2 * jnp.eye(3)},
        ValueError,
        r"covariance: .*positive def",
    ),
    (TASKS, {"covariance": shaped(3, 3)}, ValueError, r"covariance: .*positive def"),
    (TASKS, {"covariance": jnp.array([1.0, 0.0, 2.0])}, ValueError, r"covariance: .*positive diag"),
    (TASKS, {"ridge": -1.0}, ValueError, r"ridge: .*>= 0; got -1.0"),
    (TASKS, {"coupling": -1.0}, ValueError, r"coupling: .*>= 0; got -1.0"),
    (NORM, {"x": shaped(3, dtype=jnp.int32)}, TypeError, r"x: .*int32"),
    (NORM, {"axis": 3}, ValueError, r"axis: .*from -3 to 2; got 3"),
    (NORM, {"axis": (0, -3)}, ValueError, r"axis: .*once"),
    (NORM, {"where": shaped(3)}, TypeError, r"where: .*boolean.*float32"),
    (NORM, {"where": shaped(7, dtype=bool)}, ValueError, r"where: .*\(7,\)"),
    (NORM, {"mu": -1.0}, ValueError, r"mu: .*> 0; got -1.0"),
    *[
        (name, changes, error, message)
        for name in HINGES
        for changes, error, message in [
            ({"labels": jnp.array([0, 1, 2, -1])}, ValueError, r"labels: .*0 to 4.*got \[-1\]"),
            ({"labels": jnp.array([0, 5, 2, 1])}, ValueError, r"labels: .*0 to 4.*got \[5\]"),
            ({"labels": np.array([0, 5, 2, 1])}, ValueError, r"labels: .*0 to 4.*got \[5\]"),
            ({"labels": jnp.zeros(ROWS)}, TypeError, r"labels: .*integer dtype; got float32"),
            ({"labels": jnp.zeros((ROWS, 1), int)}, ValueError, r"labels: .*\(4, 1\)"),
            ({"mu": 0.0}, ValueError, r"mu: .*> 0; got 0.0"),
            ({"mu": jnp.float32(-2)}, ValueError, r"mu: .*> 0; got -2.0"),
            ({"power": 3}, ValueError, r"power: .*1, 2; got 3"),
            ({"power": 2.0}, ValueError, r"power: .*1, 2; got 2.0"),
            ({"margin": shaped(2)}, ValueError, r"margin: .*\(2,\)"),
            ({"margin": jnp.bool_(True)}, TypeError, r"margin: .*bool"),
            ({"class_weight": shaped(4)}, ValueError, r"class_weight: .*classes=5"),
            ({"class_weight": -shaped(5)}, ValueError, r"class_weight: .*negative"),
        ]
    ],
    *[
        (name, changes, ValueError, message)
        for name in [*HINGES, SQUARES, NETWORK]
        for changes, message in [
            ({"reduction": "average"}, r"reduction: .*'mean', 'sum', 'none'; got 'average'"),
            ({"sample_weight": shaped(3)}, r"sample_weight: .*batch=\(4,\).*\(3,\)"),
            ({"sample_weight": -shaped(ROWS)}, r"sample_weight: .*negative"),
        ]
    ],
]


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    TABLE,
    ids=[f"{name}-{'-'.join(changes)}-{k}" for k, (name, changes, *_) in enumerate(TABLE)],
)
def test_concrete(name, changes, error, message):
    good = arguments(name)
    LOSSES[name](**good)
    with pytest.raises(error) as caught:
        LOSSES[name](**(good | changes))
    text = str(caught.value)
    assert re.search(message, text), text
    assert text.startswith(next(iter(changes))) or text.startswith(("labels", "moments."))


FACES = {"closed": lambda f: f, "forward": mcgrad.forward_mode, "plain": mcgrad.plain}


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("label", [-1, 5, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize(("name", "block_size"), [(LINEAR, None), (LINEAR, 2), (SCORES, None)])
def test_traced_label_out_of_range_makes_its_example_nan(name, block_size, label, face):
    """The value and the gradient of that example, and of no other: never a plausible number."""
    options = {"block_size": block_size} if name == LINEAR else {}
    good = arguments(name, reduction="none", margin=jnp.float32(0.5), **options)
    row_argument = "inputs" if name == LINEAR else "scores"

    @jax.jit
    def run(rows, labels):
        def losses(rows):
            given = good | {row_argument: rows, "labels": labels}
            return FACES[face](LOSSES[name])(**given)

        values, pull = jax.vjp(losses, rows)
        return values, *pull(jnp.ones(ROWS))

    rows = 3 * good[row_argument]
    values, gradient = run(rows, good["labels"].at[1].set(label))
    expected, right = run(rows, good["labels"])
    keep = np.array([0, 2, 3])
    bad = np.isnan(gradient[1])
    # The equation's own autodiff gives NaN to the classes that violate the margin.
    assert np.isnan(values[1]) and (bad.any() if face == "plain" else bad.all())
    np.testing.assert_allclose(values[keep], expected[keep], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gradient[keep], right[keep], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("label", [-1, 5])
def test_traced_label_out_of_range_makes_the_sum_nan(label, block_size):
    good = arguments(LINEAR, block_size=block_size)

    @jax.jit
    def run(labels, weights):
        return LOSSES[LINEAR](**(good | {"labels": labels, "weights": weights}))

    labels = good["labels"].at[1].set(label)
    value, gradient = jax.value_and_grad(run, argnums=1)(labels, good["weights"])
    assert np.isnan(value) and np.isnan(gradient).all()


@pytest.mark.parametrize("name", HINGES)
def test_labels_of_weight_zero_may_be_anything(name):
    """Padding is often labelled -1."""
    labels, weight = jnp.array([0, 1, -1, 9]), jnp.array([1.0, 2.0, 0.0, 0.0])
    got = LOSSES[name](**arguments(name, labels=labels, sample_weight=weight))
    safe = LOSSES[name](**arguments(name, labels=jnp.array([0, 1, 0, 0]), sample_weight=weight))
    assert got == safe


@pytest.mark.parametrize("label", [0.0, 2.0, 0.5])
def test_traced_label_of_the_network_far_from_one_is_nan(label):
    """0/1 labels under jit would give log 2 and a gradient of zero."""
    good = arguments(NETWORK, reduction="none")

    @jax.jit
    def run(labels):
        return jax.vjp(lambda x: LOSSES[NETWORK](**(good | {"inputs": x, "labels": labels})),
                       good["inputs"])[0]  # fmt: skip

    values = run(good["labels"].at[1].set(label))
    assert np.isnan(values[1]) and np.isfinite(values[np.array([0, 2, 3])]).all()


@pytest.mark.parametrize(
    "covariance",
    [
        jnp.eye(3).at[0, 1].set(5.0),
        jnp.ones((3, 3)) - 2 * jnp.eye(3),
        jnp.array([1.0, -1.0, 2.0]),
        jnp.array([1.0, 0.0, 2.0]),
    ],
    ids=["not symmetric", "indefinite", "negative", "zero"],
)
def test_traced_covariance_that_is_none_is_nan(covariance):
    weights = arguments(TASKS)["weights"]
    value, gradients = jax.jit(jax.value_and_grad(LOSSES[TASKS], argnums=(0, 1)))(
        weights, covariance
    )
    assert np.isnan(value) and all(np.isnan(g).any() for g in gradients)
    assert np.isnan(jax.jit(mcgrad.plain(LOSSES[TASKS]))(weights, covariance))


@pytest.mark.parametrize("mu", [0.0, -1.0])
@pytest.mark.parametrize("name", [*HINGES, NORM])
def test_traced_mu_that_is_not_positive_is_nan(name, mu):
    run = jax.jit(lambda mu: LOSSES[name](**arguments(name, mu=mu)))
    assert np.isnan(run(mu)) and np.isfinite(run(1.0))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", [*HINGES, SQUARES, NETWORK])
def test_empty_batch(name, reduction):
    """The sum over nothing is 0, and so is the mean: no NaN reaches the parameters."""
    loss = LOSSES[name]
    good = arguments(name, reduction=reduction)
    empty = {
        key: value[:0]
        if getattr(value, "shape", ())[:1] == (ROWS,) and key in ROW_ARGUMENTS
        else value
        for key, value in good.items()
    }
    first = next(iter(empty))
    value = loss(**empty)
    assert value.shape == ((0,) if reduction == "none" else ()) and not np.any(value)
    gradient = jax.grad(lambda w: jnp.sum(loss(**(empty | {first: w}))))(empty[first])
    assert gradient.shape == empty[first].shape and not np.any(gradient)


ROW_ARGUMENTS = ("inputs", "labels", "scores", "targets", "sample_weight")


@pytest.mark.parametrize("name", HINGES)
def test_one_class(name):
    """There is no other class to violate a margin."""
    row = {
        LINEAR: {"weights": shaped(1, 3), "bias": shaped(1)},
        SCORES: {"scores": shaped(ROWS, 1)},
    }
    changes = row[name] | {"labels": jnp.zeros(ROWS, int), "class_weight": shaped(1)}
    good = arguments(name, **changes) | ({"l2": 0.0} if name == LINEAR else {})
    first = next(iter(good))
    value, gradient = jax.value_and_grad(lambda w: LOSSES[name](**(good | {first: w})))(good[first])
    assert value == 0 and not np.any(gradient)


def test_unequal_choices_are_not_confused():
    """True == 1, but it is no power."""
    with pytest.raises(ValueError, match="power: .*True"):
        LOSSES[SCORES](**arguments(SCORES, power=True))
