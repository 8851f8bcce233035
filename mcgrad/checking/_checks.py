"""The checks, one function each, in the order in which they run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcgrad.checking._diagnosis import diagnose
from mcgrad.checking._gradient import check_differences
from mcgrad.checking._judging import judge, judge_entry, numbers, pushed, ratio
from mcgrad.checking._precision import check_dtypes, check_scales
from mcgrad.checking._run import EPS, Run, distance, floats, largest
from mcgrad.checking._subject import Subject, attempt
from mcgrad.checking._transformations import check_transformations

__all__ = ["CHECKS"]

SAMPLES = 8  # entries at which a gradient that differs from the reference's may be at a kink


# --- 1. Values


def check_value(run: Run) -> None:
    """The value that comes with the gradient is the value of the function."""
    with jax.enable_x64(True):
        expected = np.asarray(run.programs.value(*run.exact("values", run.point)))
        forward = None
        if run.has_forward:
            arguments = run.exact("gradients", run.point)
            forward = np.asarray(run.programs.pushforward(*arguments, run.scales)[0])
    if not np.isfinite(expected).all():
        run.notes.append("the value itself is NaN or infinite at these arguments")
    tolerance = run.rtol * np.abs(expected) + 1e-3 * run.rtol * largest(expected)
    reverse = run.base[0] if run.has_reverse else None
    for got, mode in ((reverse, "reverse"), (forward, "forward")):
        if got is not None:
            sentence = f"in {mode} mode the rule returns another value than the function itself"
            run.compare("value", got, expected, tolerance, sentence)


def check_reference(run: Run, reference: Subject | None) -> None:
    """Value and gradient against those of the reference, by autodiff."""
    if reference is None:
        return
    if reference.outputs != run.subject.outputs:
        sentence = "the reference has another number of outputs"
        numbers: dict[str, Any] = {"got": run.subject.outputs, "expected": reference.outputs}
        run.fail("reference", sentence, argument="value", **numbers)
        return
    other = Run(reference, (), None, 0, False, 0, None)
    rtol = max(run.rtol, other.rtol)
    with jax.enable_x64(True):
        got, expected = (
            np.asarray(r.programs.value(*r.exact("values", run.point))) for r in (run, other)
        )
    tolerance = rtol * np.abs(expected) + 1e-3 * rtol * largest(expected)

    def explain() -> str:
        return diagnose(got, expected, expected, {}, {}, tolerance).replace("gradient", "value")

    run.compare("reference", got, expected, tolerance, explain)
    if not run.has_reverse:
        return
    result, problem = attempt(other.pull, run.point, run.weights)
    if problem:
        run.notes.append(f"reference: its gradient cannot be computed ({problem})")
        return
    for i, expected in enumerate(result[1]):
        tolerance = rtol * np.abs(expected) + 1e-3 * rtol * largest(expected)
        tolerance = tolerance + run.rounding(i)
        wrong = np.flatnonzero(distance(run.gradient[i], expected) > tolerance)
        judged = [judge_entry(run, i, entry) for entry in wrong[:SAMPLES]]
        if judged and all(j.slope.kink and j.verdict != "wrong" for j in judged):
            run.kinks.append(f"{run.leaves[i]}: the reference has another slope there")
            continue
        run.compare(
            "reference",
            run.gradient[i],
            expected,
            tolerance,
            lambda i=i, e=expected, t=tolerance: run.explain(i, e, t, result[1]),
            run.leaves[i],
        )


# --- 5. The cotangent


def check_cotangent(run: Run) -> None:
    """The backward rule is linear: zero for zero, additive, homogeneous for large and small."""
    if not run.has_reverse:
        return
    weights = run.weights
    other = run.random.normal(size=weights.shape)
    first, second = run.gradient, run.pull(run.point, other)[1]
    cases = [
        ("zero", np.zeros_like(weights), [0.0 * g for g in first], 0.0),
        *((c, c * weights, [c * g for g in first], c) for c in (-2.5, 1e3, 1e-3)),
        ("sum", weights - 2 * other, [g - 2 * h for g, h in zip(first, second, strict=True)], None),
    ]
    for what, cotangent, expected, factor in cases:
        got = run.pull(run.point, cotangent)[1]
        for i, (g, e) in enumerate(zip(got, expected, strict=True)):
            size = np.abs(first[i]) + np.abs(second[i]) if factor is None else np.abs(e)
            tolerance = run.rtol * size + 1e-3 * run.rtol * largest(size)
            tolerance = tolerance + run.rounding(i) * (1.0 if factor is None else abs(factor))
            base = first[i] if np.isfinite(first[i]).all() else e
            if not np.isfinite(e).all():
                continue
            sentence = _cotangent_sentence(what, g, base, factor)
            run.compare("cotangent", g, e, tolerance, sentence, run.leaves[i])


def _cotangent_sentence(what: Any, got: np.ndarray, base: np.ndarray, c: Any) -> str:
    if what == "zero":
        return "not zero for a zero cotangent: the rule ignores it, or adds a term without it"
    if what == "sum":
        return "the rule is not additive in the cotangent"
    for factor, sentence in (
        (1.0, "the cotangent is ignored"),
        (c * c, "the cotangent is used twice (its square)"),
        (np.sign(c), "only the sign of the cotangent is used"),
        (abs(c), "only the size of the cotangent is used, not its sign"),
    ):
        if np.allclose(got, factor * base, rtol=1e-5, atol=0):
            return sentence
    return f"the gradient does not grow in proportion to the cotangent (at a cotangent of {c:g})"


# --- 4. Forward mode and the adjoint identity


def check_adjoint(run: Run) -> None:
    """<Jv, w> = <v, J'w>: forward mode against reverse, in each argument and in all."""
    if not (run.has_forward and run.has_reverse):
        return
    everything = [run.random.normal(size=x.shape) * x for x in run.scales]
    cases: list[tuple[list[np.ndarray], int | None]] = [(everything, None)]
    for i in range(len(everything) if len(everything) > 1 else 0):
        one = [d if n == i else np.zeros_like(d) for n, d in enumerate(everything)]
        cases.append((one, i))
    for direction, i in reversed(cases):
        forward, size = pushed(run, direction, run.weights)
        products = [(g * d) for g, d in zip(run.gradient, direction, strict=True)]
        reverse = float(sum(p.sum() for p in products))
        size = max(size, float(sum(np.abs(p).sum() for p in products)))
        tolerance = run.rtol * abs(forward) + 1e-3 * run.rtol * size + 1e3 * EPS * run.value_size
        leaf = run.leaves[i] if i is not None else run.leaves[0] if len(run.leaves) == 1 else None
        if i is None and leaf is None and any(f.check == "adjoint" for f in run.findings):
            continue
        sentence = "forward and reverse mode disagree: one of the two rules is wrong"
        run.compare("adjoint", reverse, forward, tolerance, sentence, leaf, "all arguments")


# --- 8. Second order


def check_second_order(run: Run) -> None:
    """Hessian-vector products against differences of gradients."""
    if not run.has_reverse:
        return
    if run.is_wrong:
        run.notes.append("order 2: not judged while the gradient itself is wrong")
        return
    with jax.enable_x64(True):
        arguments = run.exact("gradients", run.point)
        shapes = [x.dtype for x in map(np.asarray, arguments[0])]
        problems = {}
        for nesting, product in run.programs.products.items():
            for round_ in range(2):
                direction = [run.random.normal(size=x.shape) * x for x in run.scales]
                cast = tuple(d.astype(t) for d, t in zip(direction, shapes, strict=True))
                result, problem = attempt(product, *arguments, run.weights, cast)
                if problem:
                    problems[nesting] = problem
                    break
                _compare_products(run, nesting, direction, floats(result), round_)
    if len(problems) == 2:
        for nesting, problem in problems.items():
            run.fail("second_order", f"{nesting} fails: {problem}", argument=nesting)
    for nesting, problem in problems.items():
        run.notes.append(f"order 2, {nesting}: cannot be computed ({problem})")


def _compare_products(
    run: Run, nesting: str, direction: Any, product: list[np.ndarray], round_: int
) -> None:
    """<u, Hv> by the nesting against the derivative of <u, gradient> along v, u in each leaf."""
    for i, leaf in enumerate(run.leaves):
        u = [np.zeros_like(x) for x in run.point]
        u[i] = run.random.normal(size=u[i].shape) * run.scales[i]
        predicted = float(np.vdot(product[i], u[i]))
        scale = float(np.abs(product[i] * u[i]).sum())
        scale = max(scale, float(np.abs(run.gradient[i] * u[i]).sum()))
        j = judge(run, direction, predicted, scale, run.weights, of_gradient=tuple(u))
        run.count("second_order", ratio(j), 1.0)
        if j.verdict == "wrong":
            sentence = f"{nesting}: the second derivative is not the derivative of the gradient"
            if not product[i].any():
                sentence = f"{nesting}: the second derivative looks dropped (it is zero)"
            run.fail("second_order", sentence, leaf, **numbers(j))


# --- 10. Determinism


def check_determinism(run: Run) -> None:
    """The same call twice gives the same bits."""
    if not run.has_reverse:
        return
    arguments = run.subject.cast()
    weights = run.weights.astype(jnp.result_type(float))
    (y, slopes), (z, again) = (run.programs.pullback(*arguments, weights) for _ in range(2))
    for leaf, a, b in zip([None, *run.leaves], [y, *slopes], [z, *again], strict=True):
        same = np.asarray(a).tobytes() == np.asarray(b).tobytes()
        run.count("determinism", float(not same), 0.5)
        if not same:
            sentence = "the same call twice gives different bits"
            error = float(np.max(distance(*floats([a, b]))))
            run.fail(
                "determinism",
                sentence,
                leaf,
                argument="value",
                got="other bits",
                expected="the same bits",
                error=error,
                tolerance=0.0,
            )


CHECKS: dict[str, Callable[..., None]] = {
    "value": check_value,
    "reference": check_reference,
    "differences": check_differences,
    "kinks": check_differences,
    "coverage": check_differences,
    "cotangent": check_cotangent,
    "adjoint": check_adjoint,
    "transformations": check_transformations,
    "second_order": check_second_order,
    "dtypes": check_dtypes,
    "scales": check_scales,
    "determinism": check_determinism,
}
