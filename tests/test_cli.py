"""`mcgrad check`: what it prints, and its exit codes."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcgrad
from mcgrad import audit
from mcgrad.cli import main

pytestmark = pytest.mark.implicit_promotion

MODULE = """
import jax, jax.numpy as jnp

def right(x):
    return jnp.sum(x**2)

@jax.custom_vjp
def wrong(x):
    return right(x)

wrong.defvjp(lambda x: (right(x), x), lambda x, ct: (ct * x,))

def labelled(x, t):
    return jnp.sum(x[jnp.arange(3), t] ** 2)

def broken(x):
    raise RuntimeError("out of order")

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "some_functions.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield "some_functions"
    sys.modules.pop("some_functions", None)


def run(capsys, *argv):
    code = main(["check", *argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_one_loss_as_a_table(capsys):
    code, out, _ = run(capsys, "squared_relu_norm")
    assert code == 0
    lines = [line.split() for line in out.splitlines() if line.startswith("squared_relu_norm")]
    assert [line[1:3] for line in lines] == [["exact", "x"], ["smooth", "x"], ["smooth", "mu"]]
    assert "0 findings" in out


def test_as_json(capsys):
    code, out, err = run(capsys, "weston_watkins_loss", "--json", "--seed", "3")
    result = json.loads(out)
    assert code == 0 and result["ok"] is True
    assert {row["argument"] for row in result["gradients"]} == {
        "scores", "margin", "class_weight", "sample_weight", "mu",
    }  # fmt: skip
    assert all(row["autodiff"] < 1e-5 and row["differences"] < 1e-7 for row in result["gradients"])
    assert [report["ok"] for report in result["reports"]] == [True, True]


@pytest.mark.parametrize("which", ["margin", "scores"])
def test_a_wrong_gradient_exits_with_one(which, capsys, monkeypatch):
    """Off by 0.1% in one argument."""
    true = mcgrad.weston_watkins_loss
    rule = true.rule

    def backward(residuals, ct, *, power, reduction):
        right = rule.backward(residuals, ct, power=power, reduction=reduction)
        place = rule.argnames.index(which)
        return tuple(1.001 * g if i == place else g for i, g in enumerate(right))

    changed = dataclasses.replace(rule, backward=backward)
    wrong = mcgrad.losses.weston_watkins.public(changed, true.draw)(true.prepare)
    monkeypatch.setitem(mcgrad.LOSSES, "weston_watkins_loss", wrong)
    code, out, _ = run(capsys, "weston_watkins_loss")
    marked = {line.split()[2] for line in out.splitlines() if line.endswith("WRONG")}
    assert code == 1 and marked == {which}
    assert "factor" in out


def test_a_name_that_does_not_exist_lists_those_that_do(capsys):
    code, out, err = run(capsys, "squared_relu")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "'squared_relu'" in err and all(name in err for name in mcgrad.LOSSES)


def test_a_function_of_ones_own(module, capsys):
    assert run(capsys, f"{module}:right", "--args", "f32[3]")[0] == 0
    code, out, _ = run(capsys, f"{module}:wrong", "--args", "f32[3]")
    assert code == 1 and "factor 1/2" in out
    code, out, _ = run(capsys, f"{module}:wrong", "--args", "f32[3]", "--json",
                       "--reference", f"{module}:right")  # fmt: skip
    checks = {finding["check"] for finding in json.loads(out)["findings"]}
    assert code == 1 and {"reference", "differences"} <= checks
    assert run(capsys, f"{module}:labelled", "--args", "f32[3,2],i32[3]")[0] == 0


def test_arguments_of_a_file(module, tmp_path, capsys):
    np.savez(tmp_path / "given.npz", x=np.ones((3, 9), np.float32), t=np.array([1, 8, 4]))
    assert run(capsys, f"{module}:labelled", "--args", "given.npz")[0] == 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["{}:right"], "--args"),
        (["{}:missing", "--args", "f32[3]"], "missing"),
        (["nowhere:right", "--args", "f32[3]"], "nowhere"),
        (["{}:number", "--args", "f32[3]"], "expected a function; got int"),
        (["{}:right", "--args", "f32[3"], "f32[3"),
        (["{}:right", "--args", "c64[3]"], "bf16"),
        (["{}:right", "--args", "none.npz"], "none.npz"),
        (["{}:right", "--args", "i32[3]"], "differentiate"),
        (["{}:broken", "--args", "f32[3]"], "RuntimeError: out of order"),
        (["{}:right", "{}:wrong", "--args", "f32[3]"], "one function"),
        (["squared_relu_norm", "--args", "f32[3]"], "PACKAGE.MODULE:FUNCTION"),
        (["{}:right", "--args", "f32[3]", "--reference", "{}:missing"], "missing"),
    ],
)
def test_misuse_is_one_line_and_exit_code_two(argv, says, module, capsys):
    code, out, err = run(capsys, *[word.format(module) for word in argv])
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert says in err


def test_specifications():
    arrays = audit.arguments("f32[3,4], i32[3],bf16,f32[],bool[2]", seed=0)
    assert [(x.dtype.name, x.shape) for x in arrays] == [
        ("float32", (3, 4)), ("int32", (3,)), ("bfloat16", ()), ("float32", ()), ("bool", (2,)),
    ]  # fmt: skip
    again = audit.arguments("f32[3,4], i32[3],bf16,f32[],bool[2]", seed=0)
    assert all(map(np.array_equal, arrays, again))


@pytest.mark.parametrize("name", mcgrad.LOSSES)
def test_no_loss_has_a_finding_at_order_two(name):
    """Every check, second derivatives included, on the custom_vjp face and on the other."""
    loss = mcgrad.LOSSES[name]
    args, options = loss.draw(jax.random.key(1), (3,), jnp.float32, smooth=True)
    for face in (loss, mcgrad.forward_mode(loss)):
        mcgrad.check_gradients(face, *args, order=2, **options).raise_for_findings()
