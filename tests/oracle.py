"""Every loss and every partial to 50 digits, written from the formulas with plain loops.

Arguments are nested lists of numbers with one row per example; each loss returns its outputs (one,
or one per example under reduction "none") and, for a cotangent with one entry per output, the
gradient of the float arguments by name.

The numbers may be mpmath's, which gives the truth, or `Rounded`, which carries beside the value a
bound on the rounding errors of any floating-point evaluation of the same formula. The second is
where the condition factors of the accuracy tests come from, without a second copy of a loss.
"""

from mpmath import mp as _mp

mp = _mp.clone()
mp.dps = 50

# `Rounded.error` counts units of eps, so a sign is certain when the value exceeds error * eps. A
# comparison closer than that to a kink is a badly chosen input: float32, with room for eight units.
_CERTAIN = 8 * mp.mpf(2) ** -23


class Rounded:
    """A number and a first-order bound, in units of eps, on its error in floating point.

    An input has no error. A product or quotient carries the relative errors of its operands and one
    unit of its own. A sum carries the errors of its terms and one unit of the sum of their
    absolute values, because the terms may be added in any order. A function carries the error of
    its argument times its slope, and one unit of its own.
    """

    __slots__ = ("value", "error")

    def __init__(self, value, error=0):
        self.value, self.error = mp.mpf(value), mp.mpf(error)

    def __add__(self, other):
        return total([self, other])

    def __sub__(self, other):
        return total([self, -other])

    def __rsub__(self, other):
        return total([other, -self])

    def __neg__(self):
        return Rounded(-self.value, self.error)

    def __mul__(self, other):
        other = rounded(other)
        value = self.value * other.value
        error = abs(self.value) * other.error + abs(other.value) * self.error
        return Rounded(value, error + abs(value))

    def __truediv__(self, other):
        other = rounded(other)
        value = self.value / other.value
        error = (self.error + abs(value) * other.error) / abs(other.value)
        return Rounded(value, error + abs(value))

    __radd__, __rmul__ = __add__, __mul__


def rounded(number):
    return number if isinstance(number, Rounded) else Rounded(number)


def _function(x, value, slope):
    if not isinstance(x, Rounded):
        return value(x)
    y = value(x.value)
    return Rounded(y, abs(slope(x.value)) * x.error + abs(y))


def total(terms):
    terms = list(terms)
    if not any(isinstance(term, Rounded) for term in terms):
        return mp.fsum(terms)
    terms = [rounded(term) for term in terms]
    error = mp.fsum(term.error + abs(term.value) for term in terms)
    return Rounded(mp.fsum(term.value for term in terms), error)


def dot(left, right):
    return total(a * b for a, b in zip(left, right, strict=True))


def transpose(matrix):
    return [list(column) for column in zip(*matrix, strict=True)]


def product(left, right):
    columns = transpose(right)
    return [[dot(row, column) for column in columns] for row in left]


def squared_norm(matrix):
    return total(entry * entry for row in matrix for entry in row)


# Elementary functions


def logistic(x):
    def value(x):
        return 1 / (1 + mp.exp(-x))

    return _function(x, value, lambda x: value(x) * value(-x))


def softplus(x):
    def value(x):
        return x + mp.log1p(mp.exp(-x)) if x > 0 else mp.log1p(mp.exp(x))

    return _function(x, value, lambda x: 1 / (1 + mp.exp(-x)))


def square_root(x):
    return _function(x, mp.sqrt, lambda x: 1 / (2 * mp.sqrt(x)))


def tanh(x):
    return _function(x, mp.tanh, lambda x: mp.sech(x) ** 2)


def step(b):
    """1 for b >= 0 and 0 below; refuses a sign that rounding could turn."""
    if not isinstance(b, Rounded):
        return int(b >= 0)
    if b.error and abs(b.value) <= _CERTAIN * b.error:
        raise ValueError("an input of the accuracy tests is within rounding of a kink")
    return int(b.value >= 0)


def ramp(b, mu):
    """Value, slope and derivative with respect to mu, of max(0, b) or of its smooth twin.

    (1 + tanh u)/2 is logistic(2u) and sech(u)^2 is 4 logistic(2u) logistic(-2u).
    """
    if mu is None:
        return step(b) * b, step(b), 0 * b
    u = mu * b
    p, q = logistic(2 * u), logistic(-2 * u)
    return p * b, p + 2 * (u * (p * q)), 2 * (b * b * (p * q))


# Reductions


def _shares(sample_weight, reduction):
    """What each example's loss is multiplied by."""
    if reduction == "mean":
        whole = total(sample_weight)
        return [weight / whole for weight in sample_weight]
    return sample_weight


def _reduce(losses, sample_weight, reduction, cotangent):
    """Outputs, the derivative of their sum by each example's loss, and by each sample weight."""
    shares = _shares(sample_weight, reduction)
    if reduction == "none":
        outputs = [share * loss for share, loss in zip(shares, losses, strict=True)]
        return (
            outputs,
            [ct * share for ct, share in zip(cotangent, shares, strict=True)],
            [ct * loss for ct, loss in zip(cotangent, losses, strict=True)],
        )
    (ct,) = cotangent
    output = dot(shares, losses)
    by_weight = [ct * loss for loss in losses]
    if reduction == "mean":
        whole = total(sample_weight)
        by_weight = [ct * ((loss - output) / whole) for loss in losses]
    return [output], [ct * share for share in shares], by_weight


# 1. Weston-Watkins


def weston_watkins_loss(
    scores,
    labels,
    *,
    margin,
    cotangent,
    mu=None,
    power=1,
    class_weight=None,
    sample_weight=None,
    reduction="mean",
):
    classes = len(scores[0])
    class_weight = class_weight or [1] * classes
    sample_weight = sample_weight or [1] * len(scores)
    hinges, slopes, by_mu = [], [], []
    for row, t in zip(scores, labels, strict=True):
        terms, slope, rate = [], [0] * classes, []
        for j in range(classes):
            if j == t:
                continue
            a, a_slope, a_rate = ramp(total([row[j], -row[t], margin]), mu)
            terms.append(a if power == 1 else a * a)
            slope[j] = a_slope if power == 1 else 2 * (a * a_slope)
            rate.append(a_rate if power == 1 else 2 * (a * a_rate))
        hinges.append(total(terms))
        slopes.append(slope)
        by_mu.append(total(rate))

    losses = [class_weight[t] * hinge for t, hinge in zip(labels, hinges, strict=True)]
    outputs, by_loss, by_weight = _reduce(losses, sample_weight, reduction, cotangent)
    by_hinge = [ct * class_weight[t] for t, ct in zip(labels, by_loss, strict=True)]
    by_scores = []
    for t, ct, slope in zip(labels, by_hinge, slopes, strict=True):
        row = [ct * g for g in slope]
        row[t] = -(ct * total(slope))
        by_scores.append(row)
    return outputs, {
        "scores": by_scores,
        "margin": dot(by_hinge, [total(slope) for slope in slopes]),
        "mu": dot(by_hinge, by_mu),
        "class_weight": [
            total(
                ct * hinge for t, ct, hinge in zip(labels, by_loss, hinges, strict=True) if t == c
            )
            for c in range(classes)
        ],
        "sample_weight": by_weight,
    }


def _penalise(outputs, penalty, sample_weight, reduction, cotangent, by_weight):
    """The outputs with a penalty on each example; its cotangent, and those of the weights."""
    # Under "mean" the shares add up to one, so the regulariser counts once.
    times = [1]
    if reduction != "mean":
        times = sample_weight if reduction == "none" else [total(sample_weight)]
        each = cotangent if reduction == "none" else cotangent * len(sample_weight)
        by_weight = [g + ct * penalty for g, ct in zip(by_weight, each, strict=True)]
    penalised = [out + time * penalty for out, time in zip(outputs, times, strict=True)]
    return penalised, dot(cotangent, times), by_weight


def linear_weston_watkins_loss(
    weights,
    inputs,
    labels,
    *,
    cotangent,
    bias=None,
    l2=0,
    sample_weight=None,
    reduction="mean",
    **hinge,
):
    bias = bias or [0] * len(weights)
    sample_weight = sample_weight or [1] * len(inputs)
    # One sum per score, bias included: its terms may be added in any order.
    scores = [
        [
            total([b, *(w * u for w, u in zip(row, x, strict=True))])
            for row, b in zip(weights, bias, strict=True)
        ]
        for x in inputs
    ]
    outputs, gradients = weston_watkins_loss(
        scores,
        labels,
        cotangent=cotangent,
        sample_weight=sample_weight,
        reduction=reduction,
        **hinge,
    )
    norm = squared_norm(weights)
    h = gradients.pop("scores")
    penalised, by_penalty, by_weight = _penalise(
        outputs, l2 * norm, sample_weight, reduction, cotangent, gradients["sample_weight"]
    )
    data = product(transpose(h), inputs)
    return penalised, {
        **gradients,
        "weights": [
            [g + 2 * (by_penalty * (l2 * w)) for g, w in zip(*rows, strict=True)]
            for rows in zip(data, weights, strict=True)
        ],
        "inputs": product(h, weights),
        "bias": [total(column) for column in transpose(h)],
        "l2": by_penalty * norm,
        "sample_weight": by_weight,
    }


# 2. Squared norm of a ReLU


def squared_relu_norm(x, *, cotangent, mu=None, where=None):
    """One output for each row of x; `where` is a table of zeros and ones."""
    where = where or [[1] * len(row) for row in x]
    parts = [[ramp(b, mu) for b in row] for row in x]
    rows = list(zip(parts, where, strict=True))
    return [total(k * (a * a) for (a, _, _), k in zip(*row, strict=True)) for row in rows], {
        "x": [
            [2 * (ct * (k * (a * slope))) for (a, slope, _), k in zip(*row, strict=True)]
            for ct, row in zip(cotangent, rows, strict=True)
        ],
        "mu": total(
            2 * (ct * (k * (a * rate)))
            for ct, row in zip(cotangent, rows, strict=True)
            for (a, _, rate), k in zip(*row, strict=True)
        ),
    }


# 3. Ridge and task-covariance penalty


def _solve(covariance, rhs):
    """Omega^-1 rhs for one right-hand side, by the Cholesky factor of the symmetric part."""
    size = range(len(covariance))
    factor = [[0 for _ in size] for _ in size]
    for i in size:
        for j in range(i + 1):
            entry = (covariance[i][j] + covariance[j][i]) / 2 if i != j else covariance[i][i]
            rest = total([entry, *(-(factor[i][k] * factor[j][k]) for k in range(j))])
            factor[i][j] = square_root(rest) if i == j else rest / factor[j][j]
    forward = []
    for i in size:
        rest = total([rhs[i], *(-(factor[i][k] * forward[k]) for k in range(i))])
        forward.append(rest / factor[i][i])
    solution = [0 for _ in size]
    for i in reversed(size):
        below = range(i + 1, len(covariance))
        rest = total([forward[i], *(-(factor[k][i] * solution[k]) for k in below)])
        solution[i] = rest / factor[i][i]
    return solution


def task_covariance_penalty(weights, covariance, *, ridge, coupling, cotangent):
    (ct,) = cotangent
    diagonal = not isinstance(covariance[0], list)
    if diagonal:
        s = [[w / c for w, c in zip(row, covariance, strict=True)] for row in weights]
    else:
        s = [_solve(covariance, row) for row in weights]
    norm = squared_norm(weights)
    coupled = total(dot(*rows) for rows in zip(weights, s, strict=True))
    if diagonal:
        gram = [dot(column, column) for column in transpose(s)]
        by_covariance = [-(ct * (coupling * entry)) / 2 for entry in gram]
    else:
        gram = product(transpose(s), s)
        by_covariance = [[-(ct * (coupling * entry)) / 2 for entry in row] for row in gram]
    return [(ridge * norm + coupling * coupled) / 2], {
        "weights": [
            [ct * (ridge * w + coupling * u) for w, u in zip(*rows, strict=True)]
            for rows in zip(weights, s, strict=True)
        ],
        "covariance": by_covariance,
        "ridge": ct * norm / 2,
        "coupling": ct * coupled / 2,
    }


def optimal_task_covariance(weights):
    """(W'W)^(1/2) / Tr (W'W)^(1/2), and the condition number of W."""
    values, vectors = mp.eigsy(mp.matrix(product(transpose(weights), weights)))
    roots = [mp.sqrt(value) for value in values]
    root = vectors * mp.diag(roots) * vectors.T
    trace = mp.fsum(roots)
    return [[entry / trace for entry in row] for row in root.tolist()], max(roots) / min(roots)


# 4. Linear least squares


def linear_least_squares_loss(
    weights, inputs, targets, *, cotangent, bias=None, sample_weight=None, reduction="mean"
):
    bias = bias or [0] * len(weights)
    sample_weight = sample_weight or [1] * len(inputs)
    residuals = [
        [
            total([b, -target, *(w * u for w, u in zip(row, x, strict=True))])
            for row, b, target in zip(weights, bias, v, strict=True)
        ]
        for x, v in zip(inputs, targets, strict=True)
    ]
    losses = [dot(r, r) for r in residuals]
    outputs, by_loss, by_weight = _reduce(losses, sample_weight, reduction, cotangent)
    scaled = [[2 * (ct * entry) for entry in r] for ct, r in zip(by_loss, residuals, strict=True)]
    return outputs, {
        "weights": product(transpose(scaled), inputs),
        "inputs": product(scaled, weights),
        "targets": [[-entry for entry in row] for row in scaled],
        "bias": [total(column) for column in transpose(scaled)],
        "sample_weight": by_weight,
    }


def moment_least_squares_loss(
    weights, inputs, targets, *, cotangent, sample_weight=None, reduction="mean"
):
    """The loss of the moments of the data, differentiated with respect to the data as well.

    The value and the gradient of W come from the moments, whose terms cancel when the fit is good.
    """
    (ct,) = cotangent
    sample_weight = sample_weight or [1] * len(inputs)
    weighted = [[s * entry for entry in row] for s, row in zip(sample_weight, inputs, strict=True)]
    weighted_targets = [
        [s * entry for entry in row] for s, row in zip(sample_weight, targets, strict=True)
    ]
    second = product(transpose(weighted), inputs)
    cross = product(transpose(weighted_targets), inputs)
    constant = total(dot(*rows) for rows in zip(weighted_targets, targets, strict=True))
    moved = product(weights, second)
    value = constant + total(
        w * (a - 2 * c)
        for rows in zip(weights, moved, cross, strict=True)
        for w, a, c in zip(*rows, strict=True)
    )
    whole = total(sample_weight)
    share = ct / whole if reduction == "mean" else ct
    square = product(transpose(weights), weights)
    fitted, pulled = product(inputs, square), product(targets, weights)
    predicted = product(inputs, transpose(weights))
    by_weight = []
    for u, v, uww, vw in zip(inputs, targets, fitted, pulled, strict=True):
        loss = total([dot(uww, u), -(2 * dot(vw, u)), dot(v, v)])
        by_weight.append(share * (loss - value / whole if reduction == "mean" else loss))
    return [value / whole if reduction == "mean" else value], {
        "weights": [
            [2 * (share * (a - c)) for a, c in zip(*rows, strict=True)]
            for rows in zip(moved, cross, strict=True)
        ],
        "inputs": [
            [2 * (share * (s * (a - c))) for a, c in zip(*rows, strict=True)]
            for s, *rows in zip(sample_weight, fitted, pulled, strict=True)
        ],
        "targets": [
            [2 * (share * (s * (v - p))) for v, p in zip(*rows, strict=True)]
            for s, *rows in zip(sample_weight, targets, predicted, strict=True)
        ],
        "sample_weight": by_weight,
    }


# 5. Logistic loss of a one-hidden-layer network


def activate(name, z, mu):
    """Value, slope and derivative with respect to mu."""
    if name == "relu":
        return ramp(z, mu)
    p, q = logistic(z), logistic(-z)
    value, slope = {
        "sigmoid": (p, p * q),
        "tanh": (tanh(z), 4 * (logistic(2 * z) * logistic(-2 * z))),
        "softplus": (softplus(z), p),
        "identity": (z, 1),
    }[name]
    return value, slope, 0


def logistic_network_loss(
    hidden_weights,
    hidden_bias,
    output_weights,
    inputs,
    labels,
    *,
    cotangent,
    activation="sigmoid",
    mu=None,
    output_bias=0,
    l2=0,
    sample_weight=None,
    reduction="mean",
):
    sample_weight = sample_weight or [1] * len(inputs)
    units = [
        [
            activate(activation, total([b, *(w * u for w, u in zip(row, x, strict=True))]), mu)
            for row, b in zip(hidden_weights, hidden_bias, strict=True)
        ]
        for x in inputs
    ]
    values, slopes, rates = ([[unit[part] for unit in row] for row in units] for part in range(3))
    # One sum, bias included: its terms may be added in any order.
    outputs_of_network = [
        total([output_bias, *(w * u for w, u in zip(output_weights, s, strict=True))])
        for s in values
    ]
    betas = [-(y * out) for y, out in zip(labels, outputs_of_network, strict=True)]
    outputs, by_loss, by_weight = _reduce(
        [softplus(beta) for beta in betas], sample_weight, reduction, cotangent
    )
    by_beta = [ct * logistic(beta) for ct, beta in zip(by_loss, betas, strict=True)]
    by_output = [-(ct * y) for ct, y in zip(by_beta, labels, strict=True)]
    by_hidden = [
        [ct * (slope * w) for slope, w in zip(row, output_weights, strict=True)]
        for ct, row in zip(by_output, slopes, strict=True)
    ]
    norm = squared_norm([*hidden_weights, output_weights])
    penalised, by_penalty, by_weight = _penalise(
        outputs, l2 * norm, sample_weight, reduction, cotangent, by_weight
    )
    return penalised, {
        "hidden_weights": [
            [g + 2 * (by_penalty * (l2 * w)) for g, w in zip(*rows, strict=True)]
            for rows in zip(product(transpose(by_hidden), inputs), hidden_weights, strict=True)
        ],
        "hidden_bias": [total(column) for column in transpose(by_hidden)],
        "output_weights": [
            dot(by_output, column) + 2 * (by_penalty * (l2 * w))
            for column, w in zip(transpose(values), output_weights, strict=True)
        ],
        "output_bias": total(by_output),
        "l2": by_penalty * norm,
        "inputs": product(by_hidden, hidden_weights),
        "labels": [-(ct * out) for ct, out in zip(by_beta, outputs_of_network, strict=True)],
        "mu": total(
            ct * dot(row, output_weights) for ct, row in zip(by_output, rates, strict=True)
        ),
        "sample_weight": by_weight,
    }
