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
    args, kwargs = loss.example_args(jax.random.key(0), (ROWS,), jnp.float32, smooth=False)
    names = loss.__code__.co_varnames[: len(args)]
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
    (NORM, {"axis": (0, np.int64(3))}, ValueError, r"axis: .*from -3 to 2; got"),
    *[
        (NORM, {"axis": axis}, TypeError, r"axis: expected an int, a tuple of ints or None; got")
        for axis in (
            True,
            np.True_,
            jnp.array(True),
            (0, False),
            0.0,
            np.float32(0),
            (0, 1.0),
            "0",
            {0},
            ((0,),),
            np.array([0, 1]),
        )
    ],
    (NORM, {"where": "all"}, TypeError, r"where: expected an array; got str"),
    (NORM, {"where": [[True], []]}, TypeError, r"where: expected an array; got list"),
    (NETWORK, {"labels": ["one"]}, TypeError, r"labels: expected an array; got list"),
    (NETWORK, {"labels": [1, [1]]}, TypeError, r"labels: expected an array; got list"),
    (NETWORK, {"labels": [1, 0, 1, 1]}, ValueError, r"labels: .*-1 or \+1; got \[0"),
    (LINEAR, {"labels": [10**30] * ROWS}, TypeError, r"labels: expected an array; got list"),
    (TASKS, {"covariance": [[1.0], [1.0, 2.0]]}, TypeError, r"covariance: .* array; got list"),
    (NORM, {"where": shaped(3)}, TypeError, r"where: .*boolean.*float32"),
    (NORM, {"where": shaped(7, dtype=bool)}, ValueError, r"where: .*\(7,\)"),
    (NORM, {"mu": -1.0}, ValueError, r"mu: .*> 0; got -1.0"),
    # Mistakes that are recognised.
    (LINEAR, {"weights": shaped(3, 5)}, ValueError, r"inputs: .*weights \(3, 5\).*transposed\?"),
    (LINEAR, {"weights": shaped(4, 3), "inputs": shaped(5, 3)}, ValueError, r"inputs swapped\?"),
    (SCORES, {"scores": shaped(5, ROWS)}, ValueError, r"scores \(5, 4\).*transposed\?"),
    (SQUARES, {"targets": shaped(4, ROWS)[:3]}, ValueError, r"targets: .*got shape \(3, 4\)$"),
    (TASKS, {"weights": shaped(3, 4)}, ValueError, r"with tasks=4; .*weights \(3, 4\).*transposed"),
    (
        TASKS,
        {"covariance": jnp.array([[1.0, 0, 0], [1e-4, 1, 0], [0, 0, 1]])},
        ValueError,
        r"covariance: .*symmetric.*L @ L.T",
    ),
    (
        TASKS,
        {"covariance": jnp.array([[1.0, 0, 0], [0, 1e-8, 0], [0, 5e-9, 1e-8]])},
        ValueError,
        r"covariance: .*symmetric",
    ),
    (NETWORK, {"labels": [0, 1, 1, 0]}, ValueError, r"labels: .*-1 or \+1; .*2 \* labels - 1"),
    (NETWORK, {"labels": np.array([2**32 + 1, 1, 1, 1])}, ValueError, r"labels: .*4294967296"),
    (NETWORK, {"labels": shaped(ROWS, dtype=bool)}, TypeError, r"labels: .*bool.*-1 or \+1"),
    (LINEAR, {"l2": np.int64(-1)}, ValueError, r"l2: .*>= 0; got -1"),
    (LINEAR, {"l2": "none"}, TypeError, r"l2: expected an array; got str"),
    *[
        (name, changes, error, message)
        for name in HINGES
        for changes, error, message in [
            ({"labels": [2**32 + 1, 0, 0, 0]}, ValueError, r"labels: .*got \[4294967297\]"),
            ({"labels": np.zeros(ROWS)}, TypeError, r"labels: .*float64 \(.*astype\(int\)"),
            ({"labels": np.eye(ROWS)}, TypeError, r"labels: .*integer dtype.*argmax"),
            ({"labels": np.eye(ROWS, dtype=int)}, ValueError, r"labels: .*\(4, 4\) .*argmax"),
            ({"labels": ["a", "b", "c", "a"]}, TypeError, r"labels: .*list of strings; .*unique"),
            ({"labels": None}, TypeError, r"labels: expected an array; got NoneType"),
            ({"class_weight": "balanced"}, TypeError, r"class_weight: .*got str; one number for"),
            ({"class_weight": {0: 1.0}}, TypeError, r"class_weight: .*got dict"),
            ({"class_weight": shaped(ROWS)}, ValueError, r"class_weight: .*got shape \(4,\)$"),
            ({"class_weight": [1, -1, 1, 1, 1]}, ValueError, r"class_weight: .*negative.*got -1"),
        ]
    ],
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
    starts = "labels", "moments.", "inputs", "covariance"
    assert text.startswith(next(iter(changes))) or text.startswith(starts)


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


CANNOT_BE = [
    # loss, argument, a value that raises where it is seen, and whose gradients depend on it
    *[
        (name, argument, -0.5, own)
        for argument, name, own in [
            ("l2", LINEAR, ["l2", "weights"]),
            ("ridge", TASKS, ["ridge", "weights"]),
            ("coupling", TASKS, ["coupling", "weights", "covariance"]),
            ("mu", NORM, ["mu", "x"]),
        ]
    ],
    *[
        (name, argument, -1.0, own)
        for name in HINGES
        for own in [["weights", "inputs", "bias"] if name == LINEAR else ["scores"]]
        for argument in ["class_weight", "sample_weight"]
    ],
    (SQUARES, "sample_weight", -1.0, ["sample_weight", "weights"]),
    (NETWORK, "sample_weight", -1.0, ["sample_weight", "hidden_weights", "output_weights"]),
]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(("name", "argument", "number", "own"), CANNOT_BE)
def test_traced_number_that_cannot_be_is_nan(name, argument, number, own, face):
    """An error where it is seen, and no plausible number where it is not: nor a gradient of 0."""
    given = arguments(name)
    given.setdefault(argument, jnp.float32(1))
    labels = given.get("labels")
    if labels is not None and name in HINGES:
        given["labels"] = jnp.array([1, 0, 2, 1])
    bad = jnp.asarray(given[argument])
    bad = bad.at[1].set(number) if bad.ndim else jnp.float32(number)
    with pytest.raises(ValueError, match=argument):
        LOSSES[name](**(given | {argument: bad}))
    wanted = [*dict.fromkeys([*own, argument])]

    @jax.jit
    def run(moved):
        loss = FACES[face](LOSSES[name])
        return jax.value_and_grad(lambda moved: loss(**(given | moved)))(moved)

    value, gradients = run({key: given[key] for key in wanted} | {argument: bad})
    assert np.isnan(value)
    for key, gradient in gradients.items():
        assert np.isnan(gradient).any(), key
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(run({k: given[k] for k in wanted})))


@pytest.mark.parametrize("name", [*HINGES, SQUARES, NETWORK])
def test_traced_negative_sample_weight_makes_its_example_nan_alone(name):
    given = arguments(name, reduction="none")
    run = jax.jit(lambda s: LOSSES[name](**(given | {"sample_weight": s})))
    values = run(given["sample_weight"].at[1].set(-1e-3))
    assert np.isnan(values).tolist() == [False, True, False, False]


@pytest.mark.implicit_promotion
def test_traced_jitter_that_cannot_be_is_nan():
    optimal = jax.jit(lambda jitter: mcgrad.optimal_task_covariance(shaped(4, 3), jitter=jitter))
    assert np.isnan(optimal(-1.0)).all() and np.isfinite(optimal(1.0)).all()
    assert np.isfinite(optimal(1)).all()


def test_traced_label_of_the_network_far_from_one_has_no_plausible_gradient():
    given = arguments(NETWORK, reduction="sum")
    run = jax.jit(jax.grad(lambda y: LOSSES[NETWORK](**(given | {"labels": y}))))
    gradient = run(given["labels"].at[1].set(0.0))
    assert np.isnan(gradient[1]) and np.isfinite(gradient[np.array([0, 2, 3])]).all()


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, jnp.int32, jnp.int4])
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        *[(name, a) for name in HINGES for a in ("margin", "mu", "class_weight", "sample_weight")],
        (LINEAR, "l2"),
        (TASKS, "ridge"),
        (TASKS, "coupling"),
        (NORM, "mu"),
        (SQUARES, "sample_weight"),
        (NETWORK, "sample_weight"),
    ],
)
def test_integers_are_taken_for_real_numbers(name, argument, kind):
    """The dtype of the value follows the real arguments."""
    args, options = LOSSES[name].example_args(
        jax.random.key(0), (ROWS,), jnp.bfloat16, smooth=False
    )
    ones = np.ones(jnp.shape(options.get(argument, 0)))
    of_jax = kind in (jnp.int32, jnp.int4)
    given = ones.astype(int).tolist() if kind is int else ones.astype(jnp.dtype(kind))
    given = jnp.asarray(given) if of_jax else given
    run = jax.jit(lambda x: LOSSES[name](*args, **(options | {argument: x})))
    expected = run(jnp.asarray(ones, jnp.bfloat16))
    for got in (LOSSES[name](*args, **(options | {argument: given})), run(given)):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(got), np.float32(expected), rtol=1e-2)


@pytest.mark.parametrize("name", [*HINGES, SQUARES, NETWORK])
def test_a_mask_is_a_sample_weight(name):
    mask = np.array([True, False, True, True])
    expected = LOSSES[name](**arguments(name, sample_weight=jnp.float32(mask)))
    run = jax.jit(lambda m: LOSSES[name](**arguments(name, sample_weight=m)))
    for given in (mask, mask.tolist(), jnp.asarray(mask)):
        assert LOSSES[name](**arguments(name, sample_weight=given)) == expected
    np.testing.assert_allclose(run(mask), expected, rtol=1e-6)
    many = np.array([2**32 + 1, 1, 0, 3])
    assert np.isfinite(LOSSES[name](**arguments(name, sample_weight=many)))
    with pytest.raises(ValueError, match="sample_weight: .*negative"):
        LOSSES[name](**arguments(name, sample_weight=-many))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_moments_take_masks_and_add_up(dtype):
    parts = [
        mcgrad.least_squares_moments(
            shaped(ROWS, 3, dtype=dtype), shaped(ROWS, 2, dtype=dtype), sample_weight=mask
        )
        for mask in (np.array([True, False, True, True]), np.array([0, 1, 0, 2]))
    ]
    whole = sum(parts)
    assert whole.weight == 6 and whole.inputs.dtype == jnp.float32
    with pytest.raises(TypeError, match="unsupported operand"):
        parts[0] + 1


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_symmetry_of_a_covariance_is_judged_on_its_own_scale(scale):
    """Each block on its own, eager and traced; rounding passes, a Cholesky factor does not."""
    weights = arguments(TASKS)["weights"]
    run = jax.jit(LOSSES[TASKS])
    unit = np.array([[1.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 1.0]])
    roots = np.sqrt(scale * np.array([1.0, 1e-8, 1e-8]))
    covariance = np.float32(unit * np.outer(roots, roots))
    rounded = np.float32(covariance * (1 + 1e-6 * np.triu(np.ones((3, 3)), 1)))
    for good in (covariance, rounded):
        assert np.isfinite(LOSSES[TASKS](weights, good)) and np.isfinite(run(weights, good))
    for factor in (np.tril(covariance), np.triu(covariance)):
        with pytest.raises(ValueError, match="symmetric"):
            LOSSES[TASKS](weights, factor)
        assert np.isnan(run(weights, factor))


def test_a_size_is_said_once():
    with pytest.raises(ValueError, match=r"\(tasks, tasks\) with tasks=20; got shape \(20, 3\)"):
        LOSSES[TASKS](shaped(6, 20), shaped(20, 3))


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


@pytest.mark.parametrize("make", ["lists", "lists of arrays", "NumPy arrays"])
@pytest.mark.parametrize("name", LOSSES)
def test_lists_are_taken_wherever_arrays_are(name, make):
    """As `jnp.asarray` takes them; labels are lists of ints for the network too."""
    loss, good = LOSSES[name], arguments(name)
    if name == NETWORK:
        good["labels"] = good["labels"].astype(int)
    makers = {
        "lists": lambda x: np.asarray(x).tolist(),
        "lists of arrays": lambda x: list(x) if jnp.ndim(x) else x,
        "NumPy arrays": np.asarray,
    }
    given = {
        key: jax.tree.map(makers[make], value) if not isinstance(value, str) else value
        for key, value in good.items()
    }
    np.testing.assert_array_equal(loss(**given), loss(**good))


@pytest.mark.parametrize("axis", [0, -1, (0, 2), (1,), (), (-1, 0, 1)])
def test_an_axis_may_be_any_integer(axis):
    x = arguments(NORM)["x"]
    expected = jnp.sum(jnp.maximum(x, 0) ** 2, axis)
    for integer in (int, np.int64, np.uint8 if np.all(np.array(axis) >= 0) else np.int8, jnp.int32):
        given = tuple(map(integer, axis)) if isinstance(axis, tuple) else integer(axis)
        for kind in (lambda f: f, mcgrad.forward_mode, mcgrad.plain):
            got = kind(mcgrad.squared_relu_norm)(x, axis=given)
            np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_unequal_choices_are_not_confused():
    """True == 1, but it is no power."""
    with pytest.raises(ValueError, match="power: .*True"):
        LOSSES[SCORES](**arguments(SCORES, power=True))
