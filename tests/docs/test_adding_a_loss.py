"""docs/adding_a_loss.md, done: its files and changes make a loss that keeps the contract."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# A minute: the whole contract of a loss is compiled.
pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding_a_loss.md").read_text()
NAME = "pseudo_huber"


def blocks(language):
    """(caption, code) of every block of code in this language that has a caption."""
    return re.findall(
        rf"^```{{code-block}} {language}\n:caption: ([^\n]+)\n(.*?)^```$",
        PAGE,
        re.MULTILINE | re.DOTALL,
    )


def changed(text, difference):
    """The text with a difference applied; its context must stand there, once."""
    lines = difference.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(before) == 1, before
    return text.replace(before, after)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the library and its tests, with the page carried out."""
    folder = tmp_path_factory.mktemp("library")
    for name in ("mcgrad", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for path, code in blocks("python"):
        assert not (folder / path).exists()
        (folder / path).write_text(code)
    for path, difference in blocks("diff"):
        (folder / path).write_text(changed((folder / path).read_text(), difference))
    return folder


def run(folder, *command):
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("tests", ["tests/test_contract.py", "mcgrad/losses/pseudo_huber.py"])
def test_the_tests_pass(copy, tests):
    code, printed = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, "-k", NAME)
    assert code == 0, printed
    passed = re.search(r"(\d+) passed", printed)
    assert passed and int(passed.group(1)) >= (20 if tests.startswith("tests") else 1), printed
    assert "failed" not in printed and "skipped" not in printed


def test_the_command_line_knows_it(copy):
    code, printed = run(copy, "-m", "mcgrad", "check", f"{NAME}_loss")
    assert code == 0, printed
    assert f"{NAME}_loss" in printed and " 0 findings" in printed


def test_it_has_the_style_of_the_house(copy):
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    assert ruff, "make installs ruff with the lint extra"
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [ruff, *command, copy / "mcgrad"], capture_output=True, text=True, cwd=copy
        )
        assert done.returncode == 0, done.stdout
