"""Models of flax, equinox and haiku with a hinge on top: on their scores, and fused with the head.

Every library gives `train(head) -> (the first gradient, the parameters after some steps)`, in its
own idiom. The reference is autodiff of the equation on the scores.
"""

import equinox as eqx
import flax.linen
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mcgrad
from tests.cases import assert_close
from tests.conftest import tolerance

# A bias is added to a batch of scores: a rank is promoted, by the libraries as well.
pytestmark = [
    pytest.mark.interop,
    pytest.mark.implicit_promotion,
    pytest.mark.usefixtures("float64"),
]
EXAMPLES, FEATURES, WIDTH, CLASSES, STEPS = 24, 6, 5, 40, 20
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(EXAMPLES, FEATURES))
LABELS = RNG.integers(0, CLASSES, EXAMPLES)
OPTIMIZER = optax.adam(0.01)


def on_scores(features, weights, bias):
    return mcgrad.weston_watkins_loss(features @ weights.T + bias, LABELS)


def fused(features, weights, bias):
    """Three blocks of classes, the last one ragged: the scores are never an array."""
    return mcgrad.linear_weston_watkins_loss(weights, features, LABELS, bias=bias, block_size=16)


def autodiff(features, weights, bias):
    plain = mcgrad.plain(mcgrad.weston_watkins_loss)
    return plain(features @ weights.T + bias, LABELS)


class NnxNetwork(nnx.Module):
    def __init__(self, rngs):
        self.trunk = nnx.Linear(FEATURES, WIDTH, param_dtype=jnp.float64, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, param_dtype=jnp.float64, rngs=rngs)

    def features(self, inputs):
        return nnx.tanh(self.trunk(inputs))


def train_nnx(head):
    def loss(model, inputs):
        kernel, bias = model.head.kernel[...], model.head.bias[...]
        return head(model.features(inputs), kernel.T, bias)

    @nnx.jit
    def step(model, optimizer):
        gradient = nnx.grad(loss)(model, INPUTS)
        optimizer.update(model, gradient)
        return gradient

    model = NnxNetwork(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)
    gradients = [step(model, optimizer) for _ in range(STEPS)]
    return nnx.to_pure_dict(gradients[0]), nnx.to_pure_dict(nnx.state(model, nnx.Param))


def train_functional(params, loss):
    """The loop of the libraries whose parameters are a pytree."""

    @jax.jit
    def step(params, state):
        gradient = jax.grad(loss)(params)
        updates, state = OPTIMIZER.update(gradient, state)
        return optax.apply_updates(params, updates), state, gradient

    state, gradients = OPTIMIZER.init(params), []
    for _ in range(STEPS):
        params, state, gradient = step(params, state)
        gradients.append(gradient)
    return gradients[0], params


class LinenNetwork(flax.linen.Module):
    def setup(self):
        self.trunk = flax.linen.Dense(WIDTH, param_dtype=jnp.float64)
        self.head = flax.linen.Dense(CLASSES, param_dtype=jnp.float64)

    def features(self, inputs):
        return flax.linen.tanh(self.trunk(inputs))

    def __call__(self, inputs):
        return self.head(self.features(inputs))


def train_linen(head):
    model = LinenNetwork()

    def loss(variables):
        last = variables["params"]["head"]
        features = model.apply(variables, INPUTS, method="features")
        return head(features, last["kernel"].T, last["bias"])

    return train_functional(model.init(jax.random.key(0), INPUTS), loss)


def train_haiku(head):
    @haiku.without_apply_rng
    @haiku.transform
    def features(inputs):
        return jnp.tanh(haiku.Linear(WIDTH, name="trunk")(inputs))

    @haiku.without_apply_rng
    @haiku.transform
    def scores(inputs):
        return haiku.Linear(CLASSES, name="head")(inputs)

    keys = jax.random.split(jax.random.key(0))
    params = features.init(keys[0], INPUTS) | scores.init(keys[1], np.ones((1, WIDTH)))

    def loss(params):
        last = params["head"]
        return head(features.apply(params, INPUTS), last["w"].T, last["b"])

    return train_functional(params, loss)


class EquinoxNetwork(eqx.Module):
    trunk: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.trunk = eqx.nn.Linear(FEATURES, WIDTH, dtype=jnp.float64, key=keys[0])
        self.head = eqx.nn.Linear(WIDTH, CLASSES, dtype=jnp.float64, key=keys[1])


def train_equinox(head):
    def loss(model):
        features = jnp.tanh(jax.vmap(model.trunk)(INPUTS))
        return head(features, model.head.weight, model.head.bias)

    @eqx.filter_jit
    def step(model, state):
        gradient = eqx.filter_grad(loss)(model)
        updates, state = OPTIMIZER.update(gradient, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, gradient

    model = EquinoxNetwork(jax.random.key(0))
    state, gradients = OPTIMIZER.init(eqx.filter(model, eqx.is_array)), []
    for _ in range(STEPS):
        model, state, gradient = step(model, state)
        gradients.append(gradient)
    return tuple(eqx.filter(tree, eqx.is_array) for tree in (gradients[0], model))


TRAIN = {
    "flax.nnx": train_nnx,
    "flax.linen": train_linen,
    "equinox": train_equinox,
    "haiku": train_haiku,
}


@pytest.mark.parametrize("head", [on_scores, fused])
@pytest.mark.parametrize("library", TRAIN)
def test_a_model_trains_as_with_autodiff(library, head):
    gradient, params = TRAIN[library](head)
    expected_gradient, expected_params = TRAIN[library](autodiff)
    close = tolerance(np.float64, 1024)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
    assert_close(gradient, expected_gradient, close)
    assert_close(params, expected_params, close)
