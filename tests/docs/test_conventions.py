"""What the pages say of other libraries.

In every row of the tables of code of docs/coming_from.md both sides are the same; and what the
pages of the losses name exists.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC

import mcgrad
from tests.conftest import precision, tolerance

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "coming_from.md").read_text()
# The losses of others are written with implicit promotion.
pytestmark = pytest.mark.implicit_promotion

EXAMPLES, CLASSES, FEATURES, HIDDEN = 7, 5, 3, 4
RNG = np.random.default_rng(0)
FLOATS = {
    "scores": RNG.normal(size=(EXAMPLES, CLASSES)),
    "class_weight": RNG.uniform(0.5, 2.0, CLASSES),
    "weights": RNG.normal(size=(CLASSES, FEATURES)),
    "bias": RNG.normal(size=CLASSES),
    "inputs": RNG.normal(size=(EXAMPLES, FEATURES)),
    "targets": RNG.normal(size=(EXAMPLES, CLASSES)),
    "W": RNG.normal(size=(HIDDEN, FEATURES)),
    "b": RNG.normal(size=HIDDEN),
    "w": RNG.normal(size=HIDDEN),
    "w1": RNG.normal(size=FEATURES),
    "signs": np.array([1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0]),
}
LABELS = np.array([0, 1, 2, 3, 4, 1, 0])


def rows(section):
    """The rows of a section's table: its two pieces of code."""
    text = re.search(rf"^## {section}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL).group(1)
    found = re.findall(r"^\| `(.+)` \| `(.+)` \|$", text, re.MULTILINE)
    assert len(found) == len(re.findall(r"^\| `", text, re.MULTILINE)) > 2
    return found


def in_jax(code):
    """Value and gradients of an expression, by the float arguments that stand in it."""
    named = {name: x for name, x in FLOATS.items() if re.search(rf"\b{name}\b", code)}
    # No loss of another library is differentiated by its labels.
    named.pop("signs", None)
    fixed = {"signs": FLOATS["signs"], "labels": LABELS, "classes": CLASSES}
    names = {"mcgrad": mcgrad, "jnp": jnp, "optax": optax}

    def expression(floats):
        return eval(code, names | fixed | floats)

    with precision(jnp.float64):
        return jax.value_and_grad(expression)(jax.tree.map(jnp.asarray, named))


def assert_same(got, expected):
    assert got[1].keys() == expected[1].keys()
    close = {"rtol": tolerance(jnp.float64, 64), "atol": tolerance(jnp.float64, 64)}
    np.testing.assert_allclose(got[0], expected[0], **close)
    for name, gradient in expected[1].items():
        np.testing.assert_allclose(got[1][name], gradient, err_msg=name, **close)


@pytest.mark.parametrize(("theirs", "ours"), rows("PyTorch"))
def test_pytorch(theirs, ours):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    got = in_jax(ours)
    tensors = {name: torch.tensor(x, requires_grad=name in got[1]) for name, x in FLOATS.items()}
    # PyTorch does not differentiate by class weights.
    tensors["class_weight"].requires_grad = False
    names = {"torch": torch, "F": torch.nn.functional, "labels": torch.tensor(LABELS)}
    value = eval(theirs, names | tensors)
    value.backward()
    gradients = {n: t.grad.numpy() for n, t in tensors.items() if t.grad is not None}
    known = {name: gradient for name, gradient in got[1].items() if name != "class_weight"}
    assert_same((got[0], known), (value.detach().numpy(), gradients))


def test_pytorch_refuses_a_label_out_of_range():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    with pytest.raises(RuntimeError, match="target out of range"):
        torch.nn.functional.multi_margin_loss(torch.zeros(1, 3), torch.tensor([7]))


def test_pytorch_has_no_slope_at_a_tie():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    scores = torch.tensor([[1.0, 0.0]], requires_grad=True)
    torch.nn.functional.multi_margin_loss(scores, torch.tensor([0])).backward()
    assert not scores.grad.any()
    x = torch.zeros(1, requires_grad=True)
    torch.relu(x).backward()
    assert x.grad.item() == 0
    ours = jax.grad(mcgrad.weston_watkins_loss)(jnp.array([[1.0, 0.0]]), jnp.array([0]))
    np.testing.assert_array_equal(ours, [[-1.0, 1.0]])
    assert jax.grad(jax.nn.relu)(0.0) == 0
    assert jax.grad(lambda x: jnp.maximum(x, 0.0))(0.0) == 0.5


@pytest.mark.parametrize(("theirs", "ours"), rows("optax"))
def test_optax(theirs, ours):
    assert_same(in_jax(ours), in_jax(theirs))


def test_the_multiclass_hinge_of_optax_is_another_loss():
    scores, labels = jnp.asarray(FLOATS["scores"]), jnp.asarray(LABELS)
    theirs = optax.losses.multiclass_hinge_loss(scores, labels)
    ours = mcgrad.weston_watkins_loss(scores, labels, reduction="none")
    assert np.all(theirs <= ours) and np.any(theirs < 0.9 * ours)
    worst = sklearn.metrics.hinge_loss(LABELS, FLOATS["scores"], labels=range(CLASSES))
    np.testing.assert_allclose(worst, jnp.mean(theirs), rtol=tolerance(jnp.float32))
    out_of_range = jnp.array([CLASSES + 2])
    assert np.isfinite(optax.losses.multiclass_hinge_loss(scores[:1], out_of_range)).all()


@pytest.mark.parametrize(("theirs", "ours"), rows("scikit-learn"))
def test_scikit_learn(theirs, ours):
    """The gradient of the objective vanishes where the estimator ends."""
    estimators = {
        "Ridge": Ridge,
        "LogisticRegression": lambda **options: LogisticRegression(tol=1e-10, **options),
        "LinearSVC": lambda **options: LinearSVC(tol=1e-10, max_iter=100_000, **options),
    }
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(40, FEATURES))
    labels = np.sign(inputs @ [1.0, -2.0, 0.5] + 0.3 + rng.normal(size=40))
    fitted = eval(theirs, estimators).fit(inputs, labels)
    names = {"mcgrad": mcgrad, "jnp": jnp, "X": inputs, "y": labels}
    params = {"w": np.atleast_2d(fitted.coef_)}
    if fitted.fit_intercept:
        params["b"] = np.atleast_1d(fitted.intercept_)
    with precision(jnp.float64):
        objective = jax.grad(lambda params: eval(ours, names | params))
        gradient = objective(jax.tree.map(jnp.asarray, params))
        start = objective(jax.tree.map(jnp.zeros_like, params))
    for name in params:
        assert np.abs(gradient[name]).max() <= 1e-5 * np.abs(start[name]).max(), name


HOMES = {
    "PyTorch": ("torch", "torch.nn", "torch.nn.functional"),
    "optax": ("optax", "optax.losses"),
    "scikit-learn": ("sklearn", "sklearn.linear_model", "sklearn.svm"),
}


def names_of_others():
    """(library, name) for every name in the tables "What others call it"."""
    row = re.compile(r"^\| ([\w-]+) \| (.+?) \| .+ \|$", re.MULTILINE)
    for page in sorted(DOCS.glob("losses/*.md")):
        for library, text in row.findall(page.read_text()):
            if library in HOMES:
                yield from ((library, name) for name in re.findall(r"`([\w.]+)", text))


@pytest.mark.parametrize(("library", "name"), [*names_of_others()])
def test_what_a_page_names_exists(library, name):
    reason = f"{library} is not installed"
    homes = [pytest.importorskip(home, reason=reason) for home in HOMES[library]]
    first, *rest = name.split(".")
    found = [getattr(home, first) for home in homes if hasattr(home, first)]
    assert found and all(hasattr(found[0], attribute) for attribute in rest)
