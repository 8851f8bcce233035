"""The gradient in the dtypes and at the sizes in which it will be used."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from mcgrad.checking._diagnosis import diagnose
from mcgrad.checking._judging import judge, numbers, record
from mcgrad.checking._run import Run, distance, floats, largest, natural_scale
from mcgrad.checking._subject import attempt

__all__ = ["check_dtypes", "check_scales"]

EXTREMES = (1e-30, 1e-20, 1e-10, 1e-3, 10.0, 1e3, 1e10, 1e20, 1e30)
COMPARED_EXTREMES = (1e-3, 10.0, 1e3)  # further out, differences say too little
MANY = 65536  # from so many inputs on, arguments are scaled together only


def check_dtypes(run: Run) -> None:
    """Gradients of the dtype and shape of their arguments, right in float32, bf16 and float16."""
    if not run.has_reverse:
        return
    halves = [] if all(leaf.weak for leaf in run.leaves) else [jnp.bfloat16, np.float16]
    for dtype in [None, *halves]:
        name = "its own dtype" if dtype is None else np.dtype(dtype).name
        if dtype is not None and not _fits(run, dtype):
            run.notes.append(f"{name}: the arguments do not fit in it")
            continue
        result, problem = attempt(run.own_pull, run.subject.own, run.weights, dtype)
        if problem:
            run.notes.append(
                f"{name}: the function itself cannot be computed in it ({problem})"
            ) if (attempt(run.programs.value, *run.subject.cast(dtype))[1]) else run.fail(
                "dtypes", f"in {name} the gradient fails: {problem}", argument=name
            )
            continue
        for leaf, got in zip(run.leaves, result[1], strict=True):
            wanted = leaf.dtype if dtype is None else np.dtype(dtype)
            wanted = got.dtype if leaf.weak else wanted  # a Python number has no dtype of its own
            if got.dtype != wanted or got.shape != leaf.shape:
                sentence = "the gradient does not have the dtype and shape of its argument"
                what = [
                    f"{np.dtype(t).name}{list(s)}"
                    for t, s in ((got.dtype, got.shape), (wanted, leaf.shape))
                ]
                run.fail("dtypes", sentence, leaf, got=what[0], expected=what[1])
        if dtype is not None and run.draws_others(dtype):
            run.notes.append(f"{name}: in it the function draws other random numbers")
            continue
        _compare_narrow(run, dtype, name, result)


def _fits(run: Run, dtype: Any) -> bool:
    return all(np.isfinite(x.astype(dtype).astype(float)[np.isfinite(x)]).all() for x in run.point)


def _compare_narrow(run: Run, dtype: Any, name: str, result: Any) -> None:
    """A gradient in fewer bits against the one in float64 at the same, rounded, point."""
    wrong = _narrow_errors(run, dtype, run.subject.own, result)
    for _ in range(2):  # a value that rounds to the other side of a kink is no mistake
        if not wrong:
            return
        moved = [
            x
            if isinstance(x, float)
            else (np.asarray(x, np.float64) * run.random.uniform(0.8, 1.0, x.shape)).astype(x.dtype)
            for x in run.subject.own
        ]
        again = _narrow_errors(run, dtype, moved, run.own_pull_within(moved, run.weights, dtype))
        wrong = {i: wrong[i] for i in wrong if i in again}
    for i, (entry, got, expected, error, tolerance, sentence) in wrong.items():
        run.fail(
            "dtypes",
            f"in {name}: {sentence}",
            run.leaves[i],
            entry,
            got=got,
            expected=expected,
            error=error,
            tolerance=tolerance,
        )


def _narrow_errors(run: Run, dtype: Any, own: Any, result: Any) -> dict[int, tuple[Any, ...]]:
    values, slopes = result
    rounded = floats(run.subject.cast(dtype, own)[0])
    exact = run.pull_within(rounded, run.weights)
    eps = max(float(jnp.finfo(g.dtype).eps) for g in slopes)
    half = eps > 1e-5
    if not (np.isfinite(values).all() and np.isfinite(exact[0]).all()):
        return {}
    # An output too small for the dtype takes with it what it contributes to the gradient.
    least = max(float(jnp.finfo(g.dtype).smallest_normal) for g in slopes)
    lost = (np.abs(values) < least) & (values != exact[0])
    contributed = [np.zeros_like(x) for x in rounded]
    if lost.any():
        contributed = run.pull_within(rounded, np.where(lost, run.weights, 0.0))[1]
    moves = [np.zeros_like(x) for x in rounded]
    for _ in range(3):
        moved = [x * (1 + eps * run.random.uniform(-1, 1, x.shape)) for x in rounded]
        for move, g, e in zip(moves, run.pull_within(moved, run.weights)[1], exact[1], strict=True):
            np.fmax(move, distance(g, e), out=move)
    wrong = {}
    for i, (got, expected) in enumerate(zip(floats(slopes), exact[1], strict=True)):
        relative = 16 * eps if half else 4096 * eps
        natural = largest(values * run.weights) / max(np.nansum(np.abs(rounded[i])), 1e-300)
        tolerance = relative * (np.abs(expected) + largest(expected) / 4)
        tolerance = tolerance + 8 * moves[i] + 2 * largest(moves[i]) + 16 * eps * natural
        tolerance = tolerance + 16 * least + np.abs(contributed[i])
        error = distance(got, expected)
        if dtype is None:
            run.record_error("dtypes", i, error, expected)
        judged = np.isfinite(expected)
        if half:  # float16 overflows soon, and the function may be right to
            judged &= np.isfinite(got)
        error = np.where(judged, error, 0.0)
        run.count("dtypes", np.where(error > tolerance, 0.0, error)[judged], tolerance[judged])
        if (error > tolerance).any():
            k = np.unravel_index(np.argmax(error - tolerance), error.shape)
            sentence = diagnose(got, expected, rounded[i], run.sizes, {}, tolerance)
            wrong[i] = (k, got[k], expected[k], error[k], tolerance[k], sentence)
    return wrong


def check_scales(run: Run) -> None:
    """No NaN or infinity where the value is finite; right for large and small inputs."""
    if not run.has_reverse:
        return
    count = len(run.leaves)
    subsets = [list(range(count))] + ([[i] for i in range(count)] if count > 1 else [])
    if sum(x.size for x in run.point) > MANY:
        subsets = subsets[:1]
    _finite_at(run, run.subject.own, "")
    for scale in EXTREMES:
        for subset in subsets:
            own = [
                x
                if i not in subset
                else x * scale
                if isinstance(x, float)
                else (np.asarray(x, np.float64) * scale).astype(x.dtype)
                for i, x in enumerate(run.subject.own)
            ]
            if not all(np.isfinite(np.asarray(x, np.float64)).all() for x in own):
                continue
            where = "the arguments" if len(subset) == count else str(run.leaves[subset[0]])
            _finite_at(run, own, f" at {where} times {scale:g}")
            if scale in COMPARED_EXTREMES and not run.is_wrong:
                _compare_at(run, own, subset, f"at {where} times {scale:g}")


def _finite_at(run: Run, own: Any, where: str) -> None:
    values, slopes = run.own_pull_within(own, run.weights)
    if not np.isfinite(values).all():
        return
    exact_values, exact = run.pull_within(floats(own), run.weights)
    for leaf, got, expected in zip(run.leaves, slopes, exact, strict=True):
        largest = float(jnp.finfo(got.dtype).max) / 16
        got = np.asarray(got).astype(np.float64)
        too_large = np.isinf(expected) | (np.abs(expected) > largest)
        bad = ~np.isfinite(got) & ~too_large & np.isfinite(exact_values).all()
        run.count("scales", np.where(bad, 1.0, 0.0), 1.0 if not bad.any() else 0.5)
        if bad.any():
            entry = np.unravel_index(np.argmax(bad), bad.shape)
            run.fail(
                "scales",
                f"the gradient is not finite where the value is{where}",
                leaf,
                entry,
                got=got[entry],
                expected=expected[entry],
            )


def _compare_at(run: Run, own: Any, subset: list[int], where: str) -> None:
    """Differences along one direction per argument, at a scaled point."""
    point = floats(own)
    values, gradient = run.pull_within(point, run.weights)
    if not np.isfinite(values).all():
        return
    for i in subset:
        part = run.random.normal(size=point[i].shape) * natural_scale(point[i])
        direction = [part if n == i else np.zeros_like(x) for n, x in enumerate(point)]
        if not (part.any() and np.isfinite(gradient[i]).all()):
            continue
        predicted = float(np.vdot(gradient[i], part))
        scale = float(np.abs(gradient[i] * part).sum()) + 1e-6 * largest(part)
        j = judge(run, direction, predicted, scale, run.weights, point=point)
        record(run, "scales", j)
        if j.verdict == "wrong":
            sentence = f"{where} the derivative along a random direction is wrong"
            run.fail("scales", sentence, run.leaves[i], **numbers(j))
