"""The code in the README and the docs runs and prints what it says it prints."""

import contextlib
import io
import re
import tomllib
from pathlib import Path

import pytest

from bench import records

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


def test_the_versions_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python, jax = project["requires-python"], project["dependencies"][0]
    assert f"Python {python.removeprefix('>=')} or newer" in README
    assert f"JAX {jax.removeprefix('jax>=')} or newer" in README


def test_the_figures_are_those_of_the_committed_run():
    run = records.read(ROOT / "bench" / "results" / "cpu.json")
    cases, machine = {case.case: case.sides for case in run.cases}, run.machine
    for fact in (machine["date"], machine["cpu"], *map(machine["versions"].get, ("jax", "torch"))):
        assert fact in README

    def measured(case, *names):
        return [records.best(cases[case], name) for name in names]

    first = re.search(r"take ([\d.]+) times less time than autodiff and (\d+) times less", README)
    own, fastest = measured("hinge-64-features", "mcgrad", "autodiff")
    assert first.groups() == (
        f"{fastest.median / own.median:.1f}",
        f"{fastest.temporaries / own.temporaries:.0f}",
    )
    rows = re.findall(
        r"^\| .*\(`([\w-]+)`\) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+), ([\d.]+) MiB \|$",
        README,
        re.MULTILINE,
    )
    assert len(rows) == README.count(" MiB |")
    for name, *figures in rows:
        own, *others = measured(name, "mcgrad", "floor", "autodiff", "PyTorch")
        expected = [f"{side.median / own.median:.2f}" for side in others]
        expected += [f"{side.temporaries / 2**20:.1f}" for side in (own, others[1])]
        assert figures == expected, name
