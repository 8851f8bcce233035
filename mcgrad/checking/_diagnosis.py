"""What is probably wrong with a gradient, in one sentence, from the numbers alone."""

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["name_factor", "diagnose"]

FIT = 1e-4  # an explanation may leave this fraction of the error unexplained


def diagnose(
    got: np.ndarray,
    expected: np.ndarray,
    argument: np.ndarray,
    sizes: Mapping[str, int],
    others: Mapping[str, tuple[np.ndarray, np.ndarray]],
    tolerance: np.ndarray,
) -> str:
    """Explain a wrong gradient of one leaf.

    Args:
        got, expected: the gradient that came and the right one, of one shape: the leaf's, or one
            axis of sampled entries.
        argument: the values of the leaf at these entries.
        sizes: sizes that a factor may turn out to be, by what they are called.
        others: other leaves by name, each with its value and its right gradient.
        tolerance: by how much each entry may differ.
    """
    if not np.isfinite(got).all():
        return f"{(~np.isfinite(got)).sum()} of {got.size} entries are NaN or infinite"
    for explain in (_whole, _rearranged, _taken, _block, _term):
        sentence = explain(got, expected, argument, sizes, others, tolerance)
        if sentence:
            return sentence
    wrong = int((np.abs(got - expected) > tolerance).sum())
    return f"{wrong} of {got.size} entries are wrong, by no simple factor or term"


def name_factor(factor: float, sizes: Mapping[str, int]) -> str:
    """A factor in words: a sign, a small fraction, a size of the problem, or the number."""
    if abs(factor + 1) < FIT:
        return "the sign is flipped"
    sign = "with its sign flipped, " if factor < 0 else ""
    for name, size in sizes.items():
        if size > 1:
            for value, word in ((size, f"{size}"), (1 / size, f"1/{size}")):
                if np.isclose(abs(factor), value, rtol=FIT):
                    return f"{sign}off by the constant factor {word}, {name}"
    fractions = {a / b: f"{a}/{b}" if b > 1 else f"{a}" for b in (4, 3, 2, 1) for a in range(1, 5)}
    for value, word in fractions.items():
        if np.isclose(abs(factor), value, rtol=FIT):
            return f"{sign}off by the constant factor {word}"
    return f"{sign}off by the constant factor {abs(factor):.4g}"


def _factor(got: np.ndarray, expected: np.ndarray, tolerance: np.ndarray) -> float | None:
    """c, if got = c expected."""
    size = np.vdot(expected, expected)
    if size == 0:
        return None
    factor = float(np.vdot(expected, got) / size)
    slack = FIT * abs(factor - 1) * np.abs(expected).max() + tolerance
    return factor if (np.abs(got - factor * expected) <= slack).all() else None


def _whole(got, expected, argument, sizes, others, tolerance) -> str:
    if not got.any():
        return "the gradient is identically zero while the function moves: it looks dropped"
    if (np.abs(expected) <= tolerance).all():
        return "the function does not depend on this argument, yet the gradient is not zero"
    if got.size < 2:
        factor = float(got.ravel()[0] / expected.ravel()[0])
        return name_factor(factor, sizes)
    factor = _factor(got, expected, tolerance)
    return "" if factor is None else name_factor(factor, sizes)


def _rearranged(got, expected, argument, sizes, others, tolerance) -> str:
    if got.size < 2 or np.ptp(expected) == 0:
        return ""
    candidates = []
    if expected.ndim >= 2:
        swapped = np.swapaxes(expected, -1, -2)
        how = "transposed" if swapped.shape == got.shape else "transposed and then reshaped"
        candidates.append((swapped.reshape(got.shape), f"the gradient is {how}"))
    for axis in range(expected.ndim):
        flipped, rolled = np.flip(expected, axis), (np.roll(expected, s, axis) for s in (1, -1))
        candidates.append((flipped, f"the gradient is reversed along axis {axis}"))
        candidates += [(x, f"the gradient is shifted by one along axis {axis}") for x in rolled]
    for candidate, sentence in candidates:
        factor = _factor(got, candidate, tolerance)
        if factor is not None and np.isclose(factor, 1, rtol=FIT):
            return sentence
        if factor is not None and abs(factor) > FIT:
            return f"{sentence}, and {name_factor(factor, sizes)}"
    totals = np.sort(got.ravel()), np.sort(expected.ravel())
    if (np.abs(totals[0] - totals[1]) <= tolerance.min()).all():
        return "the entries are the right ones in the wrong places"
    for axis in range(expected.ndim):
        mean = np.broadcast_to(expected.mean(axis, keepdims=True), got.shape)
        factor = _factor(got, mean, tolerance)
        if factor is not None and expected.shape[axis] > 1:
            return f"the gradient is the same all along axis {axis}: it looks summed or averaged"
    return ""


def _taken(got, expected, argument, sizes, others, tolerance) -> str:
    for name, (_, gradient) in others.items():
        if gradient.shape == got.shape and (np.abs(got - gradient) <= tolerance).all():
            return f"this is the gradient with respect to {name}: the two look swapped"
    return ""


def _block(got, expected, argument, sizes, others, tolerance) -> str:
    """Wrong on one rectangular block, right elsewhere."""
    wrong = np.argwhere(np.abs(got - expected) > tolerance)
    if got.size < 2 or not len(wrong) or len(wrong) > got.size / 2:
        return ""
    low, high = wrong.min(0), wrong.max(0) + 1
    block = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    if np.prod(high - low) > max(1, 2 * len(wrong)) or np.prod(high - low) == got.size:
        return ""
    place = _slices(low, high, got.shape)
    inner = got[block], expected[block], argument[block], sizes, {}, tolerance[block]
    reason = _whole(*inner) or _term(*inner)
    if got[block].any() or not reason:
        reason = f": {reason}" if reason else ""
    else:
        reason = ": there the gradient is zero"
    what = "entry" if len(wrong) == 1 else "block"
    return f"only the {what} [{place}] is wrong{reason}"


def _slices(low: Sequence[int], high: Sequence[int], shape: Sequence[int]) -> str:
    def one(a: int, b: int, size: int) -> str:
        return f"{a}" if b == a + 1 and size > 1 else ":" if b - a == size else f"{a}:{b}"

    return ", ".join(one(a, b, size) for a, b, size in zip(low, high, shape, strict=True))


def _term(got, expected, argument, sizes, others, tolerance) -> str:
    """The error is a multiple of something simple: a term is missing, or one too many."""
    error = got - expected
    if got.size < 3:
        return ""
    candidates = {
        "the argument itself": argument,
        "a constant": np.ones(got.shape),
        "the sign of the argument": np.sign(argument),
        "the square of the argument": argument**2,
        "the cube of the argument": argument**3,
        "the gradient with no negative part": np.maximum(expected, 0),
        "the gradient with no positive part": np.minimum(expected, 0),
        "the square of the gradient": expected**2,
    }
    for name, (value, gradient) in others.items():
        if value.shape in (got.shape, ()):
            candidates[name] = np.broadcast_to(value, got.shape)
        if gradient.shape == got.shape:
            candidates[f"the gradient with respect to {name}"] = gradient
    for name, candidate in candidates.items():
        if not np.isfinite(candidate).all() or not candidate.any():
            continue
        factor = _factor(error, candidate, tolerance)
        if factor is not None and abs(factor) > 0:
            what = "missing" if factor < 0 else "too much"
            return f"a term that scales like {name} is {what} (coefficient {abs(factor):.4g})"
    if got.ndim >= 2:
        values = np.linalg.svd(error.reshape(got.shape[0], -1), compute_uv=False)
        if values[0] > 0 and values[1:].max(initial=0) < FIT * values[0] and len(values) > 1:
            return "the error is an outer product: one term with a wrong or missing factor"
    return ""
