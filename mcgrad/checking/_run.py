"""One run of the checker: the numbers that several checks need, and the report as it grows."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from mcgrad.checking._diagnosis import diagnose
from mcgrad.checking._differences import Ladder, Slope, slope
from mcgrad.checking._report import CheckSummary, Finding, GradientErrors
from mcgrad.checking._subject import Leaf, Subject, attempt, calls_host, draws, precision

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
    if not x.size:
        return np.zeros(x.shape)
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
        self.outside: dict[str, list[str]] = {}  # errors at inputs of the checker, by their type
        self.counts: dict[str, int] = {}
        self.knows_gradient = False  # whether any of it was judged by differences or a reference
        self.worst: dict[str, float] = {}
        self.errors: dict[tuple[str, int], float] = {}  # relative ones, by check and leaf
        self._set_precision(rtol)

    # What everything is compared at.

    def _set_precision(self, rtol: float | None) -> None:
        """float64 for values and for gradients, each where the function allows it."""
        subject, programs = self.subject, self.programs
        weights = np.ones(subject.outputs)
        self.eps, self.is_double, self.least = {}, {}, {}
        self.drawn: list[str] = []  # the random draws with the dtypes of the arguments
        reasons: dict[str, list[str]] = {}  # why float64 is not used, and for what
        refused = ""  # a reason that holds for every program

        def gradients(active: Any, fixed: Any) -> Any:
            return programs.bare_pullback(active, fixed, weights)

        for what, program in {"values": programs.call, "gradients": gradients}.items():
            with jax.enable_x64(True):
                double, problem = attempt(subject.look, program, *subject.cast(np.float64))
            own, deeper = None, ""
            if problem or calls_host(double) or draws(double):
                own, deeper = attempt(subject.look, program, *subject.cast())
                self.drawn = self.drawn or draws(own)
            reason = refused
            if problem and not deeper:
                reason = f"it cannot be used ({problem})"
            elif calls_host(double):
                reason = refused = "the function calls the host, where it may not be turned on"
            elif draws(own) != draws(double):
                reason = refused = "in it the function draws other random numbers"
            self.is_double[what] = not reason
            self.eps[what] = precision(own if reason else double)
            dtypes: list[Any] = [np.float64] if not reason else [x.dtype for x in self.leaves]
            if reason:
                reasons.setdefault(reason, []).append(what)
            elif self.eps[what] > EPS:
                self.notes.append(
                    f"float64: the {what} are narrowed to a relative accuracy of "
                    f"{self.eps[what]:.1g} on the way, and are compared with that accuracy"
                )
            limits = [jax.numpy.finfo(dtype) for dtype in dtypes]
            self.eps[what] = max(self.eps[what], *(float(limit.eps) for limit in limits))
            self.least[what] = max(float(limit.smallest_normal) for limit in limits)
        for reason, whats in reasons.items():
            self.notes.append(
                f"float64: {reason}; {' and '.join(whats)} are compared in their own dtype, "
                f"with its accuracy"
            )
        worst = max(self.eps.values())
        self.rtol = (1e-6 if worst <= EPS else 32 * worst) if rtol is None else rtol
        self.share = max(1e-3 * self.rtol, worst)

    def tolerance(self, size: np.ndarray) -> np.ndarray:
        """How far numbers of this size may be apart."""
        return self.rtol * size + self.share * largest(size)

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
        program = self.programs.pushforward
        _, problem = attempt(self.evaluate, "gradients", program, self.point, self.scales)
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
        y = self.evaluate("values", self.programs.value, self.point)
        return float(np.abs(y * self.weights)[np.isfinite(y)].sum())

    def rounding(self, i: int) -> float:
        """What rounding and underflow may do to a gradient, by the size of value and argument."""
        length = float(self.scales[i].max(initial=0.0))
        rounded = self.eps["gradients"] * self.value_size / max(length, 1e-300)
        return 64 * (rounded + self.least["gradients"])

    # Numbers.

    def draws_others(self, dtype: Any) -> bool:
        """Whether the function draws other random numbers with arguments of this dtype."""
        if not self.drawn:
            return False
        jaxpr, _ = attempt(self.subject.look, self.programs.call, *self.subject.cast(dtype))
        return draws(jaxpr) != self.drawn

    @contextlib.contextmanager
    def configuration(self, what: str) -> Iterator[None]:
        """float64 turned on where it is used; the user's own configuration elsewhere."""
        double = jax.enable_x64(True) if self.is_double[what] else contextlib.nullcontext()
        with double, jax.default_matmul_precision("highest"):  # else accelerators round products
            yield

    def exact(self, what: str, active: Sequence[Any]) -> tuple[Any, Any]:
        """The arguments (active, fixed) of a program, as exactly as the function allows."""
        if self.is_double[what]:
            return self.subject.cast(np.float64, active)
        narrow = [
            np.asarray(x).astype(leaf.dtype) for x, leaf in zip(active, self.leaves, strict=True)
        ]
        return self.subject.cast(None, narrow)

    def evaluate(
        self, what: str, program: Callable[..., Any], active: Sequence[Any], *rest: Any
    ) -> Any:
        """What a program of the values or of the gradients gives, on the host."""
        with self.configuration(what):
            return jax.tree.map(np.asarray, program(*self.exact(what, active), *rest))

    def within(self, call: Callable[..., Any], *args: Any) -> Any:
        """The result of a call at inputs that the checker chose itself.

        An error there says that they are outside the function's domain: None, and it is noted.
        """
        result, problem = attempt(call, *args)
        if problem:
            self.outside.setdefault(problem.split(":")[0], []).append(problem)
        return result

    def pull(self, active: Sequence[Any], weights: np.ndarray) -> tuple[Any, list[np.ndarray]]:
        """Value and gradient as exactly as the function allows."""
        y, slopes = self.evaluate("gradients", self.programs.pullback, active, weights)
        return y, floats(slopes)

    def pull_within(self, active: Sequence[Any], weights: np.ndarray) -> Any:
        """The same at inputs that the checker chose itself; NaN outside the function's domain."""
        return self.within(self.pull, active, weights) or self._nowhere(active)

    def own_pull(
        self, active: Sequence[Any], weights: np.ndarray, dtype: Any = None
    ) -> tuple[np.ndarray, list[Any]]:
        """Value and gradient in another dtype (its own if None), with the user's configuration."""
        arguments = self.subject.cast(dtype, active)
        weights = weights.astype(jax.numpy.result_type(float))
        with jax.default_matmul_precision("highest"):  # else accelerators round float32 products
            y, slopes = self.programs.pullback(*arguments, weights)
        return np.asarray(y), [np.asarray(g) for g in slopes]

    def own_pull_within(
        self, active: Sequence[Any], weights: np.ndarray, dtype: Any = None
    ) -> tuple[np.ndarray, list[Any]]:
        """The same at inputs that the checker chose itself; NaN outside the function's domain."""
        return self.within(self.own_pull, active, weights, dtype) or self._nowhere(active)

    def _nowhere(self, active: Sequence[Any]) -> tuple[np.ndarray, list[np.ndarray]]:
        nan = [np.full(np.shape(x), np.nan) for x in active]
        return np.full(self.subject.outputs, np.nan), nan

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
        ladder = Ladder(self.eps[what], self.least[what], shrink)
        program = getattr(self.programs, what)
        extra = () if gradients_of is None else (gradients_of,)
        point = self.point if point is None else point

        def at(offsets: np.ndarray) -> np.ndarray:
            rows = self.evaluate(what, program, point, weights, tuple(direction), offsets, *extra)
            return rows.astype(np.float64)

        values, problem = attempt(at, ladder.offsets)
        if problem:  # which of them are outside the domain?
            rows = [
                self.within(at, offset) for offset in np.split(ladder.offsets, ladder.offsets.size)
            ]
            width = next((row.shape[1] for row in rows if row is not None), 1)
            nan = np.full((1, width), np.nan)
            values = np.concatenate([nan if row is None else row for row in rows])
        return slope(values, ladder)

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

    def record_error(self, check: str, i: int, error: np.ndarray, expected: np.ndarray) -> None:
        """The relative error of the gradient of leaf i, where it could be compared at all."""
        compared = np.isfinite(expected)
        if compared.any() and (check, i) not in self.errors:
            # Of the largest: the square of a small number is zero.
            unit = largest(expected) or 1.0
            norms = [np.linalg.norm(x[compared] / unit) for x in (error, expected)]
            relative = norms[0] / norms[1] if norms[1] else np.inf if norms[0] else 0.0
            self.errors[check, i] = float(relative)

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
        judged = np.isfinite(expected) | (error > tolerance)  # the same NaN twice says nothing
        self.count(check, error[judged], tolerance[judged])
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

        def result(check: str) -> str:
            if check in failed:
                return "failed"
            if not self.on(check):
                return "not run"
            return "passed" if self.counts.get(check) else "not judged"

        return tuple(
            CheckSummary(
                check, result(check), self.counts.get(check, 0), self.worst.get(check, 0.0)
            )
            for check in checks
        )

    def gradient_errors(self) -> tuple[GradientErrors, ...]:
        wrong = {(finding.argument, finding.leaf) for finding in self.findings}

        def of(i: int, leaf: Leaf) -> GradientErrors:
            reference, differences, own_dtype = (
                self.errors.get((check, i)) for check in ("reference", "differences", "dtypes")
            )
            place = leaf.argument, leaf.path
            return GradientErrors(*place, reference, differences, own_dtype, place not in wrong)

        return tuple(of(i, leaf) for i, leaf in enumerate(self.leaves))

    @property
    def judged(self) -> bool:
        """Whether the gradient was judged by a check that knows it, if one was asked for."""
        if any(map(self.on, ("reference", "differences", "kinks", "coverage"))):
            return self.knows_gradient
        return any(map(self.counts.get, self.enabled))

    def not_covered(self) -> tuple[str, ...]:
        """What could not be judged, and why."""
        outside = [
            f"outside the domain of the function: {len(problems)} evaluations at inputs that the "
            f"checker chose raised {problems[0]}"
            for problems in self.outside.values()
        ]
        return (*self.notes, *outside)


def largest(x: np.ndarray) -> float:
    """The largest finite size in an array."""
    size = np.abs(x)
    return float(np.max(size, where=np.isfinite(size), initial=0.0))


def distance(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """|got - expected|: 0 where both are the same infinity or NaN, inf where only one is."""
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    error = np.abs(got - expected)
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))
