"""One run of the checker: the numbers that several checks need, and the report as it grows."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from mcgrad.checking._diagnosis import diagnose
from mcgrad.checking._differences import Ladder, Slope, slope
from mcgrad.checking._report import CheckSummary, Finding
from mcgrad.checking._subject import Leaf, Subject, attempt, precision

__all__ = ["EPS", "Run", "distance", "floats", "largest", "natural_scale"]

EPS = float(np.finfo(np.float64).eps)


def floats(arrays: Sequence[Any]) -> list[np.ndarray]:
    """The arrays on the host, in float64."""
    return [np.asarray(x).astype(np.float64) for x in arrays]


def natural_scale(x: np.ndarray) -> np.ndarray:
    """For each entry the length over which a function may be expected to change.

    The entry's own size; for entries much smaller than the rest, an eighth of the typical size;
    1 for zeros among zeros; 0 for what is not finite, which is left alone.
    """
    size = np.where(np.isfinite(x), np.abs(x), 0.0)
    typical = np.sqrt(np.mean((size / max(size.max(initial=0), 1e-300)) ** 2)) * size.max(initial=0)
    if not typical > 0:
        return np.where(np.isfinite(x), 1.0, 0.0)
    return np.where(np.isfinite(x), np.maximum(size, typical / 8), 0.0)


class Run:
    """The state of one `check_gradients` call."""

    def __init__(
        self,
        subject: Subject,
        enabled: Sequence[str],
        modes: Sequence[str] | None,
        directions: int,
        full: bool | None,
        seed: int,
        rtol: float | None,
    ) -> None:
        self.subject, self.programs, self.leaves = subject, subject.programs, subject.leaves
        self.enabled, self.modes, self.directions, self.full = enabled, modes, directions, full
        self.random = np.random.default_rng(seed)
        self.findings: list[Finding] = []
        self.kinks: list[str] = []
        self.notes: list[str] = list(subject.notes)
        self.counts: dict[str, int] = {}
        self.worst: dict[str, float] = {}
        self._set_precision(rtol)

    # What everything is compared at.

    def _set_precision(self, rtol: float | None) -> None:
        """float64 for values and for gradients, each where the function allows it."""
        subject = self.subject
        weights = np.ones(subject.outputs)
        self.eps, self.dtypes = {}, {}
        programs = {
            "values": lambda active, fixed: self.programs.call(active, fixed),
            "gradients": lambda active, fixed: self.programs.bare_pullback(active, fixed, weights),
        }
        trace = jax.eval_shape if self.programs.is_compiled else (lambda f, *a: f(*a))
        for what, program in programs.items():
            with jax.enable_x64(True):
                own, double = subject.cast(), subject.cast(np.float64)
                _, problem = attempt(trace, program, *double)
                _, deeper = attempt(trace, program, *own) if problem else (None, "")
                dtype = None if problem and not deeper else np.float64
                eps, _ = attempt(precision, program, *(double if dtype else own))
            if dtype is None:
                coarsest = max(float(jax.numpy.finfo(leaf.dtype).eps) for leaf in self.leaves)
                eps = max(eps or EPS, coarsest)
                self.notes.append(
                    f"float64: the {what} cannot be computed in it ({problem}); "
                    f"they are compared with the accuracy of their own dtype"
                )
            elif eps and eps > EPS:
                self.notes.append(
                    f"float64: the {what} are narrowed to a relative accuracy of {eps:.1g} on the "
                    f"way, and are compared with that accuracy"
                )
            self.eps[what], self.dtypes[what] = eps or EPS, dtype
        least = 1e-6 if max(self.eps.values()) <= EPS else 32 * max(self.eps.values())
        self.rtol = least if rtol is None else rtol

    @cached_property
    def point(self) -> list[np.ndarray]:
        """The values of the leaves in float64."""
        return floats(self.subject.own)

    @cached_property
    def weights(self) -> np.ndarray:
        """The cotangent of the outputs: 1 for a single one, else of mixed sign and size."""
        count = self.subject.outputs
        if count == 1:
            return np.ones(1)
        return self.random.uniform(0.5, 1.5, count) * self.random.choice([-1.0, 1.0], count)

    @cached_property
    def base(self) -> tuple[np.ndarray, list[np.ndarray]]:
        return self.pull(self.point, self.weights)

    @property
    def gradient(self) -> list[np.ndarray]:
        return self.base[1]

    @cached_property
    def has_reverse(self) -> bool:
        """Whether reverse mode works at all; if it should and does not, that is a finding."""
        if self.modes is not None and "rev" not in self.modes:
            return False
        _, problem = attempt(lambda: self.base)
        structural = "Reverse-mode differentiation does not work" in problem
        if problem and structural and self.modes is None:
            self.notes.append(f"reverse mode: does not exist for this function ({problem})")
        elif problem:
            self.fail("differences", f"reverse mode fails: {problem}")
        return not problem

    @cached_property
    def has_forward(self) -> bool:
        """Whether forward mode works; a custom_vjp refuses it, which is nobody's mistake."""
        if self.modes is not None and "fwd" not in self.modes:
            return False
        with jax.enable_x64(True):
            args = *self.exact("gradients", self.point), self.scales
            _, problem = attempt(self.programs.pushforward, *args)
        refused = "custom_vjp" in problem or "forward-mode" in problem
        if problem and refused and self.modes is None:
            self.notes.append("forward mode: refused by a custom_vjp, so only reverse is checked")
        elif problem:
            self.fail("adjoint", f"forward mode fails: {problem}")
        return not problem

    @cached_property
    def scales(self) -> tuple[np.ndarray, ...]:
        return tuple(natural_scale(x) for x in self.point)

    @cached_property
    def value_size(self) -> float:
        with jax.enable_x64(True):
            y = np.asarray(self.programs.value(*self.exact("values", self.point)))
        return float(np.abs(y * self.weights)[np.isfinite(y)].sum())

    def rounding(self, i: int) -> float:
        """What rounding alone may do to a gradient, judged by the size of value and argument."""
        length = float(self.scales[i].max(initial=0.0))
        return 64 * self.eps["gradients"] * self.value_size / max(length, 1e-300)

    # Numbers.

    def pull(self, active: Sequence[Any], weights: np.ndarray) -> tuple[Any, list[np.ndarray]]:
        """Value and gradient as exactly as the function allows."""
        with jax.enable_x64(True):
            y, slopes = self.programs.pullback(*self.exact("gradients", active), weights)
            return np.asarray(y), floats(slopes)

    def own_pull(
        self, active: Sequence[Any], weights: np.ndarray, dtype: Any = None
    ) -> tuple[np.ndarray, list[Any]]:
        """Value and gradient in another dtype (its own if None), with the user's configuration."""
        arguments = self.subject.cast(dtype, active)
        weights = weights.astype(jax.numpy.result_type(float))
        with jax.default_matmul_precision("highest"):  # else accelerators round float32 products
            y, slopes = self.programs.pullback(*arguments, weights)
        return np.asarray(y), [np.asarray(g) for g in slopes]

    def slope(
        self,
        direction: Sequence[np.ndarray],
        weights: np.ndarray,
        point: Any = None,
        *,
        shrink: float = 1.0,
        gradients_of: Sequence[np.ndarray] | None = None,
    ) -> Slope:
        """The derivative along a direction of <weights, value>, or of <gradients_of, gradient>."""
        what = "values" if gradients_of is None else "gradients"
        ladder = Ladder(self.eps[what], shrink)
        program = getattr(self.programs, what)
        extra = () if gradients_of is None else (gradients_of,)
        with jax.enable_x64(True):
            arguments = self.exact(what, self.point if point is None else point)
            values = program(*arguments, weights, tuple(direction), ladder.offsets, *extra)
            return slope(np.asarray(values), ladder)

    def exact(self, what: str, active: Sequence[Any]) -> tuple[Any, Any]:
        if self.dtypes[what] is not None:
            return self.subject.cast(np.float64, active)
        narrow = [
            np.asarray(x).astype(leaf.dtype) for x, leaf in zip(active, self.leaves, strict=True)
        ]
        return self.subject.cast(None, narrow)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Sizes that a wrong factor may turn out to be, by what they are called."""
        sizes = {}
        for leaf in self.leaves:
            for axis, size in enumerate(leaf.shape):
                sizes[f"the length of axis {axis} of {leaf}"] = size
            if len(leaf.shape) > 1:
                sizes[f"the number of entries of {leaf}"] = int(np.prod(leaf.shape))
        return sizes | {"the number of outputs": self.subject.outputs}

    def explain(
        self,
        i: int,
        expected: np.ndarray,
        tolerance: np.ndarray,
        gradients: Sequence[np.ndarray],
    ) -> str:
        """What is wrong with the gradient of leaf i, given the right ones of all leaves."""
        others = {
            str(leaf): (x, g)
            for n, (leaf, x, g) in enumerate(zip(self.leaves, self.point, gradients, strict=True))
            if n != i
        }
        return diagnose(self.gradient[i], expected, self.point[i], self.sizes, others, tolerance)

    # The report.

    @property
    def is_wrong(self) -> bool:
        """Whether the gradient itself is wrong, so that all that follows from it is."""
        return any(f.check in ("differences", "coverage", "cotangent") for f in self.findings)

    def on(self, check: str) -> bool:
        return check in self.enabled

    def fail(
        self,
        check: str,
        diagnosis: str,
        leaf: Leaf | None = None,
        entry: Any = None,
        *,
        got: Any = "an error",
        expected: Any = "a gradient",
        error: Any = None,
        tolerance: Any = None,
        argument: str = "all arguments",
    ) -> None:
        """Add a finding; only the first for a check and a leaf."""
        if error is None:
            self.counts[check] = self.counts.get(check, 0) + 1
        else:
            self.count(check, error, tolerance)
        place = (leaf.argument, leaf.path) if leaf else (argument, "")
        if any((f.check, f.argument, f.leaf) == (check, *place) for f in self.findings):
            return
        entry = None if entry is None else tuple(int(i) for i in entry)
        got, expected, error, tolerance = (
            x if x is None or isinstance(x, str) else float(x)
            for x in (got, expected, error, tolerance)
        )
        self.findings.append(
            Finding(check, *place, entry, got, expected, error, tolerance, diagnosis)
        )

    def count(self, check: str, error: Any, tolerance: Any) -> None:
        """Record comparisons that were made."""
        error, tolerance = np.broadcast_arrays(error, tolerance)
        self.counts[check] = self.counts.get(check, 0) + error.size
        if error.size:
            ratio = np.where(error > 0, error / tolerance, 0.0)
            worst = float(np.nan_to_num(ratio, nan=np.inf, posinf=np.inf).max())
            self.worst[check] = max(self.worst.get(check, 0.0), worst)

    def compare(
        self,
        check: str,
        got: Any,
        expected: Any,
        tolerance: Any,
        diagnosis: str | Callable[[], str],
        leaf: Leaf | None = None,
        argument: str = "value",
    ) -> bool:
        """Compare two arrays entry by entry; the worst entry becomes a finding."""
        got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
        error, tolerance = distance(got, expected), np.broadcast_to(tolerance, got.shape)
        self.count(check, error, tolerance)
        if not (error > tolerance).any():
            return True
        worst = np.unravel_index(np.argmax(error - tolerance), got.shape)
        sentence = diagnosis if isinstance(diagnosis, str) else diagnosis()
        self.fail(
            check,
            sentence,
            leaf,
            worst,
            got=got[worst],
            expected=expected[worst],
            error=error[worst],
            tolerance=tolerance[worst],
            argument=argument,
        )
        return False

    def summaries(self, checks: Sequence[str]) -> tuple[CheckSummary, ...]:
        failed = {finding.check for finding in self.findings}
        ran = {check for check in self.counts if self.on(check)}
        return tuple(
            CheckSummary(
                check,
                "failed" if check in failed else "passed" if check in ran else "not run",
                self.counts.get(check, 0),
                self.worst.get(check, 0.0),
            )
            for check in checks
        )


def largest(x: np.ndarray) -> float:
    """The largest finite size in an array."""
    size = np.abs(x)
    return float(np.max(size, where=np.isfinite(size), initial=0.0))


def distance(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """|got - expected|: 0 where both are the same infinity or NaN, inf where only one is."""
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    error = np.abs(got - expected)
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))
