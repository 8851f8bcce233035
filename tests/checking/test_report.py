"""What a report says, what the options do, and what the checker leaves alone."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcgrad.checking import CHECKS, GradientReport, check_gradients
from tests.checking.planted import altered, at, cubic, cubic_rule, ruled

X = jnp.array([1.0, -2.0, 3.0])
HALVED = altered("cubic", at(0, lambda g, *args: g / 2))


def quickly(fun, *args, **options) -> GradientReport:
    """Only the comparison with differences: the cheapest check."""
    return check_gradients(fun, *args, checks="differences", **options)


# --- The report


def test_finding_names_everything() -> None:
    report = quickly(HALVED, X)
    (finding,) = report.findings
    assert not report.ok
    assert (finding.check, finding.argument, finding.leaf) == ("differences", "x", "")
    assert finding.entry == (2,)
    assert finding.got == pytest.approx(9 / 2)
    assert finding.expected == pytest.approx(9, rel=1e-6)
    assert finding.error == pytest.approx(9 / 2, rel=1e-6)
    assert 0 < finding.tolerance < 1e-4
    assert finding.diagnosis == "off by the constant factor 1/2"


def test_table_shows_every_check_and_finding() -> None:
    text = str(quickly(HALVED, X))
    for part in (*CHECKS, "1 finding", "x[2]", "off by the constant factor 1/2", "not run"):
        assert part in text
    rows = text.split("\n\n")[1].splitlines()
    assert len({row.find("  ") for row in rows if row.startswith("transformations")}) == 1
    starts = [row[len("transformations  ") :] for row in rows[2:]]
    assert all(start.startswith(("passed", "failed", "not run")) for start in starts)


def test_notebook_table_is_escaped() -> None:
    page = quickly(lambda p: HALVED(p["<b>"]), {"<b>": X})._repr_html_()
    assert page.count("<table>") == page.count("</table>") == 2
    assert "&lt;b&gt;" in page and "['<b>']" not in page


def test_dictionary_is_json_and_complete() -> None:
    broken = ruled(cubic, lambda ct, x: (ct * x**2 / 0,))
    report = check_gradients(broken, X, checks=("differences", "scales"))
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["ok"] is False
    assert len(again["findings"]) == len(report.findings) > 0
    assert [check["check"] for check in again["checks"]] == list(CHECKS)


def test_errors_of_each_gradient() -> None:
    """Half a gradient is off by half of it, in norm; what is not compared has no error."""

    def both(f):
        return lambda p: f(p["x"]) + jnp.sum(p["y"])

    pytree = {"x": X, "y": X}
    report = check_gradients(
        both(HALVED), pytree, reference=both(cubic), checks=("reference", "differences", "dtypes")
    )
    x, y = report.gradients
    assert (x.argument, x.leaf, x.ok) == ("p", "['x']", False)
    assert x.reference == pytest.approx(1 / 2) and x.differences == pytest.approx(1 / 2)
    # It is as wrong in float64, so that float32 is right about it.
    assert x.own_dtype is not None and x.own_dtype < 1e-6
    assert (y.argument, y.leaf, y.ok) == ("p", "['y']", True)
    assert y.reference == 0 and y.differences is not None and y.differences < 1e-9
    (alone,) = quickly(HALVED, X).gradients
    assert alone.reference is None and alone.own_dtype is None
    assert alone.differences == pytest.approx(1 / 2)


def test_raise_for_findings() -> None:
    report = quickly(HALVED, X)
    with pytest.raises(AssertionError) as caught:
        report.raise_for_findings()
    assert str(report) == repr(report)
    assert str(report) in str(caught.value)
    good = quickly(cubic, X)
    assert good.raise_for_findings() is good


def test_same_seed_same_report() -> None:
    reports = [check_gradients(HALVED, X, seed=5) for _ in range(2)]
    assert reports[0] == reports[1]
    assert str(reports[0]) == str(reports[1])


def test_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    check_gradients(HALVED, X)
    assert capsys.readouterr() == ("", "")


# --- Arguments


def test_leaf_of_a_pytree_is_named() -> None:
    def loss(params, x):
        return jnp.sum(HALVED(params["layers"][1]) * x)

    params = {"layers": [None, X], "flag": True, "count": 3, "name": "net"}
    findings = quickly(loss, params, 2.0).findings
    assert [(f.argument, f.leaf) for f in findings] == [("params", "['layers'][1]")]


def test_integers_booleans_none_and_text_are_held_fixed() -> None:
    def loss(scores, labels, mask, nothing, *, power=1, reduction="mean", weights=None):
        assert nothing is None and reduction == "sum" and power == 2
        picked = jnp.take_along_axis(scores, labels[:, None], 1)[:, 0] ** power
        return jnp.sum(jnp.where(mask, picked * weights, 0))

    args = jnp.ones((3, 2)) * 1.5, jnp.array([0, 1, 1]), jnp.array([True, False, True]), None
    report = check_gradients(loss, *args, power=2, reduction="sum", weights=jnp.arange(3.0) + 1)
    assert report.ok, report
    assert report.checks[2].comparisons > 6 + 3


def test_keyword_arrays_are_checked() -> None:
    def loss(x, *, scale):
        return HALVED(x) * jax.lax.stop_gradient(scale)

    names = [f.argument for f in quickly(loss, X, scale=jnp.array(2.0)).findings]
    assert names == ["x", "scale"]
    assert [f.argument for f in quickly(loss, X, scale=2.0).findings] == ["x"]
    assert [f.argument for f in quickly(loss, X, scale=2.0, argnames="scale").findings] == names
    assert [f.argument for f in quickly(loss, X, scale=jnp.array(2.0), argnames=()).findings] == [
        "x"
    ]


def test_argnums_choose_what_is_checked() -> None:
    def loss(x, y):
        return HALVED(x) + HALVED(y)

    assert [f.argument for f in quickly(loss, X, X + 1, argnums=1).findings] == ["y"]
    assert [f.argument for f in quickly(loss, X, X + 1, argnums=-2).findings] == ["x"]


def test_option_of_the_same_name_goes_through_partial() -> None:
    def loss(x, seed):
        return jnp.sum(x) * seed

    assert quickly(functools.partial(loss, seed=3), X).ok


def test_equal_settings_of_other_types_are_other_programs() -> None:
    def loss(x, how):
        return jnp.sum(x) if how is True else HALVED(x)

    assert quickly(loss, X, True).ok
    assert not quickly(loss, X, 1).ok


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 3}, "order: expected 1 or 2; got 3"),
        ({"checks": "value, kinks"}, "checks: expected names among value"),
        ({"skip": ["nothing"]}, "skip: expected names among value"),
        ({"modes": "backward"}, "modes: expected 'fwd' or 'rev'; got 'backward'"),
        ({"argnums": 1}, "argnums: expected positions below 1; got 1"),
        ({"argnames": "y"}, "argnames: expected keyword arguments"),
    ],
)
def test_misuse(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        check_gradients(cubic, X, **options)


def test_nothing_to_differentiate() -> None:
    with pytest.raises(ValueError, match="at least one float argument"):
        check_gradients(cubic, jnp.arange(3))
    with pytest.raises(ValueError, match="at least one float output"):
        check_gradients(jnp.argmax, X)


def test_error_of_the_function_itself_is_raised() -> None:
    with pytest.raises(TypeError, match="dot_general|matmul|shape"):
        check_gradients(lambda x: x @ jnp.ones((4, 2)), X)


# --- Which checks run


def test_checks_and_skip() -> None:
    report = check_gradients(cubic, X, checks=("value", "cotangent"), skip="value")
    assert [c.check for c in report.checks if c.result != "not run"] == ["cotangent"]


def test_second_order_only_when_asked() -> None:
    def ran(order):
        report = check_gradients(cubic, X, order=order, checks=("second_order",))
        return report.checks[CHECKS.index("second_order")].comparisons

    assert ran(1) == 0
    assert ran(2) > 0


def test_explicit_mode_must_exist() -> None:
    rule = ruled(cubic, cubic_rule)
    assert quickly(rule, X).ok
    (finding,) = check_gradients(rule, X, modes=("fwd", "rev"), checks="adjoint").findings
    assert "forward mode fails" in finding.diagnosis


def test_function_with_forward_mode_only() -> None:
    def doubling(x):
        return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 2 * c[1]), (0, x))[1]

    report = check_gradients(doubling, X)
    assert report.ok, report
    assert report.checks[CHECKS.index("differences")].comparisons > 3
    assert any(note.startswith("reverse mode") for note in report.not_covered)

    wrong = jax.custom_jvp(doubling)
    wrong.defjvp(lambda p, t: (doubling(*p), 7.9 * t[0]))
    assert not quickly(wrong, X, modes="fwd").ok


# --- The reference


def test_reference_value_and_gradient() -> None:
    def check(fun, reference):
        report = check_gradients(fun, X, reference=reference, checks="reference")
        return [(f.argument, f.diagnosis) for f in report.findings]

    assert check(cubic, lambda x: jnp.sum(x * x * x) / 3) == []
    assert check(HALVED, cubic) == [("x", "off by the constant factor 1/2")]
    doubled = check(cubic, lambda x: 2 * cubic(x))
    assert [argument for argument, _ in doubled] == ["value", "x"]
    assert check(cubic, lambda x: x)[0][1] == "the reference has another number of outputs"


def test_reference_may_take_another_slope_at_a_kink() -> None:
    x = jnp.array([0.0, 1.0, -1.0])

    def relu(x):
        return jnp.sum(jnp.where(x >= 0, x, 0.0))

    def other(x):
        return jnp.sum(jax.nn.relu(x))

    report = check_gradients(relu, x, reference=other, checks="reference")
    assert report.ok and any("another slope" in kink for kink in report.kinks)


# --- Kinks and gaps


def test_kink_is_called_a_kink() -> None:
    report = check_gradients(lambda x: jnp.sum(jnp.abs(x)), jnp.array([0.0, 2.0]))
    assert report.ok
    assert report.kinks == ("x: the gradient lies between the slopes at (0,)",)


def test_jump_is_not_covered() -> None:
    report = quickly(lambda x: jnp.sum(jnp.floor(x)), jnp.array([1.0, 2.5]))
    assert report.ok
    assert any("too uncertain" in note for note in report.not_covered)


@pytest.mark.implicit_promotion
def test_function_that_narrows_its_input_is_judged_by_its_precision() -> None:
    def narrowed(factor):
        rule = jax.custom_vjp(lambda x: jnp.sum(jnp.sin(x.astype(jnp.bfloat16))))
        rule.defvjp(
            lambda x: (rule(x), x),
            lambda x, ct: ((factor * ct * jnp.cos(x.astype(jnp.bfloat16))).astype(x.dtype),),
        )
        return rule

    good = quickly(narrowed(1), X)
    assert good.ok, good
    assert any("narrowed" in note for note in good.not_covered)
    assert not quickly(narrowed(2), X).ok


def test_function_that_refuses_float64_is_compared_in_its_own_dtype() -> None:
    def only_float32(fun):
        def refusing(x):
            if x.dtype != jnp.float32:
                raise TypeError("float32 only")
            return fun(x)

        return refusing

    good = check_gradients(only_float32(cubic), X, order=2)
    assert good.ok, good
    assert any("float32 only" in note for note in good.not_covered)
    assert not quickly(only_float32(HALVED), X).ok


def test_function_that_cannot_be_traced_runs_step_by_step() -> None:
    def branching(x, count):
        return cubic(x) if int(count.sum()) > 1 else 0 * cubic(x)

    report = check_gradients(branching, X, jnp.array([1, 2]))
    assert report.ok, report
    assert any("cannot be traced" in note for note in report.not_covered)


def test_validation_of_concrete_labels_does_not_meet_perturbed_ones() -> None:
    def loss(x, labels):
        if not isinstance(labels, jax.core.Tracer) and set(np.asarray(labels)) - {-1.0, 1.0}:
            raise ValueError("labels: expected -1 or 1")
        return jnp.sum(x * labels)

    assert check_gradients(loss, X, jnp.array([1.0, -1.0, 1.0])).ok


def test_rows_of_nan_that_count_for_nothing() -> None:
    def loss(x, weights):
        return jnp.sum(jnp.where(weights > 0, weights * jnp.where(weights > 0, x, 0) ** 2, 0))

    x, weights = jnp.array([1.0, jnp.nan, 2.0]), jnp.array([1.0, 0.0, 2.0])
    report = check_gradients(loss, x, weights, argnums=0)
    assert report.ok, report


def test_large_input_is_sampled_and_says_so() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=10**6), jnp.float32)
    report = check_gradients(cubic, x, skip=("transformations", "dtypes"))
    assert report.ok, report
    assert any("of 1000000 entries" in note for note in report.not_covered)
    wrong = altered("cubic", at(0, lambda g, *a: g.at[123_456].multiply(1.01)))
    (finding,) = quickly(wrong, x).findings
    assert finding.entry == (123_456,)
    assert "1.01" in finding.diagnosis


# --- What is left alone


def test_global_configuration_is_left_as_it_was() -> None:
    before = dict(jax.config.values)
    check_gradients(cubic, X, order=2)
    assert dict(jax.config.values) == before
    assert jnp.zeros(1).dtype == jnp.float32


def test_float64_arguments() -> None:
    with jax.enable_x64(True):
        x = jnp.array([1.0, 2.0], jnp.float64)
        assert check_gradients(cubic, x, order=2).ok
        assert not quickly(HALVED, x).ok


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_arguments(dtype) -> None:
    assert check_gradients(cubic, X.astype(dtype)).ok
    assert not quickly(HALVED, X.astype(dtype)).ok
