"""What the pages show and nobody types: curves, tables of the bench and of arguments, notebooks."""

import inspect
from pathlib import Path
from typing import Any

import figures
import jax
import jax.numpy as jnp
from sphinx.application import Sphinx

import mcgrad
from bench import records
from bench.records import FLOORS, PEERS, Figures, Result

COLUMNS = *FLOORS, *PEERS


def mebibytes(side: Figures | None) -> str:
    known = side and side.temporaries is not None
    return f"{side.temporaries / 2**20:.1f}" if known else ""


def row(case: Result) -> list[str]:
    own, *peers = (records.best(case.sides, name) for name in ("mcgrad", *COLUMNS))
    ratios = [
        f"{peer.median / own.median:.2f}" + r"\*" * bool(peer.note) if peer else ""
        for peer in peers
    ]
    sizes = ", ".join(f"{name} {size}" for name, size in case.sizes.items())
    temporaries = [mebibytes(own), mebibytes(records.best(case.sides, "autodiff"))]
    return [f"`{case.case}`: {sizes}", records.seconds(own.median), *ratios, *temporaries]


def table(rows: list[list[str]], others: str = "--:") -> str:
    """A Markdown table whose columns after the first are flush right, unless others say else."""
    head, *body = rows
    rule = ["---", *(others for _ in head[1:])]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]
    return "\n".join(["```{table}", ":class: bench", "", *lines, "```"])


def remarks(cases: list[Result]) -> str:
    notes = {getattr(side, "note", "") for case in cases for side in case.sides.values()} - {""}
    return "".join(f"\n\n\\* {note}." for note in sorted(notes))


def bench(file: Path) -> str:
    """One run of the bench: where and when, every case, and its picture."""
    run = records.read(file)
    dtypes = ", ".join(dict.fromkeys(case.dtype for case in run.cases))
    head = ["case", "mcgrad", *COLUMNS, "MiB", "autodiff, MiB"]
    rows = [head, *map(row, run.cases)]
    versions = records.versions(run.machine)
    return f"""## {records.place(run.machine)}

Measured {run.machine["date"]} with Python {run.machine["python"]}, {versions}; {dtypes}.

{table(rows)}{remarks(run.cases)}

```{{image}} /../bench/results/{file.stem}.png
:alt: Time of every side as a multiple of the floor, for every case
```
"""


def arguments(loss: Any) -> str:
    """What a loss states of each of its arrays."""
    rows = [["argument", "shape", "numbers", "range"]]
    for name, argument in loss.rule.arguments.arrays.items():
        shape = f"({', '.join(argument.names)}{',' * (len(argument.names) == 1)})"
        rows.append([f"`{name}`", shape.replace("*", r"\*"), argument.kind, argument.range])
    return f"### `{loss.__name__}`\n\n{table(rows, '---')}\n"


def split(loss: Any) -> dict[str, list[str]]:
    """The arrays that a mesh splits along the examples, and along the columns."""
    args, options = loss.example_args(jax.random.key(0), (2,), jnp.float32, smooth=False)
    call = inspect.signature(loss).bind(*args, **options)
    call.apply_defaults()
    rule = loss.rule
    checked = rule.arguments.check(*call.arguments.values())
    canonical, known = rule.arguments.canonicalize(*checked)
    specs, _ = rule.layout(canonical, **known)
    found = {"examples": [], "columns": []}
    for name in specs:
        for path, spec in jax.tree_util.tree_leaves_with_path(specs[name]):
            full = name + jax.tree_util.keystr(path)
            for axis in jax.tree.leaves(tuple(spec)):
                found[axis].append(f"`{full}`")
    return found


def mesh() -> str:
    """What of every loss a mesh splits."""
    rows = [["loss", "split along `model_axis`", "along `batch_axis`"]]
    for name, loss in mcgrad.LOSSES.items():
        columns, along = loss.rule.arguments.columns, split(loss)
        by = f", by {columns}" if columns else ", by the last axis"
        rows.append([f"`{name}`", ", ".join(along["columns"]) + by, ", ".join(along["examples"])])
    return table(rows, "---")


def write(path: Path, text: str) -> None:
    """Write a page, unless it is already as it should be: its time tells Sphinx what changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def generate(app: Sphinx) -> None:
    docs = Path(app.srcdir)
    figures.draw(docs / "generated")
    runs = sorted((docs.parent / "bench" / "results").glob("*.json"))
    # The results of `bench scaling` are on a page of their own.
    results = [run for run in runs if run.stem != "scaling"]
    write(docs / "generated" / "bench.md", "\n".join(map(bench, results)))
    stated = "\n".join(map(arguments, mcgrad.LOSSES.values()))
    write(docs / "generated" / "arguments.md", stated)
    write(docs / "generated" / "mesh.md", mesh())
    sources = {file.name: file for file in sorted((docs.parent / "notebooks").glob("*.ipynb"))}
    for file in (docs / "notebooks").glob("*.ipynb"):
        if file.name not in sources:
            file.unlink()
    for name, file in sources.items():
        write(docs / "notebooks" / name, file.read_text().replace("](../docs/", "](../"))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", generate)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
