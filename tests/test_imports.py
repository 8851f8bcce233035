"""The floors of the house: imports run downwards only, and only the top floors print."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "mcgrad"

# From the ground up. "" is mcgrad/__init__.py, the public names. A name stands for a module or for
# a package with all its modules, which may import each other.
FLOORS = [
    {"_arrays"},
    {"_mesh"},
    {"_blocks", "_merge", "_modes", "_ramp", "_reduction"},
    {"_arguments"},
    {"losses"},
    {"checking", "sharding"},
    {""},
    {"audit", "demo"},
    {"cli"},
    {"__main__"},
]
PRINTS = {"demo", "cli"}


def sources():
    """Dotted name within mcgrad -> text; a package has the name of its __init__.py."""
    names = {path: path.relative_to(ROOT).with_suffix("").parts for path in ROOT.rglob("*.py")}
    return {
        ".".join(part for part in parts if part != "__init__"): path.read_text()
        for path, parts in names.items()
    }


def part(name):
    return name.split(".")[0]


def imported(name, text, names):
    """The modules of mcgrad that this text imports, whichever way it is written."""
    package = ["mcgrad", *name.split(".")] if name else ["mcgrad"]
    if not any(other.startswith(f"{name}.") for other in names) and name:
        package.pop()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, node.module] if node.module else base)
            # `from mcgrad import x` imports the module x if there is one, else a public name.
            modules = [f"{base}.{alias.name}" for alias in node.names]
            modules = [m if m.removeprefix("mcgrad.") in names else base for m in modules]
        else:
            continue
        for module in modules:
            if module == "mcgrad" or module.startswith("mcgrad."):
                yield module.removeprefix("mcgrad").removeprefix(".")


def violations(texts):
    """Every import that does not run downwards, every print below the top."""
    floor = {name: height for height, names in enumerate(FLOORS) for name in names}
    wrong = [f"{name} has no floor" for name in texts if part(name) not in floor]
    for name, text in texts.items():
        here = part(name)
        for other in imported(name, text, texts):
            inside = here == part(other) and here != ""
            if not inside and floor[part(other)] >= floor.get(here, len(FLOORS)):
                wrong.append(f"{name} imports {other}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and here not in PRINTS:
                called = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
                wrong += [f"{name}:{node.lineno} prints"] if called == "print" else []
    return wrong


def test_imports_run_downwards_and_only_the_top_prints():
    assert violations(sources()) == []


@pytest.mark.parametrize(
    "planted",
    [
        {"_arrays": "import mcgrad._ramp", "_ramp": ""},
        {"_ramp": "from mcgrad._blocks import walk", "_blocks": ""},
        {"_modes": "from mcgrad import _reduction", "_reduction": ""},
        {"losses": "", "losses.one": "from mcgrad import pair", "": "pair = 1"},
        {"losses": "", "losses.one": "from ..checking import check_gradients", "checking": ""},
        {"sharding": "def late():\n    from . import checking", "checking": ""},
        {"": "from mcgrad.demo import main", "demo": ""},
        {"losses": "", "losses.one": "import jax\njax.debug.print('here')"},
        {"checking": "print('wrong')"},
        {"unknown": ""},
    ],
    ids=lambda planted: " ".join(text for text in planted.values() if text) or "a new part",
)
def test_a_planted_violation_is_found(planted):
    assert len(violations(planted)) == 1


def test_what_is_allowed_is_not_reported():
    allowed = {
        "_arrays": "import jax",
        "_ramp": "from mcgrad._arrays import Array",
        "losses": "from mcgrad.losses.one import loss",
        "losses.one": "from . import _shared",
        "losses._shared": "from .._ramp import ramp",
        "": "from mcgrad.losses import loss",
        "demo": "import mcgrad\nprint(mcgrad)",
        "cli": "from mcgrad import demo",
        "__main__": "from mcgrad.cli import main",
    }
    assert violations(allowed) == []
