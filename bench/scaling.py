"""`python -m bench scaling`: how what is sent and what is held grows over a mesh.

Nothing is run. The sharded losses are compiled for simulated devices, and the compiled programs say
what they send (the collectives in their text) and what they hold (the compiler's own account).
Beside it stand the formulas of this module, from which the tables of docs/scale.md are made.
"""

import argparse
import datetime
import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.style
import numpy as np
from jax.sharding import AxisType, NamedSharding
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import mcgrad
from bench.collectives import Message, messages
from bench.records import size
from mcgrad import _blocks
from mcgrad.checking import jsonable

RESULTS = Path(__file__).parent / "results" / "scaling.json"
SIMULATED = 512
SUM = 4  # Bytes of a number that is summed: float32, for half precision too.
GIB = 1 << 30

Sizes = dict[str, int]


class Mesh(NamedTuple):
    """How many devices share the examples, and how many the columns (classes, outputs, units)."""

    data: int
    model: int

    @property
    def devices(self) -> int:
        return self.data * self.model

    def part(self, sizes: Sizes) -> Sizes:
        """The sizes of what one device holds."""
        return {name: size // getattr(self, AXES.get(name, ""), 1) for name, size in sizes.items()}

    def whole(self, part: Sizes) -> Sizes:
        return {name: size * getattr(self, AXES.get(name, ""), 1) for name, size in part.items()}


AXES = {"batch": "data", "columns": "model"}  # The mesh axis along which a size is split.


def square(devices: int) -> Mesh:
    """A mesh of two axes as equal as they can be."""
    data = 1 << (devices.bit_length() - 1) // 2
    return Mesh(data, devices // data)


MESHES: dict[str, Callable[[int], Mesh]] = {
    "data": lambda devices: Mesh(devices, 1),
    "model": lambda devices: Mesh(1, devices),
    "both": square,
}


class Loss(NamedTuple):
    """A loss, its arrays by their axes, and what a device sends for its value and gradients."""

    name: str
    function: Callable[..., Any]
    arrays: tuple[str, ...]
    wrt: tuple[int, ...]
    # Mesh axis -> numbers that are summed over it, from the sizes of the part of a device.
    sent: dict[str, Callable[[Sizes], int]]
    sizes: Sizes  # of such a part, in weak scaling


LOSSES = (
    Loss(
        "linear hinge",
        mcgrad.linear_weston_watkins_loss,
        ("columns features", "batch features", "batch: int32"),
        (0, 1),
        {
            # True scores, losses and slope counts, ∂/∂inputs.
            "model": lambda n: 3 * n["batch"] + n["batch"] * n["features"],
            "data": lambda n: n["columns"] * n["features"],  # ∂/∂weights
        },
        {"batch": 2048, "columns": 8192, "features": 512},
    ),
    Loss(
        "least squares",
        mcgrad.linear_least_squares_loss,
        ("columns features", "batch features", "batch columns"),
        (0, 1),
        {
            # Losses, ∂/∂inputs.
            "model": lambda n: n["batch"] + n["batch"] * n["features"],
            "data": lambda n: n["columns"] * n["features"],  # ∂/∂weights
        },
        {"batch": 4096, "columns": 2048, "features": 512},
    ),
    Loss(
        "logistic network",
        mcgrad.logistic_network_loss,
        ("columns features", "columns", "columns", "batch features", "batch"),
        (0, 1, 2, 3),
        {
            # Outputs, ∂/∂inputs.
            "model": lambda n: n["batch"] + n["batch"] * n["features"],
            # ∂ of the three weights.
            "data": lambda n: n["columns"] * n["features"] + 2 * n["columns"],
        },
        {"batch": 4096, "columns": 1024, "features": 256},
    ),
    Loss(
        "task covariance",
        mcgrad.task_covariance_penalty,
        ("columns tasks", "tasks tasks"),
        (0, 1),
        {"model": lambda n: n["tasks"] ** 2},  # ∂/∂covariance
        {"columns": 4096, "tasks": 512},
    ),
)
HINGE = LOSSES[0]
DEVICES = 1, 2, 4, 8, 16, 32, 64
STRONG = 4  # In strong scaling the whole is this many parts of weak scaling, along either axis.

# A million, rounded up to what 512 devices divide.
MILLION = {"batch": 32768, "columns": 1_000_448, "features": 4096}
MANY = 8, 64, 512
STORAGE = {"float32": 4, "bfloat16": 2}


# The formulas.


def sent(loss: Loss, sizes: Sizes, mesh: Mesh) -> dict[str, int]:
    """Mesh axis -> bytes that a device gives to the sums over it, scalars not counted."""
    part = mesh.part(sizes)
    shared = {axis: numbers for axis, numbers in loss.sent.items() if getattr(mesh, axis) > 1}
    return {axis: SUM * numbers(part) for axis, numbers in shared.items()}


def on_the_wire(given: dict[str, int], mesh: Mesh) -> dict[str, float]:
    """Mesh axis -> bytes that a device sends: of n devices in a ring, 2 (n-1)/n of what it gives.

    A sum travels in n parts: each goes round once to be added up, and once more to be known to all.
    """
    return {axis: 2 * (1 - 1 / getattr(mesh, axis)) * given[axis] for axis in given}


def least_sent(devices: int) -> Mesh:
    """The mesh on which the linear hinge of a million classes sends least."""
    splits = (1 << k for k in range(devices.bit_length()))
    meshes = (Mesh(data, devices // data) for data in splits)
    return min(meshes, key=lambda m: sum(on_the_wire(sent(HINGE, MILLION, m), m).values()))


class Cost(NamedTuple):
    """Bytes that a device holds and sends, and operations that it does, for W, X, ∂W and ∂X."""

    weights: int  # W, and again as many for ∂W
    inputs: int  # X, and again as many for ∂X
    block: int  # of scores
    temporaries: int  # blocks included
    operations: int
    sent: dict[str, float]  # over the model axis for ∂X, over the data axis for ∂W

    @property
    def held(self) -> int:
        return 2 * self.weights + 2 * self.inputs + self.temporaries


def accelerator_plan(part: Sizes) -> _blocks.Plan:
    """The blocks of an accelerator for the part of a device."""
    sizes = part["batch"], part["columns"], part["features"]
    return _blocks.make_plan(*sizes, None, on=_blocks.ACCELERATOR)


def hinge_cost(sizes: Sizes, mesh: Mesh, storage: int = SUM) -> Cost:
    """The linear hinge's value, ∂W and ∂X, for numbers stored in so many bytes."""
    n = mesh.part(sizes)
    weights, inputs = n["columns"] * n["features"], n["batch"] * n["features"]
    plan = accelerator_plan(n)
    block = plan.size * (n["columns"] if plan.by_examples else n["batch"])
    # ∂W is summed where it stays, unless other devices share it or it is stored in half precision.
    working = ((mesh.data > 1) + (storage < SUM)) * weights
    if plan.whole:
        working += 2 * inputs + block  # the true classes' rows of W, ∂X; scores
    else:
        # The same, ∂X with the next block's part; scores, slopes; rows of a block, their gradient.
        working += 3 * inputs + 2 * block + 2 * plan.size * n["features"]
    return Cost(
        storage * weights,
        storage * inputs,
        SUM * block,
        SUM * working,
        3 * 2 * n["batch"] * weights,
        on_the_wire(sent(HINGE, sizes, mesh), mesh),
    )


# What the compiler makes of it.


class Program(NamedTuple):
    """Bytes, on each device, of a compiled program."""

    given: dict[str, int]  # to the sums over each mesh axis, scalars not counted
    kinds: list[str]  # of collectives
    arguments: int
    results: int
    temporaries: int


def compiled(loss: Loss, sizes: Sizes, mesh: Mesh, **options: Any) -> Program:
    """Value and gradients, compiled for as many of the devices as the mesh has."""
    axes = {name: size for name, size in mesh._asdict().items() if size > 1}
    function, place = loss.function, None
    if axes:
        devices = jax.make_mesh(
            tuple(axes.values()),
            tuple(axes),
            axis_types=(AxisType.Auto,) * len(axes),
            devices=jax.devices()[: mesh.devices],
        )
        split = {f"{'batch' if axis == 'data' else axis}_axis": axis for axis in axes}
        function = mcgrad.shard(function, devices, **split)
        place = functools.partial(NamedSharding, devices)

    def argument(array: str) -> jax.ShapeDtypeStruct:
        names, _, dtype = array.partition(": ")
        spec = [AXES.get(name) if AXES.get(name) in axes else None for name in names.split()]
        shape = tuple(sizes[name] for name in names.split())
        where = place(jax.P(*spec)) if place else None
        return jax.ShapeDtypeStruct(shape, dtype or jnp.float32, sharding=where)

    gradient = jax.jit(jax.value_and_grad(lambda *args: function(*args, **options), loss.wrt))
    program = gradient.lower(*map(argument, loss.arrays)).compile()
    memory, text = program.memory_analysis(), program.as_text()
    assert memory is not None and text is not None  # There are both for a CPU.
    found = messages(text)
    return Program(
        _by_axis(found, mesh),
        sorted({message.kind for message in found}),
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.temp_size_in_bytes,
    )


def _by_axis(found: Sequence[Message], mesh: Mesh) -> dict[str, int]:
    """The bytes of the arrays, by the mesh axis over which they are summed."""
    places = np.arange(mesh.devices).reshape(mesh)
    axes = {tuple(places[:, 0].tolist()): "data", tuple(places[0].tolist()): "model"}
    given = {}
    for message in found:
        shapes = zip(message.shapes, message.bytes, strict=True)
        size = message.times * sum(held for shape, held in shapes if shape)
        if size:
            axis = axes.get(message.group, "both")
            given[axis] = given.get(axis, 0) + size
    return given


class Point(NamedTuple):
    """One program of the sweep, beside the formula for what it sends."""

    loss: str
    scaling: str  # "weak": the parts stay as large; "strong": the whole does
    split: str
    mesh: Mesh
    sizes: Sizes
    formula: dict[str, int]
    program: Program


def sweep(quick: bool) -> list[tuple[Loss, str, str, Mesh, Sizes]]:
    """Every loss, weak and strong, on every mesh that can split it."""
    tasks = []
    for loss in LOSSES:
        for scaling in ("weak", "strong"):
            for split, of in MESHES.items():
                if "data" not in loss.sent and split != "model":
                    continue  # It has no examples.
                for devices in DEVICES[: 2 if quick else None]:
                    mesh = of(devices)
                    if split == "both" and 1 < devices < 4:
                        continue  # They have no mesh of two axes.
                    whole = mesh if scaling == "weak" else Mesh(STRONG, STRONG)
                    tasks.append((loss, scaling, split, mesh, whole.whole(loss.sizes)))
    return tasks


def million_meshes() -> list[Mesh]:
    """Along one axis, along both alike, and as is best, if that is another."""
    ways = *MESHES.values(), least_sent
    return list(dict.fromkeys(of(devices) for devices in MANY for of in ways))


def agree(points: list[Point], cases: list["Case"]) -> bool:
    """Whether every program sends what the formulas say, and by all-reduce alone."""
    pairs = [(point.program, point.formula) for point in points]
    pairs += [(case.program, sent(HINGE, MILLION, case.mesh)) for case in cases]
    return all(
        program.given == formula and set(program.kinds) <= {"all-reduce"}
        for program, formula in pairs
    )


class Case(NamedTuple):
    """A million classes on one mesh: the formulas, and the program."""

    mesh: Mesh
    cost: Cost
    program: Program


def measure(quick: bool, console: Console) -> tuple[list[Point], list[Case]]:
    programs = functools.cache(_program)
    points, cases = [], []
    million = [] if quick else million_meshes()
    with Progress(console=console, transient=True) as progress:
        for loss, scaling, split, mesh, sizes in progress.track(sweep(quick)):
            program = programs(loss.name, tuple(sizes.items()), mesh)
            formula = sent(loss, sizes, mesh)
            points.append(Point(loss.name, scaling, split, mesh, sizes, formula, program))
        for mesh in progress.track(million):
            size = accelerator_plan(mesh.part(MILLION)).size
            program = compiled(HINGE, MILLION, mesh, block_size=size)
            cases.append(Case(mesh, hinge_cost(MILLION, mesh), program))
    return points, cases


def _program(name: str, sizes: tuple[tuple[str, int], ...], mesh: Mesh) -> Program:
    """As `compiled`, of things that can be kept in a table."""
    return compiled(next(loss for loss in LOSSES if loss.name == name), dict(sizes), mesh)


# What is printed, written and drawn.


def tables(cases: list[dict[str, Any]]) -> str:
    """The Markdown of docs/scale.md: formulas, and in brackets the compiled temporaries."""
    compiled = {tuple(case["mesh"]): case["program"]["temporaries"] for case in cases}
    lines = []
    for name, storage in STORAGE.items():
        lines += [
            f"Numbers stored as {name}; GiB that each device holds, and sends for ∂W and ∂X:",
            "",
            "| devices | data × model | W, ∂W each | X, ∂X each | temporaries | of these a block "
            "| in all | for ∂W | for ∂X | TFLOP | kFLOP / byte |",
            "|" + " ---: |" * 11,
        ]
        for mesh in million_meshes():
            held = compiled.get(mesh) if name == "float32" else None
            lines.append(_line(mesh, hinge_cost(MILLION, mesh, storage), held))
        lines.append("")
    return "\n".join(lines)


def _line(mesh: Mesh, cost: Cost, held: int | None) -> str:
    """The largest of what is held, and of what is sent, in bold."""
    parts = [cost.weights, cost.inputs, cost.temporaries]
    bold = max(range(3), key=lambda i: parts[i] * (2 if i < 2 else 1))
    weights, inputs, temporaries = (
        f"**{_gib(part)}**" if i == bold else _gib(part) for i, part in enumerate(parts)
    )
    if held is not None:
        temporaries += f" ({_gib(held)})"
    sent = [cost.sent.get(axis, 0) for axis in ("data", "model")]
    for_weights, for_inputs = (f"**{_gib(x)}**" if x == max(sent) else _gib(x) for x in sent)
    cells = [
        f"{mesh.devices}", f"{mesh.data}×{mesh.model}", weights, inputs, temporaries,
        _gib(cost.block), _gib(cost.held), for_weights, for_inputs,
        f"{cost.operations / 1e12:.3g}", f"{cost.operations / sum(sent) / 1e3:.3g}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _gib(size: float) -> str:
    small = 0 < size < GIB / 1000
    return "< 0.001" if small else f"{round(size / GIB, 3):.3g}"


def summary(points: list[Point]) -> Table:
    table = Table(title="On each device", title_justify="left")
    table.add_column("loss", no_wrap=True)
    for column in ("scaling", "split"):
        table.add_column(column)
    for column in ("devices", "sent", "by the formula", "temporaries"):
        table.add_column(column, justify="right")
    for point in points:
        mesh, program = point.mesh, point.program
        measured, formula = (
            sum(on_the_wire(given, mesh).values()) for given in (program.given, point.formula)
        )
        agree = "equal" if program.given == point.formula else f"[red]{size(formula)}[/]"
        figures = f"{mesh.devices}", size(measured), agree, size(program.temporaries)
        table.add_row(point.loss, point.scaling, point.split, *figures)
    return table


def write(file: Path, points: list[Point], cases: list[Case]) -> None:
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": f"simulated: compiled for {jax.devices()[0].device_kind}",
        "versions": {name: version(name) for name in ("mcgrad", "jax", "jaxlib")},
    }
    # A mesh is written as its shape.
    figures = {
        "machine": facts,
        "points": [point._replace(mesh=tuple(point.mesh)) for point in points],
        "million": [case._replace(mesh=tuple(case.mesh)) for case in cases],
        "sizes": MILLION,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(jsonable(figures), indent=1) + "\n")


def draw(points: list[Point], file: Path) -> None:
    """A row per loss; sent and temporaries in weak scaling, then in strong."""
    losses = list(dict.fromkeys(point.loss for point in points))
    with matplotlib.style.context(["mcgrad.figures", {"font.size": 9, "axes.titlesize": 9}]):
        figure = Figure(figsize=(9, 0.9 + 1.7 * len(losses)))
        rows = figure.subplots(len(losses), 4, squeeze=False)
        for loss, panels in zip(losses, rows, strict=True):
            for scaling, pair in zip(("weak", "strong"), (panels[:2], panels[2:]), strict=True):
                own = [point for point in points if (point.loss, point.scaling) == (loss, scaling)]
                _sent_and_held(own, *pair)
            panels[0].set_ylabel(loss)
        titles = [f"{x}: {y}, MiB" for x in ("weak", "strong") for y in ("sent", "temporaries")]
        for panel, title in zip(rows[0], titles, strict=True):
            panel.set_title(title)
        for panel in rows[-1]:
            panel.set_xlabel("devices")
        handles, labels = rows[0, 0].get_legend_handles_labels()
        title = "Each device; lines: the formulas, dots: the compiled programs. Split along"
        figure.legend(handles, labels, loc="outside lower center", ncols=3, title=title)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file)


LABELS = {"data": "the examples", "model": "the columns", "both": "both"}


def _sent_and_held(points: list[Point], sent: Any, held: Any) -> None:
    colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    for (split, label), colour in zip(LABELS.items(), colours, strict=False):
        line = [point for point in points if point.split == split]
        devices = [point.mesh.devices for point in line]
        formulas = [_mebibytes(point.formula, point.mesh) for point in line]
        measured = [_mebibytes(point.program.given, point.mesh) for point in line]
        sent.plot(devices, formulas, "-", color=colour, linewidth=1.5)
        sent.plot(devices, measured, "o", color=colour, markersize=4, label=label)
        temporaries = [point.program.temporaries / 2**20 for point in line]
        held.plot(devices, temporaries, "o:", color=colour, markersize=4, linewidth=1)
    for panel in (sent, held):
        panel.set(xscale="log", yscale="log", xlim=(0.8, 80))
        panel.set_xticks(DEVICES[::2], map(str, DEVICES[::2]))
        panel.set_xticks([], minor=True)
        least, most = panel.dataLim.intervaly
        middle, reach = math.sqrt(least * most), max(math.sqrt(most / least) * 1.4, 4)
        panel.set_ylim(middle / reach, middle * reach)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())


def _mebibytes(given: dict[str, int], mesh: Mesh) -> float:
    """What is sent; nothing, which one device sends, has no place on a logarithmic axis."""
    return sum(on_the_wire(given, mesh).values()) / 2**20 or np.nan


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print, write. Returns 1 if a program sends what no formula says."""
    options = _options(argv)
    # Read when JAX is first used, which is below.
    flag = f"--xla_force_host_platform_device_count={SIMULATED}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    jax.config.update("jax_platforms", "cpu")
    if options.table:
        print(tables(json.loads(RESULTS.read_text())["million"]))
        return 0
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    points, cases = measure(options.quick, console)
    console.print(summary(points))
    if options.json:
        write(options.json, points, cases)
    if options.plot:
        draw(points, options.plot)
    return int(not agree(points, cases))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench scaling",
        description="Compile the sharded losses for simulated devices, and count what each device "
        "sends and holds, beside the formulas.",
    )
    parser.add_argument("--quick", action="store_true", help="one and two devices only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw what is sent and held")
    parser.add_argument(
        "--table", action="store_true", help="print the tables of docs/scale.md, compile nothing"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
