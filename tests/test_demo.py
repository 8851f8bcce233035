"""`mcgrad demo`: what it prints, draws and refuses."""

import re
import runpy
import sys

import matplotlib.image
import numpy as np
import pytest
from rich.progress import Progress

import mcgrad
from mcgrad import demo
from mcgrad.cli import main

pytestmark = pytest.mark.implicit_promotion


@pytest.fixture
def blocked(tmp_path):
    """A directory that even root cannot make: its parent is a regular file."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "out"


def train(schedule, steps):
    with Progress(disable=True) as progress:
        return demo._train(demo._digits(0)[0], "hinge", schedule, steps, progress)


def test_a_run_prints_both_tables_and_draws_the_picture(tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path / "new" / "out"), "--steps", "300"]) == 0
    printed = capsys.readouterr().out
    assert "wrong" not in printed
    errors = {row[0]: row[1:] for row in re.findall(r"│ (\w+) +│ +([^ ]*) │ +([^ ]*) │", printed)}
    floats = "weights inputs bias margin l2 class_weight sample_weight mu".split()
    assert list(errors) == floats
    assert errors["mu"][0] == "" and float(errors["mu"][1]) <= demo.TOLERANCE
    accuracies = re.findall(r"│ +(\d+\.\d)% │ +(\d+\.\d)% │", printed)
    assert len(accuracies) == 3
    (*_, exact), (*_, smooth), (*_, peer) = np.array(accuracies, float)
    assert min(exact, smooth) > peer - 1.5  # Percent of 450 digits: seven digits.
    height, width, _ = matplotlib.image.imread(tmp_path / "new" / "out" / "demo.png").shape
    assert (width, height) == (1800, 720)


@pytest.mark.parametrize("factor", [1.001, np.nan])
def test_a_gradient_that_differs_is_named_and_fails(factor, tmp_path, capsys, monkeypatch):
    def differing(loss):
        return lambda *, margin, **rest: loss(margin=margin, **rest) * factor

    monkeypatch.setattr(mcgrad, "plain", differing)
    assert main(["demo", "--output", str(tmp_path), "--steps", "1"]) == 1
    assert re.search(r"margin +│ .* wrong", capsys.readouterr().out)


def test_the_split_is_stratified_and_follows_the_seed():
    training, test = demo._digits(3)
    assert (len(training.labels), len(test.labels)) == (1347, 450)
    counts = [np.bincount(part.labels, minlength=10) for part in (training, test)]
    np.testing.assert_allclose(counts[0] / 1347, counts[1] / 450, atol=1 / 450)
    both = np.concatenate([training.inputs, test.inputs])
    assert len(np.unique(both, axis=0)) == 1797
    np.testing.assert_array_equal(demo._digits(3)[1].inputs, test.inputs)
    assert (demo._digits(4)[1].inputs != test.inputs).any()


def test_the_annealed_run_compiles_once_and_meets_the_exact_one(monkeypatch):
    traced = []
    loss = mcgrad.linear_weston_watkins_loss
    monkeypatch.setattr(
        mcgrad,
        "linear_weston_watkins_loss",
        lambda *args, **kwargs: traced.append(kwargs["mu"]) or loss(*args, **kwargs),
    )
    steps = 300
    sharpness = demo._sharpness(steps)
    np.testing.assert_allclose([sharpness(0), sharpness(steps - 1)], demo.SHARPNESS, rtol=1e-5)
    smooth = train(sharpness, steps)
    assert len(traced) == 2  # The gradient, and the exact loss beside it.
    exact = train(None, steps)
    assert smooth.losses[0] == exact.losses[0] == pytest.approx(9)  # Nine margins of 1.
    assert exact.losses[-1] < 0.3
    assert smooth.losses[-1] == pytest.approx(exact.losses[-1], rel=0.02)
    assert (smooth.losses != exact.losses).any()


def refused(argv, capsys):
    """The one line on stderr with which `mcgrad ARGV` refuses, exit code 2."""
    assert main(argv) == 2
    out, line = capsys.readouterr()
    assert (out, line.count("\n")) == ("", 1)
    return line


def test_an_unwritable_output_is_refused_before_anything_else(
    blocked, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(demo, "_digits", lambda seed: pytest.fail("it had begun"))
    assert "Not a directory" in refused(["demo", "--output", str(blocked)], capsys)
    (tmp_path / "demo.png").mkdir()
    line = refused(["demo", "--output", str(tmp_path)], capsys)
    assert f"cannot write to {tmp_path}" in line


def test_a_refusal_leaves_an_older_picture_alone(tmp_path):
    (tmp_path / "demo.png").write_text("older")
    assert demo._writable(tmp_path / "demo.png").read_text() == "older"
    assert not demo._writable(tmp_path / "other.png").exists()


@pytest.mark.parametrize("missing", ["matplotlib", "rich", "sklearn"])
def test_without_the_extras_it_says_what_installs_them(missing, capsys, monkeypatch):
    monkeypatch.delattr(mcgrad, "demo")
    monkeypatch.delitem(sys.modules, "mcgrad.demo")
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    line = refused(["demo"], capsys)
    assert missing in line and 'pip install "mcgrad[demo]"' in line


@pytest.mark.parametrize("given", [["--steps", "0"], ["--seed", "-1"], ["--steps", "many"]])
def test_numbers_out_of_range_are_refused(given, capsys):
    assert main(["demo", *given]) == 2
    assert f"argument {given[0]}: invalid whole number" in capsys.readouterr().err


def test_the_module_is_the_command(blocked, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mcgrad", "demo", "--output", str(blocked)])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("mcgrad", run_name="__main__")
    assert "cannot write" in capsys.readouterr().err
