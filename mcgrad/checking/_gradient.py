"""The gradient against finite differences; kinks; arguments whose gradient was dropped."""

from typing import Any

import numpy as np

from mcgrad.checking._diagnosis import diagnose
from mcgrad.checking._judging import (
    Judgement,
    judge,
    judge_entry,
    judge_leaf,
    numbers,
    pushed,
    record,
)
from mcgrad.checking._run import Run

__all__ = ["check_differences"]

FULL = 1024  # up to so many inputs every entry is compared by itself
BLOCKS = 8  # blocks of an argument that is not compared entry by entry
SAMPLES = 8  # entries of such an argument that are compared all the same


def check_differences(run: Run) -> None:
    """The gradient against differences: joint directions, blocks of each argument, entries."""
    if not (run.has_reverse or run.has_forward):
        return
    entries = sum(x.size for x in run.point)
    limit = FULL if run.programs.is_compiled else FULL // 16
    small = entries <= limit and entries * run.subject.outputs <= limit**2
    full = run.has_reverse and (small if run.full is None else run.full)
    judged = [_judge_directions(run, i) for i in range(len(run.leaves))]
    coordinates: list[dict[int, Judgement]] = [
        {int(k): judge_entry(run, i, k) for k in _chosen(run, i, full)} if run.has_reverse else {}
        for i in range(len(run.leaves))
    ]
    expected = [_expected(run, i, c) for i, c in enumerate(coordinates)] if full else []
    any_wrong = False
    for i, leaf in enumerate(run.leaves):
        wrong = [k for k, j in coordinates[i].items() if j.verdict == "wrong"]
        blocks = [part for part, j in judged[i] if j.verdict == "wrong"]
        any_wrong |= bool(wrong or blocks)
        if not run.has_reverse:
            for j in (j for _, j in judged[i] if j.verdict == "wrong"):
                run.fail("differences", "the forward-mode derivative is wrong", leaf, **numbers(j))
        elif blocks and not wrong:
            k = _worst_entry(run, i, blocks[0])
            wrong = [k]
            coordinates[i] |= {int(k): judge_entry(run, i, k) for k in _around(run, i, k)}
        if wrong:
            _report_wrong(run, i, wrong, coordinates[i], expected, full)
        everything = [*(j for _, j in judged[i]), *coordinates[i].values()]
        for check in ("differences", "kinks"):
            record(run, check, *everything)
        judged_ones = [j for j in everything if j.is_judged]
        errors = np.array([j.slope.distance(j.predicted) for j in judged_ones])
        run.record_error("differences", i, errors, np.array([j.nearest for j in judged_ones]))
        if any(j.is_judged for j in everything):
            run.count("coverage", 0.0, 1.0)
        _note_kinks_and_gaps(run, i, judged[i], coordinates[i], full)
    if not any_wrong:
        _judge_joint(run)


def _judge_directions(run: Run, i: int) -> list[tuple[np.ndarray, Judgement]]:
    """One random direction per block of the leaf; the blocks cover all of it."""
    length, size = run.scales[i], run.point[i].size
    parts = []
    for block in np.array_split(np.arange(size), min(BLOCKS, max(size // 16, 1))):
        part = np.zeros(size)
        part[block] = run.random.normal(size=block.size)
        parts.append(part.reshape(length.shape) * length)
    return [(part, judge_leaf(run, i, part)) for part in parts if part.any()]


def _judge_joint(run: Run) -> None:
    """Random directions through all arguments at once."""
    for _ in range(run.directions if any(x.any() for x in run.scales) else 0):
        direction = [run.random.normal(size=x.shape) * x for x in run.scales]
        if run.has_reverse:
            products = [g * d for g, d in zip(run.gradient, direction, strict=True)]
            predicted = float(sum(p.sum() for p in products))
            scale = float(sum(np.abs(p).sum() for p in products))
        else:
            predicted, scale = pushed(run, direction, run.weights)
        j = judge(run, direction, predicted, scale, run.weights)
        record(run, "differences", j)
        if j.verdict == "wrong":
            sentence = "along a direction through all arguments the derivative is wrong"
            run.fail("differences", sentence, **numbers(j))


def _chosen(run: Run, i: int, full: bool) -> np.ndarray:
    movable = np.flatnonzero(run.scales[i])
    if full or movable.size <= SAMPLES:
        return movable
    return np.sort(run.random.choice(movable, SAMPLES, replace=False))


def _expected(run: Run, i: int, coordinates: dict[int, Judgement]) -> np.ndarray:
    """The gradient of a leaf by differences, as near to the given one as a kink allows."""
    gradient = run.gradient[i].ravel().copy()
    for k, j in coordinates.items():
        if j.verdict == "wrong":
            gradient[k] = j.nearest / run.scales[i].ravel()[k]
    return gradient.reshape(run.point[i].shape)


def _worst_entry(run: Run, i: int, part: np.ndarray) -> int:
    """Halve a direction along which the derivative is wrong until one entry is left."""
    inside = np.flatnonzero(part)
    while inside.size > 1:
        halves = np.array_split(inside, 2)
        found = []
        for half in halves:
            kept = np.zeros(part.size)
            kept[half] = part.ravel()[half]
            j = judge_leaf(run, i, kept.reshape(part.shape))
            found.append(j.slope.distance(j.predicted) / j.allowed if j.allowed > 0 else 0.0)
        inside = halves[int(np.argmax(found))]
    return int(inside[0])


def _around(run: Run, i: int, k: int) -> np.ndarray:
    """Entries to look at beside a wrong one: its neighbours and others from everywhere."""
    movable = np.flatnonzero(run.scales[i])
    near = np.clip(np.arange(k - 2, k + 3), 0, run.point[i].size - 1)
    far = run.random.choice(movable, min(movable.size, 32), replace=False)
    return np.union1d(np.intersect1d(near, movable), far)


def _report_wrong(
    run: Run,
    i: int,
    wrong: list[int],
    coordinates: dict[int, Judgement],
    expected: list[np.ndarray],
    full: bool,
) -> None:
    """The finding for one leaf: the worst entry, the check that it belongs to, the diagnosis."""
    leaf, length = run.leaves[i], run.scales[i].ravel()
    worst = max(wrong, key=lambda k: coordinates[k].slope.distance(coordinates[k].predicted))
    j, size = coordinates[worst], length[worst]
    if full:
        sentence = run.explain(i, expected[i], _allowed(run, i, coordinates), expected)
    else:
        sentence = _explain_sample(run, i, coordinates)
    check = "differences"
    if not run.gradient[i].any():
        check = "coverage"
    elif j.slope.kink:
        check = "kinks"
        slopes = f"{j.slope.low / size:.7g} and {j.slope.high / size:.7g}"
        sentence = f"at a kink the gradient lies outside the one-sided slopes {slopes}"
    elif _right_for_equal_cotangents(run, i, worst):
        check = "cotangent"
        sentence = f"right for equal cotangents, wrong where they differ by output: {sentence}"
    error = j.slope.distance(j.predicted)
    check = check if run.on(check) else "differences"
    if not run.on(check):
        return
    run.fail(
        check,
        sentence,
        leaf,
        np.unravel_index(worst, leaf.shape),
        got=j.predicted / size,
        expected=j.nearest / size,
        error=error / size,
        tolerance=j.allowed / size,
    )


def _allowed(run: Run, i: int, coordinates: dict[int, Judgement]) -> np.ndarray:
    """The tolerance of every entry of a leaf."""
    tolerance, length = np.zeros(run.point[i].size), run.scales[i].ravel()
    for k, j in coordinates.items():
        tolerance[k] = j.allowed / length[k]
    return tolerance.reshape(run.point[i].shape)


def _explain_sample(run: Run, i: int, coordinates: dict[int, Judgement]) -> str:
    """A diagnosis from the entries that were looked at one by one."""
    bad = [k for k, j in coordinates.items() if j.verdict == "wrong"]
    seen = bad if len(bad) == 1 else sorted(coordinates)
    expected = _expected(run, i, coordinates).ravel()[seen]
    got, x = (leaf[i].ravel()[seen] for leaf in (run.gradient, run.point))
    sentence = diagnose(
        got, expected, x, run.sizes, {}, _allowed(run, i, coordinates).ravel()[seen]
    )
    if len(bad) == 1:
        place = ", ".join(str(int(k)) for k in np.unravel_index(bad[0], run.leaves[i].shape))
        sentence = f"only the entry [{place}] is wrong: {sentence}"
    unseen = run.point[i].size - len(coordinates)
    return f"{sentence} (from {len(coordinates)} entries; {unseen} were not looked at)"


def _right_for_equal_cotangents(run: Run, i: int, worst: int) -> bool:
    if run.subject.outputs == 1 or not run.on("cotangent"):
        return False
    ones = np.ones(run.subject.outputs)
    gradient = run.pull_within(run.point, ones)[1]
    if judge_entry(run, i, worst, ones, gradient).verdict != "right":
        return False
    part = run.random.normal(size=run.point[i].shape) * run.scales[i]
    return judge_leaf(run, i, part, ones, gradient).verdict == "right"


def _note_kinks_and_gaps(run: Run, i: int, directions: Any, coordinates: Any, full: bool) -> None:
    leaf = run.leaves[i]
    if not run.point[i].size:
        run.notes.append(f"{leaf}: empty, so that there is nothing to compare")
        return
    kinks = [k for k, j in coordinates.items() if j.slope.kink and j.verdict != "wrong"]
    if kinks:
        first = ", ".join(str(tuple(map(int, np.unravel_index(k, leaf.shape)))) for k in kinks[:3])
        more = f" and {len(kinks) - 3} more" if len(kinks) > 3 else ""
        run.kinks.append(f"{leaf}: the gradient lies between the slopes at {first}{more}")
    if not full:
        lost = sum(j.verdict == "kink" for _, j in directions)
        blunt = f"; {lost} of the blocks meet a kink and were not judged" if lost else ""
        run.notes.append(
            f"{leaf}: {len(directions)} random directions (one per block) and {len(coordinates)} "
            f"of {run.point[i].size} entries by themselves{blunt}"
        )
    verdicts = [j.verdict for j in (*coordinates.values(), *(j for _, j in directions))]
    for verdict, what in (
        ("unresolved", "are too uncertain to judge by (a jump, a vertical slope, or rounding)"),
        ("blunt", "are so uncertain that only a gross error would show"),
    ):
        if verdict in verdicts:
            count = verdicts.count(verdict)
            run.notes.append(f"{leaf}: {count} of {len(verdicts)} differences {what}")
    still = int((run.scales[i] == 0).sum())
    if still:
        run.notes.append(f"{leaf}: {still} entries are NaN or infinite and were not moved")
