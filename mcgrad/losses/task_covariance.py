"""Ridge and task-covariance penalty of multi-task relationship learning.

    G(W, Omega) = (ridge/2) Tr(W Wᵀ) + (coupling/2) Tr(W Omega⁻¹ Wᵀ)

W is (features, tasks), Omega (tasks, tasks) symmetric positive definite. With S = W Omega⁻¹:

    ∂G/∂W = ridge W + coupling S     ∂G/∂Omega = -(coupling/2) SᵀS
    ∂G/∂ridge = ‖W‖²/2               ∂G/∂coupling = (W:S)/2

G is defined on the symmetric part of Omega. With Omega = L Lᵀ (Cholesky) and Y = L⁻¹Wᵀ, W:S is
‖Y‖² and S is (L⁻ᵀY)ᵀ: one factor, one solve, no inverse. Given W, the Omega of trace 1 that
minimises G is (WᵀW)^{1/2} / Tr (WᵀW)^{1/2}.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from mcgrad._arguments import Argument, Arguments, Call, Real, Scalar, require_floating
from mcgrad._arrays import Array, ArrayLike, Float, as_array, concrete, power_of_two, require
from mcgrad._modes import Rule, public

__all__ = ["optimal_task_covariance", "task_covariance_penalty"]

# An asymmetry is rounding up to the first of these, relative to the two entries, or up to the
# second, relative to the largest that a positive definite matrix can have in their place. Under a
# trace nothing can be raised: there a covariance becomes NaN beyond the third instead of the
# second, which lets through the small steps of a difference quotient, on which the symmetric part
# is what is meant.
OF_ENTRY, OF_SCALE, OF_TRACED_SCALE = 1e-3, 1e-5, 1e-2


def _is_symmetric(covariance: Any, of_scale: float) -> Any:
    """Whether no pair of entries differs by more than rounding, on a scale of its own.

    |Omega_ij| <= (Omega_ii Omega_jj)^{1/2}: a block may be small beside the others.
    """
    skew, size = abs(covariance - covariance.T), abs(covariance) + abs(covariance.T)
    roots = abs(covariance.diagonal()) ** 0.5
    scale = roots[:, None] * roots[None]
    return (skew <= OF_ENTRY * size + of_scale * scale).all()


def _equation(weights, covariance, ridge, coupling, *, reduction):
    y, _ = _half(weights, covariance)
    # In an order that is finite where ‖W‖² and ‖Y‖² alone would overflow.
    terms = jnp.sum(ridge / 2 * weights * weights) + jnp.sum(coupling / 2 * y * y)
    return terms.astype(reduction.dtype)


def _half(weights: Array, covariance: Array) -> tuple[Array, Array]:
    """Y = L⁻¹Wᵀ, with the factor L; for a diagonal Omega, L = Omega^{1/2}."""
    if covariance.ndim == 1:
        factor = jnp.sqrt(jnp.where(covariance > 0, covariance, jnp.nan))
        return weights.T / factor[:, None], factor
    transpose = covariance.T
    symmetric = _is_symmetric(covariance, OF_TRACED_SCALE)
    factor = jnp.linalg.cholesky(
        jnp.where(symmetric, covariance / 2 + transpose / 2, jnp.nan), symmetrize_input=False
    )
    return solve_triangular(factor, weights.T, lower=True), factor


def _forward(weights, covariance, ridge, coupling, *, reduction, needs_grad):
    y, factor = _half(weights, covariance)
    plain = jnp.sum(ridge / 2 * weights * weights)
    coupled = jnp.sum(coupling / 2 * y * y)
    if not needs_grad & {"weights", "covariance"}:
        s = jnp.zeros((), weights.dtype)
    elif covariance.ndim == 1:
        s = (y / factor[:, None]).T
    else:
        s = solve_triangular(factor, y, lower=True, trans="T").T
    half = jnp.vdot(y, y) / 2 if "coupling" in needs_grad else jnp.zeros((), weights.dtype)
    value = reduction.split.over_columns(plain + coupled).astype(reduction.dtype)
    return value, (weights, covariance, s, half, ridge, coupling)


def _backward(residuals, ct, *, needs_grad):
    weights, covariance, s, half, ridge, coupling = residuals
    ct = ct.astype(weights.dtype)
    by_covariance = None
    if "covariance" in needs_grad:
        scaled = -(ct * coupling / 2) * s
        by_covariance = jnp.sum(scaled * s, 0) if covariance.ndim == 1 else scaled.T @ s
    return (
        ct * ridge * weights + ct * coupling * s,  # ridge W + coupling S
        by_covariance,  # -(coupling/2) SᵀS
        ct * jnp.sum(jnp.square(weights)) / 2,
        ct * half,
    )


def _example_args(key, batch, dtype, *, smooth):
    """Arguments for the checker; there is no kink, so no smooth twin, and there are no examples."""
    keys = jax.random.split(key, 2)
    root = jax.random.normal(keys[0], (3, 3), dtype)
    covariance = root @ root.T / 3 + jnp.eye(3, dtype=dtype)
    options = {"ridge": jnp.asarray(0.5, dtype), "coupling": jnp.asarray(0.75, dtype)}
    return (jax.random.normal(keys[1], (4, 3), dtype), covariance), options


@dataclasses.dataclass(frozen=True)
class _Covariance(Argument):
    """A symmetric positive definite matrix, or its diagonal."""

    axes: str = "tasks tasks"

    kind = "real"

    @property
    def range(self) -> str:
        return "symmetric positive definite"

    def check(self, name: str, x: Any, call: Call) -> Any:
        x = as_array(name, x)
        require_floating(name, x)
        call.bind(name, x, self.names[:1] if x.ndim == 1 else self.names)
        numbers = concrete(x)
        if numbers is not None and numbers.size:
            _check_covariance(numbers)
        return x


def _check_covariance(numbers: np.ndarray) -> None:
    of_scale = max(OF_SCALE, float(jnp.finfo(numbers.dtype).eps))
    numbers = numbers.astype(np.promote_types(numbers.dtype, np.float32))
    if numbers.ndim == 1:
        least = numbers.min()
        require(least > 0, "covariance", "a positive diagonal", f"the entry {least}")
        return
    skew = np.abs(numbers - numbers.T).max()
    triangular = not np.tril(numbers, -1).any() or not np.triu(numbers, 1).any()
    hint = " (L @ L.T is the covariance of a Cholesky factor L)" if triangular else ""
    symmetric = _is_symmetric(numbers, of_scale)
    require(symmetric, "covariance", "a symmetric matrix", f"an asymmetry of {skew}{hint}")
    mean = numbers / 2 + numbers.T / 2
    try:
        np.linalg.cholesky(mean)
    except np.linalg.LinAlgError:
        least = np.linalg.eigvalsh(mean)[0]
        require(False, "covariance", "a positive definite matrix", f"the eigenvalue {least}")


_ARGUMENTS = Arguments(
    "features",
    weights=Real("features tasks"),
    covariance=_Covariance(),
    ridge=Scalar(least=0),
    coupling=Scalar(least=0),
)
_penalty = Rule(_equation, _forward, _backward, _ARGUMENTS, _ARGUMENTS.layout)


@public(_penalty, _example_args)
def task_covariance_penalty(
    weights: Float[ArrayLike, "features tasks"],
    covariance: Float[ArrayLike, "tasks tasks"] | Float[ArrayLike, " tasks"],
    *,
    ridge: Float[ArrayLike, ""] | float = 1.0,
    coupling: Float[ArrayLike, ""] | float = 1.0,
) -> Array:
    """Ridge and task-covariance penalty of multi-task relationship learning.

        G = (ridge/2) Tr(W Wᵀ) + (coupling/2) Tr(W Omega⁻¹ Wᵀ)

    Gradient, with S = W Omega⁻¹:

        ∂G/∂W = ridge W + coupling S    ∂G/∂Omega = -(coupling/2) SᵀS
        ∂G/∂ridge = ‖W‖²/2              ∂G/∂coupling = (W:S)/2

    The Hessian with respect to each row of W is ridge I + coupling Omega⁻¹. G is smooth: there are
    no ties and nothing for a `mu` to smooth. It is defined on the symmetric part of Omega, for
    which the gradient is the symmetric one.

    Args:
        weights: W, (features, tasks), a column a task.
        covariance: Omega, (tasks, tasks), symmetric positive definite, or its diagonal, (tasks,).
        ridge: lambda1, >= 0. Default 1.
        coupling: lambda2, >= 0. Default 1.

    Returns:
        A scalar in the promoted dtype of the arguments; half precision is computed in float32.

    Raises:
        ValueError: a shape or range is wrong; or the covariance is not square, not symmetric or not
            positive definite. While it is traced, the value and the gradients are NaN instead.
        TypeError: a dtype is wrong.

    Cost: one Cholesky factorization of Omega and one solve with it (half a solve for the value
    alone), and the product SᵀS if ∂Omega is asked for. A covariance that is not traced is
    factorized once more, by NumPy, to be checked.

    Example:
        >>> weights = jnp.array([[1.0, 2.0]])
        >>> covariance = jnp.array([[2.0, 0.0], [0.0, 1.0]])
        >>> value, gradient = jax.value_and_grad(task_covariance_penalty)(weights, covariance)
        >>> print(value, gradient)
        4.75 [[1.5 4. ]]

    References:
        Zhang and Yeung, "A convex formulation for learning task relationships in multi-task
        learning", UAI 2010, problem (9).
    """
    return _penalty(weights, covariance, ridge, coupling)


def optimal_task_covariance(
    weights: Float[ArrayLike, "features tasks"], *, jitter: Float[ArrayLike, ""] | float = 0.0
) -> Array:
    """The covariance of trace 1 that minimises `task_covariance_penalty` for given weights.

        Omega = A / Tr A,     A = (WᵀW + jitter I)^{1/2}

    It is a minimiser, so a step of alternating minimisation needs no gradient through it; it is
    plain JAX code and has one where the singular values of W are distinct.

    Args:
        weights: W, (features, tasks).
        jitter: >= 0, keeps Omega positive definite where W has fewer independent columns than
            tasks. Default 0.

    Returns:
        (tasks, tasks), symmetric, positive semidefinite, of trace 1, in the dtype of the weights;
        I/tasks where W and jitter are zero, and any covariance is as good.

    Raises:
        ValueError: a shape or range is wrong.
        TypeError: a dtype is wrong.

    Cost: one singular value decomposition of W.

    Example:
        >>> print(optimal_task_covariance(jnp.array([[3.0, 0.0], [0.0, 1.0]])))
        [[0.75 0.  ]
         [0.   0.25]]

    References:
        Zhang and Yeung, "A convex formulation for learning task relationships in multi-task
        learning", UAI 2010, equation (13).
    """
    return _OF_WEIGHTS.apply(_optimal, weights, jitter)


class _Root(Scalar):
    """The root of a number, which may be in the range of the dtype where the number is not."""

    def check_with_others(self, name: str, x: Any, call: Call) -> Any:
        root = jnp.sqrt(x) if isinstance(x, jax.Array) else np.sqrt(x)
        return super().check_with_others(name, root, call)


_OF_WEIGHTS = Arguments(weights=Real("features tasks", "own"), jitter=_Root(least=0))


def _optimal(weights: Array, root_jitter: Array) -> Array:
    # Omega is that of W and sqrt(jitter) divided by any number, which here keeps squares in range.
    scaled = weights.astype(root_jitter.dtype)
    size = power_of_two(jnp.maximum(jnp.max(jnp.abs(scaled), initial=0), root_jitter))
    scaled, scale = scaled / size, root_jitter / size
    # From W itself: WᵀW would square the condition number.
    _, values, rows = jnp.linalg.svd(scaled, full_matrices=False)
    roots = jnp.sqrt(jnp.square(values) + jnp.square(scale))
    tasks = weights.shape[1]
    root = (rows.T * (roots - scale)[None]) @ rows + scale * jnp.eye(tasks, dtype=rows.dtype)
    trace = jnp.sum(roots - scale) + tasks * scale
    flat = jnp.eye(tasks, dtype=rows.dtype) / tasks
    return jnp.where(trace == 0, flat, root / jnp.where(trace == 0, 1, trace)).astype(weights.dtype)
