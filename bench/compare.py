"""Two runs side by side: what has become faster, slower, larger or smaller, and where they ran."""

from collections.abc import Callable, Iterator

from rich.table import Table

from bench.records import Result, Run, best, place, ratio, seconds, size, versions
from bench.report import times

__all__ = ["differences", "side_by_side"]


def side_by_side(old: Run, new: Run) -> Table:
    """The cases of both runs, a line each; every cell holds the old figure and the new one."""
    table = Table(title=f"{old.machine['date']} → {new.machine['date']}", title_justify="left")
    table.add_column("case", no_wrap=True)
    for column in ("mcgrad", "new / old", "autodiff / mcgrad", "mcgrad / floor", "temporaries"):
        table.add_column(column, justify="right")
    for before, after in _pairs(old, new):
        own = [best(result.sides, "mcgrad") for result in (before, after)]
        medians = [side and side.median for side in own]
        changed = own[1].median / own[0].median if own[0] and own[1] else None
        held = [side and side.temporaries for side in own]
        table.add_row(
            before.case,
            _both(medians, seconds),
            times(changed),
            _both([ratio(result.sides, "autodiff", "mcgrad") for result in (before, after)], times),
            _both([ratio(result.sides, "mcgrad", "floor") for result in (before, after)], times),
            _both(held, size),
        )
    return table


def differences(old: Run, new: Run) -> list[str]:
    """What keeps the figures from being compared, a line each."""
    lines = [
        f"{what}: {before} → {after}"
        for what, before, after in (
            ("machine", place(old.machine), place(new.machine)),
            ("Python", old.machine["python"], new.machine["python"]),
            ("versions", versions(old.machine), versions(new.machine)),
            ("sizes", _scale(old), _scale(new)),
        )
        if before != after
    ]
    for before, after in _pairs(old, new):
        for what in ("sizes", "dtype"):
            values = [getattr(result, what) for result in (before, after)]
            if values[0] != values[1] and (what == "dtype" or old.quick == new.quick):
                lines.append(f"{before.case}: {what} {_listed(values[0])} → {_listed(values[1])}")
    names = [[result.case for result in run.cases] for run in (old, new)]
    for what, own, others in (("old", *names), ("new", *reversed(names))):
        alone = [name for name in own if name not in others]
        if alone:
            lines.append(f"only in the {what} run: {', '.join(alone)}")
    return lines


def _pairs(old: Run, new: Run) -> Iterator[tuple[Result, Result]]:
    after = {result.case: result for result in new.cases}
    for result in old.cases:
        if result.case in after:
            yield result, after[result.case]


def _scale(run: Run) -> str:
    return "toys of --quick" if run.quick else "in full"


def _both(values: list, shown: Callable[[float], str]) -> str:
    texts = ["–" if value is None else shown(value) for value in values]
    return "" if values == [None, None] else " → ".join(texts)


def _listed(value: dict[str, int] | str) -> str:
    sizes = value.items() if isinstance(value, dict) else ()
    return ", ".join(f"{name} {number}" for name, number in sizes) or str(value)
