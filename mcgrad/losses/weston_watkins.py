"""The multiclass hinge of Weston and Watkins.

For scores s (classes,) and the true class t, with b_j = s_j - s_t + margin:

    f = c_t Σ_{j≠t} a(b_j)^power                          a the ramp, exact or tanh(mu b)
    g_j = power a(b_j)^(power-1) a'(b_j) for j ≠ t,       g_t = 0,       h = g - (1ᵀg) e_t

    ∂f/∂s = c_t h     ∂f/∂margin = c_t 1ᵀg     ∂f/∂c_t = Σ_{j≠t} a^power
    ∂f/∂mu = c_t Σ_{j≠t} power a^(power-1) ∂a/∂mu

On linear scores s = W x + bias, with the penalty l2 ‖W‖² (squared Frobenius norm):

    ∂f/∂W = c_t h xᵀ + 2 l2 W     ∂f/∂x = c_t Wᵀh     ∂f/∂bias = c_t h     ∂f/∂l2 = ‖W‖²

W is (classes, features), x (features,), s and h (classes,). The sum leaves j = t out: its term is
a(margin), which is the margin only for the exact ramp and margin >= 0.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcgrad._arrays import (
    Array,
    ArrayLike,
    Axes,
    Float,
    Int,
    check_choice,
    common_dtype,
    promoted,
    rounded,
)
from mcgrad._blocks import check_block_size, plan
from mcgrad._modes import Rule, public
from mcgrad._ramp import ramp, ramp_by_mu, slope
from mcgrad._reduction import (
    Reduction,
    close,
    dead_examples,
    drop_dead,
    finite,
    spare,
    spared,
)
from mcgrad._split import Split
from mcgrad.losses._linear import Sums, Tile, linear_scores, one_pass, sum_over_tiles

__all__ = ["linear_weston_watkins_loss", "weston_watkins_loss"]


def _losses(
    scores, labels, margin, mu, class_weight, sample_weight, power, inputs=None
) -> Array:  # fmt: skip
    """c_t Σ_{j≠t} a(s_j - s_t + margin)^power for each example."""
    is_true = labels[:, None] == jnp.arange(scores.shape[1], dtype=labels.dtype)[None]

    def hinge(scores: Array) -> Array:
        true_scores = jnp.sum(jnp.where(is_true, scores, 0), 1)
        terms = ramp(scores - true_scores[:, None] + margin, mu) ** power
        return jnp.sum(jnp.where(is_true, 0, terms), 1)

    c = _example_weights(class_weight, labels, margin)
    dead = _dead(c, class_weight, sample_weight)
    return _times(c, spared(hinge, scores, dead, inputs), dead)


def _equation(scores, labels, margin, mu, class_weight, sample_weight, *, power, reduction):
    losses = _losses(scores, labels, margin, mu, class_weight, sample_weight, power)
    return reduction.value(losses, sample_weight)


def _linear_equation(
    weights, inputs, labels, bias, margin, l2, mu, class_weight, sample_weight,
    *, power, reduction, block_size,
):  # fmt: skip
    scores = linear_scores(weights, inputs, bias, reduction.accumulator)
    losses = _losses(scores, labels, margin, mu, class_weight, sample_weight, power, inputs)
    losses += _penalty(weights, l2)
    return reduction.value(losses, sample_weight)


class _Examples(NamedTuple):
    """What a tile of scores knows of its examples."""

    labels: Array
    scale: Array  # the cotangent of the example's hinge
    dead: Array | None  # whether a weight of the example is 0
    unknown: Array  # whether a weight of the example is NaN; the cotangent must not be asked
    true_scores: Array | None  # s_t; None where the tile holds every class there is


def _tile(scores, examples: _Examples, first, *, margin, mu, power) -> Tile:
    """Sums over the classes of a tile, and its slopes scale * h."""
    classes = first + jnp.arange(scores.shape[1], dtype=jnp.int32)
    is_true = examples.labels[:, None] == classes[None]
    true_scores = examples.true_scores
    if true_scores is None:
        true_scores = jnp.sum(jnp.where(is_true, scores, 0), 1)
    b = scores - true_scores[:, None] + margin
    largest = float(jnp.finfo(b.dtype).max) ** 0.5 if power == 2 else jnp.inf
    b, lost = spare(examples.dead, b, lambda b: ~(b < largest))
    a = ramp(b, mu)
    outer = 1 if power == 1 else 2 * a
    g = jnp.where(is_true, 0, outer * slope(b, mu))
    by_mu = jnp.where(is_true, 0, outer * ramp_by_mu(b, mu))
    hinge, count = jnp.sum(jnp.where(is_true, 0, a**power), 1), jnp.sum(g, 1)
    # Where other tiles hold other classes, -(1ᵀg) e_t waits until every class was seen.
    h = g if examples.true_scores is not None else jnp.where(is_true, -count[:, None], g)
    # The slopes of a smooth ramp are never exactly zero: no example may be skipped.
    violates = jnp.any(~(b < 0) & ~is_true, 1) | examples.unknown
    return Tile(
        rows=(hinge + lost, count, jnp.sum(by_mu, 1)),
        slopes=h * examples.scale[:, None],
        active=violates if mu is None else None,
    )


def _forward(scores, labels, margin, mu, class_weight, sample_weight, *, power, reduction):
    args = scores, labels, margin, mu, class_weight, sample_weight
    c = _example_weights(class_weight, labels, margin)
    dead = _dead(c, class_weight, sample_weight)
    hinge, *_ = _all_scores(args, c, dead, power, reduction.split).rows
    return reduction.value(_times(c, hinge, dead), sample_weight), args


def _backward(args, ct, *, power, reduction):
    _, labels, margin, _, class_weight, sample_weight = args
    c = _example_weights(class_weight, labels, margin)
    rows, factor = reduction.by_losses(ct, c, sample_weight)
    scale = factor * rows * c
    dead = _dead(c, class_weight, sample_weight)
    part = _all_scores(args, scale, dead, power, reduction.split)
    hinge, count, by_mu = part.rows
    return (
        part.slopes,  # c_t h
        None,
        scale @ count,  # c_t 1ᵀg
        scale @ finite(dead, by_mu),
        _by_class_weight(class_weight, labels, factor * rows * finite(dead, hinge)),
        reduction.by_sample_weight(ct, _times(c, hinge, dead), sample_weight),
    )


def _all_scores(args, scale, dead, power, split: Split) -> Tile:
    """The tile of all the scores, or of one part of their classes."""
    scores, labels, margin, mu, *_ = args
    tile = functools.partial(_tile, margin=margin, mu=mu, power=power)
    if split.columns is None:
        return tile(scores, _Examples(labels, scale, dead, jnp.isnan(scale), None), 0)
    own = _own_class(labels, scores.shape[1], split)[:, None]
    true_scores = jnp.take_along_axis(scores, own, 1, mode="fill", fill_value=0)[:, 0]
    true_scores = split.over_columns(true_scores)
    examples = _Examples(labels, scale, dead, jnp.isnan(scale), true_scores)
    part = tile(scores, examples, split.first_column(scores.shape[1]))
    late = -scale * split.over_columns(part.rows[1])
    here = own == jnp.arange(scores.shape[1], dtype=own.dtype)[None]
    return part._replace(slopes=part.slopes + jnp.where(here, late[:, None], 0))


def _linear_forward(
    weights, inputs, labels, bias, margin, l2, mu, class_weight, sample_weight,
    *, power, reduction, block_size, wanted,
):  # fmt: skip
    args = weights, inputs, labels, bias, margin, l2, mu, class_weight, sample_weight
    c = _example_weights(class_weight, labels, margin)
    scale = c * reduction.unit_rows(inputs, sample_weight)
    now = _one_pass(args, reduction, block_size)
    sums = _linear_sums(
        args, scale, wanted if now else frozenset(), power, block_size, reduction.split,
        rows=(True, bool(wanted), "mu" in wanted),
    )  # fmt: skip
    dead = _dead(c, class_weight, sample_weight)
    losses = _times(c, sums.rows[0], dead) + _penalty(weights, l2)
    return reduction.value(losses, sample_weight), (args, losses, sums)


def _linear_backward(residuals, ct, *, power, reduction, block_size, wanted):
    args, losses, sums = residuals
    weights, inputs, labels, _, margin, l2, _, class_weight, sample_weight = args
    c = _example_weights(class_weight, labels, margin)
    hinge, count, by_mu = sums.rows
    rows, factor = reduction.by_losses(ct, losses, sample_weight, inputs.dtype)
    scale = factor * c * rows
    if _one_pass(args, reduction, block_size):
        sums = sums.times(factor)
    else:
        sums = _linear_sums(args, scale, wanted, power, block_size, reduction.split, count=count)
    dead = _dead(c, class_weight, sample_weight)
    by_weights, total = sums.weights, factor * jnp.sum(rows)
    if l2 is not None:
        by_weights += 2 * l2 * total * weights.astype(l2.dtype)
    return (
        by_weights,  # c_t h xᵀ + 2 l2 W
        sums.inputs,  # c_t Wᵀh
        None,
        sums.bias,  # c_t h
        scale @ count,  # c_t 1ᵀg
        total * _penalty(weights, jnp.ones_like(margin)),  # ‖W‖²
        scale @ finite(dead, by_mu) if "mu" in wanted else None,
        _by_class_weight(class_weight, labels, factor * rows * finite(dead, hinge)),
        reduction.by_sample_weight(
            ct, _times(c, hinge, dead), sample_weight, _penalty(weights, l2)
        ),
    )


def _linear_sums(args, scale, wanted, power, block_size, split, rows=(), count=None) -> Sums:
    """Value and gradients with the cotangents `scale`, in one pass over the tiles."""
    weights, inputs, labels, bias, margin, _, mu, class_weight, sample_weight = args
    c = _example_weights(class_weight, labels, margin)
    dead = _dead(c, class_weight, sample_weight)
    unknown = jnp.isnan(c if sample_weight is None else c * sample_weight)
    walk = plan(inputs.shape[0], weights.shape[0], block_size)

    def over_tiles(examples: _Examples, first: Any) -> Sums:
        def tile(scores: Array, examples: _Examples, column: Any) -> Tile:
            return _tile(scores, examples, first + column, margin=margin, mu=mu, power=power)

        return sum_over_tiles(
            tile, examples, weights, inputs, bias,
            plan=walk, dtype=scale.dtype, rows=rows, wanted=wanted,
        )  # fmt: skip

    if walk.by_rows and split.columns is None:
        return over_tiles(_Examples(labels, scale, dead, unknown, None), first=0)
    own_class = _own_class(labels, weights.shape[0], split)
    own = weights.at[own_class].get(mode="fill", fill_value=0)
    true_scores = jnp.einsum("nf,nf->n", inputs, own, preferred_element_type=scale.dtype)
    if bias is not None:
        true_scores += bias.at[own_class].get(mode="fill", fill_value=0)
    true_scores = split.over_columns(true_scores)
    examples = _Examples(labels, scale, dead, unknown, true_scores)
    sums = over_tiles(examples, first=split.first_column(weights.shape[0]))
    if not wanted:
        return sums
    # -(1ᵀg) e_t, whose 1ᵀg is known only now.
    late = -scale * split.over_columns(sums.rows[1] if count is None else count)
    late = close(dead, inputs, late)
    changes = {}
    if "weights" in wanted:
        by_row = late[:, None] * inputs.astype(late.dtype)
        changes["weights"] = sums.weights.at[own_class].add(by_row, mode="drop")
    if "inputs" in wanted:
        changes["inputs"] = sums.inputs + late[:, None] * own.astype(late.dtype)
    if "bias" in wanted:
        changes["bias"] = sums.bias.at[own_class].add(late, mode="drop")
    return sums._replace(**changes)


def _own_class(labels, classes, split: Split) -> Array:
    """The place of the true class among this part's, or behind the last where it is elsewhere."""
    place = labels - split.first_column(classes)
    return jnp.where((place >= 0) & (place < classes), place, classes)


def _one_pass(args, reduction, block_size) -> bool:
    weights, inputs, *_ = args
    return one_pass(reduction, plan(inputs.shape[0], weights.shape[0], block_size))


def _example_weights(class_weight, labels, margin) -> Array:
    """c_t for each example; NaN for a label out of range, so that its loss and gradient are NaN."""
    # A factor, not a choice, so that autodiff of the equation finds NaN for class_weight too.
    known = jnp.where(labels >= 0, 1, jnp.asarray(jnp.nan, margin.dtype))
    return known if class_weight is None else known * class_weight[jnp.maximum(labels, 0)]


def _dead(c, class_weight, sample_weight) -> Array | None:
    """The examples of which a weight is 0, that of their class included."""
    return dead_examples(sample_weight, None if class_weight is None else c)


def _times(c, hinge, dead) -> Array:
    """c * hinge; the hinge of a dead example that overflows is a constant, which c = 0 makes 0."""
    if dead is None:
        return c * hinge
    lost = dead & ~jnp.isfinite(hinge)
    return jnp.where(lost, jnp.where(c == 0, 0, hinge), c * jnp.where(lost, 0, hinge))


def _by_class_weight(class_weight, labels, values) -> Array | None:
    """The sums of `values` over the examples of each class; all NaN if an example has none."""
    if class_weight is None:
        return None
    # Chosen twice: the derivative of what is not chosen would be NaN too.
    bad = labels < 0
    outside = jnp.sum(jnp.where(bad, jnp.nan * jnp.where(bad, values, 0), 0))
    return (jnp.zeros_like(class_weight) + outside).at[jnp.maximum(labels, 0)].add(values)


def _penalty(weights, l2) -> Any:
    """l2 ‖W‖², in an order that stays finite where ‖W‖² alone would overflow."""
    return 0.0 if l2 is None else jnp.sum(l2 * weights.astype(l2.dtype) * weights.astype(l2.dtype))


def _options(axes, labels, margin, mu, power, class_weight, sample_weight):
    """The arguments that both public functions share, checked."""
    check_choice("power", power, (1, 2))
    labels = axes.integers("labels", labels, "*batch")
    margin = axes.scalar("margin", margin)
    mu = None if mu is None else axes.scalar("mu", mu, above=0)
    if class_weight is not None:
        class_weight = axes.nonnegative("class_weight", class_weight, "classes")
    if sample_weight is not None:
        sample_weight = axes.nonnegative("sample_weight", sample_weight, "*batch")
    labels = axes.classes("labels", labels, sample_weight)
    return labels, margin, mu, class_weight, sample_weight


def _draw(key, batch, dtype, *, smooth):
    """Arguments for the checker: every float argument in its general position."""
    keys = jax.random.split(key, 6)
    scores = 2 * jax.random.normal(keys[0], (*batch, 5), dtype)
    labels = jax.random.randint(keys[1], batch, 0, 5)
    options = {
        "margin": jnp.asarray(0.75, dtype),
        "class_weight": jax.random.uniform(keys[2], (5,), dtype, 0.5, 2.0),
        "sample_weight": jax.random.uniform(keys[3], batch, dtype, 0.5, 2.0),
    }
    return (scores, labels), options | ({"mu": jnp.asarray(1.5, dtype)} if smooth else {})


def _linear_draw(key, batch, dtype, *, smooth):
    (_, labels), options = _draw(key, batch, dtype, smooth=smooth)
    keys = jax.random.split(key, 9)[6:]
    weights = jax.random.normal(keys[0], (5, 3), dtype)
    inputs = jax.random.normal(keys[1], (*batch, 3), dtype)
    bias = jax.random.normal(keys[2], (5,), dtype)
    return (weights, inputs, labels), options | {"bias": bias, "l2": jnp.asarray(0.1, dtype)}


def _layout(args, *, reduction, **_):
    specs = {
        "scores": jax.P("examples", "columns"),
        "weights": jax.P("columns"),
        "inputs": jax.P("examples"),
        "labels": jax.P("examples"),
        "bias": jax.P("columns"),
        "sample_weight": jax.P("examples"),
    }
    return specs, reduction.spec


@public(Rule(_equation, _forward, _backward, ("power", "reduction"), _layout), _draw)
def weston_watkins_loss(
    scores: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    *,
    margin: Float[ArrayLike, ""] | float = 1.0,
    mu: Float[ArrayLike, ""] | float | None = None,
    power: int = 1,
    class_weight: Float[ArrayLike, " classes"] | None = None,
    sample_weight: Float[ArrayLike, "*batch"] | None = None,
    reduction: str = "mean",
) -> Any:
    """Weston-Watkins multiclass hinge of the scores of any model.

    For scores s and true class t, with b_j = s_j - s_t + margin and the ramp a(b) = max(0, b):

        f = c_t Σ_{j≠t} a(b_j)^power

    Gradient, with g_j = power a(b_j)^(power-1) a'(b_j) for j ≠ t and g_t = 0:

        ∂f/∂s = c_t (g - (1ᵀg) e_t)    ∂f/∂margin = c_t 1ᵀg    ∂f/∂c_t = Σ_{j≠t} a(b_j)^power
        ∂f/∂mu = c_t Σ_{j≠t} power a(b_j)^(power-1) ∂a/∂mu(b_j)

    and for sample weights s_i, ∂L/∂s_i = (f_i - L)/Σs under "mean", f_i otherwise. At a tie, b = 0,
    the slope a' is 1. Second derivatives of the exact ramp take a' as constant: a generalized
    Hessian, zero for power 1.

    With `mu` the ramp is a(b) = b (1 + tanh(mu b))/2, which tends to max(0, b) as mu grows: it
    differs by at most 0.13924/mu, so f (power 1) by at most c_t (classes - 1) 0.13924/mu.

    Args:
        scores: (*batch, classes), or (classes,) for one example.
        labels: (*batch,), integers from 0 to classes - 1.
        margin: the score difference that is asked for; any real number. Default 1.
        mu: sharpness of the smooth ramp, > 0; None (default) for the exact one.
        power: 1 (default) or 2, the squared hinge.
        class_weight: (classes,), >= 0, scales the examples of each true class. Default: ones.
        sample_weight: (*batch,), >= 0; an example of weight 0 adds nothing, even if it holds NaN.
        reduction: "mean" (default; divides by the sum of the sample weights), "sum" or "none".

    Returns:
        A scalar, or (*batch,) for reduction "none", in the promoted dtype of the float arguments;
        half precision is summed in float32.

    Raises:
        ValueError: a shape, range or name is wrong, or a label is out of range. While labels are
            traced, an example whose label is out of range has a NaN loss and gradient instead.
        TypeError: a dtype is wrong.

    Cost: time and memory in proportion to the scores; the gradient holds nothing but the scores.

    Example:
        >>> scores, labels = jnp.array([[3.0, 2.5, 1.0]]), jnp.array([0])
        >>> value, gradient = jax.value_and_grad(weston_watkins_loss)(scores, labels)
        >>> print(value, gradient)
        0.5 [[-1.  1.  0.]]

    References:
        Weston and Watkins, "Support vector machines for multi-class pattern recognition",
        ESANN 1999, problem (2). PyTorch's multi_margin_loss is this loss divided by `classes`.
    """
    axes = Axes()
    scores = axes.real("scores", scores, "*batch classes")
    labels, margin, mu, class_weight, sample_weight = _options(
        axes, labels, margin, mu, power, class_weight, sample_weight
    )
    over = Reduction.of(reduction, axes, scores, margin, mu, class_weight, sample_weight)
    if sample_weight is not None:
        sample_weight, scores, labels = drop_dead(sample_weight, scores, labels)
    scores, labels, sample_weight = axes.flatten(scores, labels, sample_weight)
    class_weight, sample_weight, scores = promoted(
        over.accumulator, class_weight, sample_weight, scores
    )
    (margin,) = rounded(over.accumulator, margin=margin)
    (mu,) = rounded(over.accumulator, limits=True, mu=mu)
    args = scores, labels, margin, mu, class_weight, sample_weight
    return args, {"power": power, "reduction": over}


@public(
    Rule(
        _linear_equation,
        _linear_forward,
        _linear_backward,
        ("power", "reduction", "block_size"),
        _layout,
    ),
    _linear_draw,
)
def linear_weston_watkins_loss(
    weights: Float[ArrayLike, "classes features"],
    inputs: Float[ArrayLike, "*batch features"],
    labels: Int[ArrayLike, "*batch"],
    *,
    bias: Float[ArrayLike, " classes"] | None = None,
    margin: Float[ArrayLike, ""] | float = 1.0,
    l2: Float[ArrayLike, ""] | float = 0.0,
    mu: Float[ArrayLike, ""] | float | None = None,
    power: int = 1,
    class_weight: Float[ArrayLike, " classes"] | None = None,
    sample_weight: Float[ArrayLike, "*batch"] | None = None,
    reduction: str = "mean",
    block_size: int | None = None,
) -> Any:
    """Weston-Watkins multiclass hinge of linear scores, with an l2 penalty.

    For an input x, true class t, scores s = W x + bias, b_j = s_j - s_t + margin and the ramp
    a(b) = max(0, b):

        f = c_t Σ_{j≠t} a(b_j)^power + l2 ‖W‖²

    Gradient, with g_j = power a(b_j)^(power-1) a'(b_j) for j ≠ t, g_t = 0 and h = g - (1ᵀg) e_t:

        ∂f/∂W = c_t h xᵀ + 2 l2 W    ∂f/∂x = c_t Wᵀh    ∂f/∂bias = c_t h    ∂f/∂margin = c_t 1ᵀg
        ∂f/∂l2 = ‖W‖²    ∂f/∂c_t = Σ_{j≠t} a(b_j)^power
        ∂f/∂mu = c_t Σ_{j≠t} power a(b_j)^(power-1) ∂a/∂mu(b_j)

    and for sample weights s_i, ∂L/∂s_i = (f_i - L)/Σs under "mean", f_i otherwise. At a tie, b = 0,
    the slope a' is 1. Second derivatives of the exact ramp take a' as constant: a generalized
    Hessian, zero for power 1.

    With `mu` the ramp is a(b) = b (1 + tanh(mu b))/2, which tends to max(0, b) as mu grows: it
    differs by at most 0.13924/mu, so f (power 1) by at most c_t (classes - 1) 0.13924/mu.

    Args:
        weights: W, (classes, features).
        inputs: x, (*batch, features), or (features,) for one example.
        labels: (*batch,), integers from 0 to classes - 1.
        bias: (classes,), added to the scores, not penalised. Default: none.
        margin: the score difference that is asked for; any real number. Default 1.
        l2: penalty on the weights, >= 0. Part of every example's loss: it counts once under "mean".
            Default 0.
        mu: sharpness of the smooth ramp, > 0; None (default) for the exact one.
        power: 1 (default) or 2, the squared hinge.
        class_weight: (classes,), >= 0, scales the examples of each true class. Default: ones.
        sample_weight: (*batch,), >= 0; an example of weight 0 adds nothing, even if it holds NaN.
        reduction: "mean" (default; divides by the sum of the sample weights), "sum" or "none".
        block_size: how many examples, or classes if there are more of those, are taken at a time;
            None (default) chooses by the device's cache or memory.

    Returns:
        A scalar, or (*batch,) for reduction "none", in the promoted dtype of the float arguments;
        half precision is summed in float32.

    Raises:
        ValueError: a shape, range or name is wrong, or a label is out of range. While labels are
            traced, an example whose label is out of range has a NaN loss and gradient instead.
        TypeError: a dtype is wrong.

    Cost: one matrix product for the value and one for each of ∂W and ∂x that is asked for (one more
    under "none"), in the memory of one block of scores. With the exact ramp, examples that violate
    no margin in a block cost that block nothing but the scores.

    Example:
        >>> weights = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> inputs, labels = jnp.array([[2.0, 1.5], [0.0, 3.0]]), jnp.array([0, 1])
        >>> value_and_gradient = jax.value_and_grad(linear_weston_watkins_loss)
        >>> value, gradient = value_and_gradient(weights, inputs, labels)
        >>> print(value)
        0.25
        >>> print(gradient)
        [[-1.   -0.75]
         [ 1.    0.75]
         [ 0.    0.  ]]

    References:
        Weston and Watkins, "Support vector machines for multi-class pattern recognition",
        ESANN 1999, problem (2); the l2 penalty is its ‖w‖² term.
    """
    axes = Axes()
    weights = axes.real("weights", weights, "classes features")
    inputs = axes.real("inputs", inputs, "*batch features")
    labels, margin, mu, class_weight, sample_weight = _options(
        axes, labels, margin, mu, power, class_weight, sample_weight
    )
    bias = None if bias is None else axes.real("bias", bias, "classes")
    l2 = axes.scalar("l2", l2, least=0)
    check_block_size(block_size)
    rest = bias, margin, l2, mu, class_weight, sample_weight
    over = Reduction.of(reduction, axes, weights, inputs, *rest)
    if sample_weight is not None:
        sample_weight, inputs, labels = drop_dead(sample_weight, inputs, labels)
    inputs, labels, sample_weight = axes.flatten(inputs, labels, sample_weight)
    weights, inputs = promoted(common_dtype(weights, inputs), weights, inputs)
    # A penalty that is absent need not read the weights.
    penalty = None if isinstance(l2, float) and l2 == 0 else l2
    bias, class_weight, sample_weight = promoted(
        over.accumulator, bias, class_weight, sample_weight
    )
    margin, l2 = rounded(over.accumulator, margin=margin, l2=penalty)
    (mu,) = rounded(over.accumulator, limits=True, mu=mu)
    args = weights, inputs, labels, bias, margin, l2, mu, class_weight, sample_weight
    return args, {"power": power, "reduction": over, "block_size": block_size}
