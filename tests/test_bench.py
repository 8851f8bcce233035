"""The bench runs, compares like with like, and judges its goals rightly. No time is asserted."""

import json
import subprocess
import sys

import pytest

from bench import __main__ as bench
from bench import records
from bench.cases import CASES, at_most, draw_classifier, faster, violated_share
from bench.records import Absent, Figures, Point, Result, Run, Verdict
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
                assert side["median"] > 0
                # Outside jit there is no program whose temporaries could be read.
                assert (side["temporaries"] is None) == case["case"].startswith("hinge-eager")
                first, third = side["quartiles"]
                assert first <= side["median"] <= third


def test_a_first_call_is_a_compilation(quick):
    """Its time is that of tracing and compiling: a call of what is compiled takes far less."""
    report, _, _ = quick
    sides = {case["case"]: case["sides"] for case in report["cases"]}
    names = [name for name in sides if name.startswith("hinge-first-call")]
    for name in names:
        for side in sides[name].values():
            assert side["median"] > 10 * sides["hinge-dense"]["mcgrad"]["median"]
            assert side["temporaries"] > 0 and side["compile_seconds"] > 0
    assert len(names) == 3


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
    assert share / 1.1 < violated_share(*drawn)["violated"] < share * 1.1


def test_every_goal_is_judged(quick):
    report, printed, _ = quick
    for case, result in zip(CASES, report["cases"], strict=True):
        assert len(result["goals"]) == len(case.goals)
        for goal, judged in zip(case.goals, result["goals"], strict=True):
            absent = "reason" in result["sides"].get(goal.over, {})
            assert (judged["met"] is None) == absent
            assert judged["goal"] == goal._asdict()
            assert goal.words in printed


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
    # What may be added to the ratio is stated in bytes.
    assert not verdict(at_most(0.25, "autodiff", figure="temporaries"), sides).met
    assert not verdict(at_most(0.25, "autodiff", figure="temporaries", allowance=49), sides).met
    assert verdict(at_most(0.25, "autodiff", figure="temporaries", allowance=50), sides).met


@pytest.mark.parametrize(
    ("goal", "words", "measured", "shown"),
    [
        (at_most(1.15, "floor"), "time at most 1.15 of floor", 0.05, "1/20"),
        (faster(100, "autodiff"), "at least 100 times as fast as autodiff", 93.256, "93.26"),
        (at_most(0.1, None), "time at most 100 ms", 0.02, "20 ms"),
        (
            at_most(2 << 30, None, figure="temporaries"),
            "temporaries at most 2 GiB",
            512.0,
            "512 B",
        ),
        (
            at_most(1 / 60, "autodiff", figure="temporaries", side="forward_mode", allowance=1024),
            "forward_mode: temporaries at most 1/60 of autodiff plus 1 KiB",
            None,
            "",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_goal_in_words(goal, words, measured, shown):
    assert goal.words == words and goal.shown(measured) == shown


MACHINE = {
    "date": "2026-11-24",
    "platform": "cpu",
    "device": "cpu",
    "cpu": "One",
    "cores": 2,
    "python": "3.11.7",
    "versions": {"jax": "0.10.2", "torch": None},
}


def _run(machine, **cases):
    """A run of cases given by the medians of mcgrad, autodiff and the floor."""
    results = [
        Result(
            name,
            {"batch": 8},
            "float32",
            {},
            {
                "mcgrad": _figures(own, 1 << 20),
                "autodiff (a)": _figures(autodiff, 1 << 24),
                "autodiff (b)": _figures(9.0, 1 << 24),
                "floor": _figures(floor),
                "PyTorch": Absent("not here"),
            },
            [Verdict(at_most(1.0, "floor"), own / floor, own <= floor)],
        )
        for name, (own, autodiff, floor) in cases.items()
    ]
    point = Point("hinge", "batch", 8, {"batch": 8}, {"mcgrad": _figures(1.0)})
    return Run(MACHINE | machine, False, results, [point])


@pytest.fixture
def runs(tmp_path):
    """Two files, as --json writes them."""
    old = _run({}, dense=(0.25, 0.5, 0.2), gone=(1.0, 1.0, 1.0))
    new = _run(
        {"cpu": "Other", "versions": {"jax": "0.12.0", "torch": None}},
        dense=(0.1, 0.4, 0.2),
        added=(1.0, 1.0, 1.0),
    )
    files = tmp_path / "old.json", tmp_path / "new.json"
    for file, run in zip(files, (old, new), strict=True):
        records.write(file, run)
    return old, new, files


def test_what_is_written_is_read_again(runs):
    old, _, (file, _) = runs
    again = records.read(file)
    assert again.machine == old.machine and again.growth == old.growth
    # The goals of another day are left where they are.
    assert again.cases == [result._replace(goals=[]) for result in old.cases]


def _printed(capsys, *arguments):
    assert bench.main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def _row(printed, case):
    line = [line for line in printed.splitlines() if line.startswith(f"│ {case} ")][-1]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_two_runs_side_by_side(runs, capsys):
    """Times, and ratios to autodiff and the floor: 0.5/0.25 and 0.4/0.1, 0.25/0.2 and 0.1/0.2."""
    _, _, files = runs
    printed = _printed(capsys, "--compare", *files)
    assert _row(printed, "dense") == [
        "dense", "250 ms → 100 ms", "0.40", "2.00 → 4.00", "1.25 → 0.50", "1 MiB → 1 MiB",
    ]  # fmt: skip
    for line in (
        "machine: One, 2 cores → Other, 2 cores",
        "versions: jax 0.10.2 → jax 0.12.0",
        "only in the old run: gone",
        "only in the new run: added",
    ):
        assert line in printed.splitlines()
    assert "│ gone" not in printed and "│ added" not in printed
    same = _printed(capsys, "--compare", files[0], files[0])
    assert not {"machine", "versions", "only"} & {line.split(":")[0] for line in same.splitlines()}


def test_a_run_beside_an_earlier_one(runs, capsys):
    """The sizes differ: nothing is compared without a word about it."""
    old, _, (file, _) = runs
    toy = old.cases[0]._replace(case="least-squares")
    records.write(file, old._replace(quick=True, cases=[toy]))
    printed = _printed(capsys, "least-squares", "--quick", "--compare", file)
    assert _row(printed, "least-squares")[1].startswith("250 ms → ")
    assert "least-squares: sizes batch 8 → batch 48, features 8, outputs 8" in printed
    assert "only in the new run: least-squares-moments" in printed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("", "not a run of the bench"),
        ("[]", "not a run of the bench"),
        ('{"machine": {}, "points": []}', "not a run of the bench"),
        ('{"machine": {}, "quick": false, "cases": [], "growth": []}', "not a run of the bench"),
    ],
)
def test_a_file_that_holds_no_run_is_refused(text, says, tmp_path):
    file = tmp_path / "foreign.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit) as refused:
        bench.main(["--compare", str(file)])
    message = str(refused.value)
    assert "foreign.json" in message and says in message and "\n" not in message


def test_more_than_two_runs_are_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--compare", "a", "b", "c"])
    assert "one or two files" in capsys.readouterr().err
