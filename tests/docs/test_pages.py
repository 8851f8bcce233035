"""The pages of the site: their code prints what it says, and nothing public is left out."""

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest

import mcgrad
from tests import test_readme

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    path.relative_to(DOCS).as_posix(): path.read_text()
    for path in sorted([*DOCS.glob("*.md"), *DOCS.glob("losses/*.md")])
}
# Pages whose code other tests run.
ELSEWHERE = {page.name for page in test_readme.PAGES} | {"interop.md", "scale.md"}
# Libraries that are not among those of the ordinary tests.
LIBRARIES = {"training.md": ("optimistix", "flax", "equinox")}


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


@pytest.mark.implicit_promotion
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.interop if page in LIBRARIES else ())
        for page in PAGES
        if blocks(page) and page not in ELSEWHERE
    ],
)
def test_every_block_prints_what_it_says(page):
    for library in LIBRARIES.get(page, ()):
        pytest.importorskip(library, reason=f"{page} shows {library}, which is not installed")
    names, printed_any = {}, False
    for code in blocks(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert " ".join(printed.getvalue().split()) == test_readme.expected(code), code
        printed_any |= bool(printed.getvalue())
    assert printed_any


@pytest.mark.parametrize("page", sorted(ELSEWHERE))
def test_code_that_other_tests_run_is_run_there(page):
    tests = [*Path(DOCS.parent, "tests").rglob("test_*.py")]
    assert any(page in path.read_text() for path in tests if path != Path(__file__))


def test_every_public_name_is_in_the_reference():
    directives = re.findall(r"^\.\. (?:auto\w+|py:data):: ([\w.]+)$", PAGES["api.md"], re.MULTILINE)
    names = {name for name in directives if "." not in name}
    assert names == set(mcgrad.__all__)


@pytest.mark.parametrize("name", mcgrad.LOSSES)
def test_every_loss_has_a_page(name):
    own = [page for page in PAGES if page.startswith("losses/") and page != "losses/index.md"]
    assert f"`{name}`" in PAGES["losses/index.md"]
    assert any(f"{{py:func}}`mcgrad.{name}`" in PAGES[page] for page in own)


def test_every_page_is_in_the_table_of_contents():
    trees = re.findall(r"```{toctree}\n(.*?)```", PAGES["index.md"], re.DOTALL)
    listed = {line for tree in trees for line in tree.split("\n") if line and line[0] != ":"}
    assert {page.removesuffix(".md") for page in PAGES} - {"index"} == listed - {"notebooks/*"}


@pytest.mark.parametrize(
    "name", [name for name, loss in mcgrad.LOSSES.items() if loss.rule.arguments.columns]
)
def test_shard_names_what_is_split_along_the_columns(name):
    arguments, split = mcgrad.LOSSES[name].rule.arguments, set()
    for argument, stated in arguments.arrays.items():
        for path, spec in jax.tree_util.tree_leaves_with_path(stated.spec(arguments.columns)):
            split |= {argument + jax.tree_util.keystr(path)} if "columns" in tuple(spec) else set()
    row = re.search(rf"^ +{name} +[^:]*: (.*?)(?: +yes)?$", str(mcgrad.shard.__doc__), re.MULTILINE)
    assert row and set(row.group(1).split(", ")) == split
