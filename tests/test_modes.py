"""The mechanism on losses of the user's own."""

import copy
import functools
import inspect
import itertools
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcgrad


def _plain(x, scale, power):
    return scale * jnp.sum(x**power)


def _forward(x, scale, power):
    return _plain(x, scale, power), (x, scale)


def _backward(residuals, ct, *, power):
    x, scale = residuals
    return ct * scale * power * x ** (power - 1), ct * jnp.sum(x**power)


polynomial = mcgrad.pair(_plain, _forward, _backward, static_argnames="power")
X, SCALE = jnp.array([1.0, -2.0, 3.0]), jnp.asarray(0.5)
MODES = {
    "reverse": lambda loss: loss,
    "forward": mcgrad.forward_mode,
    "plain": mcgrad.plain,
}
every_mode = pytest.mark.parametrize("mode", MODES)


def test_the_signature_is_the_equations():
    value = polynomial(X, scale=SCALE, power=3)
    assert value == _plain(X, SCALE, 3) == polynomial(X, SCALE, 3)
    gradients = jax.grad(polynomial, argnums=(0, 1))(X, SCALE, 3)
    assert gradients[0].tolist() == (1.5 * X**2).tolist()
    assert gradients[1] == jnp.sum(X**3)
    assert polynomial.__name__ == "_plain"


def test_the_closed_form_is_what_runs():
    """A rule that is wrong on purpose shows in both directions, and not in `plain`."""
    wrong = mcgrad.pair(
        _plain, _forward, lambda r, ct: (7 * ct * r[0], ct * 0), static_argnames=("power",)
    )
    assert jax.grad(wrong)(X, SCALE, 2).tolist() == (7 * X).tolist()
    assert jax.grad(mcgrad.plain(wrong))(X, SCALE, 2).tolist() == X.tolist()
    tangent = jax.jvp(lambda x: mcgrad.forward_mode(wrong)(x, SCALE, 2), (X,), (X,))[1]
    assert tangent == jnp.sum(7 * X * X)


def test_forward_mode_is_refused_by_one_face_and_given_by_the_other():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: polynomial(x, SCALE, 2), (X,), (X,))
    assert jax.jvp(lambda x: mcgrad.forward_mode(polynomial)(x, SCALE, 2), (X,), (X,))[1] == 14


@pytest.mark.parametrize("first", [mcgrad.plain, mcgrad.forward_mode])
@pytest.mark.parametrize("second", [mcgrad.plain, mcgrad.forward_mode])
def test_a_face_of_a_face(first, second):
    assert second(first(polynomial)) == second(polynomial)


def test_pickle():
    for face in (polynomial, mcgrad.plain(polynomial), mcgrad.forward_mode(polynomial)):
        again = pickle.loads(pickle.dumps(face))
        assert again == face and hash(again) == hash(face)
        assert again(X, SCALE, 2) == face(X, SCALE, 2)
    assert polynomial != mcgrad.plain(polynomial)


def test_wanted_names_what_is_differentiated():
    seen = []

    def forward(x, y, *, needs_grad):
        seen.append(set(needs_grad))
        return jnp.sum(x * y), (x, y)

    def backward(residuals, ct, *, needs_grad):
        seen.append(set(needs_grad))
        x, y = residuals
        return ct * y, ct * x

    product = mcgrad.pair(lambda x, y: jnp.sum(x * y), forward, backward)
    product(X, X)
    jax.grad(product, argnums=1)(X, X)
    assert seen[0] == set()
    assert {"y"} in seen and {"x"} not in seen and {"x", "y"} not in seen


def test_pytrees_integers_and_none():
    def plain(tree, index, extra):
        return tree["a"][index] * jnp.sum(tree["b"])

    def forward(tree, index, extra):
        return plain(tree, index, extra), (tree, index)

    def backward(residuals, ct):
        tree, index = residuals
        by_a = jnp.zeros_like(tree["a"]).at[index].set(ct * jnp.sum(tree["b"]))
        return {"a": by_a, "b": jnp.full_like(tree["b"], ct * tree["a"][index])}, None, None

    loss = mcgrad.pair(plain, forward, backward)
    tree = {"a": jnp.array([2.0, 3.0]), "b": jnp.array([1.0, 4.0])}
    for face in (loss, mcgrad.forward_mode(loss)):
        got = jax.grad(face)(tree, 1, None)
        assert jax.tree.map(lambda x: x.tolist(), got) == {"a": [0.0, 5.0], "b": [3.0, 3.0]}


def test_a_cotangent_forgotten_is_an_error():
    """JAX alone takes None for a float argument as a gradient of 0.0."""
    loss = mcgrad.pair(lambda x: jnp.sum(x), lambda x: (jnp.sum(x), x), lambda r, ct: (None,))
    with pytest.raises(TypeError, match="backward: expected a cotangent of x; got None"):
        jax.grad(loss)(X)


def test_misuse():
    with pytest.raises(TypeError, match="static_argnames: .*'missing'"):
        mcgrad.pair(_plain, _forward, _backward, static_argnames=("missing",))
    with pytest.raises(TypeError, match="plain: .*xs"):
        mcgrad.pair(lambda *xs: xs[0], _forward, _backward)
    for face in (mcgrad.plain, mcgrad.forward_mode):
        with pytest.raises(TypeError, match="loss: expected a loss made by mcgrad.pair"):
            face(jnp.sum)


# What is a loss, and what is only made from one.


def sharded(loss):
    return mcgrad.shard(loss, jax.make_mesh((1, 1), ("data", "model")), batch_axis="data")


class Tripled:
    """A callable object that copies the attributes of what it calls."""

    def __init__(self, loss):
        functools.update_wrapper(self, loss)
        self.inside = loss

    def __call__(self, *args):
        return 3 * self.inside(*args)


class Model:
    norm = mcgrad.squared_relu_norm


LOSSES = {
    "of the library": mcgrad.squared_relu_norm,
    "by pair": polynomial,
    "forward": mcgrad.forward_mode(mcgrad.squared_relu_norm),
    "plain": mcgrad.plain(polynomial),
    "sharded": sharded(mcgrad.squared_relu_norm),
}
MADE_FROM_A_LOSS = {
    "grad": jax.grad,
    "value_and_grad": jax.value_and_grad,
    "vmap": jax.vmap,
    "hessian": jax.hessian,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "wraps": lambda loss: functools.wraps(loss)(lambda *args: 3 * loss(*args)),
    "partial": functools.partial,
    "updated partial": lambda loss: functools.update_wrapper(functools.partial(loss), loss),
    "Partial": jax.tree_util.Partial,
    "staticmethod": staticmethod,
    "cache": functools.lru_cache,
    "object": Tripled,
    "object of an object": lambda loss: Tripled(Tripled(loss)),
    "method": lambda loss: Model().norm,
}


@pytest.mark.parametrize("made", MADE_FROM_A_LOSS)
def test_what_is_made_from_a_loss_is_none(made):
    """It has the attributes of the loss, and another value: the loss inside must not be taken."""
    for loss in LOSSES.values():
        other = MADE_FROM_A_LOSS[made](loss)
        for transformation in (mcgrad.forward_mode, mcgrad.plain, sharded):
            with pytest.raises(TypeError, match="loss: expected .*Of a function made from a loss"):
                transformation(other)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_copy_of_a_loss_is_one(loss):
    loss = LOSSES[loss]
    args = (X, SCALE, 2) if "_plain" in repr(loss) else (X,)
    for again in (copy.copy(loss), copy.deepcopy(loss)):
        assert again == loss
        assert mcgrad.forward_mode(again)(*args) == loss(*args)


def test_a_loss_dressed_as_another_stays_itself():
    """`functools.wraps` writes into the attributes of what it decorates."""
    for loss in (polynomial, mcgrad.plain(polynomial)):
        dressed = copy.copy(loss)
        functools.update_wrapper(dressed, mcgrad.forward_mode(mcgrad.squared_relu_norm))
        functools.update_wrapper(dressed, mcgrad.squared_relu_norm)
        assert dressed(X, SCALE, 2) == loss(X, SCALE, 2)
        assert mcgrad.forward_mode(dressed) == mcgrad.forward_mode(polynomial)


@pytest.mark.parametrize("loss", ["sharded", "sharded, forward"])
def test_a_sharded_loss_is_not_sharded_again(loss):
    """The second mesh would have replaced the first."""
    once = sharded(mcgrad.squared_relu_norm)
    with pytest.raises(TypeError, match="loss: expected one call of shard that names both axes"):
        sharded(mcgrad.forward_mode(once) if "forward" in loss else once)


# Pairs of functions of every make.


def _square(x):
    return jnp.sum(x**2)


def _square_forward(x):
    return _square(x), x


def _square_backward(x, ct):
    return (2 * ct * x,)


class Callable:
    def __call__(self, x):
        return jnp.sum(x**2)


MAKES = {
    "function": _square,
    "lambda": lambda x: jnp.sum(x**2),
    "jit": jax.jit(_square),
    "object": Callable(),
    "method": Callable().__call__,
    "partial": functools.partial(lambda k, x: jnp.sum(x**k), 2),
    "partial of a partial": functools.partial(functools.partial(lambda k, x: jnp.sum(x**k), 2)),
    "partial of an object": functools.partial(Callable()),
    "Partial": jax.tree_util.Partial(_square),
}


@pytest.mark.parametrize("make", MAKES)
def test_pairs_of_functions_of_every_make(make):
    """A partial and a callable object have no __name__."""
    equation = MAKES[make]
    square = mcgrad.pair(equation, jax.jit(_square_forward), functools.partial(_square_backward))
    for mode, of in MODES.items():
        loss = of(square)
        assert loss(X) == 14 and jax.grad(loss)(X).tolist() == (2 * X).tolist()
        name = getattr(equation, "__name__", None) or repr(equation)
        assert repr(loss) == f"<{mode} mode of {name}>"
        assert inspect.signature(loss) == inspect.signature(equation)
    with pytest.raises(TypeError, match="static_argnames: expected parameters of .*; got 'k'"):
        mcgrad.pair(equation, _square_forward, _square_backward, static_argnames="k")


@every_mode
@pytest.mark.parametrize(
    "equation",
    [
        functools.partial(lambda x, k: jnp.sum(k * x**2), k=2.0),
        lambda x, *, k=2.0: jnp.sum(k * x**2),
        lambda x, k=2.0, /: jnp.sum(k * x**2),
    ],
    ids=["partial", "keyword", "positional"],
)
def test_forward_takes_every_argument_by_position(equation, mode):
    """However the signature of the equation says that it is given."""
    loss = MODES[mode](
        mcgrad.pair(
            equation,
            lambda x, k: (jnp.sum(k * x**2), (x, k)),
            lambda r, ct: (2 * ct * r[1] * r[0], ct * jnp.sum(r[0] ** 2)),
        )
    )
    assert loss(X) == 28 and jax.grad(loss)(X).tolist() == (4 * X).tolist()
    if "/" not in str(inspect.signature(loss)):
        assert jax.grad(lambda k: loss(X, k=k))(3.0) == 14


class Unhashable:
    def __eq__(self, other):
        return self is other

    def __call__(self, x):
        return x


@pytest.mark.parametrize("wrong", [None, 3, "f", X, Unhashable()], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("argument", ["plain", "forward", "backward"])
def test_a_part_that_is_no_function(argument, wrong):
    parts = {"plain": _square, "forward": _square_forward, "backward": _square_backward}
    with pytest.raises(TypeError, match=f"{argument}: expected a hashable function .*; got"):
        mcgrad.pair(**(parts | {argument: wrong}))


@pytest.mark.parametrize("names", [0, None, ("x", 0), [["x"]], {"y"}])
def test_static_argnames_that_are_none(names):
    with pytest.raises(TypeError, match="static_argnames: expected parameters of _square; got"):
        mcgrad.pair(_square, _square_forward, _square_backward, static_argnames=names)


@pytest.mark.parametrize("power", [[2], {2}, X], ids=["list", "set", "array"])
def test_a_static_argument_that_is_not_hashable(power):
    with pytest.raises(TypeError, match="power: expected a hashable value, .*; got"):
        polynomial(X, SCALE, power)


# What has no tangent: integers, booleans and PRNG keys, in arguments and in values.

FLOAT0 = jax.dtypes.float0
NO_COTANGENTS = {
    "None": lambda leaf: None,
    "float0": lambda leaf: np.zeros(jnp.shape(leaf), FLOAT0),
    "integer": lambda leaf: jnp.zeros(jnp.shape(leaf), int),
}
KEY = jax.random.key(0)
MIXED = {
    "x": X,
    "rest": {"index": jnp.array([2, 0]), "flag": jnp.array(True), "key": KEY, "none": None},
    "y": jnp.array([3.0, -1.0]),
}


def _mixed(tree):
    taken = jnp.where(tree["rest"]["flag"], tree["x"][tree["rest"]["index"]], 0.0)
    value = jnp.sum(taken**2 * tree["y"]) + jax.random.rademacher(tree["rest"]["key"], (), X.dtype)
    return {"loss": value, "count": jnp.sum(taken > 0), "flag": tree["rest"]["flag"], "key": KEY}


def mixed(rest):
    """A loss whose backward gives `rest(its integers, booleans and keys)` for them."""

    def backward(tree, ct):
        for name in ("count", "flag", "key"):
            assert ct[name].dtype == FLOAT0 and ct[name].shape == ()
        index = tree["rest"]["index"]
        taken = jnp.where(tree["rest"]["flag"], tree["x"][index], 0.0)
        by_x = jnp.zeros(3).at[index].add(2 * ct["loss"] * taken * tree["y"])
        return ({"x": by_x, "rest": rest(tree["rest"]), "y": ct["loss"] * taken**2},)

    return mcgrad.pair(_mixed, lambda tree: (_mixed(tree), tree), backward)


def no_tangents(tree):
    return jax.tree.map(lambda x: x if x.dtype == X.dtype else np.zeros(x.shape, FLOAT0), tree)


STACK = jax.tree.map(lambda x: jnp.stack([x, x]), MIXED)
WAYS = {
    "grad": lambda f: jax.grad(lambda t: f(t)["loss"], allow_int=True)(MIXED),
    "vjp": lambda f: jax.vjp(f, MIXED)[1](no_tangents(f(MIXED)))[0],
    "vmap of grad": lambda f: jax.vmap(jax.grad(lambda t: f(t)["loss"], allow_int=True))(STACK),
    "grad of vmap": lambda f: jax.grad(lambda t: jnp.sum(jax.vmap(f)(t)["loss"]), allow_int=True)(
        STACK
    ),
    "grad of a part": lambda f: jax.grad(lambda x: f(MIXED | {"x": x})["loss"])(X),
    "hessian": lambda f: jax.jacfwd(jax.grad(lambda x: f(MIXED | {"x": x})["loss"]))(X),
}
FORWARD_WAYS = {
    "jvp": lambda f: jax.jvp(f, (MIXED,), (no_tangents(MIXED),)),
    "vmap of jvp": lambda f: jax.vmap(
        lambda x: jax.jvp(lambda x: f(MIXED | {"x": x})["loss"], (x,), (x,))
    )(STACK["x"]),
    "jvp of a part": lambda f: jax.jvp(lambda x: f(MIXED | {"x": x}), (X,), (X,)),
    "jacfwd": lambda f: jax.jacfwd(lambda x: f(MIXED | {"x": x})["loss"])(X),
    "linearize": lambda f: jax.linearize(lambda x: f(MIXED | {"x": x})["loss"], X)[1](X),
    "grad of jvp": lambda f: jax.grad(
        lambda x: jax.jvp(lambda x: f(MIXED | {"x": x})["loss"], (x,), (X,))[1]
    )(X),
}


def equal(got, expected):
    """The same structure, dtypes (float0 included) and numbers; keys by their data."""

    def numbers(x):
        return np.asarray(jax.random.key_data(x) if x.dtype == KEY.dtype else x)

    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(numbers(a), numbers(b))


@pytest.mark.parametrize(
    "rest, jit", [(rest, True) for rest in (*NO_COTANGENTS, "None for all")] + [("None", False)]
)
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_what_has_no_tangent_beside_what_has_one(mode, rest, jit):
    if rest == "None for all":
        loss = mixed(lambda tree: None)
    else:
        loss = mixed(lambda tree: jax.tree.map(NO_COTANGENTS[rest], tree))
    for way in [*WAYS.values(), *(FORWARD_WAYS.values() if mode == "forward" else ())]:
        run = functools.partial(way, MODES[mode](loss))
        expected = jax.jit(functools.partial(way, mcgrad.plain(loss)))()
        equal(jax.jit(run)() if jit else run(), expected)


def test_values_and_arguments_without_any_tangent():
    count = mcgrad.pair(
        lambda x: jnp.sum(x > 1), lambda x: (jnp.sum(x > 1), ()), lambda _, ct: (jnp.zeros(3),)
    )
    tangents = jax.jvp(mcgrad.forward_mode(count), (X,), (X,))
    equal(tangents, (jnp.asarray(1), np.zeros((), FLOAT0)))
    (gradient,) = jax.vjp(count, X)[1](np.zeros((), FLOAT0))
    assert gradient.tolist() == [0.0, 0.0, 0.0]
    double = mcgrad.pair(lambda n: 2.0 * n, lambda n: (2.0 * n, ()), lambda _, ct: (None,))
    for of in MODES.values():
        assert jax.grad(of(double), allow_int=True)(3).dtype == FLOAT0
    tangents = jax.jvp(mcgrad.forward_mode(double), (3,), (np.zeros((), FLOAT0),))
    equal(tangents, (jnp.float32(6), jnp.float32(0)))


# A rule of the wrong form: one message, in whichever mode it is met.

TREE = {"w": X, "b": (SCALE, SCALE)}
DERIVATIVES = {
    "grad": lambda loss, args: jax.grad(loss, range(len(args)))(*args),
    "jit of grad": lambda loss, args: jax.jit(jax.grad(loss, range(len(args))))(*args),
    "vmap of grad": lambda loss, args: jax.vmap(jax.grad(loss, range(len(args))))(
        *jax.tree.map(lambda x: jnp.stack([x, x]), args)
    ),
    "grad of forward mode": lambda loss, args: jax.grad(
        mcgrad.forward_mode(loss), range(len(args))
    )(*args),
    "jvp": lambda loss, args: jax.jvp(mcgrad.forward_mode(loss), args, args),
    "vmap of jvp": lambda loss, args: jax.vmap(
        lambda *args: jax.jvp(mcgrad.forward_mode(loss), args, args)
    )(*jax.tree.map(lambda x: jnp.stack([x, x]), args)),
}


def of_x(x):
    return jnp.sum(x**2)


def of_two(x, s):
    return s * jnp.sum(x)


def of_tree(tree):
    return jnp.sum(tree["w"]) + tree["b"][0]


A_TUPLE = "backward: expected a tuple with a cotangent for each of "
OF_X = "backward: expected a cotangent of x"
OF_TREE = "backward: expected a cotangent of tree"
WRONG_BACKWARDS = {
    # the equation, its backward, what is raised
    "no comma": (of_x, lambda x, ct: 2 * ct * x, TypeError,
                 A_TUPLE + "(x,); got an array of shape (3,)"),
    "no comma, one entry": (of_two, lambda r, ct: jnp.stack([ct, ct]), TypeError,
                            A_TUPLE + "(x, s); got an array of shape (2,)"),
    "nothing": (of_x, lambda x, ct: None, TypeError, A_TUPLE + "(x,); got None"),
    "dict": (of_x, lambda x, ct: {"x": ct * x}, TypeError, A_TUPLE + "(x,); got dict"),
    "too many": (of_x, lambda x, ct: (ct * x, ct), TypeError, A_TUPLE + "(x,); got a tuple of 2"),
    "too few": (of_two, lambda r, ct: (ct * r[0],), TypeError,
                A_TUPLE + "(x, s); got a tuple of 1"),
    "the tree's own parts": (of_tree, lambda _, ct: (ct * X, (ct, ct)), TypeError,
                             A_TUPLE + "(tree,); got a tuple of 2"),
    "None": (of_x, lambda x, ct: (None,), TypeError, OF_X + "; got None"),
    "number": (of_x, lambda x, ct: (2.0,), TypeError,
               OF_X + " that is linear in ct; got the constant 2.0"),
    "constant": (of_x, lambda x, ct: (np.ones(3, np.float32),), TypeError,
                 OF_X + " that is linear in ct; got the constant [1. 1. 1.]"),
    "text": (of_x, lambda x, ct: ("x",), TypeError, OF_X + "; got str"),
    "function": (of_x, lambda x, ct: (jnp.sum,), TypeError, OF_X + "; got "),
    "a row": (of_x, lambda x, ct: (2 * ct * x[None],), ValueError,
              OF_X + " of shape (3,); got shape (1, 3)"),
    "one for all": (of_x, lambda x, ct: (2 * ct,), ValueError,
                    OF_X + " of shape (3,); got shape ()"),
    "one, in a row": (of_x, lambda x, ct: (2 * ct[None],), ValueError,
                      OF_X + " of shape (3,); got shape (1,)"),
    "zero": (of_x, lambda x, ct: (0,), ValueError, OF_X + " of shape (3,); got shape ()"),
    "complex": (of_x, lambda x, ct: ((ct * x).astype(jnp.complex64),), TypeError,
                OF_X + " that casts to float32; got complex64"),
    "float0": (of_x, lambda x, ct: (np.zeros(3, FLOAT0),), TypeError,
               OF_X + " that casts to float32; got "),
    "keys": (of_x, lambda x, ct: (jax.random.split(KEY, 3),), TypeError,
             OF_X + " that casts to float32; got key<fry>"),
    "a list": (of_x, lambda x, ct: ([ct, ct, ct],), TypeError,
               OF_X + " with the structure PyTreeDef(*); got PyTreeDef([*, *, *])"),
    "a tuple in a tuple": (of_x, lambda x, ct: ((ct * x,),), TypeError,
                           OF_X + " with the structure PyTreeDef(*); got PyTreeDef((*,))"),
    "a tree's key": (of_tree, lambda _, ct: ({"w": ct * X},), TypeError,
                     OF_TREE + " with the structure PyTreeDef({'b': (*, *), 'w': *}); got "),
    "one for a tuple": (of_tree, lambda _, ct: ({"w": ct * X, "b": ct},), TypeError,
                        OF_TREE + " with the structure PyTreeDef({'b': (*, *), 'w': *}); got "),
    "list for tuple": (of_tree, lambda _, ct: ({"w": ct * X, "b": [ct, ct]},), TypeError,
                       OF_TREE + " with the structure PyTreeDef({'b': (*, *), 'w': *}); got "),
    "a tree's leaf": (of_tree, lambda _, ct: ({"w": ct * X[:2], "b": (ct, ct)},), ValueError,
                      OF_TREE + "['w'] of shape (3,); got shape (2,)"),
    "a tree's None": (of_tree, lambda _, ct: ({"w": ct * X, "b": (ct, None)},), TypeError,
                      OF_TREE + "['b'][1]; got None"),
    "None for a part": (of_tree, lambda _, ct: ({"w": ct * X, "b": None},), TypeError,
                        OF_TREE + "['b'][0]; got None"),
}  # fmt: skip


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("wrong", WRONG_BACKWARDS)
def test_a_backward_of_the_wrong_form(wrong, derivative):
    plain, backward, error, message = WRONG_BACKWARDS[wrong]
    args = {of_x: (X,), of_two: (X, SCALE), of_tree: (TREE,)}[plain]

    def forward(*args):
        return plain(*args), args if plain is of_two else args[0]

    with pytest.raises(error, match=re.escape(message)):
        DERIVATIVES[derivative](mcgrad.pair(plain, forward, backward), args)


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize(
    "backward",
    [
        lambda r, ct: [ct * r[1], ct * jnp.sum(r[0])],
        lambda r, ct: (ct * r[1], 0),
        lambda r, ct: (ct * r[1], False),
        lambda r, ct: (np.zeros((3,)), ct),
        lambda r, ct: ((ct * r[1]).astype(jnp.bfloat16), jnp.zeros((), int)),
    ],
    ids=["list", "zero", "False", "numpy zeros", "other dtypes"],
)
def test_what_a_backward_may_give(backward, derivative):
    """A list of cotangents, zeros of any make, any real dtype: each is cast to its argument's."""

    def scaled(x, s):
        return jnp.sum(s[..., None] * x, -1)

    def as_array(residuals, ct):
        x, s = (jnp.asarray(c) for c in backward(residuals, ct))
        return (jnp.broadcast_to(x, (3,)).astype(X.dtype), s.astype(X.dtype))

    def forward(x, s):
        return scaled(x, s), (x, jnp.broadcast_to(s, (3,)))

    got, expected = (
        DERIVATIVES[derivative](mcgrad.pair(scaled, forward, given), (X, SCALE))
        for given in (lambda r, ct: [*backward(r, ct)], as_array)
    )
    equal(got, expected)


@pytest.mark.parametrize(
    "result, got",
    [
        (lambda x: of_x(x), "an array of shape ()"),
        (lambda x: x[:2], "an array of shape (2,)"),
        (lambda x: (of_x(x), x, x), "a tuple of 3"),
        (lambda x: None, "None"),
    ],
    ids=["value alone", "two rows", "three", "nothing"],
)
def test_a_forward_of_the_wrong_form(result, got):
    """An array of two rows could be unpacked as a value and its residuals."""
    loss = mcgrad.pair(of_x, result, _square_backward)
    message = re.escape(f"forward: expected (value, residuals); got {got}")
    for call in (loss, jax.grad(loss), lambda x: DERIVATIVES["jvp"](loss, (x,))):
        with pytest.raises(TypeError, match=message):
            call(X)


def test_without_jit_python_numbers_are_cotangents_too():
    square = mcgrad.pair(_square, _square_forward, _square_backward)
    with jax.disable_jit():
        assert jax.vjp(square, 2.0)[1](3.0) == (12.0,)
        assert jax.grad(mcgrad.forward_mode(square))(2.0) == 4.0


ORDERS = {
    "value": lambda f, x, s: f(x, s),
    "grad x": lambda f, x, s: jax.grad(f)(x, s),
    "grad s": lambda f, x, s: jax.grad(f, 1)(x, s),
    "grad both": lambda f, x, s: jax.grad(f, (0, 1))(x, s),
    "vmap": lambda f, x, s: jax.vmap(f, (0, None))(jnp.stack([x, 2 * x]), s),
    "vmap of grad": lambda f, x, s: jax.vmap(jax.grad(f), (0, None))(jnp.stack([x, 2 * x]), s),
    "grad of vmap": lambda f, x, s: jax.grad(
        lambda s: jnp.sum(jax.vmap(f, (0, None))(jnp.stack([x, 2 * x]), s))
    )(s),
    "remat": lambda f, x, s: jax.grad(jax.checkpoint(f))(x, s),
    "scan": lambda f, x, s: jax.grad(
        lambda s: jax.lax.scan(lambda c, y: (c + f(y, s), None), 0.0, jnp.stack([x, x]))[0]
    )(s),
    "hessian": lambda f, x, s: jax.jacfwd(jax.grad(f))(x, s),
    "reverse twice": lambda f, x, s: jax.jacrev(jax.grad(f))(x, s),
}


def test_any_two_transformations_of_one_jitted_function_in_any_order():
    """Were the number of residuals to follow `needs_grad`, a later one would die inside JAX."""

    def forward(x, s, *, needs_grad):
        by_x = 2 * s * x if "x" in needs_grad else jnp.zeros(())
        by_s = jnp.sum(x * x) if "s" in needs_grad else jnp.zeros(())
        return s * jnp.sum(x * x), (by_x, by_s)

    def backward(residuals, ct):
        return tuple(ct * r for r in residuals)

    square = mcgrad.pair(lambda x, s: s * jnp.sum(x * x), forward, backward)
    expected = {name: f(jax.jit(mcgrad.plain(square)), X, SCALE) for name, f in ORDERS.items()}
    for names in itertools.permutations(ORDERS, 2):
        one = jax.jit(lambda x, s: square(x, s))
        for name in (*names, names[0]):
            got = ORDERS[name](one, X, SCALE)
            pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected[name]), strict=True)
            assert all(np.allclose(a, b) for a, b in pairs), names
