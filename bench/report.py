"""What a run prints and draws."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter
from rich.table import Table

from bench.cases import Goal
from bench.measure import Absent, Figures

if TYPE_CHECKING:
    from bench.run import Point, Result, Sides

PEERS = "autodiff", "PyTorch", "PyTorch compiled", "optax"
STYLE = "mcgrad.figures"
LINE = 0.44  # Inches of a case in the picture.


def best(sides: "Sides", name: str) -> Figures | None:
    """The contender of this name; the fastest, if it comes in several formulations."""
    found = [
        side
        for key, side in sides.items()
        if isinstance(side, Figures) and (key == name or key.startswith(f"{name} ("))
    ]
    return min(found, key=lambda side: side.median, default=None)


def heading(machine: dict[str, Any], quick: bool) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    where = f"{_place(machine)}, {machine['date']}; {versions}"
    return where + ("\n--quick: toy sizes, whose times say nothing" if quick else "")


def _place(machine: dict[str, Any]) -> str:
    if machine["platform"] == "cpu":
        return f"{machine['cpu']}, {machine['cores']} cores"
    return machine["device"]


def words(goal: Goal) -> str:
    """The goal as a reader would say it."""
    if goal.over is None:
        bound = _seconds(goal.bound) if goal.figure == "time" else _bytes(int(goal.bound))
        return f"{goal.figure} at most {bound}"
    if goal.faster:
        return f"at least {goal.bound:g} times as fast as {goal.over}"
    bound = f"1/{1 / goal.bound:.0f}" if goal.bound < 0.1 else f"{goal.bound:g}"
    side = "" if goal.side == "mcgrad" else f"{goal.side}: "
    return f"{side}{goal.figure} at most {bound} of {goal.over}"


def table(results: "Iterable[Result]") -> Table:
    """One case a line; of autodiff, the fastest formulation."""
    table = Table(title="Time, and ratios of times", title_justify="left")
    table.add_column("case", no_wrap=True)
    for column in ("mcgrad", "mcgrad / floor", *(f"{peer} / mcgrad" for peer in PEERS)):
        table.add_column(column, justify="right")
    for column in ("its temp. bytes", "autodiff's"):
        table.add_column(column, justify="right")
    for result in results:
        own, floor, autodiff = (best(result.sides, n) for n in ("mcgrad", "floor", "autodiff"))
        assert own and floor  # A run without them ends before this.
        peers = [best(result.sides, peer) for peer in PEERS]
        table.add_row(
            result.case,
            _seconds(own.median),
            f"{own.median / floor.median:.2f}",
            *(
                "" if peer is None else f"{peer.median / own.median:.2f}{'*' if peer.note else ''}"
                for peer in peers
            ),
            _bytes(own.temporaries),
            _bytes(autodiff.temporaries if autodiff else None),
        )
    return table


def goals(results: "Iterable[Result]") -> Table:
    table = Table("case", "goal", title="Goals, set for two cores of a CPU", title_justify="left")
    table.add_column("measured", justify="right")
    table.add_column("")
    for result in results:
        for goal in result.goals:
            verdict = {True: "met", False: "[red]missed[/]", None: "not measured"}[goal.met]
            table.add_row(result.case, goal.goal, _measured(goal.measured, goal.goal), verdict)
    return table


def _measured(value: float | None, goal: str) -> str:
    if value is None:
        return ""
    if goal.startswith("time at most") and goal.endswith("s"):
        return _seconds(value)
    if goal.endswith("iB"):
        return _bytes(int(value))
    return f"1/{1 / value:.0f}" if value < 0.1 else f"{value:.2f}"


def remarks(results: "Iterable[Result]") -> list[str]:
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


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def _bytes(value: int | None) -> str:
    if value is None:
        return ""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} B"


def picture(results: "list[Result]", machine: dict[str, Any]) -> Figure:
    """Ratio to the floor, one group of bars a case; to the left of 1 is below the floor."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(9, 1.4 + LINE * len(results)))
        axes = figure.subplots()
        names = "mcgrad", *PEERS
        thickness = 0.8 / len(names)
        places = np.arange(len(results))
        for number, name in enumerate(names):
            ratios = [_to_floor(result.sides, name) for result in results]
            axes.barh(
                places + (number - (len(names) - 1) / 2) * thickness,
                np.array(ratios) - 1,
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
        axes.set_title(f"Value and gradients: {_place(machine)}, {machine['date']}")
        title = "* in the hinge cases Crammer and Singer's, a different loss"
        figure.legend(loc="outside lower left", ncols=len(names), title=title)
    return figure


def _to_floor(sides: "Sides", name: str) -> float:
    side, floor = best(sides, name), best(sides, "floor")
    return side.median / floor.median if side and floor else float("nan")


def growth(points: "list[Point]", machine: dict[str, Any]) -> Figure:
    """A row per loss; time, then temporaries, along each of its two axes."""
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
        figure.suptitle(f"Growth of time and temporaries: {_place(machine)}, {machine['date']}")
        handles, labels = rows[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _time_and_memory(line: "list[Point]", time: Any, memory: Any) -> None:
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
