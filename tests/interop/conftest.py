"""The libraries of others are imported where this group is asked for, and nowhere else."""

import numpy as np
import pytest

from tests.conftest import precision


def pytest_ignore_collect(config):
    """The ordinary run neither waits for them nor needs them; in this group a missing one fails."""
    ordinary = f"-m{config.getoption('markexpr')}" in config.getini("addopts")
    return ordinary or None


@pytest.fixture
def float64():
    with precision(np.float64):
        yield
