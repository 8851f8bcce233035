"""Docstrings as reStructuredText: the page shows what a reader of the source sees.

The docstrings are plain text in Google's form. Napoleon knows most of their sections; here the rest
is said in the markup that it means: an indented block is shown as it stands, `name` is code, or a
link where it is a public name, and an asterisk is an asterisk.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

import mcgrad

SECTION = re.compile(r"(Args|Attributes|Cost|Example|Raises|References|Returns):(.*)")


def marked(lines: list[str], names: set[str]) -> Iterator[str]:
    """The lines of a docstring, marked up, with links for these names."""
    section, margin, literal, blank = "", "", False, True
    for line in lines:
        if not line.strip():
            blank = True
            yield line
            continue
        opened = SECTION.fullmatch(line)
        if opened:
            section, margin, literal, line = opened.group(1), "", False, heading(opened)
        elif not line.startswith(" "):
            # What a call costs may take several paragraphs.
            section = section if section == "Cost" else ""
            literal = False
        elif blank and section in ("", "Cost") and not literal:
            literal = True
            yield from (f"{margin}::", "")
        yield margin + (line if literal or section == "Example" else inline(line, names))
        margin, blank = "    " if section == "Cost" else "", False


def heading(opened: re.Match[str]) -> str:
    """The first line of a section."""
    section, rest = opened.groups()
    # Napoleon takes what stands before a colon for the type that is returned, and has no costs.
    return {"Returns": ":returns:", "Cost": f":Cost:{rest}"}.get(section, opened.group())


def inline(line: str, names: set[str]) -> str:
    """A line of text: its asterisks, and what stands between backquotes."""

    def code(text: str) -> str:
        name = text.strip("`")
        return f":py:obj:`~mcgrad.{name}`" if name in names else f"``{name}``"

    parts = re.split(r"(``.+?``|`.+?`)", line)
    parts[::2] = [part.replace("*", r"\*") for part in parts[::2]]
    parts[1::2] = [part if part.startswith("``") else code(part) for part in parts[1::2]]
    return "".join(parts)


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # A parameter may have the name of a function, as that of `pair` which is called plain.
    own = set(inspect.signature(obj).parameters) if what == "function" else set()
    lines[:] = marked(lines, set(mcgrad.__all__) - own)


def setup(app: Sphinx) -> dict[str, bool]:
    # Before Napoleon, which has priority 500.
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
