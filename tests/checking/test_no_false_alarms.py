"""The checker is silent on functions whose derivatives are right.

The list is complete for `optax.losses` and `jax.nn`: a function that is neither in it nor excluded
with a reason fails the test. What is a defect of the function itself is listed in `KNOWN`.
"""

from typing import Any

import jax
import numpy as np
import optax
import pytest

from mcgrad.checking import check_gradients
from tests.checking.right import CASES, EXCLUDED, KNOWN, NN, OPTAX, Case, functions_of

pytestmark = pytest.mark.implicit_promotion


def unexplained(case: Case, seeds: int, **options: Any) -> list[str]:
    """The findings that are not documented, with the seed that gave them."""
    found = []
    for seed in range(seeds):
        report = check_gradients(
            case.fun, *case.draw(np.random.default_rng(seed)), seed=seed, **options
        )
        known = [check for check, _ in KNOWN.get(case.name, ())]
        found += [
            f"seed {seed}: {f.check} {f.place} {f.got} {f.expected}: {f.diagnosis}"
            for f in report.findings
            if f.check not in known
        ]
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_finding(case: Case) -> None:
    """Two seeds, without the check that costs half of the time; the full one is below."""
    assert not unexplained(case, 2, skip="transformations")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_finding_in_any_check_over_four_seeds(case: Case) -> None:
    assert not unexplained(case, 4)


@pytest.mark.parametrize(
    ("module", "covered"), [(optax.losses, OPTAX), (jax.nn, NN)], ids=["optax.losses", "jax.nn"]
)
def test_list_is_complete(module: Any, covered: dict[str, Any]) -> None:
    assert set(functions_of(module)) - set(covered) - set(EXCLUDED) == set()


def test_known_defects_are_defects_of_a_case() -> None:
    assert set(KNOWN) <= {case.name for case in CASES}
