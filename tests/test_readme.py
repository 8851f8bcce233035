"""The README's code runs and prints what it says it prints."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def expected(code):
    """The comments that follow a print, and the lines that continue them."""
    lines = re.findall(r"^(?:print.*?|\s*)# (.*)$", code, re.MULTILINE)
    return " ".join(" ".join(lines).split())


@pytest.mark.implicit_promotion
def test_every_block_prints_what_it_says():
    assert len(BLOCKS) >= 4
    names = {}
    for code in BLOCKS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert " ".join(printed.getvalue().split()) == expected(code), code


def test_the_first_code_comes_within_twenty_lines():
    first = README.splitlines().index("```python")
    assert first < 20 and "print(gradient)" in README.split("```")[1]
