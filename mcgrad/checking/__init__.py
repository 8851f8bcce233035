"""The gradient checker: it returns a report and prints nothing."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from mcgrad._modes import plain
from mcgrad.checking._checks import CHECKS as _CHECKS
from mcgrad.checking._checks import check_reference
from mcgrad.checking._report import (
    CheckSummary,
    Finding,
    GradientErrors,
    GradientReport,
    aligned,
    jsonable,
)
from mcgrad.checking._run import Run
from mcgrad.checking._subject import Subject, attempt

__all__ = [
    "CHECKS",
    "CheckSummary",
    "Finding",
    "GradientErrors",
    "GradientReport",
    "aligned",
    "check_gradients",
    "jsonable",
]

CHECKS = tuple(_CHECKS)
"""The names of the checks, in the order in which they run."""


def check_gradients(
    fun: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    argnums: int | Iterable[int] | None = None,
    argnames: str | Iterable[str] | None = None,
    order: int = 1,
    modes: Iterable[str] | None = None,
    directions: int = 8,
    full: bool | None = None,
    checks: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    seed: int = 0,
    rtol: float | None = None,
    **kwargs: Any,
) -> GradientReport:
    """Check the derivatives of a function against everything that can be known about them.

    Nothing is printed, and a wrong gradient raises nothing: the report says what is wrong, where,
    and what it probably is. In a test: ``check_gradients(f, *args).raise_for_findings()``.

    With d a direction, the derivative that everything is compared with is the directional (Gateaux)
    one, the limit of (f(x + t d) - f(x)) / t, extrapolated from central and one-sided differences
    in float64 with an estimate of its own error; the gradient g must give it as <g, d>. The
    directions are every coordinate of every argument where that is affordable, else one random
    direction per block of each argument, sampled coordinates, and random directions through all
    arguments at once. What this could not judge is listed under `not_covered`; a report of a
    gradient that could not be judged at all is not `ok`.

    Where float64 would change the function, it is compared in its own dtype, with the accuracy of
    that dtype, and the report says so: where it draws random numbers that are others in float64,
    and where it calls the host (`jax.pure_callback` and its like), whose threads may not have
    float64 turned on. Neither is seen in a function that cannot be traced.

    Inputs at which only the checker evaluates the function may lie outside its domain: an error
    there is reported as not covered. `jax.debug_nans` is off meanwhile.

    The checks, by the names in `CHECKS`:

    - ``value``: the value that comes with a gradient is the value of the function.
    - ``reference``: value and gradient are those of `reference`, by autodiff. A pair (a loss of
      this library, or one made by `mcgrad.pair`, also inside `jax.jit` or `functools.partial`) has
      its own equation for a reference, where that is finite, unless another one is given.
    - ``differences``: the gradient agrees with differences.
    - ``kinks``: at a kink it lies between the one-sided derivatives.
    - ``coverage``: no argument has a zero gradient while the function moves with it.
    - ``cotangent``: the backward rule is linear in the cotangent, and right for one per output.
    - ``adjoint``: <Jv, w> = <v, J'w>, where forward mode exists.
    - ``transformations``: the same numbers with and without jit, under vmap (each argument alone
      and all together), scan and remat, and for one argument alone.
    - ``second_order``: with ``order=2``, Hessian-vector products, reverse over reverse and forward
      over reverse, agree with differences of gradients.
    - ``dtypes``: gradients have the dtype and shape of their arguments and are right in the dtype
      they came in, in bfloat16 and in float16.
    - ``scales``: no NaN or infinity where the value is finite, for inputs times 1e-30 to 1e30;
      right for inputs times 1e-3, 10 and 1e3.
    - ``determinism``: the same call twice gives the same bits.

    Args:
        fun: any function of arrays and pytrees with at least one float output; outputs that are
            not floats are ignored. It is traced, so that a check on concrete arguments (of a
            label, say) does not meet perturbed ones; one that cannot be traced runs step by step.
            For parameters that have the name of an option below, use `functools.partial`.
        *args: its arguments. Float arrays and Python floats in them are differentiated; integer and
            boolean arrays are held fixed; anything else belongs to the function.
        reference: a function of the same arguments that is right; by default, the equation of a
            pair.
        argnums: which positional arguments to differentiate; by default all with floats.
        argnames: which keyword arguments to differentiate, Python floats included; by default all
            float arrays among them.
        order: 1, or 2 to check second derivatives too.
        modes: "rev", "fwd" or both, which must then work; by default whichever exist.
        directions: how many random directions through all arguments at once.
        full: True compares every entry of every argument, False only directions and samples; by
            default every entry of up to 1024 in all.
        checks: the names of the checks to run; by default all.
        skip: the names of checks to leave out.
        seed: of all random choices. The same seed gives the same report.
        rtol: the relative error that is allowed besides the estimated error of the differences; by
            default 1e-6, and 32 times the precision of a function that narrows its floats.
        **kwargs: keyword arguments of `fun`.

    Returns:
        A `GradientReport`: `.ok`, `.findings`, `.gradients`, `.judged`, `str()`, `.to_dict()`,
        `.raise_for_findings()`.

    Raises:
        ValueError: an option is not one of those above, or there is nothing to differentiate.
        Exception: whatever `fun` itself raises for these arguments.

    The cost is about ten compilations of the gradient, and 13 evaluations per direction. Nothing is
    kept for the next check, for by then the function may do something else: a rule was given again,
    or an attribute or a variable that it reads has changed. JAX itself keeps what it has traced for
    a function inside `jax.jit` or a pair: such a function is judged as JAX runs it. float64 is
    turned on for the checker's own evaluations only.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> @jax.custom_vjp
        ... def energy(x):
        ...     return jnp.sum(x**2)
        >>> energy.defvjp(lambda x: (energy(x), x), lambda x, ct: (ct * x,))
        >>> report = check_gradients(energy, jnp.array([1.0, 2.0, 3.0]), skip="transformations")
        >>> report.ok
        False
        >>> report.findings[0].place, report.findings[0].diagnosis
        ('x[2]', 'off by the constant factor 1/2')
    """
    equation = _equation(fun) if reference is None else None
    right = reference or equation
    names = _names(checks, {skip} if isinstance(skip, str) else set(skip), order, right is not None)
    modes = _modes(modes)
    subject = Subject(fun, args, kwargs, argnums, argnames)
    other, problem = None, ""
    if "reference" in names and right is not None:
        make = functools.partial(Subject, right, args, kwargs, argnums, argnames)
        other, problem = (make(), "") if equation is None else attempt(make)
    if problem:
        subject.notes.append(f"reference: the equation of the pair fails ({problem})")
    # What is not finite is reported, not warned of, and a key is used in every evaluation.
    with (
        np.errstate(all="ignore"),
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.debug_key_reuse(False),
    ):
        run = Run(subject, names, modes, directions, full, seed, rtol)
        for check in dict.fromkeys(_CHECKS[name] for name in names):
            if check is not check_reference:
                check(run)
            elif other is not None:
                check_reference(run, other, is_given=equation is None)
    order_of = {name: place for place, name in enumerate(CHECKS)}
    findings = sorted(run.findings, key=lambda finding: order_of[finding.check])
    return GradientReport(
        subject.name,
        seed,
        tuple(findings),
        run.summaries(CHECKS),
        run.gradient_errors(),
        tuple(run.kinks),
        run.not_covered(),
        run.judged,
    )


def _equation(fun: Any) -> Callable[..., Any] | None:
    """The equation of a pair, also inside `jax.jit` or `functools.partial`; of others None."""
    if isinstance(fun, functools.partial):
        inner = _equation(fun.func)
        return inner and functools.partial(inner, *fun.args, **fun.keywords)
    if isinstance(fun, jax.stages.Wrapped):
        return _equation(getattr(fun, "__wrapped__", None))
    try:
        equation = plain(fun)
    except TypeError:
        return None
    return None if equation == fun else equation


def _names(
    checks: Iterable[str] | None, skip: set[str], order: int, has_reference: bool
) -> list[str]:
    if order not in (1, 2):
        raise ValueError(f"order: expected 1 or 2; got {order}")
    chosen = set(CHECKS if checks is None else [checks] if isinstance(checks, str) else checks)
    for argument, given in (("checks", chosen), ("skip", skip)):
        unknown = given - set(CHECKS)
        if unknown:
            raise ValueError(
                f"{argument}: expected names among {', '.join(CHECKS)}; got {sorted(unknown)[0]!r}"
            )
    if order == 1:
        skip = skip | {"second_order"}
    if not has_reference:
        skip = skip | {"reference"}
    return [name for name in CHECKS if name in chosen - skip]


def _modes(modes: Iterable[str] | None) -> tuple[str, ...] | None:
    if modes is None:
        return None
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    for mode in modes:
        if mode not in ("fwd", "rev"):
            raise ValueError(f"modes: expected 'fwd' or 'rev'; got {mode!r}")
    return modes
