"""What a run of the bench measured: how it is held, written, read again and put into words.

Whatever shows a run (the tables, the pictures, a comparison, the pages) takes it from here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mcgrad.checking import jsonable

# The sides beside mcgrad, in the order in which they are shown.
FLOORS = "floor", "best products"
PEERS = "autodiff", "PyTorch", "PyTorch compiled", "optax"


class Goal(NamedTuple):
    """A bound on a ratio of two sides, or, without `over`, on a figure of one."""

    bound: float
    over: str | None
    faster: bool = False  # over / side >= bound; else side <= bound * over + allowance
    figure: str = "time"  # or "temporaries"
    side: str = "mcgrad"
    allowance: int = 0  # Bytes.

    @property
    def words(self) -> str:
        """The goal as a reader would say it."""
        if self.over is None:
            return f"{self.figure} at most {self.shown(self.bound)}"
        if self.faster:
            return f"at least {self.bound:g} times as fast as {self.over}"
        bound = self.shown(self.bound) if self.bound < SMALL else f"{self.bound:g}"
        side = "" if self.side == "mcgrad" else f"{self.side}: "
        plus = f" plus {size(self.allowance)}" if self.allowance else ""
        return f"{side}{self.figure} at most {bound} of {self.over}{plus}"

    def shown(self, value: float | None) -> str:
        """What was measured, in the unit of the goal."""
        if value is None:
            return ""
        if self.over is None:
            return seconds(value) if self.figure == "time" else size(int(value))
        return f"1/{1 / value:.0f}" if value < SMALL else f"{value:.2f}"


SMALL = 0.1  # Below it, a ratio is shown as one over a number.


class Figures(NamedTuple):
    """What was measured of a contender; `difference` is the relative one from mcgrad's results."""

    median: float
    quartiles: tuple[float, float]
    rounds: int
    compile_seconds: float | None
    temporaries: int | None
    difference: float | None
    note: str


class Absent(NamedTuple):
    """Why a contender was not measured."""

    reason: str


Sides = Mapping[str, Figures | Absent]


class Verdict(NamedTuple):
    """A goal beside what was measured; None where a side is absent."""

    goal: Goal
    measured: float | None
    met: bool | None


class Result(NamedTuple):
    """One case."""

    case: str
    sizes: dict[str, int]
    dtype: str
    facts: dict[str, float]
    sides: Sides
    goals: list[Verdict]


class Point(NamedTuple):
    """One size of a sweep."""

    loss: str
    axis: str
    value: int
    sizes: dict[str, int]
    sides: Sides


class Run(NamedTuple):
    """A run: the machine and the versions, whether its sizes are toys, every case, the sweeps."""

    machine: dict[str, Any]
    quick: bool
    cases: list[Result]
    growth: list[Point]


def write(file: Path, run: Run) -> None:
    file.write_text(json.dumps(jsonable(run), indent=1) + "\n")


def read(file: Path) -> Run:
    """What `write` wrote, but for the goals: they are those of another day.

    Raises ValueError, with one line, if it is no such file.
    """
    try:
        run = json.loads(file.read_text())
        cases = [Result(**case | {"sides": _sides(case), "goals": []}) for case in run["cases"]]
        growth = [Point(**point | {"sides": _sides(point)}) for point in run["growth"]]
        machine = {name: run["machine"][name] for name in FACTS}
        return Run(machine, run["quick"], cases, growth)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not a run of the bench, as --json writes it") from error


FACTS = "date", "platform", "device", "cpu", "cores", "python", "versions"


def _sides(held: dict[str, Any]) -> Sides:
    return {
        name: Absent(**side)
        if "reason" in side
        else Figures(**side | {"quartiles": tuple(side["quartiles"])})
        for name, side in held["sides"].items()
    }


def best(sides: Sides, name: str) -> Figures | None:
    """The contender of this name; the fastest, if it comes in several formulations."""
    found = [
        side
        for key, side in sides.items()
        if isinstance(side, Figures) and (key == name or key.startswith(f"{name} ("))
    ]
    return min(found, key=lambda side: side.median, default=None)


def ratio(sides: Sides, name: str, over: str) -> float | None:
    """Of their times; None where either is absent."""
    side, other = best(sides, name), best(sides, over)
    return side.median / other.median if side and other else None


def place(machine: dict[str, Any]) -> str:
    """What it was measured on."""
    if machine["platform"] == "cpu":
        return f"{machine['cpu']}, {machine['cores']} cores"
    return machine["device"]


def versions(machine: dict[str, Any]) -> str:
    return ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)


def seconds(value: float) -> str:
    for unit, of in (("s", 1.0), ("ms", 1e-3)):
        if value >= of:
            return f"{value / of:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def size(value: float) -> str:
    for unit, of in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= of:
            return f"{value / of:.3g} {unit}"
    return f"{value:.0f} B"


def temporaries(side: Figures | None) -> str:
    """Of a side, where they are known."""
    return "" if side is None or side.temporaries is None else size(side.temporaries)
