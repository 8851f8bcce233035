"""What a run prints and draws."""

from collections.abc import Iterable
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table

from bench.records import (
    FLOORS,
    PEERS,
    Absent,
    Point,
    Result,
    Run,
    best,
    place,
    ratio,
    seconds,
    temporaries,
    versions,
)

STYLE = "mcgrad.figures"
LINE = 0.44  # Inches of a case in the picture.


def console() -> Console:
    """The terminal; where there is none, lines that are wide enough for the tables."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=132)


def heading(machine: dict[str, Any], quick: bool) -> str:
    where = f"{place(machine)}, {machine['date']}; {versions(machine)}"
    return where + ("\n--quick: toy sizes, whose times say nothing" if quick else "")


def table(results: Iterable[Result]) -> Table:
    """One case a line; of autodiff, the fastest formulation."""
    table = Table(title="Time, and ratios of times", title_justify="left")
    table.add_column("case", no_wrap=True)
    ratios = *(f"mcgrad\n/ {floor}" for floor in FLOORS), *(f"{peer}\n/ mcgrad" for peer in PEERS)
    for column in ("mcgrad", *ratios, "its tem-\nporaries", "auto-\ndiff's"):
        table.add_column(column.replace(" comp", "\ncomp"), justify="right")
    for result in results:
        own, autodiff = (best(result.sides, name) for name in ("mcgrad", "autodiff"))
        assert own  # A run without it ends before this.
        table.add_row(
            result.case,
            seconds(own.median),
            *(times(ratio(result.sides, "mcgrad", floor)) for floor in FLOORS),
            *(_to_own(result, peer) for peer in PEERS),
            temporaries(own),
            temporaries(autodiff),
        )
    return table


def times(value: float | None) -> str:
    """A ratio, where it is known."""
    return "" if value is None else f"{value:.2f}"


def _to_own(result: Result, name: str) -> str:
    peer = best(result.sides, name)
    starred = "*" if peer and peer.note else ""
    return times(ratio(result.sides, name, "mcgrad")) + starred


def goals(results: Iterable[Result]) -> Table:
    table = Table("case", "goal", title="Goals, set for two cores of a CPU", title_justify="left")
    table.add_column("measured", justify="right")
    table.add_column("")
    for result in results:
        for goal, measured, met in result.goals:
            verdict = {True: "met", False: "[red]missed[/]", None: "not measured"}[met]
            table.add_row(result.case, goal.words, goal.shown(measured), verdict)
    return table


def remarks(results: Iterable[Result]) -> list[str]:
    """What the figures do not say: another loss, an absent side, a share of violated margins."""
    lines: dict[str, list[str]] = {}
    results = list(results)
    for result in results:
        for name, side in result.sides.items():
            remark = side.reason if isinstance(side, Absent) else side.note
            if remark:
                mark = "absent: " if isinstance(side, Absent) else "* "
                lines.setdefault(f"{mark}{name}: {remark}", []).append(result.case)
        if "violated" in result.facts:
            share = f"margins violated: {result.facts['violated']:.2g}"
            lines.setdefault(share, []).append(result.case)
    return [
        line if len(cases) == len(results) else f"{line} ({', '.join(cases)})"
        for line, cases in lines.items()
    ]


def picture(run: Run) -> Figure:
    """Ratio to the floor, one group of bars a case; to the left of 1 is below the floor."""
    results = [result for result in run.cases if best(result.sides, "floor")]
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(9, 1.4 + LINE * len(results)))
        axes = figure.subplots()
        names = "mcgrad", *PEERS
        thickness = 0.8 / len(names)
        places = np.arange(len(results))
        for number, name in enumerate(names):
            ratios = np.array([ratio(result.sides, name, "floor") for result in results], float)
            axes.barh(
                places + (number - (len(names) - 1) / 2) * thickness,
                ratios - 1,
                thickness,
                left=1,
                label="optax *" if name == "optax" else name,
            )
        axes.axvline(1, color="black", linewidth=1)
        axes.set(xscale="log", yticks=places, yticklabels=[result.case for result in results])
        axes.set(ylim=(len(results) - 0.5, -0.5), xlabel="time, as a multiple of the floor")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"Value and gradients: {place(run.machine)}, {run.machine['date']}")
        title = "* in the hinge cases Crammer and Singer's, a different loss"
        figure.legend(loc="outside lower left", ncols=len(names), title=title)
    return figure


def growth(run: Run) -> Figure:
    """A row per loss; time, then temporaries, along each of its two axes."""
    points, machine = run.growth, run.machine
    losses = list(dict.fromkeys(point.loss for point in points))
    with matplotlib.style.context([STYLE, {"font.size": 9, "axes.titlesize": 9}]):
        figure = Figure(figsize=(9, 0.8 + 1.8 * len(losses)))
        rows = figure.subplots(len(losses), 4, squeeze=False)
        for loss, panels in zip(losses, rows, strict=True):
            axes = list(dict.fromkeys(point.axis for point in points if point.loss == loss))
            for number, axis in enumerate(axes):
                line = [point for point in points if (point.loss, point.axis) == (loss, axis)]
                _time_and_memory(line, panels[2 * number], panels[2 * number + 1])
            panels[0].set_title(f"{loss}: ms", loc="left")
            for panel, title in zip(panels[1:], ("MiB", "ms", "MiB"), strict=True):
                panel.set_title(title)
        figure.suptitle(f"Growth of time and temporaries: {place(machine)}, {machine['date']}")
        handles, labels = rows[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _time_and_memory(line: list[Point], time: Any, memory: Any) -> None:
    styles = {"mcgrad": "-", "autodiff": "-", "floor": ":"}
    values = [point.value for point in line]
    for name, style in styles.items():
        sides = [best(point.sides, name) for point in line]
        seconds = [1e3 * side.median if side else np.nan for side in sides]
        mebibytes = [(side.temporaries or 0) / 2**20 if side else np.nan for side in sides]
        time.plot(values, seconds, style, marker=".", label=name)
        memory.plot(values, mebibytes, style, marker=".", label=name)
    for panel in (time, memory):
        panel.set(xscale="log", xlabel=line[0].axis)
        panel.set_xticks(values, map(str, values), minor=False)
        panel.set_xticks([], minor=True)
    time.set_yscale("log")
    time.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    # Linear at the bottom: no temporaries at all are on the picture too.
    memory.set_yscale("symlog", linthresh=0.1)
    memory.yaxis.set_major_locator(FixedLocator([0, *10.0 ** np.arange(-1, 6)]))
    memory.set_ylim(bottom=0)
    for panel in (time, memory):
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
