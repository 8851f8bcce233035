"""Several processes train what one trains, end together when one of them dies, and go on later."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

pytestmark = pytest.mark.distributed

STEPS, EVERY = 240, 40
HANGS = 150  # Seconds. What is told of below ends by itself, long before.


def bench(folder, *options):
    command = [sys.executable, "-m", "bench", "distributed", "--folder", folder]
    command += [f"--steps={STEPS}", f"--every={EVERY}", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANGS)


def result(folder, split):
    with np.load(folder / split / "result.npz") as file:
        return dict(file)


def checkpoints(folder, split):
    names = (path.name for path in (folder / split / "checkpoints").iterdir())
    return sorted(int(name) for name in names if name.isdecimal())


def processes_of(folder):
    """Those that still run, of all that were started with this folder."""
    commands = Path("/proc").glob("[0-9]*/cmdline")
    return [path for path in commands if str(folder).encode() in path.read_bytes()]


@pytest.fixture(scope="module")
def expected():
    """The training in NumPy and float64: what is exact in float32 is the same here."""
    pixels, labels = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(labels))[:1440]
    inputs, labels = pixels[rows] / 16, labels[rows]
    weights, bias = np.zeros((10, 64)), np.zeros(10)
    for step in range(STEPS):
        batch = np.random.default_rng((0, step + 1)).choice(1440, 256, replace=False)
        x, true = inputs[batch], np.eye(10)[labels[batch]]
        scores = x @ weights.T + bias
        violated = (scores - np.sum(scores * true, 1, keepdims=True) + 1 >= 0) & (true == 0)
        h = violated - np.sum(violated, 1, keepdims=True) * true
        rate = 0.5 / 2 ** (3 * step // STEPS)
        weights -= rate * h.T @ x / 256
        bias -= rate * h.sum(0) / 256
    scores = inputs @ weights.T + bias
    margins = scores - scores[np.arange(1440), labels][:, None] + 1
    return weights, bias, np.maximum(margins, 0).sum(1).mean() - 1


def assert_trained(found, expected):
    weights, bias, loss = expected
    np.testing.assert_array_equal(found["weights"], weights)
    np.testing.assert_array_equal(found["bias"], bias)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["accuracy"] > 0.95


def test_two_processes_train_what_one_trains(tmp_path, expected):
    run = bench(tmp_path)
    assert run.returncode == 0, run.stderr
    for split, processes in {"data": 2, "model": 2, "none": 1}.items():
        found = result(tmp_path, split)
        assert_trained(found, expected)
        assert found["start"] == 0
        assert f"│ {split:<5} │ {processes:9} │" in run.stdout
        assert len(list((tmp_path / split).glob("process-*.log"))) == processes
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("split, victim, later", [("model", 1, 2), ("data", 0, 1)])
def test_when_one_dies_all_end_and_training_goes_on_later(split, victim, later, tmp_path, expected):
    """Process 0 is the one to which all others report; later there may be fewer processes."""
    run = bench(tmp_path, f"--split={split}", "--kill=130", f"--victim={victim}")
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1 and run.stdout == ""
    assert f"split {split}: process {victim} was ended by SIGKILL, process " in run.stderr
    assert processes_of(tmp_path) == []
    assert not (tmp_path / split / "result.npz").exists()
    last = checkpoints(tmp_path, split)[-1]
    assert last in (80, 120)

    run = bench(tmp_path, f"--split={split}", f"--processes={later}")
    assert run.returncode == 0, run.stderr
    found = result(tmp_path, split)
    assert found["start"] == last
    assert_trained(found, expected)
    assert checkpoints(tmp_path, split) == [STEPS - EVERY, STEPS]


def test_when_one_no_longer_answers_all_end(tmp_path):
    run = bench(tmp_path, "--split=data", "--freeze=60")
    assert run.returncode == 1
    assert "split data: process 0 was ended by SIGABRT, process 1 was ended by SIG" in run.stderr
    assert processes_of(tmp_path) == []


def test_a_training_that_takes_too_long_is_ended(tmp_path):
    run = bench(tmp_path, "--split=data", "--limit=1")
    assert run.returncode == 1 and "not done after 1 s" in run.stderr
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize(
    "options, told",
    [
        (["--split=model", "--processes=4"], "4 do not divide 10 classes"),
        (["--processes=3"], "3 do not divide 256 examples"),
        (["--every=0"], "--every: expected 1 or more, got 0"),
    ],
)
def test_what_cannot_be_is_refused(options, told, tmp_path):
    run = bench(tmp_path, *options)
    assert run.returncode == 2 and told in run.stderr
