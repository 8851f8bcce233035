"""The gradient under vmap, scan, remat and for a subset of the arguments: always the same numbers.

Each transformation is a program over (base, stacked, fixed, weights): the arguments, a batch of
variations of them, the arrays that are held fixed, and one cotangent per example. What it should
give follows from plain calls of the gradient, example by example.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcgrad.checking._run import EPS, Run, distance, floats
from mcgrad.checking._subject import attempt

__all__ = ["check_transformations"]

EXAMPLES = 3


class Failure(NamedTuple):
    name: str
    leaf: int
    entry: Any
    got: float
    expected: float
    error: float
    tolerance: float


class Transformation(NamedTuple):
    """A program, the same of the value alone, and what it gives from single gradients."""

    program: Callable[..., Any]
    value_only: Callable[..., Any]
    expected: Callable[..., list[np.ndarray]]


def check_transformations(run: Run) -> None:
    """The same numbers under jit, vmap, scan, remat, and for a subset of the arguments."""
    if not run.has_reverse:
        return
    _compare_with_jit(run)
    plan, inputs = {}, _inputs(run, run.point)
    for name, transformation in _transformations(run).items():
        with run.configuration("gradients"):
            _, problem = attempt(jax.eval_shape, transformation.program, *inputs)
            _, deeper = attempt(jax.eval_shape, transformation.value_only, *inputs)
        if not problem:
            plan[name] = transformation
        elif deeper or "Effects not supported" in problem:  # as no function with effects has it
            run.notes.append(f"{name}: not supported by the function itself ({deeper or problem})")
        else:
            sentence = f"the function allows it, but its gradient fails: {problem}"
            run.fail("transformations", sentence, argument=name)
    failures = _failures(run, plan, run.point)
    if failures:  # at a tie, another order of summation may rightly take another slope
        moved = [x * run.random.uniform(0.9, 1.0, x.shape) for x in run.point]
        again = {failure.name for failure in _failures(run, plan, moved)}
        failures = [failure for failure in failures if failure.name in again]
    for name, leaf, entry, *numbers in failures:
        keys = ("got", "expected", "error", "tolerance")
        sentence = f"{name}: the gradient is not the one of single calls"
        numbers = dict(zip(keys, numbers, strict=True))
        run.fail("transformations", sentence, run.leaves[leaf], entry, **numbers)


def _compare_with_jit(run: Run) -> None:
    """The compiled gradient against the one computed step by step."""
    if not run.programs.is_compiled:
        return
    step_by_step = run.programs.bare_pullback
    result, problem = attempt(run.evaluate, "gradients", step_by_step, run.point, run.weights)
    if problem:
        run.fail("transformations", f"without jit the gradient fails: {problem}", argument="jit")
        return
    for i, expected in enumerate(floats(result[1])):
        sentence = "jit: the compiled gradient is not the one that is computed step by step"
        tolerance = _tolerance(run, i, expected)
        run.compare(
            "transformations", run.gradient[i], expected, tolerance, sentence, run.leaves[i]
        )


def _inputs(run: Run, point: Sequence[np.ndarray]) -> tuple[Any, ...]:
    """Arguments, variations of them (the first is the arguments), fixed arrays, cotangents.

    Variations shrink, so that they stay in domains such as [-1, 1] or x > 0.
    """
    with run.configuration("gradients"):
        base, fixed = run.exact("gradients", point)
        dtypes = [jnp.result_type(x) for x in base]
    stacked = []
    for x, dtype in zip(point, dtypes, strict=True):
        factors = run.random.uniform(0.75, 1.0, (EXAMPLES, *x.shape))
        factors[0] = 1.0
        stacked.append((x * factors).astype(dtype))
    weights = np.stack([run.weights * scale for scale in (1.0, -0.5, 2.0)])
    return base, tuple(stacked), fixed, weights


def _transformations(run: Run) -> dict[str, Transformation]:
    groups = run.subject.groups
    batchable = [j for j, x in enumerate(run.subject.fixed) if _is_batchable(x)]
    found = {"vmap of the gradient": _vmap_of_gradient(run), "scan": _scan(run)}
    found["remat"] = _remat(run)
    found["vmap"] = _vmap(run, list(range(len(run.leaves))), batchable)
    if len(groups) > 1:
        for argument, (active, fixed) in groups.items():
            fixed = [j for j in fixed if j in batchable]
            if not (active or fixed):
                continue
            found[f"vmap over {argument} alone"] = _vmap(run, active, fixed)
            if active and len(active) < len(run.leaves):
                found[f"gradient of {argument} alone"] = _subset(run, active)
    return found


def _vmap(run: Run, active: list[int], fixed: list[int]) -> Transformation:
    """The gradient of a vmapped function; what is not batched collects the sum."""
    value = run.programs.flat_value
    axes = tuple(
        tuple(0 if i in batched else None for i in range(count))
        for batched, count in ((active, len(run.leaves)), (fixed, len(run.subject.fixed)))
    )
    axes = tuple(part or None for part in axes)

    def batched(base: Any, stacked: Any, held: Any, _: Any) -> tuple[Any, Any]:
        moved = tuple(stacked[i] if i in active else x for i, x in enumerate(base))
        return moved, tuple(_tiled(x) if j in fixed else x for j, x in enumerate(held))

    def value_only(*inputs: Any) -> Any:
        return jax.vmap(value, axes)(*batched(*inputs))

    def program(*inputs: Any) -> Any:
        moved, held = batched(*inputs)
        _, pull = jax.vjp(lambda *x: jax.vmap(value, axes)(x, held), *moved)
        return pull(inputs[-1])

    def expected(base: Any, stacked: Any, _: Any, weights: Any) -> list[np.ndarray]:
        examples = [
            [stacked[i][e] if i in active else x for i, x in enumerate(base)]
            for e in range(EXAMPLES)
        ]
        singles = [run.pull(x, w)[1] for x, w in zip(examples, weights, strict=True)]
        together = [np.stack(g) for g in zip(*singles, strict=True)]
        return [g if i in active else g.sum(0) for i, g in enumerate(together)]

    return Transformation(program, value_only, expected)


def _stacked_gradients(run: Run) -> Callable[..., list[np.ndarray]]:
    def expected(base: Any, stacked: Any, _: Any, weights: Any) -> list[np.ndarray]:
        singles = [run.pull([x[e] for x in stacked], w)[1] for e, w in enumerate(weights)]
        return [np.stack(g) for g in zip(*singles, strict=True)]

    return expected


def _vmap_of_gradient(run: Run) -> Transformation:
    programs = run.programs
    axes = tuple(0 if _is_batchable(x) else None for x in run.subject.fixed)

    def tiled(held: Any) -> tuple[Any, ...]:
        return tuple(x if axis is None else _tiled(x) for x, axis in zip(held, axes, strict=True))

    def program(base: Any, stacked: Any, held: Any, weights: Any) -> Any:
        one = jax.vmap(lambda x, h, w: programs.bare_pullback(x, h, w)[1], (0, axes, 0))
        return one(stacked, tiled(held), weights)

    def value_only(base: Any, stacked: Any, held: Any, weights: Any) -> Any:
        return jax.vmap(programs.flat_value, (0, axes))(stacked, tiled(held))

    return Transformation(program, value_only, _stacked_gradients(run))


def _scan(run: Run) -> Transformation:
    programs = run.programs

    def program(base: Any, stacked: Any, held: Any, weights: Any) -> Any:
        return jax.lax.map(
            lambda xw: programs.bare_pullback(xw[0], held, xw[1])[1], (stacked, weights)
        )

    def value_only(base: Any, stacked: Any, held: Any, weights: Any) -> Any:
        return jax.lax.map(lambda x: programs.flat_value(x, held), stacked)

    return Transformation(program, value_only, _stacked_gradients(run))


def _remat(run: Run) -> Transformation:
    value = run.programs.flat_value

    def program(base: Any, stacked: Any, held: Any, weights: Any) -> Any:
        return jax.vjp(lambda *x: jax.checkpoint(value)(x, held), *base)[1](weights[0])

    def value_only(base: Any, stacked: Any, held: Any, weights: Any) -> Any:
        return jax.checkpoint(value)(base, held)

    return Transformation(program, value_only, lambda base, s, h, w: run.pull(base, w[0])[1])


def _subset(run: Run, active: list[int]) -> Transformation:
    """The gradient with respect to one argument, the others held: it must not change."""
    value = run.programs.flat_value

    def program(base: Any, stacked: Any, held: Any, weights: Any) -> Any:
        def partial(*some: Any) -> Any:
            moved = list(base)
            for i, x in zip(active, some, strict=True):
                moved[i] = x
            return value(moved, held)

        slopes = jax.vjp(partial, *(base[i] for i in active))[1](weights[0])
        return [slopes[active.index(i)] if i in active else None for i in range(len(base))]

    def value_only(base: Any, stacked: Any, held: Any, weights: Any) -> Any:
        return value(base, held)

    return Transformation(program, value_only, lambda base, s, h, w: run.pull(base, w[0])[1])


def _is_batchable(x: Any) -> bool:
    """Whether a batch of it gives what single ones give: not so for keys that are not Threefry."""
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return not is_key or "threefry" in str(jax.random.key_impl(x))


def _tiled(x: Any) -> Any:
    return jnp.stack([x] * EXAMPLES)


def _results(run: Run, plan: dict[str, Transformation], inputs: Any) -> dict[str, Any]:
    """What the transformations give, all in one program if none of them raises an error."""

    def results(names: tuple[str, ...]) -> dict[str, Any]:
        programs = {name: plan[name].program for name in names}
        together = run.programs.once(
            names, lambda *inputs: {name: program(*inputs) for name, program in programs.items()}
        )
        return jax.tree.map(np.asarray, together(*inputs))

    with run.configuration("gradients"):
        found, problem = attempt(results, tuple(plan))
        if not problem:
            return found
        found = {}
        for name, transformation in plan.items():
            result, problem = attempt(results, (name,))
            if not problem:
                found |= result
            elif run.within(transformation.value_only, *inputs) is not None:
                sentence = f"the function can be evaluated, but its gradient fails: {problem}"
                run.fail("transformations", sentence, argument=name)
        return found


def _failures(run: Run, plan: dict[str, Transformation], point: Any) -> list[Failure]:
    """The worst entry of each leaf that comes out wrong."""
    inputs = _inputs(run, point)
    wanted = {name: run.within(plan[name].expected, *inputs) for name in plan}
    plan = {name: transformation for name, transformation in plan.items() if wanted[name]}
    failures = []
    for name, result in _results(run, plan, inputs).items():
        for i, (got, expected) in enumerate(zip(result, wanted[name], strict=True)):
            if got is None:
                continue
            (got,) = floats([got])
            error, tolerance = distance(got, expected), _tolerance(run, i, expected)
            bad = error > tolerance
            judged = np.isfinite(expected) | bad
            run.count("transformations", np.where(bad, 0.0, error)[judged], tolerance[judged])
            if bad.any():
                k = np.unravel_index(np.argmax(np.where(bad, error, -1)), bad.shape)
                numbers = (a[k] for a in (got, expected, error, tolerance))
                failures.append(Failure(name, i, k, *numbers))
    return failures


def _tolerance(run: Run, i: int, expected: np.ndarray) -> np.ndarray:
    """The same numbers but for the order of operations."""
    rtol = max(1e-7, 32 * run.eps["gradients"]) if run.eps["gradients"] > EPS else 1e-7
    size = np.abs(expected)
    largest = float(np.max(size[np.isfinite(size)], initial=0.0))
    return rtol * size + 1e-2 * rtol * largest + 2 * run.rounding(i)
