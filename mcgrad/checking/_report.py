"""What a check found: findings, a summary per check, and what was not covered."""

import html
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["CheckSummary", "Finding", "GradientErrors", "GradientReport", "aligned", "jsonable"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        check: the name of the check that found it, one of `CHECKS`.
        argument: the argument whose gradient is wrong, or "value" for the value itself.
        leaf: the path of the leaf inside a pytree argument, "" for an array.
        entry: the index of the worst entry, None where the finding is about the whole leaf.
        got: what the function gave.
        expected: what it should have been.
        error: how far apart they are.
        tolerance: how far apart they may be.
        diagnosis: one sentence on what is probably wrong.
    """

    check: str
    argument: str
    leaf: str
    entry: tuple[int, ...] | None
    got: float | str
    expected: float | str
    error: float | None
    tolerance: float | None
    diagnosis: str

    @property
    def place(self) -> str:
        """Argument, leaf and entry in one expression."""
        entry = "" if not self.entry else f"[{', '.join(map(str, self.entry))}]"
        return f"{self.argument}{self.leaf}{entry}"


@dataclass(frozen=True)
class CheckSummary:
    """One line of the table.

    Attributes:
        check: its name.
        result: "passed", "failed", "not judged" (it found nothing that it could judge by: why is
            under `not_covered`), or "not run" (it was not asked for).
        comparisons: how many comparisons were made.
        worst: the largest error among them, as a fraction of its tolerance.
    """

    check: str
    result: str
    comparisons: int
    worst: float


@dataclass(frozen=True)
class GradientErrors:
    """How far the gradient of one array lies from what it was compared with.

    An error is relative: the norm of the difference, divided by the norm of what is right. It is
    None where nothing was compared.

    Attributes:
        argument: the argument that the array belongs to.
        leaf: its path inside a pytree argument, "" for an array.
        reference: against the reference, by autodiff.
        differences: against differences, along all directions that could be judged.
        own_dtype: in the dtype of the array, against the gradient in float64.
        ok: whether nothing was found to be wrong with it.
    """

    argument: str
    leaf: str
    reference: float | None
    differences: float | None
    own_dtype: float | None
    ok: bool


@dataclass(frozen=True)
class GradientReport:
    """The result of `check_gradients`. It prints as a table; in a notebook it shows as one.

    Attributes:
        function: the name of the function.
        seed: the seed of all random choices.
        findings: what is wrong, in the order of the checks.
        checks: one summary per check.
        gradients: the errors of the gradient of each array, as far as the checks compared them.
        kinks: places where the function has a kink and the gradient lies between its slopes.
        not_covered: what the checks could not judge, and why.
        judged: whether the gradient was compared at all: with differences or with a reference where
            these were asked for, for no other check knows what it should be.
    """

    function: str
    seed: int
    findings: tuple[Finding, ...]
    checks: tuple[CheckSummary, ...]
    gradients: tuple[GradientErrors, ...]
    kinks: tuple[str, ...]
    not_covered: tuple[str, ...]
    judged: bool

    @property
    def ok(self) -> bool:
        """Whether the gradient was judged, and nothing was found."""
        return self.judged and not self.findings

    def raise_for_findings(self) -> "GradientReport":
        """Raise an AssertionError whose message is the table, unless the report is `ok`.

        Returns:
            The report itself, so that calls can be chained.
        """
        if not self.ok:
            raise AssertionError(f"\n{self}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """The report in dictionaries, lists, strings and numbers: what JSON can hold.

        NaN and infinities, which JSON cannot, are strings.
        """
        return {"ok": self.ok, **jsonable(asdict(self))}

    def __str__(self) -> str:
        count = len(self.findings)
        verdict = f"{count} finding{'s' * (count > 1)}" if count else "no findings"
        if not (count or self.judged):
            verdict = "nothing could be judged"
        parts = [f"{self.function}: {verdict} (seed {self.seed})", aligned(self._table())]
        for number, finding in enumerate(self.findings, start=1):
            parts.append(
                f"{number}. {finding.check}: {finding.place}\n"
                f"   {_comparison(finding)}\n   {finding.diagnosis}"
            )
        for title, lines in (("Kinks", self.kinks), ("Not covered", self.not_covered)):
            if lines:
                parts.append("\n".join([title, *(f"- {line}" for line in lines)]))
        return "\n\n".join(parts)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        rows = self._table()
        found = [
            [finding.check, finding.place, _comparison(finding), finding.diagnosis]
            for finding in self.findings
        ]
        parts = [f"<p><b>{html.escape(str(self).splitlines()[0])}</b></p>", _html_table(rows)]
        if found:
            parts.append(_html_table([["check", "where", "what", "diagnosis"], *found]))
        for title, lines in (("Kinks", self.kinks), ("Not covered", self.not_covered)):
            if lines:
                items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
                parts.append(f"<p>{title}</p><ul>{items}</ul>")
        return "\n".join(parts)

    def _table(self) -> list[list[str]]:
        rows = [["check", "result", "comparisons", "worst error / tolerance"]]
        for check in self.checks:
            compared = check.result in ("passed", "failed")
            numbers = [str(check.comparisons), f"{check.worst:.2g}"] if compared else ["", ""]
            rows.append([check.check, check.result, *numbers])
        return rows


def number(x: Any) -> str:
    """A number as the table shows it."""
    return x if isinstance(x, str) else f"{x:.7g}"


def _comparison(finding: Finding) -> str:
    text = f"got {number(finding.got)}, expected {number(finding.expected)}"
    if finding.error is None or finding.tolerance is None:
        return text
    return f"{text}: error {finding.error:.2g}, tolerance {finding.tolerance:.2g}"


def aligned(rows: list[list[str]]) -> str:
    """Rows of text as a table; the first is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _html_table(rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows[1:])
    return f"<table><thead>{line(rows[0], 'th')}</thead><tbody>{body}</tbody></table>"


def jsonable(x: Any) -> Any:
    """The same as dictionaries, lists, strings and numbers: what JSON can hold.

    Named tuples become dictionaries; NaN and infinities, which JSON cannot hold, become strings.
    """
    if hasattr(x, "_asdict"):
        return jsonable(x._asdict())
    if isinstance(x, Mapping):
        return {key: jsonable(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [jsonable(value) for value in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x
