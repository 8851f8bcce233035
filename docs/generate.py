"""What the pages show and nobody types: the curves, the tables of the bench, the notebooks."""

import json
from pathlib import Path
from typing import Any

import figures
from sphinx.application import Sphinx

PEERS = "floor", "autodiff", "PyTorch", "PyTorch compiled", "optax"


def best(sides: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The contender of this name; the fastest, if it comes in several formulations."""
    found = [side for key, side in sides.items() if key == name or key.startswith(f"{name} (")]
    measured = [side for side in found if side.get("median")]
    return min(measured, key=lambda side: side["median"], default=None)


def seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def mebibytes(side: dict[str, Any] | None) -> str:
    known = side and side.get("temporaries") is not None
    return f"{side['temporaries'] / 2**20:.1f}" if side and known else ""


def row(case: dict[str, Any]) -> list[str]:
    sides = case["sides"]
    own = sides["mcgrad"]
    peers = [best(sides, name) for name in PEERS]
    ratios = [
        f"{peer['median'] / own['median']:.2f}" + r"\*" * bool(peer.get("note")) if peer else ""
        for peer in peers
    ]
    sizes = ", ".join(f"{name} {size}" for name, size in case["sizes"].items())
    temporaries = [mebibytes(own), mebibytes(best(sides, "autodiff"))]
    return [f"`{case['case']}`: {sizes}", seconds(own["median"]), *ratios, *temporaries]


def table(rows: list[list[str]]) -> str:
    """A Markdown table whose columns after the first are flush right."""
    head, *body = rows
    rule = ["---", *("--:" for _ in head[1:])]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]
    return "\n".join(["```{table}", ":class: bench", "", *lines, "```"])


def remarks(cases: list[dict[str, Any]]) -> str:
    notes = {side.get("note") for case in cases for side in case["sides"].values()} - {None, ""}
    return "".join(f"\n\n\\* {note}." for note in sorted(notes))


def bench(file: Path) -> str:
    """One run of the bench: where and when, every case, and its picture."""
    results = json.loads(file.read_text())
    machine = results["machine"]
    place = f"{machine['cpu']}, {machine['cores']} cores"
    place = place if machine["platform"] == "cpu" else machine["device"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    dtypes = ", ".join(dict.fromkeys(case["dtype"] for case in results["cases"]))
    head = ["case", "mcgrad", *PEERS, "MiB", "autodiff, MiB"]
    rows = [head, *map(row, results["cases"])]
    return f"""## {place}

Measured {machine["date"]} with Python {machine["python"]}, {versions}; {dtypes}.

{table(rows)}{remarks(results["cases"])}

```{{image}} /../bench/results/{file.stem}.png
:alt: Time of every side as a multiple of the floor, for every case
```
"""


def write(path: Path, text: str) -> None:
    """Write a page, unless it is already as it should be: its time tells Sphinx what changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def generate(app: Sphinx) -> None:
    docs = Path(app.srcdir)
    figures.draw(docs / "generated")
    runs = sorted((docs.parent / "bench" / "results").glob("*.json"))
    results = [run for run in runs if "cases" in json.loads(run.read_text())]
    write(docs / "generated" / "bench.md", "\n".join(map(bench, results)))
    sources = {file.name: file for file in sorted((docs.parent / "notebooks").glob("*.ipynb"))}
    for file in (docs / "notebooks").glob("*.ipynb"):
        if file.name not in sources:
            file.unlink()
    for name, file in sources.items():
        write(docs / "notebooks" / name, file.read_text().replace("](../docs/", "](../"))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", generate)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
