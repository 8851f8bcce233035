"""The checks, one function each, in the order in which they run."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from mcgrad.checking._diagnosis import diagnose
from mcgrad.checking._gradient import check_differences
from mcgrad.checking._judging import judge, judge_entry, numbers, pushed, record
from mcgrad.checking._precision import check_dtypes, check_scales
from mcgrad.checking._run import EPS, Run, distance, floats
from mcgrad.checking._subject import Subject, attempt
from mcgrad.checking._transformations import check_transformations

__all__ = ["CHECKS", "check_reference"]

SAMPLES = 8  # entries at which a gradient that differs from the reference's may be at a kink


# --- 1. Values


def check_value(run: Run) -> None:
    """The value that comes with the gradient is the value of the function."""
    expected = run.evaluate("values", run.programs.value, run.point)
    forward = None
    if run.has_forward:
        pushforward = run.programs.pushforward
        forward = run.evaluate("gradients", pushforward, run.point, run.scales)[0]
    if not np.isfinite(expected).all():
        run.notes.append("the value itself is NaN or infinite at these arguments")
    tolerance = run.tolerance(np.abs(expected)) + run.least["gradients"]
    reverse = run.base[0] if run.has_reverse else None
    for got, mode in ((reverse, "reverse"), (forward, "forward")):
        if got is not None:
            sentence = f"in {mode} mode the rule returns another value than the function itself"
            run.compare("value", got, expected, tolerance, sentence)


def check_reference(run: Run, reference: Subject, is_given: bool) -> None:
    """Value and gradient against those of the reference, by autodiff.

    A reference that is given is right. The equation of a pair is right where it is finite: a closed
    form exists to be finite elsewhere too.
    """
    if reference.outputs != run.subject.outputs:
        sentence = "the reference has another number of outputs"
        numbers: dict[str, Any] = {"got": run.subject.outputs, "expected": reference.outputs}
        run.fail("reference", sentence, argument="value", **numbers)
        return
    other = Run(reference, (), None, 0, False, 0, None)

    def tolerance(expected: np.ndarray) -> np.ndarray:
        return np.maximum(run.tolerance(np.abs(expected)), other.tolerance(np.abs(expected)))

    def comparable(what: str, got: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, ...]:
        lost = np.zeros(expected.shape, bool) if is_given else ~np.isfinite(expected)
        if lost.any():
            run.notes.append(f"reference: {lost.sum()} entries of the {what} are not finite in it")
        return tuple(np.where(lost, np.nan, x) for x in (got, expected))

    got, expected = comparable(
        "value", *(r.evaluate("values", r.programs.value, run.point) for r in (run, other))
    )
    allowed = tolerance(expected) + run.least["values"]

    def explain() -> str:
        return diagnose(got, expected, expected, {}, {}, allowed).replace("gradient", "value")

    run.compare("reference", got, expected, allowed, explain)
    if not run.has_reverse:
        return
    result, problem = attempt(other.pull, run.point, run.weights)
    if problem:
        run.notes.append(f"reference: its gradient cannot be computed ({problem})")
        return
    for i, leaf in enumerate(run.leaves):
        what = f"gradient with respect to {leaf}"
        got, expected = comparable(what, run.gradient[i], result[1][i])
        run.knows_gradient |= bool(np.isfinite(expected).any())
        allowed = tolerance(expected) + run.rounding(i)
        wrong = np.flatnonzero(distance(got, expected) > allowed)
        judged = [judge_entry(run, i, entry) for entry in wrong[:SAMPLES]]
        if judged and all(j.slope.kink and j.verdict != "wrong" for j in judged):
            run.kinks.append(f"{leaf}: the reference has another slope there")
            continue
        run.record_error("reference", i, distance(got, expected), expected)
        run.compare(
            "reference",
            got,
            expected,
            allowed,
            lambda i=i, e=expected, t=allowed: run.explain(i, e, t, result[1]),
            leaf,
        )


# --- 5. The cotangent


def check_cotangent(run: Run) -> None:
    """The backward rule is linear: zero for zero, additive, homogeneous for large and small."""
    if not run.has_reverse:
        return
    weights = run.weights
    other = run.random.normal(size=weights.shape)
    first, second = run.gradient, run.pull_within(run.point, other)[1]
    cases = [
        ("zero", np.zeros_like(weights), [0.0 * g for g in first], 0.0),
        *((c, c * weights, [c * g for g in first], c) for c in (-2.5, 1e3, 1e-3)),
        ("sum", weights - 2 * other, [g - 2 * h for g, h in zip(first, second, strict=True)], None),
    ]
    for what, cotangent, expected, factor in cases:
        values, got = run.pull_within(run.point, cotangent)
        if np.isnan(values).all():
            continue
        for i, (g, e) in enumerate(zip(got, expected, strict=True)):
            size = np.abs(first[i]) + np.abs(second[i]) if factor is None else np.abs(e)
            tolerance = run.tolerance(size)
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
    if not any(x.any() for x in run.scales):
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
        tolerance = run.rtol * abs(forward) + run.share * size + 1e3 * EPS * run.value_size
        tolerance += run.least["gradients"]
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
    with run.configuration("gradients"):
        dtypes = [jnp.result_type(x) for x in run.exact("gradients", run.point)[0]]
    problems = {}
    for nesting, product in run.programs.products.items():
        for round_ in range(2):
            direction = [run.random.normal(size=x.shape) * x for x in run.scales]
            cast = tuple(d.astype(t) for d, t in zip(direction, dtypes, strict=True))
            result, problem = attempt(
                run.evaluate, "gradients", product, run.point, run.weights, cast
            )
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
        record(run, "second_order", j)
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
    results, problem = attempt(
        lambda: [run.programs.pullback(*arguments, weights) for _ in range(2)]
    )
    if problem:
        run.fail("determinism", f"the gradient fails: {problem}")
        return
    (y, slopes), (z, again) = results
    for leaf, a, b in zip([None, *run.leaves], [y, *slopes], [z, *again], strict=True):
        same = np.asarray(a).tobytes() == np.asarray(b).tobytes()
        run.count("determinism", np.full(min(np.size(a), 1), float(not same)), 0.5)
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
