"""The notebooks: each runs from top to bottom, and is committed as it ran."""

import base64
import json
import os
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.notebooks

FOLDER = Path(__file__).parents[2] / "notebooks"
# Jupyter keeps copies of what is open in folders that git ignores.
NOTEBOOKS = sorted(p for p in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
# Of an installed package, or absolute: not inside an address, a fraction or a relative path.
MACHINE_PATH = re.compile(
    r"(site|dist)-packages|(?<![\w./:])/(home|Users|root|tmp|private|work|var|usr|opt|mnt)/"
    r"|[A-Z]:\\Users"
)
PICTURE_LIMIT = 100_000  # bytes
CELL_TIMEOUT = 600  # seconds: a cell that hangs, not one that is slow

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def shape(output):
    """What an output is, whatever the machine that made it: a stream's name or its mime types."""
    kind = output["output_type"]
    what = output["name"] if kind == "stream" else sorted(output.get("data", ()))
    return kind, what


def strings(x):
    """All strings in nested lists and dictionaries; base64 holds no path."""
    if isinstance(x, str):
        yield x
    elif isinstance(x, dict):
        for key, value in x.items():
            yield from () if key.startswith("image/") and key != "image/svg+xml" else strings(value)
    elif isinstance(x, list):
        for value in x:
            yield from strings(value)


def execute(path, folder):
    """The notebook after a run in a fresh kernel that starts in `folder`."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=kernel_environment())
    return notebook


def kernel_environment():
    """Drawn by the kernel itself and computed on the CPU, as the committed outputs were."""
    environment = {name: x for name, x in os.environ.items() if name != "MPLBACKEND"}
    return environment | {"JAX_PLATFORMS": "cpu"}


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_it_runs_as_committed(path, tmp_path):
    fresh, committed = execute(path, tmp_path), read(path)
    for number, (new, old) in enumerate(
        zip(code_cells(fresh), code_cells(committed), strict=True), start=1
    ):
        shapes = [[shape(output) for output in cell["outputs"]] for cell in (new, old)]
        assert shapes[0] == shapes[1], f"code cell {number}:\n{''.join(new['source'])}"


@each_notebook
def test_it_is_valid(path):
    import nbformat

    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))


@each_notebook
def test_every_cell_was_run_once_in_order(path):
    counts = [cell["execution_count"] for cell in code_cells(read(path))]
    assert counts == list(range(1, len(counts) + 1))
    assert counts


@each_notebook
def test_no_output_is_an_error_or_a_warning(path):
    shapes = [shape(output) for output in outputs(read(path))]
    assert [s for s in shapes if s[0] == "error" or s == ("stream", "stderr")] == []


@each_notebook
def test_no_path_of_a_machine(path):
    found = [text for text in strings(read(path)) if MACHINE_PATH.search(text)]
    assert found == []


@each_notebook
def test_nothing_is_kept_but_what_a_reader_needs(path):
    notebook = read(path)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    kept = {name for cell in notebook["cells"] for name in cell["metadata"]}
    assert kept <= {"tags"}  # No times, no state of an editor.


@each_notebook
def test_pictures_are_there_and_small(path):
    pictures = [output["data"]["image/png"] for output in outputs(read(path)) if is_picture(output)]
    sizes = [len(base64.b64decode(picture)) for picture in pictures]
    assert sizes and max(sizes) <= PICTURE_LIMIT


def is_picture(output):
    return "image/png" in output.get("data", ())
