"""Labels of every integer dtype, around the end of each: the right class, an error or NaN."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcgrad
from mcgrad._arguments import SAMPLE_WEIGHT, Arguments, Classes, Real
from tests.conftest import precision

DTYPES = [
    *("int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
]
# Below, at and above what each narrow dtype holds.
COUNTS = [1, 5, 8, 16, 127, 128, 255, 256, 257, 32767, 32768, 65535, 65536, 10**6]
FACES = {"reverse": lambda f: f, "forward": mcgrad.forward_mode, "plain": mcgrad.plain}
HINGES = ["linear_weston_watkins_loss", "weston_watkins_loss"]


def is_wide(dtype):
    return jnp.dtype(dtype).itemsize == 8


def bounds(dtype):
    info = jnp.iinfo(dtype)
    return int(info.min), int(info.max)


def candidates(dtype, counts):
    """Labels in range and out of it, of those that the dtype holds."""
    low, high = bounds(dtype)
    numbers = {0, 1, -1, low, high, 2**32, 2**32 + 1, 1 - 2**32}
    numbers |= {n - 1 for n in counts} | set(counts)
    return sorted(n for n in numbers if low <= n <= high)


def judged(labels, count, weight=None):
    """The labels as a loss of so many classes takes them."""
    arguments = Arguments(bias=Real("classes"), labels=Classes(), sample_weight=SAMPLE_WEIGHT)
    (_, judged, _), _ = arguments.check(np.broadcast_to(np.float32(0), count), labels, weight)
    return judged


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_label_is_its_class_or_none_whatever_the_dtype(dtype):
    """Traced, mapped, and beside weights of which nothing is known yet."""
    with precision(jnp.float64 if is_wide(dtype) else jnp.float32):
        labels = candidates(dtype, COUNTS)
        array = jnp.asarray(np.array(labels, jnp.dtype(dtype)))
        ones = jnp.ones(len(labels))

        def for_each_count(x, weight=None):
            return [judged(x, count, weight) for count in COUNTS]

        modes = {
            "jit": jax.jit(for_each_count)(array),
            "vmap": jax.vmap(for_each_count)(array),
            "beside a traced weight": jax.jit(lambda s: for_each_count(array, s))(ones),
            "masked": for_each_count(array, 0 * ones),
        }
        for mode, results in modes.items():
            for count, got in zip(COUNTS, results, strict=True):
                expected = [n if 0 <= n < count else -1 for n in labels]
                assert got.dtype == jnp.int32 and got.tolist() == expected, (mode, count)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_label_that_is_seen_is_judged_before_it_is_narrowed(dtype, x64):
    with precision(jnp.float64 if x64 else jnp.float32):
        for count in COUNTS:
            for label in candidates(dtype, [count]):
                given = [np.array([label], jnp.dtype(dtype)), np.array(label, jnp.dtype(dtype))]
                given += [[label], label] if is_wide(dtype) else [jnp.asarray(given[0])]
                for labels in given:
                    if 0 <= label < count:
                        assert int(np.squeeze(judged(labels, count))) == label
                    else:
                        with pytest.raises(ValueError, match=rf"labels: .*got \[{label}\]"):
                            judged(labels, count)
                    masked = judged(labels, count, jnp.zeros(np.shape(labels)))
                    assert int(np.squeeze(masked)) == (label if 0 <= label < count else -1)


def right(scores, labels):
    """The hinge in NumPy and float64."""
    scores, rows = np.float64(scores), np.arange(len(labels))
    terms = np.maximum(scores - scores[rows, labels][:, None] + 1, 0)
    terms[rows, labels] = 0
    return terms.sum(1)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("name", HINGES)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "uint32"])
def test_the_loss_of_labels_of_few_bits(dtype, name, face):
    rng = np.random.default_rng(0)
    weights, inputs = rng.normal(size=(300, 3)), rng.normal(size=(4, 3))
    rows = {"weights": weights, "inputs": inputs} if name == HINGES[0] else {}
    rows = rows or {"scores": inputs @ weights.T}
    rows = {name: jnp.asarray(x, jnp.float32) for name, x in rows.items()}
    labels = np.array([1, 2, min(299, bounds(dtype)[1]), 100])
    expected = right(inputs @ weights.T, labels)
    loss = FACES[face](mcgrad.LOSSES[name])

    def run(t, sample_weight=None):
        return loss(*rows.values(), t, sample_weight=sample_weight, reduction="none")

    t = jnp.asarray(labels, dtype)
    for got in (run(t), run(t, jnp.ones(4)), jax.jit(run)(t)):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


# A label out of range that is traced.

OPTIONS = {"exact": {"power": 1}, "smooth, squared": {"mu": jnp.float32(1.5), "power": 2}}
# (examples, classes, block_size): one tile; examples walked, with tiles that skip rows; classes.
WALKS = {"whole": (6, 5, None), "examples": (200, 5, 64), "classes": (64, 200, 50)}
KEPT = [0, 2, 3]


def problem(name, walk, **changes):
    examples, classes, block_size = WALKS[walk]
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    labels = jnp.asarray(rng.integers(0, classes, examples))
    options = {
        "margin": jnp.float32(0.5),
        "class_weight": jnp.abs(normal(classes)) + 0.5,
        "sample_weight": jnp.abs(normal(examples)) + 0.5,
    }
    if name == HINGES[0]:
        params = {"weights": normal(classes, 3), "inputs": normal(examples, 3)}
        options |= {"bias": normal(classes), "l2": jnp.float32(0.1)}
    else:
        params = {"scores": normal(examples, classes)}
    options |= changes
    fixed = {"power": options.pop("power", 1)}
    fixed |= {"block_size": block_size} if name == HINGES[0] else {}
    return params | options, labels, fixed


CASES = [
    (name, walk)
    for name, walk in itertools.product(HINGES, WALKS)
    if name == HINGES[0] or walk == "whole"
]


def gradients(name, face, fixed, reduction):
    @jax.jit
    def run(params, labels):
        loss = FACES[face](mcgrad.LOSSES[name])

        def total(params):
            return jnp.sum(loss(**params, labels=labels, **fixed, reduction=reduction))

        return jax.value_and_grad(total)(params)

    return run


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("name", "walk"), CASES)
def test_every_gradient_that_depends_on_a_bad_label_is_nan(name, walk, option):
    params, labels, fixed = problem(name, walk, **OPTIONS[option])
    shared = [p for p in ("weights", "bias", "margin", "mu", "class_weight") if p in params]
    for face, reduction in [("reverse", "none"), ("forward", "mean")]:
        run = gradients(name, face, fixed, reduction)
        _, good = run(params, labels)
        for label in (-1, 10**6):
            value, got = run(params, labels.at[1].set(label))
            assert np.isnan(value)
            for argument in shared:
                assert np.isnan(got[argument]).all(), argument
            for argument in {"inputs", "scores"} & set(params):
                own = np.asarray(got[argument])
                assert np.isnan(own[1]).all()
                np.testing.assert_allclose(own[KEPT], good[argument][np.array(KEPT)], rtol=1e-5)
            by_weight = np.asarray(got["sample_weight"])
            assert np.isnan(by_weight[1])
            assert np.isnan(by_weight[KEPT]).all() == (reduction == "mean")


@pytest.mark.parametrize("name", HINGES)
def test_the_equation_charges_no_class_for_a_bad_label(name):
    params, labels, fixed = problem(name, "whole")
    labels = labels % 4  # no example is of the last class
    _, got = gradients(name, "plain", fixed, "sum")(params, labels.at[1].set(-1))
    assert np.isnan(got["class_weight"]).any() and got["class_weight"][-1] == 0


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(("name", "walk"), CASES)
def test_an_example_of_weight_zero_may_have_any_traced_label(name, walk, face):
    params, labels, fixed = problem(name, walk)
    params["sample_weight"] = params["sample_weight"].at[1].set(0)
    run = gradients(name, face, fixed, "mean")
    value, got = run(params, labels.at[1].set(-100))
    expected, good = run(params, labels)
    assert value == expected
    np.testing.assert_allclose(got["class_weight"], good["class_weight"], rtol=1e-5)
