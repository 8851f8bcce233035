"""The checker judges the function it is given, where it can be judged, and says where not."""

import functools
import gc
import json
import logging
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import mcgrad
from mcgrad.checking import CHECKS, GradientReport, check_gradients
from tests.checking.planted import cubic

X = jnp.array([1.0, 2.0, 3.0])
KNOWN = ("reference", "differences", "kinks", "coverage")  # these checks know the gradient


def results(report: GradientReport) -> dict[str, str]:
    return {check.check: check.result for check in report.checks}


def square(factor=2.0, value=None):
    """The sum of squares with the rule `factor` ct x, which is right for a factor of 2."""
    value = value or (lambda x: jnp.sum(x**2))
    fun = jax.custom_vjp(value)
    fun.defvjp(lambda x: (value(x), x), lambda x, ct: (factor * ct * x,))
    return fun


# --- The function as it is now


def rule_given_again():
    fun = square()

    def change():
        fun.defvjp(lambda x: (jnp.sum(x**2), x), lambda x, ct: (5 * ct * x,))

    return fun, change


def attribute_of_a_method():
    class Model:
        def __init__(self):
            self.scale, self.square = 2.0, jax.custom_vjp(lambda x: jnp.sum(x**2))
            self.square.defvjp(lambda x: (jnp.sum(x**2), x), lambda x, ct: (self.scale * ct * x,))

        def loss(self, x):
            return self.square(x)

    model = Model()
    return model.loss, lambda: setattr(model, "scale", 5.0)


def object_equal_to_all_of_its_kind():
    class Loss:
        factor = 2.0

        def __call__(self, x):
            return square(self.factor)(x)

        def __eq__(self, other):
            return isinstance(other, Loss)

        def __hash__(self):
            return 0

    loss = Loss()
    return loss, lambda: setattr(loss, "factor", 5.0)


FACTOR = 2.0


def variable_of_a_module():
    def fun(x):
        return square(FACTOR)(x)

    return fun, lambda: globals().update(FACTOR=5.0)


def cell_of_a_closure():
    factor = 2.0

    def fun(x):
        return square(factor)(x)

    def change():
        nonlocal factor
        factor = 5.0

    return fun, change


def partial_of_a_dictionary():
    settings = {"factor": 2.0}
    fun = functools.partial(lambda settings, x: square(**settings)(x), settings)
    return fun, lambda: settings.update(factor=5.0)


@pytest.mark.parametrize(
    "make",
    [
        rule_given_again,
        attribute_of_a_method,
        object_equal_to_all_of_its_kind,
        variable_of_a_module,
        cell_of_a_closure,
        partial_of_a_dictionary,
    ],
)
def test_function_that_changed_is_judged_as_it_is_now(make, monkeypatch) -> None:
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    fun, change = make()
    quickly = functools.partial(check_gradients, fun, X, checks=("differences", "dtypes"))
    assert quickly().ok
    change()
    np.testing.assert_allclose(jax.grad(fun)(X), 5 * X)
    assert not quickly().ok


def test_function_is_not_kept() -> None:
    fun = square()
    check_gradients(fun, X, checks="differences")
    kept = weakref.ref(fun)
    del fun
    gc.collect()
    assert kept() is None


# --- Random numbers


def dropout(x, key):
    return jnp.sum(jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x**2, 0))


def noise(draw):
    return lambda x, key: jnp.sum(x * draw(key, x.shape, x.dtype) * x)


RANDOM = {
    "bernoulli": dropout,
    "normal": noise(jax.random.normal),
    "uniform": noise(jax.random.uniform),
    "gamma": noise(lambda key, shape, dtype: jax.random.gamma(key, dtype.type(2), shape, dtype)),
    "gumbel": lambda x, key: jax.nn.logsumexp(x + jax.random.gumbel(key, x.shape, x.dtype)),
}
KEYS = {
    "typed": lambda: jax.random.key(0),
    "uint32": lambda: jax.random.PRNGKey(0),
    "rbg": lambda: jax.random.key(0, impl="rbg"),
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("is_argument", [True, False], ids=["argument", "closed over"])
@pytest.mark.parametrize("name", RANDOM)
def test_random_function_is_compared_in_its_own_dtype(name, is_argument, key) -> None:
    x, fun, key = jnp.arange(1.0, 9.0), RANDOM[name], KEYS[key]()
    args = (x, key) if is_argument else (x,)
    call = fun if is_argument else lambda x: fun(x, key)
    report = check_gradients(call, *args, skip=("scales", "value", "cotangent", "adjoint"))
    assert report.ok, report
    assert any("other random numbers" in note for note in report.not_covered)
    assert results(report)["differences"] == results(report)["dtypes"] == "passed"


@pytest.mark.parametrize("factor", [2.0, 2.02])
def test_wrong_rule_of_a_random_function_is_found(factor) -> None:
    def rule(fun):
        fun.defvjp(
            lambda x, key: (dropout(x, key), (x, jax.random.bernoulli(key, 0.5, x.shape))),
            lambda saved, ct: (factor * ct * jnp.where(saved[1], saved[0], 0), None),
        )
        return fun

    report = check_gradients(rule(jax.custom_vjp(dropout)), jnp.arange(1.0, 9.0), jax.random.key(0))
    assert report.ok == (factor == 2.0), report
    assert not report.findings or report.findings[0].check == "differences"


def test_same_draws_in_float64_are_compared_in_float64() -> None:
    def fun(x, key):
        return jnp.sum(x**2 * jax.random.normal(key, x.shape, jnp.float32).astype(x.dtype))

    report = check_gradients(fun, X, jax.random.key(0))
    assert report.ok, report
    assert not any("random" in note for note in report.not_covered)
    wrong = jax.custom_vjp(fun)
    wrong.defvjp(
        lambda x, key: (fun(x, key), (x, key)),
        lambda saved, ct: (jax.grad(fun)(*saved) * (1 + 1e-5) * ct, None),
    )
    assert not check_gradients(wrong, X, jax.random.key(0), checks="differences").ok


def test_key_that_may_be_used_once_is_used_by_the_checker_again() -> None:
    with jax.debug_key_reuse(True):
        assert check_gradients(dropout, X, jax.random.key(0), skip="transformations").ok


# --- Outputs


NUMBERS = {"lr": 0.1, "steps": 3, "done": True, "phase": 1j, "name": "adam", "nothing": None}


@pytest.mark.parametrize("number", [0.1, np.float64(0.1), np.float32(0.1), np.asarray(0.1)])
@pytest.mark.parametrize("is_traced", [True, False])
def test_numbers_among_the_outputs_are_constants(number, is_traced) -> None:
    def fun(x):
        value = jnp.sum(x * x) if is_traced or x[0] > 0 else jnp.sum(x)
        return value, [number, NUMBERS]

    report = check_gradients(fun, X)
    assert report.ok, report


@pytest.mark.parametrize("dtype", [float, np.float32])
def test_output_that_jax_does_not_see_has_no_gradient(dtype) -> None:
    report = check_gradients(lambda x: dtype(np.asarray(x).sum()), X)
    assert any("reverse mode fails" in finding.diagnosis for finding in report.findings)


# --- Errors at inputs that the checker chose


def branching(x):
    if x[0] > 3:
        raise ValueError("too large")
    return jnp.sum(x**2)


def asserting(x):
    assert x[0] <= 3, "too large"
    return jnp.sum(x**2)


def on_the_host(kind, factor=2.0):
    """The sum of squares that refuses entries above 10, on the host."""

    def lookup(v):
        if np.max(v) > 10:
            raise ValueError("too large")
        return np.sum(np.asarray(v) ** 2, -1, dtype=v.dtype)

    def value(x):
        shape = jax.ShapeDtypeStruct((), x.dtype)
        if kind == "pure":
            return jax.pure_callback(lookup, shape, x, vmap_method="expand_dims")
        if kind == "debug":
            jax.debug.callback(lookup, x)
            return jnp.sum(x**2)
        return io_callback(lookup, shape, x, ordered=kind == "ordered io")

    return square(factor, value)


def on_the_host_backward():
    def double(v):
        if np.max(v) > 10:
            raise ValueError("too large")
        return np.asarray(2 * v, v.dtype)

    def backward(x, ct):
        like = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (ct * jax.pure_callback(double, like, x, vmap_method="sequential"),)

    fun = jax.custom_vjp(lambda x: jnp.sum(x**2))
    fun.defvjp(lambda x: (jnp.sum(x**2), x), backward)
    return fun


HOST = ("pure", "debug", "io", "ordered io")
LIMITED = {
    "branching": branching,
    "asserting": asserting,
    **{kind: on_the_host(kind) for kind in HOST},
}


@pytest.fixture
def silent_jax():
    """JAX logs every error of a callback."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("fun", [*LIMITED.values(), on_the_host_backward()])
def test_error_at_inputs_of_the_checker_is_not_covered(fun, silent_jax) -> None:
    report = check_gradients(fun, X)
    assert report.ok, report
    assert any("outside the domain" in n and "too large" in n for n in report.not_covered)
    assert results(report)["differences"] == results(report)["scales"] == "passed"


@pytest.mark.parametrize("fun", LIMITED.values(), ids=LIMITED)
def test_error_at_the_arguments_themselves_is_raised(fun, silent_jax) -> None:
    with pytest.raises(Exception, match="too large"):
        check_gradients(fun, 20 * X, checks="determinism")


@pytest.mark.parametrize("kind", HOST)
def test_wrong_rule_of_a_function_on_the_host_is_found(kind, silent_jax) -> None:
    report = check_gradients(on_the_host(kind, 2.02), X, skip="transformations")
    assert ("differences", "off by the constant factor 1.01") in [
        (finding.check, finding.diagnosis) for finding in report.findings
    ], report


def test_point_near_the_edge_of_the_domain_is_judged_inside_it() -> None:
    def fun(x):
        if x[0] < 0.999:
            raise ValueError("too small")
        return jnp.sum(x**3)

    report = check_gradients(fun, X, checks="differences")
    assert report.ok, report
    assert not any("uncertain" in note for note in report.not_covered)


def test_callbacks_run_where_float64_is_not_on() -> None:
    """A callback may run on another thread than the checker, where `enable_x64` does not reach."""
    seen = set()

    def sum_of_squares(v):
        seen.add((jax.config.jax_enable_x64, v.dtype.name))
        return np.sum(np.asarray(v) ** 2, -1, dtype=v.dtype)

    def value(x):
        like = jax.ShapeDtypeStruct((), x.dtype)
        return jax.pure_callback(sum_of_squares, like, x, vmap_method="expand_dims")

    check_gradients(square(2.0, value), X).raise_for_findings()
    assert {is_double for is_double, _ in seen} == {False}
    assert {dtype for _, dtype in seen} == {"float32", "float16", "bfloat16"}


def test_debug_nans_does_not_stop_the_checker(capfd) -> None:
    def fun(x):
        return jnp.sum(x**4 / (1 + x**4))  # NaN at 1e30

    with jax.debug_nans(True), jax.debug_infs(True):
        assert check_gradients(fun, X).ok
        assert jax.config.jax_debug_nans and jax.config.jax_debug_infs
        with pytest.raises(FloatingPointError):  # the caller's own
            check_gradients(lambda x: jnp.sum(jnp.log(-x)), X)


# --- Pairs


def log_cosh(x):
    return jnp.sum(jnp.log(jnp.cosh(x)))


def paired(factor=1.0, plain=log_cosh, value=None):
    value = value or plain
    return mcgrad.pair(
        plain,
        lambda x: (factor * value(x), x),
        lambda x, ct: (factor * ct * jnp.tanh(x),),
    )


WAYS = {
    "pair": lambda loss: loss,
    "forward_mode": mcgrad.forward_mode,
    "jit": jax.jit,
    "partial": functools.partial,
    "jit of partial": lambda loss: jax.jit(functools.partial(loss)),
}


@pytest.mark.parametrize("way", WAYS)
def test_pair_is_compared_with_its_equation(way) -> None:
    x = jnp.array([0.5, 1.0, -2.0])
    good = check_gradients(WAYS[way](paired()), x, skip="transformations")
    assert good.ok and results(good)["reference"] == "passed", good
    bad = check_gradients(WAYS[way](paired(0.5)), x, skip="transformations")
    found = [(f.check, f.argument, f.diagnosis) for f in bad.findings]
    half = "off by the constant factor 1/2"
    assert found == [("reference", "value", half), ("reference", "x", half)]


def test_another_reference_takes_the_place_of_the_equation() -> None:
    report = check_gradients(paired(0.5), X, reference=lambda x: log_cosh(x) / 2)
    assert report.ok, report
    assert not check_gradients(paired(), X, reference=lambda x: log_cosh(x) / 2).ok
    assert results(check_gradients(mcgrad.plain(paired(0.5)), X))["reference"] == "not run"


def test_equation_of_a_pair_is_no_reference_where_it_is_not_finite() -> None:
    def stable(x):
        return jnp.sum(jnp.logaddexp(x, -x) - jnp.log(2.0).astype(x.dtype))

    report = check_gradients(paired(value=stable), jnp.array([0.5, 1e3]))  # cosh overflows
    assert report.ok, report
    assert any("not finite in it" in note for note in report.not_covered)


@pytest.mark.parametrize("name", mcgrad.LOSSES)
def test_losses_are_compared_with_their_equations(name) -> None:
    loss = mcgrad.LOSSES[name]
    args, options = loss.example_args(jax.random.key(0), (4,), jnp.float32, smooth=False)
    report = check_gradients(loss, *args, checks=("reference", "value"), **options)
    assert report.ok and results(report)["reference"] == "passed", report


# --- Underflow


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("size", [1e-44, 1e-40, 6.67e-11, 1e-8, 1e-5])
def test_right_gradient_that_underflows(size, dtype) -> None:
    x = X.astype(dtype)
    for fun in (lambda x: size * jnp.sum(x**2), lambda x: size * jnp.sum(jnp.exp(3 * x))):
        report = check_gradients(fun, x, checks=("differences", "coverage", "dtypes"))
        assert not report.findings, report


def test_underflow_hides_no_dropped_gradient() -> None:
    @jax.custom_vjp
    def fun(x):
        return 1e-3 * jnp.sum(x**2)

    def backward(x, ct):  # right in float32 and float64 alone
        factor = 0.0 if x.dtype == jnp.float16 else 2e-3
        return ((factor * ct * x).astype(x.dtype),)

    fun.defvjp(lambda x: (fun(x), x), backward)
    findings = check_gradients(fun, X).findings
    assert [(f.check, "float16" in f.diagnosis) for f in findings] == [("dtypes", True)]


def test_small_values_of_a_function_that_is_judged_in_its_own_dtype() -> None:
    def fun(x, key):
        return 1e-42 * dropout(x, key)

    assert not check_gradients(fun, X, jax.random.key(1)).findings


# --- Nothing judged


NOTHING = {
    "NaN": (lambda x: jnp.sum(jnp.log(-x)), X),
    "infinite": (lambda x: jnp.sum(x / 0), X),
    "NaN argument": (lambda x: jnp.sum(x * x), X * jnp.nan),
    "empty": (lambda x: jnp.sum(x * x), jnp.zeros(0)),
    "empty matrix": (lambda x: jnp.sum(x @ x.T), jnp.zeros((3, 0))),
    "vertical": (lambda x: jnp.sum(jnp.sqrt(x)), jnp.zeros(2)),
    "jumps": (lambda x: jnp.sum(jnp.floor(x)), X),
    "one point": (lambda x: jnp.sum(x) if np.all(np.asarray(x) == X) else 1 / 0, X),
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("checks", [None, "differences"])
def test_nothing_judged_is_neither_ok_nor_passed(name, checks) -> None:
    fun, x = NOTHING[name]

    def concrete(x):  # `np.asarray` of what is differentiated is refused
        return fun(jax.lax.stop_gradient(x)) if name == "one point" else fun(x)

    report = check_gradients(concrete, x, checks=checks)
    assert not (report.ok or report.judged)
    assert not report.findings, report
    assert {results(report)[check] for check in KNOWN} <= {"not judged", "not run"}
    assert results(report)["differences"] == "not judged"
    assert "nothing could be judged" in str(report).splitlines()[0]
    assert "nothing could be judged" in report._repr_html_()
    assert report.not_covered
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False
    with pytest.raises(AssertionError, match="nothing could be judged"):
        report.raise_for_findings()
    for check in report.checks:
        assert (check.result in ("passed", "failed")) == (check.comparisons > 0)


@pytest.mark.parametrize(
    ("fun", "x"),
    [
        (lambda x: jnp.sum(x**2), jnp.zeros(3)),
        (lambda x: 0 * jnp.sum(x), jnp.zeros(3)),
        (lambda x: jnp.sum(jnp.abs(x)), jnp.zeros(2)),
    ],
)
def test_zeros_are_judged(fun, x) -> None:
    report = check_gradients(fun, x)
    assert report.ok and results(report)["differences"] == "passed", report


def test_empty_argument_beside_another() -> None:
    report = check_gradients(lambda x, y: jnp.sum(x) + cubic(y), jnp.zeros(0), X)
    assert report.ok, report
    assert any(note.startswith("x: empty") for note in report.not_covered)


@pytest.mark.parametrize("check", [c for c in CHECKS if c not in ("reference", "second_order")])
def test_a_check_that_judged_nothing_says_so(check) -> None:
    report = check_gradients(lambda x: jnp.sum(x * x), jnp.zeros(0), checks=check)
    assert report.ok == (check in ("value", "determinism")), report
    assert results(report)[check] == ("passed" if report.ok else "not judged")
