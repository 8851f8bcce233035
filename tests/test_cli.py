"""`mcgrad check`: what it prints, and its exit codes."""

import dataclasses
import functools
import inspect
import json
import os
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
import os, sys
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

def two(x, y):
    return jnp.sum(x) * y

def counted(x):
    return jnp.sum(x).astype(int)

def loud(x):
    print("from Python")
    jax.debug.print("from a compiled program")
    os.write(1, b"from C")
    return jnp.sum(x**2)

def leaves(x):
    sys.exit(0)

def stopped(x):
    raise KeyboardInterrupt

def order_matters(x, *, scale, seed=0):
    return scale * jnp.sum(x**2)

def seeded(seed):
    return jnp.sum(seed**2)

@jax.custom_vjp
def partly(s, t):
    return -jnp.sum(jax.nn.log_softmax(s)[jnp.arange(len(t)), t])

def partly_backward(residuals, ct):
    s, t = residuals
    slope = jax.nn.softmax(s) - jax.nn.one_hot(t, s.shape[1], dtype=s.dtype)
    return ct * jnp.where(t[:, None] < 2, slope, 0), None

partly.defvjp(lambda s, t: (partly(s, t), (s, t)), partly_backward)

def noisy(x, key):
    # Drawn in a dtype of its own: in float64 a key gives other real numbers than in float32.
    return jnp.sum(x**2 * jax.random.randint(key, x.shape, 1, 9, jnp.int32))
"""

OTHERS = {
    "leaves0.py": "import sys; sys.exit(0)",
    "leaves3.py": "import sys; sys.exit('bye')",
    "raises.py": "raise RuntimeError('two\\nlines')",
    "syntax.py": "def f(:",
    "json.py": "def f(x): return x",
    "needs.py": "import nowhere_at_all",
}


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "some_functions.py").write_text(MODULE)
    for name, text in OTHERS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "part.py").write_text("from . import helper\nf = helper.f")
    (tmp_path / "package" / "helper.py").write_text("def f(x): return (x**2).sum()")
    (tmp_path / "broken.npz").write_bytes(b"PK\003\004broken")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "folder.npz").mkdir()
    with open(tmp_path / "renamed.npz", "wb") as file:
        np.save(file, np.ones(3))
    np.savez(tmp_path / "words.npz", x=np.array(["a"]))
    np.savez(tmp_path / "objects.npz", x=np.array([None]))
    np.savez(tmp_path / "nothing.npz")
    np.savez(tmp_path / "gap.npz", arr_0=np.ones(3), arr_2=np.ones(3))
    np.savez(tmp_path / "stranger.npz", arr_0=np.ones(3, np.float32), z=np.ones(3))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield "some_functions"
    for name in [*(name.removesuffix(".py") for name in OTHERS), "some_functions"]:
        if str(tmp_path) in str(getattr(sys.modules.get(name), "__file__", "")):
            del sys.modules[name]
    for name in ("package", "package.part", "package.helper"):
        sys.modules.pop(name, None)


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
    for row in result["gradients"]:
        assert (row["loss"], row["ok"]) == ("weston_watkins_loss", True)
        assert row["variant"] in ("exact", "smooth")
        assert row["autodiff"] < 1e-12 and row["differences"] < 1e-7 and row["own_dtype"] < 1e-5
    assert [report["ok"] for report in result["reports"]] == [True, True]


@pytest.mark.parametrize("which", ["margin", "scores"])
def test_a_wrong_gradient_exits_with_one(which, capsys, monkeypatch):
    """Off by 0.1% in one argument."""
    true = mcgrad.weston_watkins_loss
    rule = true.rule

    def backward(residuals, ct, **options):
        right = rule.backward(residuals, ct, **options)
        place = rule.argnames.index(which)
        return tuple(1.001 * g if i == place else g for i, g in enumerate(right))

    changed = dataclasses.replace(rule, backward=backward)

    @functools.wraps(true, updated=())
    def wrong(*args, **kwargs):
        bound = inspect.signature(true).bind(*args, **kwargs)
        bound.apply_defaults()
        return changed(*bound.arguments.values())

    wrong = mcgrad.losses.weston_watkins.public(changed, true.example_args)(wrong)
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
        (["{}:right", "--args", "f32[3]", "--reference", "{}:two"], "{}:two"),
        (["{}:right", "--args", "f32[3]", "--reference", "{}:broken"], "{}:broken raised"),
        (["{}:right", "--args", "f32[3]", "--reference", "{}:counted"], "{}:counted raised"),
        (["{}:right", "--args", "f32[3]", "--reference", "leaves0:f"], "leaves0:f"),
        (["{}:right", "--args", "f32[3]", "--reference", ""], "MODULE:FUNCTION"),
        (["{}:leaves", "--args", "f32[3]"], "{}:leaves raised SystemExit"),
        (["{}:two", "--args", "f32[3]"], "{}:two does not take these arguments"),
        (["{}:right", "--args", "f32[3],f32[3]"], "{}:right does not take these arguments"),
        (["{}:right", "--args", "stranger.npz"], "'z'"),
        (["leaves0:f", "--args", "f32[3]"], "leaves0:f: the module exits"),
        (["leaves3:f", "--args", "f32[3]"], "leaves3:f: the module exits"),
        (["raises:f", "--args", "f32[3]"], "RuntimeError: two"),
        (["syntax:f", "--args", "f32[3]"], "syntax.py, line 1"),
        (["needs:f", "--args", "f32[3]"], "nowhere_at_all"),
        (["./json.py:f", "--args", "f32[3]"], "another module is called json"),
        (["absent.py:f", "--args", "f32[3]"], "no Python file absent.py"),
        (["./absent:f", "--args", "f32[3]"], "no Python file ./absent"),
        ([":f", "--args", "f32[3]"], "MODULE:FUNCTION"),
        (["{}:", "--args", "f32[3]"], "MODULE:FUNCTION"),
        (["{}:right", "--args", ""], "--args"),
        (["{}:right", "--args", "broken.npz"], "broken.npz: not a readable"),
        (["{}:right", "--args", "empty.npz"], "empty.npz: not a readable"),
        (["{}:right", "--args", "renamed.npz"], "single array"),
        (["{}:right", "--args", "folder.npz"], "folder.npz: Is a directory"),
        (["{}:right", "--args", "words.npz"], "'x' is of dtype <U1"),
        (["{}:right", "--args", "objects.npz"], "objects.npz"),
        (["{}:right", "--args", "nothing.npz"], "no array"),
        (["{}:right", "--args", "gap.npz"], "arr_1 is missing"),
        (["{}:right", "--args", "f32[1000000,1000000]"], "at most 100,000,000"),
        (["{}:right", "--args", "f32[99999999999999999999999]"], "at most 100,000,000"),
        (["{}:right", "--args", "f32[-3]"], "f32[-3]"),
        (["{}:right", "--args", "f32[3,,4]"], "f32[3,,4]"),
        (["{}:right", "--args", "f32[3],"], "''"),
        (["{}:right", "--args", "f31[3]"], "'f31'"),
        (["{}:right", "--args", "f32[3],i32[3]:5..2"], "i32[3]:5..2"),
        (["{}:right", "--args", "f32[3],i8[3]:0..300"], "within i8"),
        (["{}:right", "--args", "f32[3],u8[3]:-1..3"], "within u8"),
        (["{}:right", "--args", "f32[3],i8[3]:0.5..3"], "whole numbers"),
        (["{}:right", "--args", "f32[3],bool[3]:0..1"], "bool takes no range"),
        (["{}:right", "--args", "f32[3]", "--seed", "99999999999"], "whole number"),
        (["{}:right", "--args", "f32[3]", "--order", "3"], "--order"),
    ],
)
def test_misuse_is_one_line_and_exit_code_two(argv, says, module, capsys):
    code, out, err = run(capsys, *[word.format(module) for word in argv])
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert says.format(module) in err


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("f32[6,10],i32[999]", 0, 9),
        ("i32[999],f32[6,3]", 0, 2),
        ("f32[6,1000],u8[9999]", 0, 255),
        ("f32[],i64[999]", 0, 9),
        ("f32[2,2],i8[999]:-3..4", -3, 4),
        ("u64[9]:18446744073709551615..18446744073709551615", 2**64 - 1, 2**64 - 1),
    ],
)
def test_the_range_of_integers(text, low, high):
    given = next(x for x in audit.arguments(text, seed=0) if x.value.dtype.kind in "iu")
    assert (given.value.min(), given.value.max()) == (low, high)
    assert given.origin == f"drawn from {low} to {high}"


def test_real_numbers_of_a_range():
    (given,) = audit.arguments("f32[999]:0.5..2", seed=0)
    assert 0.5 <= given.value.min() < 0.6 and 1.9 < given.value.max() <= 2


def test_labels_reach_all_classes_and_the_report_says_so(module, capsys):
    argv = [f"{module}:partly", "--args", "f32[6,10],i32[6]"]
    code, out, _ = run(capsys, *argv)
    assert code == 1 and "int32[6], drawn from 0 to 9" in out
    code, out, _ = run(capsys, *argv, "--json")
    label = json.loads(out)["arguments"][1]
    assert code == 1 and label["origin"] == "drawn from 0 to 9"


def test_a_key_is_an_argument(module, capsys):
    assert run(capsys, f"{module}:noisy", "--args", "f32[3],key")[0] == 0


@pytest.mark.parametrize(
    "name", ["some_functions.py:right", "./some_functions.py:right", "{}/some_functions.py:right",
             "package/part.py:f", "package.part:f"],
)  # fmt: skip
def test_a_function_by_its_file(name, module, tmp_path, capsys):
    assert run(capsys, name.format(tmp_path), "--args", "f32[3]")[0] == 0


def test_names_in_a_file_are_keywords_and_positions_are_in_order(module, capsys):
    x, t = np.ones((3, 9), np.float32), np.array([1, 8, 4])
    for names in ({"t": t, "x": x}, {"arr_1": t, "arr_0": x}, {"t": t, "arr_0": x}):
        np.savez("given.npz", **names)
        assert run(capsys, f"{module}:labelled", "--args", "given.npz")[0] == 0
    np.savez("given.npz", arr_0=x, scale=np.float32(2))
    assert run(capsys, f"{module}:order_matters", "--args", "given.npz")[0] == 0
    np.savez("given.npz", seed=x)
    assert run(capsys, f"{module}:seeded", "--args", "given.npz")[0] == 0
    np.savez("given.npz", arr_0=x, scale=np.float32(2), seed=x)
    code, _, err = run(capsys, f"{module}:order_matters", "--args", "given.npz")
    assert code == 2 and "'seed'" in err


def test_json_stays_json_when_the_function_prints(module, capfd):
    code, out, err = run(capfd, f"{module}:loud", "--args", "f32[3]", "--json")
    assert code == 0 and json.loads(out)["ok"] is True
    assert all(f"from {who}" in err for who in ("Python", "a compiled program", "C"))


def test_an_interruption_is_130_and_no_traceback(module, capsys):
    code, out, err = run(capsys, f"{module}:stopped", "--args", "f32[3]")
    assert (code, out, err) == (130, "", "mcgrad: interrupted\n")


def test_a_reader_who_leaves_changes_no_verdict(module, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["check", f"{module}:wrong", "--args", "f32[3]"]) == 1
        assert main(["check", f"{module}:right", "--args", "f32[3]"]) == 0


def test_specifications():
    arrays = [x.value for x in audit.arguments("f32[3,4], i32[3],bf16,f32[],bool[2]", seed=0)]
    assert [(x.dtype.name, x.shape) for x in arrays] == [
        ("float32", (3, 4)), ("int32", (3,)), ("bfloat16", ()), ("float32", ()), ("bool", (2,)),
    ]  # fmt: skip
    again = [x.value for x in audit.arguments("f32[3,4], i32[3],bf16,f32[],bool[2]", seed=0)]
    assert all(map(np.array_equal, arrays, again))


@pytest.mark.parametrize("name", mcgrad.LOSSES)
def test_no_loss_has_a_finding_at_order_two(name):
    """Every check, second derivatives included, on the custom_vjp face and on the other."""
    loss = mcgrad.LOSSES[name]
    args, options = loss.example_args(jax.random.key(1), (3,), jnp.float32, smooth=True)
    for face in (loss, mcgrad.forward_mode(loss)):
        mcgrad.check_gradients(face, *args, order=2, **options).raise_for_findings()
