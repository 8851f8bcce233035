"""Every planted bug is found, and the finding names the right argument and check."""

import pytest

from mcgrad.checking import check_gradients
from tests.checking.planted import PLANTED, RIGHT, Planted

pytestmark = pytest.mark.implicit_promotion


@pytest.mark.parametrize("bug", PLANTED, ids=str)
def test_planted_bug_is_found_and_named(bug: Planted) -> None:
    report = check_gradients(bug.fun, *bug.args, **bug.options)
    named = [f for f in report.findings if f.argument == bug.argument and f.check in bug.checks]
    assert named, f"{bug}: expected {bug.checks} to name {bug.argument}\n{report}"
    assert any(bug.says in f.diagnosis for f in named), f"{bug}: expected {bug.says!r}\n{report}"


@pytest.mark.parametrize("equation", RIGHT)
def test_right_rule_of_the_same_equation_passes(equation: str) -> None:
    fun, args = RIGHT[equation]
    check_gradients(fun, *args, order=2).raise_for_findings()


def test_catalogue_is_large_and_its_names_differ() -> None:
    assert len(PLANTED) >= 60
    assert len({str(bug) for bug in PLANTED}) == len(PLANTED)
