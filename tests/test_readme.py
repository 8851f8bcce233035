"""The code in the README and the docs runs and prints what it says it prints."""

import contextlib
import io
import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "docs" / "checking.md", ROOT / "docs" / "second_order.md"]


def expected(code):
    """The comments that follow a print, and the lines that continue them."""
    lines = re.findall(r"^(?:print.*?|\s*)# (.*)$", code, re.MULTILINE)
    return " ".join(" ".join(lines).split())


@pytest.mark.implicit_promotion
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_prints_what_it_says(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    names = {}
    for code in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert " ".join(printed.getvalue().split()) == expected(code), code


def test_the_first_code_comes_within_twenty_lines():
    first = README.splitlines().index("```python")
    assert first < 20 and "print(gradient)" in README.split("```")[1]


def fastest_autodiff(sides):
    candidates = (side for name, side in sides.items() if name.startswith("autodiff"))
    return min(candidates, key=lambda side: side["median"])


def test_the_versions_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python, jax = project["requires-python"], project["dependencies"][0]
    assert f"Python {python.removeprefix('>=')} or newer" in README
    assert f"JAX {jax.removeprefix('jax>=')} or newer" in README


def test_the_figures_are_those_of_the_committed_run():
    results = json.loads((ROOT / "bench" / "results" / "cpu.json").read_text())
    cases = {case["case"]: case["sides"] for case in results["cases"]}
    machine = results["machine"]
    for fact in (machine["date"], machine["cpu"], *map(machine["versions"].get, ("jax", "torch"))):
        assert fact in README
    first = re.search(r"take ([\d.]+) times less time than autodiff and (\d+) times less", README)
    fastest, own = (
        fastest_autodiff(cases["hinge-64-features"]),
        cases["hinge-64-features"]["mcgrad"],
    )
    assert first.groups() == (
        f"{fastest['median'] / own['median']:.1f}",
        f"{fastest['temporaries'] / own['temporaries']:.0f}",
    )
    rows = re.findall(
        r"^\| .*\(`([\w-]+)`\) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+), ([\d.]+) MiB \|$",
        README,
        re.MULTILINE,
    )
    assert len(rows) == README.count(" MiB |")
    for name, *figures in rows:
        sides = cases[name]
        own = sides["mcgrad"]
        autodiff = fastest_autodiff(sides)
        others = (sides["floor"], autodiff, sides["PyTorch"])
        expected = [f"{side['median'] / own['median']:.2f}" for side in others]
        expected += [f"{side['temporaries'] / 2**20:.1f}" for side in (own, autodiff)]
        assert figures == expected, name
