"""What the interop group shares."""

import numpy as np
import pytest

from tests.conftest import precision


@pytest.fixture
def float64():
    with precision(np.float64):
        yield
