"""What the whole suite shares: strict promotion, tolerances that follow from a dtype, float64.

Tests import the functions by `from tests.conftest import precision, tolerance`.
"""

import contextlib

import jax
import jax.numpy as jnp
import pytest

# Compilations are measured and counted by tests: none may come from an earlier run.
jax.config.update("jax_enable_compilation_cache", False)

# Groups whose tests import libraries that only `make test-<group>` installs.
NEEDY = {"interop", "distributed"}


def pytest_ignore_collect(collection_path, config):
    """A needy group is read where it is asked for alone; there a missing library fails."""
    asked = config.getoption("markexpr").strip()
    here = collection_path.name in asked and not asked.startswith("not")
    return (collection_path.name in NEEDY and not here) or None


def tolerance(dtype, factor=16.0):
    """The relative error allowed to a result in this dtype: `factor` of its rounding units."""
    return factor * float(jnp.finfo(dtype).eps)


def precision(dtype):
    """A context in which arrays of this dtype exist: float64 is turned on for float64 alone."""
    return jax.enable_x64(jnp.dtype(dtype) == jnp.float64)


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """No silent change of rank or dtype, unless a test is marked `implicit_promotion`."""
    with contextlib.ExitStack() as stack:
        if request.node.get_closest_marker("implicit_promotion") is None:
            stack.enter_context(jax.numpy_rank_promotion("raise"))
            stack.enter_context(jax.numpy_dtype_promotion("strict"))
        yield


@pytest.fixture(autouse=True)
def same_configuration():
    """No test, and nothing that it calls, leaves the global configuration changed."""
    before = dict(jax.config.values)
    yield
    assert dict(jax.config.values) == before
