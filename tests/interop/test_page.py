"""docs/interop.md: its table and the tests, its errors, its recipes."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcgrad
from tests.interop.problems import relative_error

pytestmark = pytest.mark.interop
TESTS = Path(__file__).parent.parent
PAGE = (TESTS.parent / "docs" / "interop.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in re.findall(r"^\|.* \| `test_\w+` \|$", PAGE, re.MULTILINE)
]


def sources(paths):
    """name -> text of every test in these files, with its decorators."""
    return {
        node.name: ast.unparse(node)
        for path in paths
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


HERE = sources(set(Path(__file__).parent.glob("test_*.py")) - {Path(__file__)})


def test_the_table_and_the_tests_name_each_other():
    assert len(ROWS) == len(re.findall(r"^\|", PAGE, re.MULTILINE)) - 2  # Without its heading.
    named = [row[-1].strip("`") for row in ROWS]
    assert len(set(named)) == len(named)
    assert HERE.keys() <= set(named) <= sources(TESTS.rglob("test_*.py")).keys()


def test_where_the_table_says_forward_mode_the_test_needs_it():
    """And where it does not, the test does without."""
    for *_, use, test in ROWS:
        source = HERE.get(test.strip("`"))
        if source is not None:
            assert ("forward_mode" in use) == ("mcgrad.forward_mode" in source), test


def test_the_errors_are_those_of_jax():
    loss, x = mcgrad.squared_relu_norm, jnp.array([1.0, -2.0])
    calls = [
        lambda: jax.jvp(loss, (x,), (x,)),
        lambda: jax.jacfwd(loss)(x),
        lambda: jax.linearize(loss, x)[1](x),
        lambda: jax.grad(lambda y: jax.jvp(loss, (y,), (x,))[1])(x),
    ]
    met = set()
    for call in calls:
        with pytest.raises((TypeError, NotImplementedError)) as error:
            call()
        met.add(f"    {error.type.__name__}: {error.value}\n")
    assert met == set(re.findall(r"^    \w+Error: .*\n", PAGE, re.MULTILINE))


# What is left when a recipe has run.


def scores(names):
    return names["inputs"] @ names["weights"].T


def equinox_scores(names):
    model = names["model"]
    return jax.vmap(lambda x: model.head(jnp.tanh(model.trunk(x))))(names["inputs"])


def nnx_scores(names):
    model = names["model"]
    return model.head(jnp.tanh(model.trunk(names["inputs"])))


def squared_hinge_is_flat(names):
    def equation(weights):
        s = names["inputs"] @ weights.T
        own = jnp.take_along_axis(s, names["labels"][:, None], 1)
        hinge = jnp.sum(jnp.maximum(s - own + 1, 0) ** 2, 1) - 1
        return jnp.mean(hinge) + 0.01 * jnp.sum(weights**2)

    assert np.linalg.norm(jax.grad(equation)(names["weights"])) < 1e-3


def is_the_fit(names):
    fit = np.linalg.lstsq(names["inputs"], np.eye(3)[names["labels"]])[0].T
    assert relative_error(names["weights"], fit) < 1e-4


RECIPES = {
    "optax": [(scores,)],
    "optax, L-BFGS": [(scores, squared_hinge_is_flat)],
    "optimistix": [(scores, squared_hinge_is_flat), (scores, is_the_fit)],
    "equinox, the head fused with the loss": [(equinox_scores,)],
    "flax.nnx, the head fused with the loss": [(nnx_scores,)],
}


@pytest.mark.implicit_promotion
def test_the_recipes():
    """Each classifies nearly as well as the nearest centre, which is the best rule there is."""
    blocks = {
        part.splitlines()[0]: re.findall(r"```python\n(.*?)```", part, re.DOTALL)
        for part in re.split(r"^#+ ", PAGE, flags=re.MULTILINE)[1:]
    }
    names = {}
    for code in blocks.pop("What the error looks like") + blocks.pop("Recipes"):
        exec(code, names)
    assert {name: len(codes) for name, codes in blocks.items() if codes} == {
        name: len(checks) for name, checks in RECIPES.items()
    }
    distances = np.linalg.norm(names["inputs"][:, None] - names["centres"], axis=2)
    best = np.mean(np.argmin(distances, 1) == names["labels"])
    for name, checks in RECIPES.items():
        for code, (scores, *others) in zip(blocks[name], checks, strict=True):
            exec(code, names)
            right = np.mean(np.argmax(scores(names), 1) == names["labels"])
            assert right > best - 0.05, name
            for check in others:
                check(names)
