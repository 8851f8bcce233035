"""One run: the cases that were asked for, their goals, the sweeps, and where it all happened."""

import contextlib
import datetime
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import report
from bench.cases import CASES, SWEEPS, Case, Goal, Sizes, Sweep
from bench.measure import Absent, Figures, Rounds, cores, measure

DTYPES = {"float32": jnp.float32, "bf16": jnp.bfloat16}
PACKAGES = "mcgrad", "jax", "jaxlib", "optax", "torch", "numpy"
MOST_ROUNDS = 30
QUICK = Rounds(2, 2, 0.0)
GROWTH = Rounds(3, 9, 0.5)

Sides = dict[str, Figures | Absent]


class Verdict(NamedTuple):
    """A goal beside what was measured; None where a side is absent."""

    goal: str
    measured: float | None
    met: bool | None


class Result(NamedTuple):
    case: str
    sizes: Sizes
    dtype: str
    facts: dict[str, float]
    sides: Sides
    goals: list[Verdict]


class Point(NamedTuple):
    """One size of a sweep."""

    loss: str
    axis: str
    value: int
    sizes: Sizes
    sides: Sides


def run(
    names: Sequence[str],
    *,
    quick: bool,
    dtype: str,
    rounds: int,
    seconds: float,
    json_file: Path | None,
    plot_file: Path | None,
    growth_file: Path | None,
) -> int:
    """Measure the cases, print the tables, write the files."""
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    on_cpu = jax.default_backend() == "cpu"
    cases = [case for case in _chosen(names) if quick or not (case.accelerator and on_cpu)]
    for file in filter(None, (json_file, plot_file, growth_file)):
        file.parent.mkdir(parents=True, exist_ok=True)
    machine = _machine()
    console.print(report.heading(machine, quick))

    turns = QUICK if quick else Rounds(rounds, max(rounds, MOST_ROUNDS), seconds)
    columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        results = []
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=case.name)
            results.append(_case(case, dtype, turns, quick))
            # After every case: an interrupted run keeps what it has measured.
            _write(json_file, machine, quick, results)
            progress.advance(task)
        points = _sweeps(quick, dtype, progress) if growth_file else []

    console.print(report.table(results))
    console.print(report.goals(results))
    for line in report.remarks(results):
        console.print(line)
    _write(json_file, machine, quick, results, points)
    if plot_file:
        report.picture(results, machine).savefig(plot_file)
    if growth_file:
        report.growth(points, machine).savefig(growth_file)
    return 0


def _chosen(names: Sequence[str]) -> list[Case]:
    for name in names:
        if not any(case.name.startswith(name) for case in CASES):
            known = ", ".join(case.name for case in CASES)
            raise SystemExit(f"python -m bench: no case {name!r}; there are {known}")
    return [case for case in CASES if not names or case.name.startswith(tuple(names))]


def _case(case: Case, dtype: str, rounds: Rounds, quick: bool) -> Result:
    sizes = case.toy if quick else case.sizes
    dtype = "bf16" if case.accelerator else dtype
    problem = case.build(DTYPES[dtype], **sizes)
    sides = measure(problem.contenders, rounds, compile_torch=not quick)
    goals = [verdict(goal, sides) for goal in case.goals]
    return Result(case.name, sizes, dtype, problem.facts, sides, goals)


def verdict(goal: Goal, sides: Sides) -> Verdict:
    """Whether the goal is met, and by what ratio."""
    figure = "median" if goal.figure == "time" else "temporaries"
    chosen = [report.best(sides, name) for name in (goal.side, goal.over) if name]
    values = [getattr(side, figure) for side in chosen if side is not None]
    if len(values) < len(chosen) or None in values:
        return Verdict(report.words(goal), None, None)
    if goal.over and goal.figure == "temporaries":
        values = [value + 1 for value in values]  # A byte each: 0 of 0 is a ratio of 1.
    measured = values[0] / values[1] if goal.over else values[0]
    if goal.faster:
        return Verdict(report.words(goal), 1 / measured, 1 / measured >= goal.bound)
    return Verdict(report.words(goal), measured, measured <= goal.bound)


def _sweeps(quick: bool, dtype: str, progress: Progress) -> list[Point]:
    walk = [(sweep, value) for sweep in SWEEPS for value in sweep.values[: 2 if quick else None]]
    points = []
    for sweep, value in progress.track(walk, description="growth"):
        points.append(_point(sweep, value, quick, dtype))
    return points


def _point(sweep: Sweep, value: int, quick: bool, dtype: str) -> Point:
    sizes = sweep.sizes | {sweep.axis: value}
    if quick:
        sizes = {axis: min(size, 16) for axis, size in sizes.items()}
    contenders = sweep.build(DTYPES[dtype], **sizes).contenders
    # The first formulation of autodiff only, under its plain name.
    first = {c.name.split()[0]: c for c in reversed(contenders)}
    sides = [first[name]._replace(name=name) for name in ("mcgrad", "autodiff", "floor")]
    return Point(sweep.loss, sweep.axis, value, sizes, measure(sides, QUICK if quick else GROWTH))


def _machine() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "platform": device.platform,
        "device": device.device_kind,
        "cpu": _processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _write(
    file: Path | None,
    machine: dict[str, Any],
    quick: bool,
    results: list[Result],
    points: Sequence[Point] = (),
) -> None:
    if file:
        figures = {"machine": machine, "quick": quick, "cases": results, "growth": points}
        file.write_text(json.dumps(_plain(figures), indent=1) + "\n")


def _plain(x: Any) -> Any:
    """Named tuples as dictionaries, all the way down."""
    if hasattr(x, "_asdict"):
        return _plain(x._asdict())
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    return [_plain(value) for value in x] if isinstance(x, (list, tuple)) else x
