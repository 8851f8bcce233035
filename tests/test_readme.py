"""The code in the README and the docs runs and prints what it says it prints."""

import contextlib
import io
import json
import re
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


def test_the_figures_are_those_of_the_committed_run():
    results = json.loads((ROOT / "bench" / "results" / "cpu.json").read_text())
    cases = {case["case"]: case["sides"] for case in results["cases"]}
    machine = results["machine"]
    for fact in (machine["date"], machine["cpu"], *map(machine["versions"].get, ("jax", "torch"))):
        assert fact in README
    rows = re.findall(
        r"^\| .*\(`([\w-]+)`\) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+), ([\d.]+) MiB \|$",
        README,
        re.MULTILINE,
    )
    assert len(rows) == README.count(" MiB |")
    for name, *figures in rows:
        sides = cases[name]
        own = sides["mcgrad"]
        autodiff = min(
            (side for key, side in sides.items() if key.startswith("autodiff")),
            key=lambda side: side["median"],
        )
        others = (sides["floor"], autodiff, sides["PyTorch"])
        expected = [f"{side['median'] / own['median']:.2f}" for side in others]
        expected += [f"{side['temporaries'] / 2**20:.1f}" for side in (own, autodiff)]
        assert figures == expected, name
