"""One run: the cases that were asked for, their goals, the sweeps, and where it all happened."""

import contextlib
import datetime
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import records, report
from bench.cases import CASES, SWEEPS, Case, Sweep
from bench.measure import Rounds, cores, measure
from bench.records import Goal, Point, Result, Run, Sides, Verdict

DTYPES = {"float32": jnp.float32, "bf16": jnp.bfloat16}
PACKAGES = "mcgrad", "jax", "jaxlib", "optax", "torch", "numpy"
MOST_ROUNDS = 30
QUICK = Rounds(2, 2, 0.0)
GROWTH = Rounds(3, 9, 0.5)


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
) -> Run:
    """Measure the cases, print the tables, write the files."""
    console = report.console()
    on_cpu = jax.default_backend() == "cpu"
    cases = [case for case in _chosen(names) if quick or not (case.accelerator and on_cpu)]
    for file in filter(None, (json_file, plot_file, growth_file)):
        file.parent.mkdir(parents=True, exist_ok=True)
    machine = _machine()
    console.print(report.heading(machine, quick))

    turns = QUICK if quick else Rounds(rounds, max(rounds, MOST_ROUNDS), seconds)
    columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn()
    measured = Run(machine, quick, [], [])
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=case.name)
            measured.cases.append(_case(case, dtype, turns, quick))
            # After every case: an interrupted run keeps what it has measured.
            if json_file:
                records.write(json_file, measured)
            progress.advance(task)
        if growth_file:
            measured.growth.extend(_sweeps(quick, dtype, progress))

    console.print(report.table(measured.cases))
    console.print(report.goals(measured.cases))
    for line in report.remarks(measured.cases):
        console.print(line)
    if json_file:
        records.write(json_file, measured)
    if plot_file:
        report.picture(measured).savefig(plot_file)
    if growth_file:
        report.growth(measured).savefig(growth_file)
    return measured


def _chosen(names: Sequence[str]) -> list[Case]:
    for name in names:
        if not any(case.name.startswith(name) for case in CASES):
            known = ", ".join(case.name for case in CASES)
            raise SystemExit(f"python -m bench: no case {name!r}; there are {known}")
    return [case for case in CASES if not names or case.name.startswith(tuple(names))]


def _case(case: Case, dtype: str, rounds: Rounds, quick: bool) -> Result:
    sizes = case.toy if quick else case.sizes
    dtype = "bf16" if case.accelerator else dtype
    arguments = case.problem.draw(DTYPES[dtype], **sizes)
    sides = measure(case.problem.sides(*arguments), rounds, compile_torch=not quick)
    goals = [verdict(goal, sides) for goal in case.goals]
    return Result(case.name, sizes, dtype, case.problem.facts(*arguments), sides, goals)


def verdict(goal: Goal, sides: Sides) -> Verdict:
    """Whether the goal is met, and by what ratio."""
    figure = "median" if goal.figure == "time" else "temporaries"
    chosen = [records.best(sides, name) for name in (goal.side, goal.over) if name]
    values = [getattr(side, figure) for side in chosen if side is not None]
    if len(values) < len(chosen) or None in values:
        return Verdict(goal, None, None)
    own, other = values if goal.over else (values[0], 1)
    if goal.over and goal.figure == "temporaries":
        own, other = own + 1, other + 1  # A byte each: 0 of 0 is a ratio of 1.
    if goal.faster:
        return Verdict(goal, other / own, other / own >= goal.bound)
    return Verdict(goal, own / other, own <= goal.bound * other + goal.allowance)


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
    contenders = sweep.problem.sides(*sweep.problem.draw(DTYPES[dtype], **sizes))
    # The first formulation of autodiff only, under its plain name.
    first = {c.name.partition(" (")[0]: c for c in reversed(contenders)}
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
