"""Value and gradients beside PyTorch's, away from ties, where the two conventions differ.

multi_margin_loss divides by the number of classes. Under "mean" it divides by the number of
examples, with a class weight as well, and so does mcgrad.
"""

import jax
import numpy as np
import pytest

import mcgrad
from tests.conftest import precision

torch = pytest.importorskip("torch", reason="PyTorch, the peer to compare with, is not installed")

EXAMPLES, CLASSES, FEATURES, HIDDEN = 6, 5, 3, 4
MARGIN = 0.7
# Both sides round; 32 eps of float64 is far below any difference of formula.
CLOSE = {"rtol": 32 * np.finfo(np.float64).eps, "atol": 32 * np.finfo(np.float64).eps}

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, EXAMPLES)
CLASS_WEIGHT = RNG.uniform(0.5, 2.0, CLASSES)
WEIGHTS = RNG.normal(size=(CLASSES, FEATURES))
INPUTS = RNG.normal(size=(EXAMPLES, FEATURES))
TARGETS = RNG.normal(size=(EXAMPLES, CLASSES))
NETWORK = {
    "hidden_weights": RNG.normal(size=(HIDDEN, FEATURES)),
    "hidden_bias": RNG.normal(size=HIDDEN),
    "output_weights": RNG.normal(size=HIDDEN),
    "inputs": INPUTS,
    "labels": RNG.choice([-1.0, 1.0], EXAMPLES),
    "output_bias": np.asarray(0.3),
}
ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softplus": torch.nn.functional.softplus,
}


def compare(ours, theirs, arguments):
    """Compare outputs and, for a cotangent that differs from entry to entry, all gradients."""
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in arguments.items()}
    expected = theirs(**tensors)
    cotangent = np.linspace(1.0, 2.0, expected.numel()).reshape(expected.shape)
    expected.backward(torch.tensor(cotangent))
    with precision(np.float64):
        value, pullback = jax.vjp(lambda arguments: ours(**arguments), arguments)
        (gradients,) = pullback(np.asarray(cotangent))
    np.testing.assert_allclose(value, expected.detach().numpy(), **CLOSE)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(gradients[name], tensor.grad.numpy(), err_msg=name, **CLOSE)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("power", [1, 2])
def test_multi_margin_loss(power, weighted, reduction):
    class_weight = CLASS_WEIGHT if weighted else None
    options = {"margin": MARGIN, "power": power, "reduction": reduction}

    def peer(scores):
        return CLASSES * torch.nn.functional.multi_margin_loss(
            scores,
            torch.tensor(LABELS),
            p=power,
            margin=MARGIN,
            weight=None if class_weight is None else torch.tensor(class_weight),
            reduction=reduction,
        )

    def on_scores(scores):
        return mcgrad.weston_watkins_loss(scores, LABELS, class_weight=class_weight, **options)

    def on_inputs(weights, inputs):
        return mcgrad.linear_weston_watkins_loss(
            weights, inputs, LABELS, class_weight=class_weight, **options
        )

    compare(on_scores, peer, {"scores": INPUTS @ WEIGHTS.T})
    compare(
        on_inputs,
        lambda weights, inputs: peer(inputs @ weights.T),
        {"weights": WEIGHTS, "inputs": INPUTS},
    )


def test_sum_of_squared_errors():
    def peer(weights, inputs, targets):
        return torch.nn.functional.mse_loss(inputs @ weights.T, targets, reduction="sum")

    def ours(weights, inputs, targets):
        return mcgrad.linear_least_squares_loss(weights, inputs, targets, reduction="sum")

    compare(ours, peer, {"weights": WEIGHTS, "inputs": INPUTS, "targets": TARGETS})


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_soft_margin_loss_of_a_network(activation, reduction):
    def peer(hidden_weights, hidden_bias, output_weights, inputs, labels, output_bias):
        hidden = ACTIVATIONS[activation](inputs @ hidden_weights.T + hidden_bias)
        scores = hidden @ output_weights + output_bias
        losses = torch.nn.functional.softplus(-labels * scores)
        return {"mean": losses.mean(), "sum": losses.sum(), "none": losses}[reduction]

    def ours(**arguments):
        return mcgrad.logistic_network_loss(**arguments, activation=activation, reduction=reduction)

    compare(ours, peer, NETWORK)
