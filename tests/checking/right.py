"""Functions whose derivatives are right: the checker must stay silent on them.

A case is a function and a draw of its arguments. What is documented in `DEFECTS` is a defect of the
function itself, or a convention; the checker is expected to say exactly that.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import optax

__all__ = ["CASES", "Case"]

Draw = Callable[[np.random.Generator], tuple[Any, ...]]


@dataclass(frozen=True)
class Case:
    name: str
    fun: Callable[..., Any]
    draw: Draw

    def __str__(self) -> str:
        return self.name


def f32(x: Any) -> np.ndarray:
    return np.asarray(x, np.float32)


def real(*shape: int) -> Draw:
    return lambda random: (f32(random.normal(size=shape)),)


def within(low: float, high: float, *shape: int) -> Draw:
    return lambda random: (f32(random.uniform(low, high, shape or (5,))),)


def several(*draws: Draw) -> Draw:
    return lambda random: tuple(x for draw in draws for x in draw(random))


def probabilities(*shape: int) -> Draw:
    return lambda random: (f32(random.dirichlet(np.ones(shape[-1]) * 2, shape[:-1])),)


def classes(count: int, *shape: int) -> Draw:
    return lambda random: (random.integers(0, count, shape).astype(np.int32),)


def signs(*shape: int) -> Draw:
    return lambda random: (f32(random.choice([-1.0, 1.0], shape)),)


def positive_definite(size: int) -> Draw:
    """Symmetric, its eigenvalues well apart."""

    def draw(random: np.random.Generator) -> tuple[Any, ...]:
        basis = np.linalg.qr(random.normal(size=(size, size)))[0]
        return (f32(basis @ np.diag(1.0 + np.arange(size)) @ basis.T),)

    return draw


def regular(size: int) -> Draw:
    return lambda random: (f32(random.normal(size=(size, size)) / 2 + 2 * np.eye(size)),)


def paddings(*shape: int) -> Draw:
    return lambda random: (f32(np.arange(shape[-1]) >= shape[-1] - 1) * np.ones(shape, np.float32),)


R, S = real(4, 3), several(real(4, 3), real(4, 3))
OPTAX: dict[str, Draw] = {
    "cosine_distance": S,
    "cosine_similarity": S,
    "ctc_loss": several(
        real(2, 5, 4),
        paddings(2, 5),
        lambda r: (r.integers(1, 4, (2, 2)),),
        lambda r: (np.zeros((2, 2), np.float32),),
    ),
    "ctc_loss_with_forward_probs": several(
        real(2, 5, 4),
        paddings(2, 5),
        lambda r: (r.integers(1, 4, (2, 2)),),
        lambda r: (np.zeros((2, 2), np.float32),),
    ),
    "hinge_loss": several(real(6), signs(6)),
    "huber_loss": S,
    "kl_divergence": several(within(-3, -1, 4, 3), probabilities(4, 3)),
    "kl_divergence_with_log_targets": several(within(-3, -1, 4, 3), within(-3, -1, 4, 3)),
    "generalized_kl_divergence": several(within(-3, -1, 4, 3), probabilities(4, 3)),
    "l2_loss": S,
    "log_cosh": S,
    "multiclass_hinge_loss": several(R, classes(3, 4)),
    "multiclass_perceptron_loss": several(R, classes(3, 4)),
    "multiclass_sparsemax_loss": several(R, classes(3, 4)),
    "ntxent": several(real(6, 4), lambda r: (np.arange(6) % 3,)),
    "perceptron_loss": several(real(6), signs(6)),
    "poly_loss_cross_entropy": several(R, probabilities(4, 3)),
    "ranking_softmax_loss": S,
    "safe_softmax_cross_entropy": several(R, probabilities(4, 3)),
    "sigmoid_binary_cross_entropy": several(R, within(0, 1, 4, 3)),
    "sigmoid_focal_loss": several(R, within(0, 1, 4, 3)),
    "smooth_labels": several(probabilities(4, 3), within(0.1, 0.5, 1)),
    "softmax_cross_entropy": several(R, probabilities(4, 3)),
    "softmax_cross_entropy_with_integer_labels": several(R, classes(3, 4)),
    "sparsemax_loss": several(real(6), lambda r: (r.integers(0, 2, 6).astype(np.int32),)),
    "squared_error": S,
    "triplet_margin_loss": several(R, R, R),
    "dice_loss": several(R, lambda r: (f32(r.integers(0, 2, (4, 3))),)),
    "multiclass_generalized_dice_loss": several(R, probabilities(4, 3)),
    "binary_dice_loss": several(R, lambda r: (f32(r.integers(0, 2, (4, 3))),)),
}

UNIT, POSITIVE = within(-0.9, 0.9), within(0.2, 3.0)
DOMAINS: dict[str, Draw] = {
    **dict.fromkeys(("arcsin", "arccos", "arctanh", "asin", "acos", "atanh"), UNIT),
    **dict.fromkeys(("log", "log2", "log10", "log1p", "sqrt", "cbrt", "reciprocal"), POSITIVE),
    **dict.fromkeys(("arccosh", "acosh"), within(1.2, 4.0)),
    **dict.fromkeys(
        (
            "sin",
            "cos",
            "tan",
            "sinh",
            "cosh",
            "tanh",
            "arctan",
            "atan",
            "arcsinh",
            "asinh",
            "exp",
            "exp2",
            "expm1",
            "square",
            "absolute",
            "abs",
            "fabs",
            "negative",
            "positive",
            "sinc",
            "sign",
            "floor",
            "ceil",
            "trunc",
            "rint",
            "round",
            "fix",
            "deg2rad",
            "rad2deg",
            "degrees",
            "radians",
            "i0",
            "nan_to_num",
            "real",
            "conj",
            "conjugate",
            "modf",
        ),
        real(5),
    ),
    **dict.fromkeys(
        (
            "add",
            "subtract",
            "multiply",
            "maximum",
            "minimum",
            "fmax",
            "fmin",
            "arctan2",
            "atan2",
            "hypot",
            "logaddexp",
            "logaddexp2",
            "copysign",
        ),
        several(real(5), real(5)),
    ),
    **dict.fromkeys(
        (
            "divide",
            "true_divide",
            "power",
            "pow",
            "float_power",
            "mod",
            "remainder",
            "fmod",
            "floor_divide",
            "divmod",
        ),
        several(POSITIVE, POSITIVE),
    ),
    "ldexp": several(real(5), lambda r: (np.arange(5) - 2,)),
    "clip": several(real(5), lambda r: (f32(-0.5), f32(0.5))),
    "where": several(lambda r: (np.arange(5) % 2 == 0,), real(5), real(5)),
}

OTHERS: dict[str, tuple[Callable[..., Any], Draw]] = {
    "scipy.special.digamma": (jsp.special.digamma, POSITIVE),
    "scipy.special.entr": (jsp.special.entr, POSITIVE),
    "scipy.special.erf": (jsp.special.erf, real(5)),
    "scipy.special.erfc": (jsp.special.erfc, real(5)),
    "scipy.special.erfinv": (jsp.special.erfinv, UNIT),
    "scipy.special.expit": (jsp.special.expit, real(5)),
    "scipy.special.gammaln": (jsp.special.gammaln, POSITIVE),
    "scipy.special.i0e": (jsp.special.i0e, real(5)),
    "scipy.special.i1e": (jsp.special.i1e, real(5)),
    "scipy.special.log_ndtr": (jsp.special.log_ndtr, real(5)),
    "scipy.special.logit": (jsp.special.logit, within(0.1, 0.9)),
    "scipy.special.logsumexp": (jsp.special.logsumexp, real(4, 3)),
    "scipy.special.ndtri": (jsp.special.ndtri, within(0.1, 0.9)),
    "scipy.special.rel_entr": (jsp.special.rel_entr, several(POSITIVE, POSITIVE)),
    "scipy.special.xlogy": (jsp.special.xlogy, several(POSITIVE, POSITIVE)),
    "scipy.special.betaln": (jsp.special.betaln, several(POSITIVE, POSITIVE)),
    "scipy.stats.norm.logpdf": (jsp.stats.norm.logpdf, real(5)),
    "scipy.linalg.expm": (jsp.linalg.expm, regular(3)),
    "scipy.linalg.cho_solve": (
        lambda a, b: jsp.linalg.cho_solve(jsp.linalg.cho_factor((a + a.T) / 2), b),
        several(positive_definite(4), real(4)),
    ),
    "scipy.linalg.solve_triangular": (
        lambda a, b: jsp.linalg.solve_triangular(a, b, lower=True),
        several(regular(4), real(4)),
    ),
    "linalg.solve": (jnp.linalg.solve, several(regular(4), real(4))),
    "linalg.inv": (jnp.linalg.inv, regular(3)),
    "linalg.det": (jnp.linalg.det, regular(3)),
    "linalg.slogdet": (lambda a: jnp.linalg.slogdet(a)[1], regular(4)),
    "linalg.cholesky": (jnp.linalg.cholesky, positive_definite(4)),
    "linalg.eigh": (jnp.linalg.eigh, positive_definite(4)),
    "linalg.eigvalsh": (jnp.linalg.eigvalsh, positive_definite(4)),
    "linalg.svdvals": (lambda a: jnp.linalg.svd(a, compute_uv=False), regular(4)),
    "linalg.qr": (jnp.linalg.qr, regular(3)),
    "linalg.pinv": (jnp.linalg.pinv, regular(3)),
    "linalg.norm": (jnp.linalg.norm, real(4, 3)),
    "linalg.lstsq": (lambda a, b: jnp.linalg.lstsq(a, b)[0], several(regular(3), real(3))),
    "linalg.multi_dot": (
        lambda a, b, c: jnp.linalg.multi_dot([a, b, c]),
        several(real(2, 3), real(3, 4), real(4, 2)),
    ),
}


EXCLUDED = {
    "convex_kl_divergence": "the deprecated name of generalized_kl_divergence",
    "make_fenchel_young_loss": "makes a loss; the loss it makes is among the others",
    "dot_product_attention": "not an activation",
    "get_scaled_dot_general_config": "not an activation",
    "one_hot": "not an activation",
    "scaled_dot_general": "not an activation",
    "scaled_matmul": "not an activation",
}
OTHERS["optax.make_fenchel_young_loss"] = (
    optax.losses.make_fenchel_young_loss(jax.nn.logsumexp),
    several(real(4), probabilities(4)),
)

NN: dict[str, Draw] = dict.fromkeys(
    (
        "celu",
        "elu",
        "gelu",
        "glu",
        "hard_sigmoid",
        "hard_silu",
        "hard_swish",
        "hard_tanh",
        "identity",
        "leaky_relu",
        "log_sigmoid",
        "log_softmax",
        "logmeanexp",
        "logsumexp",
        "mish",
        "relu",
        "relu6",
        "selu",
        "sigmoid",
        "silu",
        "soft_sign",
        "softmax",
        "softplus",
        "sparse_plus",
        "sparse_sigmoid",
        "squareplus",
        "standardize",
        "swish",
        "tanh",
    ),
    real(3, 4),
) | {"log1mexp": within(0.2, 3.0)}

MODULES: dict[str, tuple[Any, dict[str, Draw]]] = {
    "optax": (optax.losses, OPTAX),
    "nn": (jax.nn, NN),
    "numpy": (jnp, DOMAINS),
}


def functions_of(module: Any) -> list[str]:
    """The public functions of a module."""
    names = [name for name in dir(module) if not name.startswith("_")]
    values = {name: getattr(module, name) for name in names}
    return [n for n, v in values.items() if callable(v) and not inspect.isclass(v)]


CASES = [
    Case(f"{prefix}.{name}", getattr(module, name), draw)
    for prefix, (module, draws) in MODULES.items()
    for name, draw in draws.items()
    if hasattr(module, name)
] + [Case(name, fun, draw) for name, (fun, draw) in OTHERS.items()]

# Findings that are true: the check that reports them, and the reason.
_OVERFLOW = "an intermediate overflows or underflows in float32, so the gradient is not finite"
KNOWN: dict[str, tuple[tuple[str, str], ...]] = {
    "optax.ctc_loss_with_forward_probs": (
        ("dtypes", "log-probabilities of -1e5 leave float32 no digits for their differences"),
    ),
    "optax.multiclass_sparsemax_loss": (
        ("dtypes", "its custom_jvp gives a float32 tangent for a bfloat16 value"),
    ),
    "optax.multiclass_generalized_dice_loss": (("scales", f"{_OVERFLOW} at targets of 1e10"),),
    "nn.gelu": (("scales", f"{_OVERFLOW}: x cubed at 1e20"),),
    "numpy.sinc": (("scales", f"{_OVERFLOW}: 1/x squared at 1e-30"),),
    "numpy.arctan2": (("scales", f"{_OVERFLOW}: x squared at 1e-30"),),
    "numpy.atan2": (("scales", f"{_OVERFLOW}: x squared at 1e-30"),),
    "numpy.hypot": (("scales", f"{_OVERFLOW}: x squared at 1e-30"),),
    "numpy.divide": (("scales", f"{_OVERFLOW}: 1/y squared at 1e-30"),),
    "scipy.special.betaln": (("scales", "NaN at arguments of 1e-30, where the value is finite"),),
    "scipy.linalg.cho_solve": (("scales", f"{_OVERFLOW} where it is 1e36"),),
    "linalg.det": (("dtypes", "bfloat16 gives a value for 3 x 3, but its gradient needs lu"),),
    "linalg.eigh": (("scales", "NaN at matrices of 1e10, where the value is finite"),),
    "linalg.norm": (("scales", f"{_OVERFLOW}: x squared at 1e-30"),),
    "linalg.lstsq": (("scales", f"{_OVERFLOW}: 1/x squared at 1e-30"),),
    "numpy.true_divide": (("scales", f"{_OVERFLOW}: 1/y squared at 1e-30"),),
}
