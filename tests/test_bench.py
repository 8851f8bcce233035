"""The bench runs, compares like with like, and judges its goals rightly. No time is asserted."""

import json
import subprocess
import sys

import pytest

from bench.cases import CASES, at_most, draw_classifier, faster, violated_share
from bench.measure import Absent, Figures
from bench.run import verdict
from tests.conftest import tolerance

LIBRARY = "mcgrad", "floor", "autodiff"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The report of a quick run of everything, and the folder with its pictures."""
    folder = tmp_path_factory.mktemp("bench")
    files = "--json", "run.json", "--plot", "run.png", "--growth", "growth.png"
    arguments = [argument if argument.startswith("--") else folder / argument for argument in files]
    command = [sys.executable, "-m", "bench", "--quick", *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads((folder / "run.json").read_text()), printed, folder


def test_every_case_is_measured(quick):
    report, printed, _ = quick
    assert [case["case"] for case in report["cases"]] == [case.name for case in CASES]
    for case in report["cases"]:
        assert case["case"] in printed
        for name, side in case["sides"].items():
            if name.startswith(LIBRARY):
                assert side["median"] > 0 and side["temporaries"] >= 0
                first, third = side["quartiles"]
                assert first <= side["median"] <= third


def test_all_sides_compute_the_same(quick):
    report, _, _ = quick
    allowed = {"float32": tolerance("float32", 64), "bf16": tolerance("bfloat16", 4)}
    for case in report["cases"]:
        compared = {name: side.get("difference") for name, side in case["sides"].items()}
        for name, difference in compared.items():
            if name.startswith("autodiff") or difference is not None:
                assert difference <= allowed[case["dtype"]], (case["case"], name)


@pytest.mark.parametrize("share", [5e-5, 6e-4])
def test_the_trained_model_violates_the_share_it_is_asked_for(share):
    drawn = draw_classifier("float32", batch=512, features=256, classes=4096, violated=share)
    assert share / 1.1 < violated_share(*drawn) < share * 1.1


def test_every_goal_is_judged(quick):
    report, printed, _ = quick
    for case, result in zip(CASES, report["cases"], strict=True):
        assert len(result["goals"]) == len(case.goals)
        for goal, judged in zip(case.goals, result["goals"], strict=True):
            absent = "reason" in result["sides"].get(goal.over, {})
            assert (judged["met"] is None) == absent
            assert judged["goal"] in printed


def test_the_pictures_are_drawn_and_growth_has_both_axes(quick):
    report, _, folder = quick
    for name in ("run.png", "growth.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    axes = {(point["loss"], point["axis"]) for point in report["growth"]}
    losses = {loss for loss, _ in axes}
    assert len(losses) == 5 and len(axes) == 10


def test_an_unknown_case_is_refused():
    command = [sys.executable, "-m", "bench", "no-such-case"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode != 0 and "no case 'no-such-case'; there are hinge-dense" in run.stderr


def _figures(median, temporaries=0):
    return Figures(median, (median, median), 5, None, temporaries, None, "")


def test_a_goal_is_met_or_missed():
    sides = {
        "mcgrad": _figures(1.0, 99),
        "floor": _figures(0.8),
        "autodiff (a)": _figures(2.0, 199),
        "autodiff (b)": _figures(4.0, 999),
        "PyTorch": Absent("not here"),
    }
    # Within 1.3 of the floor, not within 1.2; the fastest autodiff counts, at twice the time.
    assert verdict(at_most(1.3, "floor"), sides)[1:] == (1.25, True)
    assert verdict(at_most(1.2, "floor"), sides)[1:] == (1.25, False)
    assert verdict(faster(2.0, "autodiff"), sides)[1:] == (2.0, True)
    assert verdict(faster(2.1, "autodiff"), sides)[1:] == (2.0, False)
    assert verdict(faster(4.0, "autodiff (b)"), sides)[1:] == (4.0, True)
    # Temporaries of the fastest autodiff, not of the slower one.
    assert verdict(at_most(0.5, "autodiff", figure="temporaries"), sides)[1:] == (0.5, True)
    assert verdict(faster(2.5, "PyTorch"), sides)[1:] == (None, None)
    # Without another side, the figure itself.
    assert verdict(at_most(0.1, None), sides)[1:] == (1.0, False)
    assert verdict(at_most(1 << 10, None, figure="temporaries"), sides)[2]
